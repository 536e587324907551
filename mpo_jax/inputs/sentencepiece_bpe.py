"""SentencePiece BPE models read from their protobuf, encoded id for id.

Neither library at hand does this job: some sentencepiece releases refuse InternLM2's
model (a piece is the NUL character), and ``tokenizers`` ranks merges one by one, while
this model holds thousands of pieces of equal score, whose order the position decides.

Speed comes from a fact of BPE: a merge makes a piece, so text may be cut between two
characters that stand side by side in no piece without changing any id. The cuts are
found with NumPy and most chunks between them are words, which a cache holds.
"""

from __future__ import annotations

import functools
import heapq
import re

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SPACE = "\u2581"
"""What a space is in pieces (LOWER ONE EIGHTH BLOCK)."""

_CACHED_CHUNKS = 1 << 16
_CACHED_CHARACTERS = 48  # longer chunks are rare and would only fill the cache

# Piece types and the model type of sentencepiece_model.proto.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2


@functools.cache
def _model_class() -> type:
    """Message class with the fields of sentencepiece's ``ModelProto`` that we read.

    In a descriptor pool of its own: sentencepiece and transformers register theirs
    under the same name in the default one.
    """
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="mpo_sentencepiece.proto", package="mpo", syntax="proto2"
    )
    fields = {
        "Piece": {"piece": (1, "STRING"), "score": (2, "FLOAT"), "type": (3, "INT32")},
        "Trainer": {"model_type": (3, "INT32"), "byte_fallback": (35, "BOOL")},
        "Normalizer": {
            "precompiled_charsmap": (2, "BYTES"),
            "add_dummy_prefix": (3, "BOOL"),
            "remove_extra_whitespaces": (4, "BOOL"),
            "escape_whitespaces": (5, "BOOL"),
        },
        "Model": {"pieces": (1, "Piece"), "trainer": (2, "Trainer")}
        | {"normalizer": (3, "Normalizer")},
    }
    defaults = {"type": "1", "model_type": "1"} | dict.fromkeys(
        ("add_dummy_prefix", "remove_extra_whitespaces", "escape_whitespaces"), "true"
    )
    for name, members in fields.items():
        message = file.message_type.add(name=name)
        for member, (number, kind) in members.items():
            entry = message.field.add(name=member, number=number)
            repeated = member == "pieces"
            entry.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            if kind in fields:
                entry.type, entry.type_name = field.TYPE_MESSAGE, f".mpo.{kind}"
            else:
                entry.type = getattr(field, f"TYPE_{kind}")
            if member in defaults:
                entry.default_value = defaults[member]
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("mpo.Model"))


class SentencePieceBPE:
    """A BPE model with byte fallback, as sentencepiece encodes with it.

    One known difference: sentencepiece 0.2.3 treats a piece that is the NUL character
    as unused; here, as in the releases that InternVL was trained with, it is a piece.

    Attributes:
      pieces: the piece of every id, ``len(pieces)`` ids.
    """

    def __init__(self, model: bytes, *, dummy_prefix: bool | None = None):
        """Parse `model`, the content of a ``tokenizer.model`` file.

        Args:
          model: the file.
          dummy_prefix: put a space before every text; None is what the file says.

        Raises:
          ValueError: it is no such file, or needs something that is not built: a
            unigram model, a character map, whitespace removal, unused pieces, no
            byte fallback.
        """
        try:
            proto = _model_class().FromString(model)  # type: ignore[attr-defined]
        except Exception as error:  # protobuf's DecodeError differs by back end
            raise ValueError(f"not a sentencepiece model: {error}") from error
        types = [piece.type for piece in proto.pieces]
        refused = {
            "it has no pieces": not types,
            "model_type is not BPE": proto.trainer.model_type != _BPE,
            "byte_fallback is off": not proto.trainer.byte_fallback,
            "a byte piece is missing": types.count(_BYTE) != 256,
            "it has unused pieces": _UNUSED in types,
            "a character map is set": bool(proto.normalizer.precompiled_charsmap),
            "remove_extra_whitespaces": proto.normalizer.remove_extra_whitespaces,
            "escape_whitespaces is off": not proto.normalizer.escape_whitespaces,
        }
        if any(refused.values()):
            why = ", ".join(reason for reason, hit in refused.items() if hit)
            raise ValueError(f"sentencepiece model not supported: {why}")
        self._model = model
        if dummy_prefix is None:
            dummy_prefix = bool(proto.normalizer.add_dummy_prefix)
        self._dummy_prefix = dummy_prefix
        self.pieces: list[str] = [piece.piece for piece in proto.pieces]
        self._types = types
        self._ids = {piece: i for i, piece in enumerate(self.pieces)}
        # Only these can come out of a merge; "<s>" or "<0x0A>" as text cannot.
        mergeable = (_NORMAL, _USER_DEFINED)
        self._scores = {
            piece.piece: piece.score
            for piece in proto.pieces
            if piece.type in mergeable
        }
        bytes_at = {
            int(piece[3:5], 16): i
            for i, piece in enumerate(self.pieces)
            if types[i] == _BYTE
        }
        self._byte_ids = [bytes_at[value] for value in range(256)]
        self._byte_values = {i: bytes([v]) for v, i in bytes_at.items()}
        self._joints = _joints(self._scores)
        defined = [p.piece for p in proto.pieces if p.type == _USER_DEFINED]
        longest_first = sorted(defined, key=len, reverse=True)
        self._defined = (
            re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
            if defined
            else None
        )
        self._cache: dict[str, tuple[int, ...]] = {}

    def __reduce__(self):
        again = functools.partial(type(self), dummy_prefix=self._dummy_prefix)
        return again, (self._model,)

    @property
    def model(self) -> bytes:
        """The model file as read; everything that decides ids is in it."""
        return self._model

    @property
    def dummy_prefix(self) -> bool:
        """Whether a space is put before every text."""
        return self._dummy_prefix

    def merges(self) -> list[tuple[str, str]]:
        """Pairs of pieces that make a piece, best score first, then by the ids.

        For tokenizers that rank merges one by one; pieces of equal score have no order
        here, so those may cut rare words otherwise.
        """
        found = []
        for piece, score in self._scores.items():
            for cut in range(1, len(piece)):
                left, right = self._ids.get(piece[:cut]), self._ids.get(piece[cut:])
                if left is not None and right is not None:
                    found.append((-score, self._ids[piece], left, right))
        return [(self.pieces[a], self.pieces[b]) for _, _, a, b in sorted(found)]

    def id_of(self, piece: str) -> int | None:
        """Id of a piece, control pieces such as ``<s>`` included; None if unknown."""
        return self._ids.get(piece)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; control pieces in it are plain text, none are added.

        Takes O(n log n) at worst (one run without a cut), O(n) on ordinary text.

        Raises:
          UnicodeEncodeError: `text` holds a lone surrogate.
        """
        text = text.replace(" ", SPACE)
        if self._dummy_prefix and text:
            text = SPACE + text
        if self._defined is None:
            return self._encode_run(text)
        ids: list[int] = []
        for number, part in enumerate(self._defined.split(text)):
            if number % 2:  # a user-defined piece: never merged with its neighbours
                ids.append(self._ids[part])
            elif part:
                ids.extend(self._encode_run(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        """Text of `ids`: control pieces vanish, bad UTF-8 becomes U+FFFD.

        Raises:
          IndexError: an id is outside the model.
        """
        data = b"".join(self._surface(i) for i in ids)
        if self._dummy_prefix and ids and data.startswith(b" "):
            data = data[1:]
        return data.decode("utf-8", errors="replace")

    def _surface(self, i: int) -> bytes:
        if i < 0:
            raise IndexError(f"token id {i} is negative")
        kind = self._types[i]
        if kind == _BYTE:
            return self._byte_values[i]
        if kind == _CONTROL:
            return b""
        if kind == _UNKNOWN:
            return " \u2047 ".encode()
        return self.pieces[i].replace(SPACE, " ").encode()

    def _encode_run(self, text: str) -> list[int]:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
        pairs = (points[:-1] << np.uint64(21)) | points[1:]
        places = np.searchsorted(self._joints, pairs)
        cuts = np.flatnonzero(self._joints[places] != pairs) + 1
        ids: list[int] = []
        cache, start = self._cache, 0
        for end in [*cuts.tolist(), len(text)]:
            chunk = text[start:end]
            start = end
            found = cache.get(chunk)
            if found is None:
                found = self._merge(chunk)
                if len(chunk) <= _CACHED_CHARACTERS:
                    if len(cache) >= _CACHED_CHUNKS:
                        cache.clear()
                    cache[chunk] = found
            ids.extend(found)
        return ids

    def _merge(self, chunk: str) -> tuple[int, ...]:
        """BPE of one chunk: best score first, leftmost among equals."""
        parts = list(chunk)
        count, scores = len(parts), self._scores
        before = list(range(-1, count - 1))
        after = list(range(1, count + 1))
        heap: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right >= count:
                return
            piece = parts[left] + parts[right]
            score = scores.get(piece)
            if score is not None:
                heapq.heappush(heap, (-score, left, right, len(piece)))

        for i in range(count - 1):
            offer(i, i + 1)
        while heap:
            _, left, right, size = heapq.heappop(heap)
            # Parts only grow, so another size means that the offer is out of date.
            if not parts[left] or not parts[right]:
                continue
            if len(parts[left]) + len(parts[right]) != size:
                continue
            parts[left] += parts[right]
            parts[right] = ""
            after[left] = after[right]
            if after[right] < count:
                before[after[right]] = left
            offer(before[left], left)
            offer(left, after[left])
        ids: list[int] = []
        for part in filter(None, parts):
            if part in scores:
                ids.append(self._ids[part])
            else:
                ids.extend(self._byte_ids[value] for value in part.encode())
        return tuple(ids)


def _joints(pieces: dict[str, float]) -> np.ndarray:
    """Sorted uint64 keys of the character pairs that occur inside some piece.

    The key is ``first << 21 | second``; the last entry is larger than any key, so that
    a search never runs off the end.
    """
    text = "\n".join(pieces)  # cheaper than a loop; pairs with the joiner come along
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.uint64)
    pairs = (points[:-1] << np.uint64(21)) | points[1:]
    keys = np.unique(pairs)
    return np.append(keys, np.uint64(np.iinfo(np.uint64).max))
