"""Folders behind addresses, over fsspec's memory and local file systems."""

from __future__ import annotations

import pathlib

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.utils import remote


@pytest.fixture(params=["memory", "file"])
def folder(request, tmp_path) -> remote.Folder:
    if request.param == "file":
        return remote.Folder(f"file://{tmp_path}/bucket/model")
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    return remote.Folder("memory://bucket/model/")


@given(st.text(max_size=20))
def test_paths_are_no_addresses(text):
    assert remote.is_remote(text) is (remote._ADDRESS.match(text) is not None)
    assert not remote.is_remote("/" + text) and not remote.is_remote(" " + text)
    assert remote.is_remote("gs://" + text)


def test_joining_keeps_both_slashes():
    assert remote.join("gs://b/m/", "hf", "x.json") == "gs://b/m/hf/x.json"
    assert remote.join("/a/b", "c") == pathlib.Path("/a/b/c")
    assert remote.join(pathlib.Path("a"), "c") == pathlib.Path("a/c")


def test_a_folder(folder, tmp_path):
    assert folder.sizes() == {} and folder.folders() == set() and folder.state() == []
    folder.write("a.json", b"{}")
    (tmp_path / "data").write_bytes(bytes(range(200)))
    folder.upload(tmp_path / "data", "sub/b")
    assert folder.sizes() == {"a.json": 2} and folder.folders() == {"sub"}
    sub = folder.folder("sub")
    assert sub.sizes() == {"b": 200}
    assert sub.read("b", 10, 13) == b"\x0a\x0b\x0c" and len(sub.read("b")) == 200
    before = sub.state()
    assert [entry[:2] for entry in before] == [["b", 200]]
    buffer = bytearray(7)
    sub.read_into("b", 3, memoryview(buffer))
    assert buffer == bytes(range(3, 10))
    with pytest.raises(ValueError, match="sub/b.*asked for"):
        sub.read_into("b", 195, memoryview(bytearray(7)))
    sub.write("b", b"other")
    assert sub.state() != before
    sub.download("b", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"other"
    folder.delete("a.json")
    folder.delete("a.json")
    folder.write("keep", b"1")
    folder.write("c", b"2")
    folder.clear(keep="keep")
    assert folder.sizes() == {"keep": 1} and folder.folders() == set()


def test_reading_in_blocks(folder, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 3)
    folder.write("x", bytes(range(100)))
    for size in (0, 1, 3, 4, 50):
        buffer = bytearray(size)
        folder.read_into("x", 11, memoryview(buffer))
        assert buffer == bytes(range(11, 11 + size))


def test_an_upload_that_is_cut_is_noticed(folder, tmp_path, monkeypatch):
    (tmp_path / "data").write_bytes(b"12345")

    def cut(source, target):
        folder._fs.pipe_file(target, b"123")

    monkeypatch.setattr(folder._fs, "put_file", cut)
    with pytest.raises(OSError, match="3 bytes arrived of 5"):
        folder.upload(tmp_path / "data", "x")


def test_what_is_not_installed_or_known(monkeypatch):
    def absent(address):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(ValueError, match=r"gs://b/m.*pip install -e '\.\[gcs\]'"):
        remote.Folder("gs://b/m")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="nosuch://b: "):
        remote.Folder("nosuch://b")
    with pytest.raises(ValueError, match="workdir=gs://b/run: logs.*mount the bucket"):
        remote.refuse("gs://b/run", field="workdir", why="logs")
    remote.refuse("/b/run", field="workdir", why="logs")
