"""A data set in a store is the data set on disk: index, ledger, records, changes."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle

import memory_store
import numpy as np
import pytest
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.inputs import images
from mpo_jax.mmpr import image_objects, image_paths, listings, meta, shard_writer, store
from mpo_jax.packing import pipeline
from mpo_jax.utils import fetched, objects

AT = "memory://bucket/MMPR"
ODD = "a [1]*?#2%20 ü.png"


@pytest.fixture
def bucket():
    return memory_store.emptied()


@pytest.fixture
def cache(tmp_path) -> fetched.LocalCache:
    return fetched.LocalCache(str(tmp_path / "cache"), gb=1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_mmpr.write_tokenizer(tmp_path_factory.mktemp("t") / "tokenizer")


@pytest.fixture
def build(tokenizer, tmp_path, cache):
    def call(meta, out="out", **options):
        options = {"cache": cache, **options}
        return tiny_mmpr.build_index(meta, tmp_path / out, tokenizer, **options)

    return call


def asked(monkeypatch) -> list[tuple[str, str]]:
    """What is asked of the store from here on."""
    calls: list[tuple[str, str]] = []
    for name in ("stored", "listed", "holds", "read", "fetch"):
        real = getattr(objects, name)

        def counted(address, *rest, name=name, real=real):
            calls.append((name, address))
            return real(address, *rest)

        monkeypatch.setattr(objects, name, counted)
    return calls


def test_good_records(bucket, build, tmp_path):
    local = tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    here, there = build(local), build(f"{AT}/meta.json")
    assert there.content_hash == here.content_hash and len(there) == 55
    assert not there.ledger()
    for number in (0, 3, 22, 54):
        ours, read = there.fetch(number)
        theirs, read_here = here.fetch(number)
        assert [read(path) for path in ours.images] == [
            read_here(path) for path in theirs.images
        ]
        assert (ours.question, ours.line) == (theirs.question, theirs.line)
    assert there.where(0) == f"{AT}/single.jsonl, line 1"
    assert there.record(0).images == (f"{AT}/images/0.png",)
    again = pickle.loads(pickle.dumps(there))
    record, read = again.fetch(20)
    assert read(record.images[1]) == (tmp_path / "MMPR/images/3.png").read_bytes()
    assert again.store._cache == there.store._cache


def test_the_ledger_is_that_of_the_files(bucket, build, tmp_path):
    local, expected = tiny_mmpr.write_broken(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    here, there = build(local), build(f"{AT}/meta.json")
    assert there.content_hash == here.content_hash
    assert [(entry.line, entry.reason) for entry in there.ledger()] == expected

    def shown(entry: ledger.Entry) -> ledger.Entry:
        moved = {
            name: getattr(entry, name).replace(str(tmp_path / "MMPR"), AT)
            for name in ("file", "detail")
        }
        return dataclasses.replace(entry, **moved)

    missing = "image_missing"
    ours = [entry for entry in there.ledger() if entry.reason != missing]
    assert ours == [shown(e) for e in here.ledger() if e.reason != missing]
    details = [e.detail for e in there.ledger() if e.reason == missing]
    assert "no object 'none.png' in 'memory://bucket/MMPR/images'" in details[0]
    assert "is not a file below the root 'memory://bucket/MMPR/images'" in details[1]


def test_a_start_lists_folders_and_asks_for_no_image(
    bucket, build, tmp_path, monkeypatch
):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    calls = asked(monkeypatch)
    first = build(f"{AT}/meta.json")
    assert calls.count(("listed", f"{AT}/images")) == 1
    assert sorted(calls.count(("read", f"{AT}/images/{n}.png")) for n in range(4)) == [
        *(1, 1, 1, 1)
    ]
    assert [name for name, _ in calls].count("fetch") == 3
    calls.clear()
    assert build(f"{AT}/meta.json").directory == first.directory
    assert {
        call for call in calls if "images/" in call[1] or call[0] == "fetch"
    } == set()
    # Records are read from what is kept here; the index knows the images' versions.
    calls.clear()
    for number in range(25):
        record, read = first.fetch(number)
        for path in record.images:
            read(path)
    assert {
        call for call in calls if "images" in call[1] or call[0] == "fetch"
    } == set()


def test_images_that_change_come_and_go_are_noticed(
    bucket, build, tmp_path, monkeypatch
):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    before = build(f"{AT}/meta.json")
    other = tiny_mmpr.write_image(tmp_path / "new.png", 40, seed=9).read_bytes()
    old = (tmp_path / "MMPR/images/0.png").read_bytes()
    calls, real, seen = asked(monkeypatch), image_objects.read, []

    def read_image(address, *rest):
        seen.append(address)
        return real(address, *rest)

    monkeypatch.setattr(image_objects, "read", read_image)
    bucket.pipe_file("/bucket/MMPR/images/0.png", other)
    changed = build(f"{AT}/meta.json")
    # Not even from what is kept: `multi` has 0 and 3 in one record.
    assert set(seen) == {f"{AT}/images/0.png", f"{AT}/images/3.png"}
    assert changed.content_hash != before.content_hash and len(changed) == 55
    assert [c for c in calls if c[0] == "read" and "images/" in c[1]] == [
        ("read", f"{AT}/images/0.png")  # no other is fetched again
    ]
    record, read = changed.fetch(0)
    assert read(record.images[0]) == other
    bucket.rm_file("/bucket/MMPR/images/0.png")
    gone = build(f"{AT}/meta.json")
    assert len(gone) == 45 and {e.reason for e in gone.ledger()} == {"image_missing"}
    bucket.pipe_file("/bucket/MMPR/images/0.png", old)
    back = build(f"{AT}/meta.json")
    assert back.directory == before.directory


def test_an_edited_annotation_is_indexed_again(bucket, build, tmp_path):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    before = build(f"{AT}/meta.json")
    path = "/bucket/MMPR/text.jsonl"
    bucket.pipe_file(
        path, bucket.cat_file(path).replace(b"answer is 7", b"answer is 9")
    )
    after = build(f"{AT}/meta.json")
    assert after.content_hash != before.content_hash
    bucket.pipe_file(path, b"")
    with pytest.raises(ValueError, match=r"text.jsonl has 0 bytes but had \d+ when"):
        after.record(len(after) - 1)
    bucket.rm_file(path)
    after.close()
    with pytest.raises(FileNotFoundError, match="text.jsonl does not exist any more"):
        after.record(len(after) - 1)
    with pytest.raises(FileNotFoundError, match="text.jsonl' does not exist; upload"):
        build(f"{AT}/meta.json")


def test_names_are_no_patterns(bucket, build, tmp_path):
    root = tmp_path / "MMPR"
    for name in (ODD, "a 1.png", "sub [x]/a%23.png", "sub x/a%23.png"):
        tiny_mmpr.write_image(root / "i" / name, seed=len(name))
    lines = [
        tiny_mmpr.pair(n, image=i) for n, i in enumerate([ODD, "sub [x]/a%23.png"])
    ]
    tiny_mmpr.write_lines(root / "x [y]#*?.jsonl", lines)
    entries = {"s": {"root": "i", "annotation": "x [y]#*?.jsonl"}}
    local = tiny_mmpr.write_meta(root, entries)
    memory_store.upload(root, AT)
    assert build(f"{AT}/meta.json").content_hash == build(local).content_hash


def test_released_paths_and_rules(bucket, build, tmp_path):
    """The parent's name, addresses in a local meta.json, reroot on either side."""
    folder = tmp_path / "MMPR"
    local = build(tiny_mmpr.write_good(folder))
    memory_store.upload(folder, AT)
    entries = json.loads((folder / "meta.json").read_text())

    def moved(prefix: str) -> dict:
        return {
            name: {
                **entry,
                "root": f"{prefix}{entry['root']}".rstrip("."),
                "annotation": prefix + entry["annotation"],
            }
            for name, entry in entries.items()
        }

    bucket.pipe_file("/bucket/MMPR/released.json", json.dumps(moved("MMPR/")).encode())
    for place, reroot in (
        (f"{AT}/released.json", ""),
        (moved(f"{AT}/"), ""),
        (moved("s3://other/MMPR/"), f"s3://other/MMPR={AT}"),
        (moved("/mnt/cluster/"), f"/mnt/cluster={AT}"),
        (moved(f"{AT}/none/"), f"{AT}/none={folder}"),
    ):
        if isinstance(place, dict):
            (tmp_path / "other.json").write_text(json.dumps(place))
            place = tmp_path / "other.json"
        built = build(place, reroot=reroot)
        assert built.content_hash == local.content_hash, place
    bucket.pipe_file("/bucket/MMPR/far.json", json.dumps(moved("s3://o/x/")).encode())
    assert len(build(f"{AT}/far.json", reroot="s3://o/x=.")) == len(local)
    with pytest.raises(ValueError, match="reroot '/nowhere=.'.*begins with"):
        build(f"{AT}/meta.json", reroot="/nowhere=.")


@pytest.mark.parametrize(
    "entry, problem",
    [
        ({"root": "https://h/x"}, "root 'https://h/x' is a URL; copy or mount"),
        ({"annotation": "http://h/a.jsonl"}, "annotation 'http.*is a URL; copy or mo"),
        ({"root": "s3://b/x"}, r"URL that cannot be read here.*s3fs.*reroot"),
        ({"annotation": "../../../a.jsonl"}, "'memory://bucket/a.jsonl' does not ex"),
        ({"annotation": "none.jsonl"}, "'memory://bucket/MMPR/none.jsonl' does not"),
    ],
)
def test_what_is_no_place(bucket, tmp_path, entry, problem):
    memory_store.upload(tmp_path, AT)
    entries = {"s": {"root": ".", "annotation": "a.jsonl", **entry}}
    bucket.pipe_file("/bucket/MMPR/a.jsonl", b"{}\n")
    bucket.pipe_file("/bucket/MMPR/meta.json", json.dumps(entries).encode())
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        meta.load_meta(f"{AT}/meta.json")


def test_what_is_no_meta_json(bucket, tmp_path):
    bucket.pipe_file("/bucket/MMPR/meta.json", b"{" * (meta.MAX_META_BYTES + 1))
    with pytest.raises(ValueError, match="has 16777217 bytes, more than any meta.json"):
        meta.load_meta(f"{AT}/meta.json")
    with pytest.raises(FileNotFoundError, match="meta file 'memory://bucket/no.json'"):
        store.open_data("memory://bucket/no.json")
    with pytest.raises(FileNotFoundError, match=f"--meta={AT}/meta.json"):
        store.open_data(AT)


SOURCE = meta.Source("s", f"{AT}/images", f"{AT}/a.jsonl")


@pytest.mark.parametrize(
    "name, found",
    [
        ("a/b.png", f"{AT}/images/a/b.png"),
        ("./a/../b.png", f"{AT}/images/b.png"),
        (f"{AT}/images/c.png", f"{AT}/images/c.png"),
        ("../b.png", "image_missing"),
        ("a/../../b.png", "image_missing"),
        ("/etc/passwd", "image_missing"),
        (f"{AT}/images/../b.png", "bad_field"),
        ("gs://other/b.png", "bad_field"),
        ("https://h/b.png", "bad_field"),
        ("file:///etc/passwd", "bad_field"),
    ],
)
def test_images_lie_below_the_root(name, found):
    try:
        (place,) = image_paths.resolve(name, SOURCE)
    except ledger.BadRecord as bad:
        place = bad.reason
    assert place == found


def test_images_anywhere(bucket, build, tmp_path):
    """With the root "" an image may have an address of its own, or a path here."""
    image = tiny_mmpr.write_image(tmp_path / "i.png")
    bucket.pipe_file("/other/i.png", image.read_bytes())
    lines = [tiny_mmpr.pair(n, image=i) for n, i in enumerate(
        ["memory://other/i.png", str(image), "memory://other/none.png"]
    )]  # fmt: skip
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
    place = tiny_mmpr.write_meta(tmp_path, {"s": {"root": "", "annotation": "a.jsonl"}})
    built = build(place)
    assert [(e.line, e.reason) for e in built.ledger()] == [(3, "image_missing")]
    assert len(built) == 2


def test_an_image_that_is_too_large_is_not_read(bucket, build, tmp_path, monkeypatch):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    size = (tmp_path / "MMPR/images/3.png").stat().st_size
    monkeypatch.setattr(images, "MAX_FILE_BYTES", size - 1)
    calls = asked(monkeypatch)
    built = build(f"{AT}/meta.json")
    assert {e.reason for e in built.ledger()} == {"image_too_large"}
    assert f"has {size} bytes, the limit is {size - 1}" in built.ledger()[0].detail
    assert ("read", f"{AT}/images/3.png") not in calls


def test_a_small_bound_changes_nothing_but_the_requests(
    bucket, build, tmp_path, monkeypatch
):
    local = build(tiny_mmpr.write_good(tmp_path / "MMPR"))
    memory_store.upload(tmp_path / "MMPR", AT)
    sizes = [path.stat().st_size for path in (tmp_path / "MMPR").glob("*.jsonl")]
    tight = fetched.LocalCache(str(tmp_path / "tight"), gb=(sum(sizes) + 30_000) / 1e9)
    built = build(f"{AT}/meta.json", out="tight_out", cache=tight)
    assert built.content_hash == local.content_hash
    tiny = fetched.LocalCache(str(tmp_path / "tiny"), gb=(max(sizes) - 1) / 1e9)
    with pytest.raises(ValueError, match=r"jsonl: \d+ bytes.*data.local_cache_gb"):
        build(f"{AT}/meta.json", out="tiny_out", cache=tiny)


def test_storage_that_is_away_is_no_fault_of_a_record(
    bucket, build, tokenizer, tmp_path, monkeypatch
):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    real = objects.read

    def away(address, *rest):
        if address.endswith("2.png"):
            raise ConnectionError(f"{address}: away")
        return real(address, *rest)

    monkeypatch.setattr(objects, "read", away)
    with pytest.raises(ConnectionError, match="2.png: away"):
        build(f"{AT}/meta.json")
    monkeypatch.undo()
    built = build(f"{AT}/meta.json")
    assert len(built) == 55
    # While training it is tried again, and no record is blamed.
    real_image, tries = image_objects.read, []

    def away_once(address, *rest):
        tries.append(address)
        if len(tries) == 1:
            raise ConnectionError(f"{address}: away")
        return real_image(address, *rest)

    monkeypatch.setattr(image_objects, "read", away_once)
    load = pipeline.ExampleLoader(
        built, str(tokenizer), tiny_mmpr.POLICY, patience_s=30
    )
    assert load(0).num_tiles > 0 and len(tries) == 2


def test_shards_at_an_address(bucket, build, tmp_path, cache, monkeypatch):
    local = tiny_mmpr.write_good(tmp_path / "MMPR")
    loose = build(local)
    shard_writer.write_shards(local, tmp_path / "shards", num_shards=2)
    at = "memory://bucket/shards"
    memory_store.upload(tmp_path / "shards", at)
    calls = asked(monkeypatch)
    built = build(at)
    assert built.content_hash == loose.content_hash
    assert build(f"{at}/meta.json").directory == built.directory
    fetches = [address for name, address in calls if name == "fetch"]
    assert len(fetches) == len(set(fetches)) == 4
    crossed = pickle.loads(pickle.dumps(built))
    record, read = crossed.fetch(0)
    assert read(record.images[0]) == (tmp_path / "MMPR/images/0.png").read_bytes()
    assert shard_writer.verify(at, cache=cache) == 4
    size = sum(p.stat().st_size for p in (tmp_path / "shards/mmpr").rglob("*-of-*"))
    small = fetched.LocalCache(str(tmp_path / "small"), gb=(size - 1) / 1e9)
    calls.clear()
    with pytest.raises(
        ValueError, match=rf"4 files .*{size} bytes.*raise.*mount.*copy"
    ):
        build(at, cache=small)
    assert "fetch" not in [name for name, _ in calls]
    path = fetches[0].removeprefix("memory:/")
    content = bucket.cat_file(path)
    bucket.pipe_file(path, content[:-1])
    with pytest.raises(
        ValueError, match=r"shard memory://bucket/shards/mmpr.* has \d+"
    ):
        build(at)
    bucket.pipe_file(path, bytes(len(content)))
    with pytest.raises(
        ValueError, match="shard memory.* is not the one that was writt"
    ):
        build(at)
    bucket.rm_file(path)
    with pytest.raises(ValueError, match="shard memory://bucket.* is missing"):
        build(at)


def test_shards_are_written_from_an_address(bucket, tmp_path, cache, build):
    local = tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    notes = []

    def write():
        return shard_writer.write_shards(
            f"{AT}/meta.json", tmp_path / "shards", cache=cache, progress=notes.append
        )

    made = write()
    assert build(made.directory).content_hash == build(local).content_hash
    assert write().fingerprint == made.fingerprint
    assert not [note for note in notes if "anew" in note]
    new = tiny_mmpr.write_image(tmp_path / "n.png", seed=7).read_bytes()
    bucket.pipe_file("/bucket/MMPR/images/0.png", new)
    assert write().fingerprint != made.fingerprint
    assert [note for note in notes if "1 images are not those" in note]
    assert not [p for p in tmp_path.iterdir() if "listings" in p.name]


def test_listings(bucket, tmp_path, monkeypatch):
    bucket.makedirs("/b/empty", exist_ok=True)
    for number in range(50):
        bucket.pipe_file(f"/b/x/{number}.png", b"1" * (number + 1))
    calls = asked(monkeypatch)
    found = listings.Listings(str(tmp_path))
    states = found.look_at([f"memory://b/x/{n}.png" for n in (7, 0, 99, 49)])
    assert states[:, 0].tolist() == [8, 1, -1, 50]
    assert (states[:, 1] == states[:, 2]).all() and len(set(states[:, 1])) == 4
    assert (
        found.look_at(["memory://b/empty/x", "memory://none/y"]).tolist()
        == [[-1] * 3] * 2
    )
    assert found.look_at([]).shape == (0, 3)
    other = pickle.loads(pickle.dumps(found))  # as in a worker process
    np.testing.assert_array_equal(other.look_at(["memory://b/x/7.png"])[0], states[0])
    assert len(calls) == 3 and {name for name, _ in calls} == {"listed"}
    closed = listings.Listings(str(tmp_path), closed=True)
    assert closed.knows("memory://b/x/1.png") and not closed.knows("memory://b/z/1.png")
    known = closed.stored("memory://b/x/1.png")
    assert known is not None and known.size == 2
    assert closed.stored("memory://b/z/1.png") is None and len(calls) == 3


def test_nothing_is_left_behind(bucket, build, tmp_path):
    tiny_mmpr.write_good(tmp_path / "MMPR")
    memory_store.upload(tmp_path / "MMPR", AT)
    built = build(f"{AT}/meta.json")
    built.record(0)
    built.close()
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert not [name for name in names if "listings" in name or name.endswith(".tmp")]
    assert not os.listdir(tmp_path / "cache/claims")
