"""InternVL2-26B (6B vision tower) with MPO on MMPR.

  python scripts/train.py --config=configs/internvl2_26b_mpo.py \
      --workdir=runs/26b_mpo --config.data.meta=/data/MMPR/meta.json

Hardware: 16 chips of TPU v5p or more (scripts/plan.py). Learning rate and drop path are
those that were released for InternVL2.5-26B; the paper trains no model of this size.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_26b_mpo", "v5p:2x2x4"
    cfg.model.path = "OpenGVLab/InternVL2-26B"
    cfg.model.drop_path = 0.4
    cfg.data.meta = "data/MMPR/meta.json"
    cfg.rows.row_multiple = 16
    cfg.optim.learning_rate = 1e-6
    return cfg
