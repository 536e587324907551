"""Tokens to text as they come: whole characters, and an end at stop strings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens left out."""

_BROKEN = "\ufffd"
_CONTEXT = 8
"""Tokens that are decoded again before new ones: what joins them is seen."""
_WINDOW = 16
"""Tokens without a whole character, after which broken bytes count as text."""


class TextStream:
    """Text of one answer, token by token.

    The text of a token may depend on those before it (a space of sentencepiece, bytes
    of one character), so some tokens before it are decoded with it. Text is held back
    while it may still become a stop string or a whole character.

    Attributes:
      stopped: a stop string has come; what follows is not part of the answer.
    """

    def __init__(
        self,
        decode: Decode,
        *,
        prefix: Sequence[int] = (),
        stop: Sequence[str] = (),
        stop_ids: Collection[int] = (),
    ):
        """
        Args:
          prefix: ids of the answer's given beginning, whose text is not repeated.
          stop: texts that end the answer.
          stop_ids: tokens that end it, which have no text.
        """
        self._decode, self._stop = decode, tuple(stop)
        self._stop_ids = frozenset(stop_ids)
        self._settled = list(prefix)[-_CONTEXT:]
        self._new: list[int] = []
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Take the answer's next token; returns the text that is certain now."""
        if self.stopped or token in self._stop_ids:
            return ""
        self._new.append(token)
        before = self._decode(self._settled)
        text = self._decode([*self._settled, *self._new])
        if text.endswith(_BROKEN) and len(self._new) < _WINDOW:
            return ""
        self._settled = [*self._settled, *self._new][-_CONTEXT:]
        self._new = []
        self._held += text[len(before) :]
        return self._release()

    def finish(self) -> str:
        """What was held back, when no token follows."""
        if self.stopped:
            return ""
        before = self._decode(self._settled)
        rest = self._decode([*self._settled, *self._new])[len(before) :]
        self._held, rest = "", self._held + rest
        self._new = []
        found = self._find(rest)
        if found is not None:
            self.stopped = True
            return rest[:found]
        return rest

    def _find(self, text: str) -> int | None:
        """Where the first stop string begins."""
        places = [text.find(stop) for stop in self._stop]
        return min((place for place in places if place >= 0), default=None)

    def _release(self) -> str:
        found = self._find(self._held)
        if found is not None:
            self.stopped = True
            out, self._held = self._held[:found], ""
            return out
        keep = max((self._overlap(stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _overlap(self, stop: str) -> int:
        """Longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        lengths = range(longest, 0, -1)
        return next((k for k in lengths if self._held.endswith(stop[:k])), 0)
