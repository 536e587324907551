"""InternVL2-2B with the paper's MPO recipe; the smallest InternLM2 model.

  python scripts/train.py --config=configs/internvl2_2b_mpo.py --workdir=runs/2b_mpo \
      --config.data.meta=/data/MMPR/meta.json

Hardware: 16 chips of TPU v5e. The paper reports 8B and 76B only; the hyper-parameters
are those of its 8B run.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_2b_mpo", "v5e:4x4"
    cfg.model.path = "OpenGVLab/InternVL2-2B"
    cfg.data.meta = "data/MMPR/meta.json"
    cfg.rows.row_multiple = 16
    return cfg
