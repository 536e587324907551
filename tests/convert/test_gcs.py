"""``gs://`` through the real clients, gcsfs and TensorStore, against a local service.

In a process of its own, since both read the service's address when they start.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import textwrap

import fake_gcs
import pytest
import small_family

from mpo_jax.convert import files, places
from mpo_jax.demo import tiny_model

HEAD = """
import importlib.util, json, pathlib, sys
import jax, numpy as np
import fsspec
from mpo_jax import api, checkpoint, config
from mpo_jax.convert import files, hub, source

root, origin, tmp = map(pathlib.Path, sys.argv[1:])

def script(name):
    spec = importlib.util.spec_from_file_location(name, root / f"scripts/{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded

def convert(src, dst, **options):
    defaults = {"dtype": "keep", "revision": None, "new_tokens": []}
    defaults |= {"overwrite": False}
    return script("convert_from_hf").convert(src, dst, **(defaults | options))

def export(src, dst):
    return script("convert_to_hf").export(
        str(src), str(dst), dtype="keep", hf_files=None, overwrite=False, layout=None,
        template="", verify=False, max_shard_bytes=30_000)

def tensors(place):
    with source.opened(place) as opened:
        return {name: stored.read() for name, stored in opened.found.items()}

def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in theirs:
        assert ours[name].dtype == theirs[name].dtype, name
        assert ours[name].tobytes() == theirs[name].tobytes(), name
"""


@pytest.fixture(scope="module")
def origin(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("origin")
    words = tiny_model.write_tiny_model(root / "words", corpus=["a b"], vocab_size=256)
    small_family.original(root / "model", "qwen2", words)
    return root / "model"


@pytest.fixture
def bucket():
    with fake_gcs.serve() as (url, content):
        yield url, content


@pytest.fixture
def run(root, origin, bucket, tmp_path):
    """Run code with the clients pointed at the bucket; returns the process."""
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install -e '.[gcs]'")
    url, _ = bucket

    def call(*code: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "STORAGE_EMULATOR_HOST": url,
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",  # ask no metadata server for credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "PYTHONPATH": os.pathsep.join([str(root), *sys.path]),
        }
        return subprocess.run(
            [sys.executable, "-c", "\n".join([HEAD, *map(textwrap.dedent, code)])]
            + [str(root), str(origin), str(tmp_path)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=500,
        )

    return call


def test_a_bucket_there_and_back(run, bucket):
    """Model and checkpoint in a bucket: converted, loaded, trained from, exported."""
    done = run(
        """
        fsspec.filesystem("gs").put(str(origin), "gs://bucket/model", recursive=True)
        convert("gs://bucket/model", "gs://bucket/ckpt")
        ours = api.InternVL.from_pretrained("gs://bucket/ckpt").params
        theirs = api.InternVL.from_pretrained(str(origin)).params
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        export("gs://bucket/ckpt", "gs://bucket/back")
        same(tensors("gs://bucket/back"), tensors(origin))

        # A run's checkpoints, whose newest counts; its model is in the bucket too.
        kept = checkpoint.Checkpoints(
            "gs://bucket/run/checkpoints", config.CheckpointConfig())
        meta = {"config": {"model": {"path": "gs://bucket/ckpt"}}}
        for step in (1, 2):
            tree = jax.tree.map(lambda x: step * x, theirs)
            kept.save(step, {"params": tree, "loop": {"step": step}}, meta=meta)
        kept.wait()
        assert kept.latest() == 2
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        restored = kept.restore(2, {"params": abstract})["params"]
        jax.tree.map(np.testing.assert_array_equal, restored, tree)
        kept.close()
        found = hub.locate("gs://bucket/run")
        assert found.weights == "gs://bucket/run/checkpoints/2", found
        export("gs://bucket/run", tmp / "out")
        twice = tensors(tmp / "out")
        for name, tensor in tensors(origin).items():
            wide = 2 * tensor.astype(np.float32)
            np.testing.assert_array_equal(twice[name].astype(np.float32), wide)
        """
    )
    assert done.returncode == 0, done.stderr[-4000:]
    names = bucket[1].objects
    assert not any(name.endswith(places.MARKER) for name in names)
    assert "run/checkpoints/2/mpo-manifest-0-of-1.json" in names
    assert {"ckpt/hf/config.json", f"back/{files.INDEX}"} <= names.keys()
    index = json.loads(names[f"back/{files.INDEX}"][1])
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    # In the end comes config.json, in the beginning there is no other weight file.
    newest = {name: generation for name, (generation, _) in names.items()}
    last = newest["back/config.json"]
    assert all(newest[f"back/{shard}"] < last for shard in shards)


def test_a_damaged_checkpoint_in_a_bucket(run, bucket):
    """What a store says of its objects shows it; the damaged one is copied aside."""
    prepare = """
        kept = checkpoint.Checkpoints(
            "gs://bucket/run/checkpoints", config.CheckpointConfig())
        tree = {"a": np.random.default_rng(0).normal(size=3000).astype(np.float32)}
        abstract = {"params": {"a": jax.ShapeDtypeStruct((3000,), np.float32)}}
        """
    done = run(
        prepare,
        """
        for step in (1, 2):
            kept.save(step, {"params": jax.tree.map(jax.numpy.asarray, tree)}, meta={})
        kept.close()
        """,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    objects = bucket[1].objects
    (largest,) = sorted(
        (name for name in objects if name.startswith("run/checkpoints/2/params/")),
        key=lambda name: len(objects[name][1]),
    )[-1:]
    content = bytearray(objects[largest][1])
    content[len(content) // 2] ^= 1
    bucket[1].put(largest, bytes(content))
    before = {n for n in objects if n.startswith("run/checkpoints/2/")}
    done = run(
        prepare,
        """
        found = kept.resume(abstract, check=lambda *_: None)
        assert found.step == 1 and "as they were saved" in found.verdict, found
        assert kept.steps() == [1]
        kept.close()
        """,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "another content (md5Hash)" in " ".join(done.stderr.split())
    aside = "run/checkpoints_aside/damaged_2_1/"
    moved = {n.removeprefix(aside) for n in objects if n.startswith(aside)}
    assert moved == {n.removeprefix("run/checkpoints/2/") for n in before}
    assert not [n for n in objects if n.startswith("run/checkpoints/2/")]


def test_a_killed_conversion_goes_on(run, bucket):
    """The marker stands until the end; finished layers are not written again."""
    prepare = """
        from mpo_jax.convert import stream
        put, calls = stream.Sink.put, []
        def counted(self, path, layer, part):
            calls.append((path, layer))
            if len(calls) == limit:
                raise KeyboardInterrupt
            put(self, path, layer, part)
        stream.Sink.put = counted
        """
    done = run(
        "limit = 20",
        prepare,
        """
        fsspec.filesystem("gs").put(str(origin), "gs://bucket/model", recursive=True)
        convert("gs://bucket/model", "gs://bucket/ckpt")
        """,
    )
    assert "KeyboardInterrupt" in done.stderr
    assert f"ckpt/{places.MARKER}" in bucket[1].objects
    done = run(
        "limit = 0",
        prepare,
        """
        try:
            hub.locate("gs://bucket/ckpt")
        except ValueError as error:
            assert "not finished" in str(error)
        else:
            raise AssertionError("an unfinished checkpoint was taken for one")
        convert("gs://bucket/model", "gs://bucket/ckpt")
        from mpo_jax.convert import table
        from mpo_jax.models import config as model_config
        units = table.units(model_config.load(origin))
        assert len(calls) == sum(len(unit.row.paths) for unit in units) - 19
        export("gs://bucket/ckpt", tmp / "back")
        same(tensors(tmp / "back"), tensors(origin))
        """,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"ckpt/{places.MARKER}" not in bucket[1].objects
