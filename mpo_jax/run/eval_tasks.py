"""What an evaluation asks: benchmarks under protocols in modes, and their questions."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Sequence

from mpo_jax import config, ledger
from mpo_jax.evals import asking, benchmark, registry, sources


@dataclasses.dataclass(frozen=True)
class Task:
    """A benchmark under a protocol in a mode.

    Attributes:
      benchmark, protocol: with their rules.
      protocol_name, mode: names.
      items: what is scored, in order.
      ids: of all items that there are, scored or not.
      folder: of the benchmark's files.
    """

    benchmark: benchmark.Benchmark
    protocol: benchmark.Protocol
    protocol_name: str
    mode: str
    items: Sequence[benchmark.Item]
    ids: frozenset[str]
    folder: sources.Folder

    @property
    def place(self) -> tuple[str, str]:
        """Name and mode."""
        return self.benchmark.name, self.mode


def tasks(cfg: config.EvaluationConfig) -> list[Task]:
    """What a configuration asks for; reads the benchmarks' files.

    Raises:
      ValueError: a benchmark or its protocol does not exist, or files are missing;
        names what to do.
    """
    found = []
    for named in cfg.benchmarks:
        name, _, protocol = named.partition(":")
        one = registry.get(name)
        protocol = protocol or cfg.protocol
        if protocol not in one.protocols:
            known = ", ".join(f"{name}:{p}" for p in one.protocols)
            raise ValueError(
                f"benchmarks={named!r}: {one.title} has no protocol {protocol!r}; "
                f"name one of {known}"
            )
        modes = [mode for mode in cfg.modes if mode in one.modes]
        if not modes:
            raise ValueError(
                f"modes={cfg.modes}: {name} is asked in {one.modes} alone; leave it "
                "out, or add a mode"
            )
        folder = sources.folder_of(pathlib.Path(cfg.data).expanduser(), name)
        items = _items(one, folder)
        ids, rules = frozenset(item.id for item in items), one.protocols[protocol]
        items = asking.limited(items, cfg.limit)
        found += [
            Task(one, rules, protocol, mode, items, ids, folder) for mode in modes
        ]
    _check_once(found)
    return found


def _items(one: benchmark.Benchmark, folder: sources.Folder) -> list[benchmark.Item]:
    items = list(one.read(folder))
    twice = [i for i, n in collections.Counter(i.id for i in items).items() if n > 1]
    if twice:
        raise ValueError(
            f"{folder.path}: {len(twice)} ids of {one.name} occur twice, such as "
            f"{twice[0]!r}; are two versions of its files there?"
        )
    if not items:
        raise ValueError(f"{folder.path}: the files of {one.name} hold no item")
    return items


def _check_once(found: Sequence[Task]) -> None:
    places = collections.Counter(task.place for task in found)
    for (name, _), number in places.items():
        if number > 1:
            raise ValueError(
                f"benchmarks: {name} is named twice; another protocol of it needs a "
                "--workdir of its own"
            )


def questions(
    task: Task,
    cfg: config.EvaluationConfig,
    workdir: pathlib.Path,
    *,
    done: Callable[[], None],
) -> tuple[list[asking.Question], dict[str, str]]:
    """The questions of a task, their pictures below the work directory.

    Args:
      done: called after each item.

    Returns:
      Questions in order, and why other items cannot be asked, by id.
    """
    pictures = asking.Pictures(workdir, task.folder)
    part = asking.Part(
        task.benchmark.name,
        task.protocol_name,
        task.mode,
        cfg.max_tiles,
        cfg.max_new_tokens,
    )
    found, left_out = [], {}
    for item in task.items:
        done()
        try:
            found.append(asking.of_item(item, task.protocol, part, pictures))
        except ledger.BadRecord as error:
            left_out[item.id] = f"{error.reason}: {error.detail}"
    return found, left_out
