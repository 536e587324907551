"""Drawn questions in the commands' own formats, and as a benchmark."""

from __future__ import annotations

import json

import pytest

from mpo_jax.demo import benchmark, questions
from mpo_jax.evals import benchmark as benchmarks
from mpo_jax.evals import registry, sources
from mpo_jax.prefs import questions as prefs_questions
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Truth, Verdict


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    return questions.write(folder, count=12, seed=3, split="eval", topics=("geometry",))


def exact(prediction: str, truth: Truth) -> Verdict:
    return Verdict(RIGHT if prediction == truth.answer else WRONG, "exact")


def test_sampling_reads_every_question(path):
    found = [one for _, one in prefs_questions.read(path, root="")]
    assert [one.id for one in found] == list(range(12))
    assert {one.source for one in found} == {"demo_geometry"}
    for one, line in zip(found, questions.read(path), strict=True):
        assert (one.text, one.truth.answer) == (line["question"], line["answer"])
        assert (path.parent / one.images[0]).is_file()


def test_same_arguments_same_bytes(path, tmp_path):
    again = questions.write(
        tmp_path, count=12, seed=3, split="eval", topics=("geometry",)
    )
    assert again.read_bytes() == path.read_bytes()


def test_as_a_benchmark(path):
    found = registry.get(benchmark.NAME)
    items = list(found.read(sources.Folder(path.parent)))
    assert len(items) == 12 and items[3].id == "3"
    protocol = found.protocols["paper"]
    direct, cot = (protocol.ask(items[0], mode) for mode in benchmarks.MODES)
    assert direct.text.endswith("single word or phrase.")
    assert cot.text.endswith(items[0].question) and "Final answer" in cot.text
    tools = benchmarks.Tools(exact)
    answer = json.loads(path.read_text().splitlines()[0])["answer"]
    for mode, response, outcome in (
        ("direct", answer, RIGHT),
        ("direct", answer + "0", WRONG),
        ("cot", f"The width is 3.\nFinal answer: {answer}", RIGHT),
        ("cot", f"The width is 3.\nFinal answer: {answer}0", WRONG),
        ("cot", f"It is {answer}.", WRONG),
    ):
        grade = protocol.grade(items[0], response, mode, tools)
        assert grade.verdict.outcome == outcome != UNDECIDED
