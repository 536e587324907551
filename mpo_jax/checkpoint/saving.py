"""A save under way: what Orbax writes in the background, then the manifest."""

from __future__ import annotations

import concurrent.futures
import logging
import threading
import time
from typing import Any

import jax
from absl import logging as absl_logging

from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import manifest, reading

_LOOK_S = 0.2
_VISIBLE_S = 90.0
"""How long a shared directory may take to show its other hosts a new checkpoint: the
attributes of directories are cached, by NFS for up to a minute."""


class SaveFailed(OSError):
    """A checkpoint could not be saved; the message says why and what to do."""


class Errors(logging.Filter):
    """The first error of the save under way, as soon as a thread of Orbax meets it.

    On several processes Orbax raises it only after the others have come, which wait for
    this one; but the thread logs it at once. The log is left out: ``SaveFailed`` says
    it, and hundreds of lines of traceback would bury that.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first: BaseException | None = None
        absl_logging.get_absl_logger().addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Take an error of Orbax out of the log."""
        error = record.exc_info[1] if record.exc_info else None
        foreign = record.levelno < logging.ERROR or "/orbax/" not in record.pathname
        if error is None or foreign:
            return True
        self.first = self.first or error
        return False

    def close(self) -> None:
        absl_logging.get_absl_logger().removeFilter(self)


class Save:
    """A save under way. Its thread ends with the manifest of this process."""

    def __init__(
        self,
        step: int,
        directory: Any,
        written: Any,
        *,
        errors: Errors,
    ):
        """Follow a save.

        Args:
          directory: of the checkpoint.
          written: Orbax's response; its result is there when all is committed.
          errors: of this save alone.
        """
        self._step, self._directory = step, directory
        self._written, self._errors = written, errors
        self._done: concurrent.futures.Future[None] = concurrent.futures.Future()
        # A daemon: a program that ends without waiting loses the manifest, not more.
        thread = threading.Thread(target=self._work, name="mpo-save", daemon=True)
        thread.start()

    def _work(self) -> None:
        try:
            self._written.result()
            write_manifest(self._directory, self._step)
        except BaseException as error:  # raised where the save is asked for
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    def failed(self) -> bool:
        """Whether it has failed by now; costs no time."""
        if self._done.done():
            return self._done.exception() is not None
        return self._errors.first is not None

    def result(self) -> None:
        """Wait for the end.

        Raises:
          SaveFailed: if it failed, at once.
        """
        while not self.failed() and not self._done.done():
            concurrent.futures.wait([self._done], timeout=_LOOK_S)
        error = self._done.exception() if self._done.done() else self._errors.first
        if error is not None:
            raise failure(self._step, self._directory, error) from error


def failure(step: int, directory: Any, error: BaseException) -> SaveFailed:
    """The error of a save that met another one."""
    text = " ".join(str(error).split()) or type(error).__name__
    return SaveFailed(
        f"{directory}: the checkpoint of step {step} could not be saved: {text[:600]}. "
        "Make room, or repair the storage, and start the same command again: it goes "
        "on after the newest checkpoint that is complete"
    )


def write_manifest(directory: Any, step: int) -> None:
    """Write this process's manifest of a checkpoint that Orbax has committed.

    Raises:
      FileNotFoundError: if the checkpoint does not come into sight on this host.
    """
    files = files_lib.of(directory)
    deadline = time.monotonic() + _VISIBLE_S
    while reading.CHECKPOINT not in files.listed():
        if time.monotonic() > deadline:
            raise FileNotFoundError(
                f"process {jax.process_index()} of {jax.process_count()} does not see "
                "what was saved; name a work directory that all hosts share"
            )
        time.sleep(1.0)
    manifest.write(
        files, step=step, part=jax.process_index(), parts=jax.process_count()
    )
