"""A run of many steps in one work directory: each is made once, and says of what.

A step has a folder, and in it a marker, ``step.json``: its settings, what it builds on,
and whether it is done. The marker is written before anything is made and again, last,
when all is. Started again, a run skips what is done, goes on with what was begun (every
step resumes by itself) and refuses what was made with other settings, by the name of
the field. What a step returns is kept in the marker and counts for those that build on
it: made anew with another result, they are stale.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpo_jax.generate import results
from mpo_jax.utils import atomic, progress, runtime

MARKER = "step.json"
ABSENT, BEGUN, DONE = STATES = ("absent", "begun", "done")


@dataclasses.dataclass(frozen=True)
class Step:
    """Something to be made.

    Attributes:
      name: unique in its run; in messages.
      folder: where it lies, its own alone.
      settings: JSON values, by name: all that the result depends on, other steps
        aside. What only changes how fast it is made has no place here.
      make: makes it, or goes on where it was broken off; called on every process. What
        the first process gets from it, JSON values by name or None, is kept.
      after: names of the steps that it builds on.
    """

    name: str
    folder: pathlib.Path
    settings: Mapping[str, Any]
    make: Callable[[], Mapping[str, Any] | None]
    after: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a marker says, or is to say; JSON values.

    Attributes:
      settings: of the step.
      after: fingerprints of the steps that it builds on, by name.
      done: whether all is made.
      made: what making returned.
    """

    step: str
    settings: Mapping[str, Any]
    after: Mapping[str, str]
    done: bool = False
    made: Mapping[str, Any] | None = None

    @property
    def fingerprint(self) -> str:
        """Of the step and all below it."""
        told = [self.step, self.settings, self.after, self.made]
        text = json.dumps(told, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def run_steps(steps: Sequence[Step], lock: pathlib.Path) -> dict[str, Mark]:
    """Make what is not made yet, in order; on every process.

    Args:
      lock: a file in the work directory, held meanwhile, so that no second run works
        there.

    Returns:
      What every marker says at the end, by the step's name.

    Raises:
      ValueError: as :func:`check`; another run holds the lock.
    """
    console = progress.console()
    with _alone(lock):
        runtime.barrier("steps are alone")
        check(steps)
        runtime.barrier("steps are checked")
        marks: dict[str, Mark] = {}
        for number, step in enumerate(steps, 1):
            console.rule(f"{number} of {len(steps)}: {step.name}", align="left")
            marks[step.name] = _run(step, steps, marks)
    return marks


def check(steps: Sequence[Step]) -> None:
    """Compare steps with the markers that are there; nothing is changed.

    Raises:
      ValueError: a name or a folder occurs twice, a step builds on one that does not
        come before it, or what lies in a folder was made with other settings; names
        the field and what to do.
    """
    _check_order(steps)
    marks: dict[str, Mark] = {}
    for step in steps:
        found = read(step)
        if found is None:
            continue
        known = {name: marks[name].fingerprint for name in step.after if name in marks}
        # Those whose marker is gone are made first, and this one is looked at then.
        _compare(step, found, dataclasses.replace(_wanted(step), after=known), steps)
        if found.done:
            marks[step.name] = found


def state_of(step: Step) -> str:
    """One of ``STATES``, by the marker alone."""
    found = read(step)
    return ABSENT if found is None else DONE if found.done else BEGUN


def read(step: Step) -> Mark | None:
    """The marker of a step, or None.

    Raises:
      ValueError: it is damaged, is another step's, or files lie there without one.
    """
    path = step.folder / MARKER
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        _check_empty(step)
        return None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); {_remove(step)}") from error
    if not _is_mark(raw):
        raise ValueError(f"{path}: is no marker of a step; {_remove(step)}")
    if raw["step"] != step.name:
        raise ValueError(
            f"{path}: is of the step {raw['step']!r}, not of {step.name!r}; "
            f"{_remove(step)}"
        )
    return Mark(**raw)


def _is_mark(raw: Any) -> bool:
    return (
        isinstance(raw, dict)
        and set(raw) == {field.name for field in dataclasses.fields(Mark)}
        and isinstance(raw["settings"], dict)
        and isinstance(raw["after"], dict)
        and isinstance(raw["done"], bool)
    )


def _run(step: Step, steps: Sequence[Step], marks: Mapping[str, Mark]) -> Mark:
    """Make one step unless it is done."""
    after = {name: marks[name].fingerprint for name in step.after}
    wanted = dataclasses.replace(_wanted(step), after=after)
    found = read(step)
    if found is not None:
        _compare(step, found, wanted, steps)
    # What one process sees of a shared folder may be older than what another does.
    done = bool(runtime.agreed(np.array(found is not None and found.done))[()])
    if done:
        progress.console().print(f"Done already: {step.folder}")
    else:
        if runtime.is_main():
            _write(step, wanted)
        runtime.barrier(f"{step.name} begins")
        start = time.perf_counter()
        made = step.make()
        spent = time.perf_counter() - start
        progress.console().print(f"{step.name}: {spent:.1f} s")
        if runtime.is_main():
            _write(step, dataclasses.replace(wanted, done=True, made=_json(made)))
    runtime.barrier(f"{step.name} ends")
    mark = read(step)
    if mark is None or not mark.done:
        raise ValueError(f"{step.folder / MARKER}: vanished while {step.name} was made")
    return mark


def _wanted(step: Step) -> Mark:
    """The marker that a step would get, without what it builds on."""
    return Mark(step.name, _json(step.settings), {})


def _json(value: Any) -> Any:
    """The value as it would be read back."""
    return json.loads(json.dumps(value, allow_nan=False))


def _write(step: Step, mark: Mark) -> None:
    step.folder.mkdir(parents=True, exist_ok=True)
    results.write_json(step.folder / MARKER, dataclasses.asdict(mark))


def _compare(step: Step, found: Mark, wanted: Mark, steps: Sequence[Step]) -> None:
    """Refuse what was made otherwise.

    Args:
      wanted: what it builds on need not be whole; what is absent is not compared.

    Raises:
      ValueError: naming every field that differs.
    """
    differing = results.differences(found.settings, wanted.settings)
    if not differing and found.settings != wanted.settings:
        differing = ["an empty field came or went"]
    differing += [
        f"it was built on another {name}"
        for name, fingerprint in wanted.after.items()
        if found.after.get(name) != fingerprint
    ]
    if differing:
        folders = ", ".join(str(one.folder) for one in _above(step, steps))
        raise ValueError(
            f"{step.folder}: {step.name} was made with other settings: "
            f"{'; '.join(differing)}. Name another workdir, or remove what was made "
            f"so: {folders}"
        )


def _above(step: Step, steps: Sequence[Step]) -> list[Step]:
    """A step and all that build on it and are there."""
    names, found = {step.name}, [step]
    for one in steps:
        if names & set(one.after):
            names.add(one.name)
            if (one.folder / MARKER).exists():
                found.append(one)
    return found


def _check_order(steps: Sequence[Step]) -> None:
    seen: dict[str, pathlib.Path] = {}
    for step in steps:
        if step.name in seen or step.folder in seen.values():
            raise ValueError(
                f"step {step.name!r} in {step.folder}: name or folder is another "
                "step's, too; give it its own"
            )
        late = [name for name in step.after if name not in seen]
        if late:
            raise ValueError(
                f"step {step.name!r} builds on {', '.join(late)}, which does not come "
                "before it; put it first"
            )
        seen[step.name] = step.folder


def _check_empty(step: Step) -> None:
    """A marker is written first: what lies there without one is not ours."""
    if step.folder.is_dir():
        left = next(
            (path for path in step.folder.iterdir() if path.suffix != ".tmp"), None
        )
        if left is not None:
            raise ValueError(
                f"{left}: no {MARKER} beside it says what it is of; move it away, or "
                "name another workdir"
            )


def _remove(step: Step) -> str:
    return f"remove {step.folder}, and it is made anew"


@contextlib.contextmanager
def _alone(lock: pathlib.Path) -> Iterator[None]:
    """Hold the lock of a work directory; the first process does it for all."""

    def refuse() -> None:
        raise ValueError(
            f"{lock.parent}: another run is at work here; wait for its end, or name "
            "another workdir"
        )

    if not runtime.is_main():
        yield
        return
    lock.parent.mkdir(parents=True, exist_ok=True)
    with atomic.alone(lock, busy=refuse):
        yield
