"""Preference pairs without truths: an answer cut, and continued without its image.

  python scripts/dropout_ntp.py --model=runs/8b --input=questions.jsonl \
      --root=images --output=pairs/ntp
  python scripts/train.py --config=configs/internvl2_8b_mpo.py \
      --config.data.meta=pairs/ntp/meta.json …

A line of `--input` is

  {"id": 7, "question": "<image>\nHow many?", "image": "a.png", "chosen": "There …"}

with "image" a path below --root (default: the input's folder) or a list of paths; "id",
"chosen" and "seed" may be absent. Without "chosen" the model's own answer, given with
the image, is the chosen one. It is cut at --ratio, in token ids or by words as in the
released pipeline; the model goes on from there without the image (or with it,
--keep_image), and that is the rejected answer.

Killed at any moment, the same command goes on where it stopped. Started on several
processes (as scripts/train.py), each answers its share. OUTPUT/manifest.json counts
what became of every line, OUTPUT/ledger.jsonl names those that cannot be used, and
`--html` writes OUTPUT/report.html, a page to look at them (scripts/inspect_pairs.py).
docs/dropout_ntp.md has the rest.
"""

from __future__ import annotations

import functools
import os

from absl import flags

from mpo_jax.generate import requests
from mpo_jax.prefs import dropout_ntp, quality_page, seam
from mpo_jax.run import answerer, answering, dropping
from mpo_jax.utils import cli, progress, runtime

_MODEL = flags.DEFINE_string(
    "model", None, "Model directory, workdir or hub id", required=True
)
_INPUT = flags.DEFINE_string("input", None, "Questions, JSON lines", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the pairs", required=True)
_ROOT = flags.DEFINE_string("root", "", "Folder of the images; '' is the input's")
_NAME = flags.DEFINE_string("name", "", "Of the source in meta.json; '' is the input's")
_RATIO = flags.DEFINE_float("ratio", 0.5, "Share of an answer that is kept; 0 is none")
_BY = flags.DEFINE_enum("by", dropout_ntp.TOKENS, dropout_ntp.UNITS, "What is counted")
_KEEP = flags.DEFINE_bool("keep_image", False, "The continuation sees the image, too")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Likeliest tokens with this share; 1 is all")
_TOP_K = flags.DEFINE_integer("top_k", 0, "So many likeliest tokens; 0 is all")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 2048, "Longest answer", 1)
_SEED = flags.DEFINE_integer(
    "seed", 0, "A question's draws depend on it and on the question's content"
)
_MAX_TILES = flags.DEFINE_integer(
    "max_tiles", 6, "Tiles of a question's images, thumbnails not counted", 1
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    answerer.DTYPES,
    "Of parameters and computation; auto is float32 on a CPU, else bfloat16",
)
_SLOTS = flags.DEFINE_integer(
    "slots", 0, "Answers at a time; 0 is as many as suit and fit", 0
)
_TENSOR = flags.DEFINE_integer(
    "tensor", 0, "Devices that share one copy of the model; 0 is as few as it fits", 0
)
_HTML = flags.DEFINE_bool("html", False, "Write OUTPUT/report.html, for a person")
_OVERLAP = flags.DEFINE_string(
    "overlap", "", "With --html: report of find_overlap.py on the questions"
)
_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", runtime.PROGRAMS, "Where compiled programs are kept, or none"
)


def task() -> dropping.Task:
    """What the flags ask for."""
    given = cli.path(_INPUT.value, "input").absolute()
    return dropping.Task(
        input=given,
        output=cli.path(_OUTPUT.value, "output").absolute(),
        root=os.path.expanduser(_ROOT.value),
        name=_NAME.value or given.stem,
        variant=dropout_ntp.Variant(_RATIO.value, _BY.value, _KEEP.value),
        sampling=requests.Sampling(
            seed=_SEED.value,
            max_new_tokens=_MAX_NEW.value,
            temperature=_TEMPERATURE.value,
            top_p=_TOP_P.value,
            top_k=_TOP_K.value,
        ),
        max_tiles=_MAX_TILES.value,
    )


def ask(
    model: answerer.Model, lines: answering.Lines, sampling: requests.Sampling
) -> requests.Answerer:
    """The model, ready for a file of questions."""
    return answering.local_answerer(
        model, lines, sampling, slots=_SLOTS.value, max_prompt_tokens=0
    )


def main(argv: list[str]) -> None:
    del argv
    quality_page.check(html=_HTML.value, overlap=_OVERLAP.value)
    wanted = task()
    runtime.initialise()
    runtime.programs_cache(_COMPILE_CACHE.value)
    model = answerer.load(
        _MODEL.value,
        dtype=_DTYPE.value,
        tensor=_TENSOR.value,
        max_tiles=_MAX_TILES.value,
    )
    manifest = dropping.make(wanted, model.tokenizer, functools.partial(ask, model))
    if manifest is not None:
        show(manifest, wanted)
        if _HTML.value:
            quality_page.write_beside(wanted.output, overlap=_OVERLAP.value)


def show(manifest: dict, wanted: dropping.Task) -> None:
    """What there is, what was dropped, and whether the seam shows."""
    console, counts = progress.stdout_console(), manifest["counts"]
    console.print(
        f"{counts['pairs']} pairs of {counts['lines']} lines: {wanted.output}"
    )
    for kind in ("dropped", "left_out"):
        told = ", ".join(f"{number} {why}" for why, number in counts[kind].items())
        if told:
            console.print(f"{kind.replace('_', ' ').capitalize()}: {told}")
    console.print(seam.words(manifest["seam"]))


if __name__ == "__main__":
    cli.run(main)
