"""The two stages of `make quickstart`: ``:sft`` from scratch, then ``:mpo``.

  python scripts/quickstart.py --workdir=runs/quickstart

which writes data and model and runs both. To vary a stage on what it wrote:

  python scripts/train.py --config=configs/quickstart.py:mpo --workdir=runs/my_mpo \
      --config.model.path=runs/quickstart/sft \
      --config.data.meta=runs/quickstart/data/meta.json --config.loss.beta=0.3

Hardware: 2 CPU cores, some minutes. Expected: README.md.
"""

from mpo_jax import config, recipes


def get_config(stage: str = "mpo") -> config.RunConfig:
    cfg = recipes.quickstart(stage)
    root = "runs/quickstart"
    cfg.model.path = f"{root}/model" if stage == "sft" else f"{root}/sft"
    cfg.data.meta = f"{root}/data/meta.json"
    cfg.data.eval_meta = f"{root}/data/eval_meta.json"
    return cfg
