"""InternVL2.5-8B with MPO on MMPR v1.1, as released.

  python scripts/train.py --config=configs/internvl2_5_8b_mpo.py \
      --workdir=runs/2_5_8b_mpo --config.data.meta=/data/MMPR-v1.1/meta.json

Hardware: 32 chips of TPU v5e. Against the 2.0 recipe: learning rate 1e-6 and 8,192
tokens a sequence. Expected (released report): MathVista 64.5 -> 68.9.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_5_8b_mpo", "v5e:4x8"
    cfg.model.path = "OpenGVLab/InternVL2_5-8B"
    cfg.data.meta = "data/MMPR-v1.1/meta.json"
    cfg.rows.row_multiple = 96
    cfg.optim.accumulation_long = 3  # three rows of 11,264 tokens a chip do not fit
    cfg.optim.learning_rate = 1e-6
    return cfg
