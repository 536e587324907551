"""What the conversion programs share: flags, and one way to run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags

from mpo_jax.utils import cli, runtime

DTYPES = ("keep", "float32", "bfloat16", "float16")


def define_flags(*, src: str, dtype: str, dtype_help: str) -> None:
    """``--src --dst --dtype --overwrite --dry_run``."""
    flags.DEFINE_string("src", None, src)
    flags.DEFINE_string("dst", None, "Directory to write.")
    flags.DEFINE_enum("dtype", dtype, DTYPES, dtype_help)
    flags.DEFINE_bool("overwrite", False, "Replace a model that is there already.")
    flags.DEFINE_bool("dry_run", False, "List the tensors, write nothing.")
    flags.mark_flag_as_required("src")


def run(action: Callable[..., str], *, names: tuple[str, ...]) -> None:
    """Run a program that prints what ``action(src, dst, ...)`` returns.

    Args:
      action: called with `dst` None for a dry run, and the shared flags.
      names: further flags, passed by name.
    """

    def main(argv: list[str]) -> None:
        del argv
        values: Any = flags.FLAGS
        if values.dst is None and not values.dry_run:
            raise app.UsageError("--dst is missing (or ask for --dry_run)")
        runtime.quiet()
        # Conversion is host work; it must not take an accelerator from a running job.
        jax.config.update("jax_platforms", "cpu")
        options = {name: values[name].value for name in names}
        dst = None if values.dry_run else values.dst
        text = action(
            values.src, dst, dtype=values.dtype, overwrite=values.overwrite, **options
        )
        print(text)

    cli.run(main)
