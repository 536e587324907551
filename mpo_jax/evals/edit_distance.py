"""Levenshtein distance, which graders use for want of a better idea."""

from __future__ import annotations


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and replacements of characters from one text to another.

    Myers' algorithm in Hyyrö's form: a column of the table is one whole number with a
    bit for each character, so that a long response costs its length alone.
    """
    if len(a) > len(b):
        a, b = b, a
    if not a:
        return len(b)
    places: dict[str, int] = {}
    for i, letter in enumerate(a):
        places[letter] = places.get(letter, 0) | 1 << i
    every, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    above, below, distance = every, 0, len(a)  # steps of +1, of -1 down a column
    for letter in b:
        same = places.get(letter, 0)
        diagonal = (((same & above) + above) ^ above) | same | below
        grows = below | (every & ~(diagonal | above))
        shrinks = above & diagonal
        distance += bool(grows & last) - bool(shrinks & last)
        grows = (grows << 1 | 1) & every
        shrinks = shrinks << 1 & every
        above = shrinks | (every & ~(diagonal | grows))
        below = grows & diagonal
    return distance


def nearest(text: str, choices: tuple[str, ...]) -> int:
    """Index of the choice that a text is nearest to; the first of several."""
    distances = [levenshtein(text, choice) for choice in choices]
    return distances.index(min(distances))
