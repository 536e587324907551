"""Any cut of any file gives the groups and the left-out lines of the file."""

from __future__ import annotations

import array
import os
import pathlib

import hypothesis
import numpy as np
import pytest
import wild_rollouts
from hypothesis import strategies as st

from mpo_jax.generate import questions
from mpo_jax.prefs import rollout_ranges, rollouts

ROOT = "/data"


def cut(path: pathlib.Path, size: int) -> list[rollouts.Range]:
    return list(rollout_ranges.cut(str(path), root=ROOT, size=size))


def read_all(ranges):
    """Groups and entries of ranges one after another, and the digests of all."""
    found, digests = [], array.array("Q")
    for lines in ranges:
        found += rollouts.read_range(lines, digests, root=ROOT)
    return found, digests


def check(path: pathlib.Path, size: int) -> int:
    """The ranges hold what the file holds; their number."""
    ranges = cut(path, size)
    whole, one = [], array.array("Q")
    whole += rollouts.read_range(rollouts.Range(str(path)), one, root=ROOT)
    assert read_all(ranges) == (whole, one)
    ends = [lines.end or 0 for lines in ranges]
    assert [lines.start for lines in ranges] == [0, *ends][: len(ranges)]
    assert (ends or [0])[-1] == path.stat().st_size
    sizes = [end - lines.start for end, lines in zip(ends, ranges, strict=True)]
    assert all(found >= size for found in sizes[:-1])
    return len(ranges)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    seed=st.integers(0, 2**32),
    prompts=st.integers(0, 12),
    size=st.integers(1, 3000),
    cut_off=st.booleans(),
)
def test_any_cut_of_a_wild_file(tmp_path_factory, seed, prompts, size, cut_off):
    path = tmp_path_factory.getbasetemp() / "wild.jsonl"
    wild_rollouts.write(path, seed, prompts, cut_off=cut_off)
    check(path, size)


_LINE = st.sampled_from(
    [
        *(
            b'{"id": %d, "question": "?", "answer": 5, "response": "5"}\n' % i
            for i in (1, 2)
        ),
        b'{"id": "1", "question": "?", "answer": 5, "response": "5"}\n',
        b'{"id": 1, "question": "?", "answer": 5, "response": "5", "format": "en"}\n',
        b'{"question": "?", "answer": 5, "responses": ["5", "6"]}\n',
        b'{"question": "?", "answer": 5, "response": "6"}\n',
        b'{"id": 1, "question": "other", "answer": 5, "response": "5"}\n',
        *(b"\n", b"x\n", b"[]\n", b"{}\n"),
    ]
)


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(lines=st.lists(_LINE, max_size=14), size=st.integers(1, 400))
def test_any_cut_of_any_lines(tmp_path_factory, lines, size):
    """Prompts come again here, and bad lines stand between and before them."""
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(b"".join(lines))
    check(path, size)


def test_small_ranges_hold_one_prompt_or_two(tmp_path):
    path = wild_rollouts.write(tmp_path / "wild.jsonl", 3, 40)
    _, digests = read_all([rollouts.Range(str(path))])
    assert len(digests) / 2 <= check(path, 1) <= len(digests)
    assert check(path, 10**9) == 1


def test_long_lines_are_counted_and_passed(tmp_path, monkeypatch):
    monkeypatch.setattr(questions, "MAX_LINE_BYTES", 200)
    monkeypatch.setattr(rollout_ranges, "_BLOCK", 64)
    line = b'{"id": %d, "question": "?", "answer": 5, "response": "%s"}\n'
    path = tmp_path / "long.jsonl"
    texts = [line % (i // 2, b"5" * (i % 5) * 90) for i in range(20)]
    path.write_bytes(b"".join(texts))
    for size in (1, 63, 64, 65, 200, 500, 1000):
        check(path, size)
    found, _ = read_all(cut(path, 100))
    left_out = [entry.line for entry in found if hasattr(entry, "line")]
    assert left_out == [i + 1 for i in range(20) if i % 5 > 1]


def test_relative_paths_are_named_as_given(tmp_path, monkeypatch):
    wild_rollouts.write(tmp_path / "data" / "w.jsonl", 1, 6)
    (tmp_path / "data" / "w.jsonl").open("ab").write(b"x\n")
    monkeypatch.chdir(tmp_path)
    ranges = cut(pathlib.Path("data/w.jsonl"), 300)
    monkeypatch.chdir("/")  # a worker works elsewhere
    found, _ = read_all(ranges)
    assert found[-2].file == "data/w.jsonl" and found[-2].reason == "bad_json"


def test_a_changed_file_is_refused(tmp_path):
    path = wild_rollouts.write(tmp_path / "w.jsonl", 1, 6)
    ranges = cut(path, 300)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="w.jsonl has changed since it was cut"):
        read_all(ranges)


def test_pipes_are_refused(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    held = os.open(pipe, os.O_RDWR)
    try:
        with pytest.raises(ValueError, match="is no regular file.* without --beam"):
            cut(pipe, 300)
    finally:
        os.close(held)


def test_prompts_apart_are_found_across_ranges(tmp_path):
    path = tmp_path / "w.jsonl"
    line = b'{"id": %d, "question": "?", "answer": 5, "response": "5"}\n'
    path.write_bytes(b"".join(line % i for i in (0, 0, 1, 1, 2, 2, 1, 3)))
    _, digests = read_all(cut(path, 1))
    with pytest.raises(ValueError, match="file's prompts number 2 and 4"):
        rollouts.check_together(path, np.frombuffer(digests, np.uint64))
