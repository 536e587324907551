"""What the command-line programs share: arguments, and errors that explain."""

from __future__ import annotations

import sys
from collections.abc import Callable

import rich.markup
from absl import app, flags

from mpo_jax import config
from mpo_jax.utils import progress

EXPLAINED = (ValueError, OSError, FloatingPointError)


def run(main: Callable[[list[str]], None]) -> None:
    """Run a program: check ``--config.*`` names first, show our errors without a trace.

    Errors that the project raises on purpose name the file, the field, the value and
    the remedy, those of the system the file; a traceback would bury that.
    ``--traceback`` shows it nevertheless.
    """
    program = sys.argv[0].rsplit("/", 1)[-1]
    trace = flags.DEFINE_bool("traceback", False, "Show where an error came from")
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
