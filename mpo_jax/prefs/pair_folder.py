"""Finished folders of pairs, as ``build_pairs.py`` and ``dropout_ntp.py`` write them.

``meta.json`` and annotations are those of any MMPR data; ``manifest.json`` and
``ledger.jsonl`` are read where they are there. Lines stream; what is no pair counts.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.mmpr import image_paths, meta, records
from mpo_jax.prefs import line_fields, pair_files

MAX_JSON_BYTES = 64 << 20
"""Of a manifest or report that is read whole."""
MAX_REASONS = 40
"""Reasons that are told apart; lines of further ones count as :data:`OTHER`."""
OTHER = "other"
_NUMBERS = ("rollouts", "prompts", "pairs", "filtered_by_accuracy")
_COUNTS = ("left_out", "roles", "answered", "accuracy", "skipped")
_MAX_NAME = 60
_MAX_ANSWER = 200
CHOSEN, REJECTED = SIDES = ("chosen", "rejected")


@dataclasses.dataclass(frozen=True)
class Side:
    """An answer of a pair.

    Attributes:
      text: of the answer.
      prediction: its final answer, at most 200 characters; None where it has none, or
        none is told.
      verdict: ``right``, ``wrong``, ``undecided`` or "".
      rule: what the verdict is by, or "".
      tokens: where they are told.
    """

    text: str
    prediction: str | None
    verdict: str
    rule: str
    tokens: int | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A pair where it stands.

    Attributes:
      annotation: number among the annotations of a :class:`Reader`.
      offset: of the line, in bytes.
      id: its own, or None.
      question: the prompt.
      form: the format, or "".
      source: its file's, without the reason.
      reason: why the rejected answer is rejected.
      truth: the true answer, at most 200 characters; None where none is told.
      image: as the line has it.
    """

    annotation: int
    offset: int
    id: str | int | None
    question: str
    form: str
    source: str
    reason: str
    truth: str | None
    image: Any
    chosen: Side
    rejected: Side

    @property
    def prompt(self) -> tuple[str | int | None, str]:
        """Pairs of one prompt, which stand together, have one."""
        return self.id, self.question

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.chosen, self.rejected


class Folder:
    """A finished folder.

    Attributes:
      path: absolute.
      sources: of its meta.json.
      manifest: what its maker counted; {} where there is none.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """
        Raises:
          OSError: a file cannot be read.
          ValueError: the folder holds no pairs, or a file of it is damaged.
        """
        self.path = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
        if not (self.path / pair_files.META).is_file():
            raise ValueError(
                f"{self.path} has no {pair_files.META}; name a finished --output of "
                "build_pairs.py or dropout_ntp.py"
            )
        self.manifest: dict[str, Any] = {}
        if (self.path / pair_files.MANIFEST).is_file():
            self.manifest = read_json(self.path / pair_files.MANIFEST)
            _check_counts(self.path / pair_files.MANIFEST, self.manifest)
        # A folder without a single pair has a meta.json without sources.
        empty = read_json(self.path / pair_files.META) == {}
        self.sources = [] if empty else meta.load_meta(self.path / pair_files.META)

    @property
    def ledger(self) -> pathlib.Path | None:
        """The file that names lines that were left out, where there is one."""
        path = self.path / pair_files.LEDGER
        return path if path.is_file() and path.stat().st_size else None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """An object of bounded size.

    Raises:
      ValueError: it is none; names the file.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise ValueError(
            f"{path} has {size} bytes, more than {MAX_JSON_BYTES}: it is not what the "
            "pipeline writes; name another file"
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}; make it again") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no JSON object; name a file of the pipeline")
    return found


def _check_counts(path: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Refuse a manifest whose counts are none."""
    nested = manifest.get("counts", {})
    sources = manifest.get("sources", {})
    for found in (nested, sources):
        if not isinstance(found, dict):
            raise _no_count(path, "counts or sources", found)
    for name, found in [
        *((name, manifest.get(name, 0)) for name in _NUMBERS),
        *((name, nested.get(name, 0)) for name in ("pairs",)),
    ]:
        if type(found) is not int:
            raise _no_count(path, name, found)
    for name, found in [
        *((name, manifest.get(name, {})) for name in _COUNTS),
        *((name, nested.get(name, {})) for name in ("dropped", "left_out")),
        *sources.items(),
    ]:
        numbers = found.values() if isinstance(found, dict) else [None]
        if any(type(number) is not int for number in numbers):
            raise _no_count(path, name, found)


def _no_count(path: pathlib.Path, name: str, found: Any) -> ValueError:
    return ValueError(
        f"{path}: {ledger.short(name)}={ledger.short(found)}: must be counts, as "
        "build_pairs.py and dropout_ntp.py write them; build the folder again"
    )


class Reader:
    """All pairs of some folders, as often as one likes.

    Attributes:
      annotations: sources of all folders in order.
      bad: number of lines that are no pairs, by reason, of the last pass.
      first_bad: where the first of them is, and what is wrong.
    """

    def __init__(self, folders: list[Folder]):
        self.annotations = [source for folder in folders for source in folder.sources]
        self.bad: collections.Counter[str] = collections.Counter()
        self.first_bad = ""
        self._reasons: set[str] = set()

    def lines(self) -> Iterator[Line]:
        """Every pair, in order of the annotations."""
        self.bad.clear()
        self.first_bad = ""
        for number, source in enumerate(self.annotations):
            lines = records.iter_lines(
                source.annotation, max_bytes=questions.MAX_LINE_BYTES
            )
            for offset, line_number, raw in lines:
                if not raw.strip():
                    continue
                try:
                    yield self._parse(raw, number, offset)
                except ledger.BadRecord as error:
                    self.bad[error.reason] += 1
                    where = f"{source.annotation}:{line_number}"
                    self.first_bad = self.first_bad or f"{where}: {error}"

    def read(self, annotation: int, offset: int) -> Line:
        """A pair again.

        Raises:
          BadRecord: the file was changed meanwhile.
        """
        with open(self.annotations[annotation].annotation, "rb", buffering=0) as file:
            raw = records.read_line(
                file.fileno(), offset, max_bytes=questions.MAX_LINE_BYTES
            )
        return self._parse(raw, annotation, offset)

    def images(self, line: Line) -> tuple[str, ...]:
        """Absolute paths of a pair's images.

        Raises:
          BadRecord: they are no paths below the root.
        """
        return image_paths.resolve(line.image, self.annotations[line.annotation])

    def _parse(self, raw: bytes, number: int, offset: int) -> Line:
        too_long = len(raw) > questions.MAX_LINE_BYTES
        record = line_fields.load(None if too_long else raw)
        source = self.annotations[number].name
        reason, form = record.get("reason"), record.get("prompt_version")
        name, by_name = _split(source)
        truth = record.get("answer_gt")
        id = record.get("id")
        return Line(
            annotation=number,
            offset=offset,
            id=id if isinstance(id, str | int) else None,
            question=_text(record, "question"),
            form=form[:_MAX_NAME] if isinstance(form, str) else "",
            source=name,
            reason=self._known(reason if isinstance(reason, str) else by_name),
            truth=truth[:_MAX_ANSWER] if isinstance(truth, str) else None,
            image=record.get("image"),
            chosen=_side(record, CHOSEN),
            rejected=_side(record, REJECTED),
        )

    def _known(self, reason: str) -> str:
        reason = reason[:_MAX_NAME]
        if reason not in self._reasons:
            if len(self._reasons) >= MAX_REASONS:
                return OTHER
            self._reasons.add(reason)
        return reason


@functools.lru_cache(maxsize=4096)
def _split(name: str) -> tuple[str, str]:
    """Source and reason of a file's name."""
    for reason, suffix in pair_files.SUFFIXES.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), reason
    return name, OTHER


def _text(record: Mapping[str, Any], name: str) -> str:
    found = record.get(name)
    if not isinstance(found, str):
        raise line_fields.bad(name, found, "a text")
    return found


def _side(record: Mapping[str, Any], name: str) -> Side:
    told = record.get(f"{name}_meta")
    told = told if isinstance(told, dict) else {}
    prediction, tokens = told.get("prediction"), told.get("tokens")
    return Side(
        text=_text(record, name),
        prediction=prediction[:_MAX_ANSWER] if isinstance(prediction, str) else None,
        verdict=_name(told.get("verdict")),
        rule=_name(told.get("rule")),
        tokens=tokens if type(tokens) is int and tokens >= 0 else None,
    )


def _name(value: Any) -> str:
    return value[:_MAX_NAME] if isinstance(value, str) else ""
