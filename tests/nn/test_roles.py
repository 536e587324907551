"""The static mask: against a hand-written row, and alike in all its forms."""

from __future__ import annotations

import numpy as np
import pytest

from mpo_jax.nn import roles as roles_lib
from mpo_jax.nn import splash

ROLES = [
    (5, 4, 3),
    (7, 7, 7),
    (1, 1, 1),
    (6, 5, 0),  # one answer (SFT)
    (6, 0, 5),
    (9, 0, 0),  # an ordinary sequence
    (0, 4, 3),
    (0, 0, 5),
]


def by_role(roles: roles_lib.Roles) -> np.ndarray:
    """The rule in words, role by role: nothing of ``visible``'s arithmetic."""
    names = [name for name, n in zip("pcr", roles, strict=True) for _ in range(n)]
    sees = {"p": "p", "c": "pc", "r": "pr"}
    return np.array(
        [
            [key in sees[query] and s <= t for s, key in enumerate(names)]
            for t, query in enumerate(names)
        ]
    )


def test_worked_example():
    rows = "1.... 11... 111.. 1111. 11..1".split()
    expected = np.array([[cell == "1" for cell in row] for row in rows])
    np.testing.assert_array_equal(roles_lib.dense_mask((2, 2, 1)), expected)
    np.testing.assert_array_equal(by_role((2, 2, 1)), expected)


@pytest.mark.parametrize("max_queries", [None, 1, 2, 4])
@pytest.mark.parametrize("roles", ROLES, ids=str)
def test_all_forms_are_the_rule(roles, max_queries):
    expected = by_role(roles)
    total = len(expected)
    np.testing.assert_array_equal(roles_lib.dense_mask(roles), expected)

    joined = np.zeros((total, total), bool)
    stop = 0
    for piece in roles_lib.pieces(roles, max_queries=max_queries):
        assert piece.queries.start == stop  # in row order, without gaps
        stop = piece.queries.stop
        length = stop - piece.queries.start
        assert 0 < length <= (max_queries or total)
        keys = np.concatenate([np.arange(s.start, s.stop) for s in piece.keys])
        assert len(set(keys.tolist())) == len(keys)
        assert piece.mask.shape == (length, len(keys))
        assert piece.mask.any(axis=0).all()  # no key that nothing sees
        joined[piece.queries, keys] = piece.mask
    assert stop == total
    np.testing.assert_array_equal(joined, expected)

    every = slice(0, total)
    mask = splash.RoleMask(total + 3, roles)
    np.testing.assert_array_equal(mask[every, every], expected)
    assert not mask[every, slice(total, total + 3)].any()  # padding comes later


def test_a_role_whole_is_one_piece():
    found = list(roles_lib.pieces((6, 4, 3)))
    assert [piece.queries for piece in found] == [
        slice(0, 6),
        slice(6, 10),
        slice(10, 13),
    ]
    assert found[2].keys == (slice(0, 6), slice(10, 13))


@pytest.mark.parametrize(
    ("length", "most", "expected"),
    [
        (0, 4, []),
        (0, None, []),
        (5, None, [(0, 5)]),
        (8, 4, [(0, 4), (4, 8)]),
        (9, 4, [(0, 3), (3, 6), (6, 9)]),
    ],
)
def test_equal_parts(length, most, expected):
    assert roles_lib.equal_parts(length, most) == expected


def test_masks_are_equal_by_what_they_hide():
    """The kernel's cache goes by equality."""
    mask = splash.RoleMask(16, (6, 5, 4))
    assert mask == splash.RoleMask(16, (6, 5, 4))
    assert hash(mask) == hash(splash.RoleMask(16, (6, 5, 4)))
    assert mask != splash.RoleMask(16, (6, 4, 5))
    assert mask != splash.RoleMask(16, None)
