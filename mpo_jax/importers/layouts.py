"""The layouts that can be imported: how to tell them apart and how to read them.

Every layout is one function from a record to a :class:`pairs.Pair`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpo_jax.importers import messages, pairs
from mpo_jax.importers.messages import SYSTEM, USER, Turn
from mpo_jax.importers.pairs import Pair, Rules

Record = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way in which preference (or SFT) records are written.

    Attributes:
      name: what ``--layout`` calls it.
      fields: the fields that make it out, for people.
      convert: reads a record; raises BadRecord.
      matches: whether a record, by the fields that hold something, looks like it.
    """

    name: str
    fields: str
    convert: Callable[[Record, Rules], Pair]
    matches: Callable[[frozenset[str], Record], bool]


def _mmpr(record: Record, rules: Rules) -> Pair:
    return pairs.make(
        record,
        rules,
        prompt=[Turn(USER, messages.text(record, "question"))],
        chosen=messages.text(record, "chosen"),
        rejected=_optional(record, "rejected"),
        used=("question", "chosen", "rejected"),
    )


def _swift(record: Record, rules: Rules) -> Pair:
    used = ["rejected_response", "rejected_messages"]
    if record.get("messages") is None:
        used += ["query", "response"]
        prompt = [Turn(USER, messages.text(record, "query"))]
        chosen = messages.text(record, "response")
    else:
        used.append("messages")
        prompt, chosen = _split(record, "messages", rules)
    rejected = _optional(record, "rejected_response")
    if record.get("rejected_messages"):
        if rejected is not None:
            raise messages.bad("rejected_messages", "beside rejected_response")
        other, rejected = _split(record, "rejected_messages", rules)
        if other != prompt:
            raise messages.unsupported(
                "rejected_messages",
                "their prompt is not that of messages; a pair has one prompt",
            )
    label = record.get("label")
    if rejected is None and label is not None:
        raise messages.unsupported(
            "label", f"{messages.short(label)}; a judged single answer is no pair"
        )
    return pairs.make(
        record, rules, prompt=prompt, chosen=chosen, rejected=rejected, used=used
    )


def _trl(record: Record, rules: Rules) -> Pair:
    used = ["prompt", "chosen", "rejected", "completion"]
    key = "chosen" if record.get("chosen") is not None else "completion"
    if record.get(key) is None:
        raise messages.bad("chosen", "is missing")
    if key == "completion" and record.get("label") is not None:
        raise messages.unsupported("label", "a judged single answer is no pair")
    if record.get("prompt") is None:
        return _implicit(record, rules, used)
    prompt: list[Turn]
    if isinstance(record["prompt"], str):
        prompt = [Turn(USER, record["prompt"])]
    else:
        prompt = messages.turns(record["prompt"], "prompt", rules.tags)

    def answer(field: str) -> str:
        value = record[field]
        if isinstance(value, str):
            return value
        found = messages.turns(value, field, rules.tags)
        if len(found) > 1 and _without_system(found[:-1]) == _without_system(prompt):
            # The whole conversation, though the prompt is given as well.
            return messages.single_answer(value[-1:], field, rules.tags)
        return messages.single_answer(value, field, rules.tags)

    chosen = answer(key)
    rejected = answer("rejected") if record.get("rejected") is not None else None
    return pairs.make(
        record,
        rules,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        used=used,
    )


def _implicit(record: Record, rules: Rules, used: Sequence[str]) -> Pair:
    """The prompt is what chosen and rejected begin with."""
    chosen, rejected = record.get("chosen"), record.get("rejected")
    if chosen is None or rejected is None:
        raise messages.bad("prompt", "is missing")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(record, rules, used)
    sides = [
        messages.turns(value, field, rules.tags)
        for field, value in (("chosen", chosen), ("rejected", rejected))
    ]
    if sides[0][:-1] != sides[1][:-1]:
        raise messages.unsupported(
            "chosen",
            "and rejected differ before their last answer; a pair has one prompt",
        )
    return pairs.make(
        record,
        rules,
        prompt=sides[0][:-1],
        chosen=messages.single_answer(list(chosen)[-1:], "chosen", rules.tags),
        rejected=messages.single_answer(list(rejected)[-1:], "rejected", rules.tags),
        used=used,
        notes=["prompt: the messages that both answers share"],
    )


def _implicit_text(record: Record, rules: Rules, used: Sequence[str]) -> Pair:
    chosen, rejected = record["chosen"], record["rejected"]
    if "\n\nHuman:" in chosen and "\n\nAssistant:" in chosen:
        raise messages.unsupported(
            "chosen", "a transcript in one text; write prompt, chosen and rejected"
        )
    shorter = min(len(chosen), len(rejected))
    end = next((n for n in range(shorter) if chosen[n] != rejected[n]), shorter)
    while end and not chosen[end - 1].isspace():  # whole words, as the prompt has them
        end -= 1
    end = len(chosen[:end].rstrip())
    if not end:
        raise messages.bad(
            "prompt", "is missing, and chosen and rejected have no common beginning"
        )
    return pairs.make(
        record,
        rules,
        prompt=[Turn(USER, chosen[:end])],
        chosen=chosen[end:],
        rejected=rejected[end:],
        used=used,
        notes=["prompt: the words that both answers begin with"],
    )


def _sharegpt(record: Record, rules: Rules) -> Pair:
    field = "conversations" if record.get("conversations") is not None else "messages"
    prompt = messages.turns(record.get(field), field, rules.tags)
    if record.get("chosen") is None:
        raise messages.bad("chosen", "is missing")
    rejected = record.get("rejected")
    if rejected is not None:
        rejected = messages.single_answer(rejected, "rejected", rules.tags)
    return pairs.make(
        record,
        rules,
        prompt=prompt,
        chosen=messages.single_answer(record["chosen"], "chosen", rules.tags),
        rejected=rejected,
        used=(field, "chosen", "rejected"),
    )


def _alpaca(record: Record, rules: Rules) -> Pair:
    question = messages.text(record, "instruction")
    if record.get("input"):
        question += "\n" + messages.text(record, "input")
    output, rejected = record.get("output"), _optional(record, "rejected")
    if isinstance(output, list) and len(output) == 2:  # (better, worse)
        answers: Record = {"chosen": output[0], "rejected": output[1]}
        chosen, rejected = (messages.text(answers, side) for side in answers)
    else:
        key = "chosen" if record.get("chosen") is not None else "output"
        chosen = messages.text(record, key)
    return pairs.make(
        record,
        rules,
        prompt=[Turn(USER, question)],
        chosen=chosen,
        rejected=rejected,
        used=("instruction", "input", "output", "chosen", "rejected"),
    )


def _internvl(record: Record, rules: Rules) -> Pair:
    prompt, chosen = _split(record, "conversations", rules)
    return pairs.make(
        record,
        rules,
        prompt=prompt,
        chosen=chosen,
        rejected=None,
        used=("conversations",),
    )


def _rlhfv(record: Record, rules: Rules) -> Pair:
    try:
        inner = json.loads(messages.text(record, "text"))
    except (ValueError, RecursionError) as error:
        raise messages.bad(
            "text", f"is not a JSON object: {str(error)[:80]}"
        ) from error
    if not isinstance(inner, dict):
        raise messages.bad("text", f"is not a JSON object: {messages.short(inner)}")
    both = {key: value for key, value in record.items() if key != "text"}
    pair = _mmpr(both | inner, rules)
    return dataclasses.replace(pair, used=pair.used | {"text"})


def _optional(record: Record, field: str) -> str | None:
    return None if record.get(field) is None else messages.text(record, field)


def _without_system(turns: Sequence[Turn]) -> list[Turn]:
    return [turn for turn in turns if turn.role != SYSTEM]


def _split(record: Record, field: str, rules: Rules) -> tuple[list[Turn], str]:
    """Prompt and last answer of a whole conversation."""
    found = messages.turns(record.get(field), field, rules.tags)
    last = found[-1]
    if last.role != messages.ASSISTANT:
        raise messages.bad(field, f"must end with the assistant, not with {last.role}")
    if last.images:
        raise messages.unsupported(field, "the answer holds an image")
    return found[:-1], last.text


_TALK = frozenset({"messages", "conversations"})
_ASK = frozenset({"question", "query", "instruction", "text"})

LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout(
            "mmpr",
            "question, chosen, rejected; image",
            _mmpr,
            lambda has, record: {"question", "chosen"} <= has,
        ),
        Layout(
            "swift",
            "messages + rejected_response (or rejected_messages); or query, response, "
            "rejected_response; images, system, history",
            _swift,
            lambda has, record: (
                ("messages" in has and "chosen" not in has)
                or {"query", "response"} <= has
            ),
        ),
        Layout(
            "trl",
            "prompt, chosen, rejected as messages or text (the prompt may be left to "
            "what both begin with); images",
            _trl,
            lambda has, record: (
                {"prompt", "completion"} <= has
                or {"prompt", "chosen"} <= has
                or ({"chosen", "rejected"} <= has and not has & (_TALK | _ASK))
            ),
        ),
        Layout(
            "sharegpt",
            "conversations (or messages) + chosen and rejected messages; images",
            _sharegpt,
            lambda has, record: (
                bool(has & _TALK) and "chosen" in has and "prompt" not in has
            ),
        ),
        Layout(
            "alpaca",
            "instruction, input, chosen, rejected; images, system, history",
            _alpaca,
            lambda has, record: (
                "instruction" in has and bool(has & {"chosen", "output"})
            ),
        ),
        Layout(
            "internvl",
            "conversations of human and gpt; image (SFT: --chosen_only)",
            _internvl,
            lambda has, record: "conversations" in has and "chosen" not in has,
        ),
        Layout(
            "rlhfv",
            "text holding a JSON object of question, chosen and rejected; image",
            _rlhfv,
            lambda has, record: (
                "text" in has
                and isinstance(record["text"], str)
                and record["text"].lstrip().startswith("{")
            ),
        ),
    )
}
"""Layouts by name."""


def matching(record: Record) -> list[str]:
    """Names of the layouts that a record looks like."""
    has = frozenset(key for key, value in record.items() if value is not None)
    return [name for name, layout in LAYOUTS.items() if layout.matches(has, record)]


def detect(records: Sequence[Record], where: str) -> Layout:
    """The layout of a file, from its first records.

    Args:
      records: the first ones that are objects; not empty.
      where: the file, for messages.

    Raises:
      ValueError: none or more than one layout fits; shows the fields found and the
        layouts known.
    """
    found = next((names for record in records if (names := matching(record))), [])
    if len(found) == 1:
        return LAYOUTS[found[0]]
    fields = messages.names(records[0])
    if found:
        raise ValueError(
            f"{where}: fields {fields} fit the layouts {' and '.join(found)}; choose "
            f"with --layout={found[0]} or --layout={found[1]}"
        )
    known = "\n".join(f"  {name:9} {it.fields}" for name, it in LAYOUTS.items())
    raise ValueError(
        f"{where}: fields {fields} fit no layout; rename fields with "
        f"--columns=question=THEIRS,chosen=THEIRS,… or choose with --layout\n{known}"
    )


def has_rejected(record: Record) -> bool:
    """Whether a record has a second answer, in any layout."""
    text = record.get("text")
    return (
        any(
            record.get(field) is not None
            for field in ("rejected", "rejected_response", "rejected_messages")
        )
        or isinstance(record.get("output"), list)
        or (isinstance(text, str) and '"rejected"' in text)
    )
