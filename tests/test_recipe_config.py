"""A recipe's configuration: all mistakes in one message, nothing that is no field."""

from __future__ import annotations

import dataclasses

import pytest

from mpo_jax import config, fields, recipe_config


def valid() -> recipe_config.RecipeConfig:
    cfg = recipe_config.RecipeConfig(model="OWNER/NAME")
    cfg.questions.files = ("questions.jsonl",)
    cfg.evaluate.data = "benchmarks"
    return cfg


def put(cfg, name: str, value) -> None:
    *groups, last = name.split(".")
    for group in groups:
        cfg = getattr(cfg, group)
    assert hasattr(cfg, last), name
    setattr(cfg, last, value)


def test_a_recipe_is_stored_and_read_back():
    cfg = valid()
    cfg.validate()
    cfg.ntp.file, cfg.overlap.against = "open.jsonl", ("a.jsonl", "b.jsonl")
    cfg.validate()
    assert recipe_config.from_json(cfg.to_json()) == cfg
    with pytest.raises(ValueError, match="'sampling.temprature'; did you mean sampl"):
        recipe_config.from_json('{"sampling": {"temprature": 1}}')


def test_what_the_recipe_fills_in_is_not_left_filled():
    cfg = valid()
    cfg.validate()
    assert cfg.train.model.path == cfg.train.data.meta == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": ""}, "model is empty; name a model directory or a hub id"),
        ({"rounds": 0}, "rounds=0 must be at least 1"),
        ({"questions.files": ()}, r"questions.files=\(\): name one or more"),
        ({"sampling.n": 1}, "sampling.n=1 must be at least 2"),
        ({"sampling.temperature": 0.0}, "sampling.temperature=0.0 must lie in"),
        ({"pairs.format_negatives": "apart_"}, "did you mean 'apart'"),
        ({"train.optim.learning_rate": -1.0}, "train.optim.learning_rate=-1.0"),
        ({"train": None}, "train=None: expected a config.RunConfig"),
        ({"train.model.path": "x"}, "train.model.path='x': name the start as model"),
        ({"train.data.meta": "x"}, "train.data.meta='x': the pairs of a round"),
        ({"train.reference.path": "x"}, "the reference is what a round starts from"),
        ({"train.reference.cache": "x"}, "train.reference.cache='x': each round has"),
        ({"train.data.cache_dir": "x"}, "train.data.cache_dir='x': each round has"),
        ({"train.model.init": "random"}, "train.model.init='random': a model that"),
        ({"train.loss.weights": (1.0,)}, "train: loss.weights needs one weight per"),
        ({"pairs.min_accuracy": 0.9, "pairs.max_accuracy": 0.5}, "is above pairs.max"),
        ({"pairs.max_length_ratio": 0.5}, "pairs.max_length_ratio=0.5: the longer"),
        ({"sampling.endpoint": "http://x", "rounds": 2}, "same in every round"),
        ({"sampling.endpoint_model": "x"}, "read with sampling.endpoint alone"),
        ({"ntp.per_round": 5}, "ntp.per_round=5, but ntp.file is empty"),
        ({"ntp.root": "x"}, "ntp.root='x', but ntp.file is empty"),
        ({"evaluate.data": ""}, "evaluate.data is empty; name the folder"),
        ({"evaluate.when": "never"}, "overlap.benchmarks=True, but evaluate.when="),
        ({"rates.price_per_hour": 3.0}, "rates.price_per_hour=3.0: without rates.tok"),
    ],
)
def test_mistakes_are_named(change, said):
    cfg = valid()
    for name, value in change.items():
        put(cfg, name, value)
    with pytest.raises(ValueError, match=said):
        cfg.validate()


def test_all_mistakes_stand_in_one_message():
    cfg = valid()
    cfg.rounds, cfg.sampling.n, cfg.train.optim.clip_norm = 0, 1, -1.0
    with pytest.raises(ValueError) as error:
        cfg.validate()
    said = str(error.value).splitlines()
    assert [line.split("=")[0] for line in said] == [
        *("rounds", "sampling.n", "train.optim.clip_norm"),
    ]
    cfg = valid()
    cfg.train.model.path, cfg.evaluate.data, cfg.ntp.per_round = "x", "", 2
    cfg.train.loss.weights = (1.0,)
    with pytest.raises(ValueError) as error:
        cfg.validate()
    assert len(str(error.value).splitlines()) == 4


def test_what_is_no_field_is_refused():
    cfg = valid()
    cfg.sampling.temprature = 0.7  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="'sampling.temprature'; did you mean"):
        cfg.validate()
    with pytest.raises(ValueError, match="config has no field 'sampling.nn'"):
        config.check_overrides(["--config.sampling.nn=3"], valid())
    config.check_overrides(["--config.train.optim.learning_rate=1"], valid())


def test_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = valid()
    cfg.ntp.file, cfg.overlap.against = "open.jsonl", ("items.jsonl",)
    found = cfg.located()
    assert found.questions.files == (str(tmp_path / "questions.jsonl"),)
    assert found.overlap.against == (str(tmp_path / "items.jsonl"),)
    assert found.ntp.file == str(tmp_path / "open.jsonl")
    assert found.evaluate.data == str(tmp_path / "benchmarks")
    assert found.model == "OWNER/NAME" and found.questions.root == ""
    assert cfg.questions.files == ("questions.jsonl",)


def test_choices_are_those_of_what_reads_them():
    """The names stand here, since a config imports nothing that it configures."""
    from mpo_jax.prefs import dropout_ntp, pairs
    from mpo_jax.run import answerer

    assert recipe_config.NEGATIVES == pairs.NEGATIVES
    assert recipe_config.UNITS == dropout_ntp.UNITS
    assert recipe_config.DTYPES == answerer.DTYPES
    names = {field.name for field in dataclasses.fields(pairs.Rules)}
    ours = {field.name for field in dataclasses.fields(recipe_config.PairsConfig)}
    assert ours - {"workers", "html"} == names - {
        "entails",
        "none_is_text",
        "max_pairs_of",
    }
    flat = fields.flat(dataclasses.asdict(config.RunConfig()))
    assert set(recipe_config.OURS) < set(flat)
