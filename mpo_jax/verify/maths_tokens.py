r"""Text of an answer to tokens that are all known, or to none.

Several ways to write a thing become one; a word, an unknown command, or what may mean
two things is refused.
"""

from __future__ import annotations

import re
import unicodedata

MAX_DEPTH = 40
"""Brackets in brackets at most."""


class NoExpression(ValueError):
    """The text is not one expression, or may mean two things."""


_UNICODE = {
    **{"−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot "},
    **{"÷": r"\div ", "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "±": r"\pm "},
    **{"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "α": r"\alpha "},
    **{"β": r"\beta ", "λ": r"\lambda ", "²": "^{2}", "³": "^{3}"},
    **{"（": "(", "）": ")", "，": ","},
}
_TO_UNICODE = str.maketrans(_UNICODE)
_PLAIN = (  # (pattern, replacement), in this order
    (r"\\(?:left|right|[bB]igg?[lr]?)(?![a-zA-Z])\s*\.?", ""),
    (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
    (r"\\(?:leqslant|leq)(?![a-zA-Z])", r"\\le "),
    (r"\\(?:geqslant|geq)(?![a-zA-Z])", r"\\ge "),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"\\lt(?![a-zA-Z])", "<"),
    (r"\\gt(?![a-zA-Z])", ">"),
    (r"\\(?:displaystyle|limits)(?![a-zA-Z])", " "),
    (r"\\(?:mathrm|text|mathit|rm)\s*\{\s*(e|i|ln|log|sin|cos|tan)\s*\}", r" \1 "),
    (r"\\(?:text|mathrm)\s*\{\s*,?\s*(?:or|and)\s*\}", " , "),
    (r",?\s*(?<![a-zA-Z\\])(?:or|and)(?![a-zA-Z])\s*", " , "),
    (r"(\d)\s*(?:\{,\}|\\,|\\!\s*,\s*\\!|,\\!)\s*(?=\d{3}(?!\d))", r"\1"),
    (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\*\*", "^"),
    (r"\*", r"\\cdot "),
    (r"(?<![a-zA-Z\\])(pi|sqrt|sin|cos|tan|ln|log|infty)(?![a-zA-Z])", r"\\\1 "),
    (r"\\lvert|\\rvert|\\vert", "|"),
    (r"\\lbrace|\\\{", r"\\{"),
    (r"\\rbrace|\\\}", r"\\}"),
    (r"\\(?:operatorname)\s*\{([a-z]+)\}", r"\\\1 "),
)
_PLAINER = tuple((re.compile(a), b) for a, b in _PLAIN)

GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu "
    "nu xi rho sigma tau phi varphi chi psi omega Delta Gamma Theta Lambda Sigma Phi "
    "Psi Omega"
).split()
FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp"
).split()
_COMMANDS = frozenset(
    [*GREEK, *FUNCTIONS]
    + "frac sqrt cdot times div pi infty pm binom lfloor rfloor lceil rceil".split()
    + "begin end le ge ne cup in".split()
)
_TOKEN = re.compile(
    r"\\(?:begin|end)\s*\{[pbv]?matrix\}"
    r"|\\[a-zA-Z]+|\\\{|\\\}|\\\\|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]|[-+/^_()\[\]{}|!,;=<>&]"
    r"|\s+"
)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
OPEN = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
CLOSE = {")", "]", "}", r"\}"}
NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")


def tokens_of(text: str) -> list[str]:
    """All of a text in tokens.

    Raises:
      NoExpression: a part is not known, or may mean two things; says which.
    """
    text = plain(text)
    _check_commas(text)
    return _tokens(text)


def letters_of(text: str) -> set[str]:
    r"""Names that stand for something, case as written: letters and ``\Delta``."""
    tokens = _TOKEN.findall(plain(text))
    greek = {token[1:] for token in tokens if token[1:] in GREEK}
    return greek | {token for token in tokens if len(token) == 1 and token.isalpha()}


def has_bare_log(text: str) -> bool:
    r"""Is there a ``\log`` whose base is not written?"""
    return re.search(r"\\log(?![a-zA-Z])(?!\s*_)", plain(text)) is not None


def plain(text: str) -> str:
    """One way to write what has several, without the dollars around it."""
    text = text.strip().removesuffix(".").strip()
    for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        if (
            len(text) > len(left + right)
            and text.startswith(left)
            and text.endswith(right)
        ):
            text = text[len(left) : -len(right)].strip()
            break
    text = text.translate(_TO_UNICODE)
    if any(unicodedata.category(c).startswith("N") and not c.isascii() for c in text):
        text = unicodedata.normalize("NFKC", text)
    for pattern, plain in _PLAINER:
        text = pattern.sub(plain, text)
    return text.strip().removesuffix(".").strip()


def _tokens(text: str) -> list[str]:
    """All of a text in tokens that are known; blanks only where they part digits."""
    found, end, blank = [], 0, False
    for match in _TOKEN.finditer(text):
        if match.start() != end:
            break
        end, token = match.end(), match.group()
        if token.isspace():
            blank = True
            continue
        index = found[-2:-1] == ["_"]  # of log_2 8
        _check_token(token, "" if index or not found else found[-1], blank)
        found.append(token)
        blank = False
    if end != len(text):
        raise NoExpression(f"{text[end : end + 10]!r} is not known")
    if not found:
        raise NoExpression("nothing is there")
    _check_brackets(found)
    _check_words(text, found)
    return found


def _check_token(token: str, before: str, blank: bool) -> None:
    if token.startswith("\\") and token[1:].isalpha() and token[1:] not in _COMMANDS:
        raise NoExpression(f"{token} is not known")
    if token == "I":
        raise NoExpression("I may be a numeral, a current or the imaginary unit")
    if NUMBER.fullmatch(token):
        if NUMBER.fullmatch(before):
            raise NoExpression(f"{before} and {token} stand side by side")
        if before.isalpha() and not blank:
            raise NoExpression(f"{before}{token} is a name, a power or a product")


def _check_brackets(tokens: list[str]) -> None:
    open_: list[str] = []
    for i, token in enumerate(tokens):
        if token in OPEN:
            open_.append(token)
            if len(open_) > MAX_DEPTH:
                raise NoExpression(f"more than {MAX_DEPTH} brackets in brackets")
        elif token in CLOSE:
            if tokens[i - 1] in OPEN:
                raise NoExpression("brackets hold nothing")
            # Half-open intervals close with the other bracket.
            last = open_.pop() if open_ else ""
            if token not in (OPEN.get(last), {"(": "]", "[": ")"}.get(last)):
                raise NoExpression(f"a {token} closes nothing")
    if open_:
        raise NoExpression(f"a {open_[-1]} is not closed")


def _check_words(text: str, tokens: list[str]) -> None:
    """Letters in a row are a product only where there are few and some mathematics."""
    runs = re.findall(r"(?<![a-zA-Z\\])[a-zA-Z]{2,}", re.sub(r"\\[a-zA-Z]+", " ", text))
    if not runs or any(token.startswith("\\begin") for token in tokens):
        return
    for run in runs:  # abc and xyz are products, cat and not are words
        product = len(run) == 2 or (len(run) == 3 and run in _ALPHABET)
        if not product or all(t.isalpha() for t in tokens):
            raise NoExpression(f"{run!r} is a word")


def _check_commas(text: str) -> None:
    """Refuse what may be one number: ``1,234`` and ``0,5``; ``1, 234`` is a list."""
    if re.search(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)", text):
        raise NoExpression("a comma parts a list or thousands")
    if re.fullmatch(r"-?\d+,\d+", text):
        raise NoExpression("a comma is a point or parts a list")


def split(tokens: list[str], at: tuple[str, ...]) -> list[list[str]]:
    """Parts of tokens between those of `at` that lie in no bracket."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in OPEN or token.startswith("\\begin")) - (
            token in CLOSE or token.startswith("\\end")
        )
        if depth == 0 and token in at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def flat(tokens: list[str]) -> list[str]:
    """Tokens that lie in no bracket."""
    found, depth = [], 0
    for token in tokens:
        depth -= token in CLOSE
        if depth == 0:
            found.append(token)
        depth += token in OPEN
    return found
