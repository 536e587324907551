"""ArrayRecord shards give what loose files give, or an error that names the shard."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny_mmpr
from loaded import assert_same, collect

from mpo_jax.mmpr import array_records, index, shard_work, shard_writer
from mpo_jax.mmpr import shards as shards_lib
from mpo_jax.packing import pipeline
from mpo_jax.packing import plan as plan_lib
from mpo_jax.types import RowShape

COLUMNS = [name for name in ("source", *shards_lib.COLUMNS) if name != "offset"]
SHAPES = (RowShape(400, 200, 200, 12, 4),)
SIZES = {"tokens_per_tile": 4, "image_size": 28, "ref_lookup": None}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Good and broken data, loose and as shards, and a tokenizer."""
    root = tmp_path_factory.mktemp("shards")
    tokenizer = tiny_mmpr.write_tokenizer(root / "tokenizer")
    metas = {}
    for name in ("good", "broken"):
        (root / name).mkdir()
    metas["good"] = tiny_mmpr.write_good(root / "good")
    metas["broken"], _ = tiny_mmpr.write_broken(root / "broken")
    for name, meta in metas.items():
        shard_writer.write_shards(meta, root / f"{name}-shards", num_shards=3)
    return root, tokenizer, metas


def build(world, meta, out, **options):
    options = {"piece_bytes": 400, **options}
    return tiny_mmpr.build_index(meta, out, world[1], **options)


@pytest.fixture
def both(world, tmp_path):
    """Index from loose files and from shards, by the name of the data."""

    def make(name, **options):
        root, _, metas = world
        # One broken line has 2 MB, and would be cut into thousands of pieces.
        pieces = {"piece_bytes": 40_000} if name == "broken" else {}
        loose = build(world, metas[name], tmp_path / "loose", **pieces)
        return loose, build(world, root / f"{name}-shards", tmp_path / "s", **options)

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("good", {"piece_bytes": 1 << 22}),
        ("good", {"workers": 2}),
        ("broken", {"piece_bytes": 1 << 14}),
    ],
)
def test_the_index_and_its_ledger_are_the_same(both, name, options):
    loose, sharded = both(name, **options)
    for column in COLUMNS:
        np.testing.assert_array_equal(getattr(loose, column), getattr(sharded, column))
    assert loose.content_hash == sharded.content_hash
    assert loose.ledger() == sharded.ledger() and (name == "good" or loose.ledger())
    assert loose.counts == sharded.counts
    assert [loose.record(i) for i in range(len(loose))] == [
        sharded.record(i) for i in range(len(sharded))
    ]


def plan_of(built):
    ids = [index.effective(built, seed=3, epoch=epoch) for epoch in range(2)]
    lengths = plan_lib.Lengths(
        built.prompt_tokens, built.chosen_tokens, built.rejected_tokens, built.tiles
    )
    return plan_lib.plan_epochs(
        lengths, ids, shapes=SHAPES, rows_per_batch=(4,), seed=3, window=16
    )


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_bit_for_bit(world, both, workers):
    loose, sharded = both("good")
    plans = plan_of(loose), plan_of(sharded)
    assert plans[0].fingerprint == plans[1].fingerprint and plans[0].num_batches > 3
    loaders = [
        pipeline.ExampleLoader(built, str(world[1]), tiny_mmpr.POLICY)
        for built in (loose, sharded)
    ]
    sizes = SIZES | {"img_context_id": loaders[0].img_context_id}
    want = collect(plans[0], loaders[0], **sizes)
    assert sum(int(batch["tiles"].any()) for _, batch in want)
    got = collect(plans[1], loaders[1], workers=workers, threads=3, **sizes)
    assert_same(got, want)
    if not workers:
        middle = collect(plans[1], loaders[1], start_batch=2, threads=2, **sizes)
        assert_same(middle, want[2:])


def test_images_are_stored_once(world):
    manifest = json.loads((world[0] / "good-shards/shards.json").read_text())
    stored = [sum(e["records"] for e in manifest["files"][kind]) for kind in
              (array_records.LINES, array_records.IMAGES)]  # fmt: skip
    assert stored == [55, 4]
    assert [len(manifest["files"][k]) for k in ("lines", "images")] == [3, 3]


def test_tfds_opens_the_shards_and_tensorflow_is_not_loaded(world):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "b = tfds.builder_from_directory(sys.argv[1])\n"
        "s = b.as_data_source('train')\n"
        "print(len(s), [s[i]['number'] for i in (0, 20, 54)], s[0]['text'].decode())\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    folder = world[0] / "good-shards/mmpr/lines/1.0.0"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first = (world[0] / "good/single.jsonl").read_text().splitlines()[0]
    assert done.stdout.strip() == f"55 [0, 20, 54] {first}"


def test_reading_needs_no_tfds(world):
    code = (
        "import sys\n"
        "from mpo_jax.mmpr import index\n"
        "from mpo_jax.packing import pipeline\n"
        "assert not {'tensorflow_datasets', 'apache_beam'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_shards_may_move_and_loose_files_go(world, tmp_path):
    """A moved folder keeps its index; meta.json beside the shards can be edited."""
    root = tmp_path / "source"
    shutil.copytree(world[0] / "good", root)
    meta = root / "meta.json"
    first = shard_writer.write_shards(meta, tmp_path / "a", num_shards=1).directory
    built = build(world, first, tmp_path / "out")
    records = [built.record(i) for i in range(len(built))]
    shutil.rmtree(root)
    moved = pathlib.Path(first).rename(tmp_path / "b")
    again = build(world, moved / "meta.json", tmp_path / "out")
    assert again.directory == built.directory
    crossed = pickle.loads(pickle.dumps(again))
    assert [crossed.record(i) for i in range(len(crossed))] == records
    entries = json.loads((moved / "meta.json").read_text())
    entries["text"]["repeat_time"] = 2
    del entries["single"]
    (moved / "meta.json").write_text(json.dumps(entries))
    edited = build(world, moved, tmp_path / "out")
    assert [s.name for s in edited.sources] == ["multi", "text"]
    assert edited.sources[1].repeat_time == 2 and len(edited) == 35
    (moved / "meta.json").write_text(json.dumps({"other": entries["text"]}))
    with pytest.raises(ValueError, match="source 'other'.*hold no such source"):
        build(world, moved, tmp_path / "out")


@pytest.fixture
def copied(world, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(world[0] / "good-shards", folder)
    return folder


def shard(folder: pathlib.Path, kind: str, number: int) -> pathlib.Path:
    manifest = json.loads((folder / "shards.json").read_text())
    return folder / manifest["files"][kind][number]["path"]


@pytest.mark.parametrize("harm", ["missing", "cut", "swapped"])
@pytest.mark.parametrize("kind", ["lines", "images"])
def test_a_wrong_shard_is_named_at_the_start(world, copied, tmp_path, harm, kind):
    victim = shard(copied, kind, 1)
    if harm == "missing":
        victim.unlink()
        text = "is missing"
    elif harm == "cut":
        victim.write_bytes(victim.read_bytes()[:-5])
        text = "has .* bytes, .* were written"
    else:
        shutil.copy(shard(copied, kind, 0), victim)
        text = "is not the one that was written"
    with pytest.raises(ValueError, match=f"{victim.name}.*{text}"):
        build(world, copied, tmp_path / "out")


def test_damage_while_running_names_the_shard(world, copied, tmp_path):
    """Past the check at the start: the store is open when the files change."""
    built = build(world, copied, tmp_path / "out")
    loader = pipeline.ExampleLoader(built, str(world[1]), tiny_mmpr.POLICY)
    loader(0)
    built.close()
    victim = shard(copied, "images", 1)
    data = bytearray(victim.read_bytes())
    data[: len(data) // 2] = b"\xff" * (len(data) // 2)
    victim.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="images.*00001-of-00003.*cannot be read"):
        for number in range(len(built)):
            loader(number)


def test_verify_reads_everything(copied):
    assert shard_writer.verify(copied) == 6
    victim = shard(copied, "lines", 2)
    data = bytearray(victim.read_bytes())
    step = (len(data) - array_records.SAMPLE["block"]) // 15
    hidden = array_records.SAMPLE["block"] + 9  # between two sampled blocks
    assert hidden < step
    data[hidden] ^= 1
    victim.write_bytes(bytes(data))
    array_records.ShardStore(copied)  # sampled blocks do not see it
    with pytest.raises(ValueError, match=victim.name):
        shard_writer.verify(copied)


def test_other_shards_than_the_index_was_made_from(world, copied, tmp_path):
    built = build(world, copied, tmp_path / "out")
    shutil.rmtree(copied)
    shutil.copytree(world[0] / "broken-shards", copied)
    with pytest.raises(ValueError, match="the index was made from"):
        index.load_index(built.directory).record(0)


def test_interrupted_writing_leaves_nothing_half_valid(world, tmp_path, monkeypatch):
    _, _, metas = world
    target = tmp_path / "shards"
    real, calls = shard_work.Work._image, []

    def interrupt(work, path):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(work, path)

    monkeypatch.setattr(shard_work.Work, "_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        shard_writer.write_shards(metas["good"], target)
    assert not target.exists()
    with pytest.raises(FileNotFoundError, match="meta file"):
        build(world, target, tmp_path / "out")
    unfinished = target.with_name("shards.building")
    assert unfinished.is_dir()
    with pytest.raises(FileNotFoundError, match="shards.json is absent"):
        build(world, unfinished, tmp_path / "out")
    monkeypatch.undo()
    store = shard_writer.write_shards(metas["good"], target)
    assert not unfinished.exists() and not (target / "lists").exists()
    before = (target / "shards.json").stat().st_mtime_ns
    again = shard_writer.write_shards(metas["good"], target)  # finds them
    assert again.fingerprint == store.fingerprint
    assert (target / "shards.json").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="holds the shards of other annotations"):
        shard_writer.write_shards(metas["broken"], target)


def image_bytes(folder):
    store = array_records.ShardStore(folder)
    return [store.image(number) for number in range(4)]


@pytest.fixture
def mutable(world, tmp_path):
    """A copy of the good data that a test may change, and where its shards go."""
    shutil.copytree(world[0] / "good", tmp_path / "data")
    return tmp_path / "data", tmp_path / "shards"


def test_images_that_come_after_the_shards_are_written_too(mutable):
    data, target = mutable
    (data / "images/1.png").rename(data / "1.png")
    notes = []
    meta = data / "meta.json"
    shard_writer.write_shards(meta, target, progress=notes.append)
    assert "1 of 4 image files are missing (the first: " in " ".join(notes)
    assert [data is None for data in image_bytes(target)] == [False, True, False, False]
    (data / "1.png").rename(data / "images/1.png")
    notes.clear()
    shard_writer.write_shards(meta, target, progress=notes.append)
    assert "1 images are not those" in " ".join(notes)
    assert None not in image_bytes(target)
    assert sorted(path.name for path in target.parent.iterdir()) == ["data", "shards"]


def test_shards_do_not_keep_the_pixels_of_replaced_images(mutable):
    data, target = mutable
    meta = data / "meta.json"
    before = shard_writer.write_shards(meta, target).fingerprint
    (data / "images/0.png").touch()  # another time, the same bytes
    stamp = (target / "shards.json").stat().st_mtime_ns
    assert shard_writer.write_shards(meta, target).fingerprint == before
    assert (target / "shards.json").stat().st_mtime_ns == stamp
    tiny_mmpr.write_image(data / "images/2.png", seed=7)
    shard_writer.write_shards(meta, target)
    assert (data / "images/2.png").read_bytes() in image_bytes(target)


def test_shards_are_not_lost_to_images_that_are_gone(mutable):
    """To delete the loose images is a reason to have shards."""
    data, target = mutable
    meta = data / "meta.json"
    before = shard_writer.write_shards(meta, target).fingerprint
    (data / "images/1.png").rename(data / "1.png")
    notes = []
    again = shard_writer.write_shards(meta, target, progress=notes.append)
    assert again.fingerprint == before and "1 image files are gone" in notes[0]
    tiny_mmpr.write_image(data / "images/0.png", seed=7)
    with pytest.raises(ValueError, match="put those back, or name another folder"):
        shard_writer.write_shards(meta, target)
    assert array_records.ShardStore(target).fingerprint == before
    (data / "1.png").rename(data / "images/1.png")  # the remedy
    shard_writer.write_shards(meta, target)
    for name in ("0.png", "1.png"):  # the new pixels, and what came back
        assert (data / "images" / name).read_bytes() in image_bytes(target)


def test_shards_without_images_are_not_written(mutable):
    data, target = mutable
    (data / "images").rename(data / "elsewhere")
    wanted = "4 of 4 image files are missing.*'single' has root .*images .no folder."
    with pytest.raises(ValueError, match=wanted):
        shard_writer.write_shards(data / "meta.json", target)
    assert [path.name for path in target.parent.iterdir()] == ["data"]
    (data / "elsewhere").rename(data / "images")
    assert None not in image_bytes(
        shard_writer.write_shards(data / "meta.json", target).directory
    )


def test_a_folder_of_something_else_is_left_alone(mutable):
    data, target = mutable
    target.mkdir()
    (target / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else.*name another folder"):
        shard_writer.write_shards(data / "meta.json", target)
    (target / "thesis.tex").unlink()
    shard_writer.write_shards(data / "meta.json", target)


@pytest.mark.slow
def test_two_calls_write_one_set(mutable):
    """The second waits for the first, and finds what it has written."""
    data, target = mutable
    code = (
        "import sys\n"
        "from mpo_jax.mmpr import shard_writer\n"
        "print(shard_writer.write_shards(*sys.argv[1:]).fingerprint)\n"
    )
    command = [sys.executable, "-c", code, str(data / "meta.json"), str(target)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(3)]
    while started[0].poll() is None and not list(target.parent.glob("*.building")):
        time.sleep(0.01)
    started[0].kill()
    started[0].communicate()
    printed = [process.communicate(timeout=200)[0] for process in started[1:]]
    assert [process.returncode for process in started[1:]] == [0, 0]
    assert printed[0] == printed[1]
    assert sorted(path.name for path in target.parent.iterdir()) == ["data", "shards"]


def test_limits_that_shards_cannot_serve(world, tmp_path):
    with pytest.raises(ValueError, match="longer lines than 1000000 were cut"):
        build(
            world,
            world[0] / "broken-shards",
            tmp_path / "out",
            max_text_bytes=5_000_000,
        )
    with pytest.raises(ValueError, match="reroot='a=b'.*leave it empty"):
        build(world, world[0] / "good-shards", tmp_path / "out", reroot="a=b")


def test_shards_know_where_images_were_looked_for(world, tmp_path, monkeypatch):
    """Absolute paths, an empty root and reroot give the same as the loose files."""
    image = tiny_mmpr.write_image(tmp_path / "images" / "a.png")
    lines = [tiny_mmpr.pair(0, image=str(image)), tiny_mmpr.pair(1, image="/mnt/a.png")]
    tiny_mmpr.write_lines(tmp_path / "a.jsonl", lines)
    roots = {"any": "", "top": "/", "images": "images", "other": "/mnt"}
    sources = {key: {"root": r, "annotation": "a.jsonl"} for key, r in roots.items()}
    meta = tiny_mmpr.write_meta(tmp_path, sources)
    rule = "/mnt=images"
    loose = build(world, meta, tmp_path / "loose", reroot=rule)
    assert [counts.kept for counts in loose.counts] == [2, 2, 2, 2]
    monkeypatch.setenv("HOME", str(tmp_path))
    shard_writer.write_shards("~/meta.json", tmp_path / "shards", reroot=rule)
    with pytest.raises(ValueError, match="holds the shards of other annotations"):
        shard_writer.write_shards(meta, tmp_path / "shards", reroot="/mnt=elsewhere")
    image.unlink()
    sharded = build(world, "~/shards", tmp_path / "out")
    assert sharded.content_hash == loose.content_hash
    assert sharded.record(0) == loose.record(0)


def test_text_only_data_has_no_images(world, tmp_path):
    tiny_mmpr.write_lines(tmp_path / "t.jsonl", [tiny_mmpr.pair(i) for i in range(9)])
    meta = tiny_mmpr.write_meta(tmp_path, {"t": {"root": ".", "annotation": "t.jsonl"}})
    shard_writer.write_shards(meta, tmp_path / "shards")
    assert len(build(world, tmp_path / "shards", tmp_path / "out")) == 9


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache_beam is absent"
)
@pytest.mark.parametrize("workers", [1, 2])
def test_beam_writes_the_same_records(world, tmp_path, workers):
    root, _, metas = world
    options = ["--runner=DirectRunner", f"--direct_num_workers={workers}"]
    if workers > 1:
        options.append("--direct_running_mode=multi_processing")
    for name in metas:
        target = tmp_path / f"{name}-shards"
        shard_writer.write_shards(
            metas[name], target, num_shards=3, beam_options=options
        )
        one = build(world, root / f"{name}-shards", tmp_path / "one")
        other = build(world, target, tmp_path / "other")
        assert one.content_hash == other.content_hash
        assert one.ledger() == other.ledger()


@pytest.mark.slow
def test_the_script_writes_indexes_and_verifies(world, tmp_path, root):
    data, tokenizer, metas = world

    def run(*args):
        return subprocess.run(
            [sys.executable, str(root / "scripts/prepare_data.py"), *args],
            capture_output=True,
            text=True,
            timeout=200,
        )

    target = tmp_path / "shards"
    done = run(f"--meta={metas['good']}", f"--shards={target}", "--num_shards=2")
    assert done.returncode == 0, done.stderr
    done = run(
        f"--meta={target}",
        "--verify",
        f"--tokenizer={tokenizer}",
        f"--out={tmp_path / 'out'}",
        "--template=Hermes-2",
        "--image_size=28",
        "--tokens_per_tile=4",
        "--workers=1",
    )
    assert done.returncode == 0, done.stderr
    assert "4 shards are as they were written" in done.stdout
    assert list((tmp_path / "out").glob("*/manifest.json"))
