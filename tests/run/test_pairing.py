"""Rollouts to a folder of pairs: counts, determinism, what training makes of it."""

from __future__ import annotations

import collections
import json
import pathlib
import shutil

import pytest
import speaking

from mpo_jax import ledger
from mpo_jax.mmpr import meta, records
from mpo_jax.prefs import pair_counts, pair_folder, pairs, rollouts
from mpo_jax.run import pairing
from mpo_jax.verify.verifier import Verifier

END = "I count.\n\nFinal answer: "


@pytest.fixture(scope="module")
def verifier():
    with Verifier(workers=1) as found:
        yield found


def rollout(id, sample, said, **fields):
    return {
        **{"id": id, "sample": sample, "format": "en", "question": f"How many {id}?"},
        **{"image": "images/a.png", "answer_gt": "5", "source": "geo"},
        **{"response": END + said, "finish_reason": "stop", "tokens": 9},
        "logprob": -1.5,
        **fields,
    }


def world(folder: pathlib.Path) -> pathlib.Path:
    """Rollouts of every sort, and lines that are none."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"")
    said = {
        1: ["5", "five", "5.0", "8", "9", "it depends"],  # mixed
        2: ["5", "5 "],  # all right
        3: ["6", "7"],  # all wrong
        4: ["it depends"],  # undecided
        5: ["5", "15"],
    }
    lines = [
        rollout(i, k, text) for i, texts in said.items() for k, text in enumerate(texts)
    ]
    lines += [
        rollout(6, 0, "5"),
        rollout(6, 1, "", response="I do not know"),
        rollout(6, 2, "", response="I count and", finish_reason="length"),
        rollout(6, 3, "5", finish_reason="length"),
        {"id": 6, "sample": 4, "respons": "x"},
        rollout(6, 3, "7"),
        rollout(6, 5, "7", answer_gt="6"),
        *(
            rollout(
                *(7, k, text),
                **{"format": "direct", "response": text, "source": "signs"},
                **{"options": ["red", "green"], "answer_gt": "B"},
            )
            for k, text in enumerate(["B", "(B) green", "A", "A."])
        ),
    ]
    return speaking.write_lines(folder / "rollouts.jsonl", lines)


def build(path, output, verifier, *, chunk=pairing.CHUNK, root="", **rules):
    inputs = [str(path)] if isinstance(path, pathlib.Path) else path
    job = pairing.Job(inputs, output, root, pairs.Rules(**rules), "pins")
    return pairing.build(job, pairing.judge_with(verifier), chunk=chunk)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_counts_and_files(tmp_path, verifier):
    path = world(tmp_path / "data")
    out = tmp_path / "out"
    told = build(path, out, verifier)
    assert json.loads((out / "manifest.json").read_text()) == told
    assert told["rollouts"] == 6 + 2 + 2 + 1 + 2 + 4 + 4
    assert told["left_out"] == {"bad_field": 3}
    assert told["roles"] == {
        **{"right": 3 + 2 + 1 + 1 + 2, "wrong": 2 + 2 + 1 + 2, "undecided": 3},
        **{"format": 1, "truncated": 1},
    }
    assert told["answered"] == {
        **{"all_right": 1, "all_wrong": 1, "mixed": 4, "undecided": 1}
    }
    assert told["accuracy"]["1"] == told["accuracy"]["0"] == 1
    assert told["accuracy"]["0.5-0.6"] == 2 and told["accuracy"]["0.6-0.7"] == 1
    assert told["pairs_by_reason"] == {
        **{"format": 1, "truncated": 1, "wrong": 3 * 2 + 1 + 4}
    }
    assert told["pairs_per_prompt"] == {"0": 3, "1": 1, "2": 1, "4": 1, "6": 1}
    assert sum(told["length_ratio"].values()) == told["pairs"] == 13
    assert told["sources"]["signs"]["pairs, wrong"] == 4
    assert told["sources"]["signs"]["prompts, mixed"] == 1
    assert told["sources"]["geo"]["prompts, mixed"] == 3
    assert sorted(p.name for p in (out / "annotations").iterdir()) == [
        "geo_pairs_vqa_correctness_rules.jsonl",
        "geo_pairs_vqa_format_rules.jsonl",
        "geo_pairs_vqa_truncated_rules.jsonl",
        "signs_pairs_vqa_direct_rules.jsonl",
    ]
    entries = list(ledger.read(out / "ledger.jsonl"))
    assert [entry.line for entry in entries] == [18, 19, 20]
    assert "sample=3: is there already" in entries[1].detail
    assert "answer_gt" in entries[2].detail
    written = speaking.read_lines(out / "rollouts.jsonl")
    assert written[0]["verdict"] == written[0]["role"] == "right"
    assert written[16]["role"] == "undecided"  # right, but cut off
    assert written[14]["rule"] == "no_answer"
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob("*.lock"))


def test_a_report_finds_what_answers_were_judged_by(tmp_path, verifier):
    out = tmp_path / "out"
    told = build(world(tmp_path / "data"), out, verifier)
    lines = list(pair_folder.Reader([pair_folder.Folder(out)]).lines())
    assert len(lines) == told["pairs"]
    found = collections.Counter((line.source, line.reason) for line in lines)
    assert found["geo", "wrong"] == 7 and found["signs", "direct"] == 4
    first = lines[0]
    assert (first.truth, first.form, first.id) == ("5", "en", 1)
    assert [side.verdict for side in first.sides] == ["right", "wrong"]
    assert [side.tokens for side in first.sides] == [9, 9]
    assert all(side.rule for line in lines for side in line.sides)


def test_training_reads_every_pair(tmp_path, verifier):
    path = world(tmp_path / "data")
    out = tmp_path / "out"
    told = build(path, out, verifier)
    sources = meta.load_meta(out / "meta.json")
    found = []
    for source in sources:
        lines = list(records.iter_lines(source.annotation, max_bytes=10**6))
        assert len(lines) == source.length
        unread = collections.Counter()
        for _, number, line in lines:
            found.append(
                records.parse_record(
                    line,
                    source=source,
                    line_number=number,
                    max_bytes=10**6,
                    unread=unread,
                )
            )
        assert not unread
    assert len(found) == told["pairs"]
    first = found[0]
    assert first.images == (str(tmp_path / "data/images/a.png"),)
    assert first.question.startswith("<image>\nYour task is to answer")
    assert first.question.endswith("How many 1?")
    direct = found[-1].question
    assert direct.startswith("<image>\nHow many 7?\nA. red\nB. green\nAnswer with")
    # Moved together, they still find each other.
    (tmp_path / "else").mkdir()
    for name in ("data", "out"):
        shutil.move(tmp_path / name, tmp_path / "else" / name)
    (source, *_) = meta.load_meta(tmp_path / "else" / "out" / "meta.json")
    assert source.root == str(tmp_path / "else" / "data")


@pytest.mark.parametrize("chunk", [1, 3, 10**6])
def test_chunks_change_nothing(tmp_path, verifier, chunk):
    path = world(tmp_path / "data")
    build(path, tmp_path / "one", verifier)
    build(path, tmp_path / "other", verifier, chunk=chunk)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.slow
def test_workers_change_nothing(tmp_path):
    path = tmp_path / "data" / "maths.jsonl"
    path.parent.mkdir()
    forms = ["x^2+2x+1", "(x+1)^2", "x^2+1", "(x-1)^2", "\\sqrt{2}x"]
    lines = [
        rollout(i, k, f"${form}$", answer_gt="(1+x)^2", format="en")
        for i in range(12)
        for k, form in enumerate(forms)
    ]
    speaking.write_lines(path, lines)
    for workers in (1, 2):
        with Verifier(workers=workers, seconds=5) as verifier:
            told = build(path, tmp_path / str(workers), verifier, chunk=7 * workers)
        assert told["roles"]["right"] == 24
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_order_of_questions_changes_no_pair(tmp_path, verifier):
    path = world(tmp_path / "data")
    lines = path.read_text().splitlines(keepends=True)
    turned = path.with_name("turned.jsonl")
    # The last four lines are a question of their own.
    turned.write_text("".join(lines[-4:] + lines[:-4]))
    build(path, tmp_path / "one", verifier, max_pairs=2)
    build(turned, tmp_path / "other", verifier, max_pairs=2)
    one, other = contents(tmp_path / "one"), contents(tmp_path / "other")
    for name in one:
        if name.startswith(("annotations", "meta")):
            assert one[name] == other[name]
    # Samples in another order are the same rollouts.
    turned.write_text("".join([*lines[5::-1], *lines[6:]]))
    build(turned, tmp_path / "third", verifier, max_pairs=2)
    third = contents(tmp_path / "third")
    name = "annotations/geo_pairs_vqa_correctness_rules.jsonl"
    assert one[name] == third[name]
    assert one["rollouts.jsonl"] == third["rollouts.jsonl"]


def test_what_was_judged_can_be_built_from_again(tmp_path, verifier):
    path = world(tmp_path / "data")
    build(path, tmp_path / "one", verifier)
    again = tmp_path / "one" / "rollouts.jsonl"
    build(again, tmp_path / "two", verifier, root=str(path.parent))
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    for name in ("rollouts.jsonl", "meta.json", *(n for n in one if "annot" in n)):
        assert one[name] == two[name]


def test_the_root_is_that_of_the_sampling(tmp_path, verifier):
    path = world(tmp_path / "data")
    (tmp_path / "runs").mkdir()
    moved = tmp_path / "runs" / "rollouts.jsonl"
    moved.write_text(path.read_text())
    (tmp_path / "runs" / "sampling.json").write_text('{"root": "../data"}')
    build(moved, tmp_path / "out", verifier)
    (source, *_) = meta.load_meta(tmp_path / "out" / "meta.json")
    assert source.root == str(tmp_path / "data")
    with pytest.raises(ValueError, match="name one --root that holds both"):
        other = world(tmp_path / "else")
        build([str(path), str(other)], tmp_path / "both", verifier)
    assert not (tmp_path / "both").exists()


def test_training_is_told_the_tiles_of_the_sampling(tmp_path, verifier):
    def sampled(name: str, tiles: int) -> pathlib.Path:
        path = world(tmp_path / name)
        told = {"root": ".", "answerer": {"prompts": {"max_tiles": tiles}}}
        (tmp_path / name / "sampling.json").write_text(json.dumps(told))
        return path

    def limits(output: str) -> set[int | None]:
        text = (tmp_path / output / "meta.json").read_text()
        return {entry.get("max_dynamic_patch") for entry in json.loads(text).values()}

    six, twelve = sampled("six", 6), sampled("twelve", 12)
    build(six, tmp_path / "of_six", verifier)
    assert limits("of_six") == {6}
    build(world(tmp_path / "other"), tmp_path / "of_nobody", verifier)
    assert limits("of_nobody") == {None}
    both = [str(six), str(twelve)]
    with pytest.raises(
        ValueError, match="six.* 6, .*twelve.* 12; say with --max_tiles"
    ):
        build(both, tmp_path / "both", verifier, root=str(tmp_path))


def test_refusals_leave_nothing_behind(tmp_path, verifier):
    path = world(tmp_path / "data")
    build(path, tmp_path / "out", verifier)
    before = contents(tmp_path / "out")
    with pytest.raises(FileExistsError, match="name another --output"):
        build(path, tmp_path / "out", verifier)
    assert contents(tmp_path / "out") == before
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[0]]))
    with pytest.raises(ValueError, match="prompts number 1 and 8.* Sort the file"):
        build(path, tmp_path / "apart", verifier)
    assert {p.name for p in tmp_path.iterdir()} == {"data", "out"}
    with pytest.raises(ValueError, match="input is empty"):
        build([], tmp_path / "none", verifier)


def test_lines_of_other_pipelines(tmp_path, verifier):
    lines: list[dict] = [
        {
            **{"image": "a.png", "answer": "5", "prompt_version": "en"},
            **{"question": "<image>\nPrompt", "question_orig": "How many?"},
            "response": END + text,
        }
        for text in ("5", "8")
    ]
    lines.append(
        {
            **{"question": "And here?", "image": "b.png", "answer_gt": "7"},
            "responses": ["It is \\boxed{7}", {"response": "9"}, "The answer is 8."],
        }
    )
    path = speaking.write_lines(tmp_path / "theirs.jsonl", lines)
    told = build(path, tmp_path / "out", verifier)
    assert told["prompts"] == 2 and told["pairs"] == 3
    name = "theirs_pairs_vqa_correctness_rules.jsonl"
    found = speaking.read_lines(tmp_path / "out" / "annotations" / name)
    assert [line["question"] for line in found] == [
        *("<image>\nPrompt", "<image>\nAnd here?", "<image>\nAnd here?"),
    ]
    assert [line["rejected"] for line in found[1:]] == ["9", "The answer is 8."]


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"format": "cot"}, "format='cot': must be one of direct, en"),
        ({"response": None}, "response=None: must be a text"),
        ({"finish_reason": "eos"}, "finish_reason='eos'"),
        ({"sample": -1}, "sample=-1: must be a whole number"),
        ({"sample": 1.5}, "sample=1.5"),
        ({"tokens": True}, "tokens=True"),
        ({"logprob": "x"}, "logprob='x'"),
        ({"logprb": 1}, "did you mean"),
        ({"responses": []}, "responses=.*: must be a list of 1"),
        ({"question": "<image><image>?"}, "images: 1 for 2"),
        ({"image": "/else/a.png"}, "does not lie below"),
    ],
)
def test_bad_rollouts_are_named(fields, said):
    record = rollout(1, 0, "5") | fields
    if "logprb" in fields:
        del record["logprob"]
    with pytest.raises(ledger.BadRecord, match=said):
        rollouts.parse(json.dumps(record).encode(), 1, root="/data", source="s")


def test_bins():
    assert (
        pair_counts.bin_of(0.3) == "0.3-0.4" and pair_counts.bin_of(0.29) == "0.2-0.3"
    )
    assert (
        pair_counts.bin_of(0.7) == "0.7-0.8" and pair_counts.bin_of(1 / 32) == "0.0-0.1"
    )
    assert pair_counts.bin_of(0) == "0" and pair_counts.bin_of(1) == "1"
    assert (
        pair_counts.ratio_of(1.0) == "0.8-1.25" and pair_counts.ratio_of(9) == "from 4"
    )
    assert (
        pair_counts.ratio_of(0.1) == "below 0.25"
        and pair_counts.ratio_of(4) == "from 4"
    )
