"""InternVL2-8B with MPO on MMPR: the paper's run (arXiv 2411.10442, section 7).

  python scripts/train.py --config=configs/internvl2_8b_mpo.py --workdir=runs/8b_mpo \
      --config.data.meta=/data/MMPR/meta.json

Hardware: 32 to 128 chips of TPU v5e or v6e (rows follow; --config.mesh.tensor=2 on
256), 16 with --config.optim.accumulation=6 and accumulation_long=6. Paper: MathVista
58.3 -> 67.0, MathVision 20.4 -> 25.7, M3CoT 59.3 -> 79.2.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_8b_mpo", "v5e:4x8"
    cfg.model.path = "OpenGVLab/InternVL2-8B"
    cfg.data.meta = "data/MMPR/meta.json"
    cfg.rows.row_multiple = 96
    cfg.optim.accumulation_long = 3  # three rows of 11,264 tokens a chip do not fit
    cfg.optim.learning_rate = 5e-6
    return cfg
