"""Serve a model over HTTP, for clients of OpenAI's API: docs/serving.md.

Examples:

    python scripts/serve.py --model=runs/8b
    python scripts/serve.py --model=OpenGVLab/InternVL2-8B --port=8001 --max_tiles=6

Answers /v1/chat/completions, /v1/completions, /v1/models, /health and /metrics. Only
this machine can reach it unless --host says otherwise; the environment variable
MPO_API_KEY sets a key that clients must send. SIGTERM finishes what runs and ends it.
"""

from __future__ import annotations

import os
import sys

from absl import flags

from mpo_jax.utils import cli, progress, runtime

MODEL = flags.DEFINE_string(
    "model", None, "Directory, work directory or hub id.", required=True
)
NAME = flags.DEFINE_string("name", "", "What clients call it; empty is the model's.")
HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen at.")
PORT = flags.DEFINE_integer(
    "port", 8000, "0 takes any that is free.", lower_bound=0, upper_bound=65535
)
DTYPE = flags.DEFINE_enum(
    "dtype",
    "auto",
    ["auto", "bfloat16", "float32"],
    "Of weights and products; auto is float32 on a CPU, else bfloat16.",
)
MAX_TILES = flags.DEFINE_integer(
    "max_tiles", 12, "Tiles of images where a request does not say.", lower_bound=1
)
MAX_PROMPT_TOKENS = flags.DEFINE_integer(
    "max_prompt_tokens", 0, "Longest; 0 is what tiles take and 2,048 of text.", 0
)
MAX_NEW_TOKENS = flags.DEFINE_integer(
    "max_new_tokens", 4096, "Longest answer; longer ones are cut.", lower_bound=1
)
SAMPLES = flags.DEFINE_integer(
    "samples", 1, "Answers to one prompt that are drawn side by side.", lower_bound=1
)
SLOTS = flags.DEFINE_integer(
    "slots", 0, "Answers at a time; 0 is what the memory holds.", lower_bound=0
)
TENSOR = flags.DEFINE_integer(
    "tensor", 0, "Devices that share one copy; 0 is as few as it fits on.", 0
)
ADAPTERS = flags.DEFINE_enum(
    "adapters", "merged", ["merged", "beside"], "Where those of a checkpoint go."
)
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", runtime.PROGRAMS, "Where compiled programs are kept, or none."
)
MAX_REQUESTS = flags.DEFINE_integer(
    "max_requests", 256, "Waiting or answered at a time.", lower_bound=1
)
MAX_BODY_MIB = flags.DEFINE_integer(
    "max_body_mib", 32, "Largest request, MiB.", lower_bound=1
)

_KEY = "MPO_API_KEY"


def main(argv: list[str]) -> None:
    del argv
    try:
        from mpo_jax.serve import app as apps
        from mpo_jax.serve import limits, server
    except ModuleNotFoundError as error:
        raise ValueError(
            f"serving needs {error.name}: pip install -e '.[serve]'"
        ) from error
    taken = server.bind(HOST.value, PORT.value)  # before minutes of loading
    key = os.environ.get(_KEY) or None
    is_local = server.is_loopback(taken)
    if not is_local and key is None:
        print(
            f"warning: {HOST.value} can be reached from other machines, and there is "
            f"no authentication; set {_KEY}, or leave --host out",
            file=sys.stderr,
        )
    loaded = load()
    app = apps.build(
        loaded.engine,
        tokenizer=loaded.tokenizer,
        policy=loaded.policy,
        name=NAME.value or loaded.name,
        limits=limits.Limits(
            requests=MAX_REQUESTS.value, body_bytes=MAX_BODY_MIB.value * 2**20
        ),
        api_key=key,
        hosts=server.LOOPBACK if is_local else ("*",),
    )
    console = progress.stdout_console()

    def ready() -> None:
        where = server.url(taken)
        said = f"serving {app.state.service.name} at {where}"
        console.print(said, markup=False, soft_wrap=True)

    server.serve(app, taken, on_ready=ready)


def load():
    """The model of the flags, ready to answer (``run.answerer.Loaded``)."""
    from mpo_jax.run import answerer

    runtime.initialise()
    runtime.programs_cache(COMPILE_CACHE.value)
    loaded = answerer.load_engine(
        MODEL.value,
        dtype=DTYPE.value,
        max_prompt_tokens=MAX_PROMPT_TOKENS.value,
        max_new_tokens=MAX_NEW_TOKENS.value,
        samples=SAMPLES.value,
        slots=SLOTS.value,
        tensor=TENSOR.value,
        max_tiles=MAX_TILES.value,
        adapters=ADAPTERS.value,
    )
    progress.stdout_console().print(loaded.words(), markup=False, soft_wrap=True)
    return loaded


if __name__ == "__main__":
    cli.run(main)
