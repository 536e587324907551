"""The seam check: chance where nothing tells the answers apart, a marker is found."""

from __future__ import annotations

import numpy as np
import pytest
import tiny_mmpr

from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.prefs import seam


def drawn(number: int, *, marker: float = 0.0, seed: int = 0):
    """Windows of one distribution; a share of rejected ones has a marker behind."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(number):
        before = tuple(rng.integers(0, 50, seam.BEFORE))
        chosen, other = (list(rng.integers(0, 50, seam.AFTER)) for _ in range(2))
        if rng.random() < marker:
            other[0] = 77
        pairs.append(
            tuple((*map(int, before), *map(int, side)) for side in (chosen, other))
        )
    return pairs


def test_equal_distributions_are_at_chance():
    held = [seam.check(drawn(300, seed=seed)).at_chance for seed in range(8)]
    assert sum(held) >= 6  # a 95 % interval


def test_a_planted_marker_is_found():
    sure = seam.check(drawn(200, marker=1.0))
    assert sure.accuracy > 0.99 and sure.low > 0.9 and not sure.at_chance
    assert sure.high <= 1 and sure.pairs == 200
    some = seam.check(drawn(400, marker=0.4, seed=1))
    assert 0.6 < some.accuracy < 0.85 and not some.at_chance


def test_a_question_cannot_be_recognised():
    """Answers that differ by pair alone, in tokens that no other pair has."""
    pairs = [
        ((10 * n,) * 4 + (10 * n + 1,) * 4, (10 * n,) * 4 + (10 * n + 2,) * 4)
        for n in range(100)
    ]
    assert seam.check(pairs).at_chance


def test_too_few_pairs_say_nothing():
    assert seam.check(drawn(seam.MIN_PAIRS - 1)) is None
    assert seam.check(drawn(seam.MIN_PAIRS)).pairs == seam.MIN_PAIRS


@pytest.fixture(scope="module")
def byte_tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("seam") / "tokenizer"
    return tokenizers.load_tokenizer(tiny_mmpr.write_tokenizer(path))


@pytest.mark.parametrize(
    "text, shared, wanted",
    [
        ("abcdefghij", 5, "bcdefghi"),
        ("abc", 1, "   a" + "bc  "),
        ("abcdef", 0, "    " + "abcd"),
        ("abcdef", 6, "cdef" + "    "),
    ],
)
def test_a_window_is_around_the_cut(byte_tokens, text, shared, wanted):
    def encode(text):
        return byte_tokens.encode(text, bos=False, start=False)

    found = seam.window(text, shared, encode, byte_tokens.decode)
    ids = tuple(-1 if c == " " else encode(c)[0] for c in wanted)
    assert found == ids


def test_a_sample_does_not_depend_on_the_order():
    names = [str(n) for n in range(100)]
    samples = []
    for order in (names, names[::-1]):
        windows = seam.Windows(most=10)
        for name in order:
            windows.add(name, (int(name),), (-int(name),))
        samples.append(windows.pairs())
    assert samples[0] == samples[1] and len(samples[0]) == 10
    assert all(chosen[0] == -rejected[0] for chosen, rejected in samples[0])
    kept = [chosen[0] for chosen, _ in samples[0]]
    assert kept != list(range(10)) and kept != list(range(90, 100))
