"""Sums up a scheduled HLO module: what one device executes, loops multiplied out.

The compiler's own cost analysis counts loop bodies once, so that a scanned network of
32 layers looks like one layer. Here the call graph is walked with the trip count of
every loop.

Counted: matrix products, written as ``dot`` or as ``convolution`` (the TPU compiler
turns every product into a convolution, batch dimensions into dilated windows), inside
fusions too; the scheduler's ``estimated_cycles``; collectives; kernels (custom calls),
whose inside is not visible here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mpo_jax.plan import loops
from mpo_jax.plan.hlo import Array, Computation, Instruction, Module

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
MOSAIC = "tpu_custom_call"
Kernel = tuple[str, tuple[int, ...]]
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NO_ESTIMATE = 2**62  # the largest integer stands where the scheduler has none
_CHANNEL = re.compile(r"\bchannel_id=(\d+)")
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}"
    r"|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))"
)


@dataclasses.dataclass
class Traffic:
    """Executions of one kind of collective.

    Attributes:
      count: executions.
      bytes: what one device sends over links in a ring, all executions.
      across_slices: the part of `bytes` that leaves the slice. There a device hands its
        data to the host's runtime, which does the rest.
    """

    count: float = 0.0
    bytes: float = 0.0
    across_slices: float = 0.0


@dataclasses.dataclass
class Totals:
    """What one device executes in one call of the module.

    Attributes:
      flops: of matrix products, two per multiply-add, padding of windows left out.
      cycles: sum of the scheduler's estimates.
      collectives: by kind.
      kernels: executions of Pallas kernels, by name and shape of the largest float
        operand (of attention: queries, all heads).
      unresolved: loops whose trip count was not found; they are counted once.
    """

    flops: float = 0.0
    cycles: float = 0.0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    kernels: dict[Kernel, float] = dataclasses.field(default_factory=dict)
    unresolved: tuple[str, ...] = ()

    def add(self, other: Totals, times: float) -> None:
        """Add `other`, executed `times` times."""
        self.flops += times * other.flops
        self.cycles += times * other.cycles
        for kind, traffic in other.collectives.items():
            total = self.collectives.setdefault(kind, Traffic())
            total.count += times * traffic.count
            total.bytes += times * traffic.bytes
            total.across_slices += times * traffic.across_slices
        for kernel, count in other.kernels.items():
            self.kernels[kernel] = self.kernels.get(kernel, 0.0) + times * count
        self.unresolved += other.unresolved


def totals(module: Module) -> Totals:
    """Sums over one execution of the entry computation.

    Of a conditional, the branch with most work is counted.
    """
    return _Walk(module).computation(module.entry, {})


class _Walk:
    def __init__(self, module: Module):
        self.module = module

    def computation(
        self, name: str, known: loops.Values, channels: set[str] | None = None
    ) -> Totals:
        """Totals of one execution.

        Args:
          known: integer elements of the parameter tuple that are known.
          channels: of collectives counted so far in this execution. An asynchronous
            collective stands in several fusions (its start, what runs beside it, its
            end), each time with the same channel.
        """
        result = Totals()
        computation = self.module.computations[name]
        channels = set() if channels is None else channels
        for item in computation.instructions.values():
            self._instruction(computation, item, known, result, channels)
        return result

    def _instruction(
        self,
        computation: Computation,
        item: Instruction,
        known: loops.Values,
        result: Totals,
        channels: set[str],
    ) -> None:
        cycles = _CYCLES.search(item.rest)
        if cycles and int(cycles.group(1)) < _NO_ESTIMATE:
            result.cycles += int(cycles.group(1))
        if item.opcode in ("dot", "convolution"):
            result.flops += product_flops(computation, item)
        elif item.opcode == "fusion" or item.opcode == "async-start":
            inner = self.computation(item.called("calls") or "", {}, channels)
            inner.cycles = 0.0  # the fusion's own estimate covers its inside
            result.add(inner, 1)
        elif item.opcode == "call":
            result.add(self.computation(item.called("to_apply") or "", {}), 1)
        elif item.opcode == "conditional":
            (names,) = _BRANCHES.findall(item.rest)
            branches = [
                self.computation(branch, {})
                for branch in re.findall(r"[\w.\-]+", " ".join(names))
            ]
            result.add(max(branches, key=lambda t: (t.flops, t.cycles)), 1)
        elif item.opcode == "while":
            self._loop(computation, item, known, result)
        elif item.opcode == "send":
            self._between_slices(computation, item, result)
        elif item.opcode == "custom-call":
            # Other targets are helpers of the compiler (buffers, assumptions).
            if f'custom_call_target="{MOSAIC}"' in item.rest:
                kernel = _kernel(computation, item)
                result.kernels[kernel] = result.kernels.get(kernel, 0.0) + 1
        else:
            kind = item.opcode.removesuffix("-start")
            channel = _CHANNEL.search(item.rest)
            if kind in COLLECTIVES and not (channel and channel.group(1) in channels):
                self._collective(computation, item, kind, result)
                if channel:
                    channels.add(channel.group(1))

    def _loop(
        self,
        computation: Computation,
        item: Instruction,
        known: loops.Values,
        result: Totals,
    ) -> None:
        body, condition = item.called("body") or "", item.called("condition") or ""
        loop = loops.Loop(self.module, computation, item, known)
        trips = loop.trip_count()
        inner = self.computation(body, loop.invariant())
        inner.add(self.computation(condition, {}), 1)
        result.add(inner, 1 if trips is None else trips)
        if trips is None:
            result.unresolved += (item.name,)

    def _collective(
        self, computation: Computation, item: Instruction, kind: str, result: Totals
    ) -> None:
        sources = [computation.instructions.get(name) for name in item.operands]
        size = sum(a.bytes for s in sources if s is not None for a in s.arrays)
        groups = replica_groups(item.rest)
        members = len(groups[0]) if groups else 0
        share = (members - 1) / members if members else 1.0
        factor = {
            "all-gather": members - 1 if members else 1.0,  # of every other's part
            "all-reduce": 2 * share,  # reduce-scatter, then all-gather
            "reduce-scatter": share,
            "all-to-all": share,
            "ragged-all-to-all": share,
        }.get(kind, 1.0)
        moved = size * factor
        traffic = result.collectives.setdefault(kind, Traffic())
        traffic.count += 1
        traffic.bytes += moved

    def _between_slices(
        self, computation: Computation, item: Instruction, result: Totals
    ) -> None:
        match = _MEGASCALE.search(item.rest)
        source = computation.instructions.get(item.operands[0])
        if match is None or source is None:
            return
        kind = match.group(1).lower().replace("_", "-") + ", slices"
        traffic = result.collectives.setdefault(kind, Traffic())
        size = sum(array.bytes for array in source.arrays)
        traffic.count += 1
        traffic.bytes += size
        traffic.across_slices += size


def _kernel(computation: Computation, item: Instruction) -> Kernel:
    """Name without its running number, and the shape of the largest float operand."""
    operands = [computation.instructions.get(name) for name in item.operands]
    arrays = [array for o in operands if o is not None for array in o.arrays]
    arrays = [array for array in arrays if re.match(r"bf|f\d", array.dtype)]
    largest = max(arrays, key=lambda a: math.prod(a.shape), default=Array("", ()))
    return re.sub(r"(\.(clone|\d+))+$", "", item.name), largest.shape


def product_flops(computation: Computation, item: Instruction) -> int:
    """FLOPs of a ``dot`` or ``convolution``, two per multiply-add."""
    left = computation.instructions[item.operands[0]].arrays[0].shape
    right = computation.instructions[item.operands[1]].arrays[0].shape
    output = item.arrays[0].shape
    if item.opcode == "dot":
        match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", item.rest)
        dims = match.group(1).split(",") if match else []
        return 2 * math.prod(output) * math.prod(left[int(d)] for d in dims if d)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", item.rest)
    if labels is None:
        raise ValueError(f"{item.name}: convolution without dim_labels")
    lhs, rhs, out = labels.groups()
    window = _window(item.rest)
    result = 2 * output[out.index("b")] * output[out.index("f")]
    result *= right[rhs.index("i")]
    for digit in sorted(set(lhs) - {"b", "f"}, key=int):
        result *= _valid_positions(
            inputs=left[lhs.index(digit)],
            outputs=output[out.index(digit)],
            kernel=right[rhs.index(digit)],
            **{name: values[int(digit)] for name, values in window.items()},
        )
    batches = re.search(r"batch_group_count=(\d+)", item.rest)
    # With grouped batches the sum runs over a group's share of the input's batch.
    return (
        result
        * (left[lhs.index("b")] // int(batches.group(1)))
        // output[out.index("b")]
        if batches
        else result
    )


class _Default(dict):
    def __init__(self, value: int, values: Sequence[int]):
        super().__init__(enumerate(values))
        self.value = value

    def __missing__(self, key: int) -> int:
        return self.value


def _window(rest: str) -> dict[str, Mapping[int, int]]:
    match = re.search(r"window=\{([^}]*)\}", rest)
    fields = dict(part.split("=") for part in match.group(1).split()) if match else {}

    def numbers(name: str) -> list[int]:
        return (
            [int(n.split("_")[0]) for n in fields[name].split("x")]
            if name in fields
            else []
        )

    return {
        "stride": _Default(1, numbers("stride")),
        "low": _Default(0, numbers("pad")),
        "base": _Default(1, numbers("lhs_dilate")),
        "dilation": _Default(1, numbers("rhs_dilate")),
    }


def _valid_positions(
    *,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    low: int,
    base: int,
    dilation: int,
) -> int:
    """Pairs (output, kernel position) that meet an input, not padding or a hole."""
    if kernel == 1 and low == 0 and base == 1 and (outputs - 1) * stride < inputs:
        return outputs
    place = (
        np.arange(outputs)[:, None] * stride - low + np.arange(kernel)[None] * dilation
    )
    inside = (place >= 0) & (place % base == 0) & (place // base < inputs)
    return int(inside.sum())


def replica_groups(rest: str) -> list[tuple[int, ...]]:
    """Groups of logical devices of a collective; empty where the text names none.

    Three spellings: explicit lists, an iota with transposition, and mesh axes.
    """
    match = re.search(r"(?:replica_groups|source_target_pairs)=(\S.*)", rest)
    if match is None:
        return []
    text = match.group(1)
    if text.startswith("{"):
        lists = re.match(r"\{(\{[\d,]*\}(?:,\{[\d,]*\})*)?\}", text)
        found = re.findall(r"\{([\d,]+)\}", lists.group(0)) if lists else []
        return [tuple(int(n) for n in part.split(",")) for part in found]
    iota = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if iota:
        shape, dims = _ints(iota.group(1)), _ints(iota.group(2))
        grid = np.arange(math.prod(dims)).reshape(dims)
        if iota.group(3):
            grid = grid.transpose(_ints(iota.group(3)))
        return [tuple(int(n) for n in row) for row in grid.reshape(shape)]
    mesh = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text)
    if mesh:
        return list(_mesh_groups(*mesh.groups()))
    return []


def _mesh_groups(axes: str, ids: str | None, over: str) -> Iterator[tuple[int, ...]]:
    sizes = {n: int(s) for n, s in re.findall(r"'([^']+)'=(\d+)", axes)}
    names, wanted = list(sizes), re.findall(r"'([^']+)'", over)
    grid = np.arange(math.prod(sizes.values()))
    if ids:
        order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", ids)
        if order is None:
            grid = np.asarray(_ints(ids))
        else:
            dims = _ints(order.group(1))
            grid = np.arange(math.prod(dims)).reshape(dims)
            if order.group(2):
                grid = grid.transpose(_ints(order.group(2)))
    grid = grid.reshape([sizes[name] for name in names])
    last = [names.index(name) for name in wanted]
    first = [i for i in range(len(names)) if i not in last]
    members = math.prod(sizes[name] for name in wanted)
    for row in grid.transpose(first + last).reshape(-1, members):
        yield tuple(int(n) for n in row)


def _ints(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
