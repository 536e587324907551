"""Which weights a reference has: those of the starting point, whatever was trained."""

from __future__ import annotations

import types

import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import config
from mpo_jax.nn import params as params_lib
from mpo_jax.run import parameters, references, start
from mpo_jax.train import reference

BASE = {
    "vision": {"kernel": jnp.full(2, 1.0)},
    "projector": {"kernel": jnp.full(2, 2.0)},
    "language": {"q": {"kernel": jnp.full(2, 3.0)}},
}
OWN = {**BASE, "language": {"q": {**BASE["language"]["q"], "lora_a": jnp.ones(1)}}}


def run_of(*, mode: str = "online", path: str = "", only_adapters: bool = False):
    cfg = config.RunConfig()
    cfg.reference.mode, cfg.reference.path = mode, path
    for part in ("vision", "projector", "language") if only_adapters else ("vision",):
        setattr(cfg.model, f"freeze_{part}", True)
    cfg.model.lora.language_rank = 1
    return types.SimpleNamespace(cfg=cfg, uses_reference=True)


def origin_of(step: int, fingerprint: str = "") -> start.Start:
    state = types.SimpleNamespace(params=OWN)
    return start.Start(state, step, fingerprint)  # pyright: ignore


@pytest.fixture
def read(monkeypatch):
    """Paths that weights were read from."""
    paths = []
    monkeypatch.setattr(
        parameters, "reference_params", lambda run, path: paths.append(path) or BASE
    )
    return paths


def paths_of(tree) -> set[str]:
    return {path for path, _ in params_lib.flatten(tree)}


@pytest.mark.parametrize(("step", "only_adapters"), [(0, False), (3, True)])
def test_the_policys_own_weights_serve_while_they_are_the_starting_point(
    read, step, only_adapters
):
    run = run_of(only_adapters=only_adapters)
    found = references.reference_params(run, origin_of(step))
    assert paths_of(found) == paths_of(BASE) and not read
    assert found["vision"]["kernel"] is OWN["vision"]["kernel"]


@pytest.mark.parametrize(("step", "path"), [(3, ""), (0, "other"), (3, "other")])
def test_else_they_are_read_and_must_be_the_ones_it_began_with(read, step, path):
    run = run_of(path=path)
    run.cfg.model.path = "model"
    known = reference.fingerprint(BASE)
    found = references.reference_params(run, origin_of(step, known))
    assert found is BASE and read == [path]
    where = path or "model"
    with pytest.raises(ValueError, match=f"{where} no longer holds the weights"):
        references.reference_params(run, origin_of(step, "another"))


def test_an_online_reference_holds_copies_of_what_is_trained(read):
    found = references.prepare(run_of(), None, origin_of(0)).online
    assert found is not None
    assert paths_of(found) == {"projector/kernel", "language/q/kernel"}
    assert found["projector"]["kernel"] is not OWN["projector"]["kernel"]
    np.testing.assert_array_equal(found["projector"]["kernel"], 2.0)
    run, known = run_of(path="other"), reference.fingerprint(BASE)
    whole = references.prepare(run, None, origin_of(0, known)).online
    assert whole is not None and paths_of(whole) == paths_of(BASE)


@pytest.mark.parametrize("mode", ["none", "moving"])
def test_no_frozen_reference_is_prepared_for_other_modes(read, mode):
    found = references.prepare(run_of(mode=mode), None, origin_of(0))
    assert found == references.Reference() and not read
