"""InternVL2-1B (Qwen2-0.5B decoder) with the paper's MPO recipe; the smallest run.

  python scripts/train.py --config=configs/internvl2_1b_mpo.py --workdir=runs/1b_mpo \
      --config.data.meta=/data/MMPR/meta.json

Hardware: 8 chips of TPU v5e.
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_1b_mpo", "v5e:2x4"
    cfg.model.path = "OpenGVLab/InternVL2-1B"
    cfg.data.meta = "data/MMPR/meta.json"
    cfg.rows.row_multiple = 16  # 12 long rows a chip: 13 leave less than code takes
    return cfg
