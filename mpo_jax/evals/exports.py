"""Answers as files that other harnesses score: VLMEvalKit's table, lmms-eval's samples.

Both are of one benchmark, protocol and mode. Pictures stay out; items without an answer
have no row, so that nobody takes a failure for an answer.
"""

from __future__ import annotations

import collections
import csv
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mpo_jax.evals import choices, source_tsv
from mpo_jax.evals import lines as lines_lib
from mpo_jax.evals.benchmark import Ask, Item
from mpo_jax.evals.lines import Line
from mpo_jax.utils import atomic

INDEX = source_tsv.KEY
"""Key of VLMEvalKit's tables; a field of items that are called otherwise here."""
PREDICTION = "prediction"


def vlmevalkit_table(
    path: pathlib.Path, items: Sequence[Item], lines: Sequence[Line]
) -> int:
    """Write a prediction table: the columns of the data set, and ``prediction``.

    A prediction is the whole answer, the first of several samples. Every cell is
    quoted, as VLMEvalKit does; a character that UTF-8 lacks (half a surrogate pair) is
    written as Python writes it. What reads the table with pandas should say
    ``keep_default_na=False``: it takes the answer ``None`` for none.

    Args:
      items: in the order of the rows.
      lines: of one benchmark, protocol and mode.

    Returns:
      Number of rows.

    Raises:
      ValueError: `lines` are of several, or of other items.
    """
    said = {id: of[0].answer for id, of in _by_item(items, lines).items()}
    rows = [
        {**document(item), PREDICTION: said[item.id]}
        for item in items
        if item.id in said
    ]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    columns.sort(key=lambda name: name == PREDICTION)  # last, as upstream

    def write(temporary: pathlib.Path) -> None:
        with open(
            temporary, "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            out = csv.DictWriter(
                file,
                columns or [INDEX, PREDICTION],
                restval="",
                delimiter="\t",
                lineterminator="\n",
                quoting=csv.QUOTE_ALL,
            )
            out.writeheader()
            out.writerows(rows)

    atomic.write_whole(path, write)
    return len(rows)


def lmms_eval_samples(
    path: pathlib.Path,
    items: Sequence[Item],
    lines: Sequence[Line],
    ask: Callable[[Item], Ask],
    *,
    metric: str = "points",
) -> int:
    """Write samples as lmms-eval logs them, a JSON object per item.

    ``resps`` has all samples, ``filtered_resps`` what was taken for the answer in each;
    `metric` is the mean of their points.

    Args:
      items: in the order of the lines; ``doc_id`` is the place among them.
      lines: of one benchmark, protocol and mode.
      ask: what an item was asked; its text and longest answer are ``arguments``.
      metric: name of the field with the points.

    Returns:
      Number of lines.

    Raises:
      ValueError: `lines` are of several, or of other items.
    """
    found = list(_samples(items, _by_item(items, lines), ask, metric))

    def write(temporary: pathlib.Path) -> None:
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(lines_lib.dumps(sample) + "\n" for sample in found)

    atomic.write_whole(path, write)
    return len(found)


def _samples(
    items: Sequence[Item],
    answered: Mapping[str, Sequence[Line]],
    ask: Callable[[Item], Ask],
    metric: str,
) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(items):
        of = answered.get(item.id)
        if of is None:
            continue
        asked = ask(item)
        yield {
            "doc_id": number,
            "doc": document(item),
            "target": _answer(item),
            "arguments": [[asked.text, {"max_new_tokens": asked.max_new_tokens}]],
            "resps": [[line.answer for line in of]],
            "filtered_resps": [line.grade.prediction for line in of],
            metric: sum(line.grade.points for line in of) / len(of),
        }


def document(item: Item) -> dict[str, Any]:
    """An item as a row of its data set: options by letter, pictures left out."""
    row: dict[str, Any] = {INDEX: item.fields.get(INDEX, item.id)}
    row["question"] = item.question
    row |= dict(zip(choices.LETTERS, item.options, strict=False))
    row["answer"] = _answer(item)
    row |= item.categories
    plain = {
        name: value
        for name, value in item.fields.items()
        if isinstance(value, str | int | float)
    }
    return row | {name: value for name, value in plain.items() if name not in row}


def _answer(item: Item) -> str:
    """A true answer, or several as VLMEvalKit writes them: a Python list."""
    if isinstance(item.answer, tuple):
        several = len(item.answer) > 1
        return str(list(item.answer)) if several else item.answer[0]
    return item.answer or ""


def _by_item(items: Sequence[Item], lines: Sequence[Line]) -> dict[str, list[Line]]:
    """Lines by item, by sample.

    Raises:
      ValueError: they are of several benchmarks, protocols or modes, or of other items.
    """
    places = sorted({(line.benchmark, line.protocol, line.mode) for line in lines})
    if len(places) > 1:
        raise ValueError(f"answers of {places} in one file: write a file of each")
    known = {item.id for item in items}
    found: dict[str, list[Line]] = collections.defaultdict(list)
    for line in sorted(lines, key=lambda line: line.sample):
        if line.id not in known:
            raise ValueError(f"id={line.id!r}: an answer to none of the items")
        found[line.id].append(line)
    return dict(found)
