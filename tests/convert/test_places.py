"""Models behind addresses: read, converted and written, whole or not at all.

fsspec's ``memory://`` stands for a bucket; tests/convert/test_gcs.py has the protocol.
"""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import struct

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
import small_family
import small_runs
from safetensors import numpy as safetensors_numpy

from mpo_jax import api
from mpo_jax.convert import files, hf, hub, places, ranges, source, table
from mpo_jax.demo import tiny_model
from mpo_jax.models import config, internvl
from mpo_jax.run import setup
from mpo_jax.utils import remote

ADDRESS = "memory://bucket/models/a"


@pytest.fixture(autouse=True)
def bucket(tmp_path, monkeypatch):
    """An empty bucket, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    return filesystem


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> pathlib.Path:
    """A model in several shards with a folder, and what must stay behind."""
    root = tmp_path_factory.mktemp("origin")
    words = tiny_model.write_tiny_model(root / "words", corpus=["a b"], vocab_size=256)
    tensors = small_family.original(root / "model", "internlm2", words)
    path = root / "model"
    (path / files.SINGLE).unlink()
    names = sorted(tensors)
    weight_map = {}
    for number in range(2):
        file = f"model-{number + 1:05d}-of-00002.safetensors"
        some = {name: tensors[name] for name in names[number::2]}
        safetensors_numpy.save_file(some, path / file)
        weight_map |= dict.fromkeys(some, file)
    (path / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (path / "original").mkdir()
    (path / "original" / "note.txt").write_text("kept")
    (path / "optimizer.pt").write_bytes(b"x")
    return path


@pytest.fixture
def uploaded(origin, bucket) -> str:
    bucket.put(str(origin), ADDRESS, recursive=True)
    return ADDRESS


def script(root: pathlib.Path, name: str):
    spec = importlib.util.spec_from_file_location(name, root / f"scripts/{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def export(root: pathlib.Path, src, dst, **options) -> str:
    defaults = {"dtype": "keep", "hf_files": None, "overwrite": False}
    defaults |= {"layout": None, "template": "", "verify": False}
    defaults |= {"max_shard_bytes": 30_000}
    return script(root, "convert_to_hf").export(
        str(src), str(dst), **(defaults | options)
    )


def tensors_of(place) -> dict[str, np.ndarray]:
    with source.opened(place) as opened:
        return {name: stored.read() for name, stored in opened.found.items()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and ours[name].shape == tensor.shape
        assert ours[name].tobytes() == tensor.tobytes(), name


def test_reading_equals_the_library(origin, uploaded):
    assert_same(tensors_of(uploaded), tensors_of(origin))
    model = internvl.InternVL(config.load(origin))
    found = hub.locate(uploaded)
    assert (found.kind, found.weights) == ("hf", uploaded)
    kept = {p.name for p in found.files.iterdir()}
    assert kept == {f.name for f in files.carried_files(origin)} | {"original"}
    assert (found.files / "original" / "note.txt").read_text() == "kept"
    assert config.load(found.files) == model.cfg
    loaded = api.InternVL.from_pretrained(uploaded)
    ours = hf.load(origin, model)
    for path in ("vision", "language"):
        assert path in loaded.params and path in ours
    np.testing.assert_array_equal(
        loaded.params["language"]["embedding"]["table"],
        ours["language"]["embedding"]["table"],
    )


def test_small_files_are_fetched_once_until_they_change(uploaded, bucket, monkeypatch):
    first = places.mirror(uploaded)
    calls = []
    real = remote.Folder.download
    monkeypatch.setattr(
        remote.Folder, "download", lambda *a: calls.append(a[1]) or real(*a)
    )
    assert places.mirror(uploaded + "/") == first and calls == []
    raw = json.loads(bucket.cat(f"{uploaded}/config.json"))
    bucket.pipe(f"{uploaded}/config.json", json.dumps(raw | {"x": 1}).encode())
    again = places.mirror(uploaded)
    assert again != first and json.loads((again / "config.json").read_text())["x"] == 1
    monkeypatch.setattr(places, "_MAX_FILE_BYTES", 10)
    with pytest.raises(ValueError, match="at most 10 are fetched"):
        places.mirror(uploaded)


def test_only_the_tensor_is_fetched(origin, uploaded, monkeypatch):
    fetched = []
    real = remote.Folder.read

    def read(self, name, start=0, stop=None):
        data = real(self, name, start, stop)
        fetched.append(len(data))
        return data

    monkeypatch.setattr(remote.Folder, "read", read)
    with source.opened(uploaded) as opened:
        del fetched[:]
        stored = opened.found["mlp1.1.bias"]
        assert stored.read().nbytes == sum(fetched) == 32


def damaged(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def tensor(length: int, start: int, stop: int) -> bytes:
    """A header of one float32 tensor."""
    entry = {"dtype": "F32", "shape": [length], "data_offsets": [start, stop]}
    return json.dumps({"a": entry}).encode()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "a header of 0 bytes"),
        (struct.pack("<Q", 2**62) + b"{}", "a header of"),
        (damaged(b"nonsense"), "not a complete"),
        (damaged(b'{"a": 5}'), "not a complete"),
        (damaged(b'{"a": {"dtype": "F32", "shape": [2]}}'), "data_offsets"),
        (damaged(tensor(2, 0, 8), b"1"), "the header says"),
        (damaged(tensor(3, 0, 8), b"8" * 8), "a: 8 bytes for F32"),
        (damaged(tensor(2, 4, 12), b"8" * 12), "expected at 0"),
    ],
)
def test_damaged_files_are_named(bucket, content, why):
    bucket.pipe(f"{ADDRESS}/model.safetensors", content)
    folder = remote.Folder(ADDRESS)
    with pytest.raises(ValueError, match=f"{ADDRESS}/model.safetensors.*") as error:
        ranges.Tensors(folder, "model.safetensors", len(content))
    assert why in str(error.value)


def test_shapes_that_the_library_writes(bucket):
    tensors = {
        "scalar": np.array(3, np.float32),
        "empty": np.zeros((0, 3), np.float16),
        "half": np.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "flags": np.array([True, False]),
        "whole": np.arange(5, dtype=np.int64),
    }
    data = safetensors_numpy.save(tensors, metadata={"format": "pt"})
    bucket.pipe(f"{ADDRESS}/x.safetensors", data)
    read = ranges.Tensors(remote.Folder(ADDRESS), "x.safetensors", len(data))
    assert_same({name: read.get_tensor(name) for name in read.keys()}, tensors)


def test_there_and_back(root, origin, uploaded, bucket, tmp_path):
    """Address to native address, to directory, and the same bits in the end."""
    text = export(root, uploaded, "memory://bucket/native", layout="native")
    assert text.startswith("memory://bucket/native: ")
    folder = remote.Folder("memory://bucket/native")
    names = folder.sizes()
    assert places.MARKER not in names and {"config.json", files.INDEX} <= names.keys()
    assert sum(name.endswith(".safetensors") for name in names) > 2
    assert "original" in folder.folders()
    assert not any((tmp_path / "cache/mpo_jax/writing").iterdir())
    export(root, "memory://bucket/native", tmp_path / "back", layout="original")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(origin))
    kept = {f.name: f.read_bytes() for f in files.carried_files(origin)}
    for name, content in kept.items():
        if name != "config.json":
            assert (tmp_path / "back" / name).read_bytes() == content
    # As one call from memory, too.
    model = internvl.InternVL(config.load(origin))
    params = hf.load(origin, model, dtype="keep")
    hf.save("memory://bucket/saved", params, model, dtype="keep", source_dir=origin)
    assert_same(tensors_of("memory://bucket/saved"), tensors_of(origin))
    with pytest.raises(FileExistsError, match="not empty"):
        hf.save("memory://bucket/saved", params, model, source_dir=origin)
    hf.save(
        "memory://bucket/saved",
        params,
        model,
        dtype="float32",
        source_dir=origin,
        overwrite=True,
    )
    assert set(source.dtypes("memory://bucket/saved").values()) == {"float32"}


def test_config_comes_last(root, uploaded, bucket, monkeypatch):
    """So nobody takes a half-written export for a model."""
    order = []
    real = remote.Folder.upload

    def upload(self, file, name):
        order.append(name)
        real(self, file, name)

    monkeypatch.setattr(remote.Folder, "upload", upload)
    export(root, uploaded, "memory://bucket/out")
    assert order[-2:] == [files.INDEX, "config.json"]
    weights = [n for n, name in enumerate(order) if name.endswith(".safetensors")]
    assert weights == list(range(len(weights))) and len(weights) > 2


def test_a_killed_export_goes_on(root, origin, uploaded, bucket, monkeypatch):
    uploads = []
    real = remote.Folder.upload

    def upload(self, file, name):
        if len(uploads) == 2:
            raise KeyboardInterrupt
        real(self, file, name)
        uploads.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(remote.Folder, "upload", upload)
        with pytest.raises(KeyboardInterrupt):
            export(root, uploaded, "memory://bucket/out")
    with pytest.raises(ValueError, match="memory://bucket/out is not finished"):
        hub.locate("memory://bucket/out")
    # A file that was cut is no complete one.
    half = bucket.cat(f"memory://bucket/out/{uploads[1]}")
    bucket.pipe(f"memory://bucket/out/{uploads[1]}", half[:-1])
    with pytest.raises(FileExistsError, match="another job has not finished"):
        export(root, uploaded, "memory://bucket/out", dtype="float32")
    again = []

    def count(self, file, name):
        again.append(name)
        real(self, file, name)

    monkeypatch.setattr(remote.Folder, "upload", count)
    export(root, uploaded, "memory://bucket/out")
    assert uploads[0] not in again and uploads[1] in again
    assert_same(tensors_of("memory://bucket/out"), tensors_of(origin))


def test_bad_input_leaves_nothing(root, uploaded, bucket):
    raw = json.loads(bucket.cat(f"{uploaded}/config.json"))
    raw["llm_config"]["num_hidden_layers"] = 3
    bucket.pipe(f"{uploaded}/config.json", json.dumps(raw).encode())
    with pytest.raises(ValueError, match="missing language_model.model.layers.2"):
        export(root, uploaded, "memory://bucket/out", dtype="float32")
    assert remote.Folder("memory://bucket/out").sizes() == {}


def test_what_is_no_model_is_not_overwritten(root, uploaded, bucket):
    bucket.pipe("memory://bucket/out/thesis.tex", b"x")
    with pytest.raises(FileExistsError, match="holds no model"):
        export(root, uploaded, "memory://bucket/out", overwrite=True)
    assert bucket.cat("memory://bucket/out/thesis.tex") == b"x"


def test_what_needs_a_directory_says_so(root, origin, uploaded, tmp_path):
    with pytest.raises(ValueError, match="--dst=memory://bucket/out: --verify reads"):
        export(root, origin, "memory://bucket/out", verify=True)
    forward = script(root, "convert_from_hf")
    options = {"dtype": "keep", "revision": None, "new_tokens": [], "overwrite": False}
    with pytest.raises(ValueError, match="directories and gs://"):
        forward.convert(uploaded, "memory://bucket/ckpt", **options)
    with pytest.raises(FileNotFoundError, match="holds nothing"):
        hub.locate("memory://bucket/absent")
    # From an address into a directory, it works.
    forward.convert(uploaded, str(tmp_path / "ckpt"), **options)
    export(root, tmp_path / "ckpt", tmp_path / "back")
    assert_same(tensors_of(tmp_path / "back"), tensors_of(origin))
    assert set(table.hf_shapes(config.load(origin))) == tensors_of(origin).keys()


@pytest.mark.parametrize(
    ("place", "why"),
    [
        *((f"{scheme}://b/x", "Orbax .* gs://") for scheme in ("memory", "http", "s3")),
        *((f"gs://b/run{c}2", f"holds {re.escape(c)}, at which") for c in "#?*[]"),
        ("gs:/b/x", "two slashes: gs://b/x"),
        ("gs://", "names no bucket"),
    ],
)
def test_a_work_directory_is_where_orbax_can_write(place, why, world, tmp_path):
    with pytest.raises(ValueError, match=f"{re.escape(place)}: .*{why}"):
        setup.setup(small_runs.small(world), place)
