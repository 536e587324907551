"""Answers on disk while they come, and the one file that they become.

Beside ``FILE.jsonl`` a folder ``FILE.jsonl.parts`` holds what every process has written
so far, one whole line per answer, and what was asked for. A start after a kill, with
any number of processes, reads all of it and asks for the rest. When nothing is missing,
the lines are merged in the order of the questions and the folder goes away.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from mpo_jax import fields, ledger
from mpo_jax.generate import requests
from mpo_jax.utils import atomic

JOB = "job.json"
_SYNC_LINES = 32
Key = tuple[str | int, int]


def line_of(answer: requests.Answer, *, save_tokens: bool) -> str:
    """An answer as a line of the output."""
    line: dict[str, Any] = {
        "id": answer.id,
        "sample": answer.sample,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "logprob": answer.logprob,
    }
    if save_tokens:
        ids, logps = answer.token_ids, answer.token_logprobs
        line["token_ids"] = None if ids is None else list(ids)
        line["token_logprobs"] = None if logps is None else list(logps)
    return json.dumps(line, ensure_ascii=False) + "\n"


@dataclasses.dataclass(frozen=True)
class _Where:
    """Bytes of a line in a part."""

    part: pathlib.Path
    start: int
    length: int


class Parts:
    """The parts of one output.

    Attributes:
      folder: of the parts.
    """

    def __init__(self, output: str | pathlib.Path):
        self.output = pathlib.Path(output)
        self.folder = self.output.with_name(self.output.name + ".parts")
        self._done: dict[Key, _Where] = {}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Make the folder for a job, or go on in it; one process does it.

        Args:
          job: JSON-able; everything that the answers depend on.

        Raises:
          ValueError: the folder is another job's; names what differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.clean(self.folder)
        for pattern in ("ledger-*", "failed-*"):  # of an earlier start
            for stale in self.folder.glob(pattern):
                stale.unlink()
        file = self.folder / JOB
        if not file.is_file():
            write_json(file, job)
            return
        stored = json.loads(file.read_text(encoding="utf-8"))
        differing = differences(stored, job)
        if differing:
            raise ValueError(
                f"{self.folder} holds answers of another run: {'; '.join(differing)}. "
                "Repeat that command to go on with it, name another --output, or "
                "remove the folder"
            )

    def load(self) -> None:
        """Read what is answered; the torn last line of a killed process counts not.

        Raises:
          ValueError: another line is damaged; names file and line.
        """
        self._done = {}
        for part in sorted(self.folder.glob("part-*.jsonl")):
            start = 0
            with open(part, "rb") as file:
                for number, line in enumerate(file, 1):
                    if line.endswith(b"\n"):
                        key = _key(line, f"{part}:{number}")
                        self._done.setdefault(key, _Where(part, start, len(line)))
                    start += len(line)

    def has(self, id: str | int, sample: int) -> bool:
        """Was this answered before :meth:`load`?"""
        return (id, sample) in self._done

    def __len__(self) -> int:
        return len(self._done)

    def writer(self, process: int) -> Writer:
        """Where a process adds its answers."""
        return Writer(self.folder / f"part-{process:05d}.jsonl")

    def merge(self, keys: Iterator[Key]) -> int:
        """Write the output in the order of `keys`, those that were answered.

        Returns:
          Number of lines.
        """
        self.load()
        number = 0
        parts = {
            where.part: open(where.part, "rb")  # noqa: SIM115 (closed below)
            for where in self._done.values()
        }

        def write(path: pathlib.Path) -> None:
            nonlocal number
            with open(path, "wb") as out:
                for key in keys:
                    where = self._done.get(key)
                    if where is not None:
                        file = parts[where.part]
                        file.seek(where.start)
                        out.write(file.read(where.length))
                        number += 1

        try:
            atomic.write_whole(self.output, write)
        finally:
            for file in parts.values():
                file.close()
        return number

    def remove(self) -> None:
        """Remove the folder, after the merge; what says whose parts they are last."""
        for part in self.folder.iterdir():
            if part.name != JOB:
                part.unlink()
        shutil.rmtree(self.folder)


def _key(line: bytes, where: str) -> Key:
    """Question and sample of a whole line."""
    try:
        found = json.loads(line)
        return found["id"], found["sample"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{where} is no answer ({error}): the file is damaged. Remove this line "
            "and start the same command again; what stood there is asked anew"
        ) from error


class Writer:
    """Appends whole lines to a part; use it in ``with``."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._lines = 0

    def __enter__(self) -> Writer:
        _cut_torn_line(self._path)
        self._file: IO[bytes] = open(self._path, "ab")  # noqa: SIM115
        return self

    def write(self, line: str) -> None:
        """Add a line; it survives a kill of this process from now on.

        Raises:
          OSError: it could not be written in full.
        """
        self._file.write(line.encode("utf-8"))
        self._file.flush()  # all of it or an error, unlike a write past the buffer
        self._lines += 1
        if not self._lines % _SYNC_LINES:  # and one of the machine, from then on
            os.fsync(self._file.fileno())

    def __exit__(self, *_: object) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def differences(stored: Mapping[str, Any], job: Mapping[str, Any]) -> list[str]:
    """What a job has otherwise than a stored one, by dotted names; empty if nothing."""
    asked = json.loads(json.dumps(job))
    was, now = fields.flat(stored), fields.flat(asked)
    return [
        f"{name} was {ledger.short(was.get(name))}, now {ledger.short(now.get(name))}"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def _cut_torn_line(path: pathlib.Path) -> None:
    """Cut what a kill left behind the last whole line."""
    if not path.exists():
        return
    with open(path, "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(0, end - 65536)
            file.seek(start)
            found = file.read(end - start).rfind(b"\n")
            if found >= 0:
                file.truncate(start + found + 1)
                return
            end = start
        file.truncate(0)


def write_json(path: pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object whole."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True) + "\n"

    def write(temporary: pathlib.Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic.write_whole(path, write)


def write_ledger(path: pathlib.Path, entries: Sequence[ledger.Entry]) -> None:
    """Write a ledger whole."""
    atomic.write_whole(path, lambda temporary: ledger.write(temporary, entries))
