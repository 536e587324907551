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
from typing import IO, Any

from mpo_jax import ledger
from mpo_jax.prefs import line_fields, pairs, prompts
from mpo_jax.prefs.rollouts import MAX_SOURCES, Group
from mpo_jax.verify.verdict import WRONG

META, ANNOTATIONS, ROLLOUTS = "meta.json", "annotations", "rollouts.jsonl"
LEDGER, MANIFEST = "ledger.jsonl", "manifest.json"

DIRECT = "direct"
SUFFIXES = {
    WRONG: "_pairs_vqa_correctness_rules",
    DIRECT: "_pairs_vqa_direct_rules",
    pairs.FORMAT: "_pairs_vqa_format_rules",
    pairs.TRUNCATED: "_pairs_vqa_truncated_rules",
}
"""Ends of the files' names by reason, as MMPR has them; the last is our own."""


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
    """Writes the files into a folder; use it in ``with``."""

    def __init__(self, folder: pathlib.Path, *, root: str):
        """
        Args:
          folder: exists and is empty.
          root: of the images, as meta.json names it.
        """
        self._folder, self._root = folder, root
        (folder / ANNOTATIONS).mkdir()
        self._files: dict[str, IO[bytes]] = {}
        self._lengths: dict[str, int] = {}
        self._rollouts = open(folder / ROLLOUTS, "wb")  # noqa: SIM115
        self._left_out = 0

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
        reason = pair.reason
        if reason == WRONG and pair.chosen.rollout.form == prompts.DIRECT:
            reason = DIRECT
        name = group.question.source + SUFFIXES[reason]
        if name not in self._files:
            if len(self._files) >= MAX_SOURCES:
                raise ValueError(
                    f"source={group.question.source!r} is one of more than "
                    f"{MAX_SOURCES}, each of which has a file of its own; name fewer"
                )
            place = self._folder / ANNOTATIONS / f"{name}.jsonl"
            self._files[name] = open(place, "wb")  # noqa: SIM115
            self._lengths[name] = 0
        self._files[name].write(line_fields.dumps(line_of(pair, group)))
        self._lengths[name] += 1

    def leave_out(self, entry: ledger.Entry) -> None:
        with open(self._folder / LEDGER, "ab") as file:
            file.write(line_fields.dumps(dataclasses.asdict(entry)))

    def finish(self, manifest: dict[str, Any]) -> None:
        """Write meta.json and manifest.json, and all to the disk."""
        meta = {
            name: {
                "root": self._root,
                "annotation": f"{ANNOTATIONS}/{name}.jsonl",
                "data_augment": False,
                "repeat_time": 1,
                "length": length,
            }
            for name, length in sorted(self._lengths.items())
        }
        for name, value in ((META, meta), (MANIFEST, manifest)):
            text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
            with open(self._folder / name, "wb") as file:
                file.write(text.encode())
                _sync(file)
        for file in (*self._files.values(), self._rollouts):
            _sync(file)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
