"""``scripts/train.py`` on a mesh whose neighbours are devices of different processes.

  python tests/interleaved_training.py --config=recipe.json --workdir=DIR

A TPU slice orders a mesh by its torus, so a process's devices lie apart; on CPUs they
come in the order of processes, which hides what depends on it.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags

from mpo_jax import config
from mpo_jax.run import train
from mpo_jax.utils import cli, runtime

_CONFIG = flags.DEFINE_string("config", None, "JSON of a recipe", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run", required=True)


def _of(process: int) -> list[jax.Device]:
    return [d for d in jax.devices() if d.process_index == process]


def main(argv: list[str]) -> None:
    del argv
    cfg = config.from_json(pathlib.Path(_CONFIG.value).read_text(encoding="utf-8"))
    runtime.initialise(cfg.hosts)
    by_process = [_of(process) for process in range(jax.process_count())]
    devices = [device for place in zip(*by_process, strict=True) for device in place]
    train.train(cfg, _WORKDIR.value, devices=devices)


if __name__ == "__main__":
    cli.run(main)
