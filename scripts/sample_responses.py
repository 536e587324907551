r"""Sample a model's answers to questions with known truths, for scripts/build_pairs.py.

  python scripts/sample_responses.py --model=OpenGVLab/InternVL2-8B \
      --input=questions.jsonl --output=runs/rollouts
  python scripts/sample_responses.py --model=runs/8b --input=questions.jsonl \
      --output=runs/rollouts --format=en,direct --n=16 --dry_run
  python scripts/sample_responses.py --endpoint=http://localhost:8000 \
      --model=runs/8b/hf --input=questions.jsonl --output=runs/rollouts

A line of `--input` is

  {"id": 7, "question": "How many?", "image": "a.png", "answer": "3"}

with "image" a path below --root (default: the input's folder), a list of paths or
absent, and, where there are any, "options" (a list, or {"A": "red", …}), "kind" (what
the true answer is, see docs/checking.md) and "source" (a name; default: the file's).
Without "id" the number of the line is it.

Every question is asked in every `--format`: en, zh, en_v2, zh_v2, en_r1, zh_r1 (chains
of thought), background, visual, grounded (the paper's variants of en) or direct.
OUTPUT/rollouts.jsonl has a line for each of `--n` answers:

  {"id": 7, "sample": 0, "format": "en", "question": "How many?", "image": "a.png",
   "answer_gt": "3", "source": "questions", "response": "… Final answer: 3",
   "finish_reason": "stop", "tokens": 212, "logprob": -58.1}

What it may cost is printed first; `--dry_run` ends there. Killed at any moment, the
same command goes on where it stopped, on any number of processes (started as
scripts/train.py). Lines that cannot be asked are named in OUTPUT/ledger.jsonl.
docs/pairs.md has the rest.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from mpo_jax.generate import endpoint, requests, speaker
from mpo_jax.run import answerer, answering, sampling
from mpo_jax.utils import cli, progress, runtime

_MODEL = flags.DEFINE_string(
    "model", None, "Model directory, workdir or hub id", required=True
)
_INPUT = flags.DEFINE_string("input", None, "Questions, JSON lines", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the rollouts", required=True)
_ROOT = flags.DEFINE_string("root", "", "Folder of the images; '' is the input's")
_FORMAT = flags.DEFINE_list("format", ["en"], "Prompts, see above")
_N = flags.DEFINE_integer("n", 32, "Answers to every question in every format")
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "0 is greedy")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Likeliest tokens with this share; 1 is all")
_TOP_K = flags.DEFINE_integer("top_k", 0, "So many likeliest tokens; 0 is all")
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 2048, "Longest answer")
_SEED = flags.DEFINE_integer("seed", 0, "A question's draws depend on it and on its id")
_MAX_TILES = flags.DEFINE_integer(
    "max_tiles", 6, "Tiles of a question's images, thumbnails not counted", 1
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what it may cost, and end")
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
    "tensor",
    0,
    "Devices that share one copy of the model; 0 is as few as it fits on",
    0,
)
_COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", runtime.PROGRAMS, "Where compiled programs are kept, or none"
)
_ENDPOINT = flags.DEFINE_string(
    "endpoint", "", "URL of an OpenAI-compatible server that answers instead"
)
_ENDPOINT_MODEL = flags.DEFINE_string(
    "endpoint_model", "", "Its name for the model, where it has several"
)
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 16, "Requests to the endpoint at a time", 1
)
_PARITY = flags.DEFINE_bool(
    "check_parity", True, "Refuse an endpoint that reads other prompt tokens than ours"
)


def ask_endpoint() -> requests.Answerer:
    """The server, with the prompts of the model that it is said to serve."""
    found, tokenizer = answerer.locate(_MODEL.value)
    return endpoint.Endpoint(
        _ENDPOINT.value,
        tokenizer=tokenizer,
        policy=speaker.prompt_policy(found.config(), max_tiles=_MAX_TILES.value),
        model=_ENDPOINT_MODEL.value or None,
        concurrency=_CONCURRENCY.value,
        check_parity=_PARITY.value,
    )


def ask_model(lines: answering.Lines, how: requests.Sampling) -> requests.Answerer:
    """The model on this process's devices."""
    runtime.programs_cache(_COMPILE_CACHE.value)
    model = answerer.load(
        _MODEL.value,
        dtype=_DTYPE.value,
        tensor=_TENSOR.value,
        max_tiles=_MAX_TILES.value,
    )
    return answering.local_answerer(
        model, lines, how, slots=_SLOTS.value, max_prompt_tokens=0
    )


def main(argv: list[str]) -> None:
    del argv
    how = requests.Sampling(
        n=_N.value,
        seed=_SEED.value,
        max_new_tokens=_MAX_NEW.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        top_k=_TOP_K.value,
    )
    given, root = str(cli.path(_INPUT.value, "input")), os.path.expanduser(_ROOT.value)
    job = sampling.Job(given, root, tuple(_FORMAT.value), how)
    runtime.initialise()
    progress.console().print(sampling.cost(job).words())
    if _DRY_RUN.value:
        return

    def asker(lines: answering.Lines) -> requests.Answerer:
        return ask_endpoint() if _ENDPOINT.value else ask_model(lines, how)

    output = cli.path(_OUTPUT.value, "output")
    if not sampling.sample(job, output, asker):
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
