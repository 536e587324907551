"""The HLO reader on small programs that the TPU compiler has scheduled."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from mpo_jax.plan import child

pytestmark = pytest.mark.slow

SCRIPT = """
import json
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec as P
from mpo_jax import sharding
from mpo_jax.plan import hlo, schedule
from mpo_jax.utils import slices

sold = slices.lookup("v5e:2x2")

def mesh_of(**options):
    described = topologies.get_topology_desc(
        sold.aot_name, platform="tpu", **sold.aot_options, **options
    )
    data = options.get("num_slices", 1)
    return sharding.make_mesh(data=data, devices=list(described.devices))

def totals(mesh, function, *args, **options):
    text = jax.jit(function, **options).lower(*args).compile().as_text()
    found = schedule.totals(hlo.parse(text))
    print(json.dumps([
        found.flops, found.cycles, len(found.unresolved),
        {k: [t.count, t.bytes, t.across_slices] for k, t in found.collectives.items()},
    ]))

def array(mesh, spec, *shape):
    placed = NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=placed)

def layers(x, w):
    def block(x, w):
        scores = jnp.einsum("bti,bsi->bts", x, x)
        return jnp.tanh(jnp.einsum("bts,bsi->bti", scores, x) @ w), None
    return jax.lax.scan(block, x, w)[0]

one = mesh_of()
totals(one, layers, array(one, P("fsdp"), 8, 256, 512), array(one, P(), 7, 512, 512))

def inner(x, w):
    return jax.lax.fori_loop(0, 5, lambda _, y: jnp.tanh(y @ w), x), None
totals(one, lambda x, w: jax.lax.scan(inner, x, w)[0],
       array(one, P("fsdp"), 512, 256), array(one, P(), 3, 256, 256))

two = mesh_of(num_slices=2)
split = jax.shard_map(
    lambda x: jax.lax.psum(x, "data"), mesh=two, in_specs=P(("data", "fsdp")),
    out_specs=P("fsdp"))
totals(two, split, array(two, P(("data", "fsdp")), 8, 1024))
"""


@pytest.fixture(scope="module")
def results() -> list:
    environment = {**os.environ, **child.ENVIRONMENT, "XLA_FLAGS": ""}
    root = str(pathlib.Path(child.__file__).parents[2])
    environment["PYTHONPATH"] = root
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    return [json.loads(line) for line in finished.stdout.splitlines()]


def test_products_in_a_scan(results):
    """Batch dimensions become dilated windows; the loop states no trip count."""
    flops, cycles, unresolved, _ = results[0]
    rows = 8 // 4
    assert unresolved == 0 and cycles > 0
    assert flops == 7 * 2 * rows * (2 * 256 * 256 * 512 + 256 * 512 * 512)


def test_nested_loops(results):
    flops, _, unresolved, _ = results[1]
    assert unresolved == 0
    assert flops == 3 * 5 * 2 * (512 // 4) * 256 * 256


def test_traffic_between_slices(results):
    """2 slices: a sum hands every device's row to the host's runtime once."""
    traffic = results[2][3]
    count, sent, between = traffic["all-reduce, slices"]
    assert count == 1 and sent == between
    # A row of 1,024 bf16, padded to the vector registers.
    assert 1024 * 2 <= between <= 2 * 1024 * 2
