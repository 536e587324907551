"""Images at addresses: read whole, kept on this machine, refused as files are."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator
from concurrent import futures
from typing import TypeVar

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.mmpr import listings as listings_lib
from mpo_jax.utils import fetched, located, objects

T = TypeVar("T")

AHEAD = 16
"""Images that are read at once while records are visited in order."""

_AHEAD_BYTES = 1 << 28


def read(
    address: str,
    cache: fetched.LocalCache,
    listings: listings_lib.Listings | None,
) -> bytes:
    """Bytes of an image object, from this machine where they are kept.

    Args:
      address: of the object.
      cache: keeps what is read.
      listings: says what there is without a request; where it does not know, the
        store is asked.

    Raises:
      BadRecord: ``image_missing``, or ``image_too_large`` (more than
        ``images.MAX_FILE_BYTES``, unread).
      OSError: the store is away, or does not let us; not the record's fault.
    """
    if listings is not None and listings.knows(address):
        stored = listings.stored(address)
    else:
        stored = objects.stored(address)
    if stored is None:
        raise _missing(address)
    if stored.size > images.MAX_FILE_BYTES:
        raise ledger.BadRecord(
            "image_too_large",
            f"image {address!r} has {stored.size} bytes, the limit is "
            f"{images.MAX_FILE_BYTES}",
        )
    try:
        return cache.read(address, stored)
    except FileNotFoundError as error:  # since it was listed
        raise _missing(address) from error


def _missing(address: str) -> ledger.BadRecord:
    folder = located.parent(address)
    return ledger.BadRecord(
        "image_missing",
        f"image {ledger.short(address, 300)} does not exist: there is no object "
        f"{ledger.short(located.name(address))} in {folder!r}; check root in "
        "meta.json, upper and lower case, and that the images are uploaded",
    )


class Ahead:
    """Reads images of records to come in threads, for one that goes in order."""

    def __init__(
        self,
        cache: fetched.LocalCache,
        listings: listings_lib.Listings | None,
    ):
        self._cache, self._listings = cache, listings

    def over(
        self, lines: Iterable[tuple[T, list[str]]]
    ) -> Iterator[tuple[T, dict[str, futures.Future[bytes]]]]:
        """Yield every item with the images that it asks for, which are being read.

        At most :data:`AHEAD` images, or one item's, are read ahead, and at most 256 MiB
        where sizes are known.
        """
        window = collections.deque[tuple[T, dict[str, futures.Future[bytes]], int]]()
        # An image that several items of the window ask for is read once.
        users, running = collections.Counter[str](), dict[str, futures.Future[bytes]]()
        size = 0
        pool = futures.ThreadPoolExecutor(AHEAD, thread_name_prefix="mpo-ahead")
        try:
            for item, addresses in lines:
                for address in addresses:
                    users[address] += 1
                    if address not in running:
                        running[address] = pool.submit(
                            read, address, self._cache, self._listings
                        )
                mine = {address: running[address] for address in addresses}
                window.append((item, mine, self._size(addresses)))
                size += window[-1][2]
                while window and (len(running) > AHEAD or size > _AHEAD_BYTES):
                    item, mine, bytes_ = window.popleft()
                    yield item, mine
                    size -= bytes_
                    for address in mine:
                        users[address] -= 1
                        if not users[address]:
                            del running[address], users[address]
            for item, mine, _ in window:
                yield item, mine
        finally:
            pool.shutdown(cancel_futures=True)

    def _size(self, addresses: list[str]) -> int:
        if self._listings is None or not addresses:
            return 0
        sizes = self._listings.look_at(addresses)[:, 0]
        return int(sizes[sizes > 0].sum())
