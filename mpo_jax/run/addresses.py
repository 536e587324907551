"""Directories of a run that are addresses: where their files lie on this host.

Checkpoints, the exported model and compiled programs go to the address itself, by their
own writers. Everything else is in a mirror (``utils.mirror``): metrics in numbered
parts, the index, reference log-probs, answers, reports.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax

from mpo_jax.run import attempts
from mpo_jax.utils import lease, mirror, remote

PROGRAMS, EXPORT, BENCHMARKS = "compile_cache", "hf", "benchmarks"
_AT_THE_ADDRESS = (
    *(attempts.CHECKPOINTS, f"{attempts.CHECKPOINTS}_aside", EXPORT, PROGRAMS),
    lease.FILE,
)
DATA = "data"
_READ_AGAIN = (DATA, attempts.FILE)
"""What a start fetches. The rest is written anew, for people's eyes, fetched when it
is needed (answers), or none of ours: an address may hold more than a run."""


def local(place: str | pathlib.Path) -> pathlib.Path:
    """Where this process has the files of a directory, or of an address."""
    if remote.is_remote(place):
        return mirror.folder_of(str(place), jax.process_index())
    return pathlib.Path(place).absolute()


UPLOAD_S = 30.0
"""Between uploads of what a command writes that has no config."""


@contextlib.contextmanager
def working(place: str) -> Iterator[pathlib.Path]:
    """The directory of a command's results, on this host; in step with an address.

    Raises:
      ValueError, TryAgain: as ``mirror.open_mirror``.
    """
    if not remote.is_remote(place):
        yield pathlib.Path(place).expanduser().absolute()
        return
    with mirror.open_mirror(
        place, number=jax.process_index(), every_s=UPLOAD_S
    ) as opened:
        yield opened.folder


@contextlib.contextmanager
def mirrored(run: Any) -> Iterator[None]:
    """Keep the work directory, index and reference cache in step with addresses.

    Args:
      run: a ``setup.Setup``, whose work directory nobody else holds.

    Raises:
      ValueError, TryAgain: as ``mirror.open_mirror``.
    """
    cfg, number = run.cfg, jax.process_index()
    every_s = cfg.log.upload_seconds
    with contextlib.ExitStack() as stack:
        for place in dict.fromkeys((cfg.data.cache_dir, cfg.reference.cache)):
            if remote.is_remote(place):
                stack.enter_context(
                    mirror.open_mirror(place, number=number, every_s=every_s)
                )
        if remote.is_remote(run.place):
            stack.enter_context(
                mirror.open_mirror(
                    run.place,
                    number=number,
                    every_s=every_s,
                    growing=(attempts.METRICS,),
                    elsewhere=_AT_THE_ADDRESS,
                    wanted=_READ_AGAIN,
                )
            )
        yield
