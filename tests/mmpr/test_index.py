"""The index: exact ledgers, resuming, any number of workers, epochs."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.mmpr import examples, index, index_build, likeness
from mpo_jax.mmpr import shards as shards_lib
from mpo_jax.mmpr import store as stores
from mpo_jax.mmpr.meta import load_meta
from mpo_jax.packing import pipeline
from mpo_jax.types import PreferenceRecord

COLUMNS = ("source", *shards_lib.COLUMNS)


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory):
    return tiny_mmpr.write_tokenizer(tmp_path_factory.mktemp("tiny") / "tokenizer")


@pytest.fixture
def build(tokenizer_path, tmp_path):
    """build_index with small pieces in this process, unless told otherwise."""

    def call(meta, out=None, **options):
        options = {"piece_bytes": 400, **options}
        return tiny_mmpr.build_index(
            meta, out or tmp_path / "out", tokenizer_path, **options
        )

    return call


def columns(built):
    return {name: getattr(built, name) for name in COLUMNS}


def assert_same(first, second):
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert first.content_hash == second.content_hash
    assert first.ledger() == second.ledger()
    assert first.counts == second.counts


def test_rows_are_the_examples_measures(build, tokenizer_path, tmp_path):
    built = build(tiny_mmpr.write_good(tmp_path))
    tokenizer = tokenizers.load_tokenizer(tokenizer_path)
    assert len(built) == 55
    assert [source.name for source in built.sources] == ["single", "multi", "text"]
    assert [count.kept for count in built.counts] == [20, 5, 30]
    assert built.ledger() == []
    np.testing.assert_array_equal(np.bincount(built.source), [20, 5, 30])
    for number in range(len(built)):
        record = built.record(number)
        assert record.line == built.line[number]
        assert record.source == built.sources[built.source[number]].name
        example = examples.build_example(record, tokenizer, policy=tiny_mmpr.POLICY)
        measured = {
            "prompt_tokens": len(example.prompt),
            "chosen_tokens": len(example.chosen_tokens),
            "rejected_tokens": len(example.rejected_tokens),
            "chosen_labels": example.chosen_mask.sum(),
            "rejected_labels": example.rejected_mask.sum(),
            "tiles": len(example.tiles),
            "images": len(record.images),
        }
        for name, value in measured.items():
            assert getattr(built, name)[number] == value, (number, name)
        assert bytes(built.hash[number]) == likeness.record_hash(record)
    assert built.tiles.max() > 1  # else the count of tiles would be untested
    for name in COLUMNS:
        wide = name in ("offset", "line") or name.endswith("_key")
        if name != "hash":
            assert getattr(built, name).dtype == (np.int64 if wide else np.int32)


def test_fields_that_are_not_read_are_told_at_every_start(build, tmp_path, caplog):
    lines = [tiny_mmpr.pair(i, context="c", id=i) for i in range(20)]
    lines += [
        tiny_mmpr.pair(30, margin=0.5),
        tiny_mmpr.pair(31, context="c", chosen=""),
    ]
    tiny_mmpr.write_lines(tmp_path / "t.jsonl", lines)
    meta = tiny_mmpr.write_meta(tmp_path, {"t": {"root": ".", "annotation": "t.jsonl"}})
    for workers in (1, 2):
        caplog.clear()
        built = build(meta, workers=workers)
        assert built.counts[0].unread == {"context": 20, "margin": 1}
        told = (
            "source 't': fields not used: 'context' (20 records), 'margin' (1 records)"
        )
        assert caplog.text.count(told) == 1


def test_phi3_from_file_to_row(phi3_dir, qwen2_dir, tmp_path):
    """And a template that the tokenizer has no tokens for is refused by name."""
    meta = tiny_mmpr.write_good(tmp_path)
    policy = dataclasses.replace(tiny_mmpr.POLICY, template="phi3-chat")

    def build(tokenizer_path, policy):
        return tiny_mmpr.build_index(
            meta, tmp_path / "out", tokenizer_path, policy=policy
        )

    built = build(phi3_dir, policy)
    assert len(built) == 55 and built.ledger() == []
    tokenizer = tokenizers.load_tokenizer(phi3_dir)
    end = tokenizer.id_of("<|end|>")
    for number in range(len(built)):
        example = examples.build_example(
            built.record(number), tokenizer, policy=policy, with_tiles=False
        )
        assert built.prompt_tokens[number] == len(example.prompt)
        assert built.chosen_labels[number] == example.chosen_mask.sum()
        assert example.chosen_labels[-1] == example.rejected_labels[-1] == end
    with pytest.raises(
        ValueError, match="needs the token.*use data.template=phi3-chat"
    ):
        build(phi3_dir, tiny_mmpr.POLICY)
    with pytest.raises(ValueError, match="'phi3-chat' needs the token"):
        build(qwen2_dir, policy)


@pytest.mark.parametrize("piece_bytes", [40_000, 1 << 22], ids=["small", "one"])
def test_broken_records_make_exactly_this_ledger(build, tmp_path, piece_bytes):
    meta, expected = tiny_mmpr.write_broken(tmp_path)
    built = build(meta, piece_bytes=piece_bytes)
    entries = built.ledger()
    assert [(entry.line, entry.reason) for entry in entries] == expected
    assert {entry.source for entry in entries} == {"b"}
    assert {entry.file for entry in entries} == {str(tmp_path / "broken.jsonl")}
    assert all(entry.detail for entry in entries)
    np.testing.assert_array_equal(built.line, [1, 24, 25])
    (counts,) = built.counts
    assert (counts.lines, counts.kept) == (3 + len(expected), 3)
    assert sum(counts.left_out.values()) == len(expected)
    assert built.record(1).chosen == "The answer is 17."


@pytest.mark.slow
def test_piece_size_and_workers_do_not_change_the_index(build, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path / "good")
    first = build(meta, tmp_path / "1", piece_bytes=97)
    second = build(meta, tmp_path / "2", piece_bytes=1 << 22)
    third = build(meta, tmp_path / "3", piece_bytes=1500, workers=2)
    assert_same(first, second)
    assert_same(first, third)


def test_a_second_call_visits_nothing(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path)
    built = build(meta)
    monkeypatch.setattr(shards_lib, "visit", None)
    assert_same(built, build(meta))


def test_resume_after_a_crash_visits_only_what_is_missing(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path / "good")
    whole = build(meta, tmp_path / "whole")
    visited, real = [], shards_lib.visit

    def crash(piece, encoding):
        if len(visited) == 5:
            raise KeyboardInterrupt
        visited.append(piece)
        return real(piece, encoding)

    monkeypatch.setattr(shards_lib, "visit", crash)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        build(meta, out)
    assert not list(out.glob("*/manifest.json"))
    # What a kill in the middle of a write leaves behind, and torn files.
    folder = next((out / "shards").iterdir())
    (folder / f"x.parquet.{'0' * 12}.tmp").write_bytes(b"half")
    torn, empty = visited[1], visited[3]
    torn.part_path.write_bytes(torn.part_path.read_bytes()[:-10])
    empty.part_path.write_bytes(b"")

    done = list(visited)

    def count(piece, encoding):
        visited.append(piece)
        return real(piece, encoding)

    monkeypatch.setattr(shards_lib, "visit", count)
    seen = []
    built = build(meta, out, progress=seen.append)
    again = visited[5:]
    assert {done[1], done[3]} <= set(again)
    assert not {done[0], done[2], done[4]} & set(again)
    assert seen[0].done_pieces == 3
    assert seen[-1].done_pieces == seen[-1].pieces == 3 + len(again)
    assert seen[-1].done_bytes == seen[-1].bytes
    assert (seen[-1].kept, seen[-1].left_out) == (55, 0)
    assert not list(out.rglob("*.tmp"))
    assert_same(built, whole)


def test_editing_meta_reuses_pieces(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path)
    before = build(meta)
    entries = json.loads(meta.read_text())
    entries["text"]["repeat_time"] = 4
    entries["renamed"] = entries.pop("single")
    tiny_mmpr.write_meta(tmp_path, entries)
    monkeypatch.setattr(shards_lib, "visit", None)
    after = build(meta)
    assert after.directory != before.directory  # both remain
    assert [source.name for source in after.sources] == ["multi", "text", "renamed"]
    assert after.sources[1].repeat_time == 4
    assert index.load_index(before.directory).sources[2].repeat_time == 0.3
    assert sorted(map(bytes, after.hash)) == sorted(map(bytes, before.hash))


@pytest.mark.parametrize("what", ["policy", "limit", "text", "tiles"])
def test_whatever_matters_makes_another_index(build, tmp_path, what):
    meta = tiny_mmpr.write_good(tmp_path)
    before = build(meta)
    options = {}
    if what == "policy":
        options["policy"] = dataclasses.replace(tiny_mmpr.POLICY, use_thumbnail=False)
    elif what == "limit":
        options["max_text_bytes"] = 5000
    elif what == "text":
        path = tmp_path / "text.jsonl"
        path.write_bytes(path.read_bytes().replace(b"answer is 7", b"answer is 8"))
    else:
        entries = json.loads(meta.read_text())
        entries["single"]["max_dynamic_patch"] = 2
        tiny_mmpr.write_meta(tmp_path, entries)
    after = build(meta, **options)
    assert after.directory != before.directory
    if what != "limit":
        same = all(
            np.array_equal(columns(before)[c], columns(after)[c]) for c in COLUMNS
        )
        assert not same


def test_reroot_of_images_makes_another_index(build, tmp_path):
    for number, folder in enumerate("ab"):
        tiny_mmpr.write_image(tmp_path / folder / "1.png", seed=number)
    tiny_mmpr.write_lines(tmp_path / "t.jsonl", [tiny_mmpr.pair(0, image="/mnt/1.png")])
    meta = tiny_mmpr.write_meta(tmp_path, {"t": {"root": "/", "annotation": "t.jsonl"}})
    first, second = (build(meta, reroot=f"/mnt={folder}") for folder in "ab")
    assert len(first) == len(second) == 1
    assert first.content_hash != second.content_hash


def count_examined(monkeypatch):
    """Lines that are examined from now on."""
    seen, real = [], shards_lib._examine

    def examine(line, files, number, source, encoding):
        seen.append((source.name, number))
        return real(line, files, number, source, encoding)

    monkeypatch.setattr(shards_lib, "_examine", examine)
    return seen


def test_images_that_come_are_found_by_the_same_call(build, tmp_path, monkeypatch):
    """And nothing but the records that name them is examined again."""
    meta = tiny_mmpr.write_good(tmp_path)
    hidden = (tmp_path / "images").rename(tmp_path / "hidden")
    before = build(meta)
    assert ledger.count(before.ledger()) == {
        ("single", "image_missing"): 20,
        ("multi", "image_missing"): 5,
    }
    hidden.rename(tmp_path / "images")
    examined = count_examined(monkeypatch)
    after = build(meta)
    assert len(after) == 55 and after.ledger() == []
    assert len(examined) == 25 and {name for name, _ in examined} == {"single", "multi"}
    assert len(before.ledger()) == 25  # the index of before is as it was
    assert_same(after, build(meta, tmp_path / "fresh"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_replaced_image_changes_its_records_alone(
    build, tmp_path, monkeypatch, workers
):
    meta = tiny_mmpr.write_good(tmp_path)
    before = build(meta)
    tiny_mmpr.write_image(tmp_path / "images/1.png", 90, 40, seed=9)
    examined = count_examined(monkeypatch)
    after = build(meta, workers=workers)
    if workers == 1:
        assert len(examined) == 5  # a quarter of `single`, nothing of `multi`
    differ = (before.hash != after.hash).any(axis=1)
    assert np.flatnonzero(differ).tolist() == [1, 5, 9, 13, 17]
    assert after.content_hash != before.content_hash
    assert build(meta).directory == after.directory


@pytest.mark.parametrize("change", ["deleted", "broken", "loop"])
def test_images_that_go_and_come_back(build, tmp_path, change):
    meta = tiny_mmpr.write_good(tmp_path)
    path = tmp_path / "images/2.png"
    before, data, status = build(meta), path.read_bytes(), path.stat()
    if change == "deleted":
        path.unlink()
    elif change == "broken":
        path.write_bytes(data[:200])
    else:
        path.unlink()
        path.symlink_to(path)
    without = build(meta)
    assert [entry.line for entry in without.ledger()] == [3, 7, 11, 15, 19]
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as rsync would
    again = build(meta)
    assert again.directory == before.directory and again.ledger() == []


def test_a_permission_that_is_given_later_is_noticed(build, tmp_path, monkeypatch):
    """It changes neither the size of an image nor the time of its content."""
    meta = tiny_mmpr.write_good(tmp_path)
    path, real = str(tmp_path / "images/2.png"), images.read_file

    def refuse(name):
        if name == path and not os.stat(path).st_mode & 0o400:
            raise ledger.BadRecord("image_unreadable", "permission denied")
        return real(name)

    monkeypatch.setattr(images, "read_file", refuse)
    os.chmod(path, 0)
    before = os.stat(path)
    assert len(build(meta)) == 50
    examined = count_examined(monkeypatch)
    assert len(build(meta)) == 50 and not examined  # not without a change
    os.chmod(path, 0o644)
    after = os.stat(path)
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert len(build(meta)) == 55


def test_a_new_time_without_a_change_leaves_the_index(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path)
    before = build(meta)
    os.utime(tmp_path / "images/0.png", (5, 5))
    assert build(meta).directory == before.directory
    monkeypatch.setattr(shards_lib, "visit", None)  # the new time is known by now
    assert build(meta).directory == before.directory


def test_an_edit_that_keeps_the_size_is_seen(build, tmp_path):
    """Anywhere in a file, also in what a sample of blocks would not read."""
    lines = [tiny_mmpr.pair(i, chosen="x" * 9000) for i in range(2500)]
    path = tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
    meta = tiny_mmpr.write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    assert path.stat().st_size > 20 << 20
    store = stores.LooseStore()
    (source,) = load_meta(meta)
    before, status = store.digest(source), path.stat()
    with open(path, "rb+") as file:
        file.seek(9_000_000)
        at = file.tell() + file.read(20_000).index(b"Question") + len("Question ")
        file.seek(at)
        assert file.read(1).isdigit()
        file.seek(at)
        file.write(b"9" if path.read_bytes()[at : at + 1] != b"9" else b"8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert store.digest(source) != before


def test_the_remedy_of_changed_files_works(build, tokenizer_path, tmp_path):
    """What the loader advises: start again, after touch where even the time is old."""
    meta = tiny_mmpr.write_good(tmp_path)
    built = build(meta)
    path = tmp_path / "images/0.png"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-20] ^= 1  # the same size, and in a moment the same time
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def load(built):
        loader = pipeline.ExampleLoader(built, str(tokenizer_path), tiny_mmpr.POLICY)
        return [loader(number) for number in range(len(built))]

    with pytest.raises(ValueError, match="start again: .* touched first"):
        load(built)
    path.touch()
    again = build(meta)
    assert len(load(again)) == len(again) < 55  # its checksum is wrong: left out


def builds_at_once(meta, out, tokenizer_path, count):
    code = (
        "import sys, tiny_mmpr\n"
        "from mpo_jax.mmpr import index\n"
        "built = index.build_index(sys.argv[1], sys.argv[2], workers=1,"
        " piece_bytes=400, tokenizer_path=sys.argv[3], policy=tiny_mmpr.POLICY)\n"
        "print(built.directory.name, built.content_hash)\n"
    )
    folder = pathlib.Path(tiny_mmpr.__file__).parent
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(meta), str(out), str(tokenizer_path)],
            env={**os.environ, "PYTHONPATH": f"{folder}:{folder.parent}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]


@pytest.mark.slow
def test_builds_at_once_give_one_index(build, tokenizer_path, tmp_path):
    """One of them is killed, which disturbs neither the others nor the next."""
    meta = tiny_mmpr.write_good(tmp_path)
    whole = build(meta, tmp_path / "whole")
    out = tmp_path / "out"
    first, *others = builds_at_once(meta, out, tokenizer_path, 3)
    while first.poll() is None and not list(out.glob("shards/*/*")):
        time.sleep(0.01)
    first.kill()
    first.communicate()
    for process in others:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert printed.split() == [whole.directory.name, whole.content_hash]
    assert_same(build(meta, out), whole)
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("moment", ["part", "merge", "rename"])
def test_another_build_at_any_moment(build, tmp_path, monkeypatch, moment):
    """A second build runs from start to end inside the first."""
    meta = tiny_mmpr.write_good(tmp_path)
    inside = []

    def other():
        if not inside:
            inside.append(None)
            inside.append(build(meta))

    if moment == "part":
        real = shards_lib.write_whole

        def write_whole(path, write):
            def slow(temporary):
                write(temporary)
                other()

            real(path, slow)

        monkeypatch.setattr(shards_lib, "write_whole", write_whole)
    else:
        name = "_merge_tables" if moment == "merge" else "_merge_ledgers"
        real = getattr(index_build, name)

        def merge(*args):
            other()
            return real(*args)

        monkeypatch.setattr(index_build, name, merge)
    built = build(meta)
    assert built.directory == inside[1].directory
    assert_same(built, inside[1])
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_images_that_change_between_visit_and_merge(build, tmp_path, monkeypatch):
    """Another build has seen the change and replaced the parts."""
    meta = tiny_mmpr.write_good(tmp_path)
    real, inside = index_build._merge_tables, []

    def merge(*args):
        if not inside:
            inside.append(None)
            (tmp_path / "images/1.png").unlink()
            inside.append(build(meta))
        return real(*args)

    monkeypatch.setattr(index_build, "_merge_tables", merge)
    built = build(meta)
    assert len(built) == 50 and built.directory == inside[1].directory


def test_an_index_that_was_taken_apart_is_made_again(build, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path)
    built = build(meta)
    (built.directory / "manifest.json").unlink()
    assert build(meta).directory == built.directory


def test_chosen_only_takes_records_without_a_rejected_side(build, tmp_path):
    line = tiny_mmpr.pair(1)
    del line["rejected"]
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", [line])
    meta = tiny_mmpr.write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    assert [entry.reason for entry in build(meta).ledger()] == ["bad_field"]
    policy = dataclasses.replace(tiny_mmpr.POLICY, chosen_only=True)
    built = build(meta, policy=policy)
    assert len(built) == 1
    assert built.rejected_tokens[0] == 0 and built.chosen_labels[0] > 0
    assert built.record(0).rejected == ""


def test_hash_frames_its_parts(tmp_path):
    first = tiny_mmpr.write_image(tmp_path / "1.png", seed=1)
    second = tiny_mmpr.write_image(tmp_path / "2.png", seed=2)

    def digest(question, chosen, rejected, *paths):
        paths = tuple(map(str, paths))
        record = PreferenceRecord("s", "f", 1, paths, question, chosen, rejected)
        return likeness.record_hash(record)

    assert digest("a", "b", "c") == digest("a", "b", "c")
    different = {
        digest("a", "b", "c"),
        digest("ab", "", "c"),
        digest("a", "bc", ""),
        digest("a", "b\0c", ""),
        digest("a", "b", "c", first),
        digest("a", "b", "c", second),
        digest("a", "b", "c", first, second),
        digest("a", "b", "c", second, first),
    }
    assert len(different) == 8


def test_effective_follows_repeat_time(build, tmp_path):
    built = build(tiny_mmpr.write_good(tmp_path))
    with pytest.warns(UserWarning, match="'multi': repeat_time 2.5 counts as 2"):
        numbers = index.effective(built, seed=1, epoch=0)
    assert numbers.dtype == np.int64
    np.testing.assert_array_equal(numbers[:20], np.arange(20))
    np.testing.assert_array_equal(numbers[20:30], np.tile(np.arange(20, 25), 2))
    sample = numbers[30:]
    assert len(sample) == 9 == len(np.unique(sample))  # int(30 * 0.3), no repeats
    assert sample.min() >= 25 and sample.max() < 55


@pytest.mark.filterwarnings("ignore:source 'multi'")
def test_effective_depends_on_seed_and_epoch_alone(build, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path)
    built = build(meta)
    first = index.effective(built, seed=1, epoch=0)
    np.testing.assert_array_equal(first, index.effective(built, seed=1, epoch=0))
    for seed, epoch in ((2, 0), (1, 1), (0, 1)):
        other = index.effective(built, seed=seed, epoch=epoch)
        assert not np.array_equal(first, other)
    # Another source before it moves the numbers, not the choice.
    entries = json.loads(meta.read_text())
    del entries["single"]
    tiny_mmpr.write_meta(tmp_path, entries)
    fewer = index.effective(build(meta), seed=1, epoch=0)
    np.testing.assert_array_equal(fewer, first[20:] - 20)


def test_pickle_carries_the_folder_and_threads_share_it(build, tmp_path):
    built = build(tiny_mmpr.write_good(tmp_path))
    built.record(0)
    data = pickle.dumps(built)
    assert len(data) < 1000
    copy = pickle.loads(data)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(copy.record, list(range(55)) * 20))
    assert read == [built.record(number) for number in range(55)] * 20
    copy.close()
    assert copy.record(3) == built.record(3)


def test_stale_and_foreign_files_are_named(build, tmp_path):
    built = build(tiny_mmpr.write_good(tmp_path))
    with open(tmp_path / "text.jsonl", "ab") as file:
        file.write(b"\n")
    assert built.record(0).line == 1
    with pytest.raises(ValueError, match="text.jsonl.*start again"):
        built.record(54)
    with pytest.raises(IndexError):
        built.record(55)
    with pytest.raises(FileNotFoundError, match="prepare_data.py"):
        index.load_index(tmp_path)
    manifest = built.directory / "manifest.json"
    manifest.write_text(json.dumps({"format": index_build.FORMAT + 1}))
    with pytest.raises(ValueError, match="format 3, this version reads 2"):
        index.load_index(built.directory)


def test_declared_length_is_compared(build, tmp_path, caplog):
    meta = tiny_mmpr.write_good(tmp_path)
    entries = json.loads(meta.read_text())
    entries["text"]["length"] = 31
    tiny_mmpr.write_meta(tmp_path, entries)
    with caplog.at_level("WARNING", logger="absl"):
        build(meta)
    assert "declares length 31" in caplog.text and "holds 30" in caplog.text


def test_unexpected_errors_name_the_record(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path)

    def fail(*args, **kwargs):
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(images, "tile_count", fail)
    with pytest.raises(RuntimeError, match=r"\.jsonl, record at position \d+.*boom"):
        build(meta)


def test_failing_file_system_stops_the_build(build, tmp_path, monkeypatch):
    meta = tiny_mmpr.write_good(tmp_path)

    def fail(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(images, "read_file", fail)
    with pytest.raises(OSError, match="Input/output error"):
        build(meta)


def test_empty_annotation(build, tmp_path):
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", [])
    meta = tiny_mmpr.write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    built = build(meta)
    assert len(built) == 0 and len(built.hash) == 0
    assert len(index.effective(built, seed=0, epoch=0)) == 0
    assert list(likeness.equal(built)) == []


def test_bad_arguments(build, tmp_path):
    meta = tiny_mmpr.write_good(tmp_path)
    with pytest.raises(ValueError, match="piece_bytes=0"):
        build(meta, piece_bytes=0)


@pytest.mark.slow
def test_three_million_rows_load_in_seconds(build, tmp_path):
    built = build(tiny_mmpr.write_good(tmp_path))
    rows = 3_000_000
    rng = np.random.default_rng(0)
    schema = pq.read_schema(built.directory / "index.parquet")
    data = {}
    for field in schema:
        if field.name == "hash":
            raw = rng.integers(0, 256, rows * 16, np.uint8)
            data["hash"] = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(16), rows, [None, pa.py_buffer(raw)]
            )
        elif field.name == "source":
            data["source"] = pa.array(np.sort(rng.integers(0, 3, rows, np.int32)))
        else:
            data[field.name] = pa.array(rng.integers(0, 5000, rows), pa.int64()).cast(
                field.type
            )
    pq.write_table(pa.table(data, schema=schema), built.directory / "index.parquet")
    manifest = json.loads((built.directory / "manifest.json").read_text())
    manifest["rows"] = rows
    (built.directory / "manifest.json").write_text(json.dumps(manifest))
    start = time.monotonic()
    loaded = index.load_index(built.directory)
    size = sum(column.nbytes for column in columns(loaded).values())
    assert all(len(column) == rows for column in columns(loaded).values())
    with pytest.warns(UserWarning):
        index.effective(loaded, seed=0, epoch=0)
    elapsed = time.monotonic() - start
    assert size == rows * 92
    assert elapsed < 20, elapsed  # about a second on a quiet core
    assert bytes(loaded.hash[12345]) == raw[12345 * 16 : 12346 * 16].tobytes()
    shutil.rmtree(tmp_path / "out")


def test_real_pairs(shared, tmp_path):
    folder = shared / "data"
    policy = examples.EncodePolicy(
        template="internlm2-chat",
        image_size=448,
        tokens_per_tile=256,
        min_tiles=1,
        max_tiles=6,
        use_thumbnail=True,
        max_image_pixels=10_000_000,
    )
    built = index.build_index(
        folder / "pref_mathv_real" / "meta.json",
        tmp_path,
        tokenizer_path=folder / "tokenizers" / "internvl2_2b",
        policy=policy,
        workers=1,
    )
    assert len(built) == 218 and built.ledger() == []
    assert set(built.images) == {1}
    assert built.tiles.min() >= 1 and built.tiles.max() <= 7
    assert (built.prompt_tokens > 256 * built.tiles).all()
    assert (built.chosen_labels == built.chosen_tokens).all()


def test_storage_that_is_away_is_waited_for(build, tokenizer_path, tmp_path, caplog):
    built = build(tiny_mmpr.write_good(tmp_path))
    loader = pipeline.ExampleLoader(
        built, str(tokenizer_path), tiny_mmpr.POLICY, patience_s=30
    )
    real, failed = built.fetch, []

    def fetch(number):
        if len(failed) < 2:
            failed.append(number)
            raise OSError(errno.EIO, "Input/output error", "pairs.jsonl")
        return real(number)

    built.fetch = fetch
    before = loader(3)
    assert failed == [3, 3] and built.where(3) in caplog.text
    built.fetch = real
    np.testing.assert_array_equal(before.prompt, loader(3).prompt)
