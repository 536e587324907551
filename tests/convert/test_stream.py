"""Streaming in and out: what a kill leaves, and tokens that are added on the way."""

from __future__ import annotations

import json
import pathlib
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from mpo_jax import checkpoint
from mpo_jax.convert import files, hf, source, stream, table, vocabulary, writer
from mpo_jax.demo import tiny_model
from mpo_jax.inputs import tokenizer
from mpo_jax.models import config, internvl
from mpo_jax.nn import params as params_lib

NONE = vocabulary.Addition()


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> pathlib.Path:
    """A tiny Qwen2 model in bfloat16 with its tokenizer."""
    path = tmp_path_factory.mktemp("origin")
    sizes = {"hidden": 16, "mlp": 24, "vision_hidden": 24, "vision_mlp": 16}
    tiny_model.write_tiny_model(
        path, corpus=["a b c"], vocab_size=256, image_size=56, layers=2, **sizes
    )
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(jnp.bfloat16)
        for name, shape in table.hf_shapes(config.load(path)).items()
    }
    safetensors_numpy.save_file(tensors, path / files.SINGLE)
    return path


def convert(origin: pathlib.Path, dst: pathlib.Path, addition=NONE) -> files.Progress:
    model = internvl.InternVL(config.load(origin))
    with (
        source.opened(origin) as opened,
        files.resumable_directory(dst, job={"a": 1}) as (partial, progress),
    ):
        stream.write(
            partial / "params",
            opened,
            model,
            progress,
            dtype="keep",
            metadata={"source": "x"},
            addition=addition,
        )
    return progress


def test_orbax_reads_what_is_streamed(origin, tmp_path):
    """Whole, in another dtype, and sharded over devices."""
    model = internvl.InternVL(config.load(origin))
    convert(origin, tmp_path / "out")
    wanted = dict(params_lib.flatten(hf.load(origin, model, dtype="keep")))
    assert checkpoint.load_metadata(tmp_path / "out") == {"source": "x"}
    mesh = jax.make_mesh((2,), ("x",))
    place = jax.NamedSharding(mesh, jax.P())
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=place),
        model.shapes,
    )
    loaded = dict(
        params_lib.flatten(checkpoint.load_params(tmp_path / "out", abstract))
    )
    reader = stream.Reader(tmp_path / "out" / "params")
    for path, value in wanted.items():
        np.testing.assert_array_equal(loaded[path], value.astype(np.float32))
        layer = None if "blocks" not in path else 1
        part = reader(path, layer)
        assert part.dtype == value.dtype
        np.testing.assert_array_equal(part, value if layer is None else value[1])
    # A checkpoint of training keeps layers together: it reads the same.
    tree = hf.load(origin, model)
    checkpoint.save_params(
        tmp_path / "whole", jax.tree.map(jnp.asarray, tree), metadata={}
    )
    again = stream.Reader(tmp_path / "whole")
    for path, value in wanted.items():
        for layer in (None,) if "blocks" not in path else (1, 0):
            part = value if layer is None else value[layer]
            np.testing.assert_array_equal(again(path, layer), part.astype(np.float32))


def test_chunks_are_layers_in_bounded_pieces(monkeypatch):
    """Tables without layers are not cut row by row."""
    monkeypatch.setattr(stream, "_CHUNK_BYTES", 1000)
    for shape, stacked, expected in (
        ((3, 10, 20), True, [1, 10, 20]),
        ((3, 100, 20), True, [1, 12, 20]),
        ((3, 2, 2000), True, [1, 1, 250]),
        ((3, 5), True, [1, 5]),
        ((5000,), False, [250]),
        ((40, 5), False, [40, 5]),
        ((500, 5), False, [50, 5]),
        ((20, 500), False, [1, 250]),
    ):
        chunk = stream._chunk(shape, 4, stacked=stacked)
        assert chunk == expected
        mark = np.zeros(shape, int)
        pieces = list(stream._pieces(shape, tuple(chunk)))
        for index in pieces:
            assert mark[index].size * 4 <= 1000
            mark[index] += 1
        assert (mark == 1).all()


def test_vocabularies_are_few_chunks(origin, tmp_path):
    convert(origin, tmp_path / "out")
    reader = stream.Reader(tmp_path / "out" / "params")
    for path in ("language/embedding/table", "language/lm_head/kernel"):
        assert tuple(reader._store(path).chunk_layout.read_chunk.shape) == (
            reader.shape(path)
        )


def test_a_killed_conversion_goes_on(origin, tmp_path, monkeypatch):
    convert(origin, tmp_path / "whole")
    put, calls = stream.Sink.put, []

    def counted(self, path, layer, part):
        calls.append((path, layer))
        if len(calls) == 10:
            raise KeyboardInterrupt
        put(self, path, layer, part)

    monkeypatch.setattr(stream.Sink, "put", counted)
    with pytest.raises(KeyboardInterrupt):
        convert(origin, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    first = calls[:9]
    # The kill may cut the last line of the record.
    with (tmp_path / ".out.partial" / ".progress").open("a") as record:
        record.write("vision_model.enc")
    del calls[:]
    calls += [("", None)] * 20  # past the tenth
    assert convert(origin, tmp_path / "out").resumed
    assert not set(first) & set(calls)
    assert len(first) + len(calls) - 20 == len(
        [p for unit in table.units(config.load(origin)) for p in unit.row.paths]
    )
    monkeypatch.undo()
    readers = [stream.Reader(tmp_path / n / "params") for n in ("whole", "out")]
    for path, layer in first + calls[20:]:
        one, other = (reader(path, layer) for reader in readers)
        np.testing.assert_array_equal(one, other)
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "out"}


def test_another_job_does_not_go_on(tmp_path):
    for job, resumed in (({"a": 1}, False), ({"a": 1}, True), ({"a": 2}, False)):
        with pytest.raises(KeyboardInterrupt):
            with files.resumable_directory(tmp_path / "x", job=job) as (partial, done):
                assert done.resumed is resumed
                assert done.done("step") is resumed
                assert (partial / "left").exists() is resumed
                (partial / "left").touch()
                done.mark("step")
                with pytest.raises(FileExistsError, match="another process"):
                    with files.resumable_directory(tmp_path / "x", job=job):
                        pass
                raise KeyboardInterrupt
    # Bad input would be bad again: nothing stays.
    with pytest.raises(ValueError, match="bad"):
        with files.resumable_directory(tmp_path / "x", job={"a": 2}):
            raise ValueError("bad")
    assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_no_directory():
    for make in (files.new_directory, files.resumable_directory):
        options = {"job": {}} if make is files.resumable_directory else {}
        with pytest.raises(ValueError, match="by a rename.*mount the bucket"):
            with make("gs://bucket/model", **options):
                pass


def test_written_files_are_not_written_again(tmp_path):
    """Shards that have their name are complete; others start anew."""
    rng = np.random.default_rng(0)
    tensors = {n: rng.standard_normal((4, 5)).astype(np.float32) for n in "abcd"}
    kinds = {"a": "bfloat16", "b": "float32", "c": "float32", "d": "bfloat16"}

    def make() -> writer.Writer:
        shapes = {n: t.shape for n, t in tensors.items()}
        return writer.Writer(tmp_path, shapes, kinds, max_shard_bytes=130)

    first = make()
    assert len(set(first.plan.values())) == 2
    for name in "bac":
        first.put(name, tensors[name])
    with pytest.raises(ValueError, match="never written: d"):
        first.close()
    second = make()
    assert not second.pending(("a", "b")) and second.pending(("c",))
    done = tmp_path / second.plan["a"]
    before = done.stat().st_mtime_ns
    for name in "abcd":
        second.put(name, tensors[name])
    second.close()
    assert done.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="must be"):
        make_new = writer.Writer(tmp_path, {"z": (2,)}, {"z": "float32"})
        make_new.put("z", np.zeros((3,), np.float32))
    index = json.loads((tmp_path / files.INDEX).read_text())
    assert index["metadata"]["total_size"] == 2 * 40 + 2 * 80
    for name, file in index["weight_map"].items():
        # The library's own reader agrees on shapes, dtypes and offsets.
        found = safetensors_numpy.load_file(tmp_path / file)[name]
        np.testing.assert_array_equal(found, tensors[name].astype(kinds[name]))


@pytest.mark.parametrize("block_bytes", [1, 100_000, 1 << 25])
def test_tensors_are_written_by_blocks_of_rows(tmp_path, monkeypatch, block_bytes):
    """A transposed tensor is cast and copied a block at a time."""
    monkeypatch.setattr(writer, "_BLOCK_BYTES", block_bytes)
    source = np.random.default_rng(0).standard_normal((1000, 300)).astype(np.float32)
    tensors = {"a": source.T, "b": source, "c": source[0], "d": source[:0]}
    kinds = dict.fromkeys(tensors, "bfloat16")
    out = writer.Writer(tmp_path, {n: t.shape for n, t in tensors.items()}, kinds)
    tracemalloc.start()
    for name, tensor in tensors.items():
        out.put(name, tensor)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    out.close()
    # In 16 bits, once cast and once in order, and the file's own buffer.
    assert peak < 2 * source.nbytes // 2 + 30_000
    if block_bytes < source.nbytes:
        assert peak < block_bytes + 60_000
    found = safetensors_numpy.load_file(tmp_path / files.SINGLE)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found[name], tensor.astype(jnp.bfloat16))


@pytest.mark.parametrize("padding", [0, 1, 5])
def test_new_tokens(origin, tmp_path, padding):
    """Rows behind the vocabulary, or unused ones of a padded table, and the files."""
    cfg = config.load(origin)
    old = tokenizer.load_tokenizer(origin).vocab_size
    assert cfg.language.vocab_size == old
    addition = vocabulary.plan(origin, ("<think>", "</think>"))
    assert addition.first == old
    rng = np.random.default_rng(0)
    table_ = rng.standard_normal((old + padding, 3)).astype(np.float32)
    for path, value in (
        ("language/embedding/table", table_),
        ("language/lm_head/kernel", table_.T),
    ):
        out = vocabulary.extend(path, value, addition)
        out = out if path.endswith("table") else out.T
        assert out.shape == (max(old + padding, old + 2), 3)
        np.testing.assert_array_equal(out[:old], table_[:old])
        mean = table_[:old].mean(0)
        np.testing.assert_allclose(out[old : old + 2], [mean, mean], atol=1e-6)
        np.testing.assert_array_equal(out[old + 2 :], table_[old + 2 :])
    assert vocabulary.extend("language/norm/scale", table_, addition) is table_

    target = tmp_path / "files"
    target.mkdir()
    files.copy_carried(origin, target)
    vocabulary.write_files(target, cfg, addition)
    chat = tokenizer.load_tokenizer(target)
    ids = chat.encode("a<think>b</think>", bos=False)
    assert ids[1] == old and ids[-1] == old + 1
    assert config.load(target).language.vocab_size == old + 2
    for wrong in (("<think>", "<think>"), ("<img>",), (" ",)):
        with pytest.raises(ValueError, match="new token"):
            vocabulary.plan(origin, wrong)


def test_new_tokens_in_a_checkpoint(origin, tmp_path):
    addition = vocabulary.plan(origin, ("<think>",))
    convert(origin, tmp_path / "out", addition)
    cfg = vocabulary.extended(config.load(origin), addition)
    reader = stream.Reader(tmp_path / "out" / "params")
    assert reader.shape("language/lm_head/kernel")[1] == cfg.language.vocab_size
    checkpoint.check_params(tmp_path / "out", internvl.InternVL(cfg).shapes)
    with pytest.raises(ValueError, match="language/embedding/table"):
        model = internvl.InternVL(config.load(origin))
        checkpoint.check_params(tmp_path / "out", model.shapes)
