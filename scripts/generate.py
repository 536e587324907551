"""Answer a file of questions with a model: sharded, resumable, in order.

  python scripts/generate.py --model=OpenGVLab/InternVL2-8B --input=questions.jsonl \
      --output=answers.jsonl
  python scripts/generate.py --model=runs/8b --input=questions.jsonl \
      --output=rollouts.jsonl --n=32 --temperature=1 --max_new_tokens=2048 --save_tokens
  python scripts/generate.py --endpoint=http://localhost:8000 --model=runs/8b/hf \
      --input=questions.jsonl --output=answers.jsonl

`--model` is a model directory in either layout, a converted checkpoint, the workdir of
a training run (its newest checkpoint counts) or a hub id. A line of `--input` is

  {"id": 7, "question": "How many?", "image": "a.png"}

with "image" a path below --root (default: the input's folder), a list of paths or
absent, and, where wanted, "prefix" (beginning of the answer, text or token ids),
"system", "history" ([[question, answer], …]) and "seed". A line of `--output`, one per
sample, in the order of the questions:

  {"id": 7, "sample": 0, "text": "…", "finish_reason": "stop", "prompt_tokens": 1841,
   "tokens": 212, "logprob": -58.1}

A prompt and its images are encoded once for all its answers. Killed at any moment, the
same command goes on where it stopped; what was said is kept in OUTPUT.parts until all
is there. Started on several processes (as scripts/train.py), each answers its share.
Lines, texts and images that cannot be used are named in OUTPUT.ledger.jsonl;
OUTPUT.run.json says what the answers depend on. docs/generation.md has the rest.

With `--endpoint` an OpenAI-compatible server answers instead (docs/endpoint.md);
`--model` then names the directory whose tokenizer and template it serves.
"""

from __future__ import annotations

import sys

from absl import flags

from mpo_jax.generate import endpoint, requests, speaker
from mpo_jax.run import answerer, answering
from mpo_jax.utils import cli, runtime

_MODEL = flags.DEFINE_string(
    "model", None, "Model directory, workdir or hub id", required=True
)
_INPUT = flags.DEFINE_string("input", None, "Questions, JSON lines", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Answers, JSON lines", required=True)
_ROOT = flags.DEFINE_string("root", "", "Folder of the images; '' is the input's")
_N = flags.DEFINE_integer("n", 1, "Answers to every question")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Likeliest tokens with this share; 1 is all")
_TOP_K = flags.DEFINE_integer("top_k", 0, "So many likeliest tokens; 0 is all")
_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Of tokens that prompt or answer hold; 1 is none"
)
_MAX_NEW = flags.DEFINE_integer("max_new_tokens", 1024, "Longest answer")
_MIN_NEW = flags.DEFINE_integer("min_new_tokens", 0, "Shortest answer")
_STOP = flags.DEFINE_multi_string(
    "stop", [], "Text that ends an answer; may be repeated"
)
_SEED = flags.DEFINE_integer("seed", 0, "A question's draws depend on it and on its id")
_MAX_TILES = flags.DEFINE_integer(
    "max_tiles", 12, "Tiles of a question's images, thumbnails not counted", 1
)
_SAVE_TOKENS = flags.DEFINE_bool(
    "save_tokens", False, "Write token_ids and token_logprobs, too"
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
_MAX_PROMPT = flags.DEFINE_integer(
    "max_prompt_tokens", 0, "Longer prompts are left out; 0 is the model's limit", 0
)
_TENSOR = flags.DEFINE_integer(
    "tensor",
    0,
    "Devices that share one copy of the model; 0 is as few as it fits on",
    0,
)
_ADAPTERS = flags.DEFINE_enum(
    "adapters", "merged", answerer.ADAPTERS, "Of a LoRA run: in the weights or beside"
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


def ask_endpoint() -> endpoint.Endpoint:
    """The server, with the prompts of the model that it is said to serve."""
    found, tokenizer = answerer.locate(_MODEL.value)
    policy = speaker.prompt_policy(found.config(), max_tiles=_MAX_TILES.value)
    return endpoint.Endpoint(
        _ENDPOINT.value,
        tokenizer=tokenizer,
        policy=policy,
        model=_ENDPOINT_MODEL.value or None,
        concurrency=_CONCURRENCY.value,
        check_parity=_PARITY.value,
    )


def ask_model(lines: answering.Lines, sampling: requests.Sampling) -> requests.Answerer:
    """The model on this process's devices."""
    runtime.programs_cache(_COMPILE_CACHE.value)
    model = answerer.load(
        _MODEL.value,
        dtype=_DTYPE.value,
        tensor=_TENSOR.value,
        max_tiles=_MAX_TILES.value,
        adapters=_ADAPTERS.value,
    )
    return answering.local_answerer(
        model,
        lines,
        sampling,
        slots=_SLOTS.value,
        max_prompt_tokens=_MAX_PROMPT.value,
    )


def main(argv: list[str]) -> None:
    del argv
    sampling = requests.Sampling(
        n=_N.value,
        seed=_SEED.value,
        max_new_tokens=_MAX_NEW.value,
        min_new_tokens=_MIN_NEW.value,
        temperature=_TEMPERATURE.value,
        top_p=_TOP_P.value,
        top_k=_TOP_K.value,
        repetition_penalty=_PENALTY.value,
        stop=tuple(_STOP.value),
    )
    output = str(cli.path(_OUTPUT.value, "output"))
    runtime.initialise()
    lines = answering.Lines(str(cli.path(_INPUT.value, "input")), _ROOT.value)
    found = ask_endpoint() if _ENDPOINT.value else ask_model(lines, sampling)
    complete = answering.answer_file(
        found, lines, output, sampling, save_tokens=_SAVE_TOKENS.value
    )
    if not complete:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(main)
