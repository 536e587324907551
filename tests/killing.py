"""Kill a training again and again, in every stage, and see that nothing is lost.

  python tests/killing.py --processes=2 --sigkills=10 --sigterms=6 [--bucket] [--seed=7]

A run that is left alone and one that is killed must end with the same metrics, answers
and weights, bit for bit. Every kill waits for the sign of a stage on disk (or in the
bucket) and hits one host, or all. The suite does the same with fewer kills.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import fake_gcs
import several
import small_runs

ROOT = pathlib.Path(__file__).parents[1]
LONGEST_S = 300.0
Names = set[str]


def _is_indexing(names: Names) -> bool:
    there = {name.split("/")[1] for name in names if name.startswith("data/")}
    return "shards" in there and not any(n.endswith("manifest.json") for n in names)


def _is_reading_reference(names: Names) -> bool:
    keys = {n.rsplit("/", 1)[0] for n in names if n.endswith("/key.json")}
    return any(
        not any(n.startswith(f"{key}/part-") and n.endswith(".parquet") for n in names)
        for key in keys
    )


def _is_answering(names: Names) -> bool:
    return any(".jsonl.parts/" in name for name in names)


def _is_saving(names: Names) -> bool:
    if any(".orbax-checkpoint-tmp" in name for name in names):
        return True
    began = {n.split("/")[1] for n in names if n.startswith("checkpoints/")}
    ended = {n.split("/")[1] for n in names if n.endswith("_CHECKPOINT_METADATA")}
    return bool(began - ended)


def _is_exporting(names: Names) -> bool:
    return any(name.split("/")[0].startswith(("hf.", ".hf")) for name in names) or (
        "hf/.unfinished.json" in names
    )


SIGNS: dict[str, Callable[[Names], bool]] = {
    "index": _is_indexing,
    "reference": _is_reading_reference,
    "evaluation": _is_answering,
    "save": _is_saving,
    "export": _is_exporting,
}


def _files(top: pathlib.Path) -> Names:
    found = set()
    for folder, _, files in os.walk(top):
        below = pathlib.Path(folder).relative_to(top)
        found |= {str(below / name) for name in files}
    return found


@dataclasses.dataclass(frozen=True)
class World:
    """What runs are made of, and where they may lie."""

    files: dict[str, pathlib.Path]
    config: pathlib.Path
    folder: pathlib.Path
    processes: int
    bucket: fake_gcs.Bucket | None
    env: dict[str, str]

    def names(self, run: str) -> Names:
        """Files of a run's work directory; of a bucket, also the first host's own."""
        if self.bucket is None:
            return _files(self.folder / run)
        found = {
            name.removeprefix(f"{run}/")
            for name in list(self.bucket.objects)
            if name.startswith(f"{run}/")
        }
        mirrors = self.folder / "machines/mpo_jax/mirrors"
        return found.union(*map(_files, mirrors.glob(f"{run}-*/host_0")))

    def start(self, run: str) -> list[subprocess.Popen]:
        place = str(self.folder / run) if self.bucket is None else f"gs://bucket/{run}"
        command = [
            sys.executable,
            str(ROOT / "scripts/train.py"),
            f"--config={self.config}",
            f"--workdir={place}",
        ]
        env = {
            "JAX_COMPILATION_CACHE_DIR": str(self.files["cache"]),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **self.env,
        }
        return several.start(command, self.processes, env=env)

    def results(self, run: str) -> dict[str, object]:
        """Everything that two runs may not differ in."""
        folder = self.folder / run
        if self.bucket is not None:
            folder = fake_gcs.arrived(self.bucket, f"{run}/", self.folder / "in" / run)
        answers = {
            str(path.relative_to(folder)): path.read_text()
            for path in sorted(folder.glob("benchmarks/*/answers/*tokens.jsonl"))
        }
        weights = (folder / "hf/model.safetensors").read_bytes()
        return {
            "metrics": small_runs.losses(folder, held_out=True),
            "lines": small_runs.written(folder),
            "answers": answers,
            "weights": hashlib.sha256(weights).hexdigest(),
        }


@contextlib.contextmanager
def world(folder: pathlib.Path, processes: int, *, bucket: bool) -> Iterator[World]:
    """Data, model, recipe; 8 steps, a save and an evaluation every second one."""
    folder.mkdir(parents=True, exist_ok=True)
    files = small_runs.make_world(folder / "world")
    cfg = small_runs.small(files)
    cfg.mesh.fsdp, cfg.rows.row_multiple, cfg.rows.pairs_per_batch = -1, 4, 4
    cfg.optim.max_steps, cfg.optim.epochs = 8, 2
    cfg.checkpoint.every_steps, cfg.checkpoint.keep_last = 2, 2
    cfg.data.eval_meta, cfg.log.eval_every = str(files["eval_meta"]), 2
    cfg.model.drop_path = 0.2  # randomness must go on, too
    cfg.hosts.heartbeat_s, cfg.hosts.connect_s = 5, 60
    cfg.log.upload_seconds = 1e6  # what must not be lost goes at once
    small_runs.with_questions(cfg, folder / "questions").eval.every = 4
    path = small_runs.write_config(folder / "recipe.py", cfg)
    with contextlib.ExitStack() as stack:
        objects, env = None, {"XDG_CACHE_HOME": str(folder / "machines")}
        if bucket:
            url, objects = stack.enter_context(fake_gcs.serve())
            env |= fake_gcs.environment(url)
        yield World(files, path, folder, processes, objects, env)


def alone(made: World, run: str) -> dict[str, object]:
    """Results of a run that is left alone."""
    for status, output in several.ended(made.start(run), timeout=LONGEST_S):
        assert status == 0, output
    return made.results(run)


def kill(
    made: World, run: str, stage: str, number: signal.Signals, luck: random.Random
) -> tuple[str, list[int]]:
    """Start a run, wait for a stage, signal a host or all; how it ended.

    Where the stage is over (the index was made before the last kill), the run ends
    before the signal.
    """
    hosts = made.start(run)
    hit = f"too late for {stage}"
    while all(host.poll() is None for host in hosts):
        if SIGNS[stage](made.names(run)):
            hit = f"in {stage}"
            time.sleep(luck.choice((0.0, 0.0, 0.02, 0.1)))
            break
        time.sleep(0.002)  # a stage may last some hundredths
    chosen = hosts if luck.random() < 0.3 else [luck.choice(hosts)]
    for host in chosen:
        host.send_signal(number)
    statuses = []
    for status, output in several.ended(hosts, timeout=LONGEST_S):
        assert status in ALLOWED, (stage, number, status, output)
        statuses.append(status)
    return f"{number.name} of {len(chosen)} {hit}", statuses


ALLOWED = {0, 42, 75, 134, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGABRT}
"""Done, or what launchers start again; never 1."""


def until_the_end(made: World, run: str) -> dict[str, object]:
    """Start it as often as a launcher would."""
    for _ in range(5):
        ended = several.ended(made.start(run), timeout=LONGEST_S)
        if all(status == 0 for status, _ in ended):
            return made.results(run)
        assert all(status in ALLOWED for status, _ in ended), ended
    raise AssertionError(ended)


def compare(found: dict[str, object], expected: dict[str, object]) -> None:
    """Bit for bit."""
    for name, value in expected.items():
        assert found[name] == value, (
            name,
            json.dumps(found[name], default=str)[:3000],
            json.dumps(value, default=str)[:3000],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--sigkills", type=int, default=10)
    parser.add_argument("--sigterms", type=int, default=6)
    parser.add_argument("--bucket", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    luck = random.Random(args.seed)
    numbers = [signal.SIGKILL] * args.sigkills + [signal.SIGTERM] * args.sigterms
    luck.shuffle(numbers)
    with (
        tempfile.TemporaryDirectory() as name,
        world(pathlib.Path(name, "w"), args.processes, bucket=args.bucket) as made,
    ):
        expected = alone(made, "whole")
        print(f"{args.processes} processes, left alone: {expected['weights']}")
        told = collections.Counter[str]()
        while numbers:
            run = f"killed_{len(numbers)}"
            order = list(SIGNS)  # else a run is past a stage before it is signalled
            for stage in sorted(luck.sample(order, 3), key=order.index):
                if not numbers:
                    break
                began = time.monotonic()
                what, statuses = kill(made, run, stage, numbers[-1], luck)
                if "too late" not in what:
                    told[numbers.pop().name] += 1
                spent = time.monotonic() - began
                print(f"{what}: {statuses}, {spent:.0f} s", flush=True)
            compare(until_the_end(made, run), expected)
            print(f"{run} is bit-equal", flush=True)
        print(f"all are bit-equal, after {dict(told)}")


if __name__ == "__main__":
    main()
