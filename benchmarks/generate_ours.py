"""Our side of `generate`: one prompt through the API, many through the engine.

  python -m benchmarks.generate_ours JOB RESULT

The first call compiles; `generate` starts this twice, so that the second process finds
its programs in the compilation cache.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import clock, workload
from benchmarks import generate_cases as cases
from mpo_jax import api, sharding
from mpo_jax.generate import requests
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl, network


def load(job: cases.Job) -> api.InternVL:
    """The model with the peers' weights, or with weights drawn on the device."""
    if job.weights:
        return api.InternVL.from_pretrained(
            pathlib.Path(job.weights) / "original",
            dtype=job.dtype,
            img_context_token_id=workload.IMAGE_ID,
        )
    model = internvl.InternVL(model_config.from_hf(job.config))

    @jax.jit
    def draw(key: jax.Array) -> Any:
        return jax.tree.map(lambda x: x.astype(job.dtype), model.init(key))

    return api.InternVL(
        model,
        draw(jax.random.key(0)),
        img_context_token_id=workload.IMAGE_ID,
        dtype=job.dtype,
    )


def answer_one(model: Any, job: cases.Job) -> Callable[[int], list[list[int]]]:
    """A call (its seed) that answers the only prompt `n` times."""
    (prompt,) = job.case.prompts
    ids, tiles = prompt.ids(job.vocab_size), prompt.pixels()

    def call(seed: int) -> list[list[int]]:
        found = model.generate_ids(
            ids,
            tiles if prompt.tiles else None,
            max_new_tokens=prompt.new_tokens,
            temperature=job.temperature,
            n=job.case.n,
            seed=seed,
        )
        return [list(map(int, answer)) for answer in found]

    return call


def answer_many(
    engine: requests.Engine, job: cases.Job
) -> Callable[[int], list[list[int]]]:
    """A call (its seed) that answers all prompts, as slots become free."""
    ready = [
        (prompt.ids(job.vocab_size).astype(np.int32), prompt.pixels(), prompt)
        for prompt in job.case.prompts
    ]

    def call(seed: int) -> list[list[int]]:
        for key, (ids, tiles, prompt) in enumerate(ready):
            sampling = requests.Sampling(
                n=job.case.n,
                seed=seed,
                max_new_tokens=prompt.new_tokens,
                temperature=job.temperature,
            )
            engine.add(requests.Request(key, ids, tiles, len(ids), sampling))
        answers: dict[Any, list[int]] = defaultdict(list)
        while engine.busy:
            for update in engine.step():
                answers[update.key, update.sample] += update.ids
        return [list(map(int, answers[key])) for key in sorted(answers)]

    return call


def make_engine(model: api.InternVL, job: cases.Job) -> requests.Engine:
    """An engine with the case's slots, each for the answer to one prompt."""
    from mpo_jax.generate import speaker

    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    asks = speaker.Speaker(
        model.model,
        mesh=mesh,
        compute=network.Compute(dtype=jnp.dtype(job.dtype), remat="none"),
        image_token=workload.IMAGE_ID,
    )
    placed = sharding.shardings(model.model.shapes, model.model.axes, mesh)
    weights = jax.device_put(model.params, placed)
    geometry = asks.geometry(
        weights,
        prompts=[prompt.tokens for prompt in job.case.prompts],
        answer_tokens=max(prompt.new_tokens for prompt in job.case.prompts),
        samples=job.case.n,
        slots=job.case.slots,
        group_slots=1,
    )
    return asks.engine(weights, geometry)


def run(job: cases.Job) -> dict[str, Any]:
    """Answer `job.calls` times; times of all, ids of the last."""
    device = jax.devices()[0]
    if (device.platform == "gpu") != (job.device == "gpu"):
        raise ValueError(f"device={job.device} is asked for, JAX has {device}")
    model = load(job)
    base = clock.peak_mib()
    if len(job.case.prompts) > 1:
        call = answer_many(make_engine(model, job), job)
    else:
        call = answer_one(model, job)
    watch, answers = clock.Clock(), []
    for number in range(job.calls):
        watch.start()
        answers = call(number)
        watch.stop()
    stats = device.memory_stats() or {}
    return {
        **watch.result(),
        "ids": answers,
        "peak_mib": stats.get("peak_bytes_in_use", 0) / 2**20 or clock.peak_mib(),
        "base_mib": base,
        "threads": job.threads,
        "device": device.device_kind,
        "versions": {"jax": jax.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    args = parser.parse_args()
    result = run(cases.read(args.job))
    args.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
