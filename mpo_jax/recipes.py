"""What the released recipes share, so that a config file shows only what is its own."""

from __future__ import annotations

from mpo_jax import config


def released_mpo() -> config.RunConfig:
    """Hyper-parameters that every released MPO run has in common.

    AdamW 0.9/0.999, weight decay 0.05 on every parameter, clip 1.0, warm-up 3 %, cosine
    to 0, one epoch, 256 pairs a batch, weights 0.8 / 0.2 / 1, β 0.1, all parts trained
    (paper section 7 and released scripts; the paper's text says warm-up 5 %). These are
    the defaults of ``RunConfig``; here stands what has no neutral default.

    Row shapes: the short one gives 6,144 tokens, what the released 2.0 run gave one
    sequence; the long one takes MMPR's longest responses (2,018 / 4,097 tokens), which
    the released runs truncated.
    """
    cfg = config.RunConfig()
    cfg.model.drop_path = 0.1
    cfg.model.vision_chunk = 7
    cfg.data.workers = 8
    cfg.rows.short = config.RowShapeConfig(3584, 1280, 1280, 14, 8)
    cfg.rows.long = config.RowShapeConfig(4096, 2560, 4608, 16, 8)
    return cfg
