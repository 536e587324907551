r"""Tokens of a term to LaTeX that leaves a parser no choice.

Decimals become fractions, products of numbers get their sign, arguments their braces.
"""

from __future__ import annotations

from mpo_jax.verify.maths_tokens import CLOSE, NUMBER, OPEN, NoExpression


def latex_of(tokens: list[str]) -> str:
    """LaTeX of a term.

    Raises:
      NoExpression: it lacks braces, or may mean two things.
    """
    tokens = _braced(tokens)
    _check_slashes(tokens)
    out: list[str] = []
    for i, token in enumerate(tokens):
        before = tokens[i - 1] if i else ""
        after_number = NUMBER.fullmatch(before) is not None
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
        depth += (tokens[k] in OPEN) - (tokens[k] in CLOSE)
        if depth == 0:
            return k
    raise NoExpression(f"a {tokens[i]} is not closed")
