"""Weights in and out: bit-exact round trips, strict accounting, atomic writing."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors_numpy
from safetensors import torch as safetensors_torch

from mpo_jax import sharding
from mpo_jax.convert import files, hf, source, table, writer
from mpo_jax.models import config, internvl
from mpo_jax.nn import params as params_lib


@pytest.fixture(scope="module")
def model() -> internvl.InternVL:
    vision = {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "patch_size": 7,
        "image_size": 28,
    }
    llm = {
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "bias": False,
    }
    return internvl.InternVL(
        config.from_hf({"vision_config": vision, "llm_config": llm})
    )


def random_tensors(model: internvl.InternVL, dtype: str) -> dict[str, np.ndarray]:
    """Tensors of the released layout, written without the code under test."""
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape).astype(jnp.dtype(dtype))
        for name, shape in table.hf_shapes(model.cfg).items()
    }


def write(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], *, shards: int = 1
) -> pathlib.Path:
    """A source directory; tensors are dealt to shards in turn."""
    directory.mkdir(exist_ok=True)
    if shards == 1:
        safetensors_numpy.save_file(tensors, directory / files.SINGLE)
        return directory
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in list(tensors)[number::shards]}
        safetensors_numpy.save_file(part, directory / file)
        weight_map |= dict.fromkeys(part, file)
    write_index(directory, weight_map)
    return directory


def write_index(directory: pathlib.Path, weight_map) -> None:
    (directory / files.INDEX).write_text(json.dumps({"weight_map": weight_map}))


def read(directory: pathlib.Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in directory.glob("*.safetensors"):
        part = safetensors_numpy.load_file(file)
        assert not tensors.keys() & part.keys()
        tensors |= part
    return tensors


def assert_same_bits(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def assert_same_trees(ours, theirs):
    flat = dict(params_lib.flatten(theirs))
    assert flat.keys() == dict(params_lib.flatten(ours)).keys()
    for path, leaf in params_lib.flatten(ours):
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(flat[path]), path)


# Reading.


def test_load_fills_the_declared_parameters(model, tmp_path):
    tensors = random_tensors(model, "float32")
    loaded = hf.load(write(tmp_path, tensors), model)
    declared = dict(params_lib.flatten(model.shapes))
    for path, leaf in params_lib.flatten(loaded):
        assert leaf.shape == declared[path].shape and leaf.dtype == np.float32
    gate = loaded["language"]["layers"]["blocks"]["mlp"]["gate"]["kernel"]
    for layer in range(3):
        name = f"language_model.model.layers.{layer}.feed_forward.w1.weight"
        np.testing.assert_array_equal(gate[layer], tensors[name].T)


def test_shards_and_shardings_give_the_same(model, tmp_path):
    tensors = random_tensors(model, "bfloat16")
    whole = hf.load(write(tmp_path / "one", tensors), model)
    mesh = sharding.make_mesh(data=1, fsdp=4, tensor=2)
    places = sharding.shardings(model.shapes, model.axes, mesh)
    sharded = hf.load(
        write(tmp_path / "many", tensors, shards=3), model, shardings=places
    )
    assert_same_trees(sharded, whole)
    flat_places = dict(params_lib.flatten(places))
    split = 0
    for path, leaf in params_lib.flatten(sharded):
        assert leaf.sharding == flat_places[path]
        split += not leaf.is_fully_replicated
    assert split > 10
    # And back: gathered tensor by tensor.
    back = dict(hf.to_hf(sharded, model))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor.astype(np.float32))


def test_load_casts(model, tmp_path):
    tensors = random_tensors(model, "float32")
    write(tmp_path, tensors)
    loaded = hf.load(tmp_path, model, dtype="bfloat16")
    name = "mlp1.1.weight"
    expected = tensors[name].T.astype(jnp.bfloat16)
    got = loaded["projector"]["fc1"]["kernel"]
    assert (
        got.dtype == jnp.bfloat16
        and got.tobytes() == np.ascontiguousarray(expected).tobytes()
    )
    with pytest.raises(ValueError, match="dtype='int8'"):
        hf.load(tmp_path, model, dtype="int8")


def test_load_keep_takes_the_narrowest_exact_dtype(model, tmp_path):
    tensors = random_tensors(model, "bfloat16")
    w2 = "language_model.model.layers.{}.feed_forward.w2.weight"
    tensors[w2.format(1)] = tensors[w2.format(1)].astype(np.float16)
    tensors["mlp1.0.bias"] = tensors["mlp1.0.bias"].astype(np.float16)
    loaded = hf.load(write(tmp_path, tensors), model, dtype="keep")
    down = loaded["language"]["layers"]["blocks"]["mlp"]["down"]["kernel"]
    assert down.dtype == np.float32  # holds bfloat16 and float16 exactly
    np.testing.assert_array_equal(down[1], tensors[w2.format(1)].T.astype(np.float32))
    assert loaded["projector"]["norm"]["bias"].dtype == np.float16
    assert loaded["projector"]["fc1"]["bias"].dtype == jnp.bfloat16


def test_everything_wrong_is_named_at_once(model, tmp_path):
    tensors = random_tensors(model, "float32")
    del tensors["mlp1.3.bias"]
    del tensors["vision_model.encoder.layers.1.ls2"]
    tensors["vision_model.extra"] = np.zeros((2,), np.float32)
    tensors["mlp1.1.bias"] = np.zeros((17,), np.float32)
    tensors["mlp1.0.bias"] = np.zeros((96,), np.int32)
    write(tmp_path, tensors)
    with pytest.raises(ValueError, match="do not fit") as error:
        hf.load(tmp_path, model)
    text = str(error.value)
    assert text.count("missing ") == 2
    assert "missing mlp1.3.bias (16,)" in text
    assert "missing vision_model.encoder.layers.1.ls2 (24,)" in text
    assert "surplus vision_model.extra in model.safetensors (2,)" in text
    assert "misshapen mlp1.1.bias in model.safetensors: (17,), config.json" in text
    assert "dtype of mlp1.0.bias in model.safetensors: I32" in text
    with pytest.raises(ValueError, match="do not fit"):
        hf.check_source(tmp_path, model)


def test_a_long_list_is_cut_and_counted(model, tmp_path):
    tensors = random_tensors(model, "float32")
    extra = {f"extra.{n}": np.zeros(1, np.float32) for n in range(30)}
    write(tmp_path, tensors | extra)
    with pytest.raises(ValueError, match="… and 10 more") as error:
        hf.load(tmp_path, model)
    assert str(error.value).count("surplus") == 20


@pytest.mark.parametrize(
    ("suffixes", "words"),
    [
        (("lora_A.default.weight", "lora_B.default.weight"), "not merged|merge them"),
        (("base_layer.weight",), "merge them first"),
        (("qweight", "qzeros", "scales"), r"quantised \(awq\), 2"),
        (("weight_scale",), "quantised"),
    ],
)
def test_weights_that_are_not_plain(model, tmp_path, suffixes, words):
    """The reason in a line, not the names of all tensors."""
    tensors = random_tensors(model, "float32")
    for suffix in suffixes:
        name = f"language_model.model.layers.0.feed_forward.w1.{suffix}"
        tensors[name] = np.zeros((2, 2), np.float32)
    write(tmp_path, tensors)
    quantised = {"quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps({"llm_config": quantised}))
    with pytest.raises(ValueError, match=words) as error:
        hf.load(tmp_path, model)
    assert len(str(error.value)) < 500


def test_quantised_dtypes(model, tmp_path):
    tensors = random_tensors(model, "float32")
    name = "language_model.model.layers.0.feed_forward.w1.weight"
    tensors[name] = np.zeros(tensors[name].shape, np.int8)
    with pytest.raises(ValueError, match=rf"quantised, 1 tensors such as {name} \(I8"):
        hf.load(write(tmp_path, tensors), model)


def test_an_index_of_one_file(model, tmp_path):
    """Tools that always write an index; other files beside it are not the model's."""
    tensors = random_tensors(model, "float32")
    write(tmp_path, tensors)
    write_index(tmp_path, dict.fromkeys(tensors, files.SINGLE))
    other = {"lora_A": np.zeros(1, np.float32)}
    safetensors_numpy.save_file(other, tmp_path / "adapter_model.safetensors")
    loaded = hf.load(tmp_path, model)
    np.testing.assert_array_equal(
        loaded["projector"]["norm"]["bias"], tensors["mlp1.0.bias"]
    )


def test_native_names_are_recognised(model, tmp_path):
    tensors = {"vision_tower.embeddings.cls_token": np.zeros((1, 1, 24), np.float32)}
    with pytest.raises(ValueError, match="native layout"):
        hf.load(write(tmp_path, tensors), model)


def test_absent_weights(model, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.safetensors or"):
        hf.load(tmp_path, model)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(FileNotFoundError, match="pickled weights are not read"):
        hf.load(tmp_path, model)


def _absent_shard(directory):
    (directory / "model-00002-of-00003.safetensors").unlink()


def _twice(directory):
    file = directory / "model-00002-of-00003.safetensors"
    other = safetensors_numpy.load_file(directory / "model-00001-of-00003.safetensors")
    name = sorted(other)[0]
    own = safetensors_numpy.load_file(file) | {name: other[name]}
    safetensors_numpy.save_file(own, file)


def _misplaced(directory):
    index = json.loads((directory / files.INDEX).read_text())["weight_map"]
    index["mlp1.3.bias"], index["mlp1.3.weight"] = (
        index["mlp1.3.weight"],
        index["mlp1.3.bias"],
    )
    assert index["mlp1.3.bias"] != index["mlp1.3.weight"]
    write_index(directory, index)


def _truncated(directory):
    file = directory / "model-00003-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def _escaping(directory):
    write_index(directory, {"mlp1.3.bias": "../other/model.safetensors"})


def _not_json(directory):
    (directory / files.INDEX).write_text("{")


def _no_map(directory):
    (directory / files.INDEX).write_text("{}")


def _stray(directory):
    shutil.copy(
        directory / "model-00001-of-00003.safetensors",
        directory / "model-00001-of-00002.safetensors",
    )


def _both(directory):
    shutil.copy(
        directory / "model-00001-of-00003.safetensors", directory / files.SINGLE
    )


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_absent_shard, ("absent", "model-00002-of-00003.safetensors")),
        (
            _twice,
            (
                "model-00002-of-00003.safetensors",
                "does not place here",
                "stands in model-00001-of-00003.safetensors too",
            ),
        ),
        (_misplaced, ("mlp1.3.bias", "mlp1.3.weight", "but it is not")),
        (_truncated, ("model-00003-of-00003.safetensors", "not a complete")),
        (_escaping, ("index.json", "mlp1.3.bias", "../other", "beside the index")),
        (_not_json, ("index.json", "not JSON")),
        (_no_map, ("index.json", "weight_map")),
        (_stray, ("model-00001-of-00002.safetensors", "not named by")),
        (_both, ("/model.safetensors", "not named by")),
    ],
)
def test_damaged_sources_name_the_file(model, tmp_path, damage, words):
    write(tmp_path, random_tensors(model, "bfloat16"), shards=3)
    damage(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        hf.load(tmp_path, model)
    assert str(tmp_path) in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_json_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_JSON_BYTES", 10)
    file = tmp_path / files.INDEX
    file.write_text(json.dumps({"weight_map": {}}))
    with pytest.raises(ValueError, match="at most 10 are read"):
        files.read_json(file)
    file.write_text("[1]")
    with pytest.raises(ValueError, match="JSON object"):
        files.read_json(file)


# Writing.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_round_trip_is_bit_equal(model, tmp_path, dtype):
    """Through float32 parameters, as training keeps them."""
    tensors = random_tensors(model, dtype)
    params = hf.load(write(tmp_path / "in", tensors), model, dtype="float32")
    hf.save(tmp_path / "out", jax.tree.map(jnp.asarray, params), model, dtype=dtype)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [files.SINGLE]
    assert_same_bits(read(tmp_path / "out"), tensors)
    # The other implementation of the format reads the same, and knows whose it is.
    again = safetensors_torch.load_file(tmp_path / "out" / files.SINGLE)
    assert {tensor.dtype for tensor in again.values()} == {getattr(torch, dtype)}
    header = (tmp_path / "out" / files.SINGLE).read_bytes()[8:200]
    assert b'"format":"pt"' in header


def test_keep_restores_mixed_dtypes(model, tmp_path):
    tensors = random_tensors(model, "bfloat16")
    for number, name in enumerate(tensors):
        kind = ("float32", "float16", "bfloat16")[number % 3]
        tensors[name] = tensors[name].astype(jnp.dtype(kind))
    write(tmp_path / "in", tensors, shards=2)
    params = hf.load(tmp_path / "in", model)
    hf.save(tmp_path / "out", params, model, dtype="keep", source_dir=tmp_path / "in")
    assert_same_bits(read(tmp_path / "out"), tensors)
    # From the record of a converted checkpoint, which holds no weights.
    record = tmp_path / "record"
    record.mkdir()
    source.write_dtypes(record, source.dtypes(tmp_path / "in"))
    hf.save(tmp_path / "again", params, model, dtype="keep", source_dir=record)
    assert_same_bits(read(tmp_path / "again"), tensors)
    assert not (tmp_path / "again" / files.DTYPES).exists()


def test_keep_without_a_source(model, tmp_path):
    with pytest.raises(ValueError, match="needs the source"):
        hf.target_dtypes(model, dtype="keep", source_dir=None)
    source.write_dtypes(tmp_path, {"mlp1.0.bias": "bfloat16"})
    with pytest.raises(ValueError, match=r"no usable dtype is recorded of .*mlp1\.1"):
        hf.target_dtypes(model, dtype="keep", source_dir=tmp_path)


def test_shards_of_an_export(model, tmp_path):
    tensors = random_tensors(model, "bfloat16")
    params = hf.load(write(tmp_path / "in", tensors), model)
    limit = 6000
    hf.save(tmp_path / "out", params, model, max_shard_bytes=limit)
    index = json.loads((tmp_path / "out" / files.INDEX).read_text())
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert index["weight_map"].keys() == tensors.keys()
    names = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    total = len(names)
    assert total > 3
    assert names == [
        f"model-{i + 1:05d}-of-{total:05d}.safetensors" for i in range(total)
    ]
    for file in names:
        part = safetensors_numpy.load_file(tmp_path / "out" / file)
        assert {n for n, f in index["weight_map"].items() if f == file} == part.keys()
        assert sum(sizes[n] for n in part) <= limit or len(part) == 1
    assert_same_bits(read(tmp_path / "out"), tensors)
    assert_same_trees(hf.load(tmp_path / "out", model), params)


def test_shard_plan():
    plan = writer.plan_shards(
        {"a": 3, "b": 3, "c": 9, "d": 1, "e": 6}, max_shard_bytes=7
    )
    assert [int(file[6:11]) for file in plan.values()] == [1, 1, 2, 3, 3]
    assert set(writer.plan_shards({"a": 3, "b": 4}, max_shard_bytes=7).values()) == {
        files.SINGLE
    }


def test_other_files_are_carried_untouched(model, tmp_path):
    origin = write(tmp_path / "in", random_tensors(model, "bfloat16"), shards=2)
    carried = {
        "config.json": b'{"a": 1}\r\n',
        "tokenizer.model": bytes(range(256)),
        "modeling_internvl_chat.py": b"raise SystemExit  # never run\n",
        "generation_config.json": b"{}",
        "README.md": "é".encode(),
    }
    left = ("optimizer.pt", "pytorch_model.bin", "trainer_state.json", ".gitattributes")
    for name, content in carried.items():
        (origin / name).write_bytes(content)
    for name in left:
        (origin / name).write_bytes(b"x")
    (origin / "checkpoint-10").mkdir()
    params = hf.load(origin, model)
    hf.save(tmp_path / "out", params, model, source_dir=origin)
    written = {p.name: p for p in (tmp_path / "out").iterdir()}
    assert written.keys() == {*carried, files.SINGLE}
    for name, content in carried.items():
        assert written[name].read_bytes() == content


def test_nothing_is_overwritten_unasked(model, tmp_path):
    params = hf.load(write(tmp_path / "in", random_tensors(model, "float32")), model)
    out = tmp_path / "out"
    out.mkdir()
    hf.save(out, params, model)  # empty: fine
    before = (out / files.SINGLE).read_bytes()
    with pytest.raises(FileExistsError, match="not empty"):
        hf.save(out, params, model, dtype="float32")
    assert (out / files.SINGLE).read_bytes() == before
    hf.save(out, params, model, dtype="float32", overwrite=True)
    assert (out / files.SINGLE).stat().st_size > len(before)

    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.jpg").write_bytes(b"x")
    with pytest.raises(FileExistsError, match="holds no model"):
        hf.save(other, params, model, overwrite=True)
    assert [p.name for p in other.iterdir()] == ["cat.jpg"]
    with pytest.raises(FileExistsError, match="is a file"):
        hf.save(other / "cat.jpg", params, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "photos"]


def test_a_failed_export_leaves_what_was_there(model, tmp_path):
    params = hf.load(write(tmp_path / "in", random_tensors(model, "float32")), model)
    hf.save(tmp_path / "out", params, model)
    before = (tmp_path / "out" / files.SINGLE).read_bytes()
    params["projector"]["fc2"]["bias"][0] = 1e6  # written last
    with pytest.raises(ValueError, match=r"mlp1\.3\.bias overflows float16"):
        hf.save(tmp_path / "out", params, model, dtype="float16", overwrite=True)
    assert (tmp_path / "out" / files.SINGLE).read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_export_over_its_own_source(model, tmp_path):
    tensors = random_tensors(model, "bfloat16")
    origin = write(tmp_path / "model", tensors)
    (origin / "config.json").write_text("{}")
    params = hf.load(origin, model)
    hf.save(origin, params, model, source_dir=origin, overwrite=True)
    assert (origin / "config.json").read_text() == "{}"
    assert_same_bits(read(origin), tensors)


def test_to_hf_refuses_other_trees(model):
    shapes = dict(params_lib.flatten(model.shapes))
    zeros = {path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()}
    del zeros["projector/norm/bias"]
    zeros["vision/patch/bias"] = np.zeros((3,), np.float32)
    with pytest.raises(ValueError, match="are not the model's") as error:
        hf.to_hf(params_lib.unflatten(zeros), model)  # raises before iteration
    assert "projector/norm/bias: got None" in str(error.value)
    assert "vision/patch/bias: got (3,), the model has (24,)" in str(error.value)
