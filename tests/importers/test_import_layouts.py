"""Every layout gives the same pair, text is kept, and what cannot be kept is named."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import tempfile

import import_cases as cases
import memory_store
import pytest
import tiny_mmpr
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo_jax import ledger
from mpo_jax.importers import inputs, layouts, pairs, run
from mpo_jax.mmpr import index


def build(meta: pathlib.Path, out: pathlib.Path, **change) -> index.Index:
    tokenizer = tiny_mmpr.write_tokenizer(out / "tokenizer")
    policy = dataclasses.replace(tiny_mmpr.POLICY, **change)
    return tiny_mmpr.build_index(meta, out / "index", tokenizer, policy=policy)


def test_every_layout_is_indexed_with_its_text(tmp_path):
    image = tiny_mmpr.write_image(tmp_path / "in/a.png")
    files = [
        tiny_mmpr.write_lines(tmp_path / f"in/{name}.jsonl", [record])
        for name, (_, record) in cases.records().items()
    ]
    tallies = cases.imported(tmp_path / "out", *files)
    for tally, (layout, _) in zip(tallies, cases.records().values(), strict=True):
        assert (tally.layout, tally.detected, tally.written) == (layout, True, 1)
    built = build(tmp_path / "out/meta.json", tmp_path)
    assert built.ledger() == [] and len(built) == len(files)
    for number in range(len(built)):
        record = built.record(number)
        assert record.question.removeprefix("<image>\n") == cases.QUESTION
        assert (record.chosen, record.rejected) == (cases.CHOSEN, cases.REJECTED)
        assert record.images == (str(image),)


def test_sft_data_are_indexed_by_their_answers(tmp_path):
    image = tiny_mmpr.write_image(tmp_path / "in/a.png")
    talk = [
        {"from": "human", "value": "<image>\nWhat?"},
        {"from": "gpt", "value": "A cat."},
    ]
    sft = {
        "internvl": {"id": 0, "image": "a.png", "conversations": talk},
        "swift": {
            "messages": [cases.user("<image>\nWhat?"), cases.assistant("A cat.")],
            "images": "a.png",
        },
        "trl": {"prompt": "<image>\nWhat?", "completion": "A cat.", "image": "a.png"},
        "alpaca": {
            **{"instruction": "<image>", "input": "What?", "output": "A cat."},
            "images": ["a.png"],
        },
    }
    files = [
        tiny_mmpr.write_lines(tmp_path / f"in/{name}.jsonl", [record])
        for name, record in sft.items()
    ]
    with pytest.raises(ValueError, match="a rejected answer.*--chosen_only"):
        cases.imported(tmp_path / "out", *files)
    assert not (tmp_path / "out").exists()
    tallies = cases.imported(
        tmp_path / "out", *files, options=cases.plan(chosen_only=True)
    )
    assert [tally.layout for tally in tallies] == list(sft)
    assert cases.lines(tmp_path / "out", "internvl") == [
        {"id": 0, "image": "a.png", "question": "<image>\nWhat?", "chosen": "A cat."}
    ]
    built = build(tmp_path / "out/meta.json", tmp_path, chosen_only=True)
    assert built.ledger() == [] and len(built) == len(sft)
    for number in range(len(built)):
        record = built.record(number)
        assert record.question == "<image>\nWhat?" and record.chosen == "A cat."
        assert record.images == (str(image),)


PLAIN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: text.strip() and "<image>" not in text
)


@given(texts=st.tuples(PLAIN, PLAIN, PLAIN).filter(lambda t: t[1] != t[2]))
@settings(deadline=None, max_examples=50)
def test_text_is_preserved_exactly(texts):
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "a.png").touch()  # decoding is left to the index
        for layout, record in cases.records(*texts).values():
            path = tiny_mmpr.write_lines(pathlib.Path(folder) / "x.jsonl", [record])
            (source,) = inputs.find([str(path)], layout=layout)
            ((_, _, line),) = run.preview(source, cases.plan())
            assert isinstance(line, dict), line
            mark = "<image>\n" * (layout == "trl" and "<image>" in line["question"])
            assert line["question"] == mark + texts[0]
            assert (line["chosen"], line["rejected"]) == texts[1:]
            assert line["image"] == "a.png"


def test_the_words_that_both_answers_begin_with_are_a_prompt():
    record = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    pair = layouts.LAYOUTS["trl"].convert(record, cases.RULES)
    assert (pair.question, pair.chosen, pair.rejected) == (
        "The sky is",
        " blue.",
        " black.",
    )
    assert pair.notes


SWIFT = cases.records()["swift"][1]
TRL = cases.records()["trl"][1]
MMPR = cases.records()["mmpr"][1]
SHAREGPT = cases.records()["sharegpt"][1]
ALPACA = cases.records()["alpaca"][1]
TALK = [cases.user("Q"), cases.assistant("A"), cases.user("Q2"), cases.assistant("B")]
REFUSED = [
    ("swift", {**SWIFT, "system": "Be brief."}, "unsupported", "system: 'Be brief.'"),
    ("swift", {**SWIFT, "messages": TALK}, "unsupported", "history: 1 earlier"),
    ("swift", {**SWIFT, "messages": TALK[:1]}, "bad_field", "must end with the assist"),
    ("swift", {**SWIFT, "messages": "hello"}, "bad_field", "messages: must be a list"),
    ("swift", {**SWIFT, "messages": [{"content": "x"}]}, "bad_field", "none of role"),
    (
        "swift",
        {**SWIFT, "messages": [{"role": "tool", "content": "x"}]},
        "unsupported",
        "messages[0]: role 'tool'",
    ),
    ("swift", {**SWIFT, "rejected_response": 7}, "bad_field", "must be text, got 7"),
    ("swift", {**SWIFT, "rejected_response": None}, "bad_field", "no rejected answer"),
    ("swift", {**SWIFT, "rejected_response": " "}, "bad_field", "rejected is empty"),
    ("swift", {**SWIFT, "rejected_response": cases.CHOSEN}, "identical", "both"),
    ("swift", {**SWIFT, "videos": ["v.mp4"]}, "unsupported", "videos: ['v.mp4']"),
    ("swift", {**SWIFT, "objects": {"bbox": [1]}}, "unsupported", "objects"),
    ("swift", {**SWIFT, "rejected_images": ["b.png"]}, "unsupported", "['b.png'] are"),
    (
        "swift",
        {
            "messages": SWIFT["messages"],
            "rejected_messages": [cases.user("Other?"), cases.assistant("A dog.")],
        },
        "unsupported",
        "rejected_messages: their prompt",
    ),
    (
        "swift",
        {"query": "Q", "response": "A", "rejected_response": "B", "history": ["x"]},
        "bad_field",
        "history: must be [question, answer]",
    ),
    ("trl", {**TRL, "chosen": TALK[1:]}, "unsupported", "chosen: 3 messages"),
    ("trl", {**TRL, "chosen": [cases.user("x")]}, "bad_field", "not of user"),
    ("trl", {**TRL, "images": ["a.png"] * 2}, "image_count", "images: 2 for 1"),
    ("trl", {**TRL, "images": []}, "image_count", "images: 0 for 1"),
    ("trl", {**TRL, "images": 5}, "bad_field", "image: must be a path"),
    (
        "trl",
        {**TRL, "prompt": [cases.user([{"type": "video"}])]},
        "unsupported",
        "type 'video'",
    ),
    (
        "trl",
        {"chosen": TALK, "rejected": [cases.user("X"), *TALK[1:]]},
        "unsupported",
        "differ before their last answer",
    ),
    ("trl", {"chosen": "Yes.", "rejected": "No."}, "bad_field", "no common beginning"),
    (
        "trl",
        {"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q"},
        "unsupported",
        "a transcript in one text",
    ),
    ("mmpr", {**MMPR, "history": [["Q", "A"]]}, "unsupported", "history: 1 earlier"),
    ("mmpr", {**MMPR, "system_prompt": "S"}, "unsupported", "system: 'S'"),
    ("mmpr", {**MMPR, "chosen": "See <image>"}, "image_count", "chosen: holds"),
    ("mmpr", {**MMPR, "question": "a\ud800b"}, "bad_field", "lone surrogate after"),
    ("mmpr", {**MMPR, "images": ["b.png"]}, "bad_field", "images: and image are both"),
    ("mmpr", {**MMPR, "image": "none.png"}, "image_missing", "none.png' is not a file"),
    ("mmpr", {**MMPR, "image": "http://x/a.png"}, "image_missing", "--image_root"),
    ("mmpr", b'{"a": 1, "a": 2}', "bad_json", "repeated keys a"),
    ("mmpr", b"[1]", "bad_json", "must be an object, got [1]"),
    ("mmpr", b"{not json", "bad_json", "Expecting property name"),
    ("mmpr", b'{"a": "\xff"}', "bad_json", "utf-8"),
    ("mmpr", b'{"a": ' + b"[" * 50_000, "bad_json", "nested too deeply"),
    ("mmpr", b'{"a": "' + b"x" * (1 << 20) + b'"}', "line_too_long", "max_record_"),
    ("sharegpt", {**SHAREGPT, "tools": "[f]"}, "unsupported", "tools"),
    ("sharegpt", {**SHAREGPT, "chosen": []}, "bad_field", "chosen: must be a list"),
    ("sharegpt", SWIFT, "bad_field", "chosen: is missing; it looks like layout swift"),
    ("alpaca", {**ALPACA, "kto_tag": True}, "unsupported", "kto_tag"),
    ("rlhfv", {"text": "{cut", "image": "a.png"}, "bad_field", "text: is not a JSON"),
]


@pytest.mark.parametrize("name", sorted({name for name, *_ in REFUSED}))
def test_broken_records_land_in_the_ledger_by_line(name, tmp_path):
    """Between good records, in a file of their layout."""
    (tmp_path / "a.png").touch()
    good = cases.records()[name][1]
    broken = [(n, *rest) for n, *rest in REFUSED if n == name]
    path = tiny_mmpr.write_lines(
        tmp_path / "x.jsonl", [good, *(record for _, record, *_ in broken), good]
    )
    (tally,) = cases.imported(tmp_path / "out", path, layout=name)
    assert (tally.read, tally.written) == (len(broken) + 2, 2)
    entries = list(ledger.read(tmp_path / "out/ledger.jsonl"))
    assert [entry.line for entry in entries] == list(range(2, len(broken) + 2))
    for entry, (_, _, reason, detail) in zip(entries, broken, strict=True):
        assert entry.reason == reason and detail in entry.detail, entry
        assert entry.file == str(path) and len(entry.detail) < 500
    assert sum(tally.left_out.values()) == len(broken)


def test_system_text_and_earlier_turns_are_folded_where_asked():
    prompt = [{"role": "system", "content": "Be brief."}, *TALK]
    record = {"messages": prompt, "rejected_response": "C"}
    fold = pairs.Rules(system="fold", history="fold")
    pair = layouts.LAYOUTS["swift"].convert(record, fold)
    assert pair.question == "Be brief.\n\nUser: Q\n\nAssistant: A\n\nUser: Q2"
    assert (pair.chosen, pair.rejected, len(pair.notes)) == ("B", "C", 2)
    drop = pairs.Rules(system="drop", history="fold")
    pair = layouts.LAYOUTS["swift"].convert(record, drop)
    assert pair.question == "User: Q\n\nAssistant: A\n\nUser: Q2"
    assert "system text left out" in pair.notes


def test_several_unmarked_images_come_before_the_question():
    record = {"prompt": "Same?", "chosen": "Y", "rejected": "N", "images": ["a", "b"]}
    pair = layouts.LAYOUTS["trl"].convert(record, cases.RULES)
    assert pair.question == "<image>\n<image>\nSame?" and pair.notes
    pair = layouts.LAYOUTS["trl"].convert({**record, "images": ["a"]}, cases.RULES)
    assert pair.question == "Same?" and not pair.notes  # encoding does it for one


def test_unknown_and_ambiguous_fields_are_shown(tmp_path):
    path = tiny_mmpr.write_lines(tmp_path / "x.jsonl", [{"frage": "Q", "gut": "A"}])
    with pytest.raises(ValueError, match="frage, gut fit no layout") as caught:
        cases.imported(tmp_path / "out", path)
    assert all(name in str(caught.value) for name in layouts.LAYOUTS)
    both = {**MMPR, "prompt": "Q"}
    path = tiny_mmpr.write_lines(tmp_path / "y.jsonl", [both])
    with pytest.raises(ValueError, match="layouts mmpr and trl; choose with --layout"):
        cases.imported(tmp_path / "out", path)
    renamed = {"frage": "Q", "gut": "A", "schlecht": "B", "extra": 1}
    path = tiny_mmpr.write_lines(tmp_path / "z.jsonl", [renamed])
    columns = inputs.parse_columns(
        ["question=frage", "chosen=gut", "rejected=schlecht"]
    )
    (tally,) = cases.imported(tmp_path / "out", path, columns=columns)
    assert tally.layout == "mmpr" and dict(tally.unused) == {"extra": 1}
    assert cases.lines(tmp_path / "out", "z") == [
        {"question": "Q", "chosen": "A", "rejected": "B"}
    ]
    for wrong in (["question"], ["question="], ["question=a", "question=b"]):
        with pytest.raises(ValueError, match="must read FIELD=THEIRS"):
            inputs.parse_columns(wrong)


def test_dataset_info_names_files_columns_and_tags(tmp_path):
    tiny_mmpr.write_image(tmp_path / "img/a.png")
    data = [
        {
            "talk": [{"who": "student", "says": "<image>What is it?"}],
            "good": {"who": "teacher", "says": "A cat."},
            "worse": {"who": "teacher", "says": "A dog."},
            "pics": ["img/a.png"],
        }
    ]
    (tmp_path / "talk.json").write_text(json.dumps(data))
    columns = {"messages": "talk", "chosen": "good", "rejected": "worse"}
    info = {
        "mine": {
            "file_name": "talk.json",
            "formatting": "sharegpt",
            "ranking": True,
            "columns": {**columns, "images": "pics"},
            "tags": {
                **{"role_tag": "who", "content_tag": "says"},
                **{"user_tag": "student", "assistant_tag": "teacher"},
            },
        },
        "part": {"file_name": "talk.json", "folder": "x", "num_samples": 9},
        "odd": {"file_name": "talk.json", "columns": {"nonsense": "x"}},
    }
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(info))
    found = inputs.from_dataset_info(str(path), ["mine"])
    (tally,) = run.import_data(found, tmp_path / "out", cases.plan())
    assert (tally.layout, tally.detected, tally.written) == ("sharegpt", False, 1)
    assert cases.lines(tmp_path / "out", "mine") == [
        {
            **{"image": "img/a.png", "question": "<image>What is it?"},
            **{"chosen": "A cat.", "rejected": "A dog."},
        }
    ]
    with pytest.raises(ValueError, match="entry 'odd': columns must be"):
        inputs.from_dataset_info(str(path), ["odd"])
    with pytest.raises(ValueError, match="'part': folder, num_samples cannot be"):
        inputs.from_dataset_info(str(path), ["part"])
    with pytest.raises(ValueError, match="'none': there is no such entry; it has mine"):
        inputs.from_dataset_info(str(path), ["none"])
    with pytest.raises(ValueError, match="--dataset_info="):
        inputs.find([str(tmp_path)])


def test_a_meta_json_in_a_bucket_is_no_input(tmp_path):
    memory_store.emptied()
    tiny_mmpr.write_lines(tmp_path / "x.jsonl", [MMPR])
    entries = {"s": {"root": "memory://b/images", "annotation": "x.jsonl"}}
    meta = tiny_mmpr.write_meta(tmp_path, entries)
    with pytest.raises(ValueError, match="source 's'=memory://b/images: the importer"):
        inputs.find([str(meta)])


def test_a_meta_json_stands_for_its_sources(tmp_path):
    tiny_mmpr.write_image(tmp_path / "images/a.png")
    tiny_mmpr.write_lines(tmp_path / "ann/x.jsonl", [MMPR, MMPR])
    meta = tiny_mmpr.write_meta(
        tmp_path,
        {
            "a/b": {
                **{"root": "images", "annotation": "ann/x.jsonl"},
                **{"repeat_time": 0.5, "max_dynamic_patch": 6},
            }
        },
    )
    with pytest.raises(ValueError, match="--image_root: .* has a root for each"):
        cases.imported(tmp_path / "out", meta, image_root=str(tmp_path))
    (tally,) = cases.imported(tmp_path / "out", meta)
    assert tally.written == 2
    written = json.loads((tmp_path / "out/meta.json").read_text())
    assert written == {
        "a_b": {
            "root": str(tmp_path / "images"),
            "annotation": "annotations/a_b.jsonl",
            "data_augment": False,
            "repeat_time": 0.5,
            "max_dynamic_patch": 6,
            "length": 2,
        }
    }
