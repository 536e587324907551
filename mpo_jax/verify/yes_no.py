"""Yes and no, true and false, in English and Chinese."""

from __future__ import annotations

import re

from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, YES_NO, Verdict

# word: (family, is it the positive one?). 是 answers a question, 对 a statement.
_WORDS: dict[str, tuple[str, bool]] = {
    **dict.fromkeys(("yes", "是", "是的", "有", "能", "可以", "会"), ("yes", True)),
    **dict.fromkeys(
        ("no", "否", "不是", "没有", "不能", "不可以", "不会"), ("yes", False)
    ),
    **dict.fromkeys(("true", "对", "正确", "√"), ("true", True)),
    **dict.fromkeys(("false", "错", "错误", "不对", "不正确"), ("true", False)),
}
_SHORT = {"y": ("yes", True), "n": ("yes", False)}
_SHORT |= {"t": ("true", True), "f": ("true", False)}
_HEAD = re.compile(r"([^\W\d_]+|√)(?:\s*([.,;:!。-])\s*(.*))?", re.DOTALL)
_TOKENS = re.compile(r"[a-z]+|[\u4e00-\u9fff]+")


def read(text: str, short: bool = False) -> tuple[str, bool] | None:
    """Family and sense of a unified text that says yes or no, alone or before a
    comma or full stop; `short`: ``Y`` and ``F`` do too."""
    match = _HEAD.fullmatch(text.casefold().strip())
    if match is None:
        return None
    word, _, rest = match.groups()
    found = _WORDS.get(word) or (_SHORT.get(word) if short else None)
    if found is None or _takes_back(found, rest or ""):
        return None
    return found


def _takes_back(found: tuple[str, bool], rest: str) -> bool:
    """Does what follows say the opposite, or number the answer (``No. 5``)?"""
    if rest[:1].isdigit():
        return True
    said = (_WORDS.get(token) for token in _TOKENS.findall(rest))
    return any(word is not None and word[1] != found[1] for word in said)


def compare(said: str, gold: str, kind: str) -> Verdict | None:
    """Judge two unified texts that both say yes or no; else None."""
    asked = kind == YES_NO
    answer, truth = read(said, asked), read(gold, asked)
    if answer is None or truth is None:
        return None
    if answer[0] != truth[0] and not asked:
        return Verdict(UNDECIDED, "yes_against_true")
    return Verdict(RIGHT if answer[1] == truth[1] else WRONG, "yes_no")
