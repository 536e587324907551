"""Trip counts of ``while`` loops, from the text of a module."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from mpo_jax.plan.hlo import Computation, Instruction, Module

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_SAME = (
    "copy",
    "bitcast",
    "convert",
    "reshape",
    "copy-start",
    "copy-done",
    "broadcast",
)

Values = Mapping[int, int]


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
        for index in sorted(_reads(self.condition)):
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
        self._values: dict[str, int | None] = {}

    def value(self, name: str) -> int | None:
        """Value of an integer scalar; None where it is none or depends on data."""
        if name not in self._values:
            item = self.computation.instructions.get(name)
            scalar = item is not None and _is_scalar(item)
            self._values[name] = self._value(item) if item and scalar else None
        return self._values[name]

    def _value(self, item: Instruction) -> int | None:
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


def _is_scalar(item: Instruction) -> bool:
    """Is the result one integer or truth value?"""
    return re.match(r"(?:[su]\d+|pred)\[(?:1(?:,1)*)?\]", item.result) is not None


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


def _reads(condition: Computation) -> set[int]:
    """Elements of the loop's tuple that the condition looks at."""
    return {
        _index(item)
        for item in condition.instructions.values()
        if item.opcode == "get-tuple-element"
        and _is_parameter(condition, item.operands[0])
    }
