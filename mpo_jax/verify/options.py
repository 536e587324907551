"""Multiple choice: letters, texts and values of options."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from mpo_jax.verify import text as texts
from mpo_jax.verify.verdict import OPTION, RIGHT, UNDECIDED, WRONG, Truth, Verdict

Judge = Callable[[str, str], Verdict | None]

_OPTION_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefgh"
_ALONE = re.compile(r"[(\[{]?\s*([A-Za-z])\s*[)\]}]?\s*[.:,]?")
_HEADS = (
    # A dash before a digit is a sign, not a separator.
    re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]\s*(?:[:.,]|-(?!\S))?\s*(.+)", re.DOTALL),
    re.compile(r"([A-Za-z])\s*\)\s*(?:[:.,]|-(?!\S))?\s*(.+)", re.DOTALL),
    re.compile(r"([A-Z])\s*[.:,]\s*(.+)", re.DOTALL),
    re.compile(r"([a-z])\s*[.:]\s+(.+)", re.DOTALL),
    re.compile(r"([A-Z])\s+((?:because|since|as|for)\b.+)", re.DOTALL),
)
_LOOSE = re.compile(r"([A-Za-z])\s*(.+)", re.DOTALL)
_BEHIND = re.compile(r"(.+?)\s*[(\[]\s*([A-Z])\s*[)\]]", re.DOTALL)
_LETTERS = re.compile(r"(?<![\w'])([A-Z])(?![\w'])")
_ARTICLE = re.compile(r"(?<![\w'])A(?= (?!and |or )[a-z])|(?<![\w'])I(?= )")
_SEVERAL = re.compile(r"[(\[{]?\s*[A-Z](?:\s*(?:,|and|&|\s|和)?\s*[A-Z])*\s*[)\]}]?")
_MORE = re.compile(r"[A-Ha-h](?:\s*(?:[,;/&]|and|和|\s)\s*[A-Ha-h])*\s*[.]?")
"""Further letters of options, with nothing else."""
_LISTED = (
    re.compile(r"^[ \t]*\(?([A-Z])[.):：、．][ \t]*", re.MULTILINE),
    re.compile(r"(?<![\w(])\(([A-Z])\)\s*"),
)
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LONGEST = 20_000
"""Characters of a question, from its end, in which options are looked for."""
_DENIAL = re.compile(
    r"\b(?:not|isn't|wrong|incorrect|false|except|nor|neither|no|or)\b|不|错|非|或",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A letter that was read, and what stands beside it.

    Attributes:
      index: of the letter, A is 0.
      words: what else is said, unified; empty: nothing.
      upper: is it a capital?
    """

    index: int
    words: str
    upper: bool


def read(text: str) -> Choice | None:
    """The letter at the head of a unified text: ``B``, ``(b)``, ``B. cat``,
    ``B) cat``; None for words that begin with one (``A man``)."""
    if match := _ALONE.fullmatch(text):
        return _choice(match[1], "")
    for form in _HEADS:
        if match := form.fullmatch(text):
            return _choice(match[1], match[2])
    return None


def _read_said(said: str) -> Choice | None:
    """As `read`, or the one letter that a sentence ends in: ``The shape is (C)``."""
    choice = read(said)
    if choice is not None or len(letters(said)) > 1:
        return choice
    match = _ALONE.fullmatch(texts.predicate(said) or "")
    return _choice(match[1], "") if match and match[1].isupper() else None


def _choice(letter: str, words: str) -> Choice:
    return Choice(ord(letter.upper()) - ord("A"), words.strip(), letter.isupper())


def letters(text: str) -> frozenset[str]:
    """Capitals that stand alone in a unified text, articles apart."""
    return frozenset(_LETTERS.findall(_ARTICLE.sub(" ", text)))


def concerns(gold: str, truth: Truth) -> bool:
    """Is the unified true answer `gold` to be judged as an option?"""
    if truth.options or truth.kind == OPTION:
        return True
    alone = _ALONE.fullmatch(gold)
    # x is a variable; a to h are more often options than that
    return not truth.kind and alone is not None and alone[1] in _OPTION_LETTERS


def in_question(question: str) -> tuple[str, ...]:
    """Options that a question lists: ``A. red`` in lines, or ``(A) red (B) blue`` in
    one; empty where there are none, or their letters are not A, B, … in order.

    Of several lists the last counts: a question may quote another.
    """
    text = question[-_LONGEST:]
    for form in _LISTED:
        found = list(form.finditer(text))
        firsts = [number for number, label in enumerate(found) if label[1] == "A"]
        labels = found[firsts[-1] :] if firsts else []
        ends = [label.start() for label in labels[1:]] + [len(text)]
        said = [
            text[label.end() : end].strip()
            for label, end in zip(labels, ends, strict=False)
        ]
        named = "".join(label[1] for label in labels)
        if len(labels) > 1 and named == _ALPHABET[: len(labels)] and all(said):
            last = said.pop().split("\n")[0]  # what follows it is no option
            return (*said, last.strip())
    return ()


def compare(said: str, gold: str, truth: Truth, judge: Judge) -> Verdict | None:
    """Judge the unified answer `said` where `concerns(gold, truth)`.

    Args:
      judge: compares two unified texts, letters and options aside.

    Returns:
      A verdict; None: mathematics should compare `said` with `meant(gold, truth)`.
    """
    if not truth.options:
        return _compare_letters(said, gold, judge)
    options = unified(truth.options)
    several = _compare_several(said, gold, options)
    if several is not None:
        return several
    true = _indices(gold, options, judge)
    if not true:
        return _outside(said, gold, judge)
    if len(true) > 1:
        if texts.same(said, gold):
            return Verdict(RIGHT, "exact")
        return Verdict(UNDECIDED, "ambiguous_truth")
    return _compare_with_option(said, next(iter(true)), options, judge)


def unified(options: tuple[str, ...]) -> list[str]:
    """Texts of options, unified, without letters of their own (``A. cat``)."""
    plain = [texts.unify(texts.unwrap(option)) for option in options]
    choices = [read(option) for option in plain]
    if all(c is not None and c.index == at for at, c in enumerate(choices)):
        return [c.words or chr(ord("A") + c.index) for c in choices if c is not None]
    return plain


def meant(gold: str, truth: Truth) -> str | None:
    """Text of the option, as given, that the unified true answer `gold` names by its
    letter; None: it names none."""
    choice = read(gold)
    if choice is None or choice.index >= len(truth.options):
        return None
    return truth.options[choice.index]


def _compare_letters(said: str, gold: str, judge: Judge) -> Verdict | None:
    """Without the options' texts letters compare with letters alone."""
    true, answer = read(gold), _read_said(said)
    if true is None:
        return judge(said, gold)
    if len(letters(said)) > 1:
        return Verdict(UNDECIDED, "ambiguous")
    if answer is None:
        if true.words and texts.same(said, true.words):
            return Verdict(RIGHT, "option_text")
        return Verdict(UNDECIDED, "option_unknown")
    if _DENIAL.search(answer.words) or _MORE.fullmatch(answer.words):
        return Verdict(UNDECIDED, "ambiguous")
    if answer.index != true.index:
        return Verdict(WRONG, "option_letter")
    if answer.words and true.words and not texts.same(answer.words, true.words):
        return Verdict(UNDECIDED, "option_contradiction")
    return Verdict(RIGHT, "option_letter")


def _compare_several(said: str, gold: str, options: list[str]) -> Verdict | None:
    """Questions with several right options: ``AC``, ``A, C``; else None."""
    known = {chr(ord("A") + at) for at in range(len(options))}
    true, answer = _set_of_letters(gold), _set_of_letters(said)
    if len(true) < 2 or not true <= known or any(texts.same(gold, o) for o in options):
        return None
    if not answer:
        return Verdict(UNDECIDED, "option_unknown")
    return Verdict(RIGHT if answer == true else WRONG, "option_letters")


def _set_of_letters(text: str) -> frozenset[str]:
    if not _SEVERAL.fullmatch(text):
        return frozenset()
    found = [c for c in re.sub("and", "", text) if c.isalpha() and c.isascii()]
    return frozenset(found) if len(set(found)) == len(found) else frozenset()


def _indices(gold: str, options: list[str], judge: Judge) -> frozenset[int]:
    """Options that the true answer may name, by letter and by text."""
    choice = read(gold)
    named = frozenset[int]()
    if choice is not None and choice.index < len(options):
        if not choice.words or _matches(choice.words, options, judge) >= {choice.index}:
            named = frozenset({choice.index})
    if len(gold) == 1 and named:
        worded = _equal(gold, options) if gold.isupper() else frozenset[int]()
    else:
        worded = _matches(gold, options, judge)
    return named if named and (not worded or named <= worded) else named | worded


def _equal(words: str, options: list[str]) -> frozenset[int]:
    return frozenset(at for at, o in enumerate(options) if texts.same(words, o))


def _matches(words: str, options: list[str], judge: Judge) -> frozenset[int]:
    """Options that say what `words` say: in the same words, else by value."""
    equal = _equal(words, options)
    if equal:
        return equal
    verdicts = [judge(words, option) for option in options]
    return frozenset(at for at, v in enumerate(verdicts) if v is not None and v.right)


def _outside(said: str, gold: str, judge: Judge) -> Verdict | None:
    """The truth names no option: a letter beyond them, or another answer."""
    true, answer = read(gold), read(said)
    if true is not None and answer is not None and true.upper and not true.words:
        return _compare_letters(said, gold, judge)
    return judge(said, gold)


def _compare_with_option(
    said: str, true: int, options: list[str], judge: Judge
) -> Verdict | None:
    choice = _choice_of(said, options)
    equal = _equal(said, options)
    if choice is not None and not choice.words:
        if choice.index < len(options):
            both = equal if choice.index not in equal else frozenset[int]()
            return _decide(frozenset({choice.index}) | both, true, "option_letter")
        if equal:
            return _decide(equal, true, "option_text")
        outcome = WRONG if choice.upper else UNDECIDED
        return Verdict(outcome, "option_beyond")
    if choice is not None and not equal:
        return _compare_labelled(choice, true, options, judge)
    found = _matches(said, options, judge)
    if found:
        return _decide(found, true, "option_text" if equal else "option_value")
    if len(letters(said)) > 1 or len(_set_of_letters(said)) > 1:
        return Verdict(UNDECIDED, "ambiguous")
    if re.match(r"[A-Z] ", said):  # a letter, to mathematics a factor
        return Verdict(UNDECIDED, "ambiguous")
    if _ALONE.fullmatch(options[true]):  # a picture's letter: no value to compare
        return Verdict(UNDECIDED, "option_unknown")
    return judge(said, options[true])


def _choice_of(said: str, options: list[str]) -> Choice | None:
    """The letter in `said`; one that nothing sets off, or that stands behind, counts
    beside its own option's text alone."""
    choice = _read_said(said)
    if choice is not None:
        return choice
    for form, letter, words in ((_LOOSE, 1, 2), (_BEHIND, 2, 1)):
        match = form.fullmatch(said)
        if match is None:
            continue
        choice = _choice(match[letter], match[words])
        if choice.index in _equal(choice.words, options):
            return choice
    return None


def _compare_labelled(
    choice: Choice, true: int, options: list[str], judge: Judge
) -> Verdict:
    """A letter with words beside it, which must not be another option's."""
    found = _matches(choice.words, options, judge)
    if choice.index >= len(options):
        return Verdict(UNDECIDED, "option_beyond")
    if found:
        if choice.index in found:
            return _decide(frozenset({choice.index}), true, "option_letter")
        return Verdict(UNDECIDED, "option_contradiction")
    own = judge(choice.words, options[choice.index])
    if own is not None and own.outcome == WRONG:
        return Verdict(UNDECIDED, "option_contradiction")
    others = letters(choice.words) - {chr(ord("A") + choice.index)}
    if others or _DENIAL.search(choice.words) or _MORE.fullmatch(choice.words):
        return Verdict(UNDECIDED, "ambiguous")
    return _decide(frozenset({choice.index}), true, "option_letter")


def _decide(found: frozenset[int], true: int, rule: str) -> Verdict:
    if true not in found:
        return Verdict(WRONG, rule)
    return Verdict(RIGHT, rule) if len(found) == 1 else Verdict(UNDECIDED, "ambiguous")
