"""Bounds on what comes from outside, and the room that requests share."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

from mpo_jax import fields
from mpo_jax.serve import errors


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may be and how many there may be.

    Attributes:
      body_bytes: of one request.
      json_items: brackets, braces and commas of a body, those in texts counted too:
        small values take more memory parsed than written.
      text_characters: of all texts of a request.
      messages: of a conversation.
      prompts: of one completions request.
      samples: answers to one request, over all its prompts.
      images: of one request.
      image_pixels: of one image.
      request_pixels: of all images of a request; they are decoded together.
      tiles: of one image, its thumbnail not counted.
      requests: that are read, wait or are answered at a time; more get a 503.
      held_bytes: of their bodies and tiles together; likewise.
      connections: at a time.
      head_seconds: for a connection without a request, and for the head of one.
      body_seconds: for reading a body.
      write_seconds: for a client to take what is sent to it.
      drain_seconds: for what runs when the server is told to stop.
      retry_seconds: what a 503 tells the client to wait.
    """

    body_bytes: int = fields.field(32 * 2**20, positive=True)
    json_items: int = fields.field(2**18, positive=True)
    text_characters: int = fields.field(2**18, positive=True)
    messages: int = fields.field(256, positive=True)
    prompts: int = fields.field(16, positive=True)
    samples: int = fields.field(128, positive=True)
    images: int = fields.field(64, positive=True)
    image_pixels: int = fields.field(50_000_000, positive=True)
    request_pixels: int = fields.field(100_000_000, positive=True)
    tiles: int = fields.field(40, positive=True)
    requests: int = fields.field(256, positive=True)
    held_bytes: int = fields.field(2**31, positive=True)
    connections: int = fields.field(1024, positive=True)
    head_seconds: float = fields.field(30.0, positive=True)
    body_seconds: float = fields.field(60.0, positive=True)
    write_seconds: float = fields.field(60.0, positive=True)
    drain_seconds: float = fields.field(60.0, positive=True)
    retry_seconds: float = fields.field(2.0, positive=True)


class Room:
    """Counts the requests inside and the bytes that they hold; one thread uses it.

    Attributes:
      requests: inside now.
      held_bytes: of all of them.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self.requests = 0
        self.held_bytes = 0

    @contextlib.contextmanager
    def enter(self) -> Iterator[Place]:
        """Take a place for one request while the block runs.

        Raises:
          Refused: 503, there is none.
        """
        most = self._limits.requests
        if self.requests >= most:
            message = f"{most} requests wait or are answered already; ask again later"
            raise errors.busy(message, self._limits.retry_seconds)
        self.requests += 1
        place = Place(self)
        try:
            yield place
        finally:
            place.hold(0)
            self.requests -= 1

    def grow(self, more: int) -> None:
        """Count `more` bytes, which may be negative.

        Raises:
          Refused: 503, there is no room for them.
        """
        most = self._limits.held_bytes
        if more > 0 and self.held_bytes + more > most:
            message = (
                f"requests hold {self.held_bytes} of {most} bytes; ask again later"
            )
            raise errors.busy(message, self._limits.retry_seconds)
        self.held_bytes += more


class Place:
    """One request's share of a :class:`Room`."""

    def __init__(self, room: Room):
        self._room = room
        self._held = 0

    def hold(self, size: int) -> None:
        """Hold `size` bytes from now on, instead of what was held before.

        Raises:
          Refused: as :meth:`Room.grow`.
        """
        self._room.grow(size - self._held)
        self._held = size
