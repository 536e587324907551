"""Event files for TensorBoard, written where they are asked for.

The writer of tensorboardX is a thread behind a short queue: an error of storage ends
the thread, and the tenth value after that waits for it for ever. So only its records
are used.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from absl import logging
from tensorboardX import event_file_writer, summary
from tensorboardX.proto import event_pb2, summary_pb2

_events: Any = event_pb2  # its classes are made when it is imported
_summaries: Any = summary_pb2


class Board:
    """One event per step; what storage does not take waits for the next one.

    Args:
      directory: of the event files; made.
      first_step: of this start: what earlier ones wrote from it on is not shown.
    """

    def __init__(self, directory: str | os.PathLike[str], *, first_step: int):
        self._directory = pathlib.Path(directory)
        session = _events.SessionLog(status=_events.SessionLog.START)
        self._waiting = [_event(first_step, session_log=session)]
        self._file: event_file_writer.EventsWriter | None = None
        self._files = 0
        self._whole = False
        self._write()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write the scalars of a step at once; no error of storage is raised."""
        scalars = [
            summary.scalar(name, value).value[0] for name, value in values.items()
        ]
        self._waiting.append(_event(step, summary=_summaries.Summary(value=scalars)))
        self._write()

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = self._opened()
            for event in self._waiting:
                self._file.write_event(event)
            self._file.flush()
        except OSError as error:
            logging.warning(
                "TensorBoard lacks step %d: %s; %d wait for the next one",
                self._waiting[-1].step,
                error,
                len(self._waiting),
            )
            self._give_up()
        else:
            self._whole = True
            self._waiting.clear()

    def _opened(self) -> event_file_writer.EventsWriter:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._files += 1
        self._whole = False
        return event_file_writer.EventsWriter(
            str(self._directory / "events"), filename_suffix=self._suffix()
        )

    def _suffix(self) -> str:
        return f".{os.getpid()}.{self._files}"

    def _give_up(self) -> None:
        """A record may be cut: readers would take nothing that follows it in the file.

        A file that has no whole one is removed.
        """
        file, self._file = self._file, None
        with contextlib.suppress(OSError):  # was said
            if file is not None:
                file.close()
        if not self._whole:
            with contextlib.suppress(OSError):
                for path in self._directory.glob(f"events*{self._suffix()}"):
                    path.unlink()

    def close(self) -> None:
        """Write what waits, and close."""
        if self._waiting:
            self._write()
        self._give_up()


def _event(step: int, **content: Any) -> Any:
    return _events.Event(wall_time=time.time(), step=step, **content)
