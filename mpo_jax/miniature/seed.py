"""One seed as steps: world, start, pairs of its own samples, then each method.

::

    WORKDIR/seed_0/
      world/                 drawings, tiny model, questions
      start/train/           the start, trained from scratch
            evaluation/      its scores
            samples/         of answers at temperature 1
      round_1/…              rollouts and pairs, as of a recipe (run.recipe)
      mpo/train/             a model's training
          evaluation/        against the start's
          samples/
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mpo_jax import config, recipe_config
from mpo_jax.miniature import methods, world
from mpo_jax.miniature.config import MiniatureConfig
from mpo_jax.run import recipe, recipe_stages, steps

WORLD, START, LOCKS = "world", methods.START, "locks"
TRAIN, EVALUATION, SAMPLES = "train", "evaluation", "samples"


@dataclasses.dataclass(frozen=True)
class Seed:
    """What is made with one seed.

    Attributes:
      cfg: of the miniature.
      seed: one of its seeds.
      folder: of all that is made.
    """

    cfg: MiniatureConfig
    seed: int
    folder: pathlib.Path

    @property
    def world(self) -> world.World:
        return world.World(self.folder / WORLD)

    @property
    def trained_start(self) -> pathlib.Path:
        """Its work directory."""
        return self.folder / START / TRAIN

    def start(self) -> dict[str, steps.Mark]:
        """Draw the world and train the start from scratch."""
        training = copy.deepcopy(self.cfg.start)
        training.name, training.seed = "start", training.seed + self.seed
        training.model.path = str(self.world.model)
        training.data.meta = str(self.world.mixture)
        training.compile_cache = self._programs()
        drawn = dataclasses.asdict(self.cfg.world) | {"seed": self.seed}
        made = [
            steps.Step(
                WORLD,
                self.folder / WORLD,
                drawn,
                functools.partial(
                    world.draw, self.cfg.world, self.folder / WORLD, seed=self.seed
                ),
            ),
            self._trained(f"{START}/{TRAIN}", training, WORLD),
        ]
        return self._run(made, START)

    def pairs(self) -> dict[str, steps.Mark]:
        """Score the start and make pairs of its answers; the start must be there."""
        found = self._recipe_steps()
        if self.cfg.samples:
            found.append(self._sampled(START, str(self.trained_start)))
        return self._run(found, START)

    def model(self, name: str) -> dict[str, steps.Mark]:
        """Train and score a model; the pairs must be there."""
        training = methods.training(
            self.recipe().train,
            self.cfg.models()[name],
            seed=self.recipe().train.seed,
        )
        filled = dataclasses.replace(self.recipe(), train=training)
        training = recipe.training(filled, self.folder, 0)
        after = [recipe.name_of(0, recipe.DATA)]
        if recipe.caches(training):
            after.append(recipe.name_of(0, recipe.REFERENCE))
        folder = f"{name}/{TRAIN}"
        trained = str(self.folder / folder)
        first = f"{recipe.START}/{recipe.EVALUATION}"
        made = [*self._recipe_steps(), self._trained(folder, training, *after)]
        made.append(
            self._step(
                f"{name}/{EVALUATION}",
                {"evaluate": dataclasses.asdict(self.recipe().evaluate)},
                functools.partial(
                    recipe_stages.evaluated,
                    self.recipe(),
                    model=trained,
                    name=self.cfg.title_of(name),
                    base=self.folder / first,
                ),
                *(folder, first),
            )
        )
        if self.cfg.samples:
            made.append(self._sampled(name, trained, folder))
        return self._run(made, name)

    def recipe(self) -> recipe_config.RecipeConfig:
        """How pairs are made and models scored, filled in."""
        found = copy.deepcopy(self.cfg.recipe)
        found.model = str(self.trained_start)
        found.questions.files = (str(self.world.questions),)
        if self.cfg.world.blind_questions:
            found.ntp.file = str(self.world.blind)
        found.train.compile_cache = self._programs()
        found.evaluate.data = str(self.world.benchmarks)
        for part in (found.sampling, found.ntp, found.pairs, found.train):
            part.seed += self.seed
        found.evaluate.seed += self.seed
        found.validate()
        return found

    def _recipe_steps(self) -> list[steps.Step]:
        """Of a recipe, those before its training."""
        own = {recipe.name_of(0, what) for what in (recipe.TRAIN, recipe.EVALUATION)}
        found = recipe.recipe_steps(self.recipe(), self.folder)
        return [step for step in found if step.name not in own]

    def _trained(
        self, name: str, training: config.RunConfig, *after: str
    ) -> steps.Step:
        training.validate()
        return self._step(
            name,
            {"train": recipe.training_settings(training)},
            functools.partial(recipe_stages.trained, training),
            *after,
        )

    def _sampled(self, name: str, model: str, *after: str) -> steps.Step:
        """Answers at temperature 1, scored."""
        found = self.recipe()
        found.evaluate.modes = ("cot",)
        found.evaluate.n, found.evaluate.temperature = self.cfg.samples, 1.0
        return self._step(
            f"{name}/{SAMPLES}",
            {"evaluate": dataclasses.asdict(found.evaluate)},
            functools.partial(
                recipe_stages.evaluated,
                found,
                model=model,
                name=self.cfg.title_of(name),
                base=None,
            ),
            *after,
        )

    def _step(
        self,
        name: str,
        settings: Mapping[str, Any],
        make: Callable[..., Any],
        *after: str,
    ) -> steps.Step:
        folder = self.folder / name

        def fresh() -> Any:
            try:
                return make(folder=folder)
            finally:
                recipe_stages.free()

        return steps.Step(name, folder, settings, fresh, after)

    def _run(self, made: list[steps.Step], lock: str) -> dict[str, steps.Mark]:
        return steps.run_steps(made, self.folder / LOCKS / lock)

    def _programs(self) -> str:
        """Compiled programs are the same for all seeds."""
        return str(self.folder.parent / "compile_cache")
