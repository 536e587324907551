"""Training data at ``gs://`` through gcsfs, with worker processes, as a user has it.

In processes of their own, since gcsfs reads the service's address when it starts.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import fake_gcs
import pytest
import small_runs
import tiny_mmpr

pytestmark = pytest.mark.slow

HEAD = """
import pathlib, sys
from absl import flags
import loaded, tiny_mmpr
from mpo_jax.mmpr import index
from mpo_jax.packing import pipeline, plan as plan_lib
from mpo_jax.types import RowShape
from mpo_jax.utils import fetched
flags.FLAGS.mark_as_parsed()
tmp = pathlib.Path(sys.argv[1])
AT = "gs://bucket/MMPR"
cache = fetched.LocalCache(str(tmp / "cache"), gb=1)

def build(meta, **options):
    options = {"workers": 2, "piece_bytes": 1000, "cache": cache, **options}
    return tiny_mmpr.build_index(meta, tmp / "out", tmp / "tokenizer", **options)

def batches(built, workers):
    ids = [index.effective(built, seed=3, epoch=epoch) for epoch in range(2)]
    lengths = plan_lib.Lengths(
        built.prompt_tokens, built.chosen_tokens, built.rejected_tokens, built.tiles)
    plan = plan_lib.plan_epochs(
        lengths, ids, shapes=(RowShape(256, 96, 96, 16, 4),), rows_per_batch=(4,),
        seed=3, window=16)
    load = pipeline.ExampleLoader(built, str(tmp / "tokenizer"), tiny_mmpr.POLICY)
    made = loaded.collect(
        plan, load, img_context_id=load.img_context_id, tokens_per_tile=4,
        image_size=28, workers=workers, threads=3)
    assert len(made) > 3
    return made

same = loaded.assert_same
"""


def variables(root: pathlib.Path, url: str, tmp_path: pathlib.Path) -> dict[str, str]:
    return os.environ | {
        "STORAGE_EMULATOR_HOST": url,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
        "XDG_CACHE_HOME": str(tmp_path / "home"),
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests"), *sys.path]),
    }


@pytest.fixture
def service():
    if importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs is not installed: pip install -e '.[gcs]'")
    with fake_gcs.serve() as found:
        yield found


@pytest.fixture
def run(root, service, tmp_path):
    tiny_mmpr.write_tokenizer(tmp_path / "tokenizer")

    def start(*code: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", "\n".join([HEAD, *map(textwrap.dedent, code)])]
            + [str(tmp_path)],
            env=variables(root, service[0], tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(*code: str) -> str:
        process = start(*code)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output[-4000:]
        return output

    call.start = start
    return call


def images_asked(bucket: fake_gcs.Bucket) -> list[str]:
    return [line for line in bucket.asked if re.search(r"images/.*png", line)]


def test_index_batches_and_changes(run, service, tmp_path):
    _, bucket = service
    bucket.page = 3  # a listing takes several pages
    tiny_mmpr.write_good(tmp_path / "MMPR")
    odd = "a [1]*?#2%20 ü.png"
    tiny_mmpr.write_image(tmp_path / "MMPR/images" / odd, seed=5)
    lines = [tiny_mmpr.pair(n, image=odd) for n in range(3)]
    tiny_mmpr.write_lines(tmp_path / "MMPR/odd [2].jsonl", lines)
    meta = tmp_path / "MMPR/meta.json"
    entries = json.loads(meta.read_text())
    entries["odd"] = {"root": "images", "annotation": "odd [2].jsonl"}
    meta.write_text(json.dumps(entries))
    fake_gcs.upload(tmp_path / "MMPR", bucket, "MMPR")
    bucket.failing = 2  # gcsfs tries again
    compare = """
        there = build(f"{AT}/meta.json", workers=WORKERS)
        here = build(tmp / "MMPR/meta.json", workers=1)
        assert there.content_hash == here.content_hash and len(there) == 58
        assert not there.ledger()
        same(batches(there, LOADERS), batches(here, 0))
        assert build(f"{AT}/meta.json").directory == there.directory
        """
    run("WORKERS = LOADERS = 2", compare)
    assert not bucket.failing
    # Two starts and a loader of two epochs fetch each once; two index workers that
    # want one at the same moment both do.
    assert len(set(images_asked(bucket))) == 5 and len(images_asked(bucket)) <= 10
    # A start lists them in two pages, and twice sees that the folder is there.
    listed = [line.endswith("/o MMPR/images/") for line in bucket.asked]
    assert listed.count(True) == 2 * 4
    new = tiny_mmpr.write_image(tmp_path / "MMPR/images/2.png", seed=77).read_bytes()
    bucket.put("MMPR/images/2.png", new)
    bucket.asked.clear()
    run("WORKERS, LOADERS = 1, 0", compare)
    assert 1 <= len(images_asked(bucket)) <= 2
    assert all("images/2.png" in line for line in images_asked(bucket))
    del bucket.objects["MMPR/images/1.png"]
    run(
        """
        import fsspec
        there = build(f"{AT}/meta.json")
        assert {(e.file, e.reason) for e in there.ledger()} == {
            (f"{AT}/single.jsonl", "image_missing")}
        assert len(there) == 53
        fsspec.filesystem("gs").rm_file("bucket/MMPR/text.jsonl")
        try:
            build(f"{AT}/meta.json")
        except FileNotFoundError as error:
            assert f"{AT}/text.jsonl" in str(error)
        else:
            raise AssertionError("a missing annotation was not noticed")
        """
    )


def test_shards_and_two_processes_at_once(run, service, tmp_path):
    _, bucket = service
    from mpo_jax.mmpr import shard_writer

    meta = tiny_mmpr.write_good(tmp_path / "MMPR")
    shard_writer.write_shards(meta, tmp_path / "shards", num_shards=3)
    fake_gcs.upload(tmp_path / "shards", bucket, "shards")
    code = """
        there = build("gs://bucket/shards", workers=1)
        here = build(tmp / "MMPR/meta.json", workers=1)
        assert there.content_hash == here.content_hash
        same(batches(there, 2), batches(here, 0))
        """
    both = [run.start(code) for _ in range(2)]
    for process in both:
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output[-4000:]
    data = [line for line in bucket.asked if "/download/" in line and "00000-" in line]
    assert len(data) == len(set(data)) == 2  # lines and images, each once


def test_a_look_at_its_data(service, root, tmp_path, monkeypatch):
    url, bucket = service
    world = small_runs.make_world(tmp_path / "world")
    fake_gcs.upload(tmp_path / "world/data", bucket, "data")
    for name, value in variables(root, url, tmp_path).items():
        monkeypatch.setenv(name, value)

    def script(name: str, *options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, root / f"scripts/{name}.py", *options],
            capture_output=True,
            text=True,
            timeout=300,
        )

    options = [
        *("--meta=gs://bucket/data/meta.json", f"--tokenizer={world['model']}"),
        *(f"--out={tmp_path}/index", "--image_size=28", "--tokens_per_tile=4"),
    ]
    page = tmp_path / "page.html"
    done = script("inspect_data", *options, f"--html={page}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "data:image/" in page.read_text() and "gs://bucket/data" in page.read_text()
    done = script("prepare_data", *options, "--shards=gs://bucket/shards")
    assert done.returncode == 1 and "write them to a disk" in " ".join(
        done.stderr.split()
    )
