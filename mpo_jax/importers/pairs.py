"""From a conversation to one question and its answers, as MMPR writes them.

MMPR has one question, no system text and no earlier turns. What it cannot express is
refused by name, or folded into the question where :class:`Rules` says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.importers import messages
from mpo_jax.importers.messages import ASSISTANT, PLACEHOLDER, SYSTEM, USER, Tags, Turn

REFUSE, FOLD, DROP = "refuse", "fold", "drop"

BEFORE = ("system", "system_prompt", "history")
"""Fields that stand before the prompt, in any layout."""

IMAGE_FIELDS = ("images", "image", "img_path", "image_path")
"""Where a record has its images; the last two count only without the first two, since
data sets keep the name of the file beside its bytes."""

_FOREIGN = (
    *("videos", "video", "audios", "audio", "tools", "objects"),
    *("rejected_tools", "rejected_videos", "rejected_audios", "rejected_objects"),
    *("kto_tag", "clip"),
)
"""Fields that change what a record means and have no counterpart; empty ones pass."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """What the user decided about things that MMPR cannot express.

    Attributes:
      chosen_only: records need no rejected answer (SFT).
      system: ``refuse`` a record with a system text, ``fold`` the text before the
        question, or ``drop`` the text.
      history: ``refuse`` a record with earlier turns, or ``fold`` them before the
        question.
      tags: how messages are written.
    """

    chosen_only: bool = False
    system: str = REFUSE
    history: str = REFUSE
    tags: Tags = Tags()


@dataclasses.dataclass(frozen=True)
class Pair:
    """A record on its way to MMPR.

    Attributes:
      question: with one placeholder per image, or none for a single image.
      chosen, rejected: the answers; `rejected` None where the record has none.
      images: values of the images in order, as the record has them.
      carried: further MMPR fields (``id``, ``answer_gt``).
      used: fields of the record that were read.
      notes: what was changed on the way, in fixed words that can be counted.
    """

    question: str
    chosen: str
    rejected: str | None
    images: tuple[Any, ...] = ()
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    used: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def make(
    record: Mapping[str, Any],
    rules: Rules,
    *,
    prompt: Sequence[Turn],
    chosen: str,
    rejected: str | None,
    used: Sequence[str],
    notes: Sequence[str] = (),
) -> Pair:
    """Join a prompt's turns to a question and check images against placeholders.

    Args:
      record: the whole record; images, system text, history, id and answer are taken
        from it.
      rules: what to do with system text and earlier turns.
      prompt: the turns before the answers.
      chosen, rejected: the answers.
      used: fields that the caller has read.
      notes: what the caller has changed.

    Raises:
      BadRecord: ``bad_field``, ``unsupported`` or ``image_count``.
    """
    for field in _FOREIGN:
        if record.get(field):
            value = messages.short(record[field])
            raise messages.unsupported(field, f"{value}; only text and images are read")
    _check_rejected_images(record)
    if rejected is None and not rules.chosen_only:
        raise messages.bad(
            "rejected", "there is no rejected answer; for SFT import with --chosen_only"
        )
    prompt = [*_before(record), *prompt]
    notes = list(notes)
    question = _question(prompt, rules, notes)
    images = _images(record, prompt)
    for field, answer in (("chosen", chosen), ("rejected", rejected or "")):
        if PLACEHOLDER in answer:
            detail = f"{field}: holds {PLACEHOLDER!r}; images stand in the question"
            raise ledger.BadRecord("image_count", detail)
    question = _mark_images(question, len(images), notes)
    carried = {
        key: record[key]
        for key, kinds in (("id", str | int), ("answer_gt", str))
        if isinstance(record.get(key), kinds) and not isinstance(record[key], bool)
    }
    return Pair(
        question=question,
        chosen=chosen,
        rejected=rejected,
        images=images,
        carried=carried,
        used=frozenset(
            (*used, *carried, *BEFORE, *IMAGE_FIELDS, *_FOREIGN, "rejected_images")
        ),
        notes=tuple(notes),
    )


def _mark_images(question: str, images: int, notes: list[str]) -> str:
    """The question with a placeholder per image, where there are several."""
    count = question.count(PLACEHOLDER)
    if images > 1 and count == 0:
        notes.append(f"{PLACEHOLDER} put before the question, once per image")
        return f"{PLACEHOLDER}\n" * images + question
    if count != images and not (images == 1 and count == 0):
        raise ledger.BadRecord(
            "image_count",
            f"images: {images} for {count} {PLACEHOLDER!r} in the question; they "
            "must be equal (or none of several images marked)",
        )
    return question


def _before(record: Mapping[str, Any]) -> list[Turn]:
    """System text and history that stand in fields of their own."""
    return [
        *(
            Turn(SYSTEM, messages.text(record, field))
            for field in ("system", "system_prompt")
            if record.get(field) not in (None, "")
        ),
        *messages.history(record.get("history")),
    ]


def _check_rejected_images(record: Mapping[str, Any]) -> None:
    other = record.get("rejected_images")
    if other and other != record.get("images"):
        raise messages.unsupported(
            "rejected_images",
            f"{messages.short(other)} are not the images; a pair has one prompt with "
            "its images",
        )


def _question(prompt: Sequence[Turn], rules: Rules, notes: list[str]) -> str:
    """One text of all turns; appends to `notes` what was changed for it."""
    system = "\n\n".join(turn.text for turn in prompt if turn.role == SYSTEM)
    spoken = [turn for turn in prompt if turn.role != SYSTEM]
    first_spoken = next(
        (n for n, turn in enumerate(prompt) if turn.role != SYSTEM), len(prompt)
    )
    if any(turn.role == SYSTEM for turn in prompt[first_spoken:]):
        raise messages.unsupported("system", "a system message between the turns")
    if not spoken or spoken[-1].role != USER:
        raise messages.bad("prompt", "no question of the user before the answer")
    wanted = [USER, ASSISTANT] * (len(spoken) // 2) + [USER]
    if [turn.role for turn in spoken] != wanted:
        raise messages.bad(
            "prompt",
            f"user and assistant must take turns, got {[turn.role for turn in spoken]}",
        )
    question = spoken[-1].text
    if len(spoken) > 1:
        if rules.history != FOLD:
            raise messages.unsupported(
                "history",
                f"{len(spoken) // 2} earlier turns; MMPR has one question, "
                "--history=fold writes them before it",
            )
        names = {USER: "User", ASSISTANT: "Assistant"}
        question = "\n\n".join(f"{names[turn.role]}: {turn.text}" for turn in spoken)
        notes.append("earlier turns folded into the question")
    if system.strip():
        if rules.system == REFUSE:
            raise messages.unsupported(
                "system",
                f"{messages.short(system)}; MMPR has no system text, --system=fold "
                "writes it before the question, --system=drop leaves it out",
            )
        if rules.system == DROP:
            notes.append("system text left out")
        else:
            notes.append("system text folded into the question")
            question = f"{system}\n\n{question}"
    return question


def _images(record: Mapping[str, Any], prompt: Sequence[Turn]) -> tuple[Any, ...]:
    """Images of the record, or those inside its messages."""
    inside = tuple(image for turn in prompt for image in turn.images)
    filled = [
        field for field in IMAGE_FIELDS if record.get(field) not in (None, "", [], b"")
    ]
    outer = [field for field in filled if field in ("images", "image")]
    fields = outer or filled[:1]
    if len(fields) > 1 and record["images"] != record["image"]:
        raise messages.bad("images", "and image are both given; keep one")
    if not fields:
        return inside
    if inside:
        raise messages.bad(fields[0], "given beside images inside the messages")
    value = record[fields[0]]
    return tuple(value) if isinstance(value, list | tuple) else (value,)
