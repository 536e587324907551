"""The jobs of a miniature, on one process or on several, one core each.

A job is a start with its pairs, or a model; each knows what is done already, so
that the same command goes on after any end.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax.miniature import methods
from mpo_jax.miniature.config import MiniatureConfig
from mpo_jax.miniature.seed import Seed
from mpo_jax.utils import orphans, progress

LOGS = "logs"


@dataclasses.dataclass(frozen=True)
class Job:
    """What one process does at a time.

    Attributes:
      seed: number.
      name: of a model, or ``start``.
    """

    seed: int
    name: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.name}"


def folder_of(workdir: pathlib.Path, seed: int) -> pathlib.Path:
    """Of all that is made with a seed."""
    return workdir / f"seed_{seed}"


def run(cfg: MiniatureConfig, workdir: pathlib.Path) -> None:
    """Do all jobs that are not done.

    Raises:
      ValueError: from any step, naming what to do; a process died.
    """
    workers = min(cfg.workers or _cores(), len(cfg.seeds) * len(cfg.models()))
    if workers == 1:
        for job in _in_order(cfg):
            progress.console().rule(str(job), style="bold")
            _do(cfg, workdir, job)
        return
    _run_all(cfg, workdir, workers)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _in_order(cfg: MiniatureConfig) -> Iterator[Job]:
    for seed in cfg.seeds:
        yield Job(seed, methods.START)
        for name in cfg.models():
            yield Job(seed, name)


def _do(cfg: MiniatureConfig, workdir: pathlib.Path, job: Job) -> None:
    seed = Seed(cfg, job.seed, folder_of(workdir, job.seed))
    if job.name == methods.START:
        seed.start()
        seed.pairs()
    else:
        seed.model(job.name)


def _run_all(cfg: MiniatureConfig, workdir: pathlib.Path, workers: int) -> None:
    """Starts first, each followed by its methods as soon as it is there."""
    (workdir / LOGS).mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in dealt(sorted(os.sched_getaffinity(0)), workers):
        cores.put(core)
    total = len(cfg.seeds) * (1 + len(cfg.models()))
    began = time.perf_counter()
    with (
        progress.bar(extra="{task.fields[now]}") as bar,
        concurrent.futures.ProcessPoolExecutor(
            workers, context, initializer=_begin, initargs=(cores,)
        ) as pool,
    ):
        task = bar.add_task("Jobs", total=total, now="")
        waiting = {
            pool.submit(_logged, cfg, workdir, Job(seed, methods.START)): Job(
                seed, methods.START
            )
            for seed in cfg.seeds
        }
        while waiting:
            done, _ = concurrent.futures.wait(
                waiting, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for one in done:
                job = waiting.pop(one)
                _check(one, job, workdir, waiting)
                minutes = (time.perf_counter() - began) / 60
                bar.update(task, advance=1, now=f"{job} · {minutes:.0f} min")
                if job.name == methods.START:
                    for name in cfg.models():
                        after = Job(job.seed, name)
                        waiting[pool.submit(_logged, cfg, workdir, after)] = after


def dealt(cores: Sequence[int], workers: int) -> list[int]:
    """A core for every worker; where there are fewer, several share one."""
    return [cores[number % len(cores)] for number in range(workers)]


def _check(
    one: concurrent.futures.Future[None],
    job: Job,
    workdir: pathlib.Path,
    waiting: dict[concurrent.futures.Future[None], Job],
) -> None:
    """Stop all where one has failed."""
    error = one.exception()
    if error is None:
        return
    for other in waiting:
        other.cancel()
    log = _log_of(workdir, job)
    progress.console().print(f"{job} failed; jobs under way are ended first")
    raise ValueError(
        f"{job}: {error or type(error).__name__}; all it said is in {log}. Mend it and "
        "start the same command: what is done stays"
    ) from error


def _log_of(workdir: pathlib.Path, job: Job) -> pathlib.Path:
    return workdir / LOGS / f"seed_{job.seed}_{job.name}.log"


def _begin(cores: Any) -> None:
    """In a new process, before it opens a device: one core is its own."""
    orphans.end_with_parent()
    os.sched_setaffinity(0, {cores.get()})


def _logged(cfg: MiniatureConfig, workdir: pathlib.Path, job: Job) -> None:
    """In a worker: do a job; what is printed goes to its log."""
    with open(_log_of(workdir, job), "a", encoding="utf-8") as log:
        saved = [os.dup(fd) for fd in (1, 2)]
        sys.stdout.flush()
        try:
            for fd in (1, 2):
                os.dup2(log.fileno(), fd)
            _do(cfg, workdir, job)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for fd, kept in zip((1, 2), saved, strict=True):
                os.dup2(kept, fd)
                os.close(kept)
