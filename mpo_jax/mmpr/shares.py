"""How much of each source is used, and what to do about one that gives little."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mpo_jax import ledger
from mpo_jax.mmpr.index import Index, pairs_of
from mpo_jax.types import TooLong
from mpo_jax.utils import located

NAMED = 0.05
"""A source that leaves out a larger share than this is named."""

REMEDIES = {
    "bad_json": "write one JSON object per line",
    "bad_field": "correct the fields that the ledger names",
    "line_too_long": "raise data.max_text_bytes (--max_text_bytes)",
    "image_missing": "unpack the images, or correct root in meta.json or reroot",
    "image_unreadable": "fetch the images that the ledger names anew",
    "image_too_large": "raise data.max_image_pixels (--max_image_pixels)",
    "image_count": "give one <image> in the question per image",
    "smuggled_token": "remove the special tokens that the ledger names",
    "too_long": "raise the budgets in config.rows (as far as the model takes such "
    "sequences), or lower data.max_tiles or the "
    "source's max_dynamic_patch",
}
"""What helps against a reason; for all others the ledger's details say it."""


@dataclasses.dataclass(frozen=True)
class Share:
    """What a source gives.

    Attributes:
      name, root: of the source.
      lines: its records.
      left_out: number of its records by ledger reason.
      repeat_time: as in meta.json.
      pairs: of one epoch, about, after ``repeat_time``.
    """

    name: str
    root: str
    lines: int
    left_out: Mapping[str, int]
    repeat_time: float
    pairs: int

    @property
    def lost(self) -> float:
        """Share of the records that is left out."""
        return sum(self.left_out.values()) / max(self.lines, 1)

    @property
    def empty(self) -> bool:
        """Whether an epoch has nothing of it, though it is meant to be used."""
        return not self.pairs and self.repeat_time > 0

    def __str__(self) -> str:
        count, name = sum(self.left_out.values()), f"source {self.name!r}"
        if not self.lines:
            return f"{name} has no record"
        kept = self.lines - count
        if kept and not self.pairs:
            least = math.ceil(1e4 / kept) / 1e4
            return (
                f"{name} gives no pair: repeat_time {self.repeat_time:g} of {kept} "
                f"records is none; raise repeat_time to {least:g} or more, or set it "
                "to 0"
            )
        reason, most = max(self.left_out.items(), key=lambda item: item[1])
        remedy = REMEDIES.get(reason, "see the details in the ledger")
        if reason == "image_missing" and not located.is_folder(self.root):
            remedy = f"{self.root} is no folder; correct root in meta.json or reroot"
        return (
            f"{name} leaves out {count} of {self.lines} records, {most} of them as "
            f"{reason} ({ledger.REASONS[reason]}): {remedy}"
        )


def shares(index: Index, too_long: Sequence[TooLong] = ()) -> list[Share]:
    """What every source gives, in order.

    Args:
      index: the data set.
      too_long: records that fit in no row shape, of the pack plan.
    """
    count = len(index.sources)
    ids = [item.record_id for item in too_long]
    unfit = np.bincount(index.source[ids], minlength=count)
    found = []
    for position, (source, counts) in enumerate(
        zip(index.sources, index.counts, strict=True)
    ):
        left_out = collections.Counter(counts.left_out)
        left_out["too_long"] += int(unfit[position])
        fit = counts.kept - int(unfit[position])
        found.append(
            Share(
                name=source.name,
                root=source.root,
                lines=counts.lines,
                left_out=+left_out,
                repeat_time=source.repeat_time,
                pairs=pairs_of(source.repeat_time, fit),
            )
        )
    return found


def poor(found: Sequence[Share]) -> list[Share]:
    """Those that give too little to be passed over in silence, the worst first."""
    used = [share for share in found if share.repeat_time > 0]
    named = [share for share in used if share.empty or share.lost > NAMED]
    return sorted(named, key=lambda share: (not share.empty, -share.lost))


def check(
    index: Index,
    meta: str,
    *,
    max_left_out: float,
    too_long: Sequence[TooLong] = (),
) -> None:
    """Stop where a source leaves out too many of its records.

    Args:
      index: the data set. meta: its name, for the message.
      max_left_out: largest share of a source that may be left out.
      too_long: as :func:`shares`.

    Raises:
      ValueError: naming the sources, the commonest reason and the remedy.
    """
    found = shares(index, too_long)
    beyond = [share for share in poor(found) if share.lost > max_left_out]
    if beyond:
        lines = "\n  ".join(str(share) for share in beyond)
        raise ValueError(
            f"{meta}: {len(beyond)} of {len(found)} sources leave out more than "
            f"data.max_left_out={max_left_out:g} of their records:\n  {lines}\n"
            "Mend them, take them out of meta.json, or raise data.max_left_out; single "
            f"records are in {index.ledger_path}"
        )
