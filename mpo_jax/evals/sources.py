"""Files of benchmarks: JSON, JSON lines, VLMEvalKit's TSV, parquet as on the hub."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping

Image = str | bytes
"""A path below the data folder, or an encoded picture."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a benchmark's files come from.

    Attributes:
      hub: id of the data set on the hub, or an address.
      files: names that are looked for, by what they are.
      licence: of the data.
      md5: of VLMEvalKit's TSV files by name.
      notes: what else must be known.
    """

    hub: str
    files: tuple[str, ...]
    licence: str
    md5: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    notes: str = ""


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of one benchmark.

    Attributes:
      path: folder that they lie in.
    """

    path: pathlib.Path
