"""The cache of verdicts: what is kept where, and files that are none of ours."""

from __future__ import annotations

import logging
import multiprocessing
import pathlib
import sqlite3
import threading

import pytest

from mpo_jax.verify import cache
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Verdict

YES, NO = Verdict(RIGHT, "maths"), Verdict(WRONG, "number")


def keys(count: int, of: str = "") -> list[bytes]:
    return [cache.key_of(of, i) for i in range(count)]


def test_keys_tell_parts_apart():
    some = [("a", "b"), ("ab",), ("a", ["b"]), ("a", "b", ""), ("b", "a"), ("a", 1)]
    assert len({cache.key_of(*parts) for parts in some}) == len(some)
    assert cache.key_of("x", {"a": 1, "b": 2}) == cache.key_of("x", {"b": 2, "a": 1})
    assert len(cache.key_of("\ud800")) == 16  # lone surrogates are text, too


def test_memory_is_bounded():
    a, b, c = keys(3)
    made = cache.Cache(most=2)
    made.put_many({a: YES, b: NO})
    assert made.get_many([a]) == {a: YES}  # used, so b goes first
    made.put_many({c: YES})
    assert made.get_many([a, b, c]) == {a: YES, c: YES}
    assert len(made) == 2
    with pytest.raises(ValueError, match="most=0"):
        cache.Cache(most=0)


def test_a_file_outlives_its_process(tmp_path: pathlib.Path):
    path, many = tmp_path / "new" / "verdicts.sqlite", keys(1700)
    made = cache.Cache(path)
    made.put_many({key: YES if i % 2 else NO for i, key in enumerate(many)})
    made.close()
    again = cache.Cache(path, most=10)
    assert again.get_many(many[:1]) == {many[0]: NO}
    found = again.get_many([*many, *keys(5, "others")])
    assert len(found) == 1700 and found[many[3]] == YES
    again.close()


def test_what_may_pass_is_not_kept_in_the_file(tmp_path: pathlib.Path):
    path = tmp_path / "v"
    verdicts = {
        key: Verdict(UNDECIDED, rule)
        for key, rule in zip(
            keys(4), [*sorted(cache.PASSING), "maths_shape"], strict=True
        )
    }
    made = cache.Cache(path)
    made.put_many(verdicts)
    assert made.get_many(verdicts) == verdicts
    made.close()
    again = cache.Cache(path)
    assert {v.rule for v in again.get_many(verdicts).values()} == {"maths_shape"}
    again.close()


def foreign(path: pathlib.Path) -> None:
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE verdicts (key BLOB, outcome TEXT, rule TEXT)")
        file.execute("INSERT INTO verdicts VALUES (?, 'right', 'mine')", keys(1))
    file.close()


def other_schema(path: pathlib.Path) -> None:
    cache.Cache(path).close()
    with sqlite3.connect(path) as file:
        file.execute("PRAGMA user_version = 99")
    file.close()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"not a database" * 100),
        lambda path: path.write_text("short"),
        foreign,
        other_schema,
    ],
)
def test_other_files_are_named_and_set_aside(tmp_path, caplog, spoil):
    path = tmp_path / "v"
    spoil(path)
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        made = cache.Cache(path)
    aside = [p for p in tmp_path.iterdir() if "set_aside" in p.name]
    assert len(aside) == 1 and aside[0].read_bytes() == content
    assert str(path) in caplog.text and aside[0].name in caplog.text
    assert made.get_many(keys(1)) == {}
    made.put_many({keys(1)[0]: YES})
    made.close()
    again = cache.Cache(path)
    assert again.get_many(keys(1)) == {keys(1)[0]: YES}
    again.close()


def test_a_file_that_is_damaged_later_is_set_aside_too(tmp_path, caplog):
    path = tmp_path / "v"
    made = cache.Cache(path)
    made.put_many({key: YES for key in keys(5000)})
    made.close()
    whole = path.read_bytes()
    middle = len(whole) // 4
    path.write_bytes(whole[:4096] + b"\xff" * middle + whole[4096 + middle :])
    again = cache.Cache(path, most=1)
    for key in keys(5000):
        again.get_many([key])
    again.put_many({keys(1)[0]: NO})
    assert again.get_many([keys(1)[0]]) == {keys(1)[0]: NO}
    again.close()
    assert "set_aside" in caplog.text


def test_outcomes_that_are_none_are_not_believed(tmp_path: pathlib.Path):
    path = tmp_path / "v"
    cache.Cache(path).close()
    with sqlite3.connect(path) as file:
        file.execute("INSERT INTO verdicts VALUES (?, 'perhaps', 'x')", keys(1))
    file.close()
    made = cache.Cache(path)
    assert made.get_many(keys(1)) == {}
    made.close()


def test_a_place_that_cannot_be_written_is_named(tmp_path: pathlib.Path):
    with pytest.raises(OSError, match=str(tmp_path)):
        cache.Cache(tmp_path)  # a folder


def test_many_threads(tmp_path: pathlib.Path):
    made = cache.Cache(tmp_path / "v", most=50)

    def work(name: str) -> None:
        for key in keys(50, name):
            made.put_many({key: YES})
            assert made.get_many([key]) == {key: YES}

    threads = [threading.Thread(target=work, args=(f"{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [key for i in range(4) for key in keys(50, f"{i}")]
    assert len(made.get_many(every)) == 200
    made.close()


def fill(path: pathlib.Path, name: str) -> None:
    made = cache.Cache(path)
    for start in range(0, 200, 10):
        made.put_many({key: YES for key in keys(200, name)[start : start + 10]})
    made.close()


@pytest.mark.slow
def test_several_processes_begin_and_fill_one_file(tmp_path: pathlib.Path):
    path = tmp_path / "v"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fill, args=(path, f"{i}")) for i in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    made = cache.Cache(path)
    every = [key for i in range(3) for key in keys(200, f"{i}")]
    assert len(made.get_many(every)) == 600
    made.close()
    assert not [p for p in tmp_path.iterdir() if "set_aside" in p.name]
