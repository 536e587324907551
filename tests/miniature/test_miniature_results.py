"""Means, intervals and claims of a miniature, on rows whose numbers are known."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from mpo_jax import config as run_config
from mpo_jax import types
from mpo_jax.miniature import claims, config, methods, pool, report, results, search
from mpo_jax.miniature.results import Row

COT = {"start": 57.0, "sft": 79, "dpo": 50, "bco": 75, "dpo_sft": 85, "mpo": 86}


def rows(spread: float = 1.0, seeds: int = 5, **changed: float) -> list[Row]:
    """Rows of every model; models differ by the same in every seed, give or take."""
    rng, found = np.random.default_rng(0), []
    for seed in range(seeds):
        for name, cot in (COT | changed).items():
            noise = rng.normal(0, spread, 3)
            row = Row(seed, name, cot + noise[0], 80 + noise[1], 2.0, 40.0, cot - 10)
            if name != methods.START:
                row = dataclasses.replace(row, chosen=-4.0, chosen_gain=1.0)
            if name not in (methods.START, "sft"):
                row = dataclasses.replace(row, rejected=-20.0, rejected_gain=-14.0)
            found.append(row)
    return found


def test_mean_is_students():
    values = [3.0, 4.5, 2.5, 4.0, 6.0]
    found = results.mean(values)
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert found.value == pytest.approx(4.0)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert results.mean([2.0]) == results.Mean(2.0, None, None)
    assert str(results.mean([2.0])) == "2.0"


def test_differences_are_taken_seed_by_seed():
    """What seeds have in common goes out: models differ by exactly one here."""
    found = [
        Row(seed, name, 10.0 * seed + more, 0, 0, 0)
        for seed in range(4)
        for name, more in (("mpo", 1.0), ("sft", 0.0))
    ]
    told = results.difference(
        found, ("mpo", lambda row: row.cot), ("sft", lambda row: row.cot)
    )
    assert told is not None
    assert (told.value, told.low, told.high) == pytest.approx((1, 1, 1))


def test_no_difference_where_a_model_has_no_such_number():
    sides = [("sft", lambda row: row.rejected), ("mpo", lambda row: row.rejected)]
    assert results.difference(rows(), *sides) is None
    assert results.summary(rows(), "sft", "rejected") is None
    assert results.summary(rows(), "mpo", "rejected") is not None


def verdicts(found: list[Row]) -> dict[str, str]:
    return {one.claim.text: one.verdict for one in claims.findings(found)}


def test_verdicts_follow_the_intervals():
    lifted = "MPO lifts chain of thought above the start's"
    added = "MPO is above DPO + SFT (what BCO adds)"
    assert verdicts(rows())[lifted] == claims.REPRODUCED
    assert verdicts(rows(mpo=40))[lifted] == claims.OPPOSITE
    assert verdicts(rows(spread=8))[added] == claims.OPEN
    assert set(verdicts(rows(seeds=1)).values()) == {"one seed: no interval"}
    likelier = "DPO alone makes the chosen answers less likely"
    assert verdicts(rows())[likelier] == claims.OPPOSITE


def test_claims_about_models_that_were_not_made_are_left_out():
    only = [row for row in rows() if row.name in (methods.START, "mpo")]
    told = verdicts(only)
    assert told and not any("DPO" in text or "SFT" in text for text in told)


def test_the_papers_differences():
    told = {claim.text: claim.paper for claim in claims.CLAIMS}
    assert told["Before, chain of thought is below direct answers"] == pytest.approx(
        59.3 - 57.0
    )
    assert told["MPO is above SFT on the chosen answers"] == pytest.approx(79.1 - 68.5)
    assert told["DPO alone stays below MPO"] == pytest.approx(79.1 - 72.7)


def test_report_has_every_seed_and_model(tmp_path):
    cfg = config.miniature()
    told = report.write(cfg, tmp_path, rows())
    text = (tmp_path / report.MARKDOWN).read_text("utf-8")
    for name in COT:
        title = cfg.title_of(name)
        assert sum(line.startswith(f"| {title} |") for line in text.splitlines()) == 6
    assert json.loads((tmp_path / report.JSON).read_text("utf-8")) == json.loads(
        json.dumps(told)
    )
    assert len(told["rows"]) == 30 and len(told["claims"]) == len(claims.CLAIMS)
    assert (tmp_path / report.FIGURE).stat().st_size > 10_000


def test_methods_differ_by_their_loss_alone():
    shared = config.miniature().recipe.train
    for name, method in methods.METHODS.items():
        found = methods.training(shared, methods.model(name, 1e-4), seed=3)
        assert (found.seed, found.optim.learning_rate) == (3, 1e-4)
        assert found.loss.terms == method.terms
        assert (found.mode == types.SFT) == (name == "sft")
        found.model.path = found.data.meta = "/there"
        found.validate()
        same = dataclasses.replace(
            found, loss=shared.loss, optim=shared.optim, name=shared.name, seed=0
        )
        if name != "sft":
            same.model.path = same.data.meta = ""
            assert same == shared
    assert shared.loss == run_config.LossConfig()


def test_a_search_says_the_best_rate_of_each_method(tmp_path):
    """By the mean over seeds: one seed's highest accuracy belongs to another."""
    cfg = dataclasses.replace(config.search(), methods=("sft", "mpo"), seeds=(100, 101))
    scores = {
        ("sft", "0.0001"): (70, 70),
        ("sft", "0.0003"): (90, 50),
        ("sft", "0.001"): (72, 74),
        ("mpo", "0.0001"): (60, 60),
        ("mpo", "0.0003"): (80, 82),
        ("mpo", "0.001"): (81, 81),  # alike: the lower rate
    }
    found = [Row(seed, methods.START, 57, 80, 0, 0) for seed in cfg.seeds]
    for (name, rate), values in scores.items():
        for seed, value in zip(cfg.seeds, values, strict=True):
            found.append(Row(seed, f"{name}_{rate}", value, 80, 0, 0))
    assert search.best(cfg, found) == {"sft": 1e-3, "mpo": 3e-4}
    told = report.write(cfg, tmp_path, found)
    text = (tmp_path / report.MARKDOWN).read_text("utf-8")
    assert "--config.methods=sft,mpo --config.learning_rates=0.001,0.0003" in text
    assert "MPO at 0.0003" in text and len(told["claims"]) == 1  # of the start alone


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rates": (1e-3,)}, "learning_rates=.*one for each of methods"),
        ({"methods": ("ppo",)}, "methods.*ppo"),
        ({"seeds": (1, 1)}, "seeds=.*each once"),
        ({"seeds": (-1,)}, "seeds=-1|seeds=.*at least 0"),
        ({"samples": -1}, "samples=-1"),
        ({"search": True}, "learning_rates=.*each once"),
    ],
)
def test_bad_values_are_named(change, message):
    cfg = dataclasses.replace(config.miniature(), **change)
    with pytest.raises(ValueError, match=message):
        cfg.validate()


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("recipe.model", "runs/8b", "recipe.model='runs/8b': every seed has its own"),
        ("start.data.meta", "meta.json", "start.data.meta=.*leave it empty"),
        ("recipe.rounds", 2, "recipe.rounds=2: .*one round"),
        ("recipe.evaluate.benchmarks", ("pope",), "benchmarks=.*add 'mpo_jax.demo"),
        ("recipe.evaluate.modes", ("cot",), "modes=.*name both"),
        ("recipe.sampling.n", 1, "recipe.sampling.n=1"),
    ],
)
def test_what_seeds_fill_in_is_set_by_nobody(name, value, message):
    cfg = config.miniature()
    *groups, last = name.split(".")
    place = cfg
    for group in groups:
        place = getattr(place, group)
    setattr(place, last, value)
    with pytest.raises(ValueError, match=message):
        cfg.validate()


def test_every_worker_has_a_core_where_there_are_fewer():
    """One without would wait for ever before its first job."""
    assert pool.dealt([4, 7], 2) == [4, 7]
    assert pool.dealt([4], 3) == [4, 4, 4]


def test_configs_are_valid():
    for cfg in (config.miniature(), config.search(), config.quickstart()):
        cfg.validate()
