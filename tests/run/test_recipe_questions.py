"""The questions of a recipe: one file of several, without overlap, dealt to rounds."""

from __future__ import annotations

import pathlib

import pytest
import small_recipe
import speaking

from mpo_jax import config, ledger
from mpo_jax.prefs import asking
from mpo_jax.run import recipe_questions as found


def write(folder: pathlib.Path, name: str, number: int) -> pathlib.Path:
    lines = small_recipe.write_spots(folder, number, seed=len(name))
    return speaking.write_lines(folder / f"{name}.jsonl", lines)


def test_files_are_joined_with_their_images(tmp_path):
    one, other = write(tmp_path / "x" / "a", "one", 2), write(tmp_path / "b", "two", 3)
    with open(other, "a", encoding="utf-8") as file:
        file.write('{"question": "no truth?"}\n')
    files = found.Files([str(one), str(other)], "")
    assert files.images == str(tmp_path)
    assert found.count(files) == (5, 1)
    assert found.join(files, tmp_path) == 5
    lines = speaking.read_lines(tmp_path / found.JOINED)
    assert [line["id"] for line in lines] == [
        *("one:0", "one:1", "two:0", "two:1", "two:2"),
    ]
    assert [line["image"] for line in lines[1:3]] == ["x/a/1.png", "b/0.png"]
    assert {line["source"] for line in lines} == {"one", "two"}
    (entry,) = ledger.read(tmp_path / found.LEDGER)
    assert entry.file == str(other) and entry.line == 4
    asked = list(asking.read(tmp_path / found.JOINED, ["en"], root=files.images))
    assert len(asked) == 5 and all(isinstance(one, asking.Asked) for one in asked)


def test_ids_of_a_single_file_stay_and_equal_names_are_refused(tmp_path):
    one, other = write(tmp_path / "a", "one", 2), write(tmp_path / "b", "one", 2)
    found.join(found.Files([str(one)], ""), tmp_path)
    assert [line["id"] for line in speaking.read_lines(tmp_path / "joined.jsonl")] == [
        *(0, 1),
    ]
    with pytest.raises(ValueError, match="two files are called 'one'"):
        found.join(found.Files([str(one), str(other)], ""), tmp_path)


def test_what_a_benchmark_asks_is_left_out_whatever_its_limit(tmp_path):
    held_out = small_recipe.write_spots(tmp_path / "benchmarks", 4, seed=2)
    speaking.write_lines(tmp_path / "benchmarks" / "spots.jsonl", held_out)
    cfg = config.EvaluationConfig(
        benchmarks=(small_recipe.BENCHMARK,),
        data=str(tmp_path / "benchmarks"),
        limit=1,
    )
    items = found.write_items(cfg, tmp_path / "items")
    (path,) = items
    assert len(speaking.read_lines(path)) == 4
    mine = small_recipe.write_spots(tmp_path / "mine", 3, seed=5)
    picture = (tmp_path / "benchmarks" / "3.png").read_bytes()
    (tmp_path / "mine" / "1.png").write_bytes(picture)
    source = speaking.write_lines(tmp_path / "mine" / "q.jsonl", mine)
    told = found.leave_out(source, str(tmp_path / "mine"), tmp_path, items)
    assert told is not None and (told["removed"], told["kept"]) == (1, 2)
    kept = speaking.read_lines(tmp_path / found.KEPT)
    assert [line["id"] for line in kept] == [0, 2]
    assert found.leave_out(source, str(tmp_path / "mine"), tmp_path, []) is None
    assert speaking.read_lines(tmp_path / found.KEPT) == mine


def dealt(tmp_path, **given):
    lines = [{"id": i} for i in range(10)]
    source = speaking.write_lines(tmp_path / "all.jsonl", lines)
    number = found.deal(source, tmp_path / "dealt.jsonl", **{"seed": 0} | given)
    got = [line["id"] for line in speaking.read_lines(tmp_path / "dealt.jsonl")]
    assert len(got) == number
    return got


def test_rounds_take_the_next_questions(tmp_path):
    assert dealt(tmp_path, turn=0, number=0) == list(range(10))
    assert dealt(tmp_path, turn=3, number=12) == list(range(10))
    rounds = [dealt(tmp_path, turn=turn, number=5) for turn in range(3)]
    assert all(len(one) == 5 and one == sorted(one) for one in rounds)
    assert sorted(rounds[0] + rounds[1]) == list(range(10))
    assert rounds[2] == rounds[0] != list(range(5))
    # After the last comes the first again, within a round too.
    parts = [dealt(tmp_path, turn=turn, number=4) for turn in range(3)]
    assert set(parts[2]) >= set(range(10)) - set(parts[0]) - set(parts[1])
    assert len(parts[2]) == 4
    assert dealt(tmp_path, turn=0, number=5, seed=1) != rounds[0]
