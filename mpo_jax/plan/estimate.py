"""From a compiled step to seconds: a lower bound, and an estimate, not a measurement.

Method (``docs/planning.md``). Lower bound: the largest of three times, each of them
unavoidable: products at the chip's bf16 peak, arguments once through HBM, collective
traffic over all links at once. Estimate: the scheduler's cycles at the chip's clock,
plus attention kernels, which it does not see, at :data:`KERNEL_SHARE` of the peak;
never below the bound. Against the one published model with which the method was
compared it came within 5 %, partly because the share was chosen there; elsewhere take
it as ±25 % or worse.
"""

from __future__ import annotations

import dataclasses
import math

from mpo_jax import types
from mpo_jax.models import flops as flops_lib
from mpo_jax.models.config import InternVLConfig
from mpo_jax.plan import programs
from mpo_jax.utils import slices

NOT_MEASURED = "not measured on TPU"
KERNEL_SHARE = 0.40
"""Assumed share of the bf16 peak that attention kernels reach."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip (not core).

    Attributes:
      flops: bf16 FLOP/s.
      hbm: HBM bytes.
      bandwidth: HBM bytes/s.
      links: bytes/s over all inter-chip links, both directions together.
      clock: cycles/s of the matrix units.
    """

    flops: float
    hbm: float
    bandwidth: float
    links: float
    clock: float


# docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x}; v4: its page and arXiv 2304.01433
# (six links of 50 GB/s each way). JAX's table (get_tpu_info_for_chip of
# jax.experimental.pallas.tpu) agrees but for rounding and v5p's bandwidth (2,460 GB/s),
# where Cloud's figure is taken. Clocks: peak over operations per cycle of the matrix
# units; for v6e and tpu7x those are taken as 524,288 a core, an assumption.
CHIPS = {
    "v4": Chip(275e12, 32 * 2**30, 1228e9, 600e9, 1.05e9),
    "v5e": Chip(197e12, 16 * 2**30, 819e9, 400e9, 1.5e9),
    "v5p": Chip(459e12, 95 * 2**30, 2765e9, 1200e9, 1.75e9),
    "v6e": Chip(918e12, 32 * 2**30, 1638e9, 800e9, 1.75e9),
    "tpu7x": Chip(2307e12, 192 * 2**30, 7380e9, 1200e9, 2.2e9),
}


@dataclasses.dataclass(frozen=True)
class Workload:
    """What true rows hold, as shares of their budgets.

    Defaults are the means on pair lengths like MMPR's (see ``recipes.released_mpo``): a
    prompt of 1,565 tokens with 5.6 tiles, packed to these fills.

    Attributes:
      pair_prompt: mean prompt tokens of a pair, image tokens included.
      prompt, chosen, rejected, tiles: mean fill of each budget.
    """

    pair_prompt: float = 1565.0
    prompt: float = 0.96
    chosen: float = 0.77
    rejected: float = 0.72
    tiles: float = 0.94

    def __post_init__(self) -> None:
        if self.pair_prompt <= 0:
            raise ValueError(f"pair_prompt={self.pair_prompt} must be positive")
        for name in ("prompt", "chosen", "rejected", "tiles"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"fill of {name} must lie in (0, 1]")

    def pairs(self, shape: types.RowShape) -> float:
        """Mean pairs per row, at least one."""
        fitting = shape.prompt_tokens * self.prompt / self.pair_prompt
        return min(max(fitting, 1.0), shape.pairs)

    def counts(self, shape: types.RowShape) -> flops_lib.Counts:
        """Mean true counts of a row."""
        return flops_lib.of_totals(
            pairs=self.pairs(shape),
            prompt=shape.prompt_tokens * self.prompt,
            chosen=shape.chosen_tokens * self.chosen,
            rejected=shape.rejected_tokens * self.rejected,
            tiles=shape.tiles * self.tiles,
        )


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Figures of a step; FLOPs of all devices together, times in seconds.

    Attributes:
      useful: model FLOPs of the true tokens (what MFU counts).
      budget: the same formula for full rows, padding included.
      scheduled: products of the compiled program, kernels included; recomputation and
        padding are in it.
      kernels: the part of `scheduled` in attention kernels, by formula.
      products, memory, links: lower bounds of one device, by cause.
      bound: the largest of them.
      seconds: the estimate; 0 where the compiler gave no cycles.
      pairs: pairs of a batch.
      peak: bf16 FLOP/s of all chips.
    """

    useful: float
    budget: float
    scheduled: float
    kernels: float
    products: float
    memory: float
    links: float
    bound: float
    seconds: float
    pairs: float
    peak: float

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation at the estimated time."""
        return self.useful / (self.seconds * self.peak) if self.seconds else 0.0

    @property
    def mfu_bound(self) -> float:
        """Model FLOPs utilisation that the lower bound allows."""
        return self.useful / (self.bound * self.peak) if self.bound else 0.0

    @property
    def pairs_per_second(self) -> float:
        """Pairs per second at the estimated time."""
        return self.pairs / self.seconds if self.seconds else 0.0


# Products of one query-key pair: forward scores and values; dq: scores, their gradient,
# the query's; dkv: scores, their gradient, the key's, the value's.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def kernel_flops(
    kernels: tuple[tuple[str, tuple[int, ...], float], ...], shape: types.RowShape
) -> float:
    """FLOPs of attention kernels on one device.

    Splash kernels compute the blocks that the static mask shows: the role mask's share
    in the decoder, everything in the vision tower. The decoder's kernels are told by
    their length.

    Raises:
      ValueError: if a kernel is not known; its FLOPs would silently be missing.
    """
    total = 0.0
    for name, operand, count in kernels:
        kind = next((k for k in _PRODUCTS if f"_{k}" in name), None)
        if "splash" not in name or kind is None or len(operand) < 3:
            raise ValueError(
                f"kernel {name} {operand} is unknown; add its FLOPs to plan/estimate.py"
            )
        length, head = operand[-2:]
        squares = float(math.prod(operand[:-2])) * length**2
        if length >= shape.tokens:
            visible = flops_lib.of_budget(shape).visible
            squares = math.prod(operand[:-2]) * visible
        total += count * 2 * _PRODUCTS[kind] * squares * head
    return total


def estimate(
    case: programs.Case,
    compiled: programs.Compiled,
    model: InternVLConfig,
    *,
    workload: Workload,
    trained: flops_lib.Trained = flops_lib.ALL,
) -> Estimate:
    """Estimate a compiled case.

    Args:
      trained: what the run trains (``flops.of_run``).
    """
    sold = slices.lookup(case.topology)
    chip = CHIPS[sold.generation]
    shape = getattr(case.cfg.rows, case.shape).build()
    devices, chips = sold.devices * case.slices, sold.chips * case.slices
    share = chips / devices  # of a chip, per device
    true = workload.counts(shape) * case.rows
    whole = flops_lib.of_budget(shape) * case.rows

    def count(counts: flops_lib.Counts) -> float:
        if case.step == "reference":
            return flops_lib.forward(model, counts).total
        flops = flops_lib.training(model, counts, trained=trained).total
        if case.cfg.reference.mode in ("online", "moving"):
            flops += flops_lib.forward(model, counts).total
        return flops

    kernels = kernel_flops(compiled.kernels, shape)
    moved = sum(
        kind["bytes"] - kind["across_slices"] for kind in compiled.collectives.values()
    )
    kept = compiled.memory
    products = (compiled.flops + kernels) / (chip.flops * share)
    memory = (kept.params + kept.optimiser + kept.batch) / (chip.bandwidth * share)
    links = moved / (chip.links / 2 * share)
    bound = max(products, memory, links)
    seconds = 0.0
    if compiled.cycles:
        seconds = compiled.cycles / chip.clock
        seconds += kernels / (KERNEL_SHARE * chip.flops * share)
        seconds = max(seconds, bound)
    return Estimate(
        useful=count(true),
        budget=count(whole),
        scheduled=(compiled.flops + kernels) * devices,
        kernels=kernels * devices,
        products=products,
        memory=memory,
        links=links,
        bound=bound,
        seconds=seconds,
        pairs=true.pairs,
        peak=chip.flops * chips,
    )
