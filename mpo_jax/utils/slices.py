"""TPU slices: what Cloud calls them, what they hold, what the compiler calls them.

The one table behind ``tpu_setup/`` and ahead-of-time planning. A slice has two names:
the accelerator type of Cloud (``v5litepod-16``) and generation with topology
(``v5e:4x4``). The number in the first counts chips for v5e and v6e, but TensorCores,
two a chip, for v4, v5p and tpu7x.

Only the standard library is loaded, so that a machine without JAX can ask:

  python3 -m mpo_jax.utils.slices v6e-64 runtime_version

Source: the pages "TPU v4", "v5e", "v5p", "v6e", "TPU7x" and "TPU software versions" of
docs.cloud.google.com/tpu. For v4, v5p and tpu7x Cloud sells more shapes than the common
ones here; the compiler accepts shapes that nobody sells.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import re
import sys
from collections.abc import Sequence
from typing import Any

from mpo_jax import fields


@dataclasses.dataclass(frozen=True)
class Generation:
    """A TPU generation.

    Attributes:
      name: as the compiler and our configs write it.
      prefix: as Cloud's accelerator types write it.
      cores_per_chip: what the number of an accelerator type counts per chip.
      devices_per_chip: JAX devices per chip.
      runtime_version: image of a TPU VM; None where the Cloud TPU API does not offer
        the generation (GKE or Compute Engine do).
      eight_chip_host: is 2x4 one virtual machine with all 8 chips?
      topologies: shapes in chips, the default one of each size.
    """

    name: str
    prefix: str
    cores_per_chip: int
    devices_per_chip: int
    runtime_version: str | None
    eight_chip_host: bool
    topologies: tuple[str, ...]


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_BELOW_CUBE = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")
_CUBES = ("4x4x4", "4x4x8", "4x4x12", "4x8x8")

GENERATIONS = (
    Generation(
        "v4",
        "v4",
        cores_per_chip=2,
        devices_per_chip=1,
        runtime_version="tpu-ubuntu2204-base",
        eight_chip_host=False,
        topologies=_BELOW_CUBE + _CUBES + ("8x8x8", "8x8x12", "8x8x16", "8x16x16"),
    ),
    Generation(
        "v5e",
        "v5litepod",
        cores_per_chip=1,
        devices_per_chip=1,
        runtime_version="v2-alpha-tpuv5-lite",
        eight_chip_host=True,
        topologies=_FLAT,
    ),
    Generation(
        "v5p",
        "v5p",
        cores_per_chip=2,
        devices_per_chip=1,
        runtime_version="v2-alpha-tpuv5",
        eight_chip_host=False,
        topologies=_BELOW_CUBE
        + _CUBES
        + ("4x8x12", "8x8x8", "8x8x12", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    ),
    Generation(
        "v6e",
        "v6e",
        cores_per_chip=1,
        devices_per_chip=1,
        runtime_version="v2-alpha-tpuv6e",
        eight_chip_host=True,
        topologies=_FLAT,
    ),
    Generation(
        "tpu7x",
        "tpu7x",
        cores_per_chip=2,
        devices_per_chip=2,
        runtime_version=None,
        eight_chip_host=False,
        topologies=("1x1x1",)
        + _BELOW_CUBE
        + _CUBES
        + ("4x8x12", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24"),
    ),
)


@dataclasses.dataclass(frozen=True)
class Slice:
    """One size of one generation, as Cloud sells it.

    Attributes:
      name: accelerator type, e.g. ``v5litepod-16``.
      generation: e.g. ``v5e``.
      topology: chips along each dimension, e.g. ``4x4``.
      chips: number of chips.
      hosts: virtual machines of the Cloud TPU API, one process each. (GKE, and so xpk,
        gives the 8 chips of v5e and v6e as two machines with 4.)
      devices: JAX devices.
      runtime_version: see :class:`Generation`.
    """

    name: str
    generation: str
    topology: str
    chips: int
    hosts: int
    devices: int
    runtime_version: str | None

    @property
    def shape(self) -> tuple[int, ...]:
        """Chips along each dimension."""
        return tuple(int(size) for size in self.topology.split("x"))

    @property
    def aot_name(self) -> str:
        """Name for ``jax.experimental.topologies.get_topology_desc``."""
        return f"{self.generation}:{self.topology}"

    @property
    def aot_options(self) -> dict[str, Any]:
        """Further arguments of ``get_topology_desc`` that describe this slice.

        Without them the compiler takes v4's two cores as two devices, an 8-chip host as
        two hosts, and every link as open at the ends: a full cube in three dimensions,
        or 16 chips along a dimension in two, closes to a ring.
        """
        if self.chips == 1:
            bounds = (1, 1, 1)
        elif self.chips == 8 and self.hosts == 1:
            bounds = (2, 4, 1)
        else:
            bounds = (2, 2, 1)
        if len(self.shape) == 3:
            wrap = (all(size % 4 == 0 for size in self.shape),) * 3
        else:
            wrap = (*(size == 16 for size in self.shape), False)
        options: dict[str, Any] = {"chips_per_host_bounds": bounds, "wrap": wrap}
        if self.generation == "v4":
            options["chip_config_name"] = "megacore"
        return options


@functools.cache
def table() -> tuple[Slice, ...]:
    """All slices, by generation and size."""
    return tuple(
        _slice(generation, topology)
        for generation in GENERATIONS
        for topology in generation.topologies
    )


def _slice(generation: Generation, topology: str) -> Slice:
    chips = math.prod(int(size) for size in topology.split("x"))
    whole = chips == 8 and generation.eight_chip_host
    return Slice(
        name=f"{generation.prefix}-{chips * generation.cores_per_chip}",
        generation=generation.name,
        topology=topology,
        chips=chips,
        hosts=1 if whole else max(1, chips // 4),
        devices=chips * generation.devices_per_chip,
        runtime_version=generation.runtime_version,
    )


def lookup(name: str) -> Slice:
    """Slice of this accelerator type (``v6e-64``) or topology (``v6e:8x8``).

    Raises:
      ValueError: if the table has no such slice; lists near names.
    """
    for item in table():
        if name in (item.name, item.aot_name):
            return item
    raise ValueError(f"unknown TPU slice {name!r}; near: {', '.join(_near(name))}")


def _near(name: str) -> list[str]:
    """Sizes of the same generation nearest to `name`, else the names most like it."""
    prefix, size = (re.split("[-:]", name.lower(), maxsplit=1) + [""])[:2]
    numbers = [int(number) for number in re.findall(r"\d{1,6}", size)]
    for generation in GENERATIONS:
        if prefix not in (generation.prefix, generation.name):
            continue
        wanted = math.prod(numbers) if numbers and 0 not in numbers else 1
        if ":" not in name:
            wanted /= generation.cores_per_chip
        sizes = [item for item in table() if item.generation == generation.name]
        sizes.sort(key=lambda item: abs(math.log(item.chips / wanted)))
        return [f"{item.name} ({item.aot_name})" for item in sizes[:4]]
    known = [spelt for item in table() for spelt in (item.name, item.aot_name)]
    return fields.nearest(name.lower(), known, n=4) or [
        f"{generation.prefix}-N" for generation in GENERATIONS
    ]


FIELDS = tuple(field.name for field in dataclasses.fields(Slice)) + ("aot_name",)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, one slice, or one of its fields; 2 on an unknown name."""
    parser = argparse.ArgumentParser(prog="slices", description="TPU slices.")
    parser.add_argument("name", nargs="?", help="v6e-64 or v6e:8x8; none prints all")
    parser.add_argument("field", nargs="?", choices=FIELDS)
    args = parser.parse_args(argv)
    try:
        found = table() if args.name is None else (lookup(args.name),)
        if args.field is not None:
            value = getattr(found[0], args.field)
            if value is None:
                raise ValueError(
                    f"{args.name}: no {args.field}; the Cloud TPU API does not offer "
                    "this generation, use GKE (tpu_setup/xpk.sh)"
                )
            sys.stdout.write(f"{value}\n")
            return 0
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    line = "{:14} {:14} {:>6} {:>6} {:>8}  {}\n"
    sys.stdout.write(line.format(*"name aot_name chips hosts devices runtime".split()))
    for item in found:
        runtime = item.runtime_version or "- (GKE only)"
        counts = (item.chips, item.hosts, item.devices)
        sys.stdout.write(line.format(item.name, item.aot_name, *counts, runtime))
    return 0


if __name__ == "__main__":
    sys.exit(main())
