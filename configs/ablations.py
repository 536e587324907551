"""The paper's ablation of preference losses, one string per row of its table.

  python scripts/train.py --config=configs/ablations.py:dpo+ --workdir=runs/dpo_plus \
      --config.data.meta=/data/M3CoT/meta.json

Names: dpo, rso, ipo, cdpo, robust, bco, sppo, aot, trdpo, orpo, each also
with ``+`` (plus the SFT term), mpo, and bco+dpo (without SFT). All with learning rate
5e-6, trained on M3CoT in the paper.

Hardware: 32 chips of TPU v5e, as internvl2_8b_mpo, whose base model this takes.
"""

from mpo_jax import config, recipes

LOSSES = {
    "dpo": "sigmoid",
    "rso": "hinge",
    "ipo": "ipo",
    "cdpo": "cdpo",
    "robust": "robust",
    "bco": "bco_pair",
    "sppo": "sppo_hard",
    "aot": "aot",
    "trdpo": "sigmoid",
    "orpo": "orpo",
}
SMOOTHED = {"cdpo": 0.1, "robust": 0.1}


def get_config(name: str = "mpo") -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.name = f"ablation_{name}"
    cfg.topology = "v5e:4x8"
    cfg.model.path = "OpenGVLab/InternVL2-8B"
    cfg.data.meta = "data/M3CoT/meta.json"
    cfg.rows.row_multiple = 96
    cfg.optim.accumulation_long = 3  # three rows of 11,264 tokens a chip do not fit
    if name == "mpo":
        return cfg
    if name == "bco+dpo":
        cfg.loss.terms, cfg.loss.weights = ("sigmoid", "bco_pair"), (0.8, 0.2)
        return cfg
    base = name.removesuffix("+")
    if base not in LOSSES:
        raise ValueError(
            f"unknown ablation {name!r}; known: mpo, bco+dpo, and with or without +: "
            f"{', '.join(LOSSES)}"
        )
    cfg.loss.terms, cfg.loss.weights = (LOSSES[base],), (1.0,)
    if name.endswith("+") or base == "orpo":  # ORPO's own NLL is the SFT term
        cfg.loss.terms += ("sft",)
        cfg.loss.weights += (1.0,)
    cfg.loss.label_smoothing = SMOOTHED.get(base, 0.0)
    if base == "trdpo":
        cfg.reference.mode = "moving"
    if base == "orpo":
        cfg.reference.mode = "none"
    return cfg
