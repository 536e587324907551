"""Find training questions that stand in an evaluation, too, before sampling from them.

  python scripts/find_overlap.py --input=questions.jsonl --root=images \
      --against=evals/8b/items.jsonl,chartqa.jsonl --output=overlap.json
  python scripts/find_overlap.py … --kept=questions_kept.jsonl

A line of either side is {"id", "question", "image"}; the items.jsonl of evaluate.py
serves as it is. Images of --input lie below --root, those of --against beside their
file. The report has counts and examples of equal and near questions and of images that
look the same, by source of the question ("source" of a line, or the file) and
evaluation; --kept writes the lines that have no overlap, as they are, to a file whose
images still lie below the same --root. docs/dropout_ntp.md says what counts.
"""

from __future__ import annotations

import os
from typing import Any

import rich.table
from absl import flags

from mpo_jax.run import overlapping
from mpo_jax.utils import cli, progress

_INPUT = flags.DEFINE_string("input", None, "Questions, JSON lines", required=True)
_AGAINST = flags.DEFINE_list("against", None, "Evaluations' items", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Report, JSON", required=True)
_ROOT = flags.DEFINE_string("root", "", "Folder of the images; '' is the input's")
_KEPT = flags.DEFINE_string("kept", "", "Write the lines without overlap to this file")


def main(argv: list[str]) -> None:
    del argv
    files = [cli.path(name, "against").absolute() for name in _AGAINST.value if name]
    if not files:
        raise ValueError("--against is empty; name at least one file of items")
    kept = cli.path(_KEPT.value, "kept").absolute() if _KEPT.value else None
    given = cli.path(_INPUT.value, "input").absolute()
    if kept in (given, *files):
        raise ValueError(f"--kept={kept} would replace what is read; name another file")
    found = overlapping.find(
        given,
        os.path.expanduser(_ROOT.value),
        files,
        cli.path(_OUTPUT.value, "output").absolute(),
        kept=kept,
    )
    show(found)


def show(found: dict[str, Any]) -> None:
    """Counts, and where the rest is."""
    table = rich.table.Table("Questions of", "Evaluation", "Overlap", "Questions")
    for source, evaluations in found["overlap"].items():
        for evaluation, kinds in evaluations.items():
            for kind, told in kinds.items():
                table.add_row(source, evaluation, kind, f"{told['count']:,}")
    console, counts = progress.stdout_console(), found["input"]
    if table.row_count:
        console.print(table)
    console.print(
        f"{counts['removed']:,} of {counts['lines']:,} questions overlap, "
        f"{counts['kept']:,} do not; left out {counts['left_out'] or 'none'}, "
        f"unreadable images {counts['unreadable_images'] or 'none'}: {_OUTPUT.value}"
    )


if __name__ == "__main__":
    cli.run(main)
