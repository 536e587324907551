"""The bounded folder of what was fetched: whole, shared, never more than allowed."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import threading

import memory_store
import pytest

from mpo_jax.utils import atomic, fetched, objects

KB = 1000


@pytest.fixture
def bucket():
    return memory_store.emptied()


@pytest.fixture
def cache(tmp_path) -> fetched.LocalCache:
    return fetched.LocalCache(str(tmp_path / "cache"), gb=100 * KB / 1e9)


def put(bucket, name: str, size: int, letter: bytes = b"x") -> str:
    bucket.pipe_file(f"/b/{name}", letter * size)
    return f"memory://b/{name}"


def held(cache, *addresses) -> fetched.Holding:
    return cache.hold({address: objects.stored(address) for address in addresses})


def kept(cache) -> int:
    """Bytes in the folder, beside its own small files."""
    found = 0
    with cache._book():  # so that nobody makes room now
        for path in cache.folder.glob("??/*"):
            if atomic.is_being_written(path.name):
                continue  # else it is counted twice, if it gets its name meanwhile
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                found += path.stat().st_size
    return found


def count_reads(monkeypatch) -> list[str]:
    calls: list[str] = []
    for name in ("fetch", "read"):
        real = getattr(objects, name)

        def counted(address, *rest, real=real):
            calls.append(address)
            return real(address, *rest)

        monkeypatch.setattr(objects, name, counted)
    return calls


def test_a_file_is_fetched_once_and_again_when_it_changed(bucket, cache, monkeypatch):
    calls = count_reads(monkeypatch)
    place = put(bucket, "a [1]*?#%.jsonl", 5 * KB)
    with_path = held(cache, place)
    assert pathlib.Path(with_path.path(place)).read_bytes() == b"x" * 5 * KB
    with_path.close()
    held(cache, place).close()
    assert calls == [place]
    put(bucket, "a [1]*?#%.jsonl", 5 * KB, b"y")
    again = held(cache, place)
    assert pathlib.Path(again.path(place)).read_bytes() == b"y" * 5 * KB
    assert calls == [place] * 2


def test_the_bound_removes_what_is_used_least_but_nothing_in_use(bucket, cache):
    names = [put(bucket, str(number), 30 * KB) for number in range(5)]
    first = held(cache, names[0])
    for number, name in enumerate(names[1:3]):
        path = held(cache, name).path(name)
        os.utime(path, (number, number))
    paths = {
        name: cache.folder / cache._name(name, objects.stored(name)) for name in names
    }
    os.utime(paths[names[0]], (0, 0))  # the oldest, but in use
    held(cache, names[3]).close()
    there = [paths[name].is_file() for name in names]
    assert there == [True, False, True, True, False]
    assert kept(cache) <= cache.limit
    # What a holder has is refused to nobody who holds it too, and room is counted.
    second = held(cache, names[2], names[3])
    with pytest.raises(
        fetched.NoRoomError, match=r"memory://b/4: 30000 bytes.*90000 b"
    ):
        held(cache, names[4])
    second.close()
    held(cache, names[4]).close()
    assert pathlib.Path(first.path(names[0])).is_file()


def test_what_is_larger_than_the_bound_is_said_before_it_is_fetched(
    bucket, cache, monkeypatch
):
    calls = count_reads(monkeypatch)
    names = [put(bucket, f"shard-{number}", 40 * KB) for number in range(3)]
    with pytest.raises(
        fetched.NoRoomError,
        match=r"3 files of memory://b/shard-0.*120000 bytes.*data.local_cache_gb.*"
        r"raise.*mount the bucket.*copy the files",
    ):
        held(cache, *names)
    assert not calls
    with pytest.raises(ValueError, match="data.local_cache=gs://b/c"):
        fetched.LocalCache("gs://b/c")


def test_a_full_disk_is_told_with_the_field(bucket, cache, monkeypatch):
    place = put(bucket, "a", 10 * KB)

    class Usage:
        free = 9 * KB

    monkeypatch.setattr(fetched.shutil, "disk_usage", lambda folder: Usage)
    with pytest.raises(fetched.NoRoomError, match=r"9000 free.*data\.local_cache_gb"):
        held(cache, place)
    Usage.free = 10**9

    def full(address, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(objects, "fetch", full)
    with pytest.raises(fetched.NoRoomError, match=r"make room.*data\.local_cache"):
        held(cache, place)
    assert not list(cache.folder.glob("??/*"))


def test_an_object_that_is_replaced_meanwhile_is_not_kept(bucket, cache, monkeypatch):
    place = put(bucket, "a", 100)
    stored, real = objects.stored(place), objects.fetch

    def late(address, file):
        put(bucket, "a", 100, b"y")
        real(address, file)

    monkeypatch.setattr(objects, "fetch", late)
    with pytest.raises(ValueError, match="memory://b/a was replaced while"):
        cache.hold({place: stored})
    assert not kept(cache)


def test_small_files_are_kept_and_checked(bucket, cache, monkeypatch):
    calls = count_reads(monkeypatch)
    place = put(bucket, "a.png", 10 * KB)
    stored = objects.stored(place)
    for _ in range(3):
        assert cache.read(place, stored) == b"x" * 10 * KB
    assert len(calls) == 1
    path = cache.folder / cache._name(place, stored)
    whole = path.read_bytes()
    for damaged in (b"\0" * len(whole), whole[:-1], b"z" + whole[1:], b""):
        path.write_bytes(damaged)  # as after a power cut
        assert cache.read(place, stored) == b"x" * 10 * KB
    assert len(calls) == 5
    # Ten of them go round in the room for nine; the bound holds all the while.
    names = [put(bucket, f"{number}.png", 10 * KB) for number in range(12)]
    for name in names:
        cache.read(name, objects.stored(name))
        assert kept(cache) <= cache.limit
    assert kept(cache) > cache.limit // 2
    big = put(bucket, "big.png", 101 * KB)
    assert len(cache.read(big, objects.stored(big))) == 101 * KB
    assert kept(cache) <= cache.limit
    put(bucket, "a.png", 7)
    assert cache.read(place, stored) == b"x" * 7  # not kept under the old name
    assert cache.read(place, objects.stored(place)) == b"x" * 7


def test_many_threads_stay_within_the_bound(bucket, cache):
    names = [put(bucket, str(number), 9 * KB) for number in range(40)]
    stored = {name: objects.stored(name) for name in names}
    wrong = []

    def work(seed: int) -> None:
        for step in range(40):
            name = names[(seed * 7 + step * 11) % len(names)]
            if cache.read(name, stored[name]) != b"x" * 9 * KB:
                wrong.append(name)
            if kept(cache) > cache.limit:
                wrong.append("bound")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


HOLD = """
import sys, time
from mpo_jax.utils import fetched, remote
cache = fetched.LocalCache(sys.argv[1], gb=100e3 / 1e9)
holding = fetched.Holding(cache, {"memory://b/0": sys.argv[2]})
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_what_another_process_holds_stays_until_it_is_dead(bucket, cache, root):
    names = [put(bucket, str(number), 60 * KB) for number in range(2)]
    held(cache, names[0]).close()
    name = cache._name(names[0], objects.stored(names[0]))
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(cache.folder), name],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    try:
        with pytest.raises(fetched.NoRoomError, match="in use by running programs"):
            held(cache, names[1])
        assert (cache.folder / name).is_file()
    finally:
        process.kill()
        process.wait()
    held(cache, names[1])
    assert not (cache.folder / name).is_file()
