"""Check a training on a TPU slice before the slice is billed; no TPU, no compiler.

  python scripts/check_launch.py v5litepod-64 -- python scripts/train.py \
      --config=configs/internvl2_8b_mpo.py --workdir=/bucket/runs/8b

Reads the recipe and every override of the train.py line, and says what each row shape
gives on the slice: rows and micro-batches, pairs of a batch, whether it fits by the
results that scripts/plan.py kept (docs/planning_results.json), and what costs time.
tpu_setup/qr.sh and xpk.sh ask it before they create anything; CHECK=0 skips it there.
Exit status 2: a field is wrong, rows do not divide, or memory does not suffice; the
fields to set are named. Other commands than train.py are not looked at.
"""

from __future__ import annotations

import os
import pathlib
import sys
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from mpo_jax import config as config_lib
from mpo_jax.plan import launch
from mpo_jax.utils import cli, slices

ROOT = pathlib.Path(__file__).resolve().parents[1]
_USAGE = "usage: check_launch.py SLICE[*NUMBER] -- python scripts/train.py --config=…"
# Flags of train.py that take no value; of all others only --config counts here.
_SWITCHES = ("dry_run", "traceback")


def main(argv: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the slice is not there; do not look
    where, words = argv[1] if len(argv) > 2 else "", argv[2:]
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise ValueError(_USAGE)
    name, _, number = where.partition("*")
    if number and not number.isdecimal():
        raise ValueError(_USAGE)
    sold = slices.lookup(name)
    asked = arguments(words)
    if asked is None:
        sys.stdout.write(f"not checked, as it starts no train.py: {' '.join(words)}\n")
        return
    os.chdir(ROOT)  # where workers start the command
    given = next((a for a in asked if a.startswith("--config=")), "")
    stem = pathlib.Path(given.partition("=")[2].partition(":")[0]).stem
    found = launch.check(
        launch.Launch(
            name=stem,
            cfg=read(asked),
            recipe=read([a for a in asked if not a.startswith("--config.")]),
            topology=sold.aot_name,
            slices=int(number or 1),
            command=_plan_command(asked, sold.aot_name, int(number or 1)),
        ),
        *launch.read_kept(ROOT / "docs" / "planning_results.json"),
    )
    sys.stdout.write(f"{stem} on {where}: {sold.devices} devices\n")
    for line in found.told:
        sys.stdout.write(f"  {line}\n")
    if found.problems:
        text = "".join(f"  {line}\n" for line in found.problems)
        sys.stderr.write(f"{stem} does not suit {where}:\n{text}")
        sys.exit(2)


def arguments(words: Sequence[str]) -> list[str] | None:
    """Arguments of train.py in a command, ``--name=value`` each; None without it."""
    for number, word in enumerate(words):
        if pathlib.PurePath(word).parts[-2:] == ("scripts", "train.py"):
            return _joined(words[number + 1 :])
    return None


def _joined(words: Sequence[str]) -> list[str]:
    """Flags with their values, also where a value is a word of its own."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        word = f"--{word.lstrip('-')}" if word.startswith("-") else word
        alone = "=" not in word and word.removeprefix("--no") not in _SWITCHES
        if alone and word[2:] not in _SWITCHES and rest and rest[0][:1] != "-":
            word += f"={rest.pop(0)}"
        found.append(word)
    return found


def read(words: Sequence[str]) -> config_lib.RunConfig:
    """The config that train.py makes of these arguments.

    Raises:
      ValueError: if there is none, or a field or value is wrong.
    """
    config_lib.check_overrides(words)
    values = flags.FlagValues()
    argv = ["train.py", *(word for word in words if word.startswith("--config"))]
    holder = config_flags.DEFINE_config_file(
        "config", None, "", flag_values=values, lock_config=True, sys_argv=argv
    )
    try:
        values(argv)
        if holder.value is None:
            raise ValueError("--config is missing; name a recipe, e.g. configs/….py")
        _ = holder.value.rows  # a file that could not be read is told on first use
    except (flags.Error, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{' '.join(argv[1:])}: {error}") from error
    return holder.value


def _plan_command(words: Sequence[str], topology: str, number: int) -> str:
    """How to have the compiler itself answer."""
    ours = [w for w in words if w.startswith("--config")]
    several = [f"--num_slices={number}"] if number > 1 else []
    return " ".join(
        ["python scripts/plan.py", *ours, f"--topology={topology}", *several, "--quick"]
    )


if __name__ == "__main__":
    cli.run(main)
