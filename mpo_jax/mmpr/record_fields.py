"""The fields of a record by name: read, known and not read, or a mistake.

A field that changes what would be trained must not vanish: pictures under another
name, earlier turns, a system text. Such fields are refused by name unless they are
empty. ``docs/data.md`` has the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mpo_jax import fields, ledger

READ = ("image", "question", "chosen", "rejected")
"""Fields that a record is made of."""

_NOTES = frozenset(
    "id idx index uid uuid key answer answer_gt gt_answer ground_truth gt meta "
    "metadata length width height dataset ds_name source subset split category "
    "task subject level prompt_version origin_dataset origin_split reason "
    "variant".split()
)
_NOTE = re.compile(
    r".+_(meta|metadata|model|score|id|idx|index|type|kind|length|size|orig)"
)
"""Notes about a record (MMPR's and the usual ones): kept in the file, not read."""

_PICTURES = re.compile(
    r"(?P<side>chosen|rejected)?(image|img|picture|photo)s?"
    r"(path|file|filename|name|url|uri|link|base64|b64|byte|data|list|folder|dir)?s?"
    r"(?P<of>chosen|rejected)?"
    r"|.+(image|img|picture|photo)s?"
)
_PICTURE_FILE = re.compile(r"\S.*\.(jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE)
_MOVING = re.compile(r".*(video|audio).*|frames?|clips?")
_TALK = frozenset(
    "history system systemprompt systemmessage conversation conversations message "
    "messages dialog dialogue dialogs turns tools functions "
    "chosenmessages rejectedmessages chosenconversations rejectedconversations".split()
)
_OTHER_NAMES = {
    "question": "prompt query instruction input problem user".split(),
    "chosen": "chosenresponse chosenresponses chosenanswer response output preferred "
    "accepted winner positive completion".split(),
    "rejected": "rejectedresponse rejectedresponses rejectedanswer dispreferred "
    "nonpreferred loser negative".split(),
}
_ALWAYS = frozenset(
    "prompt query instruction input chosenresponse rejectedresponse "
    "chosenresponses rejectedresponses chosenanswer rejectedanswer".split()
)
"""Other names that are a mistake even where the right name is there too."""


_LAYOUTS = (
    ("trl", ("prompt", "chosen")),
    ("trl", ("prompt", "completion")),
    ("sharegpt", ("conversations", "chosen")),
    ("sharegpt", ("messages", "chosen")),
    ("internvl", ("conversations",)),
    ("swift", ("messages",)),
    ("swift", ("query", "response")),
    ("alpaca", ("instruction", "chosen")),
    ("alpaca", ("instruction", "output")),
)
"""Layouts that scripts/import_data.py reads, with fields that tell them; in order."""


def check(record: Mapping[str, Any], *, chosen_only: bool) -> list[str]:
    """Names of the fields that are neither read nor known, in order.

    Args:
      record: the JSON object of a line.
      chosen_only: ``rejected`` is not read, so nothing is meant for it.

    Raises:
      BadRecord: ``bad_field`` for a missing field of :data:`READ` whose content seems
        to stand under another name, or a name that is nearly one; ``unsupported`` for
        content that cannot be trained on (video, earlier turns, system text).
    """
    for key in ("question", "chosen", *(() if chosen_only else ("rejected",))):
        if record.get(key) is None or isinstance(record[key], list | dict):
            _refuse_missing(record, key)
    unused = []
    for key, value in record.items():
        if key in READ or not _holds(value):
            continue
        # An image_id is a note, unless it is all that names the picture.
        picture = _names_pictures(value) and _normalised_name(key).startswith(
            ("image", "img")
        )
        if _is_note(key) and not (picture and not _holds(record.get("image"))):
            continue
        _refuse(key, value, record, chosen_only)
        unused.append(key)
    return unused


def _is_note(key: str) -> bool:
    return key.casefold() in _NOTES or bool(_NOTE.fullmatch(key.casefold()))


def _holds(value: Any) -> bool:
    """Whether a field says anything; null, "", [], {}, 0 and false do not."""
    return bool(value.strip() if isinstance(value, str) else value)


def _normalised_name(key: str) -> str:
    """A name without case, spaces and punctuation: imagePath is image_path."""
    return re.sub(r"[\W_]", "", key.casefold())


def _refuse(key: str, value: Any, record: Mapping[str, Any], chosen_only: bool) -> None:
    """Raise BadRecord if a field that is not read means something."""
    name, shown = _normalised_name(key), ledger.short(key).strip("'")
    content = isinstance(value, str | list | dict)  # not a count such as num_images
    called = _PICTURES.fullmatch(name) if content else None
    side = called and (called["side"] or called["of"])
    if content and (side or _MOVING.fullmatch(name) or name in _TALK):
        if chosen_only and (side or name).startswith("rejected"):
            return
        raise ledger.BadRecord(
            "unsupported",
            f"{shown} is {ledger.short(value)}: not supported, a record is one "
            "question with its images and two responses; write what matters into "
            "question, or remove the field",
        )
    meant = _near(key, name)
    # Beside image, image_url says the same once more.
    if meant is None and not _holds(record.get("image")):
        meant = "image" if called or _names_pictures(value) else None
    for read, others in _OTHER_NAMES.items():
        if name in _ALWAYS and name in others:
            meant = read
    if meant is None or (meant == "rejected" and chosen_only):
        return
    form = " (a path or a list of paths)" if meant == "image" else ""
    also = f" Beside {meant!r}, remove it." if _holds(record.get(meant)) else ""
    raise ledger.BadRecord(
        "bad_field",
        f"unknown field {shown!r}; is {meant!r} meant{form}?{also} It holds "
        f"{ledger.short(value)}",
    )


def _names_pictures(value: Any) -> bool:
    """Whether a value is the path of an image file, or a list of them."""
    first = value[0] if isinstance(value, list) and value else value
    if isinstance(first, dict):  # as in Hugging Face's data sets
        first = first.get("path") or first.get("url")
    return isinstance(first, str) and bool(_PICTURE_FILE.fullmatch(first[-256:]))


def _near(key: str, name: str) -> str | None:
    """The field that a name is a misspelling of."""
    if name in READ:
        return name
    for read in READ:  # about that field, such as question_text, image_w
        if key.casefold().startswith(f"{read}_"):
            return None
    near = fields.nearest(name, READ, cutoff=0.8)
    return near[0] if near else None


def _refuse_missing(record: Mapping[str, Any], key: str) -> None:
    """Raise BadRecord if what should stand in `key` seems to be elsewhere."""
    state = "is missing" if record.get(key) is None else "must be text"
    layout = _layout(record)
    if layout is not None:
        name, seen = layout
        raise ledger.BadRecord(
            "bad_field",
            f"{key} {state}; the line looks like the layout {name!r} ({seen}): "
            f"rewrite the file with scripts/import_data.py --layout={name}",
        )
    if record.get(key) is not None:
        return
    by_name = {
        _normalised_name(other): other
        for other in record
        if other not in READ and not _is_note(other)
    }
    known = next((o for o in _OTHER_NAMES[key] if o in by_name), None)
    near = fields.nearest(key, by_name)
    meant = known or (near[0] if near else None)
    if meant is not None:
        detail = f"{key} is missing; is {ledger.short(by_name[meant])} meant?"
        raise ledger.BadRecord("bad_field", detail)


def _layout(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """(layout that scripts/import_data.py reads, the fields that tell it)."""
    for name, telling in _LAYOUTS:
        if all(field in record for field in telling):
            return name, ", ".join(telling)
    turns = record.get("chosen")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return "trl", "chosen as messages"
    text = record.get("text")
    if isinstance(text, str) and text.lstrip().startswith("{"):
        return "rlhfv", "JSON in text"
    return None
