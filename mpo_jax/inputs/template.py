"""Chat templates of the released models: prompts, token ids and trained labels.

Upstream has one preprocessing function per template; here a template is data and says
which of two tokenisation rules it follows: that of a joint template tokenises a
conversation as one text, the other each message for itself and joins the ids. Ids and
labels equal upstream's, truncation aside: nothing is truncated here, the caller judges
the length.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from mpo_jax import fields
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.inputs.tokenizer import ChatTokenizer

PLACEHOLDER = "<image>"
"""Where an image stands in a question."""

IGNORED = -100
"""Label of a token that is not trained."""


@dataclasses.dataclass(frozen=True)
class Template:
    """Strings of a conversation and the rule that tokenises it.

    Attributes:
      name: what config.json calls the template.
      system_message: default text of the system segment, which always stands.
      separator: closes every message; without its white space it is the token that
        ends a generated answer.
      joint: True tokenises the conversation as one text and finds the response by
        the token count of what precedes it; False tokenises each message for itself
        and joins the ids.
      strip: question and response lose surrounding white space.
      count_response: (joint) True counts the response by tokenising it alone, which
        notices text that merges across the header; False counts up to its end.
      system, user, assistant: headers of the messages.
      markers: chat tokens, which a tokenizer must have as single tokens.
      never_trained: tokens whose label is -100 wherever they stand.
    """

    name: str
    system_message: str
    separator: str
    joint: bool
    strip: bool = False
    count_response: bool = False
    system: str = "<|im_start|>system\n"
    user: str = "<|im_start|>user\n"
    assistant: str = "<|im_start|>assistant\n"
    markers: tuple[str, ...] = ("<|im_start|>", "<|im_end|>")
    never_trained: tuple[str, ...] = ()

    @property
    def stop(self) -> str:
        """Token that ends a generated answer."""
        return self.separator.strip()


_SYSTEM_2 = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，"
    "英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_SYSTEM_2_5 = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

TEMPLATES = {
    template.name: template
    for template in (
        Template(
            name="internlm2-chat",
            system_message=_SYSTEM_2,
            separator="<|im_end|>",
            joint=True,
            strip=True,
            count_response=True,
        ),
        Template(
            name="Hermes-2",
            system_message=_SYSTEM_2,
            separator="<|im_end|>",
            joint=True,
        ),
        Template(
            name="phi3-chat",
            system_message=_SYSTEM_2,
            separator="<|end|>",
            joint=True,
            system="<|system|>\n",
            user="<|user|>\n",
            assistant="<|assistant|>\n",
            markers=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
            never_trained=("<|endoftext|>",),
        ),
        Template(
            name="internvl2_5",
            system_message=_SYSTEM_2_5,
            separator="<|im_end|>\n",
            joint=False,
        ),
    )
}
"""Templates by the name that config.json gives them."""


def get_template(name: str) -> Template:
    """The template called `name`.

    Raises:
      ValueError: there is none; names the nearest.
    """
    if name in TEMPLATES:
        return TEMPLATES[name]
    near = fields.nearest(name, TEMPLATES, n=2, cutoff=0.4, ignore_case=True)
    raise ValueError(
        f"unknown template {name!r} (data.template, or template in config.json)"
        f"{fields.did_you_mean(map(repr, near)) or '.'} Known: {', '.join(TEMPLATES)}"
    )


def check_tokenizer(template: Template, tokenizer: ChatTokenizer, where: str) -> None:
    """Check that every chat token of a template is one token of a tokenizer.

    Args:
      where: the tokenizer's place, for the message.

    Raises:
      ValueError: naming template, token and the templates that would fit.
    """
    for token in template.markers:
        if tokenizer.id_of(token) is None:
            fits = [
                other.name
                for other in TEMPLATES.values()
                if all(tokenizer.id_of(t) is not None for t in other.markers)
            ]
            hint = f"use data.template={' or '.join(fits)}" if fits else "no one fits"
            raise ValueError(
                f"template {template.name!r} needs the token {token!r}, which the "
                f"tokenizer of {where} does not have; {hint}, or set data.tokenizer to "
                "the model's own"
            )


def add_placeholder(question: str) -> str:
    """Put the placeholder before a single-image question that has none (upstream)."""
    return question if PLACEHOLDER in question else f"{PLACEHOLDER}\n{question}"


def find_image_token(text: str) -> str | None:
    """The first string in `text` that would become an image token, or None.

    Such text would take an image slot away from an image; upstream lets it through.
    """
    return next((t for t in tokenizer_lib.IMAGE_TOKENS if t in text), None)


def find_chat_marker(text: str, tokenizer: ChatTokenizer) -> str | None:
    """The first chat or control token in `text`, or None.

    Of any template, and the special tokens of `tokenizer`; those for grounding, such as
    ``<box>``, are text of records. A text with another one has been rendered already:
    its end would be trained twice, or a turn would open inside a response. Another
    model's tokens are letters to this one, which should not learn them either.
    """
    return next((marker for marker in _markers(tokenizer) if marker in text), None)


def as_letters(text: str, tokenizer: ChatTokenizer) -> str:
    """`text` with ``tokenizer.CUT`` in every image token and chat marker.

    Encoded, it is the same text and holds none of these tokens: their letters are
    tokenised like any others. Those for grounding stay tokens, as in records.
    (Llama's older tokenizers put a space before each part of a text, so at a cut too.)
    """
    names = (*tokenizer_lib.IMAGE_TOKENS, *_markers(tokenizer))
    # A marker of one character cannot be cut. One that begins inside another must be.
    pattern = "|".join(re.escape(name) for name in names if len(name) > 1)
    starts = f"(?=(?:{pattern}))(.)"
    return re.sub(starts, rf"\1{tokenizer_lib.CUT}", text, flags=re.DOTALL)


@functools.lru_cache(maxsize=8)
def _markers(tokenizer: ChatTokenizer) -> tuple[str, ...]:
    found = [
        marker
        for template in TEMPLATES.values()
        for marker in (*template.markers, *template.never_trained)
    ]
    found += [token.content for token in tokenizer.added_tokens() if token.special]
    named = (tokenizer.bos_id, tokenizer.pad_id)
    found += [tokenizer.token(i) for i in named if i is not None]
    text = tokenizer_lib.ADDED_TOKENS
    return tuple(marker for marker in dict.fromkeys(found) if marker not in text)


def render_prompt(
    template: Template,
    question: str,
    *,
    num_image_tokens: Sequence[int] = (),
    history: Sequence[tuple[str, str]] = (),
    system_message: str | None = None,
) -> str:
    """The text that a model is given to answer `question` (upstream ``chat``).

    Args:
      template: the model's template.
      question: text; one image without any placeholder and without history gets one
        in front.
      num_image_tokens: context tokens of every image, in order. They replace the
        placeholders from left to right over the whole conversation; placeholders
        beyond them remain text.
      history: earlier (question, answer) pairs.
      system_message: other text for the system segment; None is the template's.

    Returns:
      Text that ends with an open assistant header. Tokenise it in one piece, BOS
      first where ``tokenizer.add_bos``.

    Raises:
      ValueError: a message holds an image token, or placeholders are too few.
    """
    if num_image_tokens and not history:
        question = add_placeholder(question)
    turns = [text for pair in history for text in pair] + [question]
    system = template.system_message if system_message is None else system_message
    for text in [system, *turns]:
        smuggled = find_image_token(text)
        if smuggled:
            raise ValueError(f"{smuggled!r} must not stand in a message: {text[:80]!r}")
    prompt = _conversation_text(template, turns, system)
    parts = _split_at_images(prompt, len(num_image_tokens))
    for part, count in zip(parts[1:], num_image_tokens, strict=True):
        context = tokenizer_lib.IMG_CONTEXT * count
        parts[0] += tokenizer_lib.IMG_START + context + tokenizer_lib.IMG_END + part
    return parts[0]


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

    Arguments as :func:`render_prompt`, whose text these are the ids of; a
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
        text = _conversation_text(template, turns, system)
        # A placeholder in the answer is text, whatever upstream's training does.
        parts = _split_at_images(text, len(counts))
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
        text = _conversation_text(template, turns, system)
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
    text = _conversation_text(template, turns, template.system_message)
    in_text = min(text.count(PLACEHOLDER), len(counts))
    if head is None:
        head = _encode_images(tokenizer, text, counts[:in_text])
    if not response:
        if in_text < len(counts):
            _split_at_images(text, len(counts))  # raises: placeholders are too few
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
    parts = _split_at_images(text, len(counts))
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


def _conversation_text(template: Template, turns: Sequence[str], system: str) -> str:
    """A conversation up to its open assistant header, images as placeholders."""
    text = template.system + system + template.separator
    for number, turn in enumerate(turns):
        header = template.assistant if number % 2 else template.user
        text += _message(header, turn, template.separator)
    return text + template.assistant


def _message(header: str, text: str, separator: str) -> str:
    # Upstream takes an empty message for one that is still to be written.
    return header + text + separator if text else header


def _split_at_images(text: str, count: int) -> list[str]:
    parts = text.split(PLACEHOLDER, count) if count else [text]
    if len(parts) != count + 1:
        raise ValueError(
            f"{count} images but {len(parts) - 1} {PLACEHOLDER!r} placeholders in "
            f"{text[:200]!r}"
        )
    return parts
