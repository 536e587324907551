"""What the command-line programs share: arguments, and errors that explain."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import io
import os
import pathlib
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import rich.text
from absl import app, flags

from mpo_jax import config
from mpo_jax.utils import peers, progress, remote, runtime, statuses, transient

EXPLAINED = (ValueError, OSError, FloatingPointError)

_REMEDIES = {
    errno.EACCES: "get the permission, or name another place",
    errno.EPERM: "get the permission, or name another place",
    errno.EROFS: "name a place that can be written to",
    errno.ENOSPC: "make room and start the same command again",
    errno.EDQUOT: "make room and start the same command again",
    errno.EFBIG: "the file system takes no file of this size; name another place",
    errno.ENOTDIR: "a part of this path is a file; name another place",
    errno.EEXIST: "a file, or a link to nothing, has this name; name another place",
    errno.EISDIR: "this is a directory; name a file",
    errno.ENAMETOOLONG: "name a shorter path",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOMEM: "there is too little memory",
    errno.EIO: "the device or the network file system failed; look at it",
    errno.ESTALE: "the network file system lost this file; start the command again",
}


def explain(error: BaseException) -> str:
    """One line on an error; an ``OSError`` of the system gets its file and a remedy.

    Errors that the project raises on purpose explain themselves.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    files = [str(f) for f in (error.filename, error.filename2) if f is not None]
    where = f"{' -> '.join(files)}: " if files else ""
    remedy = _REMEDIES.get(error.errno)
    return f"{where}{error.strerror}" + (f"; {remedy}" if remedy else "")


def path(place: str, flag: str) -> pathlib.Path:
    """The directory or file that a flag names, ``~`` expanded.

    Raises:
      ValueError: it is an address (``gs://…``), which this command cannot use.
    """
    remote.refuse(place, field=f"--{flag}", why="it is read and written as files")
    return pathlib.Path(place).expanduser()


def _expanded(argument: str) -> str:
    """``--flag=~/place`` as the home directory, which a shell expands only alone."""
    name, equals, value = argument.partition("=")
    if name.startswith("-") and equals and value.startswith("~") and "/" in value:
        return name + equals + os.path.expanduser(value)
    return argument


def run(
    main: Callable[[list[str]], None],
    cfg: Any = None,
    *,
    words: bool = False,
) -> None:
    """Run a program: check ``--config.*`` names first, show our errors without a trace.

    What stands behind ``--`` is left as it is.

    Args:
      main: gets the arguments that are no flags, behind the program's own name.
      cfg: see ``config.check_overrides``.
      words: does `main` read such arguments? Where it does not, one is a mistake: flags
        end at it, and those behind it would do nothing.

    Errors that the project raises on purpose name the file, the field, the value and
    the remedy, those of the system the file; a traceback would bury that.
    ``--traceback`` shows it nevertheless. Who asks for help has made no mistake: 0.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may know ASCII alone
    program = sys.argv[0].rsplit("/", 1)[-1]
    trace = flags.DEFINE_bool("traceback", False, "Show where an error came from")
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    sys.argv[1:end] = [_expanded(argument) for argument in sys.argv[1:end]]
    try:
        config.check_overrides(sys.argv[1:end], cfg)
    except ValueError as error:
        sys.exit(f"{program}: {error}")

    def guarded(argv: list[str]) -> None:
        # absl enables it for the stacks of all threads; those that run on while they
        # are read end the process with another signal now and then.
        with contextlib.suppress(RuntimeError, AttributeError, OSError):
            faulthandler.enable(all_threads=False)  # an embedding's stderr is no file
        # Until a training listens to it (``on_demand``), it would end the program.
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        try:
            if not words:
                no_words(argv)
            _run_with_others(main, argv)
        except SystemExit:
            raise
        except BaseException as error:
            _end(error, program=program, trace=trace.value)

    app.run(guarded, flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    """Parse flags as absl does, except that its help ends with 0, not with 1."""
    try:
        return app.parse_flags_with_usage(argv)
    except SystemExit as end:
        if isinstance(end.__context__, flags.Error):
            raise
        sys.exit(0)


def no_words(argv: Sequence[str]) -> None:
    """Check that parsed arguments hold nothing but the name of a program.

    Raises:
      ValueError: there is a word that is no flag.
    """
    if argv[1:]:
        raise ValueError(
            f"{argv[1]!r} is no flag, and those behind it would do nothing; write "
            "--FLAG=VALUE, with quotes around a value that holds a blank"
        )


def _run_with_others(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Run a program and leave together with the other hosts."""
    try:
        main(argv)
    except statuses.Stopped:
        runtime.finish()  # all hosts have stopped together
        raise
    except SystemExit as error:
        others = peers.others()
        if others is not None:  # with 0, too: they would wait for it
            others.fail(f"left its program with {error.code or 0}")
        raise
    runtime.finish()


def _end(error: BaseException, *, program: str, trace: bool) -> NoReturn:
    """End the program, and with it those on the other hosts.

    Raises:
      BaseException: `error` itself, where a traceback is what helps.
      SystemExit: where the message is enough.
    """
    others = peers.others()
    explained = isinstance(error, (*EXPLAINED, statuses.TryAgain))
    if others is not None:
        status = status_of(error)
        if _has_lost_a_host(error) and not transient.is_transient(error):
            others.wait_for_news()  # that one tells why, or JAX ends us
            status = statuses.TRY_AGAIN
        if trace or not explained:
            peers.tell("".join(traceback.format_exception(error)))
        others.fail(_told(error, explained), status)
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{program}: interrupted", file=sys.stderr)
        sys.exit(statuses.INTERRUPTED)
    if trace or not explained:
        raise error
    text = rich.text.Text.assemble((f"{program}: ", "bold red"), explain(error))
    progress.console().print(text)
    sys.exit(status_of(error))


_LOST = re.compile(r"Gloo .*failed|(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):")
"""What devices say where another host is gone; JAX raises it as this and that type.
TensorStore has the same words for storage, but names its cause (``transient``)."""


def _has_lost_a_host(error: BaseException) -> bool:
    """Whether an error, or one that it came from or hides, is of a host that is gone.

    What closes a run after such an error often meets another one.
    """
    found = transient.chain(error, hidden=True)
    return any(_LOST.search(str(one)) is not None for one in found)


def status_of(error: BaseException) -> int:
    """With what status a program ends because of an error."""
    again = transient.is_transient(error)
    return statuses.TRY_AGAIN if again else statuses.FAILED


def _told(error: BaseException, explained: bool) -> str:
    """One message on an error, for the other hosts."""
    return explain(error) if explained else f"{type(error).__name__}: {error}"
