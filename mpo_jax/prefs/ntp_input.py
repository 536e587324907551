"""Lines that Dropout-NTP pairs are made of: a question, its images, maybe an answer.

``{"id"?, "question", "image", "chosen"?, "seed"?}``; without ``chosen`` the model's own
answer is asked for first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.inputs import images as images_lib


@dataclasses.dataclass(frozen=True)
class Given:
    """A line of the input.

    Attributes:
      key: of its content, the bytes of its images included: 32 hexadecimal digits.
      line: number from 1.
      id: as given; None where there is none.
      question: text, with its placeholders.
      images: paths below the root.
      chosen: the answer that is preferred; None asks the model for its own.
      seed: of its draws; None derives it from the run's and `key`.
    """

    key: str
    line: int
    id: str | int | None
    question: str
    images: tuple[str, ...]
    chosen: str | None
    seed: int | None

    def to_json(self) -> dict[str, Any]:
        """For a file of ours."""
        return dataclasses.asdict(self)

    @classmethod
    def of_json(cls, found: dict[str, Any]) -> Given:
        """Back from :meth:`to_json`."""
        return cls(**{**found, "images": tuple(found["images"])})


def root_of(path: pathlib.Path, root: str) -> str:
    """Absolute folder that images are below: `root`, or the input's own."""
    return os.path.abspath(root or path.parent)


def read(
    path: pathlib.Path,
    root: str,
    *,
    read_image: Callable[[str], bytes] = images_lib.read_file,
) -> Iterator[Given | ledger.Entry]:
    """Every line that is not blank, or why it is left out, in order.

    Args:
      root: of :func:`root_of`.
      read_image: gives the bytes of an image by its absolute path.
    """
    with open(path, "rb") as file:
        for number, line in enumerate(questions.lines_of(file), 1):
            if line is not None and not line.strip():
                continue
            try:
                yield _given(line, number, root, read_image)
            except ledger.BadRecord as error:
                yield questions.entry(path, number, error)


def _given(
    line: bytes | None, number: int, root: str, read_image: Callable[[str], bytes]
) -> Given:
    record = questions.record_of(line)
    named = record.get("id") is not None
    numbered = record if named else {**record, "id": number}
    # What is given without a root lies below the input's folder: meta.json has one.
    asked = questions.parse(json.dumps(numbered).encode(), questions.Base(root, True))
    for name in ("prefix", "system", "history"):
        if getattr(asked, name):
            raise ledger.BadRecord(
                "unsupported",
                f"{name}={ledger.short(record[name])}: a pair is one question with its "
                "images and two answers; leave it out",
            )
    images = tuple(_below(image, root) for image in asked.images)
    chosen = _chosen(record)
    contents = [hashlib.sha256(read_image(image)).hexdigest() for image in asked.images]
    identity = [asked.id if named else None, asked.question, contents, chosen]
    digest = hashlib.sha256(json.dumps([*identity, asked.seed]).encode())
    return Given(
        key=digest.hexdigest()[:32],
        line=number,
        id=asked.id if named else None,
        question=asked.question,
        images=images,
        chosen=chosen,
        seed=asked.seed,
    )


def _below(image: str, root: str) -> str:
    if os.path.commonpath([image, root]) != root:
        raise ledger.BadRecord(
            "image_missing",
            f"image {ledger.short(image, 300)} does not lie below {root}; name a "
            "--root that holds all images (--root=/ does)",
        )
    return os.path.relpath(image, root)


def _chosen(record: dict[str, Any]) -> str | None:
    value = record.get("chosen")
    if value is None:
        return None
    wanted = "a text, or absent for the model's own answer"
    if isinstance(value, str) and value.strip():
        try:
            value.encode()
            return value
        except UnicodeEncodeError:
            wanted = "Unicode text"
    raise ledger.BadRecord(
        "bad_field", f"chosen={ledger.short(value)}: must be {wanted}"
    )
