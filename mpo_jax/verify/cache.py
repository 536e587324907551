"""Verdicts that are known: in memory, and in a file that several processes may share.

A key is a digest of all that a verdict depends on, so a file never has to be thrown
away; what other rules said lies beside it unread.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from mpo_jax.verify.verdict import OUTCOMES, Verdict

_APPLICATION = 0x6D706F76  # "mpov", in the file's header
_SCHEMA = 1
_WAIT_S = 60.0
_KEYS = 500
"""Keys of one query; SQLite takes 999 in every build."""

PASSING = frozenset({"maths_timeout", "maths_memory", "maths_error"})
"""Rules of verdicts that another run may not repeat: they are kept in memory alone."""


def key_of(*parts: Any) -> bytes:
    """Digest of JSON-able values, 16 bytes."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


class Cache:
    """Verdicts by key; any thread may use it."""

    def __init__(
        self, path: str | os.PathLike[str] | None = None, *, most: int = 2**20
    ):
        """
        Args:
          path: of an SQLite file, made where there is none; None keeps in memory only.
            What is no cache of ours is renamed, with a warning, and a new one begun.
          most: verdicts in memory; those that were not used for longest go.

        Raises:
          OSError: the file cannot be read or written; names it.
          ValueError: `most` is no positive number.
        """
        if most < 1:
            raise ValueError(f"most={most!r}: must be at least 1")
        self._most = most
        self._memory: collections.OrderedDict[bytes, Verdict] = (
            collections.OrderedDict()
        )
        self._lock = threading.RLock()
        self._path = None if path is None else pathlib.Path(path)
        self._file: sqlite3.Connection | None = None
        if self._path is not None:
            self._file = _open(self._path)

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, Verdict]:
        """Those that are known."""
        found: dict[bytes, Verdict] = {}
        missing = []
        with self._lock:
            for key in keys:
                verdict = self._memory.get(key)
                if verdict is None:
                    missing.append(key)
                else:
                    self._memory.move_to_end(key)
                    found[key] = verdict
            read = self._read(missing)
            self._remember(read)
        return found | read

    def put_many(self, verdicts: Mapping[bytes, Verdict]) -> None:
        """Keep verdicts."""
        with self._lock:
            self._remember(verdicts)
            lasting = [
                (key, verdict.outcome, verdict.rule)
                for key, verdict in verdicts.items()
                if verdict.rule not in PASSING
            ]
            if self._file is None or not lasting:
                return
            sql = "INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)"
            with self._whole() as file, file:
                file.executemany(sql, lasting)

    def close(self) -> None:
        """Close the file; nothing is kept from then on."""
        with self._lock:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._memory.clear()

    def __len__(self) -> int:
        """Verdicts in memory."""
        return len(self._memory)

    def _remember(self, verdicts: Mapping[bytes, Verdict]) -> None:
        for key, verdict in verdicts.items():
            self._memory[key] = verdict
            self._memory.move_to_end(key)
        while len(self._memory) > self._most:
            self._memory.popitem(last=False)

    def _read(self, keys: list[bytes]) -> dict[bytes, Verdict]:
        found: dict[bytes, Verdict] = {}
        if self._file is None:
            return found
        for start in range(0, len(keys), _KEYS):
            some = keys[start : start + _KEYS]
            marks = ",".join("?" * len(some))
            sql = f"SELECT key, outcome, rule FROM verdicts WHERE key IN ({marks})"
            with self._whole() as file:
                for key, outcome, rule in file.execute(sql, some):
                    if outcome in OUTCOMES and isinstance(rule, str):
                        found[key] = Verdict(outcome, rule)
        return found

    @contextlib.contextmanager
    def _whole(self):
        """The file; where it turns out damaged, a new one takes its place."""
        assert self._file is not None and self._path is not None
        try:
            yield self._file
        except sqlite3.OperationalError as error:  # locked, full, not writable
            raise _explained(self._path, error) from error
        except sqlite3.DatabaseError as error:
            self._file.close()
            _set_aside(self._path, str(error))
            self._file = _open(self._path)


def _open(path: pathlib.Path) -> sqlite3.Connection:
    """A connection to a cache of ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(2):
        try:
            return _connect(path)
        except _NotOurs as error:
            _set_aside(path, str(error))
    raise OSError(f"{path}: cannot be made a cache of verdicts; name another file")


class _NotOurs(Exception):
    """The file is damaged, or something else's."""


def _connect(path: pathlib.Path) -> sqlite3.Connection:
    file = None
    try:
        # Autocommit: transactions are written out, as making the table needs one.
        file = sqlite3.connect(
            path, timeout=_WAIT_S, check_same_thread=False, isolation_level=None
        )
        file.execute("BEGIN IMMEDIATE")  # of several that begin it, one does
        application = file.execute("PRAGMA application_id").fetchone()[0]
        schema = file.execute("PRAGMA user_version").fetchone()[0]
        tables = file.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (application, schema, tables) == (0, 0, 0):
            file.execute(
                "CREATE TABLE verdicts (key BLOB PRIMARY KEY, outcome TEXT NOT NULL, "
                "rule TEXT NOT NULL) WITHOUT ROWID"
            )
            file.execute(f"PRAGMA application_id = {_APPLICATION}")
            file.execute(f"PRAGMA user_version = {_SCHEMA}")
        elif (application, schema) != (_APPLICATION, _SCHEMA):
            raise _NotOurs(f"application {application:#x}, schema {schema}")
        file.execute("COMMIT")
        file.execute("PRAGMA journal_mode = WAL")  # readers wait for no writer
        file.execute("PRAGMA synchronous = NORMAL")
        file.execute("SELECT key, outcome, rule FROM verdicts LIMIT 1").fetchone()
        file.isolation_level = "DEFERRED"
        return file
    except sqlite3.OperationalError as error:
        if file is not None:
            file.close()
        if "no such" in str(error):  # a table or column that ours has
            raise _NotOurs(str(error)) from error
        raise _explained(path, error) from error
    except (sqlite3.DatabaseError, _NotOurs) as error:
        if file is not None:
            file.close()
        raise _NotOurs(str(error)) from error


def _explained(path: pathlib.Path, error: sqlite3.Error) -> OSError:
    return OSError(
        f"{path}: the cache of verdicts cannot be used ({error}); name another file, "
        "or none"
    )


def _set_aside(path: pathlib.Path, why: str) -> None:
    """Rename a file, with what SQLite has beside it."""
    suffix = f".set_aside-{secrets.token_hex(4)}"
    for beside in ("-wal", "-shm", ""):
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.rename(f"{path}{beside}", f"{path}{suffix}{beside}")
    logging.getLogger(__name__).warning(
        "%s is no usable cache of verdicts (%s): it is now %s%s; a new one is begun",
        *(path, why, path.name, suffix),
    )
