"""How tensors of the files become parameters of ours, and back, bit for bit.

A transform stands between one or more tensors and one or more parameters: a reshape, a
permutation, a split or a join, never arithmetic.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np

Shape = tuple[int, ...]
Arrays = tuple[np.ndarray, ...]


class Transform(Protocol):
    """Between tensors of the files and parameters of ours."""

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        """Shapes of the tensors in the files."""
        ...

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        """Shapes of our parameters, without the layer axis."""
        ...

    def to_parts(self, tensors: Arrays) -> Arrays: ...

    def to_hf(self, parts: Arrays) -> Arrays: ...


@dataclasses.dataclass(frozen=True)
class Move:
    """One to one: split the axes of a tensor, then permute them.

    Attributes:
      hf_shape: shape in the files.
      split_shape: the same with axes split, e.g. ``(3, heads, head_dim, width)``.
      order: permutation of the split axes that gives our parameter.
    """

    hf_shape: Shape
    split_shape: Shape
    order: Shape

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        return (self.hf_shape,)

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        return (tuple(self.split_shape[axis] for axis in self.order),)

    def to_parts(self, tensors: Arrays) -> Arrays:
        return (tensors[0].reshape(self.split_shape).transpose(self.order),)

    def to_hf(self, parts: Arrays) -> Arrays:
        back = tuple(int(axis) for axis in np.argsort(self.order))
        return (parts[0].transpose(back).reshape(self.hf_shape),)


@dataclasses.dataclass(frozen=True)
class Fused:
    """One tensor whose rows hold several parameters in turn (Phi-3).

    Attributes:
      moves: of each parameter, from its own rows.
    """

    moves: tuple[Move, ...]

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        rows = sum(move.hf_shape[0] for move in self.moves)
        return ((rows, *self.moves[0].hf_shape[1:]),)

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        return tuple(move.part_shapes[0] for move in self.moves)

    def to_parts(self, tensors: Arrays) -> Arrays:
        ends = np.cumsum([move.hf_shape[0] for move in self.moves])
        pieces = np.split(tensors[0], ends[:-1])
        return tuple(
            move.to_parts((piece,))[0]
            for move, piece in zip(self.moves, pieces, strict=True)
        )

    def to_hf(self, parts: Arrays) -> Arrays:
        pieces = [
            move.to_hf((part,))[0] for move, part in zip(self.moves, parts, strict=True)
        ]
        return (np.concatenate(pieces),)


@dataclasses.dataclass(frozen=True)
class Split:
    """Several tensors that are equal shares of one parameter's rows (native ViT).

    Attributes:
      whole: of the joined tensor.
      count: number of tensors.
    """

    whole: Move
    count: int

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        rows, *rest = self.whole.hf_shape
        return ((rows // self.count, *rest),) * self.count

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        return self.whole.part_shapes

    def to_parts(self, tensors: Arrays) -> Arrays:
        return self.whole.to_parts((np.concatenate(tensors),))

    def to_hf(self, parts: Arrays) -> Arrays:
        return tuple(np.split(self.whole.to_hf(parts)[0], self.count))


@dataclasses.dataclass(frozen=True)
class PackedHeads:
    """InternLM2's ``wqkv``: rows ``(K, G + 2, H)``, to queries, keys and values.

    Query head ``n = k * G + g`` is block ``g`` of group ``k``; key and value are the
    group's last two blocks.

    Attributes:
      heads: query heads ``N``.
      kv_heads: key/value heads ``K``.
      rest: axes after the rows: ``(width,)`` of a weight, ``()`` of a bias.
    """

    heads: int
    kv_heads: int
    head_dim: int
    rest: Shape

    @property
    def hf_shapes(self) -> tuple[Shape, ...]:
        return (((self.heads + 2 * self.kv_heads) * self.head_dim, *self.rest),)

    @property
    def part_shapes(self) -> tuple[Shape, ...]:
        kv = (*self.rest, self.kv_heads, self.head_dim)
        return ((*self.rest, self.heads, self.head_dim), kv, kv)

    def to_parts(self, tensors: Arrays) -> Arrays:
        groups = self.heads // self.kv_heads
        rows = (self.kv_heads, groups + 2, self.head_dim)
        blocks = tensors[0].reshape(*rows, *self.rest)
        blocks = np.moveaxis(blocks, (0, 1, 2), (-3, -2, -1))
        query = blocks[..., :groups, :].reshape(self.part_shapes[0])
        return query, blocks[..., groups, :], blocks[..., groups + 1, :]

    def to_hf(self, parts: Arrays) -> Arrays:
        query, key, value = parts
        groups = self.heads // self.kv_heads
        query = query.reshape(*self.rest, self.kv_heads, groups, self.head_dim)
        blocks = np.concatenate(
            [query, key[..., None, :], value[..., None, :]], axis=-2
        )
        blocks = np.moveaxis(blocks, (-3, -2, -1), (0, 1, 2))
        return (blocks.reshape(self.hf_shapes[0]),)
