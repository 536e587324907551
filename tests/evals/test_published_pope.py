"""POPE: LLaVA-1.5-7B's stored answers, and labels that are joined by position."""

from __future__ import annotations

import json
import pathlib
import shutil

import numpy as np
import pytest
import scored

from mpo_jax.evals.benchmarks import pope

SEEN = {  # POPE_results.txt
    "adversarial": (1187, 133, 1367, 313),
    "random": (1104, 29, 1285, 294),
}


@pytest.fixture(scope="module")
def folder(shared) -> pathlib.Path:
    return scored.published(shared, "pope")


@pytest.fixture(scope="module")
def answers(folder) -> dict[str, str]:
    rows = scored.lines(folder / "llava-v1.5-7b.jsonl")
    return {str(row["question_id"]): row["text"] for row in rows}


@pytest.mark.parametrize("protocol", ["paper", "official"])
def test_counts_are_those_of_the_log(folder, answers, protocol):
    found = scored.Scored("pope", protocol, folder, answers)
    assert len(found.graded) == 5712
    assert set(found.details) == set(SEEN)
    for category, counts in SEEN.items():
        row = found.details[category]
        assert tuple(row[name] for name in ("TP", "FP", "TN", "FN")) == counts
    log = found.details["adversarial"]
    assert log["f1"] == pytest.approx(0.8418439716312057)
    assert log["accuracy"] == pytest.approx(0.8513333333333334)
    assert log["precision"] == pytest.approx(0.8992424242424243)
    assert log["recall"] == pytest.approx(0.7913333333333333)
    assert log["yes_ratio"] == pytest.approx(0.44)
    mean = 50 * (0.8418439716312057 + 0.8723824575266693)
    assert found.score == pytest.approx(mean)


def test_by_other_rules(folder, answers):
    pooled = scored.Scored("pope", "vlmevalkit", folder, answers)
    assert pooled.score == pytest.approx(200 * 2291 / (2 * 2291 + 162 + 607))
    mended = scored.Scored("pope", "paper", folder, answers, corrected=True)
    assert mended.details == scored.Scored("pope", "paper", folder, answers).details


def test_all_items_are_read(folder):
    items = scored.read("pope", folder)
    assert len(items) == 8910 == len({item.id for item in items})
    assert items[0].question == "Is there a snowboard in the image?"
    assert items[0].answer == "yes" and items[0].group == items[5].group
    assert len({item.group for item in items}) == 500


def _copy(folder: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    for path in (folder / pope.QUESTIONS, *folder.glob("coco_pope_*.json")):
        shutil.copy(path, to)
    return to


def test_a_newer_edition_of_labels_is_refused(folder, tmp_path):
    """Since then the random questions are 3,000, not 2,910."""
    path = _copy(folder, tmp_path) / "coco_pope_random.json"
    extra = path.read_text().splitlines()[:90]
    path.write_text("\n".join([*path.read_text().splitlines(), *extra]))
    with pytest.raises(ValueError, match=r"coco_pope_random.json: has 3000 labels for"):
        scored.read("pope", tmp_path)


@pytest.mark.parametrize("field", ["text", "image"])
def test_labels_of_other_rows_are_refused(folder, tmp_path, field):
    path = _copy(folder, tmp_path) / "coco_pope_popular.json"
    rows = scored.lines(path)
    rows[7][field] = "another"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"coco_pope_popular.json, row 8: is about"):
        scored.read("pope", tmp_path)


@pytest.mark.parametrize(
    "response, released, mended",
    [
        ("No", "no", "no"),
        ("Yes, there is.", "yes", "yes"),
        ("There is not. Or is there", "no", ""),
        ("I cannot tell", "yes", ""),
        ("No, wait. Yes", "no", ""),
        ("no.", "no", "no"),
    ],
)
def test_what_is_yes(response, released, mended):
    assert pope.first_sentence(response) == released
    item = _item("yes")
    grade = pope._CORRECTED(item, response, "direct", scored.TOOLS)
    if mended:
        assert grade.verdict.right == (mended == "yes")
        assert grade.verdict.outcome != "undecided"
    else:
        assert grade.points == 0 and not grade.verdict.right


def _item(answer: str, category: str = "random"):
    categories = {"category": category}
    return pope.Item(id="1", question="q", answer=answer, categories=categories)


def test_a_table_counts_a_question_in_all_its_categories():
    """VLMEvalKit has a question of several categories once."""
    items = [_item("yes", "random,popular"), _item("no"), _item("yes", "popular")]
    points, ones = np.asarray([1.0, 0.0, 0.0]), np.ones(3)
    # popular: TP 1, FN 1; random: TP 1, FP 1
    assert pope.mean_f1(items, points)(ones) == pytest.approx(200 / 3)
    assert pope.pooled_f1(items, points)(ones) == pytest.approx(200 * 2 / (4 + 1 + 1))
    weights = np.asarray([1.0, 0.0, 1.0])
    # random without its FP
    assert pope.mean_f1(items, points)(weights) == pytest.approx((100 + 200 / 3) / 2)
    assert np.isnan(pope.mean_f1(items, points)(np.zeros(3)))
