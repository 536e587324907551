"""What all hosts of a run must have in common, compared before anything compiles."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import jax

from mpo_jax import config as config_lib
from mpo_jax import fields
from mpo_jax.run import stages
from mpo_jax.utils import lease, peers, progress

_PACKAGES = (
    *("jax", "jaxlib", "libtpu", "orbax-checkpoint", "flax", "optax", "grain"),
    *("numpy", "transformers", "tokenizers", "pillow"),
)
_JAX = (
    *("jax_enable_x64", "jax_threefry_partitionable", "jax_default_prng_impl"),
    *("jax_default_matmul_precision", "jax_numpy_dtype_promotion"),
    *("jax_random_seed_offset", "jax_use_shardy_partitioner", "jax_disable_jit"),
)
"""What changes programs, or the numbers that come out of them."""
_SEEN_S = 30.0
"""How long a shared file system may take to show what the first host wrote."""


@contextlib.contextmanager
def alone(cfg: config_lib.RunConfig, workdir: str | pathlib.Path) -> Iterator[None]:
    """Hold the work directory; all hosts must see it, and be alike.

    Raises:
      ValueError: another run holds it, or a host differs; names host and field.
      TryAgain: a host does not come.
    """
    others = peers.others()
    with contextlib.ExitStack() as stack:
        token = ""
        if others is None or others.number == 0:
            holder = stack.enter_context(
                lease.held(workdir, tell=progress.console().print, lost=peers.end)
            )
            token = holder.token
        if others is not None:
            facts = facts_of_host() | facts_of_config(cfg)
            # The first host may wait for a dead run's lease.
            limit_s = cfg.hosts.connect_s + 2 * lease.STALE_S
            others.compare("start", facts, timeout_s=limit_s)
            token = others.first("workdir", {"token": token}, timeout_s=limit_s)[
                "token"
            ]
            _check_shared(workdir, token)
        yield


def compare_data(cfg: config_lib.RunConfig, data: stages.TrainingData) -> None:
    """Check that all hosts train on the same records in the same order.

    Raises:
      ValueError: a host differs; names host and field.
      TryAgain: a host does not come.
    """
    others = peers.others()
    if others is not None:
        index = hashlib.blake2b(data.index.hash.tobytes(), digest_size=8)
        found = {"index": index.hexdigest(), "pack plan": data.plan.fingerprint}
        others.compare("data", found, timeout_s=cfg.hosts.connect_s)


def facts_of_host() -> dict[str, Any]:
    """Sources, versions and devices of this process; JSON-able."""
    found: dict[str, Any] = {
        "sources of mpo_jax": source_hash(),
        "Python": platform.python_version(),
        "device kind": jax.local_devices()[0].device_kind,
        "number of local devices": jax.local_device_count(),
    }
    found |= {name: str(getattr(jax.config, name, None)) for name in _JAX}
    found |= {name: _flags(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _flags(name: str) -> str:
    """Flags of a compiler in the environment, but those that say where it dumps."""
    flags = os.environ.get(name, "").split()
    return " ".join(flag for flag in flags if not flag.startswith("--xla_dump_"))


def facts_of_config(cfg: config_lib.RunConfig) -> dict[str, Any]:
    """Every field of a config by its name; JSON-able."""
    flat = fields.flat(dataclasses.asdict(cfg))
    return {f"config.{name}": value for name, value in flat.items()}


@functools.cache
def source_hash() -> str:
    """Hash of all modules of this package, hex."""
    found = hashlib.blake2b(digest_size=8)
    root = pathlib.Path(__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + b"\0")
        found.update(path.read_bytes() + b"\0")
    return found.hexdigest()


def _check_shared(workdir: str | pathlib.Path, token: str) -> None:
    """Check that this host sees what the first one has written."""
    deadline = time.monotonic() + _SEEN_S
    while True:
        found = lease.read(workdir)
        if found is not None and found.token == token:
            return
        if time.monotonic() > deadline:
            raise ValueError(
                f"--workdir={workdir}: this host does not see the first one's "
                f"{lease.FILE} there. Name a directory that all hosts share, such as "
                "a mounted bucket (tpu_setup/README.md)"
            )
        time.sleep(0.5)
