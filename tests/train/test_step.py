"""The update does not depend on how the batch is laid out, split or sharded."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import packed
import pytest
from flax import nnx

from mpo_jax import config, sharding, types
from mpo_jax.losses import mixture, reward_shift
from mpo_jax.models import adapted, drop_path, internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.train import gradients as gradients_lib
from mpo_jax.train import state as state_lib
from mpo_jax.train import step as step_lib

CONFIG = packed.tiny_config()
MODEL = internvl.InternVL(CONFIG)


def run_config(**changes) -> config.RunConfig:
    cfg = config.RunConfig(seed=3)
    cfg.model.dtype = "float32"
    cfg.model.remat = "none"
    cfg.model.drop_path = 0.0
    cfg.model.logps_chunk = 8
    for name, value in changes.items():
        group, field = name.split("__")
        setattr(getattr(cfg, group), field, value)
    return cfg


@pytest.fixture(scope="module")
def weights():
    """Drawn with NumPy: compiling the initialiser would take longer than a test."""
    rng = np.random.default_rng(0)

    def draw(path: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = rng.normal(size=shape).astype(np.float32)
        return (
            1 + 0.1 * noise if path.endswith(("scale", "ls1", "ls2")) else 0.1 * noise
        )

    flat = params_lib.flatten(MODEL.shapes)
    return params_lib.unflatten({path: draw(path, x.shape) for path, x in flat})


@functools.cache
def built(text: str, sizes: tuple[int, int, int], shape: types.RowShape):
    """Mesh, start function and jitted step of a config; compiled once per test run."""
    cfg = config.from_json(text)
    count = int(np.prod(sizes))
    mesh = sharding.make_mesh(
        data=sizes[0], fsdp=sizes[1], tensor=sizes[2], devices=jax.devices()[:count]
    )
    transform = optax.trace(decay=0.0)  # its state is the gradient, unrounded
    trained = adapted.trained(cfg.model)
    model = internvl.InternVL(CONFIG, adapted.of(cfg.model, CONFIG))
    moving = cfg.reference.mode == "moving"
    abstract = state_lib.abstract(
        model,
        transform=transform,
        trained=trained,
        moving=moving,
        mesh=mesh,
        offload=cfg.optim.offload,
    )
    placed = state_lib.shardings_of(abstract)

    @jax.jit
    def create(weights):
        return state_lib.create(
            weights, transform=transform, trained=trained, moving=moving
        )

    def start(weights):
        return jax.device_put(create(weights), placed)

    step = step_lib.build_train_step(
        model,
        cfg,
        shape,
        transform=transform,
        schedule=lambda _: 1.0,
        out_shardings=placed,
    )
    return mesh, start, step


def pairs(count: int = 12, seed: int = 0) -> list[types.Example]:
    rng = np.random.default_rng(seed)
    return [packed.example(rng) for _ in range(count)]


def references(count: int) -> dict[int, tuple[float, float]]:
    rng = np.random.default_rng(7)
    return {i: tuple(-20 + 3 * rng.normal(size=2)) for i in range(count)}


def rows_of(examples, layout):
    """Group examples into rows by a list of record numbers per row."""
    return [[examples[i] for i in row] for row in layout], [list(r) for r in layout]


def update(
    cfg, weights, layout, *, sizes=(1, 1, 1), shape=packed.SHAPE, reference=None, at=0
):
    """Gradients (through plain SGD), metrics and state after one step: number `at`."""
    examples = pairs()
    rows, ids = rows_of(examples, layout)
    refs = None
    if reference is None and cfg.reference.mode != "moving":
        refs = references(len(examples))
    batch = packed.batch(rows, shape=shape, ids=ids, refs=refs)
    mesh, start, step = built(cfg.to_json(), sizes, shape)
    with jax.set_mesh(mesh):
        before = start(weights)
        now = jax.device_put(jnp.int32(at), before.step.sharding)
        after, metrics = step(
            dataclasses.replace(before, step=now),
            sharding.to_global(batch, mesh),
            jax.random.key(1),
            reference,
        )
    gradients = jax.tree.map(np.asarray, after.opt_state.trace)
    means = {k: float(s) / float(w) for k, (s, w) in metrics.items() if float(w)}
    return gradients, means, after


LAYOUT = [[0, 1, 2], [3, 4], [5, 6, 7], [8, 9, 10], [11], [], [], []]


def assert_same(found, expected, *, rtol=1e-4):
    """Gradients agree relative to the largest entry of each parameter."""
    for (path, a), (_, b) in zip(
        params_lib.flatten(found), params_lib.flatten(expected), strict=True
    ):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=rtol * np.abs(b).max() + 1e-7, err_msg=path
        )


@pytest.fixture(scope="module")
def baseline(weights):
    return update(run_config(), weights, LAYOUT)


METRICS = ("loss", "loss/sigmoid", "loss/bco_pair", "loss/sft", "delta", "grad_norm")


@pytest.mark.parametrize(
    "layout",
    [
        [[i] for i in range(12)],
        [[11, 3], [2, 0, 7], [], [5], [9, 1], [4, 10, 6], [], [8]],
    ],
    ids=["one pair a row", "shuffled"],
)
def test_packing_changes_nothing(weights, baseline, layout):
    gradients, means, _ = update(run_config(), weights, layout)
    assert_same(gradients, baseline[0])
    for name in METRICS:
        np.testing.assert_allclose(means[name], baseline[1][name], rtol=1e-5)


@pytest.mark.parametrize(
    ("delta", "parts", "field"),
    [
        ("cumulative", 2, "accumulation"),
        ("cumulative", 4, "accumulation_long"),
        ("previous", 2, "accumulation"),
    ],
)
def test_accumulation_is_exact(weights, delta, parts, field, monkeypatch):
    cfg = run_config(loss__delta=delta)
    whole = update(cfg, weights, LAYOUT)
    if field == "accumulation_long":
        cfg.rows.long = config.RowShapeConfig(*dataclasses.astuple(packed.SHAPE))
    setattr(cfg.optim, field, parts)
    asked, split_rows = [], gradients_lib.split_rows
    monkeypatch.setattr(
        gradients_lib,
        "split_rows",
        lambda batch, number: asked.append(number) or split_rows(batch, number),
    )
    split = update(cfg, weights, LAYOUT)
    assert set(asked) == {parts}
    assert_same(split[0], whole[0])
    for name in (*METRICS, "pairs"):
        np.testing.assert_allclose(split[1][name], whole[1][name], rtol=1e-5)
    np.testing.assert_allclose(
        split[2].reward_shift.mean, whole[2].reward_shift.mean, rtol=1e-5
    )


def test_micro_batches_are_those_of_the_row_shape():
    long = dataclasses.replace(packed.SHAPE, chosen_tokens=30)
    cfg = run_config(optim__accumulation=2)
    cfg.rows.long = config.RowShapeConfig(*dataclasses.astuple(long))
    for accumulation_long, wanted in ((0, (2, 2)), (6, (2, 6))):
        cfg.optim.accumulation_long = accumulation_long
        found = tuple(step_lib.micro_batches(cfg, s) for s in (packed.SHAPE, long))
        assert found == wanted


def test_fill_is_the_used_share_of_tokens_and_tiles():
    rng = np.random.default_rng(0)
    examples = [packed.example(rng, tiles=n) for n in (2, 1)]
    batch = packed.batch([examples, []])
    # As if a tile had four tokens: each image token thrice more, in padding.
    slots = np.concatenate([batch.image_slot] * 4, axis=1)
    batch = dataclasses.replace(batch, image_slot=slots)
    found = step_lib.fill(batch, tokens_per_tile=4)
    used = sum(
        len(e.prompt) + len(e.chosen_tokens) + len(e.rejected_tokens) for e in examples
    )
    means = {name: float(s) / float(w) for name, (s, w) in found.items()}
    assert means == {
        "tokens": used,
        "fill/tokens": pytest.approx(used / (2 * packed.SHAPE.tokens)),
        "fill/tiles": pytest.approx(3 / (2 * packed.SHAPE.tiles)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "terms", [("aot", "sft"), ("ipo", "orpo", "sft")], ids=["coupled", "separable"]
)
def test_accumulation_is_exact_for_other_losses(weights, terms):
    cfg = run_config(
        loss__terms=terms,
        loss__weights=(1.0,) * len(terms),
        loss__sft_reduction="token",
    )
    whole = update(cfg, weights, LAYOUT)
    cfg.optim.accumulation = 4
    assert_same(update(cfg, weights, LAYOUT)[0], whole[0])


# Every way to split 8 devices over data, fsdp and tensor.
MESHES = [
    (data, fsdp, 8 // data // fsdp)
    for data in (1, 2, 4, 8)
    for fsdp in (1, 2, 4, 8)
    if data * fsdp <= 8
]


@pytest.mark.slow
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_mesh_shape_changes_nothing(weights, baseline, sizes):
    gradients, means, after = update(run_config(), weights, LAYOUT, sizes=sizes)
    assert_same(gradients, baseline[0], rtol=1e-5)
    for name in METRICS:
        np.testing.assert_allclose(means[name], baseline[1][name], rtol=1e-5)
    if sizes[1] > 1:
        kernel = after.params["language"]["layers"]["blocks"]["mlp"]["up"]["kernel"]
        assert not kernel.sharding.is_fully_replicated


@pytest.mark.parametrize(
    "changes",
    [
        {"model__remat": "full", "model__vision_chunk": 4},
        {"model__remat": "dots", "model__attention": "reference"},
        {"model__remat": "attention", "model__vocab_chunk": 16},
        {"model__remat": "offload", "optim__offload": True, "model__logps_chunk": 0},
    ],
    ids=str,
)
def test_how_it_is_computed_changes_nothing(weights, baseline, changes):
    gradients, means, after = update(run_config(**changes), weights, LAYOUT)
    assert_same(gradients, baseline[0])
    np.testing.assert_allclose(means["loss"], baseline[1]["loss"], rtol=1e-5)
    kinds = {x.sharding.memory_kind for x in jax.tree.leaves(after.opt_state)}
    assert kinds == {"pinned_host" if "optim__offload" in changes else "device"}


def test_offloaded_moments_need_their_placement():
    cfg = run_config(optim__offload=True)
    with pytest.raises(ValueError, match="out_shardings"):
        step_lib.build_train_step(
            MODEL, cfg, packed.SHAPE, transform=optax.sgd(1.0), schedule=lambda _: 1.0
        )


def test_drop_path_is_keyed_by_record_not_by_place(weights, baseline):
    cfg = run_config(model__drop_path=0.5)
    first = update(cfg, weights, LAYOUT)
    other = [[11, 3], [2, 0, 7], [], [5], [9, 1], [4, 10, 6], [], [8]]
    assert_same(update(cfg, weights, other)[0], first[0])
    assert abs(first[1]["loss"] - baseline[1]["loss"]) > 1e-4
    chunked = run_config(model__drop_path=0.5, model__vision_chunk=1)
    assert_same(update(chunked, weights, LAYOUT)[0], first[0])
    # Drawn anew for every step, and by its number alone.
    later, again = (update(cfg, weights, LAYOUT, at=3)[1]["loss"] for _ in range(2))
    assert later == again and abs(later - first[1]["loss"]) > 1e-4


def test_drop_path_is_drawn_per_tile_of_a_record():
    rng = np.random.default_rng(0)
    examples = [packed.example(rng, tiles=n) for n in (2, 0, 1, 2)]
    batch = packed.batch([examples[:3], [], examples[3:]], ids=[[7, 8, 9], [], [7]])
    batch = jax.tree.map(jnp.asarray, batch)
    factors = np.asarray(
        drop_path.of_batch(
            batch,
            jax.random.key(0),
            rate=0.9,
            num_layers=64,
            tokens_per_tile=packed.TOKENS_PER_TILE,
        )
    )
    assert factors.shape == (64, 2, 3, packed.SHAPE.tiles)
    first, second, other = (factors[:, :, 0, tile] for tile in range(3))
    # A record's tiles, the tiles of two records, the branches of a block: of 64 layers,
    # half of which are dropped, some differ.
    for a, b in ((first, second), (first, other), (second, other)):
        assert np.mean((a > 0) != (b > 0)) > 0.2
    assert np.mean((first[:, 0] > 0) != (first[:, 1] > 0)) > 0.2
    expected = drop_path.factors(
        jax.random.key(0),
        jnp.array([7, 7, 9]),
        jnp.array([0, 1, 0]),
        rate=0.9,
        num_layers=64,
    )
    np.testing.assert_array_equal(factors[:, :, 0, :3], expected)
    # The same record elsewhere has the same.
    np.testing.assert_array_equal(factors[:, :, 2, 0], first)
    np.testing.assert_array_equal(factors[:, :, 2, 1], second)


def test_drop_path_scales_each_branch_by_its_own_factor(weights):
    tower = MODEL.bind(weights).vision
    graph, stacked = nnx.split(tower.layers.blocks)
    block = nnx.merge(graph, jax.tree.map(lambda leaf: leaf[0], stacked))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 32)), jnp.float32)

    def run(attention: list[float], mlp: list[float]) -> np.ndarray:
        return np.asarray(block(x, "reference", jnp.asarray([attention, mlp]))[0])

    whole = run([1.0, 1.0], [1.0, 1.0])
    np.testing.assert_allclose(block(x, "reference", None)[0], whole, rtol=1e-6)
    np.testing.assert_allclose(run([0.0, 0.0], [0.0, 0.0]), x, rtol=1e-6)
    # Factors belong to tiles: the second tile's do not touch the first.
    np.testing.assert_allclose(run([1.0, 0.0], [1.0, 0.0])[0], whole[0], rtol=1e-6)
    first, second = run([1.0, 1.0], [0.0, 0.0]), run([0.0, 0.0], [1.0, 1.0])
    assert np.abs(first - second).max() > 1e-2
    twice = run([2.0, 2.0], [0.0, 0.0])
    np.testing.assert_allclose(twice - x, 2 * (first - x), rtol=1e-4, atol=1e-5)


def test_drop_path_keeps_the_expected_share():
    keep = drop_path.factors(
        jax.random.key(0),
        jnp.arange(4000),
        jnp.zeros(4000, jnp.int32),
        rate=0.4,
        num_layers=3,
    )
    shares = np.asarray(keep > 0).mean(axis=2)
    # Linear from 0 to the rate; 4000 draws have a standard error below 0.8 %.
    np.testing.assert_allclose(
        shares, 1 - np.array([[0.0], [0.2], [0.4]]) @ [[1, 1]], atol=0.03
    )
    np.testing.assert_allclose(np.asarray(keep).mean(axis=2), 1.0, atol=0.05)


def test_forward_programs_are_compiled_with_the_options_of_their_mesh(
    weights, monkeypatch
):
    """An option that no compiler knows is refused, so it has come that far."""
    monkeypatch.setattr(
        sharding, "compiler_options", lambda mesh: {f"no_such_{mesh.size}": "1"}
    )
    mesh = sharding.make_mesh(devices=jax.devices()[:2])
    batch = packed.batch([[], []], refs={})
    cfg = run_config()
    score = step_lib.build_logps_step(MODEL, cfg.model, packed.SHAPE, mesh)
    evaluate = step_lib.build_eval_step(MODEL, cfg, packed.SHAPE, mesh)
    for step, inputs in (
        (score, (weights, batch)),
        (evaluate, (weights, reward_shift.init(), batch)),
    ):
        with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_2"):
            step.lower(*inputs).compile()


def test_online_reference_gives_the_cached_numbers(weights):
    cfg = run_config(reference__mode="online")
    online = update(cfg, weights, LAYOUT, reference=weights)
    np.testing.assert_allclose(online[1]["loss/sigmoid"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(online[1]["loss/bco_pair"], 2 * np.log(2), rtol=1e-5)


@pytest.mark.slow
def test_moving_reference_moves_when_it_should(weights):
    cfg = run_config(
        reference__mode="moving",
        reference__moving_alpha=0.25,
        reference__moving_every=1,
    )
    _, _, after = update(cfg, weights, LAYOUT)
    for (_, old), (_, new), (_, ref) in zip(
        params_lib.flatten(weights),
        params_lib.flatten(after.params),
        params_lib.flatten(after.reference),
        strict=True,
    ):
        np.testing.assert_allclose(ref, old + 0.25 * (new - old), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_moving_reference_moves_with_the_last_of_its_steps(weights):
    """Every third step: after the updates that bring the count to 3, 6, …"""
    cfg = run_config(
        reference__mode="moving",
        reference__moving_alpha=0.25,
        reference__moving_every=3,
    )
    for at in range(4):
        _, _, after = update(cfg, weights, LAYOUT, at=at)
        assert int(after.step) == at + 1
        old, new, ref = (
            np.asarray(tree["projector"]["fc1"]["kernel"])
            for tree in (weights, after.params, after.reference)
        )
        share = 0.25 if at == 2 else 0.0
        np.testing.assert_allclose(ref, old + share * (new - old), rtol=1e-5, atol=1e-6)
        assert np.abs(new - old).max() > 1e-3


def test_moving_reference_rests_between_updates():
    old, new = {"a": jnp.ones(2)}, {"a": jnp.zeros(2)}
    cfg = config.ReferenceConfig(moving_alpha=0.25, moving_every=2)
    moved = [step_lib.move_reference(old, new, n, cfg)["a"][0] for n in (1, 2, 3)]
    assert [float(x) for x in moved] == [1.0, 0.75, 1.0]


def test_a_resting_reference_is_neither_read_nor_written():
    """Its buffers are passed on: no copy of a reference stands in the program."""
    tree = {name: jnp.ones((64, 64)) for name in ("a", "b")}
    cfg = config.ReferenceConfig(moving_alpha=0.25, moving_every=2)
    move = jax.jit(
        functools.partial(step_lib.move_reference, cfg=cfg), donate_argnums=0
    )
    text = move.lower(tree, tree, jnp.int32(1)).compile().as_text()
    assert " conditional(" in text and "f32[64,64]{1,0} copy(" not in text
    assert text.count("-alias)") == len(tree)  # the result lies where the old one did


def state_of(weights, *, reference=None, transform=None) -> state_lib.TrainState:
    transform = transform or optax.sgd(1.0)
    return state_lib.TrainState(
        step=jnp.int32(2),
        params=weights,
        opt_state=transform.init(adapted.partition(weights, is_language)[0]),
        reward_shift=reward_shift.init(),
        reference=reference,
    )


def is_language(path: str) -> bool:
    return path.startswith("language/")


TREE = {"language": {"w": jnp.ones(3)}, "vision": {"w": jnp.full(2, 5.0)}}


def test_an_update_moves_what_is_trained_and_then_the_reference():
    shift = reward_shift.RewardShift(mean=jnp.float32(0.5), count=jnp.float32(12))
    found = gradients_lib.Gradients({"language": {"w": jnp.full(3, 4.0)}}, {}, shift)
    transform = optax.trace(decay=0.9)
    apply = functools.partial(
        step_lib.apply_update,
        found=found,
        transform=optax.chain(transform, optax.scale(-1.0)),
        reference=config.ReferenceConfig(moving_alpha=0.5, moving_every=3),
        is_trained=is_language,
    )
    chained = optax.chain(transform, optax.scale(-1.0))
    before = state_of(
        TREE, transform=chained, reference={"language": {"w": jnp.ones(3)}}
    )
    after = apply(before)
    assert int(after.step) == 3 and after.reward_shift == shift
    assert after.params["language"]["w"].tolist() == [-3.0] * 3
    assert after.params["vision"]["w"] is TREE["vision"]["w"]
    assert after.opt_state[0].trace["language"]["w"].tolist() == [4.0] * 3
    # The third step moves the reference, halfway to the policy after its update.
    assert after.reference["language"]["w"].tolist() == [-1.0] * 3
    again = apply(after)
    assert again.reference["language"]["w"].tolist() == [-1.0] * 3
    assert apply(state_of(TREE, transform=chained)).reference is None


def test_the_reference_is_the_states_or_the_one_that_is_handed_in():
    own, handed = ({"language": {"w": jnp.full(3, x)}} for x in (7.0, 8.0))
    adapters = {"language": {**TREE["language"], "lora_a": jnp.ones(1)}}
    params = {**TREE, **adapters}
    assert step_lib.reference_weights(state_of(params), None) is None
    for state, online, expected in (
        (state_of(params, reference=own), None, 7.0),
        (state_of(params), handed, 8.0),
        (state_of(params), {}, 1.0),
    ):
        found = step_lib.reference_weights(state, online)
        assert found is not None and set(found["language"]) == {"w"}
        assert found["language"]["w"].tolist() == [expected] * 3
        assert found["vision"]["w"].tolist() == [5.0] * 2


def test_reference_log_probs_are_the_batchs_or_computed_without_a_gradient():
    batch = packed.batch([pairs(2)], refs=references(2))

    def logps(weights, batch):
        value = jnp.broadcast_to(weights, batch.pair_mask.shape)
        return types.PairLogps(value, 2 * value, value, value)

    given = step_lib.reference_logps(logps, None, batch)
    np.testing.assert_array_equal(given, batch.ref_logps)
    found = step_lib.reference_logps(logps, jnp.float32(3), batch)
    assert found.shape == (*batch.pair_mask.shape, 2)
    assert found[0, 0].tolist() == [3, 6]
    slope = jax.grad(lambda w: step_lib.reference_logps(logps, w, batch).sum())
    assert float(slope(jnp.float32(3))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vision", "language"])
def test_freezing_leaves_a_part_and_its_optimiser_state_out(weights, part):
    cfg = run_config(**{f"model__freeze_{part}": True})
    gradients, means, after = update(cfg, weights, LAYOUT)
    assert part not in gradients
    for name, tree in after.params.items():
        for (_, old), (_, new) in zip(
            params_lib.flatten(weights[name]), params_lib.flatten(tree), strict=True
        ):
            assert np.array_equal(old, new) == (name == part)
    assert f"grad_norm/{part}" not in means
    assert "grad_norm" in means


def test_sft_mode_trains_the_chosen_side_alone(weights):
    cfg = run_config(loss__terms=("sft",), loss__weights=(1.0,), reference__mode="none")
    cfg.mode = "sft"
    shape = dataclasses.replace(packed.SHAPE, rejected_tokens=0)
    empty = np.zeros(0, np.int32)
    examples = [
        dataclasses.replace(
            example,
            rejected_tokens=empty,
            rejected_labels=empty,
            rejected_mask=empty.astype(bool),
        )
        for example in pairs()
    ]
    batch = packed.batch([[e] for e in examples[:8]], shape=shape)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        policy = step_lib.model_logps(
            MODEL,
            weights,
            jax.tree.map(jnp.asarray, batch),
            shape=shape,
            compute=step_lib.compute_of(cfg.model),
            chunk=8,
        )
    loss, _ = mixture.mixed_loss(
        policy, None, batch.pair_mask, reward_shift.init(), config=cfg.loss
    )
    real = batch.pair_mask
    mean = -np.asarray(policy.chosen)[real] / np.asarray(policy.chosen_tokens)[real]
    np.testing.assert_allclose(loss, mean.mean(), rtol=1e-6)
