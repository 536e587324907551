"""Checkpoints: exact, atomic, on any mesh, kept as configured, refused by name."""

from __future__ import annotations

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mpo_jax import checkpoint, config, sharding
from mpo_jax.checkpoint import saving
from mpo_jax.losses import reward_shift
from mpo_jax.train import optimizer, state


def trees(seed: int = 0, *, moving: bool = False):
    """A real train state with odd numbers in every leaf, as the loop stores it."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    params = {
        "vision": {"patch": {"kernel": draw(8, 4), "bias": draw(4)}},
        "projector": {"fc": {"kernel": draw(4, 16)}},
        "language": {"embedding": draw(24, 16), "norm": {"scale": draw(16)}},
    }
    transform, _ = optimizer.build(config.OptimConfig(), 100)
    made = state.create(params, transform=transform, moving=moving)
    noise = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), made)
    return state.trees(
        state.TrainState(
            step=jnp.int32(7),
            params=params,
            opt_state=noise.opt_state,
            reward_shift=reward_shift.RewardShift(jnp.float32(0.1), jnp.float32(33.0)),
            reference=noise.reference,
        )
    )


def abstract(tree, place=None):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=None if place is None else place(x)
        ),
        tree,
    )


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.fixture
def open_run(tmp_path):
    opened = []

    def make(**fields):
        run = checkpoint.Checkpoints(
            tmp_path / "checkpoints", config.CheckpointConfig(**fields)
        )
        opened.append(run)
        return run

    yield make
    for run in opened:
        run.close()


@pytest.mark.parametrize("moving", [False, True])
def test_every_array_comes_back_bit_for_bit(open_run, moving):
    stored = trees(moving=moving)
    meta = {"position": {"next_batch": 7}, "config": {"loss": {"weights": [0.8, 0.2]}}}
    run = open_run()
    assert run.latest() is None
    run.save(7, stored, meta=meta)
    run.wait()
    assert run.latest() == 7 and run.meta(7) == meta
    again = open_run()  # what a restarted process sees
    assert again.latest() == 7 and again.meta(7) == meta
    found = again.restore(7, abstract(stored))
    assert_equal(found, stored)
    assert ("reference" in found) == moving
    assert_equal(state.from_trees(found).reward_shift, stored["loop"]["reward_shift"])


def test_save_copies_before_it_returns(open_run):
    """The loop donates its state to the next step while the save still writes."""
    stored = trees()
    expected = jax.tree.map(np.array, stored)
    run = open_run()
    run.save(1, stored, meta={})
    for leaf in jax.tree.leaves(stored):
        leaf.delete()
    run.wait()
    assert_equal(run.restore(1, abstract(expected)), expected)


def _steps(run):
    return sorted(int(p.name) for p in run.directory.iterdir() if p.name.isdigit())


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"keep_last": 1}, [8]),
        ({"keep_last": 3}, [6, 7, 8]),
        ({"keep_last": 1, "keep_every": 4}, [4, 8]),
        ({"keep_last": 2, "keep_every": 3}, [3, 6, 7, 8]),
    ],
    ids=str,
)
def test_what_is_kept(open_run, fields, kept):
    run = open_run(**fields)
    for step in range(1, 9):
        run.save(step, {"params": {"a": jnp.full(2, step)}}, meta={"n": step})
    run.wait()
    assert _steps(run) == kept
    assert run.latest() == 8
    abstract_tree = {"params": {"a": jax.ShapeDtypeStruct((2,), jnp.int32)}}
    for step in kept:
        assert run.meta(step) == {"n": step}
        assert run.restore(step, abstract_tree)["params"]["a"].tolist() == [step] * 2


def _spread(mesh):
    """First dimension over fsdp where it divides, as weights are."""
    shards = mesh.shape["fsdp"]

    def place(x):
        divides = x.ndim > 0 and x.shape[0] % shards == 0
        return NamedSharding(mesh, P("fsdp") if divides else P())

    return place


def test_restores_on_another_mesh(open_run):
    stored = trees()
    first = sharding.make_mesh(data=1, fsdp=8)
    placed = jax.device_put(stored, jax.tree.map(_spread(first), stored))
    run = open_run()
    run.save(3, placed, meta={})
    run.wait()
    for sizes in ((2, 4, 1), (1, 1, 1)):
        mesh = sharding.make_mesh(
            data=sizes[0],
            fsdp=sizes[1],
            tensor=sizes[2],
            devices=jax.devices()[: int(np.prod(sizes))],
        )
        place = _spread(mesh)
        found = run.restore(3, abstract(stored, place))
        assert_equal(found, stored)
        for leaf in jax.tree.leaves(found):
            assert leaf.sharding == place(leaf)


def test_restores_in_the_dtype_that_is_asked_for(open_run):
    run = open_run()
    run.save(1, {"params": {"a": jnp.arange(4, dtype=jnp.float32)}}, meta={})
    run.wait()
    wanted = {"params": {"a": jax.ShapeDtypeStruct((4,), jnp.bfloat16)}}
    found = run.restore(1, wanted)["params"]["a"]
    assert found.dtype == jnp.bfloat16 and found.tolist() == [0, 1, 2, 3]


def test_another_model_is_refused_leaf_by_leaf(open_run):
    stored = trees()
    run = open_run()
    run.save(1, stored, meta={})
    run.wait()
    wanted = abstract(stored)
    language = wanted["params"]["language"]
    language["embedding"] = jax.ShapeDtypeStruct((24, 8), jnp.float32)
    language["lm_head"] = language["embedding"]
    del language["norm"]
    with pytest.raises(ValueError) as raised:
        run.restore(1, wanted)
    message = str(raised.value)
    assert "missing language/lm_head" in message
    assert "surplus language/norm/scale" in message
    assert "language/embedding has shape (24, 16), this run needs (24, 8)" in message, (
        message
    )
    assert "checkpoints/1: 'params' does not fit" in message
    assert "vision" not in message and "--workdir" in message


def test_another_optimiser_is_refused(open_run):
    stored = trees()
    run = open_run()
    run.save(1, stored, meta={})
    run.wait()
    wanted = abstract(stored)
    wanted["opt_state"] = jax.eval_shape(
        optax.sgd(0.1, momentum=0.9).init, stored["params"]
    )
    with pytest.raises(ValueError) as raised:
        run.restore(1, wanted)
    message = str(raised.value)
    assert "'opt_state' does not fit" in message
    assert "missing 0/trace/language/embedding" in message
    assert "surplus 1/0/mu/language/embedding" in message


def test_a_long_list_of_differences_is_cut_and_counted(open_run):
    run = open_run()
    run.save(1, {"params": {f"a{i}": jnp.ones(2) for i in range(30)}}, meta={})
    run.wait()
    wanted = {"params": {"a0": jax.ShapeDtypeStruct((2,), jnp.float32)}}
    with pytest.raises(ValueError, match="surplus a27\n  … and 9 more"):
        run.restore(1, wanted)


def test_a_missing_tree_is_named(open_run):
    run = open_run()
    run.save(1, trees(), meta={})
    run.wait()
    with pytest.raises(ValueError, match="holds no 'reference'.*reference.mode"):
        run.restore(1, abstract(trees(moving=True)))


def test_interrupted_saves_are_ignored_and_cleared(open_run):
    run = open_run(keep_last=4)
    for step in (1, 2):
        run.save(step, {"params": {"a": jnp.full(2, step)}}, meta={})
    run.close()
    # What a kill leaves: the directory under its temporary name, half written.
    cut = run.directory / "3.orbax-checkpoint-tmp"
    shutil.copytree(run.directory / "2", cut)
    (cut / "params" / "_METADATA").unlink()
    assert checkpoint.params_directory(run.directory) == run.directory / "2"
    again = open_run(keep_last=4)
    assert again.latest() == 2
    again.save(3, {"params": {"a": jnp.full(2, 30)}}, meta={})
    again.wait()
    assert again.latest() == 3 and not cut.exists()
    wanted = {"params": {"a": jax.ShapeDtypeStruct((2,), jnp.int32)}}
    assert again.restore(3, wanted)["params"]["a"].tolist() == [30, 30]


KILLED = """
import os, sys
import jax.numpy as jnp
from mpo_jax import checkpoint, config
run = checkpoint.Checkpoints(sys.argv[1], config.CheckpointConfig())
run.save(1, {"params": {"a": jnp.full((4,), 1.0)}}, meta={"n": 1})
run.wait()
run.save(2, {"params": {"a": jnp.full((4_000_000,), 2.0)}}, meta={"n": 2})
os._exit(9)  # while the second save is under way
"""


def test_a_kill_during_a_save_leaves_the_last_complete_one(open_run, root, tmp_path):
    directory = tmp_path / "checkpoints"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(directory)],
        env={"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu", "PATH": ""},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 9
    left = open_run()
    size = {1: 4, 2: 4_000_000}
    latest = left.latest()  # 2 only if its last rename came before the kill
    assert latest in size and left.meta(latest) == {"n": latest}
    wanted = {"params": {"a": jax.ShapeDtypeStruct((size[latest],), jnp.float32)}}
    assert left.restore(latest, wanted)["params"]["a"][-1] == latest


def test_where_weights_lie(open_run, tmp_path):
    params = trees()["params"]
    converted = tmp_path / "converted"
    checkpoint.save_params(converted / "params", params, metadata={"source": "x"})
    run = open_run(keep_last=3)
    for step in (9, 10):
        run.save(step, trees(step), meta={"step": step})
    run.close()
    newest = run.directory / "10"
    places = {
        converted: converted / "params",
        converted / "params": converted / "params",
        tmp_path: newest,  # a training work directory
        run.directory: newest,
        run.directory / "9": run.directory / "9",
    }
    for given, expected in places.items():
        assert checkpoint.params_directory(given) == expected
        metadata = checkpoint.load_metadata(given)
        seed = metadata.get("step", 0)
        assert metadata == ({"step": seed} if seed else {"source": "x"})
        expected_params = trees(seed)["params"]
        assert_equal(
            checkpoint.load_params(given, abstract(expected_params)), expected_params
        )


@pytest.mark.parametrize("name", ["layers=[0,1]", "b[/x]", "a*b?[!c]", "with space"])
def test_names_are_not_patterns(tmp_path, name):
    tree = {"a": jnp.arange(3.0)}
    kinds = abstract(tree, lambda x: x.sharding)
    run = checkpoint.Checkpoints(tmp_path / name / "checkpoints", CONFIG)
    run.save(1, {"params": tree}, meta={"x": 1})
    run.close()
    run.close()  # twice is fine
    again = checkpoint.Checkpoints(tmp_path / name / "checkpoints", CONFIG)
    restored = again.restore(1, {"params": kinds})["params"]
    again.close()
    np.testing.assert_array_equal(restored["a"], tree["a"])
    loaded = checkpoint.load_params(tmp_path / name, kinds)
    np.testing.assert_array_equal(loaded["a"], tree["a"])
    assert checkpoint.load_metadata(tmp_path / name) == {"x": 1}


def test_a_backslash_is_refused(tmp_path):
    with pytest.raises(ValueError, match="backslash"):
        checkpoint.Checkpoints(tmp_path / "a\\b", CONFIG)


def test_a_failed_save_does_not_keep_the_rest_open(tmp_path):
    run = checkpoint.Checkpoints(tmp_path / "checkpoints", CONFIG)

    class Failed:
        def result(self):
            raise OSError("disk")

    run._save = saving.Save(5, run.directory / "5", Failed(), errors=run._errors)
    with pytest.raises(checkpoint.SaveFailed, match="step 5 could not be saved: disk"):
        run.close()
    run.close()  # closed all the same


CONFIG = config.CheckpointConfig()


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text("{}")
    for path in (tmp_path / "absent", tmp_path / "hf", tmp_path / "hf" / "config.json"):
        assert checkpoint.params_directory(path) is None
        assert checkpoint.load_metadata(path) == {}
        with pytest.raises(FileNotFoundError, match=f"{path.name} holds no checkpoint"):
            checkpoint.load_params(path, {})


def test_weights_of_another_model_are_refused(tmp_path):
    params = trees()["params"]
    checkpoint.save_params(tmp_path / "params", params, metadata={})
    wanted = abstract(params)
    wanted["projector"]["fc"]["kernel"] = jax.ShapeDtypeStruct((4, 8), jnp.float32)
    with pytest.raises(ValueError, match=r"projector/fc/kernel has shape \(4, 16\)"):
        checkpoint.load_params(tmp_path, wanted)


def test_saved_weights_replace_the_old_ones(tmp_path):
    for value in (1, 2):
        tree = {"a": jnp.full(3, value)}
        checkpoint.save_params(tmp_path / "params", tree, metadata={"v": value})
    assert checkpoint.load_metadata(tmp_path) == {"v": 2}
    found = checkpoint.load_params(tmp_path, abstract({"a": jnp.zeros(3, jnp.int32)}))
    assert found["a"].tolist() == [2, 2, 2]
