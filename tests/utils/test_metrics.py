"""Exact means, one reader, and what a resume keeps of the metrics file."""

from __future__ import annotations

import errno
import fractions
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from mpo_jax.utils import metrics

numbers = st.floats(-1e6, 1e6, allow_nan=False, width=32)
weights = st.integers(0, 1000)


@given(st.lists(st.tuples(numbers, weights), min_size=1, max_size=30))
def test_mean_is_sum_over_weight_whatever_the_steps(pairs):
    found = metrics.mean({"m": (np.float32(total), w)} for total, w in pairs)
    weight = sum(w for _, w in pairs)
    if not weight:
        assert found == {}
        return
    exact = sum(fractions.Fraction(total) for total, _ in pairs) / weight
    # float64 sums of 30 float32 terms: 1e-12 of the largest term.
    bound = 1e-12 * max(abs(total) for total, _ in pairs)
    assert abs(found["m"] - float(exact)) <= bound


def test_mean_is_not_a_mean_of_means():
    steps = [{"loss": (8.0, 8.0), "rare": (3.0, 1.0)}, {"loss": (4.0, 1.0)}]
    assert metrics.mean(steps) == {"loss": 12 / 9, "rare": 3.0}


def test_what_was_not_measured_is_left_out_but_nan_is_not():
    found = metrics.mean([{"none": (0.0, 0.0), "bad": (float("nan"), 2.0)}])
    assert list(found) == ["bad"]
    assert metrics.nonfinite(found) == ["bad"]
    assert metrics.nonfinite({"a": 1.0, "b": float("-inf")}) == ["b"]


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_come_back_as_written(tmp_path):
    writer = metrics.Writer(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.5, "x": 1 / 3})
    # Flushed with every line: a kill would lose nothing.
    assert metrics.read(writer.path) == [{"step": 1, "loss": 1.5, "x": 1 / 3}]
    writer.write(1, {"eval/loss": 2.0})
    writer.close()
    assert metrics.read(writer.path) == _lines(writer.path)
    assert [line["step"] for line in _lines(writer.path)] == [1, 1]


def test_resume_drops_the_lines_that_the_run_repeats(tmp_path):
    writer = metrics.Writer(tmp_path, tensorboard=False)
    for step in range(1, 8):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with open(writer.path, "a") as file:
        file.write('{"step": 8, "lo')  # killed while writing
    again = metrics.Writer(tmp_path, resume_step=5, tensorboard=False)
    again.write(6, {"loss": 60.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in _lines(again.path)] == [
        *((step, float(step)) for step in range(1, 6)),
        (6, 60.0),
    ]
    fresh = metrics.Writer(tmp_path, tensorboard=False)
    fresh.close()
    assert metrics.read(fresh.path) == []


def test_resume_refuses_to_rewrite_a_broken_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    text = '{"step": 1, "loss": 1.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n'
    path.write_text(text)
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not JSON"):
        metrics.Writer(tmp_path, resume_step=3, tensorboard=False)
    assert path.read_text() == text


@pytest.mark.parametrize("tail", ['{"step": 2, "lo', "\0\0\0\0", '{"a\udcff'])
def test_a_cut_last_line_is_left_out_with_a_warning(tmp_path, caplog, tail):
    path = tmp_path / "m.jsonl"
    head = b'{"step": 1, "loss": 2.0}\n\n'
    path.write_bytes(head + tail.encode("utf-8", "surrogateescape"))
    with caplog.at_level("WARNING", logger="absl"):
        assert metrics.read(path) == [{"step": 1, "loss": 2.0}]
    assert "m.jsonl: line 3 is cut off" in caplog.text


def test_a_whole_last_line_without_line_end_counts(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    assert [line["step"] for line in metrics.read(path)] == [1, 2]


@pytest.mark.parametrize(
    "line",
    ['{"step": 2, "lo', '{"loss": 1.0}', "[1]", '{"step": "2"}', '{"step": true}'],
)
def test_a_bad_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"m\.jsonl:2: .*mend or delete"):
        metrics.read(path)


def test_no_file_has_no_lines(tmp_path):
    assert metrics.read(tmp_path / "absent.jsonl") == []


def _events(directory):
    """Scalars of TensorBoard event files: length, its CRC, data, its CRC."""
    for path in sorted(directory.glob("events.*")):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            body = data[12 : 12 + size]
            crc = int.from_bytes(data[12 + size : 16 + size], "little")
            assert crc == masked_crc32c(body)
            event = event_pb2.Event.FromString(body)  # type: ignore
            for value in event.summary.value:
                yield event.step, value.tag, value.simple_value
            data = data[16 + size :]


def test_tensorboard_gets_the_same_numbers(tmp_path):
    writer = metrics.Writer(tmp_path)
    writer.write(3, {"loss": 0.5, "rewards/margins": -2.0})
    writer.close()
    assert list(_events(tmp_path / "tensorboard")) == [
        (3, "loss", 0.5),
        (3, "rewards/margins", -2.0),
    ]


def test_lines_wait_while_the_disk_is_away(tmp_path, monkeypatch, caplog):
    """A try that wrote half a line leaves none behind."""
    writer = metrics.Writer(tmp_path, tensorboard=False)
    writer.write(1, {"loss": 1.0})
    real = open

    def away(path, mode="r", **options):
        if str(path) == str(writer.path) and mode == "r+b":
            with real(path, "ab") as file:
                file.write(b'{"step": 2, "lo')
            raise OSError(errno.EIO, "away", str(path))
        return real(path, mode, **options)

    monkeypatch.setattr("builtins.open", away)
    writer.write(2, {"loss": 2.0})
    writer.write(3, {"loss": 3.0})
    assert "2 lines wait for the next one" in caplog.text
    monkeypatch.setattr("builtins.open", real)
    writer.write(4, {"loss": 4.0})
    writer.close()
    assert [line["loss"] for line in metrics.read(writer.path)] == [1, 2, 3, 4]


def test_lines_that_cannot_be_written_at_all_are_printed(tmp_path, caplog):
    writer = metrics.Writer(tmp_path, tensorboard=False)
    writer.path.unlink()
    writer.path.mkdir()
    writer.write(1, {"loss": 1.5})
    writer.close()
    assert "not in" in caplog.text and '"loss": 1.5' in caplog.text


def test_tensorboard_writes_what_waited_when_storage_is_back(
    tmp_path, monkeypatch, caplog
):
    """No thread dies of an error, and no step waits for one: many fail in a row."""
    folder = tmp_path / "tensorboard"
    writer = metrics.Writer(tmp_path)
    writer.write(1, {"loss": 1.0})
    original, flush = os.fsync, []

    def broken(descriptor):
        flush.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    for step in range(2, 30):
        writer.write(step, {"loss": float(step)})
    assert "TensorBoard lacks step 29: [Errno 28]" in caplog.messages[-1]
    assert len(flush) >= 28 and len(list(folder.iterdir())) == 1
    monkeypatch.setattr(os, "fsync", original)
    writer.write(30, {"loss": 30.0})
    writer.close()
    assert len(list(folder.iterdir())) == 2
    assert {step for step, *_ in _events(folder)} == set(range(1, 31))
