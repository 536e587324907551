"""Run configuration: typed dataclasses, validation, JSON, did-you-mean overrides.

``configs/*.py`` build a :class:`RunConfig` in ``get_config()``; every field can be
overridden on the command line (``--config.optim.learning_rate=1e-6``).

Annotations are not postponed here: the flag library reads field types as classes.
"""

import copy
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from typing import Any

from mpo_jax import fields, types

DELTA_MODES = ("cumulative", "previous", "ema", "batch", "zero")
REFERENCE_MODES = ("cache", "online", "moving", "none")


LANGUAGE_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
VISION_TARGETS = ("qkv", "out", "fc1", "fc2")


@dataclasses.dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights (docs/lora.md)."""

    language_rank: int = 0
    """Rank of the decoder's adapters; 0 has none."""
    vision_rank: int = 0
    """Rank of the vision tower's adapters; 0 has none."""
    scale: float = 2.0
    """Factor of the adapters' products: PEFT's ``lora_alpha / r``."""
    language_targets: tuple[str, ...] = LANGUAGE_TARGETS
    """Linear maps of a decoder layer that get an adapter."""
    vision_targets: tuple[str, ...] = VISION_TARGETS
    """Linear maps of a vision layer that get an adapter."""

    @property
    def used(self) -> bool:
        return bool(self.language_rank or self.vision_rank)


@dataclasses.dataclass
class ModelConfig:
    """Which weights, and how they are computed with."""

    path: str = ""
    """Checkpoint to start from: a HF directory, a converted Orbax one, the address of
    either (``gs://…``), or a hub id."""
    init: str = "pretrained"
    """``pretrained`` reads weights from `path`; ``random`` reads only config.json."""
    dtype: str = "bfloat16"
    """Compute dtype of activations; softmax, norms and log-probs are float32 always."""
    param_dtype: str = "float32"
    """Dtype in which trained parameters are kept. ``bfloat16`` is refused: an update of
    the size of the learning rate is below half a step of it."""
    frozen_dtype: str = "same"
    """Dtype in which frozen parameters are kept; ``same`` is `param_dtype`. Released
    weights are bfloat16, which so loses nothing of them."""
    remat: str = "full"
    """Rematerialisation of each layer, from most memory to least: ``none``, ``dots``,
    ``attention``, ``full``, ``offload`` (layer inputs in host memory)."""
    attention: str = "auto"
    """``auto`` is splash on TPU, cudnn on GPU, blocks (XLA) on CPU and in float32;
    ``reference`` is one einsum."""
    drop_path: float = 0.1
    """ViT stochastic depth of the last layer (linear from 0), both sides share it."""
    vision_chunk: int = 0
    """Tiles of a row per ViT micro-batch, 0 is all. Of a micro-batch only the tiles are
    kept, unless `remat` is ``dots`` or ``attention``."""
    logps_chunk: int = 0
    """Response tokens of a row per chunk in which logits exist; 0 takes all at once."""
    vocab_chunk: int = 8192
    """Vocabulary entries for which logits exist at a time; 0 takes all at once."""
    freeze_vision: bool = False
    freeze_projector: bool = False
    freeze_language: bool = False
    train_vision_layers: int = 0
    """With `freeze_vision`: the last layers of the tower that are trained all the same
    (upstream's ``unfreeze_vit_layers=-n``)."""
    train_head: bool = False
    """With `freeze_language`: the language-model head is trained all the same."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass
class DataConfig:
    """Records, images and text; how they reach the step."""

    meta: str = ""
    """MMPR meta.json of the training pairs."""
    eval_meta: str = ""
    """MMPR meta.json of held-out pairs, scored every `log.eval_every` steps."""
    reroot: str = ""
    """``OLD=NEW``: replace the leading path OLD of roots, annotations and absolute
    image paths."""
    cache_dir: str = ""
    """Where index, ledger and reference cache live; empty is ``<workdir>/data``."""
    tokenizer: str = ""
    """Directory or address of the tokenizer; empty is the model's."""
    template: str = ""
    """Chat template; empty is the one that the model's config.json names."""
    min_tiles: int = 1
    max_tiles: int = 12
    """Tile limit where meta.json gives no ``max_dynamic_patch`` (paper: 6 or 12)."""
    max_image_pixels: int = 89_478_485
    """Larger images are left out unread (decompression bombs)."""
    max_text_bytes: int = 1_000_000
    """Longer annotation lines are left out unparsed."""
    max_left_out: float = 0.5
    """Largest share of a source's records that may be left out; more stops the run.
    1 never stops it."""
    index_workers: int = 0
    """Processes of the index stage; 0 is one per core."""
    workers: int = 0
    """Grain worker processes that assemble batches; 0 works in threads."""
    threads: int = 4
    """Threads per worker that decode and tile images."""
    prefetch: int = 2
    """Assembled batches kept ready per worker."""
    prefetch_to_device: int = 1
    """Global batches that a thread puts on the devices ahead; 0 puts them in between
    steps."""


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
        return any(dataclasses.astuple(self))


@dataclasses.dataclass
class RowsConfig:
    """Row shapes and how many rows make a global batch."""

    short: RowShapeConfig = dataclasses.field(
        default_factory=lambda: RowShapeConfig(4352, 896, 896, 16, 8)
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
    cache: str = ""
    """Directory of a cache made beforehand, used only if its key matches; empty keeps
    it beside the index."""
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
    accumulation_long: int = 0
    """The same for batches of long rows, which take more memory; 0: as many."""
    offload: bool = False
    """Keep optimiser moments in host memory between updates (TPU, GPU)."""


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
    """Steps per line of metrics.jsonl; a checkpoint writes one in between."""
    eval_every: int = 0
    """Score `data.eval_meta` every this many steps; 0 only before and after."""
    tensorboard: bool = True
    plots: bool = True
    gate: bool = True
    """Compare cached reference log-probs with the policy's at step 0, else stop."""
    profile_start: int = 1
    """First step of the trace that `profile_steps` asks for."""
    profile_steps: int = 0
    """Steps traced for xprof, into ``<workdir>/profile``; 0 traces none."""


@dataclasses.dataclass
class RunConfig:
    """Everything that defines a run; stored as JSON beside its checkpoints."""

    name: str = "run"
    mode: str = types.MPO
    """``mpo`` trains on pairs; ``sft`` trains on the chosen side only."""
    seed: int = 0
    topology: str = ""
    """TPU slice that this recipe is meant for, e.g. ``v5e:16x16``."""
    compile_cache: str = ""
    """Directory of compiled programs; empty is ``<workdir>/compile_cache`` (unless
    ``JAX_COMPILATION_CACHE_DIR`` names one), ``none`` keeps none."""
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    rows: RowsConfig = dataclasses.field(default_factory=RowsConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    reference: ReferenceConfig = dataclasses.field(default_factory=ReferenceConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)

    def validate(self) -> None:
        """Check values and how they fit together, before any device is touched.

        Raises:
          ValueError: naming the field, its value and the remedy. What concerns the loss
            alone is checked by ``losses.mixture.validate_loss_config``.
        """
        fields.check_types(self, RunConfig())
        fields.choice("mode", self.mode, (types.MPO, types.SFT))
        fields.choice("model.init", self.model.init, ("pretrained", "random"))
        fields.choice("model.dtype", self.model.dtype, ("bfloat16", "float32"))
        self._validate_param_dtype()
        fields.choice(
            "model.frozen_dtype",
            self.model.frozen_dtype,
            ("same", "bfloat16", "float32"),
        )
        fields.choice(
            "model.remat",
            self.model.remat,
            ("none", "dots", "attention", "full", "offload"),
        )
        fields.choice(
            "model.attention",
            self.model.attention,
            ("auto", "reference", "blocks", "splash", "cudnn"),
        )
        fields.choice("reference.mode", self.reference.mode, REFERENCE_MODES)
        fields.choice("loss.delta", self.loss.delta, DELTA_MODES)
        if not self.model.path:
            raise ValueError("model.path is empty; name a model directory or a hub id")
        if not self.data.meta:
            raise ValueError("data.meta is empty; name the meta.json of the pairs")
        fields.within("model.drop_path", self.model.drop_path, 0, 0.999)
        fields.within("data.max_left_out", self.data.max_left_out, 0, 1)
        fields.within("optim.warmup_fraction", self.optim.warmup_fraction, 0, 1)
        fields.within("reference.moving_alpha", self.reference.moving_alpha, 0, 1)
        fields.within("optim.b1", self.optim.b1, 0, 0.999_999)
        fields.within("optim.b2", self.optim.b2, 0, 0.999_999)
        fields.within("optim.eps", self.optim.eps, 1e-30, 1)
        for name in (
            *("optim.accumulation", "optim.epochs", "reference.moving_every"),
            *("checkpoint.every_steps", "checkpoint.keep_last", "log.every_steps"),
            *("log.profile_start", "rows.pairs_per_batch", "rows.row_multiple"),
            *("data.min_tiles", "data.threads", "data.prefetch"),
            *("data.max_image_pixels", "data.max_text_bytes"),
        ):
            fields.at_least(name, fields.get(self, name), 1)
        for name in (
            *("seed", "model.vision_chunk", "model.logps_chunk", "model.vocab_chunk"),
            *("model.train_vision_layers", "model.lora.language_rank"),
            *("model.lora.vision_rank", "optim.max_steps", "checkpoint.keep_every"),
            "optim.accumulation_long",
            *("log.eval_every", "rows.rows_per_batch", "data.workers"),
            *("data.prefetch_to_device", "log.profile_steps", "data.index_workers"),
            *("optim.clip_norm", "optim.weight_decay", "optim.learning_rate"),
        ):
            fields.at_least(name, fields.get(self, name), 0)
        if self.data.max_tiles < self.data.min_tiles:
            raise ValueError(
                f"data.max_tiles={self.data.max_tiles} is below "
                f"data.min_tiles={self.data.min_tiles}; raise it"
            )
        if self.data.reroot and self.data.reroot.count("=") != 1:
            raise ValueError(f"data.reroot={self.data.reroot!r}: write OLD=NEW")
        if self.log.eval_every and not self.data.eval_meta:
            raise ValueError(
                f"log.eval_every={self.log.eval_every}, but data.eval_meta is empty; "
                "name the meta.json of held-out pairs or set log.eval_every to 0"
            )
        for axis, size in dataclasses.asdict(self.mesh).items():
            if size < 1 and size != -1:
                raise ValueError(
                    f"mesh.{axis}={size} must be at least 1, or -1 for all remaining "
                    "devices"
                )
        self._validate_rows()
        self._validate_mode()
        self._validate_frozen()

    def _validate_param_dtype(self) -> None:
        name, dtype = "model.param_dtype", self.model.param_dtype
        fields.choice(name, dtype, ("bfloat16", "float32"))
        if dtype == "bfloat16":
            # Of 20 steps at 5e-6 from random weights, 7 % of them moved at all; nor can
            # a second moment decay by the factor 0.999.
            raise ValueError(
                f"{name}={dtype!r}: an update of a trained parameter is below half a "
                "step of it, so most would never move; set it to 'float32'. Memory is "
                "saved by model.lora, by model.frozen_dtype='bfloat16' where a part is "
                "frozen, and by optim.offload=True"
            )

    def _validate_rows(self) -> None:
        if not self.rows.short.used:
            raise ValueError("rows.short has no budgets; at least one shape is needed")
        for name in ("short", "long"):
            shape = getattr(self.rows, name)
            if not shape.used:
                continue
            for field in ("prompt_tokens", "chosen_tokens", "pairs"):
                fields.at_least(f"rows.{name}.{field}", getattr(shape, field), 1)
            fields.at_least(f"rows.{name}.tiles", shape.tiles, 0)
            if self.mode == types.SFT and shape.rejected_tokens:
                raise ValueError(
                    f"rows.{name}.rejected_tokens={shape.rejected_tokens}: mode=sft "
                    "trains on chosen responses only; set it to 0"
                )
            if self.mode == types.MPO and shape.rejected_tokens < 1:
                raise ValueError(
                    f"rows.{name}.rejected_tokens={shape.rejected_tokens}: mode=mpo "
                    "needs room for rejected responses"
                )
        rows, optim = self.rows, self.optim
        if optim.accumulation_long and not rows.long.used:
            raise ValueError(
                f"optim.accumulation_long={optim.accumulation_long}: rows.long has no "
                "budgets; leave it 0"
            )
        for field in ("accumulation", "accumulation_long"):
            micro = getattr(optim, field) or 1
            if rows.rows_per_batch % micro or (
                not rows.rows_per_batch and rows.row_multiple % micro
            ):
                raise ValueError(
                    f"optim.{field}={micro} must divide rows.rows_per_batch="
                    f"{rows.rows_per_batch} (or rows.row_multiple={rows.row_multiple} "
                    "where the former is 0)"
                )

    def _validate_mode(self) -> None:
        if self.mode == types.SFT:
            if tuple(self.loss.terms) != ("sft",):
                raise ValueError(
                    f"loss.terms={self.loss.terms!r}: mode=sft takes ('sft',) with one "
                    "weight, loss.weights=(1.0,)"
                )
            if self.reference.mode != "none":
                raise ValueError(
                    f"reference.mode={self.reference.mode!r}: mode=sft needs no "
                    "reference; set it to 'none'"
                )
        if self.reference.mode == "none" and self.reference.path:
            raise ValueError(
                f"reference.path={self.reference.path!r}: reference.mode='none' reads "
                "no reference; leave it empty or use 'cache' or 'online'"
            )
        if self.reference.mode != "cache" and self.reference.cache:
            raise ValueError(
                f"reference.cache={self.reference.cache!r}: read with "
                f"reference.mode='cache' only, not {self.reference.mode!r}"
            )
        if self.reference.mode == "moving" and self.reference.path:
            raise ValueError(
                "reference.path: reference.mode='moving' starts from the policy; leave "
                "it empty"
            )

    def _validate_frozen(self) -> None:
        model, lora = self.model, self.model.lora
        for part, choices in (
            ("language", LANGUAGE_TARGETS),
            ("vision", VISION_TARGETS),
        ):
            name = f"model.lora.{part}_targets"
            targets = getattr(lora, f"{part}_targets")
            if not targets or len(set(targets)) < len(targets):
                raise ValueError(f"{name}={targets!r}: name one or more, each once")
            for target in targets:
                fields.choice(name, target, choices)
            rank = getattr(lora, f"{part}_rank")
            if rank and not getattr(model, f"freeze_{part}"):
                raise ValueError(
                    f"model.lora.{part}_rank={rank}: the weights under adapters are "
                    f"frozen; set model.freeze_{part}=True"
                )
        if not 0 < lora.scale < math.inf:
            raise ValueError(
                f"model.lora.scale={lora.scale!r} must be positive and finite"
            )
        for name, value, part in (
            ("train_vision_layers", model.train_vision_layers, "vision"),
            ("train_head", model.train_head, "language"),
        ):
            if value and not getattr(model, f"freeze_{part}"):
                raise ValueError(
                    f"model.{name}={value!r}: everything of {part} is trained anyway; "
                    f"set model.freeze_{part}=True"
                )
        if model.train_vision_layers and lora.vision_rank:
            raise ValueError(
                f"model.train_vision_layers={model.train_vision_layers} and "
                f"model.lora.vision_rank={lora.vision_rank}: train the last layers or "
                "adapters in all of them; set one to 0"
            )
        frozen = model.freeze_vision or model.freeze_projector or model.freeze_language
        if model.frozen_dtype != "same" and not frozen:
            raise ValueError(
                f"model.frozen_dtype={model.frozen_dtype!r}: nothing is frozen; set it "
                "to 'same', or a model.freeze_…"
            )
        if lora.used and self.reference.mode == "moving":
            raise ValueError(
                "reference.mode='moving': a mixture of adapters is not the adapter of "
                "a mixture; use 'cache' or 'online' with model.lora"
            )

    def located(self) -> "RunConfig":
        """The same with every path absolute and ``~`` expanded; addresses stay.

        What is stored with a run must mean the same elsewhere. A `model.path` that is
        no directory here is taken for a hub id.
        """
        found = copy.deepcopy(self)
        for name in _PATHS:
            group, _, field = name.rpartition(".")
            section = getattr(found, group) if group else found
            setattr(section, field, absolute(name, getattr(section, field)))
        return found

    def to_json(self) -> str:
        """The whole configuration as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


# Fields that name files or directories.
_PATHS = (
    *("model.path", "data.meta", "data.eval_meta", "data.reroot", "data.cache_dir"),
    *("data.tokenizer", "reference.path", "reference.cache", "compile_cache"),
)


def absolute(name: str, value: Any) -> Any:
    """The value of a field, absolute and with ``~`` expanded if it is a path."""
    if name not in _PATHS or not value or "://" in value:
        return value
    if name == "data.reroot":
        old, equals, new = value.partition("=")
        return old + equals + os.path.expanduser(new)
    path = os.path.expanduser(value)
    hub = name in ("model.path", "reference.path") and not os.path.exists(path)
    none = name == "compile_cache" and value == "none"
    return path if hub or none else os.path.abspath(path)


def from_json(text: str) -> RunConfig:
    """Inverse of :meth:`RunConfig.to_json`.

    Raises:
      ValueError: on unknown fields, with the nearest name, and on what is no JSON or
        no object. Values are checked by :meth:`RunConfig.validate`.
    """
    return fields.from_dict(RunConfig, json.loads(text), "")


def check_overrides(argv: Sequence[str], cfg: RunConfig | None = None) -> None:
    """Check ``--config.NAME=…`` arguments before the flag library sees them.

    Raises:
      ValueError: on a field that does not exist, with the nearest names.
    """
    known = fields.names(cfg or RunConfig())
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        name = argument[len("--config.") :].split("=", 1)[0]
        if name not in known:
            raise ValueError(fields.unknown(name, known))
