"""Configuration of the miniature: a drawn world, a start, methods, seeds.

``configs/miniature.py`` builds a :class:`MiniatureConfig`.

Annotations are not postponed here: the flag library reads field types as classes.
"""

import copy
import dataclasses
import itertools

from mpo_jax import config, fields, recipe_config, recipes
from mpo_jax.demo import benchmark, drawings
from mpo_jax.fields import Bounds, field
from mpo_jax.miniature import methods
from mpo_jax.miniature.methods import Model


@dataclasses.dataclass
class WorldConfig:
    """What is drawn for every seed; all drawings are different ones."""

    topics: tuple[str, ...] = field(
        ("geometry",), choices=drawings.ALL_TOPICS, each_once=True
    )
    mixture: int = field(14_400, at_least=1)
    """Records that the start is trained on."""
    direct: float = field(0.47, within=(0, 1))
    """Share of them with a bare answer."""
    blind: float = field(0.06, within=(0, 1))
    """Share of them without an image; all others are chains of thought."""
    wrong: float = field(0.1, within=(0, 1))
    """Share of the chains that are wrong."""
    questions: int = field(2_000, at_least=1)
    """New questions that the start answers for pairs of right and wrong."""
    blind_questions: int = field(800, at_least=0)
    """New questions for Dropout-NTP; 0 makes no such pairs."""
    held_out: int = field(1_000, at_least=2)
    """Questions that models are scored on."""


@dataclasses.dataclass
class MiniatureConfig:
    """Everything that defines a miniature."""

    name: str = "miniature"
    seeds: tuple[int, ...] = field((0, 1, 2, 3, 4), each_once=True, at_least=0)
    """Of drawings, model, samples, order and held-out questions alike."""
    methods: tuple[str, ...] = field(
        tuple(methods.METHODS), choices=tuple(methods.METHODS), each_once=True
    )
    learning_rates: tuple[float, ...] = field(
        (3e-4, 3e-4, 3e-4, 3e-4, 1e-3), positive=True
    )
    """One per method; in a search, those that every method is trained at."""
    search: bool = False
    """Whether to say which learning rate is each method's best."""
    workers: int = field(0, at_least=0)
    """Processes; 0 is one per core. One process uses all cores."""
    world: WorldConfig = dataclasses.field(default_factory=WorldConfig)
    start: config.RunConfig = dataclasses.field(
        default_factory=lambda: recipes.quickstart("sft")
    )
    """How the start is trained; model and data are filled in."""
    recipe: recipe_config.RecipeConfig = dataclasses.field(
        default_factory=recipe_config.RecipeConfig
    )
    """How pairs are made and models scored; `recipe.train` is what all methods have in
    common, loss terms and learning rate aside. Model, questions and data are filled in;
    seeds are added to its own."""
    samples: int = field(2, at_least=0)
    """Answers of each held-out question at temperature 1; 0 draws none."""

    def validate(self) -> None:
        """Check every field by itself, and the learning rates.

        How the fields of trainings and pairs fit together is checked with each seed.

        Raises:
          ValueError: naming field, value and remedy.
        """
        filled = copy.deepcopy(self)
        for training in (filled.start, filled.recipe.train):
            training.model.path = training.data.meta = recipe_config.FILLED
        filled.recipe.model = recipe_config.FILLED
        filled.recipe.questions.files = (recipe_config.FILLED,)
        fields.check(filled)
        self._check_filled_in()
        if self.search:
            Bounds(each_once=True).check("learning_rates", self.learning_rates)
        elif len(self.learning_rates) != len(self.methods):
            raise ValueError(
                f"learning_rates={self.learning_rates}: name one for each of "
                f"methods={self.methods}"
            )

    def _check_filled_in(self) -> None:
        """Nobody sets what each seed fills in."""
        flat = fields.flat(dataclasses.asdict(self))
        for name in _FILLED_IN:
            if flat[name]:
                raise ValueError(
                    f"{name}={flat[name]!r}: every seed has its own; leave it empty"
                )
        recipe = self.recipe
        if recipe.rounds != 1:
            raise ValueError(
                f"recipe.rounds={recipe.rounds}: methods are compared after one round; "
                "set it to 1"
            )
        if benchmark.NAME not in recipe.evaluate.benchmarks:
            raise ValueError(
                f"recipe.evaluate.benchmarks={recipe.evaluate.benchmarks}: add "
                f"{benchmark.NAME!r}, by which models are compared"
            )
        if set(recipe.evaluate.modes) != set(config.EVALUATION_MODES):
            raise ValueError(
                f"recipe.evaluate.modes={recipe.evaluate.modes}: both of "
                f"{config.EVALUATION_MODES} are compared; name both"
            )

    def models(self) -> dict[str, Model]:
        """What is trained from each start, by name."""
        if self.search:
            pairs = itertools.product(self.methods, self.learning_rates)
            found = [methods.candidate(name, rate) for name, rate in pairs]
        else:
            named = zip(self.methods, self.learning_rates, strict=True)
            found = [methods.model(name, rate) for name, rate in named]
        return {model.name: model for model in found}

    def title_of(self, name: str) -> str:
        """Of a model, for people; the start is one, too."""
        if name == methods.START:
            return methods.START_TITLE
        return self.models()[name].title


_FILLED_IN = (
    *("start.model.path", "start.data.meta"),
    *("recipe.model", "recipe.questions.files", "recipe.ntp.file"),
    *("recipe.evaluate.data", "recipe.train.model.path", "recipe.train.data.meta"),
)


def miniature() -> MiniatureConfig:
    """Five methods, five seeds."""
    cfg = MiniatureConfig()
    cfg.recipe.name = "miniature"
    cfg.recipe.sampling.formats = ("en", "direct")
    cfg.recipe.sampling.n = 8
    cfg.recipe.sampling.max_new_tokens = cfg.recipe.ntp.max_new_tokens = 80
    cfg.recipe.sampling.max_tiles = cfg.recipe.ntp.max_tiles = 1
    cfg.recipe.pairs.max_pairs = 3
    cfg.recipe.pairs.workers = 1
    cfg.recipe.train = recipes.quickstart("mpo")
    cfg.recipe.train.checkpoint.export_hf = False
    for training in (cfg.start, cfg.recipe.train):
        training.optim.epochs = 8  # max_steps ends it
        training.data.index_workers = 1  # others start longer than they work
        training.log.plots = training.log.tensorboard = False
    cfg.recipe.overlap.benchmarks = False  # the splits share no drawing
    cfg.recipe.evaluate.benchmarks = (benchmark.NAME,)
    return cfg


def search() -> MiniatureConfig:
    """Every method at three learning rates, on a seed that is not reported."""
    cfg = miniature()
    cfg.name = cfg.recipe.name = "search"
    cfg.seeds, cfg.search = (100,), True
    cfg.learning_rates = (1e-4, 3e-4, 1e-3)
    return cfg


def quickstart() -> MiniatureConfig:
    """One seed, MPO alone."""
    cfg = miniature()
    cfg.name, cfg.recipe.name = "quickstart", "quickstart"
    cfg.seeds, cfg.methods, cfg.learning_rates = (0,), ("mpo",), (3e-4,)
    cfg.workers = 1
    cfg.world.questions, cfg.world.blind_questions = 1_200, 400
    cfg.world.held_out = 500
    cfg.recipe.pairs.html = True
    cfg.recipe.train.optim.max_steps = 100
    cfg.recipe.train.log.plots = cfg.recipe.train.checkpoint.export_hf = True
    return cfg
