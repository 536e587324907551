"""Manifests: what they hold, how processes share the work, stores of objects."""

from __future__ import annotations

import base64
import hashlib
import json
import pathlib
import shutil
import uuid

import checkpoint_files as made
import fsspec
import numpy as np
import pytest

from mpo_jax import checkpoint
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import manifest, reading, saving, verifying
from mpo_jax.utils import remote

MINE = {
    "_CHECKPOINT_METADATA": b"{}",
    "params/_METADATA": b'{"a": 1}',
    "params/array_metadatas/process_0": b"of 0",
    "params/array_metadatas/process_1": b"of 1",
    "params/ocdbt.process_0/d/aa": bytes(range(200)),
    "params/ocdbt.process_1/d/bb": bytes(300),
    "params/ocdbt.process_11/manifest.ocdbt": b"of 11",
    "opt_state/d/cc": b"c" * 50,
    "opt_state/empty": b"",
}


@pytest.fixture
def local(tmp_path) -> files_lib.Local:
    for name, content in MINE.items():
        path = tmp_path / "40" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files_lib.Local(tmp_path / "40")


class SelfChecking(files_lib.Remote):
    """A store in memory that keeps a checksum of its own, as Google's does."""

    def listed(self):
        found = super().listed()
        return {
            name: remote.Stored(
                stored.size,
                {"crc32c": str(hash(self._folder.read(name)) if stored.size else 0)},
                stored.version,
            )
            for name, stored in found.items()
        }

    def digest(self, name, make=None):
        raise AssertionError("a store's own checksum needs no reading")


@pytest.fixture(params=["plain", "self_checking"])
def bucket(request):
    address = f"memory://{uuid.uuid4()}/checkpoints/40"
    for name, content in MINE.items():
        fsspec.filesystem("memory").pipe_file(f"{address}/{name}", content)
    kind = files_lib.Remote if request.param == "plain" else SelfChecking
    return kind(address)


def problems(files, **kwargs) -> list[str]:
    listing = files.listed()
    found = manifest.read(files, listing)
    assert not found.missing
    return found.problems + manifest.compare(
        files, listing, found, found.files, **kwargs
    )


def test_one_process_lists_all(local):
    manifest.write(local, step=40, part=0, parts=1)
    found = manifest.read(local, local.listed())
    assert found.step == 40 and not found.missing and not found.problems
    assert {n: e["size"] for n, e in found.files.items()} == {
        name: len(content) for name, content in MINE.items()
    }
    assert problems(local) == []
    # As b2sum -l 256 writes it.
    assert found.files["params/array_metadatas/process_0"]["blake2b"] == (
        hashlib.blake2b(b"of 0", digest_size=32).hexdigest()
    )


def test_each_process_lists_what_it_wrote(local):
    for part in (1, 0):
        manifest.write(local, step=40, part=part, parts=2)
    bodies = [
        json.loads((local.directory / manifest.name_of(part, 2)).read_bytes())
        for part in range(2)
    ]
    names = [set(body["manifest"]["files"]) for body in bodies]
    assert names[1] == {
        "params/array_metadatas/process_1",
        "params/ocdbt.process_1/d/bb",
        "params/ocdbt.process_11/manifest.ocdbt",  # of another run's many processes
    }
    assert names[0] | names[1] == set(MINE) and not names[0] & names[1]
    assert problems(local) == []


@pytest.mark.parametrize("parts", [1, 2, 3, 40])
def test_processes_compare_every_file_once(local, parts):
    manifest.write(local, step=40, part=0, parts=1)
    found = manifest.read(local, local.listed())
    shares = [
        manifest.share(found, within="", part=part, parts=parts)
        for part in range(parts)
    ]
    assert sorted(sum(shares, [])) == sorted(MINE)
    loads = [sum(len(MINE[name]) for name in share) for share in shares]
    assert max(loads) <= max(300, sum(loads) / parts + 200)
    within = manifest.share(found, within="params/", part=0, parts=1)
    assert set(within) == {n for n in MINE if not n.startswith("opt_state")}


def test_a_manifest_that_is_not_there_is_counted(local):
    manifest.write(local, step=40, part=0, parts=3)
    manifest.write(local, step=40, part=2, parts=3)
    found = manifest.read(local, local.listed())
    assert found.missing == "1 of its 3 manifests are missing" and not found.problems
    for part in (0, 2):
        (local.directory / manifest.name_of(part, 3)).unlink()
    assert manifest.read(local, local.listed()).missing == "it has no manifest"


def test_a_partial_manifest_still_compares_what_it_lists(tmp_path):
    made.save(tmp_path, 40)
    step = tmp_path / "checkpoints" / "40"
    made.drop_manifests(step)
    manifest.write(files_lib.Local(step), step=40, part=0, parts=2)
    verdict = verifying.of(step, step=40)
    assert not verdict.problems and "1 of its 2 manifests are" in verdict.unverified
    path = made.data_file(step)
    path.write_bytes(path.read_bytes()[:-1])
    assert path.name in str(verifying.of(step, step=40))


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b"",
        lambda raw: raw[:-1],
        lambda raw: raw + b" ",
        lambda raw: raw.replace(b'"size":200', b'"size":201'),
        lambda raw: b"[" * 100_000,
        lambda raw: b"[]",
        lambda raw: b'{"manifest":{}}',
    ],
)
def test_a_changed_manifest_is_no_manifest(local, change):
    manifest.write(local, step=40, part=0, parts=1)
    path = local.directory / manifest.name_of(0, 1)
    path.write_bytes(change(path.read_bytes()))
    found = manifest.read(local, local.listed())
    assert found.problems == [f"{path.name}: damaged, it is not as it was written"]


def test_manifests_of_two_saves_are_refused(local):
    manifest.write(local, step=40, part=0, parts=2)
    manifest.write(local, step=50, part=1, parts=2)
    (problem,) = manifest.read(local, local.listed()).problems
    assert "manifests of different saves" in problem


def test_a_renamed_manifest_is_refused(local):
    manifest.write(local, step=40, part=0, parts=2)
    path = local.directory / manifest.name_of(0, 2)
    path.rename(local.directory / manifest.name_of(1, 2))
    (problem,) = manifest.read(local, local.listed()).problems
    assert "mpo-manifest-1-of-2.json: damaged" in problem


def test_a_file_more_does_no_harm(local):
    manifest.write(local, step=40, part=0, parts=1)
    (local.directory / ".nfs0001").write_bytes(b"x")
    assert problems(local) == []


def test_sizes_alone_need_no_reading(local, monkeypatch):
    manifest.write(local, step=40, part=0, parts=1)
    monkeypatch.setattr(files_lib.Local, "digest", None)
    assert problems(local, contents=False) == []
    (local.directory / "opt_state/d/cc").write_bytes(b"")
    (told,) = problems(local, contents=False)
    assert told == "opt_state/d/cc: 0 bytes, 50 were written"


# Stores of objects.


def test_objects_are_compared(bucket):
    manifest.write(bucket, step=40, part=0, parts=1)
    assert problems(bucket) == []
    bucket._folder.write("params/ocdbt.process_0/d/aa", bytes(200))
    (told,) = problems(bucket)
    assert told.startswith("params/ocdbt.process_0/d/aa: another content")
    bucket._folder.write("params/_METADATA", b"")
    bucket._folder.delete("opt_state/d/cc")
    assert len(problems(bucket)) == 3


def test_objects_are_moved_and_none_lost(bucket):
    bucket.move(bucket._folder.address.replace("checkpoints/40", "aside/damaged_40_1"))
    assert bucket.listed() == {}
    moved = remote.Folder(bucket._folder.address.split("/checkpoints")[0])
    names = {n.removeprefix("aside/damaged_40_1/") for n in moved.tree()}
    assert names == set(MINE)


def test_a_bucket_that_was_copied_to_a_disk(local):
    """Google's md5 is compared; where only a crc32c was kept, the size must do."""
    manifest.write(local, step=40, part=0, parts=1)
    found = manifest.read(local, local.listed())
    md5 = {
        name: base64.b64encode(hashlib.md5(content).digest()).decode()
        for name, content in MINE.items()
    }
    for kinds in ({"md5Hash": True}, {"crc32c": True}):
        entries = {
            name: {"size": len(MINE[name])}
            | ({"md5Hash": md5[name]} if "md5Hash" in kinds else {"crc32c": "abc="})
            for name in MINE
        }
        listing = local.listed()
        assert manifest.compare(local, listing, _with(found, entries), MINE) == []
        entries["opt_state/d/cc"]["size"] = 49
        assert manifest.compare(local, listing, _with(found, entries), MINE) == [
            "opt_state/d/cc: 50 bytes, 49 were written"
        ]
    entries = {"opt_state/d/cc": {"size": 50, "md5Hash": md5["opt_state/empty"]}}
    assert manifest.compare(local, local.listed(), _with(found, entries), entries) == [
        "opt_state/d/cc: another content (checksum)"
    ]


def _with(found, entries) -> manifest.Manifest:
    return manifest.Manifest(found.step, "", entries, [], "")


def test_an_address_is_none_of_pathlib():
    assert isinstance(files_lib.of("memory://b/40"), files_lib.Remote)
    assert isinstance(files_lib.of(pathlib.Path("/b/40")), files_lib.Local)


# Without a manifest: what must be there, and what can be read.


def test_every_array_is_read(tmp_path, monkeypatch):
    made.save(tmp_path, 40)
    step = tmp_path / "checkpoints" / "40"
    files = files_lib.of(step)
    read = []
    original = reading._read
    monkeypatch.setattr(
        reading,
        "_read",
        lambda d, item, path, **k: (
            read.append(f"{item}/{path}") or original(d, item, path, **k)
        ),
    )
    for part in range(2):
        arguments = {"part": part, "parts": 2}
        assert reading.arrays(step, files, files.listed(), **arguments) == []
    assert sorted(read) == [
        "loop/step",
        "opt_state/mu.vision.w",
        "params/head",
        "params/vision.w",
    ]


def test_arrays_of_numpy_and_odd_shapes_are_read_too(tmp_path):
    tree = {
        "a": np.random.default_rng(0).normal(size=(700, 3)),
        "none": None,
        "empty": {},
        "scalar": 3.5,
        "tuple": (1, np.zeros((1, 4))),
    }
    run = made.opened(tmp_path)
    run.save(40, {"params": tree}, meta={})
    run.close()
    step = tmp_path / "checkpoints" / "40"
    made.drop_manifests(step)
    assert not verifying.of(step, step=40).problems
    path = made.data_file(step)
    path.write_bytes(path.read_bytes()[:5000])
    (told,) = verifying.of(step, step=40).problems
    assert told.startswith("params/a: cannot be read (")


def test_a_checkpoint_that_does_not_come_into_sight(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_VISIBLE_S", -1)
    with pytest.raises(FileNotFoundError, match="that all hosts share"):
        saving.write_manifest(tmp_path / "40", 40)


def test_a_checkpoint_that_is_deleted_meanwhile(tmp_path):
    """A run that goes on drops old checkpoints while another program reads."""
    made.save(tmp_path, 40)
    step = tmp_path / "checkpoints" / "40"
    files = files_lib.of(step)
    listing = files.listed()
    found = manifest.read(files, listing)
    shutil.rmtree(step)
    told = manifest.compare(files, listing, found, found.files)
    assert len(told) == len(found.files) and all("missing" in line for line in told)
    assert checkpoint.params_directory(tmp_path) is None


def test_what_another_process_is_writing_is_not_there_yet(tmp_path):
    """In a manifest it would be missing ever after, and the checkpoint damaged."""
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "array").write_bytes(b"weights")
    (tmp_path / "mpo-manifest-1-of-2.json.0123456789ab.tmp").write_bytes(b"{}")
    files = files_lib.of(tmp_path)
    assert set(files.listed()) == {"params/array"}
    manifest.write(files, step=3, part=0, parts=2)
    written = manifest.read(files, files.listed())
    assert set(written.files) == {"params/array"}
