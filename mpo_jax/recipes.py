"""What the released recipes share, so that a config file shows only what is its own."""

from __future__ import annotations

from mpo_jax import config


def released_mpo() -> config.RunConfig:
    """Hyper-parameters that every released MPO run has in common.

    AdamW 0.9/0.999, weight decay 0.05 on every parameter, clip 1.0, warm-up 3 %, cosine
    to 0, one epoch, 256 pairs a batch, weights 0.8 / 0.2 / 1, β 0.1, all parts trained
    (paper section 7 and released scripts; the paper's text says warm-up 5 %). These are
    the defaults of ``RunConfig``; here stands what has no neutral default.

    Row shapes: the short one holds three average pairs in 6,144 tokens, what the
    released 2.0 run gave one sequence, 12 blocks of the TPU kernel's 512. On lengths
    like MMPR's it fills 94 % of the prompt budget and of the tiles, 73 % and 79 % of
    the response budgets (benchmarks/packing.py). The long one takes MMPR's longest
    responses (2,018 / 4,097 tokens), which the released runs truncated.
    """
    cfg = config.RunConfig()
    cfg.model.drop_path = 0.1
    cfg.model.vision_chunk = 8
    cfg.data.workers = 8
    cfg.rows.short = config.RowShapeConfig(4352, 896, 896, 16, 8)
    cfg.rows.long = config.RowShapeConfig(4096, 2560, 4608, 16, 8)
    return cfg


def quickstart(stage: str) -> config.RunConfig:
    """Trainings of the tiny model on drawings, sized for one or two CPU cores.

    Args:
      stage: ``sft`` trains the model from scratch on a mixture of direct answers and
        chains of thought; ``mpo`` continues with the paper's loss on pairs of its own
        answers. Paths are left to the caller.
    """
    cfg = config.RunConfig(name=f"quickstart {stage}")
    cfg.model.dtype = "float32"
    cfg.model.remat = "full"  # recomputing costs a CPU less than storing
    cfg.model.drop_path = 0.0
    cfg.model.vocab_chunk = 0
    cfg.data.max_tiles = 1
    cfg.data.threads = 2
    cfg.mesh.fsdp = 1
    cfg.optim.warmup_fraction = 0.05
    cfg.checkpoint.every_steps = 100
    cfg.checkpoint.keep_last = 1
    if stage == "sft":
        cfg.mode = "sft"
        cfg.model.init = "random"
        cfg.rows.short = config.RowShapeConfig(352, 128, 0, 4, 4)
        cfg.rows.pairs_per_batch = 32
        cfg.loss.terms, cfg.loss.weights = ("sft",), (1.0,)
        cfg.reference.mode = "none"
        cfg.optim.learning_rate = 2e-3
        cfg.optim.max_steps = 450
        cfg.checkpoint.export_hf = False
    elif stage == "mpo":
        cfg.rows.short = config.RowShapeConfig(352, 192, 192, 4, 4)
        cfg.rows.pairs_per_batch = 48
        cfg.optim.learning_rate = 3e-4
        cfg.optim.max_steps = 200
    else:
        raise ValueError(f"stage={stage!r}: use sft or mpo")
    return cfg
