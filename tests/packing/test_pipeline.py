"""The stream of batches depends on the plan alone, however it is produced."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
import time

import grain
import loaded
import numpy as np
import pytest
from absl import flags

from mpo_jax import ledger
from mpo_jax.mmpr import examples, index
from mpo_jax.packing import pipeline
from mpo_jax.packing import plan as plan_lib
from mpo_jax.packing.batch_source import BatchSource, LoadError
from mpo_jax.types import Example, RowShape
from mpo_jax.utils import statuses

IMG = 7
SIZES = {"img_context_id": IMG, "tokens_per_tile": 2, "image_size": 4}
SHAPES = (RowShape(24, 12, 12, 4, 4), RowShape(40, 30, 30, 5, 2))
RECORDS = 60


def sizes_of(i: int) -> tuple[int, int, int, int]:
    """Text, chosen and rejected tokens and tiles of record `i`; all vary."""
    chosen = 20 if i % 11 == 0 else 1 + i % 5
    return 2 + i % 7, chosen, 1 + i % 4, i % 3


def load(i: int) -> Example:
    """Stand-in for `ExampleLoader`: arrays that tell which record they are of."""
    text, c, r, m = sizes_of(i)
    prompt = np.concatenate([np.full(2 * m, IMG), np.full(text, 1000 + i)])

    def side(name, n, base):
        return {
            f"{name}_tokens": np.full(n, base + i, np.int32),
            f"{name}_labels": np.full(n, base + i + 500, np.int32),
            f"{name}_mask": np.ones(n, bool),
        }

    return Example(
        prompt=prompt.astype(np.int32),
        **side("chosen", c, 2000),
        **side("rejected", r, 3000),
        tiles=np.full((m, 4, 4, 3), i, np.uint8),
        num_tiles=m,
    )


class Unpicklable(Exception):
    def __init__(self, a, b):
        super().__init__(f"{a} and {b}")


def load_but_fail(i: int, *, bad: int, detail: str = "") -> Example:
    """Fail as a record that went bad (with `detail`) or in an odd way (without)."""
    if i != bad:
        return load(i)
    if detail:
        raise ledger.BadRecord("image_missing", detail)
    raise Unpicklable("disk", "on fire")


@pytest.fixture(scope="module")
def plan() -> plan_lib.PlanSequence:
    rows = np.array([sizes_of(i) for i in range(RECORDS)], np.int32)
    lengths = plan_lib.Lengths(
        prompt=rows[:, 0] + 2 * rows[:, 3],
        chosen=rows[:, 1],
        rejected=rows[:, 2],
        tiles=rows[:, 3],
    )
    ids = np.arange(RECORDS)
    return plan_lib.plan_epochs(
        lengths, [ids, ids[::2]], shapes=SHAPES, rows_per_batch=(4, 4), seed=0
    )


def collect(plan, load_example=load, **kwargs):
    return loaded.collect(plan, load_example, **(SIZES | kwargs))


def test_every_record_arrives_as_planned(plan):
    batches = collect(plan)
    assert [n for n, _ in batches] == list(range(plan.num_batches))
    seen = []
    for n, batch in batches:
        shape, rows = plan.batch(n)
        assert batch["tokens"].shape == (4, SHAPES[shape].tokens)
        for b, row in enumerate(rows):
            ids = batch["record_ids"][b][batch["pair_mask"][b]]
            assert ids.tolist() == row.tolist()
            seen += ids.tolist()
            # Content, tiles and reference log-probs are those of the records.
            np.testing.assert_array_equal(
                batch["ref_logps"][b, : len(row)], loaded.look_up(row)
            )
            for k, i in enumerate(row.tolist()):
                tokens = batch["tokens"][b][batch["segment_ids"][b] == k + 1]
                assert set(tokens.tolist()) - {IMG} == {1000 + i, 2000 + i, 3000 + i}
            tiles = [i for i in row.tolist() for _ in range(sizes_of(i)[3])]
            assert batch["tiles"][b, : len(tiles), 0, 0, 0].tolist() == tiles
    want = [*range(RECORDS), *range(0, RECORDS, 2)]
    assert sorted(seen) == sorted(want)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"threads": 4},
        {"threads": 0, "prefetch": 0},
        {"workers": 1, "threads": 4},
        {"workers": 2, "threads": 0, "prefetch": 3},
    ],
)
def test_stream_does_not_depend_on_workers_and_threads(plan, options):
    loaded.assert_same(collect(plan, **options), collect(plan))


@pytest.mark.parametrize("count", [2, 4])
def test_a_process_makes_the_rows_it_is_told(plan, count):
    """Also rows that lie apart, and rows that another process makes too."""
    whole = collect(plan)
    for first in range(count):
        rows = [np.arange(first, total, count) for total in plan.rows_per_batch]
        rows[1] = rows[1][::-1]  # each shape has its own
        part = collect(plan, rows=rows)
        wanted = [
            (n, {k: v[rows[plan.batch(n)[0]]] for k, v in batch.items()})
            for n, batch in whole
        ]
        loaded.assert_same(part, wanted)


def test_resume_at_any_batch_equals_the_uninterrupted_stream(plan):
    whole = collect(plan)
    with pipeline.make_loader(plan, load, **SIZES, ref_lookup=loaded.look_up) as loader:
        for stop in range(plan.num_batches + 1):
            state = {"next_batch": stop, "plan": plan.fingerprint, "epoch": 0}
            start = pipeline.resume_batch(json.loads(json.dumps(state)), plan)
            assert start == stop and len(loader) == plan.num_batches - stop
            # Other process and thread numbers than before the interruption.
            rest = collect(plan, start_batch=start, threads=1 + stop % 2)
            loaded.assert_same(rest, whole[stop:])
            assert next(loader, (None,))[0] == (
                stop if stop < plan.num_batches else None
            )


@pytest.mark.slow
def test_resume_with_workers(plan):
    rest = collect(plan, start_batch=1, workers=2, prefetch=0)
    loaded.assert_same(rest, collect(plan)[1:])


def test_state_of_another_plan_is_refused(plan):
    state = {"next_batch": 3, "plan": plan.plans[0].fingerprint}
    with pytest.raises(ValueError, match="another|was made with pack plan"):
        pipeline.resume_batch(state, plan)
    with pytest.raises(ValueError, match="lacks .'plan'."):
        pipeline.resume_batch({"next_batch": 3}, plan)
    with pytest.raises(ValueError, match="start_batch=99"):
        collect(plan, start_batch=99)


def test_grain_state_restores(plan):
    source = BatchSource(plan, load, **SIZES, ref_lookup=loaded.look_up)
    dataset = pipeline.make_dataset(source, start_batch=2).map(vars)
    grain.experimental.assert_equal_output_after_checkpoint(dataset)
    source.close()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_record_that_went_bad_stops_the_run(plan, workers):
    _, rows = plan.batch(3)
    bad = int(rows[0][0])
    detail = "a.jsonl, line 9: cat.png is gone"
    loader = functools.partial(load_but_fail, bad=bad, detail=detail)
    want = (
        rf"batch \d+, record {bad}: image_missing: a.jsonl, line 9: cat.png is gone.*"
        "start again"
    )
    with pytest.raises(LoadError, match=want):
        collect(plan, loader, workers=workers, threads=2)


def away(i: int) -> Example:
    raise statuses.TryAgain("cat.png: Input/output error")


@pytest.mark.parametrize("workers", [0, 1])
def test_storage_that_stays_away_asks_for_another_start(plan, workers):
    """Also out of a worker process, where causes are lost."""
    with pytest.raises(LoadError, match=r"batch \d+, record \d+: cat.png") as raised:
        collect(plan, away, workers=workers, threads=2)
    assert isinstance(raised.value, statuses.TryAgain)


def test_any_error_of_a_worker_carries_its_text(plan):
    loader = functools.partial(load_but_fail, bad=4)
    source = BatchSource(plan, loader, **SIZES)
    with pytest.raises(LoadError, match="record 4: Unpick.* disk and on fire"):
        for n in range(len(source)):
            source[n]
    crossed = pickle.loads(pickle.dumps(LoadError("record 4: disk")))
    assert str(crossed) == "record 4: disk"


def test_errors_of_the_reference_cache_name_the_batch(plan):
    def wrong_shape(ids):
        return np.zeros((len(ids), 3))

    def missing(ids):
        raise KeyError("no such record")

    with pytest.raises(LoadError, match="batch 0: ref_lookup gave shape"):
        collect(plan, ref_lookup=wrong_shape)
    with pytest.raises(LoadError, match="batch 0, reference .*no such record"):
        collect(plan, ref_lookup=missing)


def test_without_reference_there_is_none(plan):
    source = BatchSource(plan, load, **SIZES)
    assert source[0].ref_logps is None


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rows": [np.array([0, 4]), np.array([0])]}, "shape 0 are not in the 4 rows"),
        ({"rows": [np.array([0]), np.array([], int)]}, "of row shape 1 are not in"),
        ({"workers": -1}, "workers=-1"),
    ],
)
def test_bad_arguments(plan, options, text):
    with pytest.raises(ValueError, match=text):
        collect(plan, **options)


def test_empty_plan_is_refused(plan):
    lengths = plan_lib.Lengths(*[np.full(2, 99, np.int32)] * 4)
    empty = plan_lib.make_plan(
        lengths, np.arange(2), shapes=SHAPES, rows_per_batch=(4, 4), seed=0, epoch=0
    )
    with pytest.raises(ValueError, match="no batch; 2 records fit no row shape"):
        collect(empty)


def read_one(plan) -> None:
    """Program of its own: start workers, say which, wait to be killed."""
    loader = pipeline.make_loader(plan, load, workers=2, **SIZES)
    next(loader)
    workers = [child.pid for child in multiprocessing.active_children()]
    print(json.dumps(workers), flush=True)
    time.sleep(300)


@pytest.mark.slow
def test_workers_end_with_a_killed_process(plan, tmp_path):
    """SIGKILL, as of the kernel where memory is short, lets nobody clear up."""
    stored = tmp_path / "plan"
    stored.write_bytes(pickle.dumps(plan))
    code = (
        "import pickle, sys; from absl import flags; import test_pipeline\n"
        "if __name__ == '__main__':\n"
        "    flags.FLAGS(sys.argv[:1])\n"
        f"    test_pipeline.read_one(pickle.load(open({str(stored)!r}, 'rb')))"
    )
    (tmp_path / "program.py").write_text(code)
    here = pathlib.Path(__file__).parent
    paths = os.pathsep.join([str(here), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert process.stdout is not None
    try:
        workers = json.loads(process.stdout.readline())
        assert len(workers) == 2
    finally:
        process.kill()
        process.wait()
    deadline = time.time() + 150
    while any(_runs(pid) for pid in workers):
        assert time.time() < deadline, "workers are left"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    except FileNotFoundError:
        return False
    return state.split()[0] != "Z"


def test_workers_need_parsed_flags(plan, monkeypatch):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    with pytest.raises(RuntimeError, match="absl.app.run"):
        collect(plan, workers=1)


def test_closed_loader(plan):
    loader = pipeline.make_loader(plan, load, **SIZES, threads=2)
    next(loader)
    loader.close()
    loader.close()
    with pytest.raises(ValueError, match="closed"):
        next(loader)


@pytest.fixture(scope="module")
def real_index(shared, tmp_path_factory):
    """A dozen pairs of the real data, indexed."""
    folder = shared / "data" / "pref_mathv_real"
    meta = json.loads((folder / "meta.json").read_text())
    (name, entry), *_ = meta.items()
    out = tmp_path_factory.mktemp("index")
    lines = (folder / entry["annotation"]).read_text().splitlines()[:12]
    annotation = out / "pairs.jsonl"
    annotation.write_text("\n".join(lines) + "\n")
    root = (folder / entry["root"]).resolve()
    entry = entry | {"annotation": str(annotation), "root": str(root)}
    (out / "meta.json").write_text(json.dumps({name: entry}))
    tokenizer_path = str(shared / "data" / "tokenizers" / "internvl2_2b")
    policy = examples.EncodePolicy(
        template="internlm2-chat",
        image_size=28,
        tokens_per_tile=4,
        min_tiles=1,
        max_tiles=4,
        use_thumbnail=True,
        max_image_pixels=10**8,
    )
    built = index.build_index(
        out / "meta.json",
        out,
        tokenizer_path=tokenizer_path,
        policy=policy,
        workers=1,
    )
    return built, tokenizer_path, policy, annotation


def test_real_records(real_index):
    """Index, plan, loader; then a policy and a file that change."""
    built, tokenizer_path, policy, annotation = real_index
    lengths = plan_lib.Lengths(
        built.prompt_tokens, built.chosen_tokens, built.rejected_tokens, built.tiles
    )
    plan = plan_lib.make_plan(
        lengths,
        np.arange(len(built)),
        shapes=(RowShape(2048, 2048, 2048, 30, 6),),
        rows_per_batch=(2,),
        seed=0,
        epoch=0,
    )
    assert plan.num_pairs == len(built) == 12
    load_real = pipeline.ExampleLoader(built, tokenizer_path, policy)
    sizes = {
        "img_context_id": load_real.img_context_id,
        "tokens_per_tile": 4,
        "image_size": 28,
        "ref_lookup": None,
    }
    batches = collect(plan, load_real, **sizes)
    for _, batch in batches:
        for b in range(2):
            ids = batch["record_ids"][b][batch["pair_mask"][b]]
            assert (batch["image_slot"][b] >= 0).sum() == built.tiles[ids].sum() * 4
            labels = built.chosen_labels[ids].sum() + built.rejected_labels[ids].sum()
            assert batch["label_mask"][b].sum() == labels
    crossed = pickle.loads(pickle.dumps(load_real))
    loaded.assert_same(collect(plan, crossed, threads=3, **sizes), batches)

    other = policy.__class__(**(policy.fingerprint() | {"max_tiles": 6}))
    with pytest.raises(ValueError, match="the policy is not the one"):
        pipeline.ExampleLoader(built, tokenizer_path, other)

    text = annotation.read_text()
    assert "the" in text
    annotation.write_text(text.replace("the", "eht"))  # the same length in bytes
    try:
        with pytest.raises(LoadError, match=r"pairs.jsonl, line \d+: text or"):
            collect(plan, load_real, **sizes)
    finally:
        annotation.write_text(text)
