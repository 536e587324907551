"""The loop around a step that is a few lines of NumPy: logs, saves, stops, resumes."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from mpo_jax import checkpoint, config, sharding
from mpo_jax.checkpoint import patience
from mpo_jax.losses import reward_shift
from mpo_jax.train import loop, state
from mpo_jax.utils import metrics as metrics_lib
from mpo_jax.utils import on_demand, profiling, statuses

BATCH = packed.batch([[]])


def loss_of(number: int) -> tuple[float, float]:
    """Sum and weight of the loss of a batch: weights differ from step to step."""
    return 1.5 * number + 0.25, float(1 + number % 3)


def fake_step(current, batch, key, reference):
    """Adds 1 to the weights; metrics are those of the batch's number."""
    del batch, key, reference
    number = int(current.step)
    one = np.float32(1)
    return (
        state.TrainState(
            step=current.step + 1,
            params={"w": current.params["w"] + 1},
            opt_state=current.opt_state,
            reward_shift=current.reward_shift,
        ),
        {
            "loss": tuple(np.float32(x) for x in loss_of(number)),
            "unmeasured": (np.float32(0), np.float32(0)),
            "pairs": (np.float32(3), one),
            "tokens": (np.float32(40), one),
            "fill/tokens": (np.float32(40), np.float32(64)),
        },
    )


def start(step: int = 0) -> state.TrainState:
    return state.TrainState(
        step=jnp.int32(step),
        params={"w": jnp.full(3, float(step))},
        opt_state={"moment": jnp.ones(2)},
        reward_shift=reward_shift.init(),
    )


class Recorder:
    """Stands for Checkpoints: notes what is saved and when it was waited for."""

    def __init__(self):
        self.saved: list[tuple[int, float, dict]] = []
        self.waits = 0

    def save(self, step, trees, *, meta, last):
        del last
        assert int(trees["loop"]["step"]) == step
        self.saved.append((step, float(trees["params"]["w"][0]), meta))

    def check(self):
        return False  # nothing fails here

    def wait(self):
        self.waits += 1


@pytest.fixture
def compiles():
    counted = profiling.Compiles()
    yield counted
    counted.close()


@pytest.fixture
def job(tmp_path, compiles):
    """Builds a job of 8 steps; fields of config, job and its parts can be replaced."""
    writers = []

    def make(*, first=0, every=1, save_every=100, eval_every=0, **fields):
        cfg = config.RunConfig()
        cfg.log.every_steps, cfg.log.eval_every = every, eval_every
        cfg.checkpoint.every_steps = save_every
        writer = metrics_lib.Writer(tmp_path, resume_step=first, tensorboard=False)
        writers.append(writer)
        fields = {
            "cfg": cfg,
            "state": start(first),
            "key": jax.random.key(0),
            "mesh": sharding.make_mesh(devices=jax.devices()[:1]),
            "updates": [fake_step],
            "batches": ((n, BATCH) for n in range(first, 100)),
            "shape_of": lambda n: 0,
            "num_steps": 8,
            "writer": writer,
            "checkpoints": Recorder(),
            "meta": {"plan": "p"},
            "folder": tmp_path,
            "clock": profiling.Clock(time.perf_counter(), compiles),
            **fields,
        }

        def part(kind):
            names = {field.name for field in dataclasses.fields(kind)} & set(fields)
            return kind(**{name: fields.pop(name) for name in names})

        return loop.Job(
            update=part(loop.Update),
            feed=part(loop.Feed),
            output=part(loop.Output),
            **fields,
        )

    yield make
    for writer in writers:
        writer.close()


def lines(path, *, prefix=""):
    found = metrics_lib.read(path / "metrics.jsonl")
    return [line for line in found if any(name.startswith(prefix) for name in line)]


def mean_of(numbers) -> float:
    """Exact mean of the losses of some batches (all values are short binaries)."""
    sums, weights = zip(*(loss_of(n) for n in numbers), strict=True)
    return sum(sums) / sum(weights)


def test_one_line_per_log_step_with_exact_means(job, tmp_path):
    made = job(every=3, constants={"ledger/left_out": 5.0})
    final = loop.run(made)
    assert int(final.step) == 8 and final.params["w"].tolist() == [8, 8, 8]
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [3, 6, 8]
    groups = [range(3), range(3, 6), range(6, 8)]
    assert [line["loss"] for line in found] == [mean_of(group) for group in groups]
    for line in found:
        assert line["pairs"] == 3 and line["fill/tokens"] == 40 / 64
        assert line["ledger/left_out"] == 5
        assert "unmeasured" not in line
        assert line["time/step_s"] >= 0 and line["throughput/tokens_per_s"] >= 0
    times = [line["time_s"] for line in found]
    assert times == sorted(times)


def test_the_last_state_is_saved_once_with_its_place(job):
    made = job(save_every=3)
    loop.run(made)
    recorder = made.output.checkpoints
    assert [(step, value) for step, value, _ in recorder.saved] == [
        (3, 3.0),
        (6, 6.0),
        (8, 8.0),
    ]
    for step, _, meta in recorder.saved:
        assert meta == {"plan": "p", "position": {"next_batch": step}}
    assert recorder.waits == 1


def test_a_checkpoint_writes_the_line_that_a_resume_would_lose(job, tmp_path):
    made = job(every=3, save_every=4)
    loop.run(made)
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [3, 4, 6, 8]
    groups = [range(3), range(3, 4), range(4, 6), range(6, 8)]
    assert [line["loss"] for line in found] == [mean_of(group) for group in groups]


def test_checkpoints_by_time(job, tmp_path):
    """With them comes the line of metrics that a resume would lose, as with others."""
    seconds = [0.0]

    def step(current, *rest):
        seconds[0] += 25
        return fake_step(current, *rest)

    made = job(updates=[step], every=4, now=lambda: seconds[0])
    made.cfg.checkpoint.every_minutes = 1.0
    loop.run(made)
    assert [step for step, *_ in made.output.checkpoints.saved] == [3, 6, 8]
    assert [line["step"] for line in lines(tmp_path)] == [3, 4, 6, 8]


def test_a_failed_save_stops_the_run_at_the_next_step(job):
    class Full(Recorder):
        def check(self):
            if self.saved:
                raise checkpoint.SaveFailed("disk full")

    asked = []

    def batches():
        for n in range(100):
            asked.append(n)
            yield n, BATCH

    made = job(checkpoints=Full(), save_every=3, batches=batches())
    made.cfg.data.prefetch_to_device = 0
    with pytest.raises(checkpoint.SaveFailed, match="disk full"):
        loop.run(made)
    assert [step for step, *_ in made.output.checkpoints.saved] == [3]
    assert asked == [0, 1, 2, 3]  # the fourth step, and none after it


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("save_every", [1, 2, 5])
def test_nan_stops_before_a_save_and_names_step_and_records(
    job, tmp_path, bad, save_every
):
    def step(current, *rest):
        number = int(current.step)
        after, values = fake_step(current, *rest)
        if number == 4:
            values["grad_norm"] = (np.float32(bad), np.float32(1))
        return after, values

    made = job(
        updates=[step],
        save_every=save_every,
        name_records=lambda n: f"records of batch {n}",
    )
    with pytest.raises(FloatingPointError) as raised:
        loop.run(made)
    message = str(raised.value)
    assert message.startswith("step 5: grad_norm not finite. The batch holds records")
    assert "records of batch 4." in message and "optim.learning_rate" in message
    recorder = made.output.checkpoints
    assert [step for step, *_ in recorder.saved] == [
        n for n in range(1, 5) if n % save_every == 0
    ]
    assert recorder.waits == 1  # what is being saved must not be lost
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]


def test_sigterm_saves_and_exits_with_42(job, tmp_path, capsys):
    def step(current, *rest):
        if int(current.step) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return fake_step(current, *rest)

    before = signal.getsignal(signal.SIGTERM)
    made = job(updates=[step], every=3)
    with pytest.raises(SystemExit) as raised:
        loop.run(made)
    assert raised.value.code == statuses.STOPPED == 42
    assert [step for step, *_ in made.output.checkpoints.saved] == [4]
    assert made.output.checkpoints.waits == 1
    assert [line["step"] for line in lines(tmp_path)] == [3, 4]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "step 4 is saved" in " ".join(capsys.readouterr().err.split())


def test_sigterm_in_the_last_step_finishes_the_run(job):
    def step(current, *rest):
        if int(current.step) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return fake_step(current, *rest)

    made = job(updates=[step])
    assert int(loop.run(made).step) == 8
    assert [step for step, *_ in made.output.checkpoints.saved] == [8]


def test_held_out_pairs_are_scored_between_steps(job, tmp_path):
    scored = []

    def evaluate(current):
        scored.append(int(current.step))
        return {"loss": 10.0 + scored[-1], "pairs": 6.0}

    loop.run(job(every=4, eval_every=2, evaluate=evaluate))
    assert scored == [2, 4, 6]  # the caller scores the last state
    found = lines(tmp_path, prefix="eval/")
    assert found == [
        {"step": step, "eval/loss": 10.0 + step, "eval/pairs": 6.0} for step in scored
    ]
    training = lines(tmp_path, prefix="loss")
    assert [line["loss"] for line in training] == [
        mean_of(range(4)),
        mean_of(range(4, 8)),
    ]


def test_resume_goes_on_where_the_checkpoint_was(job, tmp_path):
    """The same lines and weights as a run without a stop, through real files."""
    fields = {"every": 2, "save_every": 3}
    loop.run(job(**fields))
    whole = [(line["step"], line["loss"]) for line in lines(tmp_path)]
    assert [step for step, _ in whole] == [2, 3, 4, 6, 8]

    def step(current, *rest):
        if int(current.step) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return fake_step(current, *rest)

    cfg = config.CheckpointConfig()
    stored = checkpoint.Checkpoints(tmp_path / "checkpoints", cfg)
    with pytest.raises(SystemExit):
        loop.run(job(**fields, updates=[step], checkpoints=stored))
    stored.close()
    again = checkpoint.Checkpoints(tmp_path / "checkpoints", cfg)
    latest = 5
    assert latest == again.latest() == again.meta(latest)["position"]["next_batch"]
    shapes = jax.eval_shape(lambda: state.trees(start()))
    resumed = state.from_trees(again.restore(latest, shapes))
    asked = []

    def batches():
        for n in range(latest, 100):
            asked.append(n)
            yield n, BATCH

    made = job(
        **fields, first=5, state=resumed, checkpoints=again, batches=iter(batches())
    )
    final = loop.run(made)
    again.close()
    assert asked == [5, 6, 7]
    assert final.params["w"].tolist() == [8, 8, 8]
    found = [(line["step"], line["loss"]) for line in lines(tmp_path)]
    # The stop at step 5 wrote a line of its own; the rest is the same.
    assert [step for step, _ in found] == [2, 3, 4, 5, 6, 8]
    assert [item for item in found if item[0] not in (5, 6)] == [
        item for item in whole if item[0] != 6
    ]
    assert found[3:5] == [(5, mean_of([4])), (6, mean_of([5]))]


def test_a_stop_while_storage_is_away_is_saved_all_the_same(
    job, tmp_path, monkeypatch, caplog
):
    """No later step can make up for the last save: it is tried again in place."""

    def step(current, *rest):
        if int(current.step) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return fake_step(current, *rest)

    stored = checkpoint.Checkpoints(tmp_path / "c", config.CheckpointConfig())
    orbax, calls = type(stored._checkpointer), []
    original = orbax.save_checkpointables_async

    def away(self, number, *args, **kwargs):
        calls.append(number)
        if len(calls) < 3:
            raise OSError(errno.EIO, "Input/output error", "/c")
        return original(self, number, *args, **kwargs)

    monkeypatch.setattr(orbax, "save_checkpointables_async", away)
    monkeypatch.setattr(patience, "_FIRST_PAUSE_S", 0.01)
    with pytest.raises(SystemExit) as raised:
        loop.run(job(save_every=100, updates=[step], checkpoints=stored))
    assert raised.value.code == statuses.STOPPED
    assert calls == [5, 5, 5] and stored.latest() == 5
    stored.close()
    assert "The checkpoint of step 5 is saved, after 2 failures" in caplog.text


def test_a_save_that_failed_is_made_up_for_by_a_later_step(job, monkeypatch):
    """When the loop is told to; the schedule goes on as ever."""
    made = job(save_every=4)
    answers = iter([False, False, False, False, False, True, False, False])
    monkeypatch.setattr(made.output.checkpoints, "check", lambda: next(answers))
    loop.run(made)
    assert [step for step, *_ in made.output.checkpoints.saved] == [4, 6, 8]


def test_a_finished_run_has_nothing_left_to_do(job, tmp_path):
    made = job(first=8, batches=iter(()))
    assert int(loop.run(made).step) == 8
    assert made.output.checkpoints.saved == [] and lines(tmp_path) == []


def test_each_batch_goes_to_the_step_of_its_shape(job):
    used = []

    def named(name):
        def step(*args):
            used.append(name)
            return fake_step(*args)

        return step

    loop.run(
        job(updates=[named("short"), named("long")], shape_of=lambda n: int(n > 4))
    )
    assert used == ["short"] * 5 + ["long"] * 3


def test_a_loader_out_of_step_is_an_error(job):
    made = job(batches=iter([(1, BATCH)]))
    with pytest.raises(RuntimeError, match="loader gave batch 1 for step 0"):
        loop.run(made)


def test_runs_without_writer_or_checkpoints(job):
    """As processes other than the first, and notebooks, do."""
    assert int(loop.run(job(writer=None, checkpoints=None)).step) == 8


FAILING = """
import sys
import threading
import time, pathlib
import jax, jax.numpy as jnp, numpy as np
sys.path.insert(0, sys.argv[2])
import test_loop
from mpo_jax import checkpoint, config, sharding
from mpo_jax.train import loop
from mpo_jax.utils import profiling, statuses

def step(current, *rest):
    if int(current.step) == 2:
        raise KeyError("anything")
    return test_loop.fake_step(current, *rest)

cfg = config.RunConfig()
cfg.checkpoint.every_steps = 2
state = test_loop.start()
state.params["w"] = jnp.zeros(5_000_000)
loop.run(loop.Job(
    cfg=cfg, mesh=sharding.make_mesh(), state=state, num_steps=8,
    update=loop.Update([step], jax.random.key(0)),
    feed=loop.Feed(((n, test_loop.BATCH) for n in range(9)), lambda n: 0),
    output=loop.Output(
        checkpoints=checkpoint.Checkpoints(sys.argv[1], cfg.checkpoint),
        folder=pathlib.Path(sys.argv[1]),
    ),
    clock=profiling.Clock(time.perf_counter(), profiling.Compiles()),
))
"""


def test_an_error_does_not_lose_the_save_under_way(root, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(tmp_path / "c"), str(root / "tests/train")],
        env={
            "PYTHONPATH": f"{root}:{root / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and "KeyError: 'anything'" in done.stderr
    stored = checkpoint.Checkpoints(tmp_path / "c", config.CheckpointConfig())
    assert stored.latest() == 2
    stored.close()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_prefetching_changes_no_number(job, tmp_path, depth):
    asked = []

    def batches():
        for n in range(2, 100):
            asked.append(n)
            yield n, BATCH

    made = job(first=2, batches=batches())
    made.cfg.data.prefetch_to_device = depth
    assert loop.run(made).params["w"].tolist() == [8, 8, 8]
    assert asked == list(range(2, 8))  # not beyond the last step
    assert [line["loss"] for line in lines(tmp_path)] == [
        mean_of([n]) for n in range(2, 8)
    ]


@pytest.mark.parametrize("depth", [0, 2])
def test_batches_are_on_the_devices_before_the_step_asks(job, depth):
    """With a depth, batch n + 1 is placed while step n runs."""
    made_at, seen = [], []

    def batches():
        for n in range(9):
            made_at.append(n)
            yield n, BATCH

    def step(current, batch, *rest):
        assert isinstance(batch.tokens, jax.Array)
        number = int(current.step)
        deadline = time.time() + 120
        while depth and number < 6 and len(made_at) < number + 2:
            assert time.time() < deadline
            time.sleep(0.001)
        seen.append(len(made_at) - number)
        return fake_step(current, batch, *rest)

    made = job(updates=[step], batches=batches())
    made.cfg.data.prefetch_to_device = depth
    loop.run(made)
    if depth:
        assert all(ahead >= 2 for ahead in seen[:6]) and max(seen) <= depth + 2
    else:
        assert seen == [1] * 8


@pytest.mark.parametrize("depth", [0, 2])
def test_a_loader_error_stops_the_run_with_its_own_message(job, depth):
    class LoadError(RuntimeError):
        pass

    def batches():
        yield 0, BATCH
        yield 1, BATCH
        raise LoadError("batch 2, record 9: image_missing: cat.png is gone")

    made = job(batches=batches(), save_every=2)
    made.cfg.data.prefetch_to_device = depth
    with pytest.raises(LoadError, match="^batch 2, record 9: image_missing: cat.png"):
        loop.run(made)
    assert [step for step, *_ in made.output.checkpoints.saved] == [2]
    assert not [t for t in threading.enumerate() if t.name == "mpo-ahead"]


def test_where_the_time_goes(job, compiles, tmp_path, monkeypatch):
    """Waits are put where they belong, and the sums leave no gap."""

    def batches():
        for n in range(8):
            time.sleep(0.02)
            yield n, BATCH

    def step(*args):
        time.sleep(0.01)
        return fake_step(*args)

    made = job(
        batches=batches(),
        updates=[step],
        every=4,
        save_every=4,
        eval_every=2,
        evaluate=lambda state: time.sleep(0.03) or {"loss": 1.0},
        clock=profiling.Clock(time.perf_counter() - 1.0, compiles),
    )
    made.cfg.data.prefetch_to_device = 0
    save = made.output.checkpoints.save
    monkeypatch.setattr(
        made.output.checkpoints,
        "save",
        lambda *a, **k: time.sleep(0.05) or save(*a, **k),
    )
    loop.run(made)
    first, last = lines(tmp_path, prefix="loss")
    names = ("startup", "input_wait", "compile", "checkpoint", "eval", "step")
    for line in (first, last):
        sums = [line[f"time/sum_{name}_s"] for name in names]
        assert sum(sums) == pytest.approx(line["time_s"], rel=1e-6)
        assert 0 < line["time/goodput"] < 1
        assert line["time/input_wait_s"] >= 0.02
    assert last["time/sum_startup_s"] >= 1.0
    assert last["time/sum_input_wait_s"] >= 0.16
    assert last["time/sum_step_s"] >= 0.08
    assert first["time/sum_checkpoint_s"] == 0 and last["time/sum_checkpoint_s"] >= 0.05
    assert first["time/sum_eval_s"] >= 0.03 and last["time/sum_eval_s"] >= 0.09


def test_mfu_is_logged_where_flops_and_peak_are_known(job, tmp_path, monkeypatch):
    loop.run(job(flops=lambda n: 1e9))
    assert not any("throughput/mfu" in line for line in lines(tmp_path))
    monkeypatch.setattr(loop.profiling, "peak_flops", lambda device: 1e12)

    def step(*args):
        time.sleep(0.01)
        return fake_step(*args)

    two = sharding.make_mesh(tensor=2, devices=jax.devices()[:2])
    loop.run(job(updates=[step], flops=lambda n: 1e9 * (1 + n), every=8, mesh=two))
    (line,) = lines(tmp_path)
    # Steps 2 to 8 are measured: 35e9 FLOPs in their time, on two devices.
    seconds = 7 * line["time/step_s"]
    assert line["throughput/mfu"] == pytest.approx(35e9 / 2e12 / seconds)
    # The loop is a step behind the host, where this fake spends its time: six sleeps.
    assert 0.06 <= seconds < 5


def test_a_trace_of_the_asked_steps(job, tmp_path):
    made = job(folder=tmp_path)
    made.cfg.log.profile_start, made.cfg.log.profile_steps = 3, 2
    loop.run(made)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


def test_a_signal_asks_for_stacks_and_a_trace(job, tmp_path):
    """``kill -USR1``, of a process that trains on as if nothing was."""
    before = signal.getsignal(signal.SIGUSR1)

    def step(*args):
        if int(args[0].step) == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return fake_step(*args)

    with on_demand.signals(tmp_path, number=0) as wish:
        loop.run(job(updates=[step], folder=tmp_path, wish=wish))
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1
    text = (tmp_path / "stacks" / "host_0.txt").read_text("utf-8")
    assert "most recent call first" in text and "test_loop.py" in text
    assert signal.getsignal(signal.SIGUSR1) == before


def test_lines_are_sent_before_the_checkpoint_that_follows_them(
    job, tmp_path, monkeypatch
):
    """Else a host that is lost in between has a checkpoint and lacks its metrics."""
    order = []

    class Saving(Recorder):
        def save(self, step, trees, *, meta, last=False):
            super().save(step, trees, meta=meta, last=last)
            order.append(("saved", step))

    def sent(path):
        order.append(("sent", metrics_lib.read(path)[-1]["step"]))

    monkeypatch.setattr(loop.mirror, "offer", sent)
    loop.run(job(save_every=3, checkpoints=Saving()))
    assert order == [(what, step) for step in (3, 6, 8) for what in ("sent", "saved")]
