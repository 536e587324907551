"""Pairs of published rollouts, against the verdicts and pairs stored with them.

MATH-Vision's: 304 questions, three models' answers each, 218 stored pairs on 109
questions, of verdicts that compare letters alone.
"""

from __future__ import annotations

import collections
import json

import pytest
import speaking

from mpo_jax.mmpr import meta, records
from mpo_jax.prefs import pairs
from mpo_jax.run import legacy_judging, pairing
from mpo_jax.verify import maths
from mpo_jax.verify.verifier import Verifier

pytestmark = pytest.mark.slow

# Stored as wrong, by a comparison of letters; they are right.
STORED_WRONG = {
    ("319", "1.8\\mathrm{~m}"): "E is 1.8 m",
    ("319", "1.8"): "E is 1.8 m",
    ("748", "45\\mathrm{~cm}^2"): "B is 45 cm^2",
    ("965", "\\frac{1}{12}"): "D is 1/12 turn",
    ("1113", "60"): "C is 60 degrees",
    ("1168", "20\\mathrm{~cm}^2"): "B is 20 cm^2",
    ("1222", "e2,3and5"): "E is 2, 3 and 5",
    ("1343", "26"): "C is 26 cm^2",
    ("1355", "eallshapeshavethesamearea"): "(E) with its text",
    ("1512", "15"): "B is 15 degrees",
    ("1547", "apandr"): "(A) with its text",
    ("1727", "9"): "A is 9 litres",
    ("2565", "{march}"): "B is March",
    ("2757", "(b)"): "(\\text{B}) is B",
    ("390", "b625\\uparrow626arrow"): "(B) with its text",
    ("53", "bfa"): "\\textbf{A} is A",
}

OTHERS_WRONG = {
    ("1546", "40"): "D is 40 degrees",
    ("1564", "{deither}r{or}s,{butnoothers}"): "(D) with its text",
}
"""The same; every answer to these questions is right, so they make no pairs."""


@pytest.fixture(scope="module")
def folder(shared):
    found = shared / "data" / "pref_mathv_real"
    if not found.is_dir():
        pytest.skip("../shared/data/pref_mathv_real is absent")
    return found


@pytest.fixture(scope="module")
def stored(folder):
    """Whether a response is stored as right, and its stored answer."""
    found = {}
    path = folder / "annotations" / "mathv_testmini_rollouts.jsonl"
    for row in speaking.read_lines(path):
        for one in row["rollouts"]:
            key = row["id"], one["response"]
            found[key] = one["correct"], one["model_answer"], row
    return found


@pytest.fixture(scope="module")
def given(stored, tmp_path_factory):
    lines = [
        {
            **{"id": id, "question": row["question"], "image": row["image"]},
            **{"answer_gt": row["answer"], "options": row["options"]},
            **{"response": response, "source": "mathv"},
        }
        for (id, response), (_, _, row) in stored.items()
    ]
    return speaking.write_lines(tmp_path_factory.mktemp("m") / "rollouts.jsonl", lines)


@pytest.fixture(scope="module")
def built(given, folder):
    out = given.parent / "pairs"
    with Verifier(workers=1) as verifier:
        job = pairing.Job([str(given)], out, str(folder), pairs.Rules(), verifier.pins)
        return out, pairing.build(job, pairing.judge_with(verifier))


def key_of(line):
    return line["id"], line["chosen"], line["rejected"]


@pytest.fixture(scope="module")
def both(built, folder):
    """Stored pairs and ours, by id and texts."""
    path = folder / "annotations" / "mathv_testmini_correctness_pairs.jsonl"
    annotations = sorted((built[0] / "annotations").iterdir())
    ours = [key_of(line) for file in annotations for line in speaking.read_lines(file)]
    theirs = [key_of(line) for line in speaking.read_lines(path)]
    assert len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    return set(theirs), set(ours)


def test_counts(built):
    told = built[1]
    assert told["roles"] == {
        **{"right": 149, "wrong": 691, "undecided": 70, "format": 2, "truncated": 0}
    }
    assert told["answered"] == {
        **{"all_right": 5, "all_wrong": 185, "mixed": 114, "undecided": 0}
    }
    assert told["pairs_by_reason"] == {"format": 1, "wrong": 208}
    assert told["skipped"] == {"same_text": 0, "entailed": 3, "length_ratio": 0}
    assert not told["left_out"]


def test_no_chosen_response_is_wrong(both, stored):
    """Every chosen one that is stored as wrong is a stored error, and known."""
    _, ours = both
    found = {
        (id, stored[id, chosen][1])
        for id, chosen, _ in ours
        if not stored[id, chosen][0]
    }
    assert found == set(STORED_WRONG)
    assert not [key for key in ours if stored[key[0], key[2]][0]]


def test_why_stored_pairs_are_missing_or_new(both, built, stored):
    theirs, ours = both
    assert (len(theirs), len({id for id, *_ in theirs})) == (218, 109)
    assert (len(ours), len(ours & theirs)) == (209, 185)
    roles = {
        (line["id"], line["response"]): line["role"]
        for line in speaking.read_lines(built[0] / "rollouts.jsonl")
    }
    why = collections.Counter()
    for id, chosen, rejected in theirs - ours:
        assert roles[id, chosen] == "right"
        role = roles[id, rejected]
        why["entailed" if role == "wrong" else role] += 1
        if role == "right":
            assert (id, stored[id, rejected][1]) in STORED_WRONG | OTHERS_WRONG
    # Undecided ones cannot be compared; they are not trained against.
    assert why == {"undecided": 21, "right": 9, "entailed": 3}
    # Each new pair has a response that is stored as wrong by mistake.
    assert all(
        (id, stored[id, chosen][1]) in STORED_WRONG for id, chosen, _ in ours - theirs
    )


def test_training_finds_the_pictures(built, folder):
    for source in meta.load_meta(built[0] / "meta.json"):
        for _, number, line in records.iter_lines(source.annotation, max_bytes=10**6):
            found = records.parse_record(
                line, source=source, line_number=number, max_bytes=10**6
            )
            (image,) = found.images
            assert image.startswith(f"{folder}/images/")
            assert found.question.startswith("<image>\n")


def test_released_rules_take_more_for_wrong(given, folder, built):
    out = given.parent / "legacy"
    rules = pairs.Rules(entails=pairs.entailed_anyhow, none_is_text=True)
    with legacy_judging.open_judge(1, fix=False) as (judge, pins):
        job = pairing.Job([str(given)], out, str(folder), rules, pins)
        told = pairing.build(job, judge)
    assert told["roles"]["undecided"] == told["roles"]["truncated"] == 0
    assert told["roles"]["right"] < built[1]["roles"]["right"]
    assert told["rules"]["entails"] == "entailed_anyhow"
    by = json.loads((out / "manifest.json").read_text())["judged_by"]
    assert by == ["legacy", maths.version()]


def test_math_rollouts(shared, tmp_path):
    """A hundred questions of MATH: pairs, and none whose chosen is wrong."""
    path = shared / "data" / "rollouts" / "math_cot_100.jsonl"
    if not path.is_file():
        pytest.skip("../shared/data/rollouts/math_cot_100.jsonl is absent")
    rows = speaking.read_lines(path)
    lines = [
        {
            **{"id": row["idx"], "question": row["question"]},
            **{"answer_gt": row["answer"], "responses": row["code"]},
        }
        for row in rows
    ]
    given = speaking.write_lines(tmp_path / "math.jsonl", lines)
    with Verifier(workers=1) as verifier:
        job = pairing.Job([str(given)], tmp_path / "out", "", pairs.Rules(), 0)
        told = pairing.build(job, pairing.judge_with(verifier))
    assert told["rollouts"] == 800
    right = {
        (row["idx"], text): good
        for row in rows
        for text, good in zip(row["code"], row["score"], strict=True)
    }
    file = tmp_path / "out" / "annotations" / "math_pairs_vqa_correctness_rules.jsonl"
    found = speaking.read_lines(file)
    # Stored as wrong: 10{,}000 for 10000.
    wrong = [x["id"] for x in found if not right[x["id"], x["chosen"]]]
    assert set(wrong) <= {72}
    assert not [x for x in found if right[x["id"], x["rejected"]]]
    assert told["pairs"] == len(found) + told["pairs_by_reason"].get("format", 0)
    assert len(found) > 50
