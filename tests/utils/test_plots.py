"""Plots: what is drawn where, broken and resumed metric files, smoothing."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from mpo_jax.utils import plots

TRAINING = (
    *("loss", "loss/sigmoid", "loss/sft", "rewards/chosen", "rewards/rejected"),
    *("rewards/margins", "rewards/accuracies", "logps/chosen", "logps/rejected"),
    *("logps/chosen_per_token", "delta", "learning_rate", "grad_norm"),
    *("logps/accuracies", "grad_norm/vision", "fill/tokens", "fill/tiles"),
    *("throughput/pairs_per_s", "throughput/tokens_per_s"),
    *("time/step_s", "time/input_wait_s"),
)


def _write(path: pathlib.Path, lines: list[dict]) -> pathlib.Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def _run(path: pathlib.Path, names: tuple[str, ...], *, steps: int) -> pathlib.Path:
    rng = np.random.default_rng(0)
    lines = [
        {"step": s, "time_s": 0.3 * s, **{n: float(rng.random()) for n in names}}
        for s in range(1, steps + 1)
    ]
    return _write(path, lines)


def _draw_on_axes(monkeypatch) -> dict[str, set[str]]:
    """Record which labels are drawn under which title."""
    drawn: dict[str, set[str]] = {}
    original = plots._curves

    def spy(axes, panel, series):
        original(axes, panel, series)
        labels = {line.get_label() for line in axes.lines}
        drawn.setdefault(axes.get_title(), set()).update(
            label for label in labels if not label.startswith("_")
        )
        assert axes.get_xlabel() == "step"
        assert axes.get_legend() is not None

    monkeypatch.setattr(plots, "_curves", spy)
    return drawn


def test_every_metric_is_drawn_once_in_a_file_of_its_subject(tmp_path, monkeypatch):
    drawn = _draw_on_axes(monkeypatch)
    metrics = _run(tmp_path / "metrics.jsonl", (*TRAINING, "novel"), steps=120)
    paths = plots.plot_metrics(metrics, tmp_path / "plots")
    stems = ["loss", "rewards", "logps", "optimisation", "throughput", "other"]
    assert [path.stem for path in paths] == stems
    labels = [label for found in drawn.values() for label in found]
    assert sorted(labels) == sorted((*TRAINING, "novel"))
    assert drawn["Loss terms, unweighted"] == {"loss/sigmoid", "loss/sft"}
    assert drawn["Gradient norm before clipping"] == {"grad_norm", "grad_norm/vision"}
    assert drawn["Time per step"] == {"time/step_s", "time/input_wait_s"}
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and min(image.size) > 300
            assert np.asarray(image.convert("L")).min() < 100  # something is drawn


def test_held_out_metrics_have_their_own_figure(tmp_path, monkeypatch):
    drawn = _draw_on_axes(monkeypatch)
    names = ("eval/loss", "eval/rewards/margins", "eval/exact")
    metrics = _run(tmp_path / "metrics.jsonl", names, steps=3)
    paths = plots.plot_metrics(metrics, tmp_path)
    assert [path.name for path in paths] == ["eval.png"]
    assert drawn == {
        "Total loss": {"loss"},
        "Implicit rewards": {"rewards/margins"},
        "exact": {"exact"},
    }


def test_resumed_run_counts_the_later_line_and_sorts_steps(tmp_path):
    lines = [{"step": s, "loss": float(s)} for s in (1, 2, 3)]
    lines += [{"step": 2, "loss": 20.0}, {"step": 4, "loss": 4.0, "kind": "x"}]
    series = plots.read_metrics(_write(tmp_path / "m.jsonl", lines))
    assert set(series) == {"loss"}
    np.testing.assert_array_equal(series["loss"][0], [1, 2, 3, 4])
    np.testing.assert_array_equal(series["loss"][1], [1, 20, 3, 4])


def test_cut_off_last_line_is_left_out_with_a_warning(tmp_path, caplog):
    path = _write(tmp_path / "m.jsonl", [{"step": 1, "loss": 2.0}])
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')
    with caplog.at_level("WARNING", logger="absl"):
        series = plots.read_metrics(path)
    np.testing.assert_array_equal(series["loss"][0], [1])
    assert "line 2 is cut off" in caplog.text


@pytest.mark.parametrize(
    "line",
    ['{"loss": 1.0}', "[1, 2]", "oops", '{"step": "3"}', '{"step": true}'],
    ids=["no step", "array", "no json", "text step", "bool step"],
)
def test_bad_line_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1, "loss": 1.0}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"m\.jsonl:2"):
        plots.read_metrics(path)


def test_file_without_metrics_is_refused(tmp_path):
    path = _write(tmp_path / "m.jsonl", [{"step": 1, "time_s": 1.0}])
    with pytest.raises(ValueError, match="no metrics"):
        plots.plot_metrics(path, tmp_path)


def test_nan_and_infinity_do_not_stop_a_plot(tmp_path):
    path = tmp_path / "m.jsonl"
    values = ["1.0", "NaN", "Infinity"] * 40
    path.write_text(
        "".join(f'{{"step": {i}, "loss": {v}}}\n' for i, v in enumerate(values))
    )
    assert [p.name for p in plots.plot_metrics(path, tmp_path)] == ["loss.png"]


@pytest.mark.parametrize("window", [1, 3, 7, 31])
def test_smoothing_is_a_centred_mean_over_what_there_is(window):
    values = np.random.default_rng(0).normal(size=20)
    values[[4, 5, 6]] = np.nan
    half = window // 2
    expected = []
    for i in range(20):
        near = values[max(0, i - half) : i + half + 1]
        near = near[np.isfinite(near)]
        expected.append(near.mean() if len(near) else np.nan)
    # 1e-12: float64 sums in another order.
    np.testing.assert_allclose(
        plots.smooth(values, window=window), expected, rtol=0, atol=1e-12
    )


def test_smoothing_needs_an_odd_window():
    with pytest.raises(ValueError, match="4"):
        plots.smooth(np.zeros(5), window=4)


def test_before_after_groups_by_unit_and_draws_both(tmp_path, monkeypatch):
    drawn = {}
    original = plots._bars

    def spy(axes, unit, names, before, after):
        original(axes, unit, names, before, after)
        drawn[unit] = (list(names), [bar.get_height() for bar in axes.patches])

    monkeypatch.setattr(plots, "_bars", spy)
    before = {"rewards/accuracies": 0.5, "exact": 0.25, "logps/chosen": -12.0}
    after = {"logps/chosen": -9.0, "rewards/accuracies": 0.75, "exact": 1.0}
    path = plots.plot_before_after(before, after, tmp_path / "new" / "bars.png")
    assert drawn == {
        "per cent": (["rewards/accuracies", "exact"], [50, 25, 75, 100]),
        "nats per response": (["logps/chosen"], [-12, -9]),
    }
    with Image.open(path) as image:
        assert image.format == "PNG"


def test_before_after_with_other_metrics_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'b'"):
        plots.plot_before_after({"a": 1.0}, {"a": 1.0, "b": 2.0}, tmp_path / "x.png")
    with pytest.raises(ValueError, match="same metrics"):
        plots.plot_before_after({}, {}, tmp_path / "x.png")


def test_no_global_pyplot_state(root):
    source = (root / "mpo_jax" / "utils" / "plots.py").read_text()
    assert "pyplot" not in source.split('"""', 2)[2]
