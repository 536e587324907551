"""Chat template and generation settings of a native export.

A template that a model directory has is judged by the prompt that it gives: fine-tuning
tools leave the language model's own there, which knows no images.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mpo_jax.convert import files
from mpo_jax.inputs import template, tokenizer

_QUESTION = "What is it?"
_PROBE = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": _QUESTION}],
    }
]


def write_template(
    source: pathlib.Path,
    target: pathlib.Path,
    name: str,
    *,
    video: str,
    roles: Mapping[str, str],
    trained: bool,
) -> list[str]:
    """Write the chat template; returns notes to print.

    That of the source where it puts the image and its question into the prompt and, if
    the weights were `trained` with template `name`, gives the prompt of training; else
    the one that `name` stands for.

    Args:
      video: token that stands for a video.
      roles: named tokens of the tokenizer, which a template may use.
    """
    theirs = [file for file in files.CHAT_TEMPLATES if (source / file).is_file()]
    known = template.TEMPLATES.get(name)
    ours = None if known is None else _jinja(known, video)
    fault = None
    if theirs:
        meant = None if ours is None or not trained else _render(ours, roles)
        fault = _fault(_text(source / theirs[0]), roles, meant=meant)
    if theirs and (fault is None or ours is None):
        for file in theirs:
            (target / file).write_bytes((source / file).read_bytes())
        return [] if fault is None else [f"{theirs[0]} of the source {fault}"]
    if ours is None:
        return [f"no chat template is written: template {name!r} is unknown"]
    for file in theirs:
        (target / file).unlink(missing_ok=True)
    (target / files.CHAT_TEMPLATES[0]).write_text(ours, encoding="utf-8")
    if fault is None:
        return []
    return [f"{theirs[0]} of the source {fault}; that of {name!r} is written instead"]


def _text(file: pathlib.Path) -> str:
    if file.suffix == ".json":
        return str(files.read_json(file).get("chat_template", ""))
    return file.read_text(encoding="utf-8")


def _fault(text: str, roles: Mapping[str, str], *, meant: str | None) -> str | None:
    """What is wrong with the prompt of a question about an image, or None."""
    try:
        found = _render(text, roles)
    except Exception as error:  # templates are programs: they can raise anything
        return f"fails on a question about an image ({type(error).__name__}: {error})"
    if tokenizer.IMG_CONTEXT not in found or _QUESTION not in found:
        return "leaves out an image or its question"
    if meant is not None and found != meant:
        return "gives another prompt than the one trained with"
    return None


def _render(text: str, roles: Mapping[str, str]) -> str:
    """The prompt that transformers makes of the probe."""
    made = _renderer()
    return str(
        made.apply_chat_template(
            _PROBE,
            chat_template=text,
            tokenize=False,
            add_generation_prompt=True,
            **{role: token for role, token in roles.items()},
        )
    )


@functools.cache
def _renderer() -> Any:
    """A tokenizer of no vocabulary: templates are rendered before it is asked."""
    import tokenizers
    import transformers

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE())
    )


def _jinja(chat: template.Template, video: str) -> str:
    """The template in Jinja; its default system message is the released one."""
    quote = json.dumps
    separator = quote(chat.separator, ensure_ascii=False)
    system = quote(chat.system_message, ensure_ascii=False)
    parts = [
        "{%- if messages[0]['role'] != 'system' %}",
        "{{- " + f"{quote(chat.system)} + {system} + {separator}" + " }}",
        "{%- endif %}",
        "{%- for message in messages %}",
        "{%- if message['role'] == 'system' %}{{- " + quote(chat.system) + " }}",
        "{%- elif message['role'] == 'user' %}{{- " + quote(chat.user) + " }}",
        "{%- elif message['role'] == 'assistant' %}{{- "
        + quote(chat.assistant)
        + " }}",
        "{%- else %}{{- raise_exception('unknown role ' + message['role']) }}",
        "{%- endif %}",
        "{%- if message['content'] is string %}{{- message['content'] }}",
        "{%- else %}{%- for part in message['content'] %}",
        "{%- if part['type'] == 'image' %}{{- "
        + quote(tokenizer.IMG_CONTEXT + "\n")
        + " }}",
        "{%- elif part['type'] == 'video' %}{{- " + quote(video + "\n") + " }}",
        "{%- elif part['type'] == 'text' %}{{- part['text'] }}",
        "{%- endif %}{%- endfor %}{%- endif %}",
        "{{- " + separator + " }}",
        "{%- endfor %}",
        "{%- if add_generation_prompt %}{{- " + quote(chat.assistant) + " }}",
        "{%- endif %}",
    ]
    return "\n".join(parts) + "\n"


def write_generation(
    source: pathlib.Path,
    target: pathlib.Path,
    name: str,
    *,
    id_of: Callable[[str], int | None],
    roles: Mapping[str, str],
) -> list[str]:
    """Write the source's generation settings; returns notes to print.

    Generation stops where messages of the template `name` end, or as the source says.

    Args:
      id_of: id of a token, None if there is no such.
      roles: named tokens of the tokenizer.
    """
    file = source / "generation_config.json"
    content = files.read_json(file) if file.is_file() else {}
    stops = content.get("eos_token_id") or []
    stops = list(stops) if isinstance(stops, list) else [stops]
    known = template.TEMPLATES.get(name)
    if known is not None:
        stop = id_of(known.stop)
        stops = [stop, *(s for s in stops if s != stop)]
    ends = [stop for stop in stops if stop is not None]
    out: dict[str, Any] = content | {"eos_token_id": ends}
    for role in ("bos", "pad"):
        token = roles.get(f"{role}_token")
        if token is not None:
            out[f"{role}_token_id"] = id_of(token)
    files.write_json(target / "generation_config.json", out)
    if ends:
        return []
    return ["generation_config.json names no token that ends an answer"]
