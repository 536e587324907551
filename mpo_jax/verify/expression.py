r"""Text of an answer to one mathematical expression, or to none.

A computer-algebra parser takes what it recognises and drops the rest: ``5, not 4`` is 4
to it, ``3(4)`` is a mixed number, ``10:45`` is 10. So structure (lists, intervals,
equations) is read here, and of what is left only a text in which every token is known
and whose meaning is one alone goes to the parser, in LaTeX that leaves it no choice.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata

MAX_DEPTH = 40
"""Brackets in brackets at most."""

LIST, SET = "", "{}"
"""Kinds of :class:`Many` beside ``()``, ``[]``, ``(]`` and ``[)``."""


class NoExpression(ValueError):
    """The text is not one expression, or may mean two things."""


@dataclasses.dataclass(frozen=True)
class Scalar:
    """A value: number, term or matrix.

    Attributes:
      latex: every decimal is a fraction, every product of a number is written out.
      places: digits behind the point where it is a lone decimal, else None.
      decimal: does it hold a decimal, which may have been rounded?
    """

    latex: str
    places: int | None = None
    decimal: bool = False


@dataclasses.dataclass(frozen=True)
class Many:
    """Several expressions; ``kind`` is the pair of brackets around them."""

    kind: str
    items: tuple[Form, ...]


@dataclasses.dataclass(frozen=True)
class Union:
    """Sets or intervals joined by a cup."""

    items: tuple[Form, ...]


@dataclasses.dataclass(frozen=True)
class Equation:
    """``left = right``; `name` where the left side is one: ``x``, ``f(x)``."""

    left: Scalar
    right: Form
    name: str = ""


@dataclasses.dataclass(frozen=True)
class Inequality:
    """``left < right`` (`strict`) or at most; those the other way are turned."""

    left: Scalar
    right: Scalar
    strict: bool


Form = Scalar | Many | Union | Equation | Inequality

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
    (r"\\[,;:! ]|~|\\q?quad(?![a-zA-Z])", " "),
    (r"\*\*", "^"),
    (r"\*", r"\\cdot "),
    (r"(?<![a-zA-Z\\])(pi|sqrt|sin|cos|tan|ln|log|infty)(?![a-zA-Z])", r"\\\1 "),
    (r"\\lvert|\\rvert|\\vert", "|"),
    (r"\\lbrace|\\\{", r"\\{"),
    (r"\\rbrace|\\\}", r"\\}"),
    (r"\\(?:operatorname)\s*\{([a-z]+)\}", r"\\\1 "),
)
_PLAINER = tuple((re.compile(a), b) for a, b in _PLAIN)

_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu "
    "nu xi rho sigma tau phi varphi chi psi omega Delta Gamma Theta Lambda Sigma Phi "
    "Psi Omega"
).split()
_FUNCTIONS = (
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp"
).split()
_COMMANDS = frozenset(
    [*_GREEK, *_FUNCTIONS]
    + "frac sqrt cdot times div pi infty pm binom lfloor rfloor lceil rceil".split()
    + "begin end le ge ne cup in".split()
)
_TOKEN = re.compile(
    r"\\(?:begin|end)\s*\{[pbv]?matrix\}"
    r"|\\[a-zA-Z]+|\\\{|\\\}|\\\\|\d+(?:\.\d+)?|\.\d+|[a-zA-Z]|[-+/^_()\[\]{}|!,;=<>&]"
    r"|\s+"
)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_OPEN = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}
_CLOSE = {")", "]", "}", r"\}"}
_NUMBER = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_NAME = re.compile(
    r"(?:[a-zA-Z]|\\(?:" + "|".join(_GREEK) + r"))"
    r"(?:_(?:\w|\{\w+\}))?(?:\([a-zA-Z](?:,[a-zA-Z])*\))?"
)


def form_of(text: str) -> Form:
    """Read a whole text as one expression.

    Raises:
      NoExpression: it is none, holds a word or an unknown command, or may mean two
        things; says which.
    """
    plain = _plain(text)
    _check_commas(plain)
    return _form(_tokens(plain))


def letters_of(text: str) -> set[str]:
    """Single letters that stand for something, case as written."""
    return {t for t in _TOKEN.findall(_plain(text)) if len(t) == 1 and t.isalpha()}


def has_bare_log(text: str) -> bool:
    r"""Is there a ``\log`` whose base is not written?"""
    return re.search(r"\\log(?![a-zA-Z])(?!\s*_)", _plain(text)) is not None


def _plain(text: str) -> str:
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
    if _NUMBER.fullmatch(token):
        if _NUMBER.fullmatch(before):
            raise NoExpression(f"{before} and {token} stand side by side")
        if before.isalpha() and not blank:
            raise NoExpression(f"{before}{token} is a name, a power or a product")


def _check_brackets(tokens: list[str]) -> None:
    open_: list[str] = []
    for i, token in enumerate(tokens):
        if token in _OPEN:
            open_.append(token)
            if len(open_) > MAX_DEPTH:
                raise NoExpression(f"more than {MAX_DEPTH} brackets in brackets")
        elif token in _CLOSE:
            if tokens[i - 1] in _OPEN:
                raise NoExpression("brackets hold nothing")
            # Half-open intervals close with the other bracket.
            last = open_.pop() if open_ else ""
            if token not in (_OPEN.get(last), {"(": "]", "[": ")"}.get(last)):
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


def _form(tokens: list[str]) -> Form:
    """Structure from the outside in."""
    parts = _split(tokens, (",", ";"))
    items = tuple(item for part in parts for item in _items(part))
    return items[0] if len(items) == 1 else Many(LIST, items)


def _items(tokens: list[str]) -> list[Form]:
    r"""One expression, or the two that a ``\pm`` stands for."""
    if not tokens:
        raise NoExpression("a part is empty")
    for reader in (_membership, _union, _bracketed):
        found = reader(tokens)
        if found is not None:
            return [found]
    if r"\pm" not in tokens:
        return [_relation(tokens) or _scalar(tokens)]
    if tokens.count(r"\pm") > 1:
        raise NoExpression(r"more than one \pm")
    both = [[sign if t == r"\pm" else t for t in tokens] for sign in "+-"]
    return [_relation(signed) or _scalar(signed) for signed in both]


def _split(tokens: list[str], at: tuple[str, ...]) -> list[list[str]]:
    """Parts of tokens between those of `at` that lie in no bracket."""
    parts: list[list[str]] = [[]]
    depth = 0
    for token in tokens:
        depth += (token in _OPEN or token.startswith("\\begin")) - (
            token in _CLOSE or token.startswith("\\end")
        )
        if depth == 0 and token in at:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts


def _check_commas(text: str) -> None:
    """Refuse what may be one number: ``1,234`` and ``0,5``; ``1, 234`` is a list."""
    if re.search(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)", text):
        raise NoExpression("a comma parts a list or thousands")
    if re.fullmatch(r"-?\d+,\d+", text):
        raise NoExpression("a comma is a point or parts a list")


def _membership(tokens: list[str]) -> Form | None:
    r"""``x \in S`` is S."""
    parts = _split(tokens, (r"\in",))
    if len(parts) == 1:
        return None
    if len(parts) > 2 or not _NAME.fullmatch("".join(parts[0])):
        raise NoExpression(r"\in is not behind one name")
    return _form(parts[1])


def _relation(tokens: list[str]) -> Form | None:
    """Equations, and inequalities; those that bound one name are intervals."""
    signs = ("=", "<", ">", r"\le", r"\ge", r"\ne")
    parts = _split(tokens, signs)
    if len(parts) == 1:
        return None
    depth_free = [t for t in _flat(tokens) if t in signs]
    if r"\ne" in depth_free:
        raise NoExpression(r"\ne says what something is not")
    if depth_free == ["="]:
        name = "".join(parts[0])
        is_name = _NAME.fullmatch(name) is not None
        return Equation(
            _scalar(parts[0]),
            _form(parts[1]) if is_name else _scalar(parts[1]),
            re.sub(r"[{}]", "", name) if is_name else "",
        )
    if "=" in depth_free or len(parts) > 3:
        raise NoExpression("several relations in one")
    return _bounds(parts, depth_free)


def _bounds(parts: list[list[str]], signs: list[str]) -> Form:
    if all(sign in (">", r"\ge") for sign in signs):
        parts, signs = parts[::-1], signs[::-1]
        signs = ["<" if sign == ">" else r"\le" for sign in signs]
    if any(sign not in ("<", r"\le") for sign in signs):
        raise NoExpression("relations of two directions")
    names = [_NAME.fullmatch("".join(part)) is not None for part in parts]
    infinity = Scalar(r"\infty")
    if len(parts) == 3 and names[1] and not (names[0] or names[2]):
        ends = _scalar(parts[0]), _scalar(parts[2])
        brackets = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
        return Many(brackets, ends)
    if len(parts) == 3:
        raise NoExpression("relations that bound no name")
    strict = signs[0] == "<"
    if names == [True, False]:
        ends = Scalar(r"-\infty"), _scalar(parts[1])
        return Many("()" if strict else "(]", ends)
    if names == [False, True]:
        return Many("()" if strict else "[)", (_scalar(parts[0]), infinity))
    return Inequality(_scalar(parts[0]), _scalar(parts[1]), strict)


def _flat(tokens: list[str]) -> list[str]:
    """Tokens that lie in no bracket."""
    found, depth = [], 0
    for token in tokens:
        depth -= token in _CLOSE
        if depth == 0:
            found.append(token)
        depth += token in _OPEN
    return found


def _union(tokens: list[str]) -> Form | None:
    parts = _split(tokens, (r"\cup",))
    if len(parts) == 1:
        return None
    items = tuple(_form(part) for part in parts)
    if not all(isinstance(item, Many) and item.kind for item in items):
        raise NoExpression(r"\cup joins what is no set")
    return Union(items)


def _bracketed(tokens: list[str]) -> Form | None:
    """What one pair of brackets holds, where that is several, or a set."""
    first, last = tokens[0], tokens[-1]
    if first not in ("(", "[", r"\{") or last not in (")", "]", r"\}"):
        return None
    inner = tokens[1:-1]
    if not _one_pair(tokens):
        return None
    parts = _split(inner, (",", ";"))
    if len(parts) == 1:
        return Many(SET, tuple(_items(inner))) if first == r"\{" else None
    kind = SET if first == r"\{" else first + last
    return Many(kind, tuple(item for part in parts for item in _items(part)))


def _one_pair(tokens: list[str]) -> bool:
    """Does the first bracket close with the last token?"""
    depth = 0
    for i, token in enumerate(tokens):
        depth += (token in _OPEN) - (token in _CLOSE)
        if depth == 0:
            return i == len(tokens) - 1
    return False


def _scalar(tokens: list[str]) -> Scalar:
    """A term, in LaTeX with one meaning."""
    if not tokens:
        raise NoExpression("a part is empty")
    if any(t in (",", ";", "=", "<", ">", r"\le", r"\ge", r"\in") for t in tokens):
        raise NoExpression("a list or a relation inside a term")
    decimals = [t for t in tokens if "." in t]
    bare = [t for t in tokens if t not in ("-", "+")]
    places = len(bare[0].partition(".")[2]) if bare == decimals else None
    return Scalar(_latex(tokens), places, bool(decimals))


def _latex(tokens: list[str]) -> str:
    tokens = _braced(tokens)
    _check_slashes(tokens)
    out: list[str] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        after_number = _NUMBER.fullmatch(before) is not None
        if after_number and token == r"\frac" and _is_mixed(tokens, i):
            # 2\frac12 is 2.5: a number, then a fraction of numbers below it.
            if i > 1 and tokens[i - 2] not in ("-", "+"):
                raise NoExpression("a mixed number inside a term")
            end = i + 7
            if len(tokens) > end:
                raise NoExpression("a mixed number inside a term")
            out[-1:] = ["(", before, "+", *tokens[i:end], ")"]
            break
        if after_number and token in ("(", "{", r"\frac", r"\sqrt", r"\binom"):
            out.append(r"\cdot")
        out.append(_exact(token))
    return " ".join(out)


def _exact(token: str) -> str:
    """A decimal as a fraction, so that nothing is rounded."""
    if "." not in token:
        return token
    whole, _, behind = token.partition(".")
    return rf"( \frac{{{int(whole + behind)}}}{{1{'0' * len(behind)}}} )"


def _is_mixed(tokens: list[str], i: int) -> bool:
    window = tokens[i + 1 : i + 7]
    return (
        len(window) == 6
        and [window[k] for k in (0, 2, 3, 5)] == ["{", "}", "{", "}"]
        and window[1].isdigit()
        and window[4].isdigit()
    )


def _check_slashes(tokens: list[str]) -> None:
    """Refuse ``1/2x``, which is x/2 or 1/(2x)."""
    for i, token in enumerate(tokens[:-2]):
        if token != "/":
            continue
        behind, then = tokens[i + 1], tokens[i + 2]
        joins = then.isalpha() or then.startswith("\\") or then in ("(", "{")
        if (behind.isalnum() or "." in behind) and joins:
            if then not in (r"\cdot", r"\times", r"\div", r"\pm", r"\cup"):
                raise NoExpression(f"{token}{behind}{then}: what is divided by?")


def _braced(tokens: list[str]) -> list[str]:
    r"""Braces around arguments that are written without: ``\frac12``, ``x^(n+1)``."""
    out: list[str] = []
    i = 0
    while i < len(tokens):
        token = tokens[i]
        i += 1
        out.append(token)
        wanted = {r"\frac": 2, r"\binom": 2, r"\sqrt": 1, "^": 1, "_": 1}.get(token, 0)
        if token == r"\sqrt" and i < len(tokens) and tokens[i] == "[":
            end = _closing(tokens, i)
            out += ["[", *_braced(tokens[i + 1 : end]), "]"]
            i = end + 1
        if token in (r"\frac", r"\binom") and i < len(tokens) and tokens[i].isdigit():
            if len(tokens[i]) == 2:  # \frac12
                tokens = [*tokens[:i], *tokens[i], *tokens[i + 1 :]]
            elif len(tokens[i]) > 2:
                raise NoExpression(f"{token}{tokens[i]} lacks braces")
        for _ in range(wanted):
            argument, i = _argument(tokens, i, token)
            out += ["{", *_braced(argument), "}"]
    return out


def _argument(tokens: list[str], i: int, of: str) -> tuple[list[str], int]:
    """Tokens of an argument without its brackets, and where it ends."""
    if i >= len(tokens):
        raise NoExpression(f"{of} lacks an argument")
    token = tokens[i]
    if token in ("{", "(") and not (of in (r"\frac", r"\binom") and token == "("):
        end = _closing(tokens, i)
        return tokens[i + 1 : end], end + 1
    if of == "^" and token == "-" and tokens[i + 1 : i + 2] not in ([], ["-"]):
        inner, end = _argument(tokens, i + 1, of)
        return ["-", *inner], end
    if of == r"\sqrt" and token.isdigit() and len(token) > 1:
        raise NoExpression(rf"\sqrt{token} lacks braces")
    if token.isalnum() or "." in token or token == r"\pi":
        return [token], i + 1
    raise NoExpression(f"{of}{token} lacks braces")


def _closing(tokens: list[str], i: int) -> int:
    """Where the bracket at `i` is closed."""
    depth = 0
    for k in range(i, len(tokens)):
        depth += (tokens[k] in _OPEN) - (tokens[k] in _CLOSE)
        if depth == 0:
            return k
    raise NoExpression(f"a {tokens[i]} is not closed")
