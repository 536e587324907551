"""One record to one encoded pair, or to the reason why it is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mpo_jax import ledger, types
from mpo_jax.inputs import images, template
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer


@dataclasses.dataclass(frozen=True)
class EncodePolicy(prompt_lib.PromptPolicy):
    """How records become tokens and tiles; part of every cache key.

    Attributes:
      chosen_only: encode the chosen side alone (SFT); `rejected` is not looked at.
    """

    chosen_only: bool = False


def build_example(
    record: types.PreferenceRecord,
    tokenizer: ChatTokenizer,
    *,
    policy: EncodePolicy,
    with_tiles: bool = True,
    read: Callable[[str], bytes] = images.read_file,
) -> types.Example:
    """Encode a record: its prompt, then both responses behind it.

    Args:
      record: the parsed annotation line.
      tokenizer: the model's tokenizer.
      policy: what to encode.
      with_tiles, read: see :func:`mpo_jax.inputs.prompt.make_prompt`.

    Returns:
      The example, however long; nothing is truncated.

    Raises:
      BadRecord: with a reason of ``ledger.REASONS``.
      OSError: the file system failed, see ``images.read_file``.
    """
    _check_text(record, tokenizer, policy.chosen_only)
    prompt = prompt_lib.make_prompt(
        record.question,
        tokenizer,
        policy=policy,
        images=record.images,
        max_tiles=record.max_tiles,
        with_tiles=with_tiles,
        read=read,
    )
    chosen = _encode(record, "chosen", prompt, tokenizer, policy)
    shared, rejected = chosen.start, _Side.empty()
    if not policy.chosen_only:
        rejected = _encode(record, "rejected", prompt, tokenizer, policy)
        if np.array_equal(chosen.ids, rejected.ids):
            detail = (
                "chosen and rejected give the same tokens: "
                f"{prompt_lib.short(record.chosen)}"
            )
            raise ledger.BadRecord("identical", detail)
        # The sides can differ before the first label where a response begins with
        # white space that merges into the header's newline.
        common = _common_prefix(chosen.ids, rejected.ids)
        shared = min(shared, rejected.start, common)
    example = types.Example(
        prompt=_beginning(prompt, chosen, shared - 1),
        **_response("chosen", chosen, shared),
        **_response("rejected", rejected, shared),
        tiles=prompt.tiles,
        num_tiles=prompt.num_tiles,
    )
    _check_no_slots(example, tokenizer)
    return example


class _Side(NamedTuple):
    """A whole conversation: ids, labels, first trained position, one past the last."""

    ids: np.ndarray
    labels: np.ndarray
    start: int
    end: int

    @classmethod
    def empty(cls) -> _Side:
        nothing = np.zeros(0, np.int32)
        return cls(nothing, nothing, 0, 0)


def _check_text(
    record: types.PreferenceRecord, tokenizer: ChatTokenizer, chosen_only: bool
) -> None:
    texts = {"question": record.question, "chosen": record.chosen}
    if not chosen_only:
        texts["rejected"] = record.rejected
    prompt_lib.check_text(texts, tokenizer)
    if not chosen_only and record.chosen == record.rejected:
        detail = f"chosen and rejected are both {prompt_lib.short(record.chosen)}"
        raise ledger.BadRecord("identical", detail)


def _encode(
    record: types.PreferenceRecord,
    field: str,
    prompt: prompt_lib.Prompt,
    tokenizer: ChatTokenizer,
    policy: EncodePolicy,
) -> _Side:
    """One response behind the prompt.

    Raises:
      BadRecord: none of its tokens is trained.
    """
    question, response = record.question, getattr(record, field)
    if len(record.images) == 1:
        question = template.add_placeholder(question)
    ids, labels = template.encode_side(
        tokenizer,
        template.get_template(policy.template),
        question,
        response,
        num_image_tokens=prompt.image_tokens,
        text_only=not record.images,
        head=prompt.ids.tolist(),
    )
    (trained,) = np.nonzero(labels != template.IGNORED)
    if len(trained):
        return _Side(ids, labels, int(trained[0]), int(trained[-1]) + 1)
    if not response.strip():
        raise ledger.BadRecord("no_labels", f"{field} is empty: {response[:40]!r}")
    raise ledger.BadRecord(
        "tokenisation",
        f"tokens of {field} cannot be told from the prompt's: "
        f"{prompt_lib.short(response)}; white space at an edge or the text of a "
        "special token can cause it",
    )


def _beginning(prompt: prompt_lib.Prompt, side: _Side, length: int) -> np.ndarray:
    """The first tokens of the prompt, which are those of the conversation too.

    Raises:
      BadRecord: they are not. A sampler, which sees the prompt alone, would then read
        other tokens than training does.
    """
    if not np.array_equal(prompt.ids[:length], side.ids[:length]):
        raise ledger.BadRecord(
            "tokenisation",
            "the prompt has other tokens before a response than alone; remove white "
            "space at the beginning of the responses",
        )
    return prompt.ids[:length]


def _response(name: str, side: _Side, shared: int) -> dict[str, Any]:
    """Token, label and mask fields of one side, empty where it was not encoded."""
    return {
        f"{name}_tokens": side.ids[shared - 1 : max(side.end - 1, 0)],
        f"{name}_labels": side.ids[shared : side.end],
        f"{name}_mask": side.labels[shared : side.end] != template.IGNORED,
    }


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    (differ,) = np.nonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _check_no_slots(example: types.Example, tokenizer: ChatTokenizer) -> None:
    """Raise BadRecord where a response has an image token."""
    stray = sum(
        int(np.count_nonzero(ids == tokenizer.img_context_id))
        for ids in (
            example.chosen_tokens,
            example.chosen_labels,
            example.rejected_tokens,
            example.rejected_labels,
        )
    )
    if stray:
        detail = f"the responses have {stray} image tokens, which belong in the prompt"
        raise ledger.BadRecord("image_count", detail)
