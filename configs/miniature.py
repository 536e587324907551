"""The paper's claim in miniature: five methods, five seeds, two CPU cores, an hour.

  python scripts/miniature.py --config=configs/miniature.py --workdir=runs/miniature

or `make miniature`; docs/miniature.md has what it found. The learning rate of each
method was chosen on seeds 100 and 101, which share no drawing, model or sample with
those that are reported:

  python scripts/miniature.py --config=configs/miniature.py --workdir=runs/search_1e-3 \
      --config.seeds=100,101 --config.learning_rates=1e-3,1e-3,1e-3,1e-3,1e-3

Hardware: 2 CPU cores, up to 60 minutes; more cores, more seeds at a time.
"""

from mpo_jax.miniature import config


def get_config() -> config.MiniatureConfig:
    return config.miniature()
