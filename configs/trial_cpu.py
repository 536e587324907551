"""Any MPO data on a small random model on a CPU: tries the pipeline, not the learning.

  python scripts/shrink_model.py --src=/models/InternVL2-2B --dst=/tmp/small_2b
  python scripts/train.py --config=configs/trial_cpu.py --workdir=runs/trial \
      --config.model.path=/tmp/small_2b --config.data.meta=/data/my_pairs/meta.json

Hardware: any CPU; 30 steps take a few minutes on 2 cores. Expected: the step-0 gate
passes, and the loss falls slowly from 0.83 + ln(vocabulary) (12.3 for InternLM2).
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name = "trial_cpu"
    cfg.model.path = "data/small_model"
    cfg.model.init = "random"
    cfg.model.dtype = "float32"
    cfg.model.remat = "none"
    cfg.model.vision_chunk = 2
    cfg.data.meta = "data/pairs/meta.json"
    cfg.data.max_tiles = 6
    cfg.data.workers = 0
    cfg.rows.short = config.RowShapeConfig(2304, 512, 512, 8, 4)
    cfg.rows.long = config.RowShapeConfig(2304, 1536, 1536, 8, 4)
    cfg.rows.pairs_per_batch = 4
    cfg.optim.learning_rate = 1e-3
    cfg.optim.max_steps = 30
    cfg.mesh.fsdp = 1
    cfg.checkpoint.every_steps = 5
    return cfg
