"""Rows and micro-batches of a batch that divide over the devices of a mesh.

A recipe is written for one slice. On another one its rows follow: the number of pairs
of a batch stays as near to ``rows.pairs_per_batch`` as whole rows per device allow, and
no more rows of a device are computed at a time than micro-batches of the recipe would.
One rule for runs and for plans. A *shard* is one of the parts in which rows are split:
a device of the ``data`` and ``fsdp`` axes.
"""

from __future__ import annotations

from collections.abc import Sequence

from mpo_jax import config as config_lib


def multiple(configured: int, shards: int) -> int:
    """What a derived number of rows is a multiple of.

    Args:
      configured: ``rows.row_multiple``; holds where it divides over the shards.
    """
    return configured if configured % shards == 0 else shards


def nearest(wanted: float, of: int) -> int:
    """The positive multiple of `of` nearest to a wanted number of rows."""
    return max(1, round(wanted / of)) * of


def micro_batches(rows: int, shards: int, configured: int) -> int:
    """Parts in which a batch is taken: as configured, or the next number that divides.

    Args:
      rows: of the batch; unless the shards divide it, `configured` comes back, and the
        run says what is wrong.
      configured: ``optim.accumulation`` or ``optim.accumulation_long``.
    """
    each, rest = divmod(rows, shards)
    if rest or each % configured == 0:
        return configured
    least = min(configured, each)
    return next(n for n in range(least, each + 1) if each % n == 0)


def follow(cfg: config_lib.RunConfig, rows: Sequence[int], shards: int) -> list[str]:
    """Set the micro-batches of a config so that they divide these rows.

    Rows that are set outright (``rows.rows_per_batch``) are left to the checks of the
    run: whoever sets them sets micro-batches as well.

    Args:
      cfg: changed in place.
      rows: of a global batch, of every row shape in use, short first.

    Returns:
      What was changed, in words.
    """
    if cfg.rows.rows_per_batch:
        return []
    optim, told = cfg.optim, []
    before = {"accumulation": optim.accumulation}
    if cfg.rows.long.used:
        before["accumulation_long"] = optim.accumulation_long or optim.accumulation
    after = {
        field: micro_batches(count, shards, configured)
        for (field, configured), count in zip(before.items(), rows, strict=True)
    }
    if after == before:
        return []
    for field, value in after.items():
        setattr(optim, field, value)
        if value != before[field]:
            told.append(f"optim.{field} {before[field]} -> {value}")
    return told
