"""How a text is made comparable: widths, signs, LaTeX cosmetics, sentence dress.

Everything here takes a number of steps linear in the text's length, apart from the
removal of nested wrappers, of which there are at most ``_DEPTH``.
"""

from __future__ import annotations

import re
import unicodedata

_DEPTH = 8

# What NFKC would turn into something else: º into the letter o, ² into the digit 2.
_BEFORE = str.maketrans(
    {
        "º": "°",
        "˚": "°",
        "\u2212": "-",
        "\u2010": "-",
        "\u2011": "-",
        "\u2012": "-",
        "\u2236": ":",
        "’": "'",
        "‘": "'",
        "“": '"',
        "”": '"',
        "、": ",",
        "⋅": "·",
        "∙": "·",
        "\u200b": "",
        "\u200e": "",
        "\ufeff": "",
    }
)
_SUPER = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
_SUB = str.maketrans("₀₁₂₃₄₅₆₇₈₉₊₋", "0123456789+-")
_SUPERS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
_SUBS = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋]+")
_VULGAR = re.compile("[¼-¾⅐-⅞↉]")

# In this order; LaTeX on the left, one character or nothing on the right.
_COSMETICS = tuple(
    (re.compile(pattern), to)
    for pattern, to in (
        (
            r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|textstyle|limits)(?![a-zA-Z])",
            "",
        ),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[()\[\]]", ""),
        (r"\\!", ""),
        (r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~", " "),
        (r"\{,\}", ","),
        (r"(?:\{\})?\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))", "°"),
        (r"\\(?:textdegree|degree)(?![a-zA-Z])", "°"),
        (r"\\%", "%"),
        (r"\\(?:\$|textdollar(?![a-zA-Z])|dollar(?![a-zA-Z]))", "＄"),
        (r"\$", ""),
        ("＄", "$"),
        (r"\\[{]", "{"),
        (r"\\[}]", "}"),
        (r"\\times(?![a-zA-Z])", "×"),
        (r"\\cdot(?![a-zA-Z])", "·"),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\pi(?![a-zA-Z])", "π"),
        (r"\\infty(?![a-zA-Z])", "∞"),
        (r"\\leq?(?![a-zA-Z])", "≤"),
        (r"\\geq?(?![a-zA-Z])", "≥"),
        (r"\\neq?(?![a-zA-Z])", "≠"),
        (r"\\approx(?![a-zA-Z])", "≈"),
        (r"\\pm(?![a-zA-Z])", "±"),
        (r"\\cup(?![a-zA-Z])", "∪"),
        (r"(?:√|(?<![a-zA-Z\\])sqrt)\s?\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s?(\d+|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"\\lbrace(?![a-zA-Z])", "{"),
        (r"\\rbrace(?![a-zA-Z])", "}"),
    )
)
_NAMED = re.compile(
    r"\\(?:text|textbf|textrm|textit|textnormal|mathrm|mathbf|mathit|mathsf|mathbb"
    r"|operatorname|mbox|rm|bf)(?:\s*\{([^{}]*)\}|(?![a-zA-Z])\s)"
)
# The blank of "1, 234" stays, a list of two that "1,234" is not.
_IDLE_SPACE = re.compile(
    r" (?:(?<=\d )(?!\d)|(?<=[^\W\d_] )(?![^\W\d_])|(?<=[\W_] )(?<!\d, )"
    r"|(?<=\d, )(?!\d{3}(?!\d)))"
)
_SHORT_GROUP = re.compile(r"(\^|_|\\sqrt|\\frac|(?<=\\frac)\w|(?<=\\frac )\w)\{(\w)\}")
_SECOND_GROUP = re.compile(r"(\\frac(?:\w|\{[^{}]*\}))\{(\w)\}")

_LEAD = re.compile(
    r"(?:(?:so|thus|therefore|hence|then)\b\s*,?\s*)?"
    r"(?:(?:the|my|our)\s+)?(?:(?:final|correct|right|best)\s+)*"
    r"(?:answer|option|choice|result)\b(?:\s*(?:is|would be|should be)\b)?"
    r"(?:\s*(?:option|choice)\b)?\s*[:=]?\s*"
    r"|(?:it is|it's|that is|this is)\s+"
    r"|(?:所以|因此|故|那么)?,?\s*(?:我)?(?:最终|正确)?的?(?:答案|选项|结果)"
    r"(?:应该|应)?(?:是|为|选)?\s*:?\s*(?:选项?)?\s*"
    r"|(?:所以|因此|故)?,?\s*(?:应)?选(?:项|择)?\s*:?\s*",
    re.IGNORECASE,
)
_PREDICATE = re.compile(
    r"(?P<subject>[^\d=<>.!?]{1,120}?)(?:\s(?:is|are|was|were|equals)(?: equal to)?\s"
    r"|(?<=[\u4e00-\u9fff])(?:等于|共有|一共有|是|为|有)\s*)(?P<value>.+)"
)
_NO_SUBJECT = re.compile(
    r"\b(?:not|no|never|none|neither|nor|or|and|if|that|whether|unless|except|false|wrong"
    r"|incorrect|unlikely|maybe|perhaps|than|but|which|how|what|who)\b|n't\b"
    r"|[不没非无若如错或和与]",
    re.IGNORECASE,
)
_EMPHASIS = re.compile(r"\*\*|__|`")

_WORD = re.compile(r"[^\W\d_]+")
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan ln log exp sqrt frac max min gcd"
    " lcm mod pi deg dfrac tfrac cdot times".split()
)
_SHORT_WORDS = frozenset(
    "a i an as at be by do go he if in is it me my no of on or so to up us we all and"
    " any are but can for had has her him his how its may new nor not now off old one"
    " our out own per put she the too top two use was way who why yes yet you".split()
)
_MATHS_CHARACTERS = frozenset(" .,()[]{}+-*/^_!|=<>\\°×·÷±π∞≤≥≠∪")
# Two numbers in a row, a unit or an ordinal behind one, letters with stops between
# them, an operator without its right side, a range.
_SUBSCRIPT = re.compile(r"_(\w)")
_FRAGMENT = re.compile(
    r"\d \d|\d [a-zA-Z]{2}|\d(?:st|nd|rd|th)(?![a-z])|[a-zA-Z]\.[a-zA-Z]"
    r"|[+\-*/^_=×·÷,]$|^\d+ ?- ?\d+$"
)


def unwrap(text: str) -> str:
    r"""Without what surrounds an answer: bold, ``$…$``, ``\(…\)``, ``\boxed{…}``, a
    sentence's full stop. What the answer says is left as it is."""
    text = text.strip()
    for _ in range(_DEPTH):
        inner = _unwrap_once(text)
        if inner == text:
            break
        text = inner
    return text


def _unwrap_once(text: str) -> str:
    for opening, closing in (
        ("**", "**"),
        ("__", "__"),
        ("*", "*"),
        ("`", "`"),
        ("$$", "$$"),
        ("$", "$"),
        ("\\(", "\\)"),
        ("\\[", "\\]"),
        ('"', '"'),
        ("“", "”"),
    ):
        inner = text[len(opening) : len(text) - len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
        ):
            return inner.strip()
    for command in ("\\boxed", "\\fbox"):
        if text.startswith(command):
            start = len(text) - len(text[len(command) :].lstrip())
            if group_end(text, start) == len(text):
                return text[start + 1 : -1].strip()
    if text.startswith("{") and group_end(text, 0) == len(text) and "," not in text:
        return text[1:-1].strip()
    if text.endswith((".", "。", "．")) and not text.endswith(".."):
        return text[:-1].strip()
    return text


def group_end(text: str, start: int) -> int | None:
    """End (exclusive) of the group in braces that opens at `start`; None: it does not
    open there or is never closed. One pass; escaped braces do not count."""
    if text[start : start + 1] != "{":
        return None
    depth, at = 0, start
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return None


def widths(text: str) -> str:
    """One form of every character: NFKC, with fractions, powers and minus kept."""
    text = _VULGAR.sub(_vulgar, text.translate(_BEFORE))
    text = _SUPERS.sub(lambda m: "^{" + m[0].translate(_SUPER) + "}", text)
    text = _SUBS.sub(lambda m: "_{" + m[0].translate(_SUB) + "}", text)
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    text = re.sub(r"(^|[(\[{,=]) ?[–—](?=\d)", r"\1-", text)
    return re.sub(r"\s+", " ", text).strip()


def _vulgar(match: re.Match[str]) -> str:
    return " " + unicodedata.normalize("NFKC", match[0]).replace("\u2044", "/")


def unify(text: str) -> str:
    """`text` without cosmetics: `widths`, LaTeX's spaces, text commands and synonyms.

    Two texts that mean different things stay different.
    """
    text = _EMPHASIS.sub("", widths(text))
    for _ in range(_DEPTH):
        shorter = _NAMED.sub(lambda m: f" {m[1] or ''} ", text)
        if shorter == text:
            break
        text = shorter
    if len(re.findall(r"(?<!\\)\$", text)) == 1:  # no pair: money
        text = text.replace("$", "\\$") if "\\$" not in text else text
    for pattern, to in _COSMETICS:
        text = pattern.sub(to, text)
    return re.sub(r"\s+", " ", text).strip()


def without_lead(text: str) -> str:
    """A unified text without ``The answer is`` and the like in front."""
    match = _LEAD.match(text)
    rest = text[match.end() :].strip() if match else ""
    return unwrap(rest) if rest else text


def predicate(text: str) -> str | None:
    """``12 cm`` of ``The area is 12 cm``; None where a text is no such sentence, or
    one that may deny what it says."""
    match = _PREDICATE.fullmatch(text)
    if match is None or _NO_SUBJECT.search(match["subject"]):
        return None
    return unwrap(match["value"])


def squeeze(text: str) -> str:
    """A unified text without white space that means nothing, and with short groups
    bare: ``x ^ {2}`` is ``x^2``. Blanks between two digits or two letters stay."""
    text = _IDLE_SPACE.sub("", text)
    text = _SHORT_GROUP.sub(r"\1\2", text)
    return _SECOND_GROUP.sub(r"\1\2", text)


def is_words(text: str) -> bool:
    """Is a unified text plain language, whose case means nothing?"""
    if any(c in "\\^_=<>+*/|" for c in text):
        return False
    words = _WORD.findall(text)
    return bool(words) and max(map(len, words)) > 1


def words_key(text: str) -> str:
    """Plain language without case, articles in front and marks at the end."""
    text = re.sub(r"[\s\"'`]+", " ", text.casefold()).strip(" .,;:!?。")
    return re.sub(r"^(?:a|an|the) (?=\w)", "", text)


_LATEX = str.maketrans(
    {
        **{"×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi "},
        **{"∞": "\\infty ", "≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq "},
        **{"±": "\\pm ", "∪": "\\cup ", "°": "^{\\circ}"},
    }
)


_BARE_FUNCTION = re.compile(
    r"(?<![a-zA-Z\\])((?:arc)?(?:sin|cos|tan)|cot|sec|csc|ln|log|exp|pi)(?![a-zA-Z])"
)


def latex(text: str) -> str:
    """A unified text of mathematics as LaTeX, whose functions are commands."""
    return _BARE_FUNCTION.sub(r"\\\1 ", text).translate(_LATEX)


def same(one: str, other: str) -> bool:
    """Do two unified texts say the same in the same words?"""
    if squeeze(one) == squeeze(other):
        return True
    return is_words(one) and is_words(other) and words_key(one) == words_key(other)


def is_maths(text: str) -> bool:
    """Could mathematics read the whole of this unified text?

    It picks what it can read from a text, the 5 of ``5 a.m.``, so that everything
    must be of its kind: no words, no fragments, no ``10-12`` that may be a range.
    """
    text = _SUBSCRIPT.sub(r"_{\1}", text)  # \log_2 8: the 2 is no number before the 8
    bare = re.sub(r"\\[a-zA-Z]+", " ", text)
    if any(not (c.isalnum() or c in _MATHS_CHARACTERS) for c in bare):
        return False
    if _FRAGMENT.search(text):
        return False
    words = _WORD.findall(bare)
    if not all(_symbols(w) and (w.isascii() or w in "π") for w in words):
        return False
    if any(c.isdigit() or c in "\\+*/^=_π∞" for c in text):
        return True
    return (len(text) == 1 and text.isalpha()) or not _FUNCTIONS.isdisjoint(words)


def _symbols(word: str) -> bool:
    if len(word) == 1 or word in _FUNCTIONS:
        return True
    return len(word) <= 3 and word.lower() not in _SHORT_WORDS
