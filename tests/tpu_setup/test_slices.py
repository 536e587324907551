"""The table of TPU slices against Cloud's pages, the compiler and our own recipes."""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from mpo_jax.utils import slices

# Cloud's own tables: accelerator type, topology, chips, VMs of the TPU API.
DOCUMENTED = [
    ("v4-8", "v4:2x2x1", 4, 1),
    ("v4-32", "v4:2x2x4", 16, 4),
    ("v4-512", "v4:4x8x8", 256, 64),
    ("v4-4096", "v4:8x16x16", 2048, 512),
    ("v5litepod-1", "v5e:1x1", 1, 1),
    ("v5litepod-4", "v5e:2x2", 4, 1),
    ("v5litepod-8", "v5e:2x4", 8, 1),
    ("v5litepod-16", "v5e:4x4", 16, 4),
    ("v5litepod-128", "v5e:8x16", 128, 32),
    ("v5litepod-256", "v5e:16x16", 256, 64),
    ("v5p-8", "v5p:2x2x1", 4, 1),
    ("v5p-64", "v5p:2x4x4", 32, 8),
    ("v5p-128", "v5p:4x4x4", 64, 16),
    ("v5p-4096", "v5p:8x16x16", 2048, 512),
    ("v5p-12288", "v5p:16x16x24", 6144, 1536),
    ("v6e-1", "v6e:1x1", 1, 1),
    ("v6e-8", "v6e:2x4", 8, 1),
    ("v6e-32", "v6e:4x8", 32, 8),
    ("v6e-64", "v6e:8x8", 64, 16),
    ("tpu7x-2", "tpu7x:1x1x1", 1, 1),
    ("tpu7x-128", "tpu7x:4x4x4", 64, 16),
]


@pytest.mark.parametrize("name, topology, chips, hosts", DOCUMENTED)
def test_rows_are_those_of_the_documentation(name, topology, chips, hosts):
    found = slices.lookup(name)
    assert found == slices.lookup(topology)
    assert (found.name, found.aot_name) == (name, topology)
    assert (found.chips, found.hosts) == (chips, hosts)
    assert found.devices == chips * (2 if found.generation == "tpu7x" else 1)


def test_every_row_is_consistent():
    table = slices.table()
    assert len({item.name for item in table}) == len(table)
    assert len({item.aot_name for item in table}) == len(table)
    for item in table:
        assert re.fullmatch(r"\d+x\d+(x\d+)?", item.topology), item
        assert item.shape == tuple(sorted(item.shape)) or item.topology == "2x2x1", item
        assert math.prod(item.shape) == item.chips, item
        counted = 1 if item.generation in ("v5e", "v6e") else 2
        assert int(item.name.rsplit("-", 1)[1]) == counted * item.chips, item
        assert math.prod(item.aot_options["chips_per_host_bounds"]) * item.hosts == (
            item.chips
        ), item


@pytest.mark.parametrize(
    "generation, image",
    [
        ("v4", "tpu-ubuntu2204-base"),
        ("v5e", "v2-alpha-tpuv5-lite"),
        ("v5p", "v2-alpha-tpuv5"),
        ("v6e", "v2-alpha-tpuv6e"),
        ("tpu7x", None),
    ],
)
def test_runtime_version(generation, image):
    found = [item for item in slices.table() if item.generation == generation]
    assert found and {item.runtime_version for item in found} == {image}


@pytest.mark.parametrize(
    "name, near",
    [
        ("v5e-16", "v5litepod-16 (v5e:4x4)"),  # the compiler's prefix, Cloud's size
        ("V6E-64", "v6e-64"),
        ("v6e-60", "v6e-64"),
        ("v5e:16x8", "v5litepod-128 (v5e:8x16)"),
        ("v4:8x8", "v4-128 (v4:4x4x4)"),
        ("v5p-63", "v5p-64"),
        ("v5p-0", "v5p-8"),
        ("v6e:32x32", "v6e-256"),  # the compiler takes it, nobody sells it
        ("v6e-99999999999999999999", "v6e-"),
        ("v5lite-16", "v5litepod-16"),
        ("trillium", "v6e-N"),
        ("", "v6e-N"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(name, near):
    with pytest.raises(ValueError, match="unknown TPU slice") as caught:
        slices.lookup(name)
    assert repr(name) in str(caught.value)
    assert near in str(caught.value).split("near: ")[1]


def test_command_line_needs_no_package(root: pathlib.Path):
    """qr.sh asks on machines with nothing but Python (-S: no packages)."""
    ask = [sys.executable, "-S", "-m", "mpo_jax.utils.slices"]
    kwargs: Any = dict(cwd=root, capture_output=True, text=True, timeout=60)
    found = subprocess.run([*ask, "v5e:4x4", "name"], check=True, **kwargs)
    assert found.stdout == "v5litepod-16\n"
    table = subprocess.run(ask, check=True, **kwargs).stdout
    assert len(table.splitlines()) == 1 + len(slices.table())
    for argv, word in (
        (["v6e-60"], "v6e-64"),
        (["tpu7x-8", "runtime_version"], "use GKE"),
    ):
        refused = subprocess.run([*ask, *argv], **kwargs)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert word in refused.stderr


def test_recipes_name_slices_that_exist(root: pathlib.Path):
    for path in sorted((root / "configs").glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        try:
            cfg = module.get_config()
        except TypeError:  # needs an argument: an ablation's name, a stage
            continue
        if getattr(cfg, "topology", ""):  # an evaluation has none
            found = slices.lookup(cfg.topology)
            assert cfg.rows.row_multiple % found.devices == 0, path


@pytest.mark.parametrize("page", ["tpu_setup/README.md", "docs/tpu.md"])
def test_pages_name_slices_that_exist(root: pathlib.Path, page):
    text = (root / page).read_text()
    named = re.findall(
        r"\b(?:v4|v5litepod|v5p|v6e|tpu7x)-\d+\b|\bv\w+:\d+x[\dx]+", text
    )
    assert len(named) > 5
    for name in named:
        slices.lookup(name)


def test_the_compiler_sees_the_same_devices_and_hosts():
    """libtpu describes a topology without a TPU; it comes with the ``tpu`` extra."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    code = """
from jax.experimental import topologies
from mpo_jax.utils import slices
for item in slices.table():
    if item.chips > 2048:
        continue
    devices = topologies.get_topology_desc(
        item.aot_name, platform="tpu", **item.aot_options
    ).devices
    hosts = len({device.process_index for device in devices})
    assert (len(devices), hosts) == (item.devices, item.hosts), (item, len(devices))
print("all agree")
"""
    env = {**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "all agree" in done.stdout, done.stderr[-2000:]
