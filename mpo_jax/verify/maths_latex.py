r"""Tokens of a term to LaTeX that leaves a parser no choice.

The algebra's parser takes ``(2)(3)`` for a mixed number, ``\cos x \cdot y`` for
cos(xy), ``x^2^3`` for x^6. So every product gets its sign, every function brackets,
every decimal becomes a fraction; what has two readings is refused.
"""

from __future__ import annotations

from mpo_jax.verify.maths_tokens import (
    CLOSE,
    FUNCTIONS,
    GREEK,
    NUMBER,
    OPEN,
    NoExpression,
    split,
)

_OPERATORS = frozenset(["+", "-", "/", r"\cdot", r"\times", r"\div"])
_JOINS = frozenset([*_OPERATORS, "(", "{", "[", "|", "!", "^", "_"]) - {"+", "-"}
"""Behind a function's argument without brackets: is it still a part of that?"""
_APPLIED = frozenset("fghpFGHP")
"""Letters that are functions where a bracket follows; others are factors."""
_VALUES = frozenset([*(f"\\{name}" for name in GREEK), r"\pi", r"\infty"])


def latex_of(tokens: list[str]) -> str:
    """LaTeX of a term.

    Raises:
      NoExpression: it lacks braces or a part, or may mean two things; says which.
    """
    mixed = _mixed(tokens)
    return " ".join(_product(tokens) if mixed is None else mixed)


def _mixed(tokens: list[str]) -> list[str] | None:
    r"""``2\frac12`` as a sum, where it is all there is but a sign."""
    sign = tokens[: tokens[0] in ("+", "-")]
    rest = tokens[len(sign) :]
    if len(rest) < 3 or not rest[0].isdigit() or rest[1] != r"\frac":
        return None
    part, end = _atom(rest, 1)
    plain = all(token.isdigit() or token in (r"\frac", "{", "}") for token in part)
    if not plain:
        return None
    if end != len(rest):
        raise NoExpression("a mixed number inside a term")
    return [*sign, "(", rest[0], "+", *part, ")"]


def _product(tokens: list[str]) -> list[str]:
    """A term, with a sign at every product."""
    out: list[str] = []
    i, value, divided = 0, False, False
    while i < len(tokens):
        token = tokens[i]
        if token in _OPERATORS:
            if not value and token not in ("+", "-"):
                raise NoExpression(f"{token} lacks what stands before it")
            out.append(token)
            i, value, divided = i + 1, False, token == "/"
            continue
        if token == "!" and value:
            out.append(token)
            i += 1
            continue
        if value:
            if divided:
                raise NoExpression(f"{token} behind a slash: what is divided by?")
            if tokens[i - 1].isdigit() and token == r"\frac":
                _refuse_mixed(tokens, i)
            out.append(r"\cdot")
        atom, i = _atom(tokens, i)
        out += atom
        value = True
    if not value:
        raise NoExpression("a term lacks its end")
    return out


def _refuse_mixed(tokens: list[str], i: int) -> None:
    part, _ = _atom(tokens, i)
    if all(token.isdigit() or token in (r"\frac", "{", "}") for token in part):
        raise NoExpression("a mixed number inside a term")


def _atom(tokens: list[str], i: int) -> tuple[list[str], int]:
    """The factor that begins at `i`, with its scripts, and where it ends."""
    token = tokens[i]
    if NUMBER.fullmatch(token):
        return _with_scripts([_exact(token)], tokens, i + 1)
    if token in _APPLIED and tokens[i + 1 : i + 2] == ["("]:
        end = _closing(tokens, i + 1)
        return [token, "(", *_product(tokens[i + 2 : end]), ")"], end + 1
    if token == "d":  # the parser joins it with what follows, as in dx
        if "".join(tokens[i + 1 : i + 2]).isalpha():
            raise NoExpression(f"d{tokens[i + 1]} is a product or a differential")
        return _with_scripts(["(", "d", ")"], tokens, i + 1)
    if token.isalpha() or token in _VALUES:
        return _with_scripts([token], tokens, i + 1)
    if token in ("(", "[", "{"):
        end = _closing(tokens, i)
        inner = ["(", *_product(tokens[i + 1 : end]), ")"]
        return _with_scripts(inner, tokens, end + 1)
    if token in (r"\frac", r"\binom"):
        return _with_arguments(tokens, i)
    if token == r"\sqrt":
        return _root(tokens, i)
    if token[1:] in FUNCTIONS:
        return _function(tokens, i)
    if token == r"\lfloor" or token == r"\lceil":
        return _enclosed(tokens, i, token.replace("l", "r", 1))
    if token == "|":
        return _enclosed(tokens, i, "|")
    if token.startswith(r"\begin"):
        return _matrix(tokens, i)
    raise NoExpression(f"{token} has no place here")


def _exact(number: str) -> str:
    """A decimal as a fraction, so that nothing is rounded."""
    if "." not in number:
        return number
    whole, _, behind = number.partition(".")
    return rf"( \frac{{{int(whole + behind)}}}{{1{'0' * len(behind)}}} )"


def _with_scripts(atom: list[str], tokens: list[str], i: int) -> tuple[list[str], int]:
    """A factor with the index and the exponent behind it, each once."""
    seen = set()
    while i < len(tokens) and tokens[i] in ("^", "_"):
        script = tokens[i]
        if script in seen or (script == "_" and "^" in seen):
            raise NoExpression(f"a second {script}, or an index behind a power")
        seen.add(script)
        argument, i = _argument(tokens, i + 1, script)
        atom = [*atom, script, "{", *_product(argument), "}"]
    return atom, i


def _with_arguments(tokens: list[str], i: int) -> tuple[list[str], int]:
    """A fraction or a binomial."""
    name, out = tokens[i], [tokens[i]]
    i += 1
    if i < len(tokens) and tokens[i].isdigit() and len(tokens[i]) > 1:
        if len(tokens[i]) > 2:
            raise NoExpression(f"{name}{tokens[i]} lacks braces")
        out += ["{", tokens[i][0], "}", "{", tokens[i][1], "}"]  # \frac12
        i += 1
    else:
        for _ in range(2):
            argument, i = _argument(tokens, i, name)
            out += ["{", *_product(argument), "}"]
    if tokens[i : i + 1] == ["^"]:
        raise NoExpression(f"{name} with an exponent lacks brackets")
    return out, i


def _root(tokens: list[str], i: int) -> tuple[list[str], int]:
    out = [tokens[i]]
    i += 1
    if tokens[i : i + 1] == ["["]:
        end = _closing(tokens, i)
        out += ["[", *_product(tokens[i + 1 : end]), "]"]
        i = end + 1
    argument, i = _argument(tokens, i, r"\sqrt")
    return _with_scripts([*out, "{", *_product(argument), "}"], tokens, i)


def _function(tokens: list[str], i: int) -> tuple[list[str], int]:
    """A function with its argument in brackets."""
    name = tokens[i]
    head, i = _with_scripts([name], tokens, i + 1)
    if tokens[i : i + 1] in (["("], ["{"]):
        end = _closing(tokens, i)
        inner = _product(tokens[i + 1 : end])
        i = end + 1
        if tokens[i : i + 1] in (["^"], ["_"], ["!"]):
            raise NoExpression(
                f"{name}(…){tokens[i]}: of the function or its argument?"
            )
        return [*head, "(", *inner, ")"], i
    start = i
    while i < len(tokens) and (
        NUMBER.fullmatch(tokens[i])
        or tokens[i].isalpha()
        or tokens[i] in _VALUES
        or tokens[i] in (r"\frac", r"\sqrt")
    ):
        _, i = _atom(tokens, i)
    if i == start or tokens[i : i + 1] and tokens[i] in _JOINS:
        raise NoExpression(f"{name} lacks brackets around its argument")
    return [*head, "(", *_product(tokens[start:i]), ")"], i


def _enclosed(tokens: list[str], i: int, close: str) -> tuple[list[str], int]:
    """An absolute value, a floor or a ceiling."""
    depth = 0
    for end in range(i + 1, len(tokens)):
        if depth == 0 and tokens[end] == close:
            inner = _product(tokens[i + 1 : end])
            return _with_scripts([tokens[i], *inner, close], tokens, end + 1)
        depth += (tokens[end] in OPEN) - (tokens[end] in CLOSE)
    raise NoExpression(f"a {tokens[i]} is not closed")


def _matrix(tokens: list[str], i: int) -> tuple[list[str], int]:
    ends = [k for k in range(i, len(tokens)) if tokens[k].startswith(r"\end")]
    begins = [k for k in range(i, len(tokens)) if tokens[k].startswith(r"\begin")]
    if not ends or len(begins) > 1 and begins[1] < ends[0]:
        raise NoExpression("a matrix that is not closed, or in a matrix")
    out = [tokens[i]]
    for r, row in enumerate(split(tokens[i + 1 : ends[0]], (r"\\",))):
        out += [r"\\"] * (r > 0)
        for c, cell in enumerate(split(row, ("&",))):
            out += ["&"] * (c > 0) + _product(cell)
    return [*out, tokens[ends[0]]], ends[0] + 1


def _argument(tokens: list[str], i: int, of: str) -> tuple[list[str], int]:
    """Tokens of an argument without its brackets, and where it ends."""
    if i >= len(tokens):
        raise NoExpression(f"{of} lacks an argument")
    token = tokens[i]
    if token == "{" or (token == "(" and of in ("^", r"\sqrt")):
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
        depth += (tokens[k] in OPEN) - (tokens[k] in CLOSE)
        if depth == 0:
            return k
    raise NoExpression(f"a {tokens[i]} is not closed")
