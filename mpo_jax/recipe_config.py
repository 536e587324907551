"""Configuration of a whole recipe: sample, pair, train, evaluate, some rounds of it.

``configs/iterated_mpo.py`` builds a :class:`RecipeConfig`; scripts/run_recipe.py runs
it. docs/recipe.md says what each round does. :meth:`RecipeConfig.validate` tells of all
mistakes at once.

Annotations are not postponed here: the flag library reads field types as classes.
"""

import copy
import dataclasses
import json
from typing import Any

from mpo_jax import config, config_checks, config_paths, fields
from mpo_jax.fields import field

NEGATIVES = ("none", "apart", "mixed")
UNITS = ("tokens", "words")
DTYPES = ("auto", "bfloat16", "float32")
ALL, ENDS, NEVER = WHEN = ("all", "ends", "never")
FILLED = "<the recipe>"
"""Stands for what the recipe fills in while a training's config is checked."""


@dataclasses.dataclass
class QuestionsConfig:
    """Questions with true answers (docs/pairs.md), and how rounds share them."""

    files: tuple[str, ...] = field((), each_once=True)
    """JSON lines."""
    root: str = ""
    """Folder of the images; empty is that of each file."""
    per_round: int = field(0, at_least=0)
    """Questions of a round, each round the next ones in an order drawn by `seed`; 0
    asks all of them in every round."""
    seed: int = field(0, at_least=0)


@dataclasses.dataclass
class OverlapConfig:
    """Questions that an evaluation asks, too, are left out (docs/dropout_ntp.md)."""

    benchmarks: bool = True
    """Compare with all items of the benchmarks of `evaluate`."""
    against: tuple[str, ...] = ()
    """Further evaluations: files of items."""


@dataclasses.dataclass
class AnsweringConfig:
    """How a model answers, whoever asks: rollouts, continuations, benchmarks."""

    dtype: str = field("auto", choices=DTYPES)
    """Of parameters and computation; auto is float32 on a CPU, else bfloat16."""
    slots: int = field(0, at_least=0)
    """Answers at a time; 0 is as many as suit and fit."""
    tensor: int = field(0, at_least=0)
    """Devices that share one copy of the model; 0 is as few as it fits on."""


@dataclasses.dataclass
class SamplingConfig:
    """Answers to the questions; docs/pairs.md."""

    formats: tuple[str, ...] = field(("en",), each_once=True)
    n: int = field(32, at_least=2)
    """Answers to a question in a format."""
    temperature: float = field(1.0, within=(1e-6, 100))
    top_p: float = field(1.0, within=(1e-6, 1))
    top_k: int = field(0, at_least=0)
    max_new_tokens: int = field(2048, at_least=1)
    seed: int = field(0, at_least=0)
    """Of round 1; each further round takes the next."""
    max_tiles: int = field(6, at_least=1)
    """Of a question's images; the pairs are trained on with as many."""
    endpoint: str = ""
    """URL of a server that answers instead (one round only: it has one model)."""
    endpoint_model: str = ""
    """Its name for the model, where it has several."""
    concurrency: int = field(16, at_least=1)
    """Requests to it at a time."""


@dataclasses.dataclass
class PairsConfig:
    """How pairs are made of rollouts; docs/pairs.md."""

    max_pairs: int = field(15, at_least=1)
    """Of a prompt and a reason."""
    seed: int = field(0, at_least=0)
    min_accuracy: float = field(0.0, within=(0, 1))
    max_accuracy: float = field(1.0, within=(0, 1))
    """Prompts with another share of right answers make no pairs."""
    format_negatives: str = field("apart", choices=NEGATIVES)
    truncated_negatives: str = field("apart", choices=NEGATIVES)
    max_length_ratio: float = field(0.0, at_least=0)
    """Longer response over the shorter one; 0 takes all."""
    html: bool = False
    """Write a page of each round's pairs, with images, for a person."""
    workers: int = field(0, at_least=0)
    """Processes for mathematics; 0 is one per core."""


@dataclasses.dataclass
class NtpConfig:
    """Dropout-NTP pairs of questions without truths; docs/dropout_ntp.md."""

    file: str = ""
    """JSON lines; empty makes none of these pairs."""
    root: str = ""
    """Folder of the images; empty is the file's."""
    per_round: int = field(0, at_least=0)
    """Questions of a round, as `questions.per_round`."""
    ratio: float = field(0.5, half_open=(0, 1))
    by: str = field("tokens", choices=UNITS)
    keep_image: bool = False
    temperature: float = field(1.0, within=(0, 100))
    top_p: float = field(1.0, within=(1e-6, 1))
    top_k: int = field(0, at_least=0)
    max_new_tokens: int = field(2048, at_least=1)
    seed: int = field(0, at_least=0)
    """Of round 1; each further round takes the next."""
    max_tiles: int = field(6, at_least=1)


@dataclasses.dataclass
class RecipeEvaluationConfig(config.EvaluationConfig):
    """Benchmarks that the start and the trained models are scored on."""

    when: str = field(ALL, choices=WHEN)
    """``all``: the start and every round; ``ends``: the start and the last; ``never``:
    none."""


@dataclasses.dataclass
class RatesConfig:
    """What was measured on the machine, for the plan's times; 0 is not known."""

    tokens_per_s: float = field(0.0, at_least=0)
    """New tokens of all devices together while they answer."""
    pairs_per_s: float = field(0.0, at_least=0)
    """Pairs that are trained on; the reference pass is taken to be no slower."""
    tokens_per_answer: float = field(0.0, at_least=0)
    """Mean length of a rollout; the bound is the longest that it may be."""
    price_per_hour: float = field(0.0, at_least=0)
    """Of the machine, in any currency."""


@dataclasses.dataclass
class RecipeConfig:
    """Everything that defines a recipe."""

    name: str = "recipe"
    model: str = field("", required="name a model directory or a hub id")
    """What round 1 starts from; every further round, from the one before."""
    rounds: int = field(1, at_least=1)
    questions: QuestionsConfig = dataclasses.field(default_factory=QuestionsConfig)
    overlap: OverlapConfig = dataclasses.field(default_factory=OverlapConfig)
    answering: AnsweringConfig = dataclasses.field(default_factory=AnsweringConfig)
    sampling: SamplingConfig = dataclasses.field(default_factory=SamplingConfig)
    pairs: PairsConfig = dataclasses.field(default_factory=PairsConfig)
    ntp: NtpConfig = dataclasses.field(default_factory=NtpConfig)
    train: config.RunConfig = dataclasses.field(default_factory=config.RunConfig)
    """A training, as scripts/train.py takes it; the recipe fills in model and data."""
    evaluate: RecipeEvaluationConfig = dataclasses.field(
        default_factory=RecipeEvaluationConfig
    )
    rates: RatesConfig = dataclasses.field(default_factory=RatesConfig)

    def validate(self) -> None:
        """Check every value and how they fit together; no file is looked at.

        Raises:
          ValueError: one line for each mistake: field, value and remedy.
        """
        filled = dataclasses.replace(self, train=_filled(self.train))
        found = fields.problems(filled)
        found = found or [*_training(self.train), *_contradictions(self)]
        if found:
            raise ValueError("\n".join(found))

    def located(self) -> "RecipeConfig":
        """The same with every path absolute and ``~`` expanded; addresses stay."""
        found = copy.deepcopy(self)
        found.model = config_paths.absolute("model.path", self.model)
        found.questions.files = tuple(map(_absolute, self.questions.files))
        found.questions.root = _absolute(self.questions.root)
        found.overlap.against = tuple(map(_absolute, self.overlap.against))
        found.ntp.file = _absolute(self.ntp.file)
        found.ntp.root = _absolute(self.ntp.root)
        found.evaluate.data = _absolute(self.evaluate.data)
        found.train = self.train.located()
        return found

    def to_json(self) -> str:
        """The whole configuration as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)

    @property
    def evaluates(self) -> bool:
        return self.evaluate.when != NEVER


def from_json(text: str) -> RecipeConfig:
    """Inverse of :meth:`RecipeConfig.to_json`.

    Raises:
      ValueError: on unknown fields, with the nearest name, and on what is no JSON or
        no object. Values are checked by :meth:`RecipeConfig.validate`.
    """
    return fields.from_dict(RecipeConfig, json.loads(text), "")


def _absolute(path: str) -> str:
    return config_paths.absolute("data.meta", path)


def _filled(train: Any) -> Any:
    """A training's config with what the recipe fills in; what is none stays."""
    if not isinstance(train, config.RunConfig):
        return train
    found = copy.deepcopy(train)
    found.model.path = found.data.meta = FILLED
    return found


OURS = {
    "model.path": "name the start as model",
    "data.meta": "the pairs of a round are trained on",
    "data.cache_dir": "each round has its own",
    "reference.path": "the reference is what a round starts from",
    "reference.cache": "each round has its own",
}
"""Fields of a training that the recipe sets, and why."""


def _training(train: config.RunConfig) -> list[str]:
    """What is wrong with how a training's fields fit together."""
    found = []
    flat = fields.flat(dataclasses.asdict(train))
    for name, why in OURS.items():
        if flat[name]:
            found.append(f"train.{name}={flat[name]!r}: {why}; leave it empty")
    if train.model.init != "pretrained":
        found.append(
            f"train.model.init={train.model.init!r}: a model that answers has weights; "
            "set it to 'pretrained'"
        )
    try:
        config_checks.check(_filled(train))
    except ValueError as error:
        found.append(f"train: {error}")
    return found


def _contradictions(cfg: RecipeConfig) -> list[str]:
    """What is wrong with how the parts fit together."""
    found = []

    def refuse(wrong: bool, message: str) -> None:
        if wrong:
            found.append(message)

    pairs, sampling, rates = cfg.pairs, cfg.sampling, cfg.rates
    refuse(
        pairs.min_accuracy > pairs.max_accuracy,
        f"pairs.min_accuracy={pairs.min_accuracy} is above pairs.max_accuracy="
        f"{pairs.max_accuracy}; lower it",
    )
    refuse(
        0 < pairs.max_length_ratio < 1,
        f"pairs.max_length_ratio={pairs.max_length_ratio}: the longer response over "
        "the shorter one is at least 1; 0 takes all",
    )
    refuse(
        bool(sampling.endpoint) and cfg.rounds > 1,
        f"sampling.endpoint={sampling.endpoint!r} with rounds={cfg.rounds}: the "
        "server's model is the same in every round; set rounds=1 and serve the "
        "trained model for the next recipe",
    )
    refuse(
        bool(sampling.endpoint_model) and not sampling.endpoint,
        f"sampling.endpoint_model={sampling.endpoint_model!r}: read with "
        "sampling.endpoint alone; name the server, or leave it empty",
    )
    for name in ("root", "per_round"):
        value = getattr(cfg.ntp, name)
        refuse(
            bool(value) and not cfg.ntp.file,
            f"ntp.{name}={value!r}, but ntp.file is empty, so that there are no such "
            "pairs; name the file of questions",
        )
    refuse(
        cfg.evaluates and not cfg.evaluate.data,
        "evaluate.data is empty; name the folder of the benchmarks' files, or set "
        "evaluate.when='never'",
    )
    refuse(
        cfg.overlap.benchmarks and not cfg.evaluates,
        "overlap.benchmarks=True, but evaluate.when='never'; set it to False",
    )
    refuse(
        bool(rates.price_per_hour) and not (rates.tokens_per_s or rates.pairs_per_s),
        f"rates.price_per_hour={rates.price_per_hour}: without rates.tokens_per_s or "
        "rates.pairs_per_s there is no time that it could price; name one",
    )
    return found
