"""Check a training on a TPU slice before the slice is billed; no TPU, no compiler.

  python scripts/check_launch.py v5litepod-64 -- python scripts/train.py \
      --config=configs/internvl2_8b_mpo.py --workdir=gs://my-bucket/runs/8b \
      --config.data.meta=gs://my-bucket/MMPR/meta.json

Reads the train.py line by train.py's own flags, and says what each row shape gives on
the slice (v5litepod-64*3: on three): rows and micro-batches, pairs of a batch, whether
it fits by the results that scripts/plan.py kept (docs/planning_results.json), and what
costs time. tpu_setup/qr.sh and xpk.sh ask it before they create anything; CHECK=0 skips
it there. Exit status 2: a flag, a field or the work directory is wrong, rows do not
divide, or memory does not suffice; what to set is named. Other commands than train.py
are not looked at.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from absl import flags

from mpo_jax import checkpoint
from mpo_jax import config as config_lib
from mpo_jax.plan import launch
from mpo_jax.utils import cli, remote, slices

ROOT = pathlib.Path(__file__).resolve().parents[1]
_USAGE = "usage: check_launch.py SLICE[*NUMBER] -- python scripts/train.py --config=…"
_HELP = ("help", "helpshort", "helpfull", "helpxml", "only_check_args")
# Where startup.sh mounts a bucket, for reading alone.
_MOUNT = pathlib.PurePosixPath("/bucket")


@dataclasses.dataclass(frozen=True)
class Line:
    """What a train.py line asks for.

    Attributes:
      cfg: with all overrides.
      recipe: the same without any.
      name: of the recipe: its file without folder and ending.
      overrides: ``--config`` and ``--config.NAME=…`` as they stand there.
    """

    cfg: config_lib.RunConfig
    recipe: config_lib.RunConfig
    name: str
    overrides: tuple[str, ...]
    workdir: str


def main(argv: list[str]) -> None:
    jax.config.update("jax_platforms", "cpu")  # the slice is not there; do not look
    try:
        problems = _check(argv[1:])
    except ValueError as error:
        problems = f"check_launch.py: {error}\n"
    if problems:
        sys.stderr.write(problems)
        sys.exit(2)


def _check(words: Sequence[str]) -> str:
    """Print what is known of the line behind ``--``, and return what is wrong.

    Raises:
      ValueError: slice or line are wrong, or cannot go together at all.
    """
    where, words = words[0] if words else "", words[1:]
    if words[:1] == ["--"]:
        words = words[1:]
    if not words:
        raise ValueError(_USAGE)
    name, star, number = where.partition("*")
    if star and not (number.isdecimal() and int(number)):
        raise ValueError(f"{where}: NUMBER is a whole number of slices; {_USAGE}")
    sold, several = slices.lookup(name), int(number or 1)
    asked = arguments(words)
    if asked is None:
        sys.stdout.write(f"not checked, as it starts no train.py: {' '.join(words)}\n")
        return ""
    os.chdir(ROOT)  # where workers start the command
    line = read(asked)
    check_places(line, hosts=sold.hosts * several)
    found = launch.check(
        launch.Launch(
            name=line.name,
            cfg=line.cfg,
            recipe=line.recipe,
            topology=sold.aot_name,
            slices=several,
            command=_plan_command(line.overrides, sold.aot_name, several),
        ),
        *launch.read_kept(ROOT / "docs" / "planning_results.json"),
    )
    devices = sold.devices * several
    sys.stdout.write(f"{line.name} on {where}: {devices} devices\n")
    for text in found.told:
        sys.stdout.write(f"  {text}\n")
    if not found.problems:
        return ""
    text = "".join(f"  {problem}\n" for problem in found.problems)
    return f"{line.name} does not suit {where}:\n{text}"


def arguments(words: Sequence[str]) -> list[str] | None:
    """Arguments of train.py in a command; None without it."""
    for number, word in enumerate(words):
        if pathlib.PurePath(word).parts[-2:] == ("scripts", "train.py"):
            return list(words[number + 1 :])
    return None


def read(words: Sequence[str]) -> Line:
    """What train.py makes of these arguments.

    Raises:
      ValueError: a flag, a field or a value is wrong or missing.
    """
    for word in words:
        if word.startswith("-") and word.lstrip("-").split("=")[0] in _HELP:
            raise ValueError(f"{word} starts no training")
    config_lib.check_overrides(words)
    train, argv = _train(), ["train.py", *words]
    # Beside its own flags train.py has absl's and those of cli.run, as this program.
    values = copy.deepcopy(flags.FLAGS)
    given = train.define(values, argv)
    try:
        cli.no_words(values(argv))
        cfg = train.config_of(given)
        cfg.validate()
        recipe = copy.deepcopy(flags.FLAGS)
        parsed: Any = values["config"]
        file = parsed.config_filename
        bare = ["train.py", f"--config={file}"]
        given_bare = train.define(recipe, bare)
        recipe([*bare, "--workdir=none"])
    except ValueError:
        raise
    except (flags.Error, OSError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # whatever a recipe raises
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return Line(
        cfg=cfg,
        recipe=given_bare.config.value,
        name=pathlib.Path(file.partition(":")[0]).stem,
        overrides=tuple(_overrides(words, values)),
        workdir=given.workdir.value,
    )


def _train() -> Any:
    """The module of scripts/train.py."""
    file = ROOT / "scripts" / "train.py"
    spec = importlib.util.spec_from_file_location("train_script", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def _overrides(words: Sequence[str], values: flags.FlagValues) -> Iterator[str]:
    """``--config`` and its fields, each with its value in one word."""
    for number, word in enumerate(words):
        name, equals, _ = word.lstrip("-").partition("=")
        if (
            not word.startswith("-")
            or name.removeprefix("no").split(".")[0] != "config"
        ):
            continue
        alone = equals or name not in values or values[name].boolean
        yield word if alone else f"{word}={words[number + 1]}"


def check_places(line: Line, *, hosts: int) -> None:
    """Check where a run writes, as far as names tell.

    Raises:
      ValueError: nothing can be written there, or hosts would not see each other's.
    """
    checkpoint.check_name(line.workdir)
    _check_shared("--workdir", line.workdir, hosts)
    _check_shared("--config.data.cache_dir", line.cfg.data.cache_dir, hosts)
    _check_shared("--config.reference.cache", line.cfg.reference.cache, hosts)


def _check_shared(flag: str, place: str, hosts: int) -> None:
    if not place or remote.is_remote(place):
        return
    path = pathlib.PurePosixPath(place)
    if _MOUNT in (path, *path.parents):
        raise ValueError(
            f"{flag}={place}: startup.sh mounts a bucket at {_MOUNT} for reading "
            "alone; name its address, gs://…"
        )
    if hosts > 1 and not path.is_absolute():
        raise ValueError(
            f"{flag}={place}: each of the {hosts} hosts would have its own; name an "
            "address, gs://…, or the whole path of a directory that all hosts share"
        )


def _plan_command(overrides: Sequence[str], topology: str, number: int) -> str:
    """How to have the compiler itself answer."""
    several = [f"--num_slices={number}"] if number > 1 else []
    return shlex.join(
        [
            *("python", "scripts/plan.py", *overrides, f"--topology={topology}"),
            *several,
            "--quick",
        ]
    )


if __name__ == "__main__":
    cli.run(main, words=True)
