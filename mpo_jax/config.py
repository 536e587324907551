"""Run configuration: every field of a run, with what it takes beside it.

``configs/*.py`` build a :class:`RunConfig` in ``get_config()``; every field can be
overridden on the command line (``--config.optim.learning_rate=1e-6``). How fields fit
together is checked in ``config_checks.py``.

Annotations are not postponed here: the flag library reads field types as classes.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from mpo_jax import config_checks, config_paths, fields, types
from mpo_jax.fields import field

DELTA_MODES = ("cumulative", "previous", "ema", "batch", "zero")
SFT_REDUCTIONS = ("sequence", "token")
LANGUAGE_TARGETS = ("q", "k", "v", "o", "gate", "up", "down")
VISION_TARGETS = ("qkv", "out", "fc1", "fc2")
EVALUATION_MODES = ("direct", "cot")
EVALUATION_PROTOCOLS = ("paper", "vlmevalkit", "official")


@dataclasses.dataclass
class LoraConfig:
    """Low-rank adapters beside frozen weights (docs/lora.md)."""

    language_rank: int = field(0, at_least=0)
    """Rank of the decoder's adapters; 0 has none."""
    vision_rank: int = field(0, at_least=0)
    """Rank of the vision tower's adapters; 0 has none."""
    scale: float = field(2.0, positive=True)
    """Factor of the adapters' products: PEFT's ``lora_alpha / r``."""
    language_targets: tuple[str, ...] = field(
        LANGUAGE_TARGETS, choices=LANGUAGE_TARGETS, each_once=True
    )
    """Linear maps of a decoder layer that get an adapter."""
    vision_targets: tuple[str, ...] = field(
        VISION_TARGETS, choices=VISION_TARGETS, each_once=True
    )
    """Linear maps of a vision layer that get an adapter."""

    @property
    def used(self) -> bool:
        return bool(self.language_rank or self.vision_rank)


@dataclasses.dataclass
class ModelConfig:
    """Which weights, and how they are computed with."""

    path: str = field("", required="name a model directory or a hub id")
    """Checkpoint to start from: a HF directory, a converted Orbax one, the address of
    either (``gs://…``), or a hub id."""
    init: str = field("pretrained", choices=("pretrained", "random"))
    """``pretrained`` reads weights from `path`; ``random`` reads only config.json."""
    dtype: str = field("bfloat16", choices=("bfloat16", "float32"))
    """Compute dtype of activations; softmax, norms and log-probs are float32 always."""
    param_dtype: str = field("float32", choices=("bfloat16", "float32"))
    """Dtype in which trained parameters are kept. ``bfloat16`` is refused: an update of
    the size of the learning rate is below half a step of it."""
    frozen_dtype: str = field("same", choices=("same", "bfloat16", "float32"))
    """Dtype in which frozen parameters are kept; ``same`` is `param_dtype`. Released
    weights are bfloat16, which so loses nothing of them."""
    remat: str = field("full", choices=("none", "dots", "attention", "full", "offload"))
    """Rematerialisation of each layer, from most memory to least: ``none``, ``dots``,
    ``attention``, ``full``, ``offload`` (layer inputs in host memory)."""
    attention: str = field(
        "auto", choices=("auto", "reference", "blocks", "splash", "cudnn")
    )
    """``auto`` is splash on TPU, cudnn on GPU, blocks (XLA) on CPU and in float32;
    ``reference`` is one einsum."""
    drop_path: float = field(0.1, within=(0, 0.999))
    """ViT stochastic depth of the last layer (linear from 0), both sides share it."""
    vision_chunk: int = field(0, at_least=0)
    """Tiles of a row per ViT micro-batch, 0 is all. Of a micro-batch only the tiles are
    kept, unless `remat` is ``dots`` or ``attention``."""
    logps_chunk: int = field(0, at_least=0)
    """Response tokens of a row per chunk in which logits exist; 0 takes all at once."""
    vocab_chunk: int = field(8192, at_least=0)
    """Vocabulary entries for which logits exist at a time; 0 takes all at once."""
    freeze_vision: bool = False
    freeze_projector: bool = False
    freeze_language: bool = False
    train_vision_layers: int = field(0, at_least=0)
    """With `freeze_vision`: the last layers of the tower that are trained all the same
    (upstream's ``unfreeze_vit_layers=-n``)."""
    train_head: bool = False
    """With `freeze_language`: the language-model head is trained all the same."""
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass
class DataConfig:
    """Records, images and text; how they reach the step."""

    meta: str = field("", required="name the meta.json of the pairs")
    """MMPR meta.json of the training pairs, or shards: a path or an address."""
    eval_meta: str = ""
    """MMPR meta.json of held-out pairs, scored every `log.eval_every` steps."""
    reroot: str = ""
    """``OLD=NEW``: replace the leading path OLD of roots, annotations and absolute
    image paths."""
    cache_dir: str = ""
    """Where index, ledger and reference cache live; empty is ``<workdir>/data``."""
    local_cache: str = ""
    """Folder on a local disk that keeps annotations, images and shards fetched from
    addresses such as gs://…; empty is ``mpo_jax/data`` in the user's cache folder."""
    local_cache_gb: float = field(50.0, positive=True)
    """Bound of `local_cache` in 1e9 bytes; what is least recently used goes first."""
    tokenizer: str = ""
    """Directory or address of the tokenizer; empty is the model's."""
    template: str = ""
    """Chat template; empty is the one that the model's config.json names."""
    min_tiles: int = field(1, at_least=1)
    max_tiles: int = field(12, at_least=1)
    """Tile limit where meta.json gives no ``max_dynamic_patch`` (paper: 6 or 12)."""
    max_image_pixels: int = field(89_478_485, at_least=1)
    """Larger images are left out unread (decompression bombs)."""
    max_text_bytes: int = field(1_000_000, at_least=1)
    """Longer annotation lines are left out unparsed."""
    max_left_out: float = field(0.5, within=(0, 1))
    """Largest share of a source's records that may be left out; more stops the run.
    1 never stops it."""
    index_workers: int = field(0, at_least=0)
    """Processes of the index stage; 0 is one per core."""
    workers: int = field(0, at_least=0)
    """Grain worker processes that assemble batches; 0 works in threads."""
    threads: int = field(4, at_least=1)
    """Threads per worker that decode and tile images."""
    retry_seconds: float = field(120.0, at_least=0)
    """How long a record is tried again while storage is away (I/O errors)."""
    prefetch: int = field(2, at_least=1)
    """Assembled batches kept ready per worker."""
    prefetch_to_device: int = field(1, at_least=0)
    """Global batches that a thread puts on the devices ahead; 0 puts them in between
    steps."""


@dataclasses.dataclass
class RowShapeConfig:
    """Budgets of a packed row; all zero means that the shape is not used."""

    prompt_tokens: int = field(0, at_least=0)
    chosen_tokens: int = field(0, at_least=0)
    rejected_tokens: int = field(0, at_least=0)
    tiles: int = field(0, at_least=0)
    pairs: int = field(0, at_least=0)

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
    pairs_per_batch: int = field(256, at_least=1)
    """Expected preference pairs per global batch (the recipe's batch size)."""
    rows_per_batch: int = field(0, at_least=0)
    """Rows per global batch; 0 derives it from `pairs_per_batch` and the fill."""
    row_multiple: int = field(1, at_least=1)
    """Derived row numbers are multiples of this where it divides over the devices,
    else of their number; micro-batches follow then, too."""


@dataclasses.dataclass
class LossConfig:
    """Weighted sum of loss terms; the defaults are the paper's MPO."""

    terms: tuple[str, ...] = field(
        ("sigmoid", "bco_pair", "sft"), required="name at least one term, e.g. 'sft'"
    )
    """Names in ``loss_terms.py``; docs/losses.md has their formulas."""
    weights: tuple[float, ...] = (0.8, 0.2, 1.0)
    """One per term, 0 or more; a term of weight 0 is only logged."""
    beta: float = field(0.1, positive=True)
    """Strength of the pull towards the reference."""
    label_smoothing: float = field(0.0, half_open=(0, 0.5))
    """Assumed share of flipped labels."""
    delta: str = field("cumulative", choices=DELTA_MODES)
    """BCO reward shift: cumulative, previous, ema, batch or zero."""
    delta_decay: float = field(0.99, half_open=(0, 1))
    """Decay of the ``ema`` shift."""
    sft_reduction: str = field("sequence", choices=SFT_REDUCTIONS)
    """``sequence``: mean of per-response means (paper); ``token``: mean over tokens."""

    def validate(self) -> None:
        """Check a loss that is no part of a run, as :meth:`RunConfig.validate` does.

        Raises:
          ValueError: naming the field, its value and the remedy.
        """
        fields.check(self, "loss.")
        config_checks.check_loss(self)


@dataclasses.dataclass
class ReferenceConfig:
    """Where the reference log-probs come from."""

    mode: str = field("cache", choices=("cache", "online", "moving", "none"))
    """``cache`` once and stored; ``online`` each step; ``moving`` TR-DPO; ``none``."""
    path: str = ""
    """Reference weights; empty is the policy's starting point."""
    cache: str = ""
    """Directory of a cache made beforehand, used only if its key matches; empty keeps
    it beside the index."""
    moving_alpha: float = field(0.6, within=(0, 1))
    """TR-DPO: share of the policy mixed into the reference at each update."""
    moving_every: int = field(512, at_least=1)
    """TR-DPO: steps between updates of the reference."""


@dataclasses.dataclass
class OptimConfig:
    """AdamW and its schedule, as released."""

    learning_rate: float = field(5e-6, at_least=0)
    warmup_fraction: float = field(0.03, within=(0, 1))
    b1: float = field(0.9, within=(0, 0.999_999))
    b2: float = field(0.999, within=(0, 0.999_999))
    eps: float = field(1e-8, within=(1e-30, 1))
    weight_decay: float = field(0.05, at_least=0)
    decay_all: bool = True
    """True decays every parameter (as released); False spares norms and biases."""
    clip_norm: float = field(1.0, at_least=0)
    epochs: int = field(1, at_least=1)
    max_steps: int = field(0, at_least=0)
    """Stop after this many steps; 0 runs all epochs. The schedule ends there too."""
    accumulation: int = field(1, at_least=1)
    """Micro-batches per step; loss and gradients do not depend on it."""
    accumulation_long: int = field(0, at_least=0)
    """The same for batches of long rows, which take more memory; 0: as many."""
    offload: bool = False
    """Keep optimiser moments in host memory between updates (TPU, GPU)."""


_REST = {-1: "all remaining devices"}


@dataclasses.dataclass
class MeshConfig:
    """Device mesh; one axis may be -1 (all remaining devices)."""

    data: int = field(1, at_least=1, special=_REST)
    fsdp: int = field(-1, at_least=1, special=_REST)
    tensor: int = field(1, at_least=1, special=_REST)


@dataclasses.dataclass
class HostsConfig:
    """How long the processes of a run wait for each other."""

    connect_s: int = field(300, at_least=1)
    """For all to come when they start."""
    heartbeat_s: int = field(20, at_least=5)
    """For a sign of life; after it a process is given up and all end."""
    shutdown_s: int = field(30, at_least=1)
    """For all to leave."""
    stuck_minutes: float = field(30.0, at_least=0)
    """For the next step, record or tensor on any of them; after it all say where they
    stand, and end. 0: for ever."""


@dataclasses.dataclass
class CheckpointConfig:
    every_steps: int = field(200, at_least=1)
    every_minutes: float = field(0.0, at_least=0)
    """Save also when the last checkpoint is so old, by the first process's clock; 0
    saves by steps alone."""
    retry_seconds: float = field(120.0, at_least=0)
    """How long a save that failed is made up for while storage is away (I/O errors),
    from its failure on; 0 ends the run at once. Several processes end at once, too, and
    their launcher starts them again."""
    keep_last: int = field(2, at_least=1)
    keep_every: int = field(0, at_least=0)
    """Also keep every checkpoint whose step divides by this; 0 keeps only the last."""
    resume_step: int = field(0, at_least=0)
    """Go on from the checkpoint of this step; 0 is the newest. What other runs saved
    after it is set aside; started again with the same step, the run goes on from what
    it has saved since."""
    export_hf: bool = True
    """Write a HF directory at the end (``<workdir>/hf``)."""


@dataclasses.dataclass
class LogConfig:
    every_steps: int = field(1, at_least=1)
    """Steps per line of metrics.jsonl; a checkpoint writes one in between."""
    eval_every: int = field(0, at_least=0)
    """Score `data.eval_meta` every this many steps; 0 only before and after."""
    line_seconds: float = field(30.0, at_least=0)
    """Between lines where stderr is a log; on a terminal there is a bar."""
    upload_seconds: float = field(30.0, at_least=1)
    """Between uploads of metrics and small files where ``--workdir`` is an address."""
    tensorboard: bool = True
    wandb: str = ""
    """Project on Weights & Biases that metrics go to as well; empty is none. The key
    comes from ``WANDB_API_KEY`` or from ``wandb login``."""
    plots: bool = True
    gate: bool = True
    """Compare cached reference log-probs with the policy's at step 0, else stop."""
    profile_start: int = field(1, at_least=1)
    """First step of the trace that `profile_steps` asks for."""
    profile_steps: int = field(0, at_least=0)
    """Steps traced for xprof, into ``<workdir>/profile``; 0 traces none."""


@dataclasses.dataclass
class EvaluationConfig:
    """Benchmarks that a model is scored on, how it is asked (docs/evaluation.md)."""

    benchmarks: tuple[str, ...] = field(
        ("mathvista", "m3cot", "pope"),
        each_once=True,
        required="name benchmarks, e.g. 'mathvista,pope'",
    )
    """Names of benchmarks; ``name:protocol`` takes another protocol than `protocol`."""
    modes: tuple[str, ...] = field(
        EVALUATION_MODES, choices=EVALUATION_MODES, each_once=True
    )
    """``direct`` asks for the answer, ``cot`` for reasoning before it."""
    protocol: str = field("paper", choices=EVALUATION_PROTOCOLS)
    """Whose prompts, limits and rules: InternVL's scripts, VLMEvalKit's, or those of
    the benchmark's authors."""
    data: str = ""
    """Folder of the benchmarks' files: those of one in ``<data>/<name>``, or here."""
    limit: int = field(0, at_least=0)
    """Items of each benchmark, spread evenly over it, groups whole; 0 takes all."""
    n: int = field(1, at_least=1)
    """Answers to every item; several are scored by their mean and by vote."""
    temperature: float = field(0.0, within=(0, 100))
    """0 is greedy."""
    top_p: float = field(1.0, within=(1e-6, 1))
    """Likeliest tokens with this share; 1 takes all."""
    seed: int = field(0, at_least=0)
    """An item's draws depend on it and on the item's id."""
    max_tiles: int = field(0, at_least=0)
    """Of an item's images; 0 is the protocol's."""
    max_new_tokens: int = field(0, at_least=0)
    """Longest answer; 0 is the protocol's."""

    def validate(self) -> None:
        """Check every field by itself.

        Raises:
          ValueError: naming the field, its value and the remedy.
        """
        fields.check(self)


@dataclasses.dataclass
class TrainingEvaluationConfig(EvaluationConfig):
    """Benchmarks that a training scores its model on as it goes."""

    every: int = field(0, at_least=0)
    """Score every this many steps; 0 never does."""
    limit: int = field(200, at_least=0)
    """Items of each benchmark, spread evenly over it, groups whole; 0 takes all."""


@dataclasses.dataclass
class RunConfig:
    """Everything that defines a run; stored as JSON beside its checkpoints."""

    name: str = "run"
    mode: str = field(types.MPO, choices=(types.MPO, types.SFT))
    """``mpo`` trains on pairs; ``sft`` trains on the chosen side only."""
    seed: int = field(0, at_least=0)
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
    hosts: HostsConfig = dataclasses.field(default_factory=HostsConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    log: LogConfig = dataclasses.field(default_factory=LogConfig)
    eval: TrainingEvaluationConfig = dataclasses.field(
        default_factory=TrainingEvaluationConfig
    )

    def validate(self) -> None:
        """Check values and how they fit together, before any device is touched.

        Raises:
          ValueError: naming the field, its value and the remedy.
        """
        fields.check(self)
        config_checks.check(self)

    def located(self) -> "RunConfig":
        """The same with every path absolute and ``~`` expanded; addresses stay.

        What is stored with a run must mean the same elsewhere. A `model.path` that is
        no directory here is taken for a hub id.
        """
        return config_paths.located(self)

    def to_json(self) -> str:
        """The whole configuration as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)


def from_json(text: str) -> RunConfig:
    """Inverse of :meth:`RunConfig.to_json`.

    Raises:
      ValueError: on unknown fields, with the nearest name, and on what is no JSON or
        no object. Values are checked by :meth:`RunConfig.validate`.
    """
    return fields.from_dict(RunConfig, json.loads(text), "")


def check_overrides(argv: Sequence[str], cfg: Any = None) -> None:
    """Check ``--config.NAME=…`` arguments before the flag library sees them.

    Args:
      cfg: a dataclass with the fields that there are; None is a :class:`RunConfig`.

    Raises:
      ValueError: on a field that does not exist, with the nearest names.
    """
    known = fields.names(cfg or RunConfig())
    for argument in argv:
        if not argument.startswith("--config."):
            continue
        name = argument[len("--config.") :].split("=", 1)[0]
        if name not in known:
            raise ValueError(fields.no_field(name, known))
