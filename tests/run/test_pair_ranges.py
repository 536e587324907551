"""Pairs made range by range: the files of the plain build, whoever made the parts."""

from __future__ import annotations

import collections
import functools
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys

import pytest
import wild_rollouts

from mpo_jax.prefs import (
    legacy,
    pair_counts,
    pair_files,
    pairs,
    rollout_counts,
    rollouts,
)
from mpo_jax.run import legacy_judging, pair_ranges, pairing

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None, reason="apache_beam is absent"
)
RULES = (
    {},
    {"max_pairs": 2, "seed": 7, "format_negatives": "mixed"},
    {"min_accuracy": 0.2, "max_accuracy": 0.8, "truncated_negatives": "none"},
    {"max_length_ratio": 1.2, "truncated_negatives": "mixed"},
)


@pytest.fixture(scope="module")
def judge():
    with pairing.open_judge(1) as (found, _):
        yield found


@pytest.fixture
def wild(tmp_path):
    """Two files of many sources; the second ends in the middle of a line."""
    folder = tmp_path / "data"
    return [
        str(wild_rollouts.write(folder / "one.jsonl", 1, 60)),
        str(wild_rollouts.write(folder / "zwei ä.jsonl", 2, 40, cut_off=True)),
    ]


def here(judge, *, seed=0):
    """Does the work in this process, in any order, as a worker would that gets it."""

    def spread(work, ranges):
        order = list(ranges)
        random.Random(seed).shuffle(order)
        for item in order:
            other, (number, lines) = pickle.loads(pickle.dumps((work, item)))
            other.do(number, lines, judge)

    return spread


def job(inputs, output, **rules):
    return pairing.Job(inputs, output, "", pairs.Rules(**rules), ["pins"])


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("size", [1, 700, 5000, 10**8])
def test_ranges_change_nothing(tmp_path, judge, wild, size, rules):
    told = pairing.build(job(wild, tmp_path / "plain", **rules), judge)
    assert told["pairs"] > 20 and told["left_out"]["bad_json"] > 5
    again = pair_ranges.build(
        job(wild, tmp_path / "spread", **rules), here(judge, seed=size), size=size
    )
    plain = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "spread") == plain
    assert again == told and len(plain) > 8
    assert {p.name for p in tmp_path.iterdir()} == {"data", "plain", "spread"}


def pairs_of(folder, source):
    """Lines of a source's files, by name."""
    files = (folder / "annotations").glob(f"{source}_pairs_*.jsonl")
    return {path.name: path.read_bytes().splitlines() for path in files}


@pytest.mark.parametrize("size", [700, 10**8])
def test_a_source_with_many_rollouts_makes_few_pairs(
    tmp_path, judge, wild, monkeypatch, size
):
    counts = rollout_counts.by_source(wild[0]) + rollout_counts.by_source(wild[1])
    (many, _), *fewer = counts.most_common()
    monkeypatch.setattr(legacy, "MANY_ROLLOUTS", fewer[0][1])
    jobs = [
        legacy_judging.limited(job(wild, tmp_path / name)) for name in ("plain", "beam")
    ]
    told = pairing.build(jobs[0], judge)
    again = pair_ranges.build(jobs[1], here(judge), size=size)
    assert told == again and told["rules"]["max_pairs_of"] == {many: 3}
    plain = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "beam") == plain

    pairing.build(job(wild, tmp_path / "free"), judge)
    for source in {"geo", "signs", "chart qa", "ü"} - {many}:
        free = pairs_of(tmp_path / "free", source)
        assert free and pairs_of(tmp_path / "plain", source) == free
    before, now = (pairs_of(tmp_path / name, many) for name in ("free", "plain"))
    for name, lines in before.items():
        prompts = collections.Counter(prompt_of(line) for line in lines)
        found = collections.Counter(prompt_of(line) for line in now[name])
        assert found == {prompt: min(3, n) for prompt, n in prompts.items()}
    assert sum(map(len, now.values())) < sum(map(len, before.values()))


def prompt_of(line):
    found = json.loads(line)
    return found["id"], found.get("prompt_version")


def test_a_limit_that_is_low_needs_no_count(tmp_path):
    given = job(["nowhere.jsonl"], tmp_path / "out", max_pairs=3)
    assert legacy_judging.limited(given) is given
    with pytest.raises(FileNotFoundError):
        legacy_judging.limited(job(["nowhere.jsonl"], tmp_path / "out", max_pairs=4))


def test_work_that_is_done_is_not_done_again(tmp_path, judge, wild):
    def idle(groups):
        raise AssertionError("judged again")

    def spread(work, ranges):
        here(judge)(work, ranges)
        here(idle)(work, ranges)

    pairing.build(job(wild, tmp_path / "plain"), judge)
    pair_ranges.build(job(wild, tmp_path / "twice"), spread, size=3000)
    plain = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "twice") == plain


def test_the_same_file_twice_and_empty_ones(tmp_path, judge, wild):
    empty = tmp_path / "data" / "empty.jsonl"
    empty.touch()
    inputs = [wild[0], str(empty), wild[0]]
    pairing.build(job(inputs, tmp_path / "plain"), judge)
    pair_ranges.build(job(inputs, tmp_path / "spread"), here(judge), size=3000)
    plain = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "spread") == plain
    pairing.build(job([str(empty)], tmp_path / "none"), judge)
    pair_ranges.build(job([str(empty)], tmp_path / "nothing"), here(judge))
    none = wild_rollouts.contents(tmp_path / "none")
    assert wild_rollouts.contents(tmp_path / "nothing") == none


def refusals(tmp_path, judge, inputs):
    """What both ways say; neither leaves anything."""
    said = []
    for build in (
        lambda job: pairing.build(job, judge),
        lambda job: pair_ranges.build(job, here(judge), size=500),
    ):
        with pytest.raises(ValueError) as error:
            build(job(inputs, tmp_path / "out"))
        said.append(str(error.value))
        assert {p.name for p in tmp_path.iterdir()} == {"data"}
    return said


def test_the_same_is_refused(tmp_path, judge, wild, monkeypatch):
    with open(wild[0], "r+b") as file:
        first = file.readline()
        file.seek(0, os.SEEK_END)
        file.write(first)
    one, other = refusals(tmp_path, judge, wild)
    assert one == other and "prompts do not stand together" in one
    monkeypatch.setattr(pair_files, "MAX_SOURCES", 3)
    one, other = refusals(tmp_path, judge, wild[1:])
    assert one == other and "is one of more than 3" in one
    one, other = refusals(tmp_path, judge, [])
    assert one == other and "input is empty" in one


def changing(path, spread):
    """A file changes before the work is spread."""

    def run(work, ranges):
        with open(path, "ab") as file:
            file.write(b"\n")
        spread(work, ranges)
        assert work.part(0).is_dir()  # workers go on; the driver refuses

    return run


def test_a_file_that_changes_is_refused(tmp_path, judge, wild):
    spread = changing(wild[0], here(judge))
    with pytest.raises(
        ValueError, match=r"one.jsonl has changed since it was cut"
    ) as e:
        pair_ranges.build(job(wild, tmp_path / "out"), spread)
    assert "in read_range" in e.value.__notes__[0]
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def test_a_worker_that_fails_leaves_nothing(tmp_path, judge, wild):
    def fail(groups):
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        pair_ranges.build(job(wild, tmp_path / "out"), here(fail))
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def test_counts_add_up_in_any_order(judge, wild):
    parts = []
    whole = pair_counts.Counts()
    for found in rollouts.read(wild[0], root="/data"):
        own = pair_counts.Counts()
        for counts in (own, whole):
            if isinstance(found, rollouts.Group):
                (judged,) = judge([found])
                counts.add(found, judged, pairs.make(found, judged, pairs.Rules()))
            else:
                counts.leave_out(found)
        parts.append(json.dumps(own.state()))
    assert whole.report()["pairs"] and whole.report()["left_out"]
    random.Random(0).shuffle(parts)
    sums = [pair_counts.Counts() for _ in range(3)]
    for i, part in enumerate(parts):
        sums[i % 3].merge(pair_counts.Counts.of(json.loads(part)))
    total = pair_counts.Counts()
    for one in sums:
        total.merge(one)
    assert total == whole and total.report() == whole.report()


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ("--runner=DirectRunner",),
        ("--runner=DirectRunner", "--direct_num_workers=4"),
        (
            "--runner=DirectRunner",
            "--direct_num_workers=4",
            "--direct_running_mode=multi_processing",
        ),
    ],
)
@pytest.mark.parametrize("size", [1500, 20_000])
def test_beam_writes_the_same_files(tmp_path, judge, wild, options, size):
    from mpo_jax.run import beam_pairing

    rules = RULES[1]
    opening = functools.partial(pairing.open_judge, 1)
    with opening() as (_, pins):
        spread = beam_pairing.spread(options, opening, pins)
    pairing.build(job(wild, tmp_path / "plain", **rules), judge)
    pair_ranges.build(job(wild, tmp_path / "beam", **rules), spread, size=size)
    plain = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "beam") == plain


@needs_beam
@pytest.mark.slow
def test_beam_refuses_what_the_plain_build_refuses(tmp_path, wild):
    from mpo_jax.run import beam_pairing

    opening = functools.partial(legacy_judging.open_judge, 1, fix=False)
    with opening() as (_, pins):
        pass
    options = ["--runner=DirectRunner"]
    spread = beam_pairing.spread(options, opening, ["other rules"])
    with pytest.raises(Exception, match="install the same versions everywhere"):
        pair_ranges.build(job(wild, tmp_path / "out"), spread)
    with open(wild[0], "r+b") as file:
        first = file.readline()
        file.seek(0, os.SEEK_END)
        file.write(first)
    processes = [*options, "--direct_running_mode=multi_processing"]
    spread = changing(wild[1], beam_pairing.spread(processes, opening, pins))
    with pytest.raises(ValueError, match="has changed since it was cut"):
        pair_ranges.build(job(wild, tmp_path / "out"), spread)
    spread = beam_pairing.spread(options, opening, pins)
    with pytest.raises(ValueError, match="prompts do not stand together"):
        pair_ranges.build(job(wild, tmp_path / "out"), spread, size=2000)
    assert {p.name for p in tmp_path.iterdir()} == {"data"}


def command(root, *flags):
    return subprocess.run(
        [sys.executable, str(root / "scripts/build_pairs.py"), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(root)},
    )


MAVIS = "mavis_x_pairs_vqa_direct_rules.jsonl"


def mavis(path):
    """Answers in LaTeX, and a line that is left out but counts as many."""
    said = [r"\frac{2\pi}{4}", r"\frac{\pi}{2}", r"\pi", "7", r"\frac{\pi}{7}"]
    asked = {
        "id": 1,
        "question": "?",
        "answer_gt": r"\frac{\pi}{2}",
        "format": "direct",
    }
    lines = [asked | {"responses": said}, {"responses": [""] * 500_000}]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--legacy", "--answer_fix")])
def test_the_command_with_beam(root, tmp_path, wild, more):
    files = [*wild, mavis(tmp_path / "data" / "mavis_x.jsonl")]
    flags = (f"--input={','.join(files)}", "--max_pairs=4", *more)
    beam = "--beam=--runner=DirectRunner,--direct_num_workers=4"
    plain = command(root, *flags, f"--output={tmp_path / 'plain'}")
    assert plain.returncode == 0, plain.stderr
    done = command(root, *flags, f"--output={tmp_path / 'beam'}", beam)
    assert done.returncode == 0, done.stderr
    found = wild_rollouts.contents(tmp_path / "plain")
    assert wild_rollouts.contents(tmp_path / "beam") == found
    assert done.stdout == plain.stdout.replace("/plain", "/beam")
    manifest = json.loads((tmp_path / "beam" / "manifest.json").read_text())
    assert manifest["rules"]["max_pairs_of"] == ({"mavis_x": 3} if more else {})
    found = len(pairs_of(tmp_path / "beam", "mavis_x")[MAVIS])
    assert found == (3 if more else 4)


@pytest.mark.slow
def test_flags_that_do_not_fit(root, tmp_path, wild):
    flags = (f"--input={wild[0]}", f"--output={tmp_path / 'out'}")
    beam = "--beam=--runner=DirectRunner"
    done = command(root, *flags, beam, f"--cache={tmp_path / 'verdicts'}")
    assert done.returncode == 1 and "SQLite file together; leave it out" in done.stderr
    if importlib.util.find_spec("apache_beam") is None:
        done = command(root, *flags, beam)
        assert done.returncode == 1
        assert "--beam needs apache_beam: pip install -e '.[beam]'" in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"data"}
