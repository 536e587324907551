"""The small form of the miniature: one seed, MPO alone.

  python scripts/miniature.py --config=configs/quickstart.py --workdir=runs/quickstart

or `make quickstart`: draws a world, trains a tiny InternVL from scratch by SFT, samples
its answers, pairs right with wrong, trains by MPO, scores before and after.

Hardware: 2 CPU cores, some minutes. Expected: README.md.
"""

from mpo_jax.miniature import config


def get_config() -> config.MiniatureConfig:
    return config.quickstart()
