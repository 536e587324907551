"""Who sees whom in a packed row: the static mask, said once.

A row is role-major: all prompts, then all chosen, then all rejected answers. Known at
compile time and the same for every row: a token sees no later one, and rejected answers
see no chosen one. What remains, that tokens see their own pair alone, is dynamic
(segment ids) and the back end's. In row order a response comes after every prompt, so
causality by index lets it see its own prompt.

Every back end takes the rule from :func:`visible`: as a whole mask, as a function of
indices (``splash.RoleMask``), or cut into pieces that leave out what nothing sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int

Roles = tuple[int, int, int]
"""``(T_p, T_c, T_r)``: tokens of a row's prompts, chosen and rejected answers."""


def visible(
    query: Int[np.ndarray, ...], key: Int[np.ndarray, ...], roles: Roles
) -> Bool[np.ndarray, ...]:
    """May a query at one index of the row see a key at another?

    Args:
      query, key: indices, broadcast against each other. Indices behind the row
        (padding) count as rejected.
    """
    prompt, chosen, _ = roles
    rejected = prompt + chosen
    hidden = (query >= rejected) & (key >= prompt) & (key < rejected)
    return (key <= query) & ~hidden


def dense_mask(roles: Roles) -> Bool[np.ndarray, "T T"]:
    """The whole mask (query, key).

    Worked example, roles (2, 2, 1)::

        p p c c r
        1 . . . .   p
        1 1 . . .   p
        1 1 1 . .   c
        1 1 1 1 .   c
        1 1 . . 1   r      rejected never sees chosen
    """
    index = np.arange(sum(roles))
    return visible(index[:, None], index[None, :], roles)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Neighbouring queries of one role, and all that any of them sees.

    Attributes:
      queries: their indices in the row.
      keys: indices of keys, in row order; one or two slices.
      mask: bool ``[t, s]``, of `queries` and the joined `keys`.
    """

    queries: slice
    keys: tuple[slice, ...]
    mask: Bool[np.ndarray, "t s"]


def pieces(roles: Roles, *, max_queries: int | None = None) -> Iterator[Piece]:
    """Cut a row into pieces that together are :func:`dense_mask`, in row order.

    Args:
      max_queries: queries of a piece at most; None takes a role whole.
    """
    prompts = slice(0, roles[0])
    start = 0
    for role, length in enumerate(roles):
        for first, last in equal_parts(length, max_queries):
            queries = slice(start + first, start + last)
            seen = slice(start, start + last)  # causal: no later key
            keys = (prompts, seen) if role and roles[0] else (seen,)
            index = np.concatenate([np.arange(s.start, s.stop) for s in keys])
            rows = np.arange(queries.start, queries.stop)
            mask = visible(rows[:, None], index[None, :], roles)
            yield Piece(queries, keys, mask)
        start += length


def equal_parts(length: int, most: int | None) -> list[tuple[int, int]]:
    """Bounds of a range's parts, as equal as can be, each at most `most` long."""
    number = -(-length // (most or max(length, 1)))
    bounds = np.linspace(0, length, number + 1).round().astype(int).tolist()
    return list(zip(bounds[:-1], bounds[1:], strict=True))
