"""Train an InternVL with MPO (or SFT): one command from a meta.json to a model.

  python scripts/train.py --config=configs/internvl2_8b_mpo.py --workdir=runs/8b \
      --config.data.meta=/data/MMPR/meta.json

What is missing is made first: the index of the records (with a ledger of what is left
out and why), the pack plan, the reference log-probs. Then it trains, and writes to the
work directory: metrics.jsonl, tensorboard/, plots/, checkpoints/, ledger.jsonl, hf/.
Start the same command again to resume exactly where it stopped.

Any field of the config can be overridden, e.g. --config.optim.learning_rate=1e-6
--config.loss.weights="(0.8,0.2,0.0)"; a misspelt field is an error that names the
nearest one. mpo_jax/config.py explains every field; --dry_run prints the config and
the plan and stops before any weight is touched.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from absl import flags
from ml_collections import config_flags

from mpo_jax import config as config_lib
from mpo_jax.run import stages, train
from mpo_jax.utils import cli, progress, runtime


@dataclasses.dataclass(frozen=True)
class Flags:
    """The flags of this program; their values are there once they are parsed."""

    config: flags.FlagHolder
    workdir: flags.FlagHolder
    dry_run: flags.FlagHolder
    profile: flags.FlagHolder
    resume_step: flags.FlagHolder


def define(
    values: flags.FlagValues = flags.FLAGS, argv: list[str] | None = None
) -> Flags:
    """Define them, in a set of flags that is parsed from `argv`; None is ``sys.argv``.

    ``scripts/check_launch.py`` reads lines that others are about to start by these.
    """
    to: Any = {"flag_values": values}
    return Flags(
        config=config_flags.DEFINE_config_file(
            "config",
            None,
            "Recipe, e.g. configs/internvl2_8b_mpo.py",
            lock_config=True,
            sys_argv=argv,
            **to,
        ),
        workdir=flags.DEFINE_string(
            "workdir", None, "Directory of this run", required=True, **to
        ),
        dry_run=flags.DEFINE_bool(
            "dry_run",
            False,
            "Print config and plan, then stop before loading weights",
            **to,
        ),
        profile=flags.DEFINE_string(
            "profile",
            "",
            "START:COUNT traces COUNT steps from step START for xprof, into "
            "WORKDIR/profile; the same as log.profile_start and log.profile_steps",
            **to,
        ),
        resume_step=flags.DEFINE_integer(
            "resume_step",
            None,
            "Go on from the checkpoint of this step, not the newest; the same as "
            "checkpoint.resume_step",
            lower_bound=0,
            **to,
        ),
    )


def set_profile(cfg: config_lib.RunConfig, window: str) -> None:
    """Set the config's trace from START:COUNT.

    Raises:
      ValueError: it is malformed.
    """
    start, colon, count = window.partition(":")
    if not (colon and start.isdecimal() and count.isdecimal()):
        raise ValueError(f"--profile={window!r}: write START:COUNT, such as 20:5")
    cfg.log.profile_start, cfg.log.profile_steps = int(start), int(count)


def config_of(given: Flags) -> config_lib.RunConfig:
    """The config that parsed flags ask for, not yet validated.

    Raises:
      ValueError: a flag is missing or malformed.
    """
    if not given.config.present:
        raise ValueError("--config is missing; name a recipe, e.g. configs/….py")
    cfg: config_lib.RunConfig = given.config.value
    if given.profile.value:
        set_profile(cfg, given.profile.value)
    if given.resume_step.value is not None:
        cfg.checkpoint.resume_step = given.resume_step.value
    return cfg


def main(given: Flags, argv: list[str]) -> None:
    del argv
    cfg, workdir = config_of(given), given.workdir.value
    runtime.initialise(cfg.hosts)  # what is wrong on one host is told to all
    cfg.validate()
    if given.dry_run.value:
        progress.console().print(cfg.to_json())
        stages.dry_run(cfg, workdir)
        return
    train.train(cfg, workdir)


if __name__ == "__main__":
    cli.run(functools.partial(main, define()))
