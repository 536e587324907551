"""Small checkpoints of a run, and ways to damage one."""

from __future__ import annotations

import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax import checkpoint, config


def tree(step: int) -> dict:
    """Parameters, optimiser state and loop state that tell their step."""
    rng = np.random.default_rng(step)
    kernel = jnp.asarray(rng.normal(size=(64, 96)), jnp.float32)
    return {
        "params": {"vision": {"w": kernel}, "head": jnp.full(3, float(step))},
        "opt_state": {"mu": {"vision": {"w": kernel + 1}}},
        "loop": {"step": jnp.int32(step)},
    }


def abstract() -> dict:
    return jax.eval_shape(lambda: tree(0))


def meta(step: int, **fields) -> dict:
    cfg = {"checkpoint": {"resume_step": 0, **fields}}
    return {"position": {"next_batch": step}, "config": cfg}


def opened(workdir: pathlib.Path, **fields) -> checkpoint.Checkpoints:
    cfg = config.CheckpointConfig(**{"keep_last": 9, **fields})
    return checkpoint.Checkpoints(workdir / "checkpoints", cfg)


def save(workdir: pathlib.Path, *steps: int, **fields) -> None:
    run = opened(workdir, **fields)
    said = {"resume_step": fields["resume_step"]} if "resume_step" in fields else {}
    for step in steps:
        run.save(step, tree(step), meta=meta(step, **said))
    run.close()


def resume(workdir: pathlib.Path, **fields) -> checkpoint.Resumed | None:
    """Resume as a run does, and compare every number with what was saved."""
    run = opened(workdir, **fields)
    try:
        found = run.resume(abstract(), check=lambda step, meta: None)
    finally:
        run.close()
    if found is not None:
        jax.tree.map(np.testing.assert_array_equal, found.trees, tree(found.step))
        assert found.meta["position"] == {"next_batch": found.step}
    return found


def files(step: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in step.rglob("*") if path.is_file())


def data_file(step: pathlib.Path) -> pathlib.Path:
    """The largest: it holds parameters."""
    return max((step / "params").rglob("d/*"), key=lambda path: path.stat().st_size)


def flip(path: pathlib.Path, bit: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def drop_manifests(step: pathlib.Path) -> None:
    """As a run leaves it that is killed between the commit and the manifest."""
    for path in step.glob("mpo-manifest-*"):
        path.unlink()


def _truncated(step: pathlib.Path) -> None:
    path = data_file(step)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _zeroed(step: pathlib.Path) -> None:
    path = data_file(step)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(content)


def _all_empty(step: pathlib.Path) -> None:
    for path in files(step):
        path.write_bytes(b"")


def _cut_tree(step: pathlib.Path) -> None:
    path = step / "params" / "_METADATA"
    path.write_bytes(path.read_bytes()[:40])


def _empty_directory(step: pathlib.Path) -> None:
    shutil.rmtree(step)
    step.mkdir()


def _stores_gone(step: pathlib.Path) -> None:
    for path in step.rglob("manifest.ocdbt"):
        path.unlink()


def _linked(step: pathlib.Path) -> None:
    """To another disk, say, which is not there."""
    path = data_file(step)
    path.unlink()
    path.symlink_to(step.parent / "nowhere")


def _looped(step: pathlib.Path) -> None:
    path = data_file(step)
    path.unlink()
    path.symlink_to(path)


KINDS = {
    "truncated": (_truncated, r"params/.*/d/\w+: \d+ bytes, \d+ were written"),
    "deleted": (lambda step: data_file(step).unlink(), r"params/.*/d/\w+: missing"),
    "linked": (_linked, r"params/.*/d/\w+: missing"),
    "looped": (_looped, r"params/.*/d/\w+: missing"),
    "zeroed": (_zeroed, r"params/.*/d/\w+: another content \(checksum\)"),
    "all_empty": (_all_empty, r"mpo-manifest-0-of-1.json: damaged"),
    "cut_tree": (_cut_tree, r"params/_METADATA: 40 bytes, \d+ were written"),
    "empty_directory": (_empty_directory, r"_CHECKPOINT_METADATA: missing"),
    "stores_gone": (_stores_gone, r"params/manifest.ocdbt: missing"),
    "top_gone": (
        lambda step: (step / "_CHECKPOINT_METADATA").unlink(),
        r"_CHECKPOINT_METADATA: missing",
    ),
    "tree_gone": (
        lambda step: (step / "opt_state" / "_METADATA").unlink(),
        r"opt_state/_METADATA: missing",
    ),
}
"""Damage, and what is said of it where there is a manifest."""
