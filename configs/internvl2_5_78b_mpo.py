"""InternVL2.5-78B with MPO on MMPR-v1.1, as released.

  python scripts/train.py --config=configs/internvl2_5_78b_mpo.py \
      --workdir=runs/78b_mpo --config.data.meta=/data/MMPR-v1.1/meta.json

Hardware: 64 chips of TPU v5p or more (scripts/plan.py). 512 pairs a batch, learning
rate 1e-6, drop path 0.4.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_5_78b_mpo", "v5p:4x4x4"
    cfg.model.path = "OpenGVLab/InternVL2_5-78B"
    cfg.model.drop_path = 0.4
    cfg.data.meta = "data/MMPR-v1.1/meta.json"
    cfg.rows.pairs_per_batch = 512
    cfg.rows.row_multiple = 64
    cfg.optim.learning_rate = 1e-6
    return cfg
