"""What a recipe asks for at most, step by step, before anything is done.

Bounds, from files and configuration alone: every answer as long as it may be, every
prompt with as many pairs as its answers could give. Steps that are done say what they
made instead. Times are bounds divided by what was measured (``rates``); nothing is
guessed where nothing was.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import rich.table

from mpo_jax import recipe_config
from mpo_jax.run import eval_tasks, recipe, recipe_questions, recipe_stages, steps


@dataclasses.dataclass(frozen=True)
class Row:
    """A step of the plan.

    Attributes:
      step: name.
      what: made at most, for people.
      tokens: that a model says at most.
      pairs: that are trained on, or passed through the reference, at most.
      expected: tokens at the mean length of an answer, where that is known.
      state: one of ``steps.STATES``.
    """

    step: str
    what: str
    tokens: int = 0
    pairs: int = 0
    expected: float = 0.0
    state: str = steps.ABSENT


@dataclasses.dataclass(frozen=True)
class Plan:
    """All rows, and what they rest on.

    Attributes:
      notes: for people.
    """

    rows: Sequence[Row]
    notes: Sequence[str]
    rates: recipe_config.RatesConfig

    def missing(self) -> list[Row]:
        """Of steps that are not done."""
        return [row for row in self.rows if row.state != steps.DONE]

    def hours(self, row: Row) -> float | None:
        """At the measured rates; None where one that it needs is not known."""
        found, rates = 0.0, self.rates
        for amount, rate in (
            (row.expected or row.tokens, rates.tokens_per_s),
            (row.pairs, rates.pairs_per_s),
        ):
            if amount and not rate:
                return None
            found += amount / rate / 3600 if amount else 0.0
        return found

    def table(self) -> rich.table.Table:
        """A row for each step."""
        table = rich.table.Table("step", "at most", title="Plan")
        for column in ("tokens at most", "tokens expected", "pairs", "hours"):
            table.add_column(column, justify="right")
        table.add_column("there")
        for row in self.rows:
            hours = self.hours(row)
            table.add_row(
                *(row.step, row.what, _number(row.tokens), _number(row.expected)),
                *(_number(row.pairs), _hours(hours), _STATES[row.state]),
            )
        return table

    def words(self) -> list[str]:
        """What is left to do, and what the numbers rest on."""
        left = self.missing()
        if not left:
            return ["All is done; the report is made anew."]
        tokens, pairs = sum(r.tokens for r in left), sum(r.pairs for r in left)
        said = (
            f"Left to do: {len(left)} of {len(self.rows)} steps, at most {tokens:,} "
            f"tokens of answers and {pairs:,} pairs through the model (the reference "
            "pass and training)."
        )
        return [said, self._time(left), *self.notes]

    def _time(self, left: Sequence[Row]) -> str:
        rates, each = self.rates, [self.hours(row) for row in left]
        if any(hours is None for hours in each):
            return (
                "No time is given: set rates.tokens_per_s and rates.pairs_per_s to "
                "what a short run shows in its progress bars. scripts/plan.py "
                "estimates both for a TPU slice that is not there."
            )
        total = sum(hours or 0.0 for hours in each)
        said = (
            f"At most {total:,.1f} hours at {rates.tokens_per_s:g} tokens/s and "
            f"{rates.pairs_per_s:g} pairs/s (rates); loading, compiling, judging and "
            "images are not in it"
        )
        if rates.price_per_hour:
            price = total * rates.price_per_hour
            said += f"; {price:,.2f} at {rates.price_per_hour:g} an hour"
        return said + "."


_STATES = {steps.DONE: "done", steps.BEGUN: "begun", steps.ABSENT: ""}


def _number(value: float) -> str:
    return f"{round(value):,}" if value else ""


def _hours(value: float | None) -> str:
    return "?" if value is None else f"{value:,.2f}" if value else ""


def plan(cfg: recipe_config.RecipeConfig, wanted: Sequence[steps.Step]) -> Plan:
    """Count what a recipe asks for; reads questions and benchmarks, no weights.

    Args:
      cfg: valid and located.
      wanted: of ``recipe.recipe_steps``; markers that are there were checked.

    Raises:
      OSError, ValueError: questions or benchmarks cannot be read; says what to do.
    """
    marks = {step.name: steps.read(step) for step in wanted}
    made = {name: mark.made or {} for name, mark in marks.items() if mark and mark.done}
    bounds = _bounds(cfg, made)
    rows: list[Row] = []
    for step in wanted:
        mark = marks[step.name]
        state = steps.ABSENT if mark is None else steps.BEGUN
        if step.name in made:
            state = steps.DONE
        rows.append(dataclasses.replace(bounds[step.name], state=state))
    return Plan(rows, _notes(cfg, made), cfg.rates)


def _bounds(
    cfg: recipe_config.RecipeConfig, made: Mapping[str, Mapping[str, Any]]
) -> dict[str, Row]:
    given = cfg.questions
    files = recipe_questions.Files(given.files, given.root)
    number, left_out = recipe_questions.count(files)
    continued = recipe_questions.total(cfg.ntp.file) if cfg.ntp.file else 0
    what = f"{number:,} questions" + (f", {left_out:,} left out" if left_out else "")
    if continued:
        what += f"; {continued:,} for Dropout-NTP"
    known = made.get(recipe.QUESTIONS)
    if known:
        number, continued = known["questions"], 0
        what = f"{number:,} questions kept"
        if recipe_stages.NTP in known:
            continued = known[recipe_stages.NTP]["questions"]
            what += f"; {continued:,} for Dropout-NTP"
    rows = [Row(recipe.QUESTIONS, what)]
    asked = _evaluation(cfg) if cfg.evaluates else None
    if asked is not None:
        rows.append(dataclasses.replace(asked, step=f"{recipe.START}/evaluation"))
    for turn in range(cfg.rounds):
        rows += _round(cfg, turn, number, continued, made)
        if asked is not None:
            step = recipe.name_of(turn, recipe.EVALUATION)
            rows.append(dataclasses.replace(asked, step=step))
    return {row.step: row for row in rows}


def _round(
    cfg: recipe_config.RecipeConfig,
    turn: int,
    questions: int,
    continued: int,
    made: Mapping[str, Mapping[str, Any]],
) -> list[Row]:
    def name(what: str) -> str:
        return recipe.name_of(turn, what)

    how, train = cfg.sampling, cfg.train
    questions = min(questions, cfg.questions.per_round or questions)
    prompts = questions * len(how.formats)
    answers = prompts * how.n
    what = f"{prompts:,} prompts x {how.n} = {answers:,} answers"
    tokens = answers * how.max_new_tokens
    mean = cfg.rates.tokens_per_answer
    rows = [Row(name(recipe.ROLLOUTS), what, tokens, expected=answers * mean)]
    pairs = _made(made, name(recipe.PAIRS), prompts * most_pairs(cfg))
    rows.append(Row(name(recipe.PAIRS), f"{pairs:,} pairs"))
    if cfg.ntp.file:
        asked = min(continued, cfg.ntp.per_round or continued)
        tokens = 2 * asked * cfg.ntp.max_new_tokens  # its own answer, and the other
        more = _made(made, name(recipe.NTP), asked)
        expected = 2 * asked * mean
        what = f"{more:,} pairs of own answers and continuations"
        rows.append(Row(name(recipe.NTP), what, tokens, expected=expected))
        pairs += more
    rows.append(Row(name(recipe.DATA), f"{pairs:,} pairs"))
    if cfg.pairs.html:
        rows.append(Row(name(recipe.PAIRS_PAGE), "a page of pairs, for a person"))
    trained = steps_of(pairs, train.rows.pairs_per_batch, train.optim)
    seen = min(pairs * train.optim.epochs, trained * train.rows.pairs_per_batch)
    if recipe.caches(train):
        once = min(pairs, seen)
        what = f"{once:,} pairs, log-probs stored"
        rows.append(Row(name(recipe.REFERENCE), what, pairs=once))
    number = made.get(name(recipe.TRAIN), {}).get("steps", trained)
    what = f"{number:,} steps of some {train.rows.pairs_per_batch} pairs"
    rows.append(Row(name(recipe.TRAIN), what, pairs=seen))
    return rows


def _made(made: Mapping[str, Mapping[str, Any]], name: str, most: int) -> int:
    return made[name]["pairs"] if name in made else most


def most_pairs(cfg: recipe_config.RecipeConfig) -> int:
    """Pairs of one prompt at most: so many a reason, and right ones times others."""
    how = cfg.pairs
    apart = (how.format_negatives, how.truncated_negatives).count("apart")
    right = cfg.sampling.n // 2
    return min((1 + apart) * how.max_pairs, right * (cfg.sampling.n - right))


def steps_of(pairs: int, batch: int, optim: Any) -> int:
    """Updates of a training on so many pairs, about."""
    found = math.ceil(pairs * optim.epochs / batch)
    return min(found, optim.max_steps) if optim.max_steps else found


def _evaluation(cfg: recipe_config.RecipeConfig) -> Row:
    """Of one model; ``step`` is to be filled in."""
    answers = tokens = 0
    how = cfg.evaluate
    for task in eval_tasks.tasks(how):
        for item in task.items:
            ask = task.protocol.ask(item, task.mode)
            answers += how.n
            tokens += how.n * (how.max_new_tokens or ask.max_new_tokens)
    return Row("", f"{answers:,} answers to benchmarks", tokens)


def _notes(
    cfg: recipe_config.RecipeConfig, made: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    mode = cfg.train.reference.mode
    found = [
        "Tokens are a bound: every answer as long as it may be. So are pairs: "
        f"{most_pairs(cfg):,} a prompt, and none where all answers are right, or all "
        "wrong.",
    ]
    if not recipe.caches(cfg.train):
        found.append(f"Reference: {mode}; it is part of training, and no step.")
    compared = cfg.overlap.benchmarks or cfg.overlap.against
    if compared and recipe.QUESTIONS not in made:
        found.append("Questions that an evaluation asks, too, are left out first.")
    return found
