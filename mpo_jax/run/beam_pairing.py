"""Ranges of rollouts judged and paired by workers of Apache Beam.

On any runner whose workers see the same paths. Extra: ``beam``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam  # pyright: ignore[reportMissingImports]
from apache_beam.options import (  # pyright: ignore[reportMissingImports]
    pipeline_options,
)

from mpo_jax.run import pair_ranges, pairing


def spread(
    options: Sequence[str], opening: pairing.Opening, pins: Any
) -> pair_ranges.Spread:
    """Has Beam do the work.

    Args:
      options: arguments of the pipeline, such as ``["--runner=DirectRunner"]``.
      opening: makes every worker's judge.
      pins: what verdicts depend on here; a worker with other ones is refused.
    """

    def run(work: pair_ranges.Work, ranges: Sequence[pair_ranges.Numbered]) -> None:
        made = pipeline_options.PipelineOptions(list(options))
        with beam.Pipeline(options=made) as pipeline:
            # Reshuffled: without it Beam fuses the steps, and one worker does all.
            _ = (
                pipeline
                | beam.Create(ranges)
                | beam.Reshuffle()
                | beam.ParDo(_Worker(work, opening, pins))
            )

    return run


class _Worker(beam.DoFn):
    """Has a judge for as long as it lives, and makes the parts of ranges."""

    def __init__(self, work: pair_ranges.Work, opening: pairing.Opening, pins: Any):
        self._work, self._opening, self._pins = work, opening, pins
        self._open = contextlib.ExitStack()  # nothing yet

    def setup(self) -> None:
        with contextlib.ExitStack() as stack:
            self._judge, pins = stack.enter_context(self._opening())
            if pins != self._pins:
                raise ValueError(
                    f"a worker judges by {pins}, the driver by {self._pins}; install "
                    "the same versions everywhere"
                )
            self._open = stack.pop_all()

    def process(self, numbered: pair_ranges.Numbered) -> Iterator[None]:
        self._work.do(*numbered, self._judge)
        return iter(())

    def teardown(self) -> None:
        self._open.close()
