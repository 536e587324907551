"""Single objects by address, places of both kinds, and errors of clients."""

from __future__ import annotations

import os

import memory_store
import pytest
from aiohttp import client_exceptions

from mpo_jax.utils import located, objects, transient

NAME = "b/a [1]*?#2%20 ü.png"


@pytest.fixture
def bucket():
    return memory_store.emptied()


def test_names_are_taken_as_they_are(bucket):
    bucket.makedirs("/b/d [x]", exist_ok=True)
    for name in (NAME, "b/a 1.png", "b/d [x]/c", "b/d x/c"):
        bucket.pipe_file("/" + name, name.encode())
    for name in (NAME, "b/d [x]/c"):
        address = f"memory://{name}"
        assert objects.read(address) == name.encode()
        stored = objects.stored(address)
        assert stored is not None and stored.size == len(name.encode())
        assert objects.read(address, 2, 5) == name.encode()[2:5]
    assert set(objects.listed("memory://b/d [x]")) == {"c"}
    assert set(objects.listed("memory://b")) == {NAME[2:], "a 1.png"}
    assert objects.listed("memory://b/d [y]") == {} == objects.listed("memory://no")
    assert objects.stored("memory://b/a [1].png") is None
    assert objects.stored("memory://b/d [x]") is None
    assert objects.holds("memory://b/d [x]") and not objects.holds("memory://b/d")
    with pytest.raises(FileNotFoundError, match=r"memory://b/z does not exist"):
        objects.read("memory://b/z")


@pytest.mark.parametrize(
    "place, store",
    [
        *(("gs://b/x", True), ("s3://b", True), ("memory://b/c", True)),
        *(("https://h/x", False), ("HTTP://h", False), ("file:///x", False)),
        *(("gs:///x", False), ("/gs://b", False), ("a/b", False), ("", False)),
        *(("simplecache::gs://b/x", False), ("langchao:s3://b/x", False)),
    ],
)
def test_what_is_an_address(place, store):
    assert objects.is_store(place) is store


@pytest.mark.parametrize(
    "folder, value, joined",
    [
        ("gs://b/m", "images/a.png", "gs://b/m/images/a.png"),
        ("gs://b/m", "../x", "gs://b/x"),
        ("gs://b/m", "../../../x", "gs://b/x"),  # never another bucket
        ("gs://b", ".", "gs://b"),
        ("gs://b/m/", "", "gs://b/m"),
        ("gs://b/m", "gs://c//d/./e", "gs://c/d/e"),
        ("/data/m", "gs://c/d", "gs://c/d"),
        ("gs://b/m", "/data/x", "/data/x"),
        ("/data/m", "../x", "/data/x"),
    ],
)
def test_joining(folder, value, joined):
    assert located.normal(located.join(folder, value)) == joined


def test_parents_and_names():
    assert located.parent("gs://b/m/meta.json") == "gs://b/m"
    assert located.parent("gs://b/m") == "gs://b" == located.parent("gs://b")
    assert located.parent("/a/b") == "/a"
    assert located.name("gs://b/m/") == "m" and located.name("/a/b.c") == "b.c"
    assert located.absolute("gs://b//m/../n") == "gs://b/n"
    assert located.absolute("x") == os.path.abspath("x")


class CodeError(Exception):
    def __init__(self, code):
        super().__init__(f"status {code}")
        self.code = code


@pytest.mark.parametrize(
    "raised, kind, passes",
    [
        (CodeError(503), ConnectionError, True),
        (CodeError("429"), ConnectionError, True),
        (CodeError(403), PermissionError, False),
        (OSError("Forbidden: gs://b/x"), PermissionError, False),
        (CodeError(404), CodeError, False),
        (client_exceptions.ServerDisconnectedError(), ConnectionError, True),
        (TimeoutError(), ConnectionError, True),
        (ValueError("bad"), ValueError, False),
    ],
)
def test_errors_of_clients(bucket, monkeypatch, raised, kind, passes):
    bucket.pipe_file("/b/x", b"1")

    def fail(*args, **options):
        raise raised

    monkeypatch.setattr(type(bucket), "cat_file", fail)
    with pytest.raises(kind) as caught:
        objects.read("memory://b/x")
    assert transient.is_transient(caught.value) is passes
    if kind in (ConnectionError, PermissionError):
        assert "memory://b/x" in str(caught.value)


@pytest.mark.slow
def test_a_fork_connects_anew(bucket):
    objects.connect("memory://b")
    before = objects._opened("memory://b")[0]
    assert objects._opened("memory://b")[0] is before
    child = os.fork()
    if not child:
        os._exit(objects._opened("memory://b")[0] is before)
    assert os.waitpid(child, 0)[1] == 0
