"""The files that pairs become: MMPR annotations with their meta.json.

::

    OUTPUT/
      meta.json              what training reads
      annotations/*.jsonl    pairs, a file for each source and reason
      rollouts.jsonl         all rollouts with verdicts
      ledger.jsonl           lines that were left out; absent where there are none
      manifest.json          rules and counts
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import IO, Any

from mpo_jax import ledger
from mpo_jax.prefs import line_fields, pairs, prompts
from mpo_jax.prefs.rollouts import MAX_SOURCES, Group
from mpo_jax.verify.verdict import WRONG

META, ANNOTATIONS, ROLLOUTS = "meta.json", "annotations", "rollouts.jsonl"
LEDGER, MANIFEST = "ledger.jsonl", "manifest.json"

DIRECT = "direct"
_MIDDLE = "_pairs_vqa_"
SUFFIXES = {
    WRONG: f"{_MIDDLE}correctness_rules",
    DIRECT: f"{_MIDDLE}direct_rules",
    pairs.FORMAT: f"{_MIDDLE}format_rules",
    pairs.TRUNCATED: f"{_MIDDLE}truncated_rules",
}
"""Ends of the files' names by reason, as MMPR has them; the last is our own."""

_BLOCK = 1 << 20


def line_of(pair: pairs.Pair, group: Group) -> dict[str, Any]:
    """A pair as MMPR has it; ``*_meta`` say what the responses were judged by."""
    found = group.question.fields()
    found["question"] = group.prompt
    found |= {
        "chosen": pair.chosen.rollout.response,
        "rejected": pair.rejected.rollout.response,
        "chosen_meta": _meta(pair.chosen),
        "rejected_meta": _meta(pair.rejected),
    }
    if pair.chosen.rollout.form:
        found["prompt_version"] = pair.chosen.rollout.form
    found.pop("kind", None)
    found.pop("options", None)  # the prompt lists them
    return found


def _meta(judged: pairs.Judged) -> dict[str, Any]:
    return {
        "sample": judged.rollout.sample,
        "prediction": judged.parsed.prediction,
        "role": judged.role,
        "verdict": judged.verdict.outcome,
        "rule": judged.verdict.rule,
        "tokens": judged.rollout.tokens,
    }


def judged_line(judged: pairs.Judged) -> dict[str, Any]:
    """A rollout with its verdict, as ``rollouts.jsonl`` has it."""
    return judged.rollout.line() | {
        "prediction": judged.parsed.prediction,
        "verdict": judged.verdict.outcome,
        "rule": judged.verdict.rule,
        "role": judged.role,
    }


class Writer:
    """Writes the files into a folder; use it in ``with``.

    Attributes:
      folder: of the files.
      lengths: pairs by the names of their files, in the order of the files' beginning.
    """

    def __init__(self, folder: pathlib.Path):
        """
        Args:
          folder: exists, and has no file of these.
        """
        self.folder = folder
        self.lengths: dict[str, int] = {}
        (folder / ANNOTATIONS).mkdir()
        self._files: dict[str, IO[bytes]] = {}
        self._rollouts = open(folder / ROLLOUTS, "wb")  # noqa: SIM115

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        for file in (*self._files.values(), self._rollouts):
            file.close()

    def write_rollout(self, judged: pairs.Judged) -> None:
        self._rollouts.write(line_fields.dumps(judged_line(judged)))

    def write_pair(self, pair: pairs.Pair, group: Group) -> None:
        """
        Raises:
          ValueError: there are too many sources.
        """
        name = _name(pair, group)
        self._file(name).write(line_fields.dumps(line_of(pair, group)))
        self.lengths[name] += 1

    def leave_out(self, entry: ledger.Entry) -> None:
        with open(self.folder / LEDGER, "ab") as file:
            file.write(line_fields.dumps(dataclasses.asdict(entry)))

    def append(self, folder: pathlib.Path, lengths: Mapping[str, int]) -> None:
        """Add what another writer has written.

        Args:
          folder: that it has written into.
          lengths: that it tells.

        Raises:
          ValueError: there are too many sources.
        """
        for name, length in lengths.items():
            _copy(_annotation(folder, name), self._file(name))
            self.lengths[name] += length
        _copy(folder / ROLLOUTS, self._rollouts)
        if (folder / LEDGER).exists():
            with open(self.folder / LEDGER, "ab") as file:
                _copy(folder / LEDGER, file)

    def _file(self, name: str) -> IO[bytes]:
        """An open file of pairs."""
        if name not in self._files:
            if len(self._files) >= MAX_SOURCES:
                source, _, _ = name.rpartition(_MIDDLE)
                raise ValueError(
                    f"source={source!r} is one of more than "
                    f"{MAX_SOURCES}, each of which has a file of its own; name fewer"
                )
            place = _annotation(self.folder, name)
            self._files[name] = open(place, "wb")  # noqa: SIM115
            self.lengths[name] = 0
        return self._files[name]

    def finish(self, root: str, max_tiles: int, manifest: dict[str, Any]) -> None:
        """Write meta.json and manifest.json, and all to the disk.

        Args:
          root: of the images, as meta.json names it.
          max_tiles: of an image; with 0, the training's own limit holds.
        """
        limit = {"max_dynamic_patch": max_tiles} if max_tiles else {}
        meta = {
            name: {
                "root": root,
                "annotation": f"{ANNOTATIONS}/{name}.jsonl",
                "data_augment": False,
                "repeat_time": 1,
                "length": length,
                **limit,
            }
            for name, length in sorted(self.lengths.items())
        }
        for name, value in ((META, meta), (MANIFEST, manifest)):
            text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
            with open(self.folder / name, "wb") as file:
                file.write(text.encode())
                _sync(file)
        for file in (*self._files.values(), self._rollouts):
            _sync(file)


def _name(pair: pairs.Pair, group: Group) -> str:
    """Of the file that a pair belongs into, without its end."""
    reason = pair.reason
    if reason == WRONG and pair.chosen.rollout.form == prompts.DIRECT:
        reason = DIRECT
    return group.question.source + SUFFIXES[reason]


def _annotation(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / ANNOTATIONS / f"{name}.jsonl"


def _copy(path: pathlib.Path, target: IO[bytes]) -> None:
    with open(path, "rb") as file:
        shutil.copyfileobj(file, target, _BLOCK)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
