"""Pairs made range by range, by any workers that see the same paths.

The inputs are cut between prompts. Each range becomes a part: a folder with what the
plain build would have written of it, with counts and digests. The parts, joined in
order, are what the plain build writes, whoever made them and in whatever order.
"""

from __future__ import annotations

import array
import collections
import dataclasses
import json
import pathlib
import shutil
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mpo_jax.prefs import pair_counts, pair_files, pairs, rollout_ranges, rollouts
from mpo_jax.prefs.rollouts import Range
from mpo_jax.run import pairing
from mpo_jax.utils import atomic, progress

SIZE = 16 << 20
"""Bytes of a range; the output does not depend on it."""

_PARTS, _PART, _DIGESTS = "parts", "part.json", "digests"
_DIGEST = np.dtype("<u8")


@dataclasses.dataclass(frozen=True)
class Work:
    """What is done with every range.

    Attributes:
      folder: of the parts, absolute.
      root: what image paths are below, absolute.
      rules: how pairs are made.
    """

    folder: str
    root: str
    rules: pairs.Rules

    def part(self, number: int) -> pathlib.Path:
        """The folder of a range's part."""
        return pathlib.Path(self.folder) / f"{number:08}"

    def do(self, number: int, lines: Range, judge: pairing.Judge) -> None:
        """Make the part of a range; nothing is done where it is there.

        The part appears whole: a worker may be killed, and another may make the same.
        What cannot be used is told in it, so that the driver can say so.
        """
        part = self.part(number)
        if part.exists():
            return
        with atomic.new_folder(part) as folder:
            try:
                told = self._made(folder, lines, judge)
            except ValueError as error:
                told = {"refused": str(error), "trace": traceback.format_exc()}
            (folder / _PART).write_text(json.dumps(told), encoding="utf-8")

    def _made(
        self, folder: pathlib.Path, lines: Range, judge: pairing.Judge
    ) -> dict[str, Any]:
        counts = pair_counts.Counts()
        digests = array.array("Q")
        with pair_files.Writer(folder) as writer:
            found = rollouts.read_range(lines, digests, root=self.root)
            done = pairing.pair_up(found, judge, self.rules, writer, counts)
            collections.deque(done, maxlen=0)
        np.frombuffer(digests, np.uint64).astype(_DIGEST).tofile(folder / _DIGESTS)
        return {"counts": counts.state(), "lengths": writer.lengths}


Numbered = tuple[int, Range]

Spread = Callable[[Work, Sequence[Numbered]], None]
"""Does the work with all ranges, in any order and anywhere."""


def build(job: pairing.Job, spread: Spread, *, size: int = SIZE) -> dict[str, Any]:
    """As ``pairing.build``, with the work spread.

    Args:
      spread: returns when all is done.
      size: bytes of a range.
    """

    def fill(writer: pair_files.Writer, counts: pair_counts.Counts, root: str) -> None:
        ranges = [
            lines
            for path in job.inputs
            for lines in rollout_ranges.cut(path, root=root, size=size)
        ]
        folder = writer.folder / _PARTS
        folder.mkdir()
        work = Work(str(folder), root, job.rules)
        progress.console().print(f"{len(ranges)} ranges of rollouts")
        spread(work, list(enumerate(ranges)))
        _join(work, ranges, writer, counts)
        shutil.rmtree(folder)

    return pairing.write(job, fill)


def _join(
    work: Work,
    ranges: Sequence[Range],
    writer: pair_files.Writer,
    counts: pair_counts.Counts,
) -> None:
    """Add the parts in order; each is removed, so that little lies there twice.

    Raises:
      ValueError: a part says that its range cannot be used, or rollouts of a prompt do
        not stand together.
    """
    digests: list[tuple[str, list[np.ndarray]]] = []
    with progress.bar() as bar:
        for number in bar.track(range(len(ranges)), description="Joining"):
            part = work.part(number)
            told = json.loads((part / _PART).read_text(encoding="utf-8"))
            if "refused" in told:
                error = ValueError(told["refused"])
                error.add_note(told["trace"])
                raise error
            counts.merge(pair_counts.Counts.of(told["counts"]))
            writer.append(part, told["lengths"])
            own = np.fromfile(part / _DIGESTS, _DIGEST).astype(np.uint64)
            if not ranges[number].start:  # another file, maybe the same again
                digests.append((ranges[number].path, []))
            digests[-1][1].append(own)
            shutil.rmtree(part)
    for path, found in digests:
        rollouts.check_together(path, np.concatenate(found))
