"""The report of ``find_overlap.py``, and which of its questions stand in pairs."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from typing import Any

from mpo_jax import ledger
from mpo_jax.prefs import overlap, pair_folder
from mpo_jax.prefs.pair_folder import Line

MAX_EXAMPLES = 2000
"""Of a report that are looked for among pairs."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A question that overlaps.

    Attributes:
      source, id, question: of the question; its beginning.
      evaluation, with_id, with_question: of what it overlaps with.
      kind: a key of ``overlap.MEANING``.
    """

    source: str
    id: str
    question: str
    evaluation: str
    with_id: str
    with_question: str
    kind: str


class Report:
    """A report, and what of it is found among pairs.

    Attributes:
      counts: ``(source, evaluation, kind, number)``.
      examples: that the report names, at most :data:`MAX_EXAMPLES`.
      lines, removed: questions that were compared, and that overlap.
      kept_in: name of the file of questions without overlap; None where none was
        written.
      standing: examples that ought to be left out and stand in a pair.
      looked: number of questions among the examples that were looked for.
    """

    def __init__(self, path: str | pathlib.Path):
        """
        Raises:
          OSError: it cannot be read.
          ValueError: it is no such report.
        """
        self.counts: list[tuple[str, str, str, int]] = []
        self.examples: list[Example] = []
        self.standing: list[Example] = []
        path = pathlib.Path(path).expanduser()
        told = pair_folder.read_json(path)
        try:
            self._read(told)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} is no report of find_overlap.py ({ledger.short(error)}); name "
                "its --output"
            ) from error
        wanted = [e for e in self.examples if e.kind != overlap.SAME_TEXT_OTHER_IMAGE]
        self.looked = len({(e.source, e.id) for e in wanted})
        self._texts = {e: overlap.normalised(e.question).plain for e in wanted}
        self._by_id = collections.defaultdict[str, list[Example]](list)
        self._by_text = collections.defaultdict[str, list[Example]](list)
        for example in wanted:
            self._by_id[example.id].append(example)
            self._by_text[self._texts[example]].append(example)

    def _read(self, told: dict[str, Any]) -> None:
        self.lines = int(told["input"]["lines"])
        self.removed = int(told["input"]["removed"])
        kept_in = told.get("kept_in")
        self.kept_in = None if kept_in is None else str(kept_in)
        for source, evaluations in told["overlap"].items():
            for evaluation, kinds in evaluations.items():
                for kind, found in kinds.items():
                    number = int(found["count"])
                    self.counts.append((source, evaluation, kind, number))
                    for one in found["examples"]:
                        if len(self.examples) < MAX_EXAMPLES:
                            self.examples.append(
                                Example(
                                    *(source, str(one["id"]), str(one["question"])),
                                    *(evaluation, str(one["with_id"])),
                                    *(str(one["with_question"]), kind),
                                )
                            )

    def look(self, line: Line) -> None:
        """Does a pair ask what ought to be left out?

        A question is known again by its id and its beginning, which a prompt holds;
        without an id, by its text.
        """
        if line.id is None:
            plain = overlap.normalised(line.question).plain
            found = self._by_text.get(plain, [])
        else:
            found = self._by_id.get(str(line.id), [])
            if found:
                plain = overlap.normalised(line.question).plain
                found = [e for e in found if self._texts[e] in plain]
        self.standing += [e for e in found if e not in self.standing]
