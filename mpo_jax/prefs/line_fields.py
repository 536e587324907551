"""Fields of a line about a question and its answers, each checked.

Questions with truths, rollouts and answers to be judged say the same things under the
same names; each is read here.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax import fields, ledger
from mpo_jax.generate import questions
from mpo_jax.mmpr import image_paths
from mpo_jax.verify import options as verify_options
from mpo_jax.verify.verdict import KINDS, Truth

MAX_OPTIONS = 26
"""One for every letter."""
MAX_ID = 200
MAX_SOURCE = 100

_SOURCE = re.compile(r"\w[\w .+\-]*")


def load(line: bytes | None) -> dict[str, Any]:
    """The JSON object of a line of ``questions.lines_of``.

    Raises:
      BadRecord: it is none.
    """
    return questions.record_of(line, strict=True)


def dumps(record: Mapping[str, Any]) -> bytes:
    """A line with its end; lone surrogates stay escapes."""
    try:
        return json.dumps(record, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(record).encode() + b"\n"


def bad(name: str, value: Any, wanted: str) -> ledger.BadRecord:
    """The error of a field that must be something else."""
    return ledger.BadRecord(
        "bad_field", f"{name}={ledger.short(value)}: must be {wanted}"
    )


def check_names(record: Mapping[str, Any], read: Sequence[str]) -> None:
    """Refuse a name that is nearly one that is read; other fields are notes."""
    unknown = [name for name in record if name not in read]
    if unknown:
        absent = tuple(name for name in read if name not in record)
        for name in unknown:
            near = _near(name[:MAX_ID], absent)
            if near:
                raise ledger.BadRecord(
                    "bad_field",
                    f"{ledger.short(name)} is not read; did you mean {near}?",
                )


@functools.lru_cache(maxsize=1024)
def _near(name: str, absent: tuple[str, ...]) -> str:
    """The field that a name nearly is, or ""; lines of a file ask the same."""
    near = fields.nearest(name, absent)
    return near[0] if near else ""


def value(record: Mapping[str, Any], name: str) -> str:
    """A text, or a number or truth value as text."""
    if name not in record:
        near = fields.nearest(name, list(record))
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ledger.BadRecord("bad_field", f"the line has no {name}{hint}")
    found = record[name]
    if isinstance(found, bool):
        return "true" if found else "false"
    if isinstance(found, int | float):
        return str(found)
    if not isinstance(found, str):
        raise bad(name, found, "a text or a number")
    return found


def text(record: Mapping[str, Any], name: str) -> str:
    """A text with something in it that a file can hold."""
    found = record.get(name)
    if not isinstance(found, str) or not found.strip():
        raise bad(name, found, "a text that is not empty")
    _check_unicode(name, found)
    return found


def _check_unicode(name: str, found: str) -> None:
    """Refuse lone surrogates, which no file and no path can hold."""
    try:
        found.encode()
    except UnicodeEncodeError as error:
        raise bad(name, found, "Unicode text") from error


def options(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts of the options in the order of their letters; those that the question
    lists where the line names none."""
    found = record.get("options")
    if found is None:
        return verify_options.in_question(str(record.get("question") or ""))
    if not found and not isinstance(found, bool | int | float):
        return ()
    if isinstance(found, dict):
        letters = [chr(ord("A") + i) for i in range(len(found))]
        if sorted(found) != letters[:MAX_OPTIONS]:
            raise bad("options", sorted(found), "named A, B, C, … without a gap")
        found = [found[letter] for letter in letters]
    if not isinstance(found, list) or len(found) > MAX_OPTIONS:
        wanted = f'a list of at most {MAX_OPTIONS} texts, or {{"A": text, …}}'
        raise bad("options", found, wanted)
    return tuple(value({"options": option}, "options") for option in found)


def kind(record: Mapping[str, Any]) -> str:
    """What the true answer is said to be, or ""."""
    found = record.get("kind") or ""
    if found and found not in KINDS:
        raise bad("kind", found, f"one of {', '.join(KINDS)}, or absent")
    return found


def truth(record: Mapping[str, Any]) -> Truth:
    """The true answer, called ``answer_gt`` or ``answer``, with options and kind."""
    name = "answer_gt" if "answer_gt" in record else "answer"
    if name not in record:
        raise ledger.BadRecord("bad_field", "the line has no answer_gt, nor an answer")
    found = value(record, name)
    if not found.strip():
        raise bad(name, found, "a text that is not empty")
    _check_unicode(name, found)
    return Truth(found, options(record), kind(record))


def ident(record: Mapping[str, Any], default: str | int) -> str | int:
    """The id, or `default` where the line has none."""
    found = record.get("id")
    if found is None:
        return default
    if isinstance(found, bool) or not isinstance(found, str | int):
        raise bad("id", found, "a text or an integer")
    if found == "" or len(str(found)) > MAX_ID:
        raise bad("id", found, f"of 1 to {MAX_ID} characters")
    _check_unicode("id", str(found))
    return found


def source(record: Mapping[str, Any], default: str) -> str:
    """Name of the source, which files are called after."""
    found = record.get("source")
    if found is None or found == "":
        found = default
    good = isinstance(found, str) and _SOURCE.fullmatch(found)
    if not good or len(found) > MAX_SOURCE:
        wanted = (
            f"of 1 to {MAX_SOURCE} letters, digits, blanks and . _ + -, as files are "
            "called after it"
        )
        raise bad("source", found, wanted)
    return found


def images(record: Mapping[str, Any], root: str) -> tuple[str, ...]:
    """Paths of the images relative to `root`, which they must lie below.

    Args:
      root: absolute.
    """
    found = record.get("image")
    if found is None or found == "" or found == []:
        return ()
    paths = [found] if isinstance(found, str) else found
    if not isinstance(paths, list) or not all(isinstance(p, str) and p for p in paths):
        raise bad("image", found, "a path or a list of paths")
    if len(paths) > questions.MAX_IMAGES:
        raise bad("image", found, f"at most {questions.MAX_IMAGES} paths")
    return tuple(_below(path, root) for path in paths)


def _below(name: str, root: str) -> str:
    problem = image_paths.no_path(name)
    if problem is not None:
        raise ledger.BadRecord("bad_field", f"image {problem}")
    shown = ledger.short(name, 300)
    if "://" in name:
        detail = f"image {shown} is a URL; fetch it, and give the path"
        raise ledger.BadRecord("bad_field", detail)
    path = os.path.normpath(os.path.join(root, name))
    if os.path.commonpath([path, root]) != root:
        raise ledger.BadRecord(
            "image_missing",
            f"image {shown} does not lie below --root={root}; name a root that holds "
            "it (/ holds all)",
        )
    return os.path.relpath(path, root)
