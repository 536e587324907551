"""Questions with pictures for Dropout-NTP, and a model that says readable nonsense."""

from __future__ import annotations

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import speaking

from mpo_jax import api
from mpo_jax.inputs import tokenizer as tokenizers


def write_model(directory: pathlib.Path) -> pathlib.Path:
    """As ``speaking.write_model``, but bytes that are no ASCII are hardly ever said."""
    raw = speaking.write_model(directory.with_name(directory.name + "-raw"))
    tokens, found = tokenizers.load_tokenizer(raw), api.InternVL.from_pretrained(raw)
    head = found.params["language"]["lm_head"]["kernel"]
    rng = np.random.default_rng(0)
    kernel = 1.2 * rng.standard_normal(head.shape).astype(np.float32)
    for i in range(head.shape[1]):
        text = tokens.decode([i])
        if not (text and text.isascii() and text.isprintable()):
            kernel[:, i] = 0.0
    kernel[:, tokens.id_of("<|im_end|>")] = rng.standard_normal(head.shape[0])
    found.params["language"]["lm_head"]["kernel"] = jnp.asarray(kernel)
    found.save_pretrained(directory, dtype="float32")
    return directory


def records(images: list[str], number: int) -> list[dict[str, Any]]:
    """Some with an answer, some without; with one picture, with two, with none."""
    found = []
    for i in range(number):
        record: dict[str, Any] = {"question": f"<image>\nhow many are {i}?"}
        record["image"] = images[i % len(images)]
        if i % 2:
            record["id"] = i
        if i % 5 == 2:
            record["question"] = f"<image><image> how many? {i}"
            record["image"] = [images[i % len(images)], images[0]]
        if i % 6 == 4:
            record["chosen"] = f"the answer is {i} 图中有三个圆形"
        found.append(record)
    return found
