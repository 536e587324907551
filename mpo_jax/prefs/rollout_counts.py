"""How many rollouts each source of a file has, before anything is made of them."""

from __future__ import annotations

import collections
import os
import pathlib
import stat

from mpo_jax import ledger
from mpo_jax.generate import questions
from mpo_jax.prefs import line_fields


def by_source(path: str) -> collections.Counter[str]:
    """Counts a file's rollouts; reads it once, a line at a time.

    A line counts where its source can be read, whether or not it is left out later for
    another reason.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no regular file, which could be read again.
    """
    found: collections.Counter[str] = collections.Counter()
    default = pathlib.Path(path).stem
    with open(path, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError(
                f"{path} is no regular file, and its rollouts are counted before it is "
                "read again; copy it into one"
            )
        for line in questions.lines_of(file):
            try:
                record = line_fields.load(line)
                source = line_fields.source(record, default)
            except ledger.BadRecord:  # the ledger names it when all is read
                continue
            several = record.get("responses")
            found[source] += len(several) if isinstance(several, list) else 1
    return found
