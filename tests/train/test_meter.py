"""Metrics of a loop: when they are fetched, what a line holds, what stops a run."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from mpo_jax.train import meter
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import profiling, progress


def values(loss: float, weight: float = 1.0) -> dict:
    one = np.float32(1)
    return {
        "loss": (np.float32(loss * weight), np.float32(weight)),
        "pairs": (np.float32(3), one),
        "tokens": (np.float32(40), one),
        "fill/tokens": (np.float32(40), np.float32(64)),
    }


@pytest.fixture
def made(tmp_path):
    """Builds a meter; what it shows, and the lines that it wrote."""
    compiles = profiling.Compiles()
    writer = metrics_lib.Writer(tmp_path, tensorboard=False)
    shown = []

    def make(**options):
        options = {
            "every": 2,
            "show": lambda step, **fields: shown.append((step, fields)),
            **options,
        }
        clock = profiling.Clock(time.perf_counter(), compiles)
        found = meter.Meter(clock=clock, writer=writer, **options)
        return found, shown, lambda: metrics_lib.read(tmp_path / "metrics.jsonl")

    yield make
    writer.close()
    compiles.close()


def test_values_are_fetched_one_step_behind(made):
    book, shown, lines = made()
    for n in range(3):
        book.add(n, values(float(n)))
        assert [step for step, _ in shown] == list(range(1, n + 1))
    assert [line["step"] for line in lines()] == [2]
    book.catch_up()
    assert [step for step, _ in shown] == [1, 2, 3]
    assert [line["step"] for line in lines()] == [2]


def test_a_line_is_the_weighted_mean_since_the_line_before(made):
    book, _, lines = made(every=3, constants={"ledger/left_out": 5.0})
    for n, weight in enumerate((1.0, 3.0, 2.0, 1.0)):
        book.add(n, values(float(n), weight))
    book.end_line(4)
    book.end_line(4)  # nothing has come since
    book.end_line(5)
    first, second = lines()
    assert (first["step"], second["step"]) == (3, 4)
    assert first["loss"] == (0 + 3 + 4) / 6 and second["loss"] == 3.0
    for line in (first, second):
        assert line["ledger/left_out"] == 5 and line["fill/tokens"] == 40 / 64
        assert "throughput/mfu" not in line


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_metric_that_is_not_finite_names_step_and_records(made, bad):
    book, shown, lines = made(every=1, name_records=lambda n: f"batch {n}'s records")
    book.add(0, values(1.0))
    book.add(1, values(bad))
    with pytest.raises(FloatingPointError) as raised:
        book.end_line(2)
    assert str(raised.value).startswith(
        "step 2: loss not finite. The batch holds batch 1's records. The last"
    )
    assert [step for step, _ in shown] == [1]
    assert [line["step"] for line in lines()] == [1]


def test_mfu_is_the_ideal_time_over_the_measured(made):
    book, shown, lines = made(every=4, ideal_s=lambda n: 0.001 * (n + 1))
    for n in range(4):
        time.sleep(0.005)
        book.add(n, values(1.0))
    book.catch_up()
    (line,) = lines()
    # The first step compiles, and is not measured.
    assert line["throughput/mfu"] == pytest.approx(0.009 / (3 * line["time/step_s"]))
    assert shown[-1][1]["mfu"] == f" · MFU {line['throughput/mfu']:.0%}"


def test_a_pause_is_not_measured(made):
    book, _, lines = made(every=3)
    for n in range(2):
        book.add(n, values(1.0))
    book.catch_up()
    book.pause()
    time.sleep(0.5)
    book.add(2, values(1.0))
    book.catch_up()
    assert lines()[0]["time/step_s"] < 0.25


def test_the_bar_shows_the_last_step(made, monkeypatch):
    bars = []
    monkeypatch.setattr(
        meter.progress,
        "bar",
        lambda bar=progress.bar, **options: bars.append(bar(**options)) or bars[-1],
    )
    with meter.training_bar("a run", first=4, num_steps=9) as show:
        (task,) = bars[0].tasks
        assert (task.completed, task.total, task.fields["loss"]) == (4, 9, "–")
        book, _, _ = made(show=show)
        book.add(4, values(0.25))
        book.catch_up()
        assert (task.completed, task.fields["loss"]) == (5, "0.2500")
        assert task.fields["fill"] == "62%" and task.fields["mfu"] == ""


def test_held_out_metrics_have_names_of_their_own(made, tmp_path):
    _, _, lines = made()
    meter.write_held_out(None, 3, {"loss": 1.0})
    writer = metrics_lib.Writer(tmp_path, tensorboard=False)
    meter.write_held_out(writer, 3, {"loss": 1.0, "rewards/margins": math.pi})
    writer.close()
    assert lines() == [{"step": 3, "eval/loss": 1.0, "eval/rewards/margins": math.pi}]


def test_a_log_gets_a_line_now_and_then(made, capsys):
    """Where there is no terminal a bar shows nothing before its end."""
    with meter.training_bar("a run", first=4, num_steps=9, line_s=0) as show:
        book, _, _ = made(show=show)
        book.saved(4)
        for n in range(4, 7):
            book.add(n, values(float(n)))
        said = [text for text in capsys.readouterr().err.splitlines() if text]
    assert [text.split(" · ")[0] for text in said] == ["a run 5/9", "a run 6/9"]
    assert "loss 5.0000" in said[1] and "saved step 4" in said[1]
    assert "s a step" in said[1] and said[1].endswith(" left")


def test_a_log_is_not_flooded(made, capsys):
    with meter.training_bar("a run", first=0, num_steps=9, line_s=3600) as show:
        book, _, _ = made(show=show)
        for n in range(5):
            book.add(n, values(float(n)))
        assert not capsys.readouterr().err.strip()
