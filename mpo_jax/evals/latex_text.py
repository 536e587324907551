r"""LaTeX answers made alike as texts, as the graders of MATH and MATH-Vision do.

Both descend from one list of replacements; what they share is here. Nothing is parsed:
``\frac12`` and ``\frac{1}{2}`` become one text, ``1/2`` and ``2/4`` do not.
"""

from __future__ import annotations

import re

_REPLACED = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\")),
    *(("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)
_LOOSE_ROOT = re.compile(r"\\sqrt(?!\{)(.)", re.DOTALL)
_SLASH = re.compile(r"(-?\d+)/(-?\d+)", re.ASCII)


def replaced(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """A text with replacements made one after the other."""
    for old, new in pairs:
        text = text.replace(old, new)
    return text


def plain(text: str) -> str:
    """Without decoration, the unit on its right, and with a zero before a point."""
    text = replaced(text, _REPLACED).split("\\text{ ")[0].replace("\\%", "")
    text = text.replace(" .", " 0.").replace("{.", "{0.")
    return "0" + text if text.startswith(".") else text


def right_side(text: str, sign: str) -> str:
    """What stands on the right of a sign that occurs once, else all."""
    parts = text.split(sign)
    return parts[1] if len(parts) == 2 else text


def braced_roots(text: str) -> str:
    """Braces around arguments of roots, which are one character without."""
    return _LOOSE_ROOT.sub(r"\\sqrt{\1}", text)


def braced_fractions(text: str) -> str:
    """Braces around arguments of fractions, which are one character without."""
    head, *rest = text.split("\\frac")
    for piece in rest:
        if piece.startswith("{"):
            head += "\\frac" + piece
            continue
        if len(piece) < 2:
            return text
        above, below, after = piece[0], piece[1], piece[2:]
        if below != "{":
            below = f"{{{below}}}"
        head += f"\\frac{{{above}}}{below}{after}"
    return head


def fraction_of_slash(text: str) -> str:
    r"""``1/2`` and ``0.5`` as ``\frac{1}{2}``, whole numbers on both sides only."""
    if text == "0.5":
        text = "1/2"
    match = _SLASH.fullmatch(text)
    if match is None or any(str(int(n)) != n for n in match.groups()):
        return text
    return f"\\frac{{{match[1]}}}{{{match[2]}}}"


def last_boxed(text: str) -> str | None:
    r"""What the last ``\boxed{…}`` holds, braces matched; None where there is none."""
    for command in ("\\boxed", "\\fbox"):
        start = text.rfind(command + "{")
        if start < 0:
            continue
        start += len(command) + 1
        depth = 1
        for at in range(start, len(text)):
            depth += (text[at] == "{") - (text[at] == "}")
            if not depth:
                return text[start:at]
    return None
