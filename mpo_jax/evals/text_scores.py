"""How near one text is to another, as benchmarks of short answers measure it.

Every score is from 0 to 1, of texts as they come; nothing here knows a benchmark.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

from mpo_jax.evals import edit_distance

TOLERANCE = 0.05
"""Of relaxed accuracy, relative."""

THRESHOLD = 0.5
"""Of ANLS: less likeness is none."""


def likeness(answer: str, truth: str, threshold: float = THRESHOLD) -> float:
    """Normalised Levenshtein similarity, the L and S of ANLS.

    Lower case, runs of white space are one. 1 less the distance over the longer length,
    and 0 below `threshold`.
    """
    left, right = (" ".join(text.lower().split()) for text in (answer, truth))
    longer = max(len(left), len(right))
    if not longer:
        return 1.0
    # The distance is at least the difference in length; long answers end here.
    if 1 - abs(len(left) - len(right)) / longer < threshold:
        return 0.0
    found = 1 - edit_distance.levenshtein(left, right) / longer
    return found if found >= threshold else 0.0


def relaxed(answer: str, truth: str, tolerance: float = TOLERANCE) -> bool:
    """Relaxed accuracy: numbers within `tolerance` of the truth, else the same words.

    A percentage is its hundredth, on either side. A truth of 0, or of no number, wants
    the same text, case aside. Numbers are what Python takes for finite ones.
    """
    found, wanted = _number(answer), _number(truth)
    if found is not None and wanted:
        return abs(found - wanted) <= tolerance * abs(wanted)
    return answer.lower() == truth.lower()


def _number(text: str) -> float | None:
    try:
        if text.endswith("%"):
            value = float(text.rstrip("%")) / 100
        else:
            value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def exact(answer: str, truth: str) -> bool:
    """The same text, case and white space around it aside."""
    return answer.strip().lower() == truth.strip().lower()


def soft_accuracy(answer: str, truths: Sequence[str]) -> float:
    """VQA accuracy of normalised texts: one agrees with others who say the same.

    The mean, over the people asked, of a third per *other* one who says the same as the
    answer, 1 at most.
    """
    same = [truth == answer for truth in truths]
    count = sum(same)
    return sum(min(1.0, (count - mine) / 3) for mine in same) / len(truths)


_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32  # a flag stands for the count in the released code
_NUMBERS: dict[str, str] = dict(
    zip(
        "none zero one two three four five six seven eight nine ten".split(),
        "0 0 1 2 3 4 5 6 7 8 9 10".split(),
        strict=True,
    )
)
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've
hasn't haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am
mightn't mightn't've might've mustn't must've needn't not've o'clock oughtn't 'ow's'at
shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've
'twas wasn't we'd've we've weren't what'll what're what's what've when's where'd where's
where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""


def _with_one_left_out(word: str) -> list[str]:
    """A word without one of its apostrophes, for each of them."""
    return [word[:k] + word[k + 1 :] for k, mark in enumerate(word) if mark == "'"]


_CONTRACTIONS = {
    short: word for word in _CONTRACTED.split() for short in _with_one_left_out(word)
} | {"somebody'd": "somebodyd"}  # the other way round in the released table


def evalai(text: str, *, commas: bool = True) -> str:
    """A text as the VQA challenge compares it: EvalAI's normalisation, as released.

    Lower case; marks dropped, or made a space between letters; number words to ten as
    digits; no articles; apostrophes that are missing put in.

    Args:
      commas: first drop ``,`` and ``?`` and set ``'s`` apart, as the challenge's own
        code does and VLMEvalKit's does not.
    """
    if commas:
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    text = text.strip().replace("\n", " ").replace("\t", " ").strip()
    text = _without_marks(text)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words
                    if word not in _ARTICLES)  # fmt: skip


def _without_marks(text: str) -> str:
    decimal = _COMMA.search(text) is not None
    out = text
    for mark in _MARKS:
        at_an_edge = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if at_an_edge or decimal else " ")
    return _PERIOD.sub("", out, count=_MAX_PERIODS)


_WORD = re.compile(r"[^\W_]+(?:[.,]\d+)*", re.UNICODE)


def words_of(text: str) -> list[str]:
    """Words and numbers of a text in lower case, without articles and marks."""
    return [word for word in _WORD.findall(text.lower()) if word not in _ARTICLES]


def token_f1(answer: str, truth: str) -> float:
    """Harmonic mean of the shares of words that each text has in common with the other.

    Words as of :func:`words_of`, each counted as often as it stands there.
    """
    found, wanted = words_of(answer), words_of(truth)
    common = sum((collections.Counter(found) & collections.Counter(wanted)).values())
    if not common:
        return 0.0
    return 2 * common / (len(found) + len(wanted))


def contains_words(answer: str, truth: str) -> bool:
    """Do the words of the truth stand in the answer, in their order, side by side?"""
    found, wanted = words_of(answer), words_of(truth)
    return bool(wanted) and f" {' '.join(wanted)} " in f" {' '.join(found)} "
