"""Run configuration: typed dataclasses, validation, JSON, did-you-mean overrides.

``configs/*.py`` build a :class:`RunConfig` in ``get_config()``; every field can be
overridden on the command line (``--config.optim.learning_rate=1e-6``).
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax import types

DELTA_MODES = ("cumulative", "previous", "ema", "batch", "zero")
REFERENCE_MODES = ("cache", "online", "moving", "none")


@dataclasses.dataclass
class ModelConfig:
    """Which weights, and how they are computed with."""

    path: str = ""
    """Checkpoint to start from: a HF directory, a converted Orbax one, or a hub id."""
    init: str = "pretrained"
    """``pretrained`` reads weights from `path`; ``random`` only reads its config.json."""
    dtype: str = "bfloat16"
    """Compute dtype of activations; softmax, norms and log-probs are float32 always."""
    param_dtype: str = "float32"
    """Dtype in which trained parameters are kept."""
    remat: str = "full"
    """Rematerialisation of each layer: ``none``, ``dots`` or ``full``."""
    attention: str = "auto"
    """Attention back end: ``auto``, ``reference`` (one einsum) or ``blocks``."""
    drop_path: float = 0.1
    """ViT stochastic depth of the last layer (linear from 0), both sides share it."""
    vision_chunk: int = 0
    """Tiles per ViT micro-batch and device batch row; 0 runs all tiles at once."""
    logps_chunk: int = 512
    """Response tokens per chunk in which logits exist; bounds their memory."""
    freeze_vision: bool = False
    freeze_projector: bool = False
    freeze_language: bool = False


@dataclasses.dataclass
class DataConfig:
    """Records, images and text; how they reach the step."""

    meta: str = ""
    """MMPR meta.json of the training pairs."""
    eval_meta: str = ""
    """MMPR meta.json of held-out pairs, scored every `log.eval_every` steps."""
    reroot: str = ""
    """``OLD=NEW``: replace the prefix OLD of every root and annotation path."""
    cache_dir: str = ""
    """Where index, ledger and reference cache live; empty is ``<workdir>/data``."""
    tokenizer: str = ""
    """Directory of the tokenizer; empty is the model's."""
    template: str = ""
    """Chat template; empty is the one that the model's config.json names."""
    min_tiles: int = 1
    max_tiles: int = 12
    """Tile limit where meta.json gives no ``max_dynamic_patch`` (paper: 6 or 12)."""
    max_image_pixels: int = 89_478_485
    """Larger images are left out unread (decompression bombs)."""
    max_text_bytes: int = 1_000_000
    """Longer annotation lines are left out unparsed."""
    index_workers: int = 0
    """Processes of the index stage; 0 is one per core."""
    workers: int = 0
    """Grain worker processes that assemble batches; 0 works in threads."""
    threads: int = 4
    """Threads per worker that decode and tile images."""
    prefetch: int = 2
    """Assembled batches kept ready per worker."""


@dataclasses.dataclass
class RowShapeConfig:
    """Budgets of a packed row; all zero means that the shape is not used."""

    prompt_tokens: int = 0
    chosen_tokens: int = 0
    rejected_tokens: int = 0
    tiles: int = 0
    pairs: int = 0

    def build(self) -> types.RowShape:
        return types.RowShape(**dataclasses.asdict(self))

    @property
    def used(self) -> bool:
        return self.prompt_tokens > 0


@dataclasses.dataclass
class RowsConfig:
    """Row shapes and how many rows make a global batch."""

    short: RowShapeConfig = dataclasses.field(
        default_factory=lambda: RowShapeConfig(3584, 1280, 1280, 14, 8)
    )
    long: RowShapeConfig = dataclasses.field(default_factory=RowShapeConfig)
    """Second shape for pairs that do not fit the first; batches never mix shapes."""
    pairs_per_batch: int = 256
    """Expected preference pairs per global batch (the recipe's batch size)."""
    rows_per_batch: int = 0
    """Rows per global batch; 0 derives it from `pairs_per_batch` and the fill."""
    row_multiple: int = 1
    """Derived row numbers are multiples of this: devices × accumulation."""


@dataclasses.dataclass
class LossConfig:
    """Weighted sum of loss terms; the defaults are the paper's MPO."""

    terms: tuple[str, ...] = ("sigmoid", "bco_pair", "sft")
    weights: tuple[float, ...] = (0.8, 0.2, 1.0)
    beta: float = 0.1
    label_smoothing: float = 0.0
    delta: str = "cumulative"
    """BCO reward shift: cumulative, previous, ema, batch or zero."""
    delta_decay: float = 0.99
    """Decay of the ``ema`` shift."""
    sft_reduction: str = "sequence"
    """``sequence``: mean of per-response means (paper); ``token``: mean over tokens."""


@dataclasses.dataclass
class ReferenceConfig:
    """Where the reference log-probs come from."""

    mode: str = "cache"
    """``cache`` once and stored; ``online`` each step; ``moving`` TR-DPO; ``none``."""
    path: str = ""
    """Reference weights; empty is the policy's starting point."""
    moving_alpha: float = 0.6
    """TR-DPO: share of the policy mixed into the reference at each update."""
    moving_every: int = 512
    """TR-DPO: steps between updates of the reference."""


@dataclasses.dataclass
class OptimConfig:
    """AdamW and its schedule, as released."""

    learning_rate: float = 5e-6
    warmup_fraction: float = 0.03
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_all: bool = True
    """True decays every parameter (as released); False spares norms and biases."""
    clip_norm: float = 1.0
    epochs: int = 1
    max_steps: int = 0
    """Stop after this many steps; 0 runs all epochs. The schedule ends there too."""
    accumulation: int = 1
    """Micro-batches per step; loss and gradients do not depend on it."""


@dataclasses.dataclass
class MeshConfig:
    """Device mesh; one axis may be -1 (all remaining devices)."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1


@dataclasses.dataclass
class CheckpointConfig:
    every_steps: int = 200
    keep_last: int = 2
    keep_every: int = 0
    """Also keep every checkpoint whose step divides by this; 0 keeps only the last."""
    export_hf: bool = True
    """Write a HF directory at the end (``<workdir>/hf``)."""


@dataclasses.dataclass
class LogConfig:
    every_steps: int = 1
    eval_every: int = 0
    """Score `data.eval_meta` every this many steps; 0 only before and after."""
    tensorboard: bool = True
    plots: bool = True
    gate: bool = True
    """Check at step 0 that the preference part is what theory says, else stop."""


@dataclasses.dataclass
class RunConfig:
    """Everything that defines a run; stored as JSON beside its checkpoints."""

    name: str = "run"
    mode: str = types.MPO
    """``mpo`` trains on pairs; ``sft`` trains on the chosen side only."""
    seed: int = 0
    topology: str = ""
    """TPU slice that this recipe is meant for, e.g. ``v5e:16x16``."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    rows: RowsConfig = dataclasses.field(default_factory=RowsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
