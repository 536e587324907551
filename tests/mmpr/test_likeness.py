"""Which records are alike or opposite, and which hold chat markers."""

from __future__ import annotations

import pytest
import tiny_mmpr

from mpo_jax.mmpr import likeness


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return tiny_mmpr.write_tokenizer(tmp_path_factory.mktemp("alike") / "tokenizer")


@pytest.fixture
def build(tokenizer_path, tmp_path):
    def call(lines):
        tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
        meta = tiny_mmpr.write_meta(
            tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}}
        )
        return tiny_mmpr.build_index(meta, tmp_path / "out", tokenizer_path)

    return call


def found(groups):
    return sorted(group.tolist() for group in groups)


def test_equal(build):
    built = build([tiny_mmpr.pair(number) for number in (1, 2, 1, 3, 2, 1)])
    assert found(likeness.equal(built)) == [[0, 2, 5], [1, 4]]
    assert found(likeness.nearly_equal(built)) == []


def test_nearly_equal_looks_at_what_is_said(build, tmp_path):
    tiny_mmpr.write_image(tmp_path / "i.png")
    tiny_mmpr.write_image(tmp_path / "other.png", seed=1)
    (tmp_path / "copy.png").write_bytes((tmp_path / "i.png").read_bytes())
    ask = "What  is it?"
    built = build(
        [
            tiny_mmpr.pair(1, image="i.png", question=ask),
            tiny_mmpr.pair(1, image="i.png", question=f"<image>\n{ask}"),
            tiny_mmpr.pair(1, image=["copy.png"], question="what is it?\n"),
            tiny_mmpr.pair(1, image="other.png", question=ask),
            tiny_mmpr.pair(1, question=ask),
            tiny_mmpr.pair(2, image="i.png", question=ask),
            tiny_mmpr.pair(1, image="i.png", question=ask, rejected="It is 9."),
        ]
    )
    assert len(built) == 7
    assert found(likeness.nearly_equal(built)) == [[0, 1, 2]]
    assert found(likeness.equal(built)) == []


def test_opposite_needs_prompt_and_both_answers(build, tmp_path):
    tiny_mmpr.write_image(tmp_path / "i.png")
    tiny_mmpr.write_image(tmp_path / "other.png", seed=1)

    def pair(chosen, rejected, image="i.png", question="Which?"):
        return dict(chosen=chosen, rejected=rejected, image=image, question=question)

    built = build(
        [
            pair("yes", "no"),
            pair("No ", "yes"),  # the opposite of the first
            pair("no", "yes", question="Which not?"),
            pair("no", "yes", image="other.png"),
            pair("no", "maybe"),  # a ranking is no contradiction
            pair("yes", "no"),
        ]
    )
    assert found(likeness.opposite(built)) == [[0, 1, 5]]


def test_markers_are_counted_in_all_texts(build):
    built = build(
        [
            tiny_mmpr.pair(1),
            tiny_mmpr.pair(2, chosen="It is 2.</s>\n</s>", rejected="<|eot_id|>"),
            tiny_mmpr.pair(3, question="<|eot_id|> [INST] 3?"),
            tiny_mmpr.pair(4, question="Is a < b | c > d?"),
        ]
    )
    marked = dict(zip(built.line.tolist(), built.markers.tolist(), strict=True))
    assert marked == {1: 0, 2: 3, 3: 2, 4: 0}


def test_kinds_say_what_a_record_is(build, tmp_path):
    tiny_mmpr.write_image(tmp_path / "i.png")
    two = tiny_mmpr.pair(3, image=["i.png"] * 2, question="<image><image>?")
    built = build([tiny_mmpr.pair(1), tiny_mmpr.pair(2, image="i.png"), two, two])
    kinds = likeness.kinds(built, range(4), likeness.Alike(built))
    assert kinds == [["text only"], ["one image"], *[["several images", "equal"]] * 2]


def test_an_index_of_nothing(build):
    built = build([])
    alike = likeness.Alike(built)
    assert not any(map(len, alike.groups.values()))
    assert not any(map(len, alike.notable.values()))
