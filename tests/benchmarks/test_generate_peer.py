"""The peers of `benchmarks.generate` on a small model: same answers, counted work."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import device, generate, generate_peer
from benchmarks import generate_cases as cases

JOB = cases.Job(
    config=device.config_of("toy"),
    case=cases.Case((), n=1, slots=1),
    weights="",
    device="cpu",
    dtype="float32",
    threads=1,
    calls=1,
    temperature=0.0,
)
LONG = cases.Prompt(tokens=290, tiles=1, new_tokens=6)
OTHER = dataclasses.replace(LONG, picture=1)
SHORT = cases.Prompt(tokens=30, tiles=0, new_tokens=4, words=1)


@pytest.fixture(scope="module")
def model():
    found = generate_peer.load(JOB)
    with torch.no_grad():  # attention that tells prompts and pictures apart
        for layer in found.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(40)
            layer.self_attn.k_proj.weight.mul_(40)
    return found


def answers(model, side: str, case: cases.Case, **fields):
    job = dataclasses.replace(JOB, case=case, **fields)
    inputs = [generate_peer.inputs_of(job, prompts) for prompts in case.batches()]
    work = generate_peer.Work(model)
    torch.manual_seed(0)
    with torch.inference_mode():
        ids = generate_peer.SIDES[side](model, job, inputs)
    return {"ids": ids, "positions": work.positions, "tiles": work.tiles}


def test_greedy_tokens_are_the_same_and_the_cache_is_filled_once(model):
    for prompt in (LONG, SHORT):
        one = cases.Case((prompt,), n=2, slots=2)
        found = {side: answers(model, side, one) for side in ("generate", "cache")}
        assert generate.compare("one", found) == 2 * prompt.new_tokens
        assert found["cache"]["ids"][0] == found["cache"]["ids"][1]
        for side, entry in found.items():
            generate.check_work("one", side, one, entry)


def test_padded_batches_answer_each_prompt_as_if_alone(model):
    many = cases.Case((LONG, SHORT, OTHER), n=1, slots=2)
    found = answers(model, "padded", many)
    generate.check_work("many", "padded", many, found)
    assert found["tiles"] == 2
    assert [len(ids) for ids in found["ids"]] == [6, 4, 6]
    for prompt, ids in zip(many.prompts, found["ids"], strict=True):
        alone = answers(model, "generate", cases.Case((prompt,), n=1, slots=1))
        assert alone["ids"] == [ids]
    assert found["ids"][0] != found["ids"][2]


def test_sampling_draws_other_answers_from_all_tokens(model):
    one = cases.Case((SHORT,), n=64, slots=64)
    found = answers(model, "cache", one, temperature=1.0)["ids"]
    # 256 draws of 512 nearly even tokens: about 200 different ones.
    assert len({token for ids in found for token in ids}) > 100
