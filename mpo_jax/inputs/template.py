"""Chat templates of the released models, and the texts that they make.

Upstream has one preprocessing function per template; here a template is data and says
which of two tokenisation rules it follows (``encoding.py``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

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
    prompt = conversation_text(template, turns, system)
    parts = split_at_images(prompt, len(num_image_tokens))
    for part, count in zip(parts[1:], num_image_tokens, strict=True):
        context = tokenizer_lib.IMG_CONTEXT * count
        parts[0] += tokenizer_lib.IMG_START + context + tokenizer_lib.IMG_END + part
    return parts[0]


def conversation_text(template: Template, turns: Sequence[str], system: str) -> str:
    """A conversation up to its open assistant header, images as placeholders."""
    text = template.system + system + template.separator
    for number, turn in enumerate(turns):
        header = template.assistant if number % 2 else template.user
        text += _message(header, turn, template.separator)
    return text + template.assistant


def _message(header: str, text: str, separator: str) -> str:
    # Upstream takes an empty message for one that is still to be written.
    return header + text + separator if text else header


def split_at_images(text: str, count: int) -> list[str]:
    parts = text.split(PLACEHOLDER, count) if count else [text]
    if len(parts) != count + 1:
        raise ValueError(
            f"{count} images but {len(parts) - 1} {PLACEHOLDER!r} placeholders in "
            f"{text[:200]!r}"
        )
    return parts
