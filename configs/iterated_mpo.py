"""Iterated MPO of InternVL2-8B: its own answers to questions, paired, trained on.

  python scripts/run_recipe.py --config=configs/iterated_mpo.py \
      --workdir=runs/iterated \
      --config.questions.files="('/data/questions.jsonl',)" --dry_run

Sampling and pairing as in the paper's pipeline (32 answers at temperature 1, at most 15
pairs a prompt, chains of thought in the words of MMPR v1.0; continuations from half of
an answer without the image), training with its loss and weights (0.8, 0.2, 1). The
paper makes its pairs once, of the start's answers: that is round 1. Round 2, from and
against round 1's model, is iterated DPO's addition; nobody has published its scores.

Hardware: 32 chips of TPU v5e or more, as internvl2_8b_mpo. 100,000 questions are 3.2
million answers, each of at most 2,048 tokens; set rates.tokens_per_s to what a short
run shows, and the plan has hours. Expected (paper, 3 million pairs): MathVista
58.3 -> 67.0, MathVision 20.4 -> 25.7, M3CoT 59.3 -> 79.2.
"""

from mpo_jax import config, recipe_config, recipes


def get_config() -> recipe_config.RecipeConfig:
    cfg = recipe_config.RecipeConfig(name="iterated_mpo", rounds=2)
    cfg.model = "OpenGVLab/InternVL2-8B"
    cfg.questions.files = ("data/questions.jsonl",)
    cfg.ntp.file = "data/open_questions.jsonl"

    cfg.sampling.formats = ("en",)
    cfg.sampling.n = 32
    cfg.sampling.temperature = 1.0
    cfg.sampling.max_new_tokens = 2048
    cfg.sampling.max_tiles = 6
    cfg.pairs.max_pairs = 15
    cfg.pairs.html = True

    cfg.train = recipes.released_mpo()
    cfg.train.topology = "v5e:4x8"
    cfg.train.rows.row_multiple = 96
    cfg.train.optim.accumulation_long = 3  # as internvl2_8b_mpo
    cfg.train.optim.learning_rate = 5e-6
    cfg.train.loss = config.LossConfig(
        terms=("sigmoid", "bco_pair", "sft"), weights=(0.8, 0.2, 1.0)
    )

    cfg.evaluate.benchmarks = ("mathvista", "mathvision:vlmevalkit", "m3cot")
    cfg.evaluate.modes = ("direct", "cot")
    cfg.evaluate.data = "data/benchmarks"
    return cfg
