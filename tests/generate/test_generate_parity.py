"""Greedy answers against transformers' ``generate``, token by token, in float32.

All requests of a model stand side by side in one engine: mixed lengths, no image and
several, a prefix, stop tokens, a shortest answer, a penalty.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import asked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_models

from mpo_jax import api, types
from mpo_jax.convert import verify
from mpo_jax.models import network
from mpo_jax.packing import assembly
from mpo_jax.train import step

NEW = 22
GOLDENS = ("internlm2", "qwen2", "llama", "phi3")


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """Torch's threads wait for each other longer than such small products take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(ours: api.InternVL, tiles: int, head: int, tail: int, seed: int):
    """Random text around the image tokens of some normalised tiles."""
    rng = np.random.default_rng(seed)
    token, side = ours.img_context_token_id, ours.cfg.image_size
    text = rng.integers(3, min(ours.cfg.language.vocab_size, 2000), head + tail)
    text[text == token] = 3
    image = np.full(tiles * ours.cfg.tokens_per_tile, token)
    ids = np.concatenate([text[:head], image, text[head:]])
    return ids, rng.standard_normal((tiles, side, side, 3)).astype(np.float32)


def theirs(reference, ids, tiles, new: int = NEW, **options: Any) -> list[int]:
    """Tokens that transformers appends; it is asked one prompt at a time."""
    pixels = {}
    if len(tiles):
        pixels["pixel_values"] = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy())
    options = {"eos_token_id": None, "pad_token_id": 0, **options}
    with torch.no_grad():
        out = reference.generate(
            input_ids=torch.from_numpy(np.asarray(ids, np.int64))[None],
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=new,
            **pixels,
            **options,
        )
    return out[0, len(ids) :].tolist()


def check_side_by_side(reference, ours: api.InternVL, **options: Any) -> None:
    """Ask everything in one engine, and transformers one by one.

    Args:
      options: of transformers' ``generate``.
    """
    expect = functools.partial(theirs, reference, **options)
    per_tile = ours.cfg.tokens_per_tile
    prompts = {
        "text": prompt(ours, 0, 3, 4, 0),
        "one token": prompt(ours, 0, 1, 0, 1),
        "longer text": prompt(ours, 0, 20, 13, 2),
        "image": prompt(ours, 1, 4, 6, 3),
        "images": prompt(ours, 2, 5, 9, 4),
        "image first": prompt(ours, 1, 0, 2, 5),
    }
    longest = max(len(ids) for ids, _ in prompts.values()) + 3
    size = -(-longest // 16) * 16
    asker = asked.engine_of(
        ours,
        asked.geometry(
            groups=3,
            prompt_tokens=size,
            answer_tokens=24,
            buckets=(16, *range(32, size, 16), size)[-3:],
            prefill_tokens=2 * size,
        ),
    )
    given, expected = [], {}
    for name, (ids, tiles) in prompts.items():
        given.append(asked.request(name, ids, tiles, max_new_tokens=NEW))
        expected[name] = expect(ids, tiles)
    # A prefix is a prompt that ends within the answer.
    ids, tiles = prompts["image"]
    begun = [*ids, *expected["image"][:3]]
    start = len(ids)
    given.append(
        asked.request(
            "prefix", begun, tiles, answer_start=start, max_new_tokens=NEW - 3
        )
    )
    expected["prefix"] = expected["image"][3:]
    # What came in the midst of an answer ends it, but not too early.
    ids, tiles = prompts["images"]
    said = expected["images"]
    stops = (said[9], said[12])
    given.append(asked.request("stop", ids, tiles, stop_ids=stops, max_new_tokens=NEW))
    expected["stop"] = expect(ids, tiles, eos_token_id=list(stops))
    given.append(
        asked.request(
            "late stop",
            *(ids, tiles),
            stop_ids=stops,
            min_new_tokens=16,
            max_new_tokens=NEW,
        )
    )
    expected["late stop"] = expect(
        ids, tiles, eos_token_id=list(stops), min_new_tokens=16
    )
    for name in ("longer text", "images"):
        ids, tiles = prompts[name]
        given.append(
            asked.request(
                ("penalty", name),
                ids,
                tiles,
                repetition_penalty=1.4,
                max_new_tokens=NEW,
            )
        )
        expected["penalty", name] = expect(ids, tiles, repetition_penalty=1.4)
    found = asked.ask(asker, *given)
    for request in given:
        assert found[request.key, 0].ids == expected[request.key], request.key
    assert found["stop", 0].reason == "stop" and found["text", 0].reason == "length"
    assert len(expected["stop"]) <= 10 and len(expected["late stop"]) >= 16
    assert expected["late stop"] != expected["images"]
    assert len({tuple(tokens) for tokens in expected.values()}) >= len(expected) - 1
    assert max(len(set(tokens)) for tokens in expected.values()) > 5
    assert per_tile and asker.stats["compilations"] == 0
    asker.close()
    check_logps(ours, [given[0], given[2], given[4]], found)


def check_logps(ours: api.InternVL, given, found: asked.Everything) -> None:
    """Each token's log-prob is that of the forward pass over the whole sequence."""
    rope = ours.cfg.language.rope
    short = rope.original_length if rope.long_frequencies else 0
    compute = network.Compute(dtype=jnp.float32, remat="none")
    side = ours.cfg.image_size

    @jax.jit
    def forward(weights, *inputs):
        return ours.model.bind(weights).logits(*inputs, compute=compute)[0]

    for request in given:
        said = found[request.key, 0]
        whole = np.concatenate([request.ids, said.ids])
        wide = np.zeros((1, 128), np.int32)  # one program for all
        wide[0, : len(whole)] = whole
        mask = (np.arange(wide.shape[1]) < len(whole)).astype(np.int32)[None]
        # What the model itself has said is text, whatever token it took.
        is_image = wide == ours.img_context_token_id
        is_image[:, len(request.ids) :] = False
        slot = np.where(is_image, np.cumsum(is_image, 1) - 1, -1).astype(np.int32)
        tiles = np.zeros((2, side, side, 3), np.float32)
        tiles[: len(request.tiles)] = request.tiles
        logits = forward(ours.params, wide, mask, slot, tiles)
        places = np.arange(len(request.ids) - 1, len(whole) - 1)
        logps = np.asarray(jax.nn.log_softmax(logits))[places, said.ids]
        # A sequence that grows beyond the original length is read with other
        # frequencies from there on, before it with those of its length then.
        settled = (len(whole) <= short) | (places + 1 > short)
        assert settled.any()
        np.testing.assert_allclose(
            np.asarray(said.logps)[settled], logps[settled], rtol=1e-5, atol=1e-5
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"internvl2-{name}" for name in GOLDENS] + ["internvl1_5-style"]
)
def test_goldens(shared, name):
    directory = shared / "goldens" / name
    token = int(np.load(directory / "golden.npz")["img_context_token_id"])
    ours = api.InternVL.from_pretrained(directory, img_context_token_id=token)
    check_side_by_side(verify.torch_model(directory, token), ours)


@pytest.mark.slow
@pytest.mark.parametrize("case", torch_models.CASES)
def test_transformers_own_models(tmp_path, case):
    """Longrope's answers outgrow its original length of 16 tokens in their midst.

    Transformers' InternVL with its cache goes on there with keys of the short
    frequencies; without a cache it computes what the model was made for, and so do we.
    """
    reference = torch_models.build(case)
    options = {}
    if case == "phi3":
        options["use_cache"] = False
        with torch.no_grad():  # it would take an image token of its own for a tile
            reference.lm_head.weight[torch_models.IMAGE_TOKEN] = 0
    ours = torch_models.convert(reference, tmp_path)
    check_side_by_side(reference, ours, **options)


@pytest.mark.slow
def test_longrope_is_read_anew_where_it_outgrows_its_length(tmp_path):
    """At every distance, several samples at a time, and with stops around the place."""
    reference = torch_models.build("phi3")
    ours = torch_models.convert(reference, tmp_path)
    asker = asked.engine_of(ours, asked.geometry(groups=2))
    given, expected = [], {}
    for length in (1, 8, 14, 15, 16, 17, 20):
        ids, tiles = prompt(ours, 0, length, 0, length)
        given.append(asked.request(length, ids, tiles, max_new_tokens=NEW, n=3))
        expected[length] = theirs(reference, ids, tiles, use_cache=False)
    found = asked.ask(asker, *given)
    for request in given:
        for sample in range(3):
            assert found[request.key, sample].ids == expected[request.key], request.key
    # Those of 1 to 16 tokens outgrow it, three answers each.
    assert asker.stats["read_anew"] == 5 * 3
    assert asker.stats["answers"] == 7 * 3 and asker.stats["compilations"] == 0
    # The last token before the place, and the first after it, end an answer for good.
    ids, tiles = prompt(ours, 0, 8, 0, 8)
    for new in (8, 9, 10):
        limited = asked.request("limit", ids, tiles, max_new_tokens=new)
        said = asked.ask(asker, limited)["limit", 0]
        assert said.ids == expected[8][:new] and said.reason == "length"
    for place in (7, 8, 9):
        stop = expected[8][place]
        if stop in expected[8][:place]:
            continue
        stopped = asked.request(
            "stop", ids, tiles, stop_ids=(stop,), max_new_tokens=NEW
        )
        said = asked.ask(asker, stopped)["stop", 0]
        assert said.ids == expected[8][: place + 1] and said.reason == "stop"
    # Cancelled before, while it waits to be read anew, and after.
    beside = given[2]
    for steps in range(1, 4):
        gone = asked.request("gone", ids, tiles, max_new_tokens=NEW, n=4)
        asker.add(gone)
        asker.add(beside)
        for _ in range(steps):
            asker.step()
        asker.cancel("gone")
        said: asked.Everything = {}
        while asker.busy:
            asked.take(said, asker.step())
        assert {key for key, _ in said} <= {beside.key}
        again = asked.ask(asker, gone)
        assert again["gone", 3].ids == expected[8]
    asker.close()
    # The first token after a prompt around that length, to the bits that tell.
    for length in (15, 16, 17):
        ids, _ = prompt(ours, 0, length, 0, length)
        logps = jax.nn.log_softmax(ours.logits(ids[None])[0, -1])
        said = found[length, 0]
        assert said.logps[0] == pytest.approx(float(logps[said.ids[0]]), abs=1e-5)


def test_log_probs_are_those_of_a_training_step(tmp_path):
    """The sum that the losses would see of the same answer, images included."""
    ours = torch_models.convert(torch_models.build("qwen3"), tmp_path)
    ids, tiles = prompt(ours, 2, 4, 5, 9)
    how = {"n": 2, "temperature": 1.0, "seed": 3, "max_new_tokens": 9}
    asker = asked.engine_of(ours, asked.geometry())
    found = asked.ask(asker, asked.request(0, ids, tiles, **how))
    asker.close()
    answers = [np.asarray(found[0, k].ids, np.int32) for k in range(2)]
    assert answers[0].tolist() != answers[1].tolist()

    def side(labels: np.ndarray) -> list[np.ndarray]:
        tokens = np.concatenate([ids[-1:], labels[:-1]]).astype(np.int32)
        return [tokens, labels, np.ones(len(labels), bool)]

    example = types.Example(
        ids[:-1].astype(np.int32),
        *side(answers[0]),
        *side(answers[1]),
        tiles=np.zeros(tiles.shape, np.uint8),
        num_tiles=len(tiles),
    )
    shape = types.RowShape(32, 16, 16, 2, 1)
    batch = assembly.assemble_batch(
        [[example]],
        shape,
        img_context_id=torch_models.IMAGE_TOKEN,
        tokens_per_tile=4,
        image_size=56,
        record_ids=[np.arange(1)],
    )
    batch = jax.tree.map(jnp.asarray, batch)
    # Normalised tiles, as the engine had them.
    batch = dataclasses.replace(batch, tiles=jnp.asarray(tiles)[None])
    logps = step.model_logps(
        ours.model,
        ours.params,
        batch,
        shape=shape,
        compute=network.Compute(dtype=jnp.float32, remat="none"),
    )
    for k, sum_ in enumerate((logps.chosen, logps.rejected)):
        assert float(sum_[0, 0]) == pytest.approx(sum(found[0, k].logps), rel=1e-5)
