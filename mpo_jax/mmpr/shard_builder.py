"""Records of a work list as a TFDS data set, in one process or with Beam.

TFDS writes, names and describes the shards, so that ``tfds.builder_from_directory``
opens them as well; no TensorFlow is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from mpo_jax.mmpr.array_records import IMAGES, LINES
from mpo_jax.mmpr.shard_work import Work

_SPLIT = "train"


class Mmpr(tfds.core.GeneratorBasedBuilder):
    """One kind of record (``lines`` or ``images``) as a TFDS data set, in order."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=LINES, description="Lines of annotations."),
        tfds.core.BuilderConfig(name=IMAGES, description="Image files as they are."),
    ]

    def __init__(self, *, work: Work, use_beam: bool, **options: Any):
        self._work, self._use_beam = work, use_beam
        super().__init__(**options)

    def _info(self) -> tfds.core.DatasetInfo:
        kind: Any = self.builder_config
        text = tfds.features.Text()
        fields: dict[str, Any] = {"number": np.int64}
        if kind.name == LINES:
            fields |= {"text": text, "images": tfds.features.Sequence(np.int64)}
        else:
            # As bytes, not as an Image feature: it takes fewer formats than we do,
            # and pixels must come from the bytes that the index has seen.
            fields |= dict.fromkeys(("path", "data", "reason", "detail"), text)
        return tfds.core.DatasetInfo(
            builder=self,
            description="MMPR preference pairs: one record per annotation line.",
            features=tfds.features.FeaturesDict(fields),
            disable_shuffling=True,  # record n is line n
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {_SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Any:
        kind: Any = self.builder_config
        ranges = self._work.ranges(kind.name)
        make = functools.partial(self._work.examples, kind.name)
        if not self._use_beam:
            return (example for part in ranges for example in make(part))
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        # Reshuffled: without it Beam fuses the steps, and one worker does all.
        return beam.Create(ranges) | beam.Reshuffle() | beam.FlatMap(make)


def build(
    work: Work,
    kind: str,
    building: pathlib.Path,
    num_shards: int,
    beam_options: Sequence[str] | None,
) -> list[pathlib.Path]:
    """Let TFDS write one kind; returns its shards in order.

    Arguments as :func:`mpo_jax.mmpr.shard_writer.write_shards`; `building` is the
    folder that is being filled.
    """
    builder = Mmpr(
        work=work,
        use_beam=beam_options is not None,
        data_dir=str(building),
        config=kind,
        file_format="array_record",
    )
    options: dict[str, Any] = {"num_shards": num_shards or None}
    if beam_options is not None:
        from apache_beam.options import (  # pyright: ignore[reportMissingImports]
            pipeline_options,
        )

        options["beam_options"] = pipeline_options.PipelineOptions(list(beam_options))
    with contextlib.redirect_stdout(sys.stderr):  # where TFDS tells its progress
        builder.download_and_prepare(
            download_dir=work.directory,  # nothing is downloaded, but it is made
            download_config=tfds.download.DownloadConfig(**options),
        )
    paths = builder.info.splits[_SPLIT].filepaths
    return [pathlib.Path(os.fspath(path)) for path in paths]
