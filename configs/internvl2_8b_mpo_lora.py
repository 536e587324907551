"""InternVL2-8B with MPO on MMPR, adapters of the decoder alone (docs/lora.md).

  python scripts/train.py --config=configs/internvl2_8b_mpo_lora.py \
      --workdir=runs/8b_mpo_lora --config.data.meta=/data/MMPR/meta.json

Rank, alpha, learning rate, weight decay and drop path are those of the released LoRA
fine-tuning script, whose batch is 16; batch and loss are those of the MPO runs. Nobody
has published results of the two together, so look at the learning rate first.

Hardware: 8 chips of TPU v5e (96 rows a step, 12 to a chip, one after another).
"""

from mpo_jax import config, recipes


def get_config() -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name, cfg.topology = "internvl2_8b_mpo_lora", "v5e:2x4"
    cfg.model.path = "OpenGVLab/InternVL2-8B"
    cfg.model.freeze_vision = True
    cfg.model.freeze_projector = True
    cfg.model.freeze_language = True
    cfg.model.frozen_dtype = "bfloat16"
    cfg.model.lora.language_rank = 16
    cfg.model.lora.scale = 2.0  # alpha 32
    cfg.model.drop_path = 0.0
    cfg.data.meta = "data/MMPR/meta.json"
    cfg.rows.row_multiple = 96
    cfg.reference.mode = "online"  # the same weights, adapters off
    cfg.optim.accumulation = 12
    cfg.optim.learning_rate = 4e-5
    cfg.optim.weight_decay = 0.01
    return cfg
