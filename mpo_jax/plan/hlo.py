"""Reads the text of an HLO module: computations and their instructions.

Pure text in, nothing of XLA is imported. ``plan/schedule.py`` sums what is read,
``plan/loops.py`` finds trip counts.
"""

from __future__ import annotations

import dataclasses
import math
import re

_BITS = re.compile(r"[a-z]+?(\d+)")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")
_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_NAME = re.compile(r"%([\w.\-]+(?:#\d+)*)")  # x#2: element 2 of the tuple x
_CALLED = re.compile(r"\b(calls|to_apply|body|condition)=%?([\w.\-]+)")


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
            elif line == "}":  # kernels carry text with lines of their own
                current = None
        elif current is not None:
            found = _instruction(line)
            if found is not None:
                for operand in found.operands:
                    _spell_out(operand, current.instructions)
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


def _spell_out(operand: str, instructions: dict[str, Instruction]) -> None:
    """Add the ``get-tuple-element`` that ``x#2`` stands for, as older texts have it."""
    whole, mark, index = operand.rpartition("#")
    if not mark or operand in instructions:
        return
    _spell_out(whole, instructions)
    if whole in instructions:
        instructions[operand] = Instruction(
            name=operand,
            opcode="get-tuple-element",
            result=_elements(instructions[whole].result)[int(index)],
            operands=(whole,),
            literal="",
            rest=f", index={index}",
            root=False,
        )


def _elements(result: str) -> list[str]:
    """Types of a tuple's elements."""
    found, depth, start = [], 0, 1
    for match in re.compile(r"[(){}\[\],]").finditer(result, 1, len(result) - 1):
        mark = match.group()
        if mark == ",":
            if depth == 0:
                found.append(result[start : match.start()].strip())
                start = match.end()
        else:
            depth += 1 if mark in "({[" else -1
    return [*found, result[start:-1].strip()]


def _closing(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, start):
        depth += 1 if match.group() == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced parentheses in {text[:120]!r}")
