"""What the command-line programs share: arguments, and errors that explain."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import rich.markup
from absl import app, flags

from mpo_jax import config
from mpo_jax.utils import progress

EXPLAINED = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)


def _expanded(argument: str) -> str:
    """``--flag=~/place`` as the home directory, which a shell expands only alone."""
    name, equals, value = argument.partition("=")
    if name.startswith("-") and equals and value.startswith("~") and "/" in value:
        return name + equals + os.path.expanduser(value)
    return argument


def run(main: Callable[[list[str]], None]) -> None:
    """Run a program: check ``--config.*`` names first, show our errors without a trace.

    Errors that the project raises on purpose name the file, the field, the value and
    the remedy; a traceback would bury that. ``--traceback`` shows it nevertheless.
    """
    program = sys.argv[0].rsplit("/", 1)[-1]
    trace = flags.DEFINE_bool("traceback", False, "Show where an error came from")
    sys.argv[1:] = [_expanded(argument) for argument in sys.argv[1:]]
    try:
        config.check_overrides(sys.argv[1:])
    except ValueError as error:
        sys.exit(f"{program}: {error}")

    def guarded(argv: list[str]) -> None:
        try:
            main(argv)
        except EXPLAINED as error:
            if trace.value:
                raise
            text = rich.markup.escape(str(error))  # brackets in paths are not markup
            progress.console().print(f"[bold red]{program}:[/] {text}", markup=True)
            sys.exit(1)

    app.run(guarded)
