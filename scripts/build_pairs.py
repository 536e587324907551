r"""Make preference pairs of a model's answers: right against wrong, ready for training.

  python scripts/build_pairs.py --input=runs/rollouts/rollouts.jsonl \
      --output=runs/pairs
  python scripts/train.py --config=configs/internvl2_8b_mpo.py \
      --config.data.meta=runs/pairs/meta.json …

`--input` is what scripts/sample_responses.py writes, or several files with commas
between them; lines with "prompt_version" (InternVL's pipeline) or with all "responses"
to a question are read, too. The rollouts of a question must stand together.

Every answer is judged (docs/checking.md): right, wrong or undecided. Right ones are
paired with wrong ones, at most `--max_pairs` a prompt, all answers as evenly used as
can be; undecided ones stand on neither side. Answers without a final answer and answers
that were cut off are rejected in pairs of their own (`apart`), together with the wrong
ones (`mixed`) or not at all (`none`). A wrong answer that holds the right one makes no
pair with it.

OUTPUT/meta.json is what scripts/train.py and scripts/prepare_data.py take;
annotations/ has a file for each source and reason, rollouts.jsonl all answers with
their verdicts, manifest.json counts of every stage, ledger.jsonl lines that could not
be used. The folder appears when all is done; with `--cache=FILE` a broken-off run is
judged from FILE. What comes out depends neither on `--workers` nor on the order of
questions. `--legacy` judges and pairs by the rules of the released pipeline, errors
included. `--beam=--runner=DirectRunner,…` has Beam's workers judge and pair; the same
files come out. `--html` writes OUTPUT/report.html, too; scripts/inspect_pairs.py makes
it of finished folders. docs/pairs.md has the rest.
"""

from __future__ import annotations

import functools
import os
import types
from typing import Any

import jax
import rich.table
from absl import flags

from mpo_jax.prefs import pairs, quality_page
from mpo_jax.run import legacy_judging, pair_ranges, pairing
from mpo_jax.utils import cli, progress
from mpo_jax.verify import maths

_INPUT = flags.DEFINE_list("input", None, "Rollouts, JSON lines", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the pairs", required=True)
_ROOT = flags.DEFINE_string(
    "root", "", "Folder of the images; '' is that of the sampling, or the input's"
)
_MAX_PAIRS = flags.DEFINE_integer("max_pairs", 15, "Of a prompt and a reason")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draw of pairs")
_MIN_ACCURACY = flags.DEFINE_float(
    "min_accuracy", 0.0, "Prompts with a smaller share of right answers make no pairs"
)
_MAX_ACCURACY = flags.DEFINE_float(
    "max_accuracy", 1.0, "Prompts with a larger share make none"
)
_FORMAT_NEGATIVES = flags.DEFINE_enum(
    "format_negatives", pairs.APART, pairs.NEGATIVES, "Answers without a final answer"
)
_TRUNCATED_NEGATIVES = flags.DEFINE_enum(
    "truncated_negatives", pairs.APART, pairs.NEGATIVES, "Answers that were cut off"
)
_MAX_LENGTH_RATIO = flags.DEFINE_float(
    "max_length_ratio", 0.0, "Longer response over the shorter one; 0 takes all"
)
_MAX_TILES = flags.DEFINE_integer(
    "max_tiles", 0, "Tile limit that training is told; 0 is the sampling's", 0
)
_CACHE = flags.DEFINE_string("cache", "", "File that keeps verdicts (SQLite), or none")
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Processes for mathematics; 0 is one per core, with --beam one per Beam worker",
    lower_bound=0,
    upper_bound=maths.MAX_WORKERS,
)
_BEAM = flags.DEFINE_list(
    "beam",
    None,
    "Judge and pair with Beam, by these pipeline options, such as "
    "--runner=DirectRunner",
)
_LEGACY = flags.DEFINE_bool(
    "legacy",
    False,
    "Judge and pair by the released rules, errors included, for comparison; counts the "
    "rollouts of each source first, and at most 3 pairs are made of a prompt of one "
    "with more than 500,000",
)
_ANSWER_FIX = flags.DEFINE_bool(
    "answer_fix",
    False,
    "With --legacy: rewrite answers that hold the right one, wrong ones too",
)
_HTML = flags.DEFINE_bool("html", False, "Write OUTPUT/report.html, for a person")
_OVERLAP = flags.DEFINE_string(
    "overlap", "", "With --html: report of find_overlap.py on the questions"
)


def rules() -> pairs.Rules:
    """How pairs are made."""
    return pairs.Rules(
        entails=pairs.entailed_anyhow if _LEGACY.value else pairs.entailed,
        none_is_text=_LEGACY.value,
        max_pairs=_MAX_PAIRS.value,
        seed=_SEED.value,
        min_accuracy=_MIN_ACCURACY.value,
        max_accuracy=_MAX_ACCURACY.value,
        format_negatives=_FORMAT_NEGATIVES.value,
        truncated_negatives=_TRUNCATED_NEGATIVES.value,
        max_length_ratio=_MAX_LENGTH_RATIO.value,
    )


def job(judged_by: Any) -> pairing.Job:
    """What is built."""
    return pairing.Job(
        [str(cli.path(place, "input")) for place in _INPUT.value],
        cli.path(_OUTPUT.value, "output"),
        os.path.expanduser(_ROOT.value),
        rules(),
        judged_by,
        _MAX_TILES.value,
    )


def show(manifest: dict[str, Any]) -> None:
    """The most important counts, and where the rest is."""
    table = rich.table.Table("what", "number", box=None)
    for name in ("rollouts", "roles", "prompts", "answered", "pairs_by_reason"):
        value = manifest[name]
        for what, count in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{name}: {what}" if what else name
            table.add_row(label.replace("_", " "), f"{count:,}")
    console = progress.stdout_console()
    console.print(table)
    left_out = ", ".join(f"{n} {why}" for why, n in manifest["left_out"].items())
    if left_out:
        console.print(f"Left out: {left_out}; see ledger.jsonl", markup=False)
    console.print(f"Pairs: {_OUTPUT.value}", markup=False)


def workers() -> int:
    """Processes for mathematics."""
    if _BEAM.value is not None:
        return _WORKERS.value or 1
    return _WORKERS.value or min(os.cpu_count() or 1, maths.MAX_WORKERS)


def opening() -> pairing.Opening:
    """Makes a judge by the project's rules, or by the released ones.

    Raises:
      ValueError: an option has no meaning there.
    """
    if _BEAM.value is not None and _CACHE.present:
        raise ValueError(
            f"--cache={_CACHE.value}: with --beam the workers may be other machines, "
            "which cannot write one SQLite file together; leave it out"
        )
    if not _LEGACY.value:
        cache = os.path.expanduser(_CACHE.value) or None
        return functools.partial(pairing.open_judge, workers(), cache=cache)
    for flag in (_CACHE, _TRUNCATED_NEGATIVES):
        if flag.present:
            raise ValueError(
                f"--{flag.name}={flag.value}: --legacy keeps no verdicts and does not "
                "ask what was cut off; leave it out"
            )
    return functools.partial(
        legacy_judging.open_judge, workers(), fix=_ANSWER_FIX.value
    )


def build() -> dict[str, Any]:
    """Pairs, made here or by Beam; the manifest."""
    opened = opening()
    with opened() as (judge, pins):  # processes start with the first question
        wanted = job(pins)
        if _LEGACY.value:
            pairing.check_free(wanted.output)  # before all is counted
            wanted = legacy_judging.limited(wanted)
        if _BEAM.value is None:
            return pairing.build(wanted, judge)
        spread = beam_pairing().spread(_BEAM.value, opened, pins)
        return pair_ranges.build(wanted, spread)


def beam_pairing() -> types.ModuleType:
    """The module that knows Beam.

    Raises:
      ValueError: Beam is not installed.
    """
    try:
        from mpo_jax.run import beam_pairing
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--beam needs {error.name}: pip install -e '.[beam]' in a virtual "
            "environment of its own, or leave --beam out"
        ) from error
    return beam_pairing


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")  # messages open no device
    if _ANSWER_FIX.value and not _LEGACY.value:
        raise ValueError("--answer_fix rewrites answers; it belongs to --legacy")
    quality_page.check(html=_HTML.value, overlap=_OVERLAP.value)
    show(build())
    if _HTML.value:
        quality_page.write_beside(_OUTPUT.value, overlap=_OVERLAP.value)


if __name__ == "__main__":
    cli.run(main)
