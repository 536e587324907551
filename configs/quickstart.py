"""Trainings on what `make quickstart` made: ``:sft`` from scratch, ``:mpo`` on pairs.

  python scripts/train.py --config=configs/quickstart.py:mpo --workdir=runs/my_mpo \
      --config.loss.beta=0.3

Hardware: 2 CPU cores, some minutes.
"""

from mpo_jax import config, recipes


def get_config(stage: str = "mpo") -> config.RunConfig:
    cfg = recipes.quickstart(stage)
    root = "runs/quickstart/seed_0"
    if stage == "sft":
        cfg.model.path = f"{root}/world/model"
        cfg.data.meta = f"{root}/world/mixture/meta.json"
    else:
        cfg.model.path = f"{root}/start/train"
        cfg.data.meta = f"{root}/round_1/data/meta.json"
    return cfg
