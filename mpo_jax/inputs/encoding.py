"""Conversations to token ids and trained labels, by the two rules of the templates.

The rule of a joint template tokenises a conversation as one text; the other tokenises
each message for itself and joins the ids. Ids and labels equal upstream's, truncation
aside: nothing is truncated here, the caller judges the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mpo_jax.inputs.template import (
    IGNORED,
    PLACEHOLDER,
    Template,
    conversation_text,
    split_at_images,
)
from mpo_jax.inputs.tokenizer import ChatTokenizer


def encode_prompt(
    tokenizer: ChatTokenizer,
    template: Template,
    question: str,
    *,
    num_image_tokens: Sequence[int] = (),
    history: Sequence[tuple[str, str]] = (),
    system_message: str | None = None,
    prefix: str = "",
) -> tuple[list[int], int]:
    """Ids of everything before an answer, as the model is trained on it.

    Arguments as :func:`template.render_prompt`, whose text these are the ids of; a
    template that strips does so here too.

    Args:
      prefix: the beginning of the answer; its ids stand at the end.

    Returns:
      The ids, and the position where the answer begins: their number where there is no
      `prefix`.

    Raises:
      ValueError: there are fewer placeholders than images, or a text holds a lone
        surrogate.
    """
    turns = _turns(template, question, history)
    system = template.system_message if system_message is None else system_message
    counts = tuple(num_image_tokens)
    head = _encode_head(tokenizer, template, turns, system=system, counts=counts)
    if not prefix:
        return head, len(head)
    if template.strip:
        prefix = prefix.lstrip()
    if template.joint:
        text = conversation_text(template, turns, system)
        # A placeholder in the answer is text, whatever upstream's training does.
        parts = split_at_images(text, len(counts))
        parts[-1] += prefix
        ids = _encode_parts(tokenizer, parts, counts)
    else:
        header = len(tokenizer.encode(template.assistant, bos=False))
        ids = head[: len(head) - header]
        ids += tokenizer.encode(template.assistant + prefix, bos=False)
    # The header's newline may merge with white space that the answer begins with.
    pairs = zip(head, ids, strict=False)
    return ids, next((i for i, (a, b) in enumerate(pairs) if a != b), len(head))


def encode_side(
    tokenizer: ChatTokenizer,
    template: Template,
    question: str,
    response: str,
    *,
    num_image_tokens: Sequence[int],
    text_only: bool,
    head: Sequence[int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and labels of one question with one response, as upstream trains on them.

    The sources are upstream's ``preprocess_internlm``, ``preprocess_mpt``,
    ``preprocess_phi3`` and ``preprocess_internvl2_5``. Trained are the response and
    the token that ends it. Where a
    joint template cannot align text and tokens (the counts differ), every label is
    -100, as upstream; so it is for an empty response in a joint template, which
    upstream renders as a bare header. Examples of either kind must not be trained.

    Chat markers in the text of a message (``<|im_start|>`` and the like) become
    tokens, but do not open a turn: the trained span is always the response.

    Args:
      tokenizer: the model's tokenizer.
      template: the conversation's template.
      question: user text, with its placeholders.
      response: assistant text.
      num_image_tokens: context tokens of every image, in order.
      text_only: leave ``<image>`` in the text as it is.
      head: ids of :func:`encode_prompt` for this question where they are known, which
        saves making them anew.

    Returns:
      int32 ``[n]`` ids and int32 ``[n]`` labels: the ids where trained, else -100.

    Raises:
      ValueError: there are fewer placeholders than images, or `question` or
        `response` holds a lone surrogate.
    """
    turns = _turns(template, question, ())
    if template.strip:
        response = response.strip()
    counts = () if text_only else tuple(num_image_tokens)
    encode = _encode_joint if template.joint else _encode_messages
    ids, start, end = encode(
        tokenizer, template, turns, response, counts=counts, head=head
    )
    id_array = np.asarray(ids, np.int32)
    labels = np.full_like(id_array, IGNORED)
    labels[start:end] = id_array[start:end]
    for token in template.never_trained:
        labels[id_array == tokenizer.id_of(token)] = IGNORED
    return id_array, labels


def _turns(
    template: Template, question: str, history: Sequence[tuple[str, str]]
) -> list[str]:
    """Messages in order, user and assistant by turns, the question last."""
    turns = [text for pair in history for text in pair] + [question]
    return [text.strip() for text in turns] if template.strip else turns


def _encode_head(
    tokenizer: ChatTokenizer,
    template: Template,
    turns: Sequence[str],
    *,
    system: str,
    counts: tuple[int, ...],
) -> list[int]:
    """Ids of a conversation up to its open assistant header, by the template's rule."""
    if template.joint:
        text = conversation_text(template, turns, system)
        return _encode_images(tokenizer, text, counts)
    first = template.system + system + template.separator
    ids = tokenizer.encode(first, bos=tokenizer.add_bos)
    for number, turn in enumerate(turns):
        header = template.assistant if number % 2 else template.user
        # Images stand in the turns from left to right.
        last = number == len(turns) - 1
        here = len(counts) if last else min(turn.count(PLACEHOLDER), len(counts))
        message = header + turn + template.separator
        ids += _encode_images(tokenizer, message, counts[:here], bos=False)
        counts = counts[here:]
    return ids + tokenizer.encode(template.assistant, bos=False)


def _encode_joint(
    tokenizer: ChatTokenizer,
    template: Template,
    turns: Sequence[str],
    response: str,
    *,
    counts: tuple[int, ...],
    head: Sequence[int] | None,
) -> tuple[list[int], int, int]:
    """Ids and the trained span [start, end) under the one-text rule."""
    text = conversation_text(template, turns, template.system_message)
    in_text = min(text.count(PLACEHOLDER), len(counts))
    if head is None:
        head = _encode_images(tokenizer, text, counts[:in_text])
    if not response:
        if in_text < len(counts):
            split_at_images(text, len(counts))  # raises: placeholders are too few
        return list(head), len(head), len(head)
    tail = response + template.separator
    ids = _encode_images(tokenizer, text + tail, counts)
    if template.count_response:
        rest = _encode_images(tokenizer, tail, counts[in_text:], bos=False)
        counted = len(head) + len(rest)
    else:
        spoken = _encode_images(tokenizer, text + response, counts)
        counted = len(spoken) + 1
    # Upstream measures a conversation by its non-pad tokens, so that the text of the
    # pad token in a record counts as a mismatch too.
    if counted != sum(i != tokenizer.pad_id for i in ids):
        return ids, 0, 0
    return ids, len(head), counted


def _encode_messages(
    tokenizer: ChatTokenizer,
    template: Template,
    turns: Sequence[str],
    response: str,
    *,
    counts: tuple[int, ...],
    head: Sequence[int] | None,
) -> tuple[list[int], int, int]:
    """Ids and the trained span [start, end) under the message-by-message rule."""
    system = template.system_message
    if head is None:
        head = _encode_head(tokenizer, template, turns, system=system, counts=counts)
    # The header's length is masked, whatever the response merges into it; then comes
    # the separator's last token, the newline.
    header = len(tokenizer.encode(template.assistant, bos=False))
    ids = list(head[: len(head) - header])
    spoken = template.assistant + response + template.separator
    ids += tokenizer.encode(spoken, bos=False)
    return ids, len(head), len(ids) - 1


def _encode_images(
    tokenizer: ChatTokenizer,
    text: str,
    counts: Sequence[int],
    *,
    bos: bool | None = None,
) -> list[int]:
    """Ids of `text`, its first placeholders replaced by image tokens."""
    parts = split_at_images(text, len(counts))
    return _encode_parts(tokenizer, parts, counts, bos=bos)


def _encode_parts(
    tokenizer: ChatTokenizer,
    parts: Sequence[str],
    counts: Sequence[int],
    *,
    bos: bool | None = None,
) -> list[int]:
    """Ids of texts with the tokens of an image between each two.

    Image tokens split a text for either kind of tokenizer, so that encoding the parts
    gives the same ids as encoding thousands of ``<IMG_CONTEXT>`` in one text would.
    """
    ids: list[int] = []
    for number, part in enumerate(parts):
        if number:
            ids.append(tokenizer.img_start_id)
            ids.extend([tokenizer.img_context_id] * counts[number - 1])
            ids.append(tokenizer.img_end_id)
        ids.extend(tokenizer.encode(part, bos=False, start=not number))
    if bos is None:
        bos = tokenizer.add_bos
    if bos:
        assert tokenizer.bos_id is not None  # add_bos implies it
        ids.insert(0, tokenizer.bos_id)
    return ids
