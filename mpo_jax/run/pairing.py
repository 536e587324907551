"""Rollouts judged and paired: streamed, in order; the output folder appears whole."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.prefs import pair_counts, pair_files, pairs, prompts, questions, rollouts
from mpo_jax.prefs.rollouts import Group
from mpo_jax.run import checking, sampling
from mpo_jax.utils import atomic, progress
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import UNDECIDED, Verdict
from mpo_jax.verify.verifier import Verifier

CHUNK = 2048
"""Rollouts that are judged together; the output does not depend on it."""

Judge = Callable[[Sequence[Group]], list[list[pairs.Judged]]]
"""Judges the rollouts of some prompts."""

Opening = Callable[[], contextlib.AbstractContextManager[tuple[Judge, Any]]]
"""Makes a judge, and says what its verdicts depend on, as JSON values; may be pickled,
so that a worker elsewhere makes its own."""

Fill = Callable[[pair_files.Writer, pair_counts.Counts, str], None]
"""Writes and counts what the inputs give; the text is what images are below."""


@dataclasses.dataclass(frozen=True)
class Job:
    """What is built.

    Attributes:
      inputs: files of rollouts; their order is that of the pairs.
      output: the folder.
      root: what image paths are below; "" is what the sampling's manifest beside the
        input says, else the input's folder.
      rules: how pairs are made.
      judged_by: what verdicts depend on, as JSON values, for the manifest.
      max_tiles: tile limit that training is told; 0 is the sampling's, where that is
        known.
    """

    inputs: Sequence[str]
    output: pathlib.Path
    root: str
    rules: pairs.Rules
    judged_by: Any
    max_tiles: int = 0

    @property
    def images(self) -> str:
        """The absolute folder that images are below.

        Raises:
          ValueError: inputs have different ones.
        """
        found = [root_of(path, self.root) for path in self.inputs]
        if len(set(found)) > 1:
            other = next(i for i, root in enumerate(found) if root != found[0])
            raise ValueError(
                f"images of {self.inputs[0]} are below {found[0]}, those of "
                f"{self.inputs[other]} below {found[other]}; name one --root that "
                "holds both, with paths relative to it"
            )
        return found[0]

    @property
    def tiles(self) -> int:
        """Tile limit of the images; 0 where nobody says.

        Raises:
          ValueError: inputs were sampled with different ones.
        """
        found = {path: _sampled_with(path) for path in self.inputs}
        known = {path: tiles for path, tiles in found.items() if tiles}
        if self.max_tiles or not known:
            return self.max_tiles
        if len(set(known.values())) > 1:
            each = ", ".join(f"{path} {tiles}" for path, tiles in known.items())
            raise ValueError(
                f"inputs were sampled with different tile limits: {each}; say with "
                "--max_tiles which one pairs are trained with"
            )
        return next(iter(known.values()))


def root_of(path: str, root: str) -> str:
    """What a file's images are below, absolute."""
    told = _told(path)
    if not root and told:
        return os.path.abspath(pathlib.Path(path).parent / told["root"])
    return questions.root_of(path, root)


def _sampled_with(path: str) -> int:
    """Tile limit that a file's answers were given with; 0 where nobody says."""
    return _told(path).get("answerer", {}).get("prompts", {}).get("max_tiles", 0)


def _told(path: str) -> dict[str, Any]:
    """The sampling's manifest beside a file of rollouts; empty where there is none."""
    manifest = pathlib.Path(path).parent / sampling.MANIFEST
    if not manifest.is_file():
        return {}
    return json.loads(manifest.read_text(encoding="utf-8"))


def build(job: Job, judge: Judge, *, chunk: int = CHUNK) -> dict[str, Any]:
    """Judge, pair and write everything in this process.

    Returns:
      The manifest.

    Raises:
      FileExistsError: the output is there, or another process is writing it.
      OSError: a file cannot be read or written.
      ValueError: the inputs cannot be used together, or rollouts of a prompt do not
        stand together.
    """

    def fill(writer: pair_files.Writer, counts: pair_counts.Counts, root: str) -> None:
        start = time.perf_counter()
        with progress.bar(extra="{task.fields[rate]}") as bar:
            task = bar.add_task("Rollouts", total=None, rate="")
            done = 0
            for path in job.inputs:
                found = rollouts.read(path, root=root)
                for number in pair_up(
                    found, judge, job.rules, writer, counts, chunk=chunk
                ):
                    done += number
                    rate = done / (time.perf_counter() - start)
                    bar.update(task, completed=done, rate=f"{rate:.0f} answers/s")

    return write(job, fill)


def write(job: Job, fill: Fill) -> dict[str, Any]:
    """Make the output folder, whole or not at all; arguments and errors as `build`.

    Returns:
      The manifest.
    """
    if not job.inputs:
        raise ValueError("input is empty; name one or more files of rollouts")
    output = pathlib.Path(os.path.abspath(job.output))
    output.parent.mkdir(parents=True, exist_ok=True)

    def refuse() -> None:
        raise FileExistsError(f"another process is writing {output}; wait for it")

    with atomic.alone(output.with_name(output.name + ".lock"), busy=refuse):
        check_free(output)
        atomic.clean(output.parent)
        with atomic.new_folder(output) as folder:
            counts = pair_counts.Counts()
            root, tiles = job.images, job.tiles
            with pair_files.Writer(folder) as writer:
                fill(writer, counts, root)
                manifest = {
                    "inputs": [os.path.basename(path) for path in job.inputs],
                    "rules": _rules(job.rules),
                    "judged_by": job.judged_by,
                    **counts.report(),
                }
                writer.finish(os.path.relpath(root, output), tiles, manifest)
            return manifest


def check_free(output: pathlib.Path) -> None:
    """Refuse a folder that is there.

    Raises:
      FileExistsError: says what to do.
    """
    if output.exists():
        raise FileExistsError(f"{output} is there; name another --output")


def pair_up(
    found: Iterable[Group | ledger.Entry],
    judge: Judge,
    rules: pairs.Rules,
    writer: pair_files.Writer,
    counts: pair_counts.Counts,
    *,
    chunk: int = CHUNK,
) -> Iterator[int]:
    """Judge, pair, count and write what was read, in its order.

    Yields:
      Numbers of rollouts that were added.
    """
    for some in _chunks(found, chunk):
        for entry in some:
            if isinstance(entry, ledger.Entry):
                counts.leave_out(entry)
                writer.leave_out(entry)
        groups = [group for group in some if isinstance(group, Group)]
        for group, judged in zip(groups, judge(groups), strict=True):
            made = pairs.make(group, judged, rules)
            counts.add(group, judged, made)
            for one in judged:
                writer.write_rollout(one)
            for pair in made.pairs:
                writer.write_pair(pair, group)
        yield sum(len(group.rollouts) for group in groups)


def _rules(rules: pairs.Rules) -> dict[str, Any]:
    found = dataclasses.asdict(rules)
    return found | {"entails": rules.entails.__name__}


def _chunks(
    found: Iterable[Group | ledger.Entry], size: int
) -> Iterator[list[Group | ledger.Entry]]:
    """Some prompts at a time, with what was left out between them."""
    chunk: list[Group | ledger.Entry] = []
    number = 0
    for one in found:
        chunk.append(one)
        number += len(one.rollouts) if isinstance(one, Group) else 1
        if number >= size:
            yield chunk
            chunk, number = [], 0
    if chunk:
        yield chunk


@contextlib.contextmanager
def open_judge(
    workers: int, *, cache: str | None = None
) -> Iterator[tuple[Judge, Any]]:
    """A judge by the project's rules, and what its verdicts depend on.

    Args:
      workers: processes for mathematics.
      cache: a file that keeps verdicts.
    """
    with Verifier(workers=workers, cache_path=cache) as verifier:
        yield judge_with(verifier), verifier.pins


def judge_with(verifier: Verifier) -> Judge:
    """Judges by the project's rules: each format's own parser, then `verifier`."""

    def judge(groups: Sequence[Group]) -> list[list[pairs.Judged]]:
        return judged(groups, verifier)

    return judge


def judged(groups: Sequence[Group], verifier: Verifier) -> list[list[pairs.Judged]]:
    """The rollouts of some prompts with their verdicts."""
    parsed = [[_parsed(one) for one in group.rollouts] for group in groups]
    said = [
        (one.prediction, group)
        for group, row in zip(groups, parsed, strict=True)
        for one in row
        if one.prediction is not None
    ]
    verdicts = iter(
        verifier.check_many(
            [(prediction, group.question.truth) for prediction, group in said],
            [group.question.text for _, group in said],
        )
    )
    return [
        [
            pairs.Judged(
                rollout,
                one,
                Verdict(UNDECIDED, one.problem)
                if one.prediction is None
                else next(verdicts),
                cut=rollout.truncated,
            )
            for rollout, one in zip(group.rollouts, row, strict=True)
        ]
        for group, row in zip(groups, parsed, strict=True)
    ]


def _parsed(rollout: rollouts.Rollout) -> formats.Parsed:
    """The final answer, by the rules of the prompt that was asked."""
    if rollout.form:
        return prompts.get_format(rollout.form).parse(rollout.response)
    prompt = rollout.prompt or rollout.question.text
    return checking.parse_any(rollout.response, prompt)
