"""Reads a scheduled HLO module: what one device executes, loops multiplied out.

The compiler's own cost analysis counts loop bodies once, so that a scanned network of
32 layers looks like one layer. Here the call graph is walked with the trip count of
every loop. Pure text in, numbers out; nothing is compiled or imported from XLA.

Counted: matrix products, written as ``dot`` or as ``convolution`` (the TPU compiler
turns every product into a convolution, batch dimensions into dilated windows), inside
fusions too; the scheduler's ``estimated_cycles``; collectives; kernels (custom calls),
whose inside is not visible here.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_BITS = re.compile(r"[a-z]+?(\d+)")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+)")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}"
    r"|true_computation=%?([\w.\-]+), false_computation=%?([\w.\-]+))"
)
_SAME = (
    "copy",
    "bitcast",
    "convert",
    "reshape",
    "copy-start",
    "copy-done",
    "broadcast",
)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size without padding; token and opaque types are 0."""
        if self.dtype == "pred":
            return math.prod(self.shape)
        match = _BITS.match(self.dtype)
        return math.prod(self.shape) * int(match.group(1)) // 8 if match else 0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation; `rest` is everything after the operands."""

    name: str
    opcode: str
    result: str
    operands: tuple[str, ...]
    literal: str
    rest: str
    root: bool

    @property
    def arrays(self) -> tuple[Array, ...]:
        """Arrays of the result, a tuple's in order."""
        return tuple(
            Array(dtype, tuple(int(n) for n in dims.split(",") if n))
            for dtype, dims in _ARRAY.findall(self.result)
        )

    def called(self, kind: str) -> str | None:
        """Computation named by ``calls=``, ``body=`` and so on."""
        for found, name in _CALLED.findall(self.rest):
            if found == kind:
                return name
        return None


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions in schedule order."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        """What the computation returns."""
        for instruction in self.instructions.values():
            if instruction.root:
                return instruction
        raise ValueError(f"computation {self.name} has no ROOT; the text is cut off")


@dataclasses.dataclass(frozen=True)
class Module:
    """A parsed module."""

    entry: str
    computations: dict[str, Computation]


@dataclasses.dataclass
class Traffic:
    """Executions of one kind of collective.

    Attributes:
      count: executions.
      bytes: what one device sends over links in a ring, all executions.
      across_slices: the part of `bytes` in groups that span slices.
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
      kernels: custom calls by target, executions.
      unresolved: loops whose trip count was not found; they are counted once.
    """

    flops: float = 0.0
    cycles: float = 0.0
    collectives: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    kernels: dict[str, float] = dataclasses.field(default_factory=dict)
    unresolved: tuple[str, ...] = ()

    def add(self, other: Totals, times: float) -> None:
        """Add `other`, executed `times` times."""
        self.flops += times * other.flops
        self.cycles += times * other.cycles
        for kind, traffic in other.collectives.items():
            own = self.collectives.setdefault(kind, Traffic())
            own.count += times * traffic.count
            own.bytes += times * traffic.bytes
            own.across_slices += times * traffic.across_slices
        for target, count in other.kernels.items():
            self.kernels[target] = self.kernels.get(target, 0.0) + times * count
        self.unresolved += other.unresolved


def parse(text: str) -> Module:
    """Parse the text of a module.

    Raises:
      ValueError: if it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(_COMMENT.sub("", line)) if "{" in line else None
            if header:
                current = Computation(header.group(2), {})
                computations[current.name] = current
                entry = current.name if header.group(1) else entry
            elif line.startswith("}"):
                current = None
        elif current is not None:
            found = _instruction(line)
            if found is not None:
                current.instructions[found.name] = found
    if not entry:
        raise ValueError("no ENTRY computation; this is not the text of an HLO module")
    return Module(entry, computations)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    root, name, text = match.groups()
    text = _COMMENT.sub("", text) if "/*" in text else text
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    result, text = text[:end], text[end:].lstrip()
    opening = text.index("(")
    closing = _closing(text, opening)
    inside = text[opening + 1 : closing]
    return Instruction(
        name=name,
        opcode=text[:opening],
        result=result,
        operands=tuple(_NAME.findall(inside)),
        literal=inside,
        rest=text[closing + 1 :],
        root=bool(root),
    )


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:120]!r}")


def totals(module: Module, *, devices_per_slice: int | None = None) -> Totals:
    """Sums over one execution of the entry computation.

    Of a conditional, the branch with most work is counted.

    Args:
      devices_per_slice: logical devices per slice, to tell traffic across slices.
    """
    return _Walk(module, devices_per_slice).computation(module.entry, {})


Values = Mapping[int, int]


class _Walk:
    def __init__(self, module: Module, devices_per_slice: int | None):
        self.module = module
        self.devices_per_slice = devices_per_slice

    def computation(self, name: str, known: Values) -> Totals:
        """Totals of one execution.

        Args:
          known: integer elements of the parameter tuple that are known.
        """
        result = Totals()
        computation = self.module.computations[name]
        for item in computation.instructions.values():
            self._instruction(computation, item, known, result)
        return result

    def _instruction(
        self,
        computation: Computation,
        item: Instruction,
        known: Values,
        result: Totals,
    ) -> None:
        cycles = _CYCLES.search(item.rest)
        if cycles:
            result.cycles += int(cycles.group(1))
        if item.opcode in ("dot", "convolution"):
            result.flops += product_flops(computation, item)
        elif item.opcode == "fusion" or item.opcode == "async-start":
            inner = self.computation(item.called("calls") or "", {})
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
        elif item.opcode == "custom-call":
            (target,) = re.findall(r'custom_call_target="([^"]*)"', item.rest) or ["?"]
            result.kernels[target] = result.kernels.get(target, 0.0) + 1
        else:
            kind = item.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                self._collective(computation, item, kind, result)

    def _loop(
        self,
        computation: Computation,
        item: Instruction,
        known: Values,
        result: Totals,
    ) -> None:
        body, condition = item.called("body") or "", item.called("condition") or ""
        loop = Loop(self.module, computation, item, known)
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
        if self.devices_per_slice and any(
            len({d // self.devices_per_slice for d in group}) > 1 for group in groups
        ):
            traffic.across_slices += moved


class Loop:
    """Trip count of a ``while`` from its text.

    Start and limit are integers that the program states; the counter is what the
    condition reads and the body changes, by the same step in every iteration.
    """

    def __init__(
        self,
        module: Module,
        parent: Computation,
        item: Instruction,
        known: Values,
    ):
        self.module = module
        self.parent, self.item, self.known = parent, item, known
        self.body = module.computations[item.called("body") or ""]
        self.condition = module.computations[item.called("condition") or ""]
        self._start: dict[int, int | None] = {}

    def start(self, index: int) -> int | None:
        """Integer with which element `index` of the loop's tuple starts."""
        if index not in self._start:
            value = _Evaluator(self.module, self.parent, self.known.get)
            self._start[index] = value.element(self.item.operands[0], index)
        return self._start[index]

    def invariant(self) -> dict[int, int]:
        """Known elements that the body hands on unchanged."""
        root = self.body.root
        if root.opcode != "tuple":
            return {}
        found = {}
        for index, name in enumerate(root.operands):
            source = _through_copies(self.body, name)
            if source.opcode == "get-tuple-element" and _index(source) == index:
                if _is_parameter(self.body, source.operands[0]):
                    value = self.start(index)
                    if value is not None:
                        found[index] = value
        return found

    def trip_count(self) -> int | None:
        """Number of executions of the body, or None if the text does not tell."""
        stated = _TRIPS.search(self.item.rest)
        if stated:
            return int(stated.group(1))
        counter: int | None = None
        for index in sorted(_reads(self.module, self.condition)):
            before = self.start(index)
            after = self._after(index) if before is not None else None
            if before is not None and after is not None and after != before:
                if counter is not None:
                    return None
                counter = index
        if counter is None:
            return None
        start, after = self.start(counter), self._after(counter)
        assert start is not None and after is not None
        step = after - start

        def runs(iteration: int) -> bool | None:
            def value(index: int) -> int | None:
                if index == counter:
                    return start + iteration * step
                return self.start(index)

            evaluator = _Evaluator(self.module, self.condition, value)
            found = evaluator.value(self.condition.root.name)
            return None if found is None else bool(found)

        return _first_false(runs)

    def _after(self, index: int) -> int | None:
        """Element `index` after one iteration."""
        evaluator = _Evaluator(self.module, self.body, self.start)
        return evaluator.element(self.body.root.name, index)


def _first_false(runs: Callable[[int], bool | None]) -> int | None:
    """Smallest n for which a condition, true up to some point, no longer holds."""
    high = 1
    while high < 2**40:
        found = runs(high)
        if found is None:
            return None
        if not found:
            break
        high *= 2
    else:
        return None
    if not runs(0):
        return 0
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return high


class _Evaluator:
    """Integer value of an instruction, where constants and known inputs decide it."""

    def __init__(
        self,
        module: Module,
        computation: Computation,
        parameter_element: Callable[[int], int | None],
        parameters: Sequence[Callable[[], int | None]] = (),
    ):
        self.module, self.computation = module, computation
        self.parameter_element = parameter_element
        self.parameters = parameters

    def value(self, name: str) -> int | None:
        item = self.computation.instructions.get(name)
        if item is None:
            return None
        if item.opcode == "constant":
            return _constant(item.literal)
        if item.opcode in _SAME:
            return self.value(item.operands[0])
        if item.opcode == "parameter":
            number = int(item.literal)
            return self.parameters[number]() if number < len(self.parameters) else None
        if item.opcode == "get-tuple-element":
            return self.element(item.operands[0], _index(item))
        if item.opcode == "fusion":
            return self._inside(item).value(self._root(item))
        values = [self.value(operand) for operand in item.operands]
        if any(v is None for v in values):
            return None
        return _compute(item, [v for v in values if v is not None])

    def element(self, name: str, index: int) -> int | None:
        """Element `index` of a tuple."""
        item = self.computation.instructions.get(name)
        if item is None:
            return None
        if item.opcode == "parameter":
            return self.parameter_element(index)
        if item.opcode == "tuple":
            return self.value(item.operands[index])
        if item.opcode in _SAME or item.opcode == "optimization-barrier":
            return self.element(item.operands[0], index)
        if item.opcode == "fusion":
            return self._inside(item).element(self._root(item), index)
        return None

    def _inside(self, item: Instruction) -> _Evaluator:
        called = self.module.computations[item.called("calls") or ""]
        bound = [lambda n=operand: self.value(n) for operand in item.operands]
        return _Evaluator(self.module, called, lambda _: None, bound)

    def _root(self, item: Instruction) -> str:
        return self.module.computations[item.called("calls") or ""].root.name


def _compute(item: Instruction, values: list[int]) -> int | None:
    if item.opcode == "compare":
        left, right = values
        direction = re.search(r"direction=(\w+)", item.rest)
        return {
            "LT": left < right,
            "LE": left <= right,
            "GT": left > right,
            "GE": left >= right,
            "EQ": left == right,
            "NE": left != right,
        }[direction.group(1) if direction else "EQ"]
    operations: dict[str, Callable[..., int]] = {
        "add": lambda a, b: a + b,
        "subtract": lambda a, b: a - b,
        "multiply": lambda a, b: a * b,
        "minimum": min,
        "maximum": max,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "not": lambda a: int(not a),
        "negate": lambda a: -a,
        "select": lambda c, a, b: a if c else b,
    }
    operation = operations.get(item.opcode)
    return None if operation is None else operation(*values)


def _constant(literal: str) -> int | None:
    text = literal.strip("{} ")
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _index(item: Instruction) -> int:
    match = re.search(r"\bindex=(\d+)", item.rest)
    if match is None:
        raise ValueError(f"{item.name}: get-tuple-element without index")
    return int(match.group(1))


def _is_parameter(computation: Computation, name: str) -> bool:
    item = computation.instructions.get(name)
    return item is not None and item.opcode == "parameter"


def _through_copies(computation: Computation, name: str) -> Instruction:
    item = computation.instructions[name]
    while item.opcode in ("copy", "copy-start", "copy-done", "bitcast"):
        item = computation.instructions[item.operands[0]]
    return item


def _reads(module: Module, condition: Computation) -> set[int]:
    """Elements of the loop's tuple that the condition looks at."""
    del module
    return {
        _index(item)
        for item in condition.instructions.values()
        if item.opcode == "get-tuple-element"
        and _is_parameter(condition, item.operands[0])
    }


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
    def __init__(self, value: int, given: Sequence[int]):
        super().__init__(enumerate(given))
        self.value = value

    def __missing__(self, key: int) -> int:
        return self.value


def _window(rest: str) -> dict[str, Mapping[int, int]]:
    match = re.search(r"window=\{([^}]*)\}", rest)
    given = dict(part.split("=") for part in match.group(1).split()) if match else {}

    def numbers(name: str) -> list[int]:
        return (
            [int(n.split("_")[0]) for n in given[name].split("x")]
            if name in given
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
    mesh = re.match(r"mesh\[([^\]]*)\](?:, device_ids=\(([^)]*)\))? \{([^}]*)\}", text)
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
