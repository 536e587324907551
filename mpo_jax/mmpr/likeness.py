"""Which records are alike: equal, equal but for the writing, or opposite.

The index keeps small keys of every record, so that nothing is read again to compare
millions of them. Texts are compared without regard to white space, case and the
placeholder that stands in front of a question with one image, images by their bytes.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpo_jax.inputs import images, template
from mpo_jax.types import PreferenceRecord

if TYPE_CHECKING:
    from mpo_jax.mmpr.index import Index

FOREIGN_MARKERS = (
    *("<|endoftext|>", "</s>", "[INST]", "[/INST]", "<|eot_id|>"),
    *("<|start_header_id|>", "<start_of_turn>", "<end_of_turn>"),
)
"""Chat markers of other families, which a text may have been stored with.

A text with those of the templates here is left out (``template.find_chat_marker``).
"""

_MARKERS = re.compile("|".join(map(re.escape, FOREIGN_MARKERS)))


def record_hash(
    record: PreferenceRecord, read: Callable[[str], bytes] = images.read_file
) -> bytes:
    """BLAKE2b (16 bytes) of the texts and of the bytes of every image file.

    Every part is preceded by its length, so that no two records share a stream.

    Raises:
      BadRecord: an image cannot be read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in _parts(record, read):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()


def _parts(record: PreferenceRecord, read: Callable[[str], bytes]) -> Iterable[bytes]:
    for text in (record.question, record.chosen, record.rejected):
        yield text.encode("utf-8")
    for path in record.images:
        yield read(path)


def keys(record: PreferenceRecord, read: Callable[[str], bytes]) -> dict[str, int]:
    """Keys of a record: 64 bits each of its prompt (images too) and its answers.

    Args:
      record: the parsed line.
      read: gives the bytes of an image by its path.
    """
    question = record.question
    if len(record.images) == 1:
        question = question.strip().removeprefix(template.PLACEHOLDER)
    prompt = [_normalised(question), *(read(path) for path in record.images)]
    return {
        "prompt_key": _key(prompt),
        "chosen_key": _key([_normalised(record.chosen)]),
        "rejected_key": _key([_normalised(record.rejected)]),
    }


def markers(record: PreferenceRecord) -> int:
    """How often the texts of a record hold one of :data:`FOREIGN_MARKERS`."""
    texts = (record.question, record.chosen, record.rejected)
    return sum(len(_MARKERS.findall(text)) for text in texts)


def _normalised(text: str) -> bytes:
    text = unicodedata.normalize("NFC", text).casefold()
    return " ".join(text.split()).encode("utf-8")


def _key(parts: Sequence[bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def equal(index: Index) -> Iterator[np.ndarray]:
    """Yield groups of record numbers whose texts and images are byte-equal."""
    halves = np.ascontiguousarray(index.hash).view(np.uint64)
    yield from _groups(halves[:, 0], halves[:, 1])


def nearly_equal(index: Index) -> Iterator[np.ndarray]:
    """Yield groups of record numbers that differ in nothing but how they are written.

    Groups of byte-equal records alone are left to :func:`equal`.
    """
    hashes = np.ascontiguousarray(index.hash).view(np.uint64)
    for group in _groups(index.prompt_key, index.chosen_key, index.rejected_key):
        if (hashes[group] != hashes[group[0]]).any():
            yield group


def opposite(index: Index) -> Iterator[np.ndarray]:
    """Yield groups of records of one prompt where one prefers what another rejects.

    That is, the chosen answer of the one is the rejected answer of the other and the
    other way round.
    """
    low = np.minimum(index.chosen_key, index.rejected_key)
    high = np.maximum(index.chosen_key, index.rejected_key)
    for group in _groups(index.prompt_key, low, high):
        if (index.chosen_key[group] != index.chosen_key[group[0]]).any():
            yield group


EQUAL, NEARLY, OPPOSITE, MARKED = "equal", "nearly equal", "opposite", "chat markers"

MEANING = {
    EQUAL: "texts and images are byte-equal",
    NEARLY: "the same but for white space, case or a written-out placeholder",
    OPPOSITE: "one prefers what another rejects, on the same images and question",
    MARKED: "a text holds a marker of another family's chat, such as [INST]; those of "
    "the templates here are left out",
}
"""What each notable kind of record is."""


class Alike:
    """What is notable about an index; found once, since millions are compared.

    Attributes:
      groups: groups of record numbers that are alike or opposite, by kind.
      notable: record numbers of every notable kind, the members of a group together.
    """

    def __init__(self, index: Index):
        self.groups = {
            EQUAL: list(equal(index)),
            NEARLY: list(nearly_equal(index)),
            OPPOSITE: list(opposite(index)),
        }
        self.notable = {
            kind: np.concatenate([np.zeros(0, np.int64), *members])
            for kind, members in self.groups.items()
        }
        self.notable[MARKED] = np.flatnonzero(index.markers)


def kinds(index: Index, numbers: Sequence[int], alike: Alike) -> list[list[str]]:
    """For each record what it is: by its images, and of which notable kinds."""
    members = {kind: set(group.tolist()) for kind, group in alike.notable.items()}
    result = []
    for number in numbers:
        count = min(int(index.images[number]), 2)
        form = ("text only", "one image", "several images")[count]
        result.append([form, *(kind for kind in members if number in members[kind])])
    return result


def where(index: Index, group: np.ndarray, *, most: int = 8) -> str:
    """Source and line of the first records of a group."""
    shown = ", ".join(
        f"{index.sources[index.source[n]].name}:{index.line[n]}" for n in group[:most]
    )
    return shown + (f" and {len(group) - most} more" if len(group) > most else "")


def _groups(*columns: np.ndarray) -> Iterator[np.ndarray]:
    """Groups of two or more rows that agree in all columns; rows ascend."""
    order = np.lexsort(columns)  # stable
    same = np.ones(max(len(order) - 1, 0), bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    starts = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0) == 1)
    ends = np.flatnonzero(np.diff(same.astype(np.int8), append=0) == -1) + 2
    for start, end in zip(starts, ends, strict=True):
        yield order[start:end]
