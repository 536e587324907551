"""What clients of stores raise, as errors of ours that name the address.

What may pass by itself is a ``ConnectionError``, whatever the client calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_DENIED = frozenset({401, 403})
_CLIENTS = ("aiohttp", "requests", "urllib3", "botocore")
"""Libraries whose errors speak of the connection, unless they carry another code."""


@contextlib.contextmanager
def told(address: str, *, writes: bool = False) -> Iterator[None]:
    """Raise every error of a client as one that names the address and a remedy.

    Args:
      writes: whether something is written there.

    Raises:
      FileNotFoundError: nothing is there; where something is written, no bucket.
      PermissionError: the store does not let us.
      ConnectionError: the store is away.
      Exception: anything else, as it is.
    """
    try:
        yield
    except FileNotFoundError as error:
        missing = ": there is no such bucket; create it, or mend the name"
        raise FileNotFoundError(
            f"{address}{missing if writes else ' does not exist'}"
        ) from error
    except Exception as error:
        kind = _kind(error)
        if kind is None:
            raise
        remedy = _right(writes) if kind is PermissionError else ""
        words = f"{type(error).__name__}: {' '.join(str(error)[:300].split())}"
        raise kind(f"{address}: {words}{remedy}") from error


def _right(writes: bool) -> str:
    action, role = "read and list", "Storage Object Viewer"
    if writes:
        action, role = "write to", "Storage Object User"
    return (
        f"; give the account of this machine the right to {action} it (on Google Cloud "
        f"the role {role}; your own with `gcloud auth application-default login`)"
    )


def _kind(error: Exception) -> type[OSError] | None:
    """What an error of a client is to us; None: what it says itself."""
    text = str(getattr(error, "code", None) or getattr(error, "status", None))
    code = int(text) if text.isdigit() else None
    if code in _DENIED or isinstance(error, PermissionError):
        return PermissionError
    if str(error).startswith("Forbidden"):  # gcsfs, an OSError without a number
        return PermissionError
    if code in _PASSING:
        return ConnectionError
    library = type(error).__module__.partition(".")[0]
    if library == "botocore" and "Credentials" in type(error).__name__:
        return PermissionError
    if code is None and library in _CLIENTS:
        return ConnectionError
    if isinstance(error, TimeoutError | ConnectionError):
        return ConnectionError
    return None
