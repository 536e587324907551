"""Parity with transformers' own InternVL (torch, CPU, float32), a second reference.

A tiny random model of every decoder and either vision tower is built there, its state
dict and config are written as they are, and read back here: logits and all gradients
must agree. Errors are relative to the largest value.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_models import CASES, IMAGE_TOKEN, VOCAB, build, convert

from mpo_jax import types
from mpo_jax.convert import hf, table
from mpo_jax.models import network
from mpo_jax.packing import assembly
from mpo_jax.train import step

# Reached on XLA CPU: 1.1e-6 and 3.4e-6; the bounds leave room for other CPUs.
LOGITS = 5e-6
GRADIENT = 1e-5
# Compiling is nearly all the time of these tests; run time does not matter.
QUICK = {"xla_backend_optimization_level": 0}


def batch(*, per_tile: int, tiles: tuple[int, int], size: int):
    """Two sequences with several tiles each, padded left and right."""
    rng = np.random.default_rng(2)
    rows = []
    for count, tail in zip(tiles, (9, 4), strict=True):
        text = [rng.integers(1, IMAGE_TOKEN, n) for n in (3, tail)]
        image = np.full(count * per_tile, IMAGE_TOKEN)
        rows.append(np.concatenate([text[0], image, text[1]]))
    length = max(len(row) for row in rows) + 2
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    left, right = rows
    ids[0, -len(left) :], mask[0, -len(left) :] = left, 1
    ids[1, : len(right)], mask[1, : len(right)] = right, 1
    pixels = rng.standard_normal((sum(tiles), size, size, 3)).astype(np.float32)
    return ids, mask, pixels


def torch_logits(model, ids, mask, pixels):
    # Positions follow the mask, so that left padding is position-correct.
    positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
    return model(
        input_ids=torch.from_numpy(ids),
        attention_mask=torch.from_numpy(mask),
        position_ids=torch.from_numpy(positions),
        pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
    ).logits


def row_by_row(model, ids, mask, pixels, tiles):
    """The same, one sequence at a time: longrope looks at the longest of a batch."""
    rows, start = [], 0
    for row, count in enumerate(tiles):
        part = slice(row, row + 1)
        some = pixels[start : start + count]
        rows.append(torch_logits(model, ids[part], mask[part], some))
        start += count
    return torch.cat(rows)


def error(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(tmp_path, case):
    reference = build(case)
    ours = convert(reference, tmp_path)
    tiles = (2, 1)
    ids, mask, pixels = batch(per_tile=4, tiles=tiles, size=56)
    lengths = mask.sum(1)
    assert lengths[0] > 16 >= lengths[1]  # around longrope's original length
    rng = np.random.default_rng(3)
    weights = rng.standard_normal((*ids.shape, VOCAB)).astype(np.float32)
    weights *= mask[:, :, None]

    expected_logits = row_by_row(reference, ids, mask, pixels, tiles)
    (expected_logits * torch.from_numpy(weights)).sum().backward()
    expected = {n: p.grad.numpy() for n, p in reference.named_parameters()}

    is_image = ids == IMAGE_TOKEN
    slot = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1)
    compute = network.Compute(dtype=jnp.float32, remat="none")

    def loss(params):
        logits = ours.model.bind(params).logits(
            jnp.asarray(ids, jnp.int32),
            jnp.asarray(mask),
            jnp.asarray(slot),
            jnp.asarray(pixels),
            compute=compute,
        )
        return jnp.sum(logits * weights), logits

    step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
    (_, logits), gradient = step(ours.params)
    real = mask.astype(bool)
    expected_real = expected_logits.detach().numpy()[real]
    assert np.abs(expected_real).max() > 1
    assert error(logits[real], expected_real) < LOGITS
    got = dict(hf.to_hf(gradient, ours.model, layout=table.NATIVE_NEW))
    assert got.keys() == expected.keys()
    for name, tensor in got.items():
        if name.startswith("model.vision_tower") and name.endswith("k_proj.bias"):
            # The same for every key, which softmax does not see: zero but for rounding.
            scale = np.abs(expected[name.replace("k_proj", "v_proj")]).max()
            assert np.abs(tensor).max() < GRADIENT * scale, name
            continue
        # Of a key's bias only what rotation leaves of that: terms cancel there too.
        bound = 5 * GRADIENT if name.endswith("k_proj.bias") else GRADIENT
        assert error(tensor, expected[name]) < bound, name


@pytest.mark.slow
def test_longrope_switches_at_the_same_length_in_packed_rows(tmp_path):
    """Pairs around the original length of 16 tokens, a label at the end included."""
    reference = build("phi3")
    ours = convert(reference, tmp_path)
    rng = np.random.default_rng(4)
    prompt, totals = 9, (15, 16, 17, 18)
    lines = rng.integers(1, IMAGE_TOKEN, (len(totals), 2, max(totals)))
    lines[:, 1, :prompt] = lines[:, 0, :prompt]

    def example(total: int, sides: np.ndarray) -> types.Example:
        arrays = {}
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            arrays[f"{name}_tokens"] = side[prompt - 1 : total - 1].astype(np.int32)
            arrays[f"{name}_labels"] = side[prompt:total].astype(np.int32)
            arrays[f"{name}_mask"] = np.ones(total - prompt, bool)
        text = sides[0, : prompt - 1].astype(np.int32)
        return types.Example(
            text, **arrays, tiles=np.zeros((0, 56, 56, 3), np.uint8), num_tiles=0
        )

    shape = types.RowShape(32, 34, 34, 0, 4)
    host = assembly.assemble_batch(
        [[example(n, sides) for n, sides in zip(totals, lines, strict=True)]],
        shape,
        img_context_id=IMAGE_TOKEN,
        tokens_per_tile=4,
        image_size=56,
        record_ids=[np.arange(len(totals))],
    )
    found = step.model_logps(
        ours.model,
        ours.params,
        jax.tree.map(jnp.asarray, host),
        shape=shape,
        compute=network.Compute(dtype=jnp.float32, remat="none"),
    )
    for i, total in enumerate(totals):
        for side, got in enumerate((found.chosen, found.rejected)):
            ids = torch.from_numpy(lines[i, side, :total])
            with torch.no_grad():
                logits = reference(input_ids=ids[None]).logits[0]
            every = torch.log_softmax(logits[:-1].double(), -1)
            each = every[torch.arange(total - 1), ids[1:]]
            expected = float(each[prompt - 1 :].sum())
            assert got[0, i] == pytest.approx(expected, rel=2e-6), (total, side)
            # And as the unpacked function has it.
            plain = jax.nn.log_softmax(ours.logits(ids[None].numpy())[0, :-1], -1)
            each = plain[jnp.arange(total - 1), ids[1:].numpy()]
            assert float(each[prompt - 1 :].sum()) == pytest.approx(expected, rel=2e-6)


def test_greedy_tokens(tmp_path):
    """Token by token, through the public function."""
    reference = build("qwen3")
    ours = convert(reference, tmp_path)
    ids, mask, pixels = batch(per_tile=4, tiles=(2, 1), size=56)
    text = np.concatenate([ids[:1, mask[0] == 1], np.zeros((1, 6), np.int64)], axis=1)
    start = int(mask[0].sum())
    with torch.no_grad():
        expected = reference.generate(
            input_ids=torch.from_numpy(text[:, :start]),
            pixel_values=torch.from_numpy(pixels[:2].transpose(0, 3, 1, 2).copy()),
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=None,
            pad_token_id=0,
        )[0, start:].numpy()
    for position in range(start, start + 6):  # one shape: later tokens are not seen
        logits = ours.logits(text, None, pixels[:2])
        text[0, position] = int(jnp.argmax(logits[0, position - 1]))
    np.testing.assert_array_equal(text[0, start:], expected)
    assert len(set(expected.tolist())) > 1


def test_other_image_size_than_stored(tmp_path):
    """Position embeddings of 56 pixels, interpolated to 84, as torch does."""
    reference = build("qwen2", stored=56)
    ours = convert(reference, tmp_path, tokens=9)
    assert ours.cfg.tokens_per_tile == 9
    vision = ours.model.bind(ours.params).vision

    table_ = vision.position_embedding[...]
    grid = (
        torch.from_numpy(np.array(table_[1:])).reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    )
    bigger = torch.nn.functional.interpolate(
        grid, size=(6, 6), mode="bicubic", align_corners=False
    )
    expected = bigger.permute(0, 2, 3, 1).reshape(36, -1).numpy()
    positions = np.asarray(vision.positions())
    np.testing.assert_array_equal(positions[0], np.asarray(table_[0]))
    assert error(positions[1:], expected) < 1e-6

    ids, mask, pixels = batch(per_tile=9, tiles=(1, 2), size=84)
    with torch.no_grad():
        logits = torch_logits(reference, ids, mask, pixels).numpy()
    real = mask.astype(bool)
    assert error(ours.logits(ids, mask, pixels)[real], logits[real]) < LOGITS
