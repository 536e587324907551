"""The FLOPs formula against the products of compiled programs, and by hand."""

from __future__ import annotations

import dataclasses

import counted
import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax import types
from mpo_jax.models import adapted, family, flops, internvl, network, rope
from mpo_jax.nn import roles as roles_lib
from mpo_jax.plan import hlo, schedule

SHAPE = types.RowShape(
    prompt_tokens=96, chosen_tokens=32, rejected_tokens=48, tiles=3, pairs=2
)
ROWS = 2


def _config():
    base = packed.tiny_config()
    vision = dataclasses.replace(
        base.vision, num_hidden_layers=3, qk_normalization=True, norm_type="rms_norm"
    )
    language = dataclasses.replace(
        base.language,
        num_hidden_layers=5,
        vocab_size=200,
        head_dim=16,
        rope=rope.Rope(tuple(0.5**pair for pair in range(8))),
    )
    return dataclasses.replace(
        base, vision=vision, language=language, select_layer=-2, image_size=56
    )


def _scheduled(cfg, parts=adapted.PARTS, *, backward: bool) -> float:
    """FLOPs of products in a compiled CPU program, loops multiplied out."""
    model = internvl.InternVL(cfg)
    compute = network.Compute(dtype=jnp.float32, remat="none", attention="blocks")
    roles = (SHAPE.prompt_tokens, SHAPE.chosen_tokens, SHAPE.rejected_tokens)

    def loss(trained, frozen, batch):
        weights = {**trained, **frozen}
        bound = model.bind(weights)
        hidden = bound.response_hidden(batch, roles=roles, compute=compute)
        logits = jnp.einsum("brd,dv->brv", hidden, bound.lm_head())
        return jnp.sum(jax.nn.logsumexp(logits, axis=-1))

    def array(*dims, dtype=jnp.int32):
        return jax.ShapeDtypeStruct((ROWS, *dims), dtype)

    batch = types.PackedBatch(
        tokens=array(SHAPE.tokens),
        positions=array(SHAPE.tokens),
        segment_ids=array(SHAPE.tokens),
        labels=array(SHAPE.response_tokens),
        label_mask=array(SHAPE.response_tokens, dtype=jnp.bool_),
        image_slot=array(SHAPE.prompt_tokens),
        tiles=array(SHAPE.tiles, 56, 56, 3, dtype=jnp.uint8),
        pair_mask=array(SHAPE.pairs, dtype=jnp.bool_),
        record_ids=array(SHAPE.pairs),
    )
    shapes = model.shapes
    trained = {k: v for k, v in shapes.items() if k in parts}
    frozen = {k: v for k, v in shapes.items() if k not in parts}
    function = jax.grad(loss) if backward else loss
    compiled = jax.jit(function).lower(trained, frozen, batch).compile()
    found = schedule.totals(hlo.parse(compiled.as_text()))
    assert found.unresolved == ()
    return found.flops


def test_forward_is_what_a_program_computes():
    cfg = _config()
    budget = flops.of_budget(SHAPE, attention="blocks") * ROWS
    expected = flops.forward(cfg, budget).total
    assert _scheduled(cfg, backward=False) == pytest.approx(expected, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [adapted.PARTS, ("language",), ("projector",), ("vision", "projector")],
    ids="+".join,
)
def test_training_is_what_a_program_computes(parts):
    cfg = _config()
    budget = flops.of_budget(SHAPE, attention="blocks") * ROWS
    # Attention by pieces computes its scores again on the way back: half of a forward
    # pass, which model FLOPs leave out.
    language = "language" in parts
    trained = flops.Trained("vision" in parts, "projector" in parts, language, language)
    once, times = flops.forward(cfg, budget), flops.passes(trained)
    again = [
        once.vision_attention * (times.vision_attention > 1) / 2,
        once.language_attention * (times.language_attention > 1) / 2,
    ]
    expected = flops.training(cfg, budget, trained=trained).total + sum(again)
    assert _scheduled(cfg, parts, backward=True) == pytest.approx(expected, rel=0.01)


def test_8b_against_six_times_parameters():
    """Decoder matmuls are 6 N per token, N without embedding and head."""
    cfg = family.lookup("OpenGVLab/InternVL2-8B")
    assert cfg is not None
    shapes = internvl.InternVL(cfg).shapes["language"]["layers"]
    matrices = sum(leaf.size for leaf in jax.tree.leaves(shapes) if len(leaf.shape) > 2)
    counts = flops.of_totals(pairs=1, prompt=900, chosen=50, rejected=50, tiles=0)
    found = flops.training(cfg, counts)
    assert found.language == pytest.approx(6 * matrices * 1000, rel=1e-6)
    assert found.vision == found.projector == 0


def test_visible_pairs_are_those_of_the_mask():
    roles = (5, 3, 4)
    mask = roles_lib.dense_mask(roles)
    assert flops.of_pairs(*roles, tiles=0).visible == mask.sum()
    shape = types.RowShape(*roles, tiles=0, pairs=1)
    assert flops.of_budget(shape).visible == mask.sum()
    assert flops.of_budget(shape, attention="square").visible == mask.size
    with pytest.raises(ValueError, match="attention='flash'"):
        flops.of_budget(shape, attention="flash")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), sizes=st.lists(st.integers(0, 3), min_size=1))
def test_counts_of_a_batch_are_those_of_its_pairs(seed, sizes):
    rng = np.random.default_rng(seed)
    rows = [[packed.example(rng) for _ in range(size)] for size in sizes]
    pairs = [pair for row in rows for pair in row]
    found = counted.counts(
        packed.batch(rows), packed.SHAPE, tokens_per_tile=packed.TOKENS_PER_TILE
    )
    lengths = np.array(
        [
            (len(p.prompt), len(p.chosen_tokens), len(p.rejected_tokens), p.num_tiles)
            for p in pairs
        ]
    ).reshape(-1, 4)
    prompt, chosen, rejected, tiles = lengths.T
    expected = flops.of_pairs(prompt, chosen, rejected, tiles=tiles)
    assert found == dataclasses.replace(expected, pairs=len(pairs))


def test_totals_are_exact_for_equal_pairs_and_nothing_for_none():
    exact = flops.of_pairs([7, 7, 7], [3, 3, 3], [4, 4, 4], tiles=[1, 1, 1])
    totals = flops.of_totals(pairs=3, prompt=21, chosen=9, rejected=12, tiles=3)
    assert totals == exact
    assert totals + totals == exact * 2
    empty = flops.of_totals(pairs=0, prompt=0, chosen=0, rejected=0, tiles=0)
    assert flops.forward(packed.tiny_config(), empty).total == 0


def test_sft_pair_costs_its_chosen_side_once():
    cfg = packed.tiny_config()
    packed_one = flops.packed_pair(cfg, 40, 10, 0, tiles=2, reference=False)
    usual = flops.duplicated_pair(cfg, 40, 10, 0, tiles=2, reference=False)
    assert usual.tokens == packed_one.tokens == 50
    assert usual.tiles == packed_one.tiles == 2
    assert packed_one.head_positions == 10 and usual.head_positions == 50


def test_duplicated_layout_is_four_passes():
    cfg = packed.tiny_config()
    ours = flops.packed_pair(cfg, 400, 30, 50, tiles=3)
    usual = flops.duplicated_pair(cfg, 400, 30, 50, tiles=3)
    assert (ours.tokens, usual.tokens) == (2 * 480, 4 * 400 + 2 * 80)
    assert (ours.tiles, usual.tiles) == (2 * 3, 4 * 3)
    assert (ours.head_positions, usual.head_positions) == (2 * 80, 4 * 400 + 2 * 80)
    assert 1.5 < usual.flops / ours.flops < 2.2


def test_mfu_of_an_ideal_step_is_one():
    assert flops.mfu(4e15, seconds=2.0, chips=10, peak=2e14) == pytest.approx(1.0)
