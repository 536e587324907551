"""Which steps a recipe has, what each depends on, and what the plan says of them."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import types

import pytest
import rich.console
import small_recipe
import speaking

from mpo_jax.generate import endpoint, requests, speaker
from mpo_jax.run import answerer, line_files, recipe, recipe_plan, recipe_stages, steps


@pytest.fixture
def cfg(tmp_path):
    found = small_recipe.recipe(small_recipe.write_inputs(tmp_path / "world"))
    found.validate()
    return found.located()


def made(cfg, place: pathlib.Path) -> dict[str, steps.Step]:
    return {step.name: step for step in recipe.recipe_steps(cfg, place)}


ROUND = ("rollouts", "pairs", "ntp", "data", "reference", "train", "evaluation")


def test_the_steps_of_two_rounds(cfg, tmp_path):
    found = made(cfg, tmp_path)
    assert list(found) == [
        *("questions", "start/evaluation"),
        *(f"round_{turn}/{what}" for turn in (1, 2) for what in ROUND),
    ]
    assert {step.folder for step in found.values()} == {tmp_path / n for n in found}
    seeds = [
        (found[f"round_{turn}/{what}"].settings[key]["seed"])
        for turn in (1, 2)
        for what, key in (("rollouts", "sampling"), ("ntp", "ntp"))
    ]
    assert seeds == [0, 0, 1, 1]
    # Round 1 begins with the start, round 2 with round 1's model.
    assert found["round_1/rollouts"].settings["start"]["model"] == "OWNER/NAME"
    assert found["round_2/rollouts"].settings["start"] == {}
    assert found["round_2/rollouts"].after == ("questions", "round_1/train")
    assert found["round_2/train"].after == (
        *("round_2/data", "round_1/train", "round_2/reference"),
    )
    assert found["round_2/evaluation"].after == ("round_2/train", "start/evaluation")
    steps.check(list(found.values()))


def test_a_page_of_pairs_is_a_step_that_nothing_builds_on(cfg, tmp_path):
    before = made(cfg, tmp_path)
    cfg.pairs.html = True
    found = made(cfg, tmp_path)
    assert {name for name in found if name not in before} == {
        *("round_1/pairs_page", "round_2/pairs_page"),
    }
    for name, step in before.items():
        assert found[name].settings == step.settings and found[name].after == step.after
    assert found["round_2/pairs_page"].after == (
        *("questions", "round_2/pairs", "round_2/ntp"),
    )
    rows = {row.step: row for row in planned(cfg, tmp_path).rows}
    assert list(rows) == list(found)
    assert "for a person" in rows["round_1/pairs_page"].what


def test_a_rounds_training_starts_from_the_round_before(cfg, tmp_path):
    first, second = (recipe.training(cfg, tmp_path, turn) for turn in (0, 1))
    assert first.model.path == "OWNER/NAME"
    assert second.model.path == str(tmp_path / "round_1/train")
    assert second.data.meta == str(tmp_path / "round_2/data/meta.json")
    assert second.data.cache_dir == str(tmp_path / "round_2/reference")
    assert second.reference.path == ""  # which is what the round starts from
    first.validate()
    assert cfg.train.model.path == ""


def test_without_a_stored_reference_or_evaluations(cfg, tmp_path):
    cfg.train.reference.mode, cfg.ntp.file, cfg.ntp.per_round = "online", "", 0
    cfg.evaluate.when, cfg.overlap.benchmarks = "ends", False
    cfg.validate()
    assert list(made(cfg, tmp_path)) == [
        *("questions", "start/evaluation", "round_1/rollouts", "round_1/pairs"),
        *("round_1/data", "round_1/train", "round_2/rollouts", "round_2/pairs"),
        *("round_2/data", "round_2/train", "round_2/evaluation"),
    ]
    assert recipe.training(cfg, tmp_path, 0).data.cache_dir == ""
    cfg.evaluate.when = "never"
    assert not [name for name in made(cfg, tmp_path) if "evaluation" in name]


def changed(cfg, tmp_path, change) -> set[str]:
    """Names of steps whose settings a change reaches."""
    before = made(cfg, tmp_path)
    change(cfg)
    now = made(cfg, tmp_path)
    return {n for n in before if before[n].settings != now[n].settings}


@pytest.mark.parametrize(
    ("name", "value", "reaches"),
    [
        ("rounds", 3, ()),
        ("answering.slots", 7, ()),
        ("pairs.workers", 3, ()),
        ("rates.tokens_per_s", 3.0, ()),
        ("train.data.threads", 3, ()),
        ("train.log.every_steps", 3, ()),
        ("train.mesh.data", 2, ()),
        ("pairs.max_pairs", 3, ("pairs",)),
        ("train.optim.learning_rate", 1.0, ("train",)),
        ("train.loss.beta", 0.3, ("train",)),
        ("train.seed", 3, ("reference", "train")),
        ("train.optim.max_steps", 3, ("reference", "train")),
        ("train.model.dtype", "bfloat16", ("reference", "train")),
        ("sampling.n", 3, ("rollouts",)),
        ("questions.per_round", 3, ("rollouts",)),
        ("ntp.ratio", 0.25, ("ntp",)),
        ("sampling.max_tiles", 2, ("rollouts", "data")),
        ("evaluate.temperature", 1.0, ("evaluation",)),
        ("answering.dtype", "float32", ("rollouts", "ntp", "evaluation")),
    ],
)
def test_what_a_field_reaches(cfg, tmp_path, name, value, reaches):
    def change(cfg):
        *groups, last = name.split(".")
        for group in groups:
            cfg = getattr(cfg, group)
        assert getattr(cfg, last) != value
        setattr(cfg, last, value)

    found = changed(cfg, tmp_path, change)
    places = ("start", "round_1", "round_2")
    wanted = {f"{place}/{what}" for place in places for what in reaches}
    assert found == {name for name in wanted if name in made(cfg, tmp_path)}


def test_other_questions_reach_the_first_step_and_all_above_it(cfg, tmp_path):
    def change(cfg):
        with open(cfg.questions.files[0], "a", encoding="utf-8") as file:
            file.write("\n")

    assert changed(cfg, tmp_path, change) == {"questions"}


def test_another_start_in_the_same_place_is_another(cfg, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"1")
    cfg.model = str(model)

    def change(cfg):
        (model / "model.safetensors").write_bytes(b"12")

    assert changed(cfg, tmp_path, change) == {
        *("start/evaluation", "round_1/rollouts", "round_1/ntp"),
        *("round_1/reference", "round_1/train"),
    }


def words(found: recipe_plan.Plan) -> str:
    file = io.StringIO()
    console = rich.console.Console(file=file, width=160)
    console.print(found.table())
    return file.getvalue() + "\n".join(found.words())


def planned(cfg, place: pathlib.Path) -> recipe_plan.Plan:
    return recipe_plan.plan(cfg, recipe.recipe_steps(cfg, place))


def test_the_plan_bounds_every_step(cfg, tmp_path):
    found = planned(cfg, tmp_path)
    rows = {row.step: row for row in found.rows}
    assert list(rows) == list(made(cfg, tmp_path))
    assert rows["questions"].what == "13 questions, 1 left out; 6 for Dropout-NTP"
    assert rows["start/evaluation"].tokens == 6 * (8 + 16)
    assert rows["round_2/evaluation"].what == "12 answers to benchmarks"
    assert rows["round_1/rollouts"].what == "8 prompts x 4 = 32 answers"
    assert rows["round_1/rollouts"].tokens == 32 * 24
    assert rows["round_1/pairs"].what == "32 pairs"  # two right times two others
    assert rows["round_1/ntp"].tokens == 2 * 4 * 24
    assert rows["round_1/data"].what == "36 pairs"
    # Four steps of eight pairs see no more than 32 of the 36.
    assert rows["round_1/train"].pairs == rows["round_1/reference"].pairs == 32
    assert rows["round_1/train"].what == "4 steps of some 8 pairs"
    said = words(found)
    assert "Left to do: 16 of 16 steps, at most 2,352 tokens of answers" in said
    assert "128 pairs" in said and "No time is given: set rates.tokens_per_s" in said
    assert "left out first" in said
    assert not list(tmp_path.glob("round_*"))


def test_time_and_price_are_those_of_what_was_measured(cfg, tmp_path):
    cfg.rates.tokens_per_s, cfg.rates.pairs_per_s = 2.0, 0.5
    cfg.rates.price_per_hour = 3.0
    said = words(planned(cfg, tmp_path))
    hours = 2352 / 2 / 3600 + 128 / 0.5 / 3600
    assert f"At most {hours:.1f} hours at 2 tokens/s and 0.5 pairs/s (rates)" in said
    assert f"; {3 * hours:.2f} at 3 an hour" in said
    cfg.rates.tokens_per_answer = 6.0
    rows = {row.step: row for row in planned(cfg, tmp_path).rows}
    assert rows["round_1/rollouts"].expected == 32 * 6
    assert planned(cfg, tmp_path).hours(rows["round_1/rollouts"]) == 32 * 6 / 2 / 3600


@pytest.mark.parametrize(
    ("n", "max_pairs", "formless", "most"),
    [
        (32, 15, "apart", 45),
        (32, 15, "none", 30),
        (4, 15, "apart", 4),
        (3, 1, "mixed", 2),
    ],
)
def test_pairs_of_a_prompt(cfg, n, max_pairs, formless, most):
    cfg.sampling.n, cfg.pairs.max_pairs = n, max_pairs
    cfg.pairs.format_negatives = formless
    assert recipe_plan.most_pairs(cfg) == most


def test_what_is_done_is_counted_as_it_came_out(cfg, tmp_path):
    wanted = recipe.recipe_steps(cfg, tmp_path)

    def mark(name: str, **more) -> None:
        step = next(step for step in wanted if step.name == name)
        found = steps.Mark(step.name, dict(step.settings), {}, **more)
        step.folder.mkdir(parents=True)
        (step.folder / steps.MARKER).write_text(json.dumps(dataclasses.asdict(found)))

    told = {"questions": 5, "joined": 13, "ntp": {"questions": 3}}
    mark("questions", done=True, made=told)
    mark("round_1/pairs", done=True, made={"pairs": 7})
    mark("round_1/ntp")
    found = planned(cfg, tmp_path)
    rows = {row.step: row for row in found.rows}
    assert rows["questions"].what == "5 questions kept; 3 for Dropout-NTP"
    assert rows["round_2/rollouts"].what == "5 prompts x 4 = 20 answers"
    assert rows["round_1/data"].what == "10 pairs"
    assert [
        rows[name].state for name in ("questions", "round_1/ntp", "round_2/ntp")
    ] == [
        *("done", "begun", "absent"),
    ]
    assert "Left to do: 14 of 16" in words(found)
    assert "left out first" not in words(found)


def test_a_format_that_does_not_exist_is_refused(cfg, tmp_path):
    cfg.sampling.formats = ("en", "eng")
    with pytest.raises(ValueError, match="format 'eng': use one of"):
        recipe.recipe_steps(cfg, tmp_path)


def test_questions_are_made_anew_to_the_same(cfg, tmp_path):
    folder = tmp_path / "questions"
    folder.mkdir()
    first = recipe_stages.questions(cfg, folder)
    assert first is not None
    assert (first["joined"], first["questions"], first["ntp"]["questions"]) == (
        *(13, 12, 6),
    )
    assert first["overlap"]["removed"] == 1
    assert first["sha256"] == line_files.digest(folder / "questions.jsonl")
    assert recipe_stages.questions(cfg, folder) == first


class Scripted:
    """Says its own name and a number, and fails where it is told to."""

    def __init__(self, url: str, *, fails: bool = False, **given):
        self.url, self.given, self.fails = url, given, fails

    def answers(self, questions, sampling, *, skip):
        for question in questions:
            for sample in range(sampling.n):
                if self.fails and sample == 1:
                    why = ("endpoint", "no reply", True)
                    yield requests.Failure(question.id, sample, *why)
                elif not skip(question.id, sample):
                    text = f"So.\n\nFinal answer: {sample % 2 + 1}"
                    yield requests.Answer(question.id, sample, text, "stop", 9, 5, -1.0)

    def describe(self):
        return {"url": self.url}


def test_a_server_answers_instead(cfg, tmp_path, monkeypatch):
    cfg.rounds, cfg.sampling.endpoint = 1, "http://localhost:1"
    cfg.sampling.endpoint_model, cfg.sampling.concurrency = "spots", 3
    cfg.validate()
    source, folder = tmp_path / "questions", tmp_path / "rollouts"
    for place in (source, folder):
        place.mkdir()
    recipe_stages.questions(cfg, source)
    asked: list[Scripted] = []
    located = types.SimpleNamespace(config=lambda: "the architecture")
    monkeypatch.setattr(answerer, "locate", lambda model: (located, f"of {model}"))
    monkeypatch.setattr(speaker, "prompt_policy", lambda cfg, max_tiles: max_tiles)

    def endpoint_of(url, **given):
        asked.append(Scripted(url, fails=not asked, **given))
        return asked[-1]

    monkeypatch.setattr(endpoint, "Endpoint", endpoint_of)
    make = functools.partial(recipe_stages.rollouts, cfg, source, folder)
    with pytest.raises(ValueError, match="some answers are missing; start the same"):
        make(model="OWNER/NAME", turn=0)
    made = make(model="OWNER/NAME", turn=0)
    assert made == {
        "rollouts": 32,
        "sha256": line_files.digest(folder / "rollouts.jsonl"),
    }
    assert asked[1].url == "http://localhost:1"
    assert asked[1].given == {
        **{"tokenizer": "of OWNER/NAME", "policy": 1, "model": "spots"},
        **{"concurrency": 3, "check_parity": True},
    }
    lines = speaking.read_lines(folder / "rollouts.jsonl")
    assert {line["source"] for line in lines} == {"spots_train"}
    (tmp_path / "pairs").mkdir()
    pairs = recipe_stages.correctness(cfg, folder, tmp_path / "pairs")
    # One right text and one wrong one a prompt, whatever was said twice.
    assert pairs is not None and pairs["pairs"] == 8
    # Broken off between the last file and the marker, it is the same again.
    assert recipe_stages.correctness(cfg, folder, tmp_path / "pairs") == pairs


def test_no_question_left_is_an_error(cfg, tmp_path):
    (tmp_path / "questions").mkdir()
    lines = pathlib.Path(cfg.questions.files[0]).read_text().splitlines()
    pathlib.Path(cfg.questions.files[0]).write_text(lines[12] + "\n")
    with pytest.raises(ValueError, match="no question is left .*questions.files"):
        recipe_stages.questions(cfg, tmp_path / "questions")
