"""Tokens to text as they come: whole characters, and an end at stop strings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

Decode = Callable[[Sequence[int]], str]
"""Text of token ids, special tokens left out."""

_BROKEN = "\ufffd"
_CONTEXT = 8
"""Tokens that are decoded again before new ones: what joins them is seen."""
_WINDOW = 8
"""Tokens without a whole character, after which broken bytes count as text."""


class TextStream:
    """Text of one answer, as its tokens come.

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
        self._settled = self._context(list(prefix))
        self._new: list[int] = []
        self._held = ""
        self.stopped = False

    def push(self, tokens: Sequence[int]) -> tuple[str, int]:
        """Take the answer's next tokens.

        Returns:
          The text that is certain now, and how many of the tokens belong to the answer:
          all, or those up to the one that completed a stop string.
        """
        before = (list(self._settled), list(self._new), self._held)
        said = self._take(tokens)
        if not self.stopped:
            return said, len(tokens)
        # Rare, so that tokens are only then looked at one by one.
        self._settled, self._new, self._held = before
        self.stopped, parts, number = False, [], 0
        while not self.stopped and number < len(tokens):
            parts.append(self._take(tokens[number : number + 1]))
            number += 1
        return "".join(parts), number

    def _take(self, tokens: Sequence[int]) -> str:
        self._new += [token for token in tokens if token not in self._stop_ids]
        whole = self._whole_characters()
        taken, self._new = self._new[:whole], self._new[whole:]
        before = self._decode(self._settled)
        self._settled = [*self._settled, *taken]
        self._held += self._decode(self._settled)[len(before) :]
        self._settled = self._context(self._settled)
        return self._release()

    def _context(self, tokens: list[int]) -> list[int]:
        """Some of the last tokens, from the beginning of a character on.

        Cut within one, some decoders would break the characters behind it, too.
        """
        text, size = self._decode(tokens), _CONTEXT
        while size < len(tokens) and not text.endswith(self._decode(tokens[-size:])):
            size += 1
        return tokens[-size:]

    def _whole_characters(self) -> int:
        """How many of the new tokens end in a whole character, or never will."""
        for left in range(min(len(self._new), _WINDOW)):
            number = len(self._new) - left
            text = self._decode([*self._settled, *self._new[:number]])
            if not text.endswith(_BROKEN):
                return number
        return 0 if len(self._new) < _WINDOW else len(self._new)

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
