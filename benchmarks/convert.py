"""Peak host memory of the converters against the size of the model.

  python -m benchmarks.convert --gb=1,4 --json=convert.json

Makes checkpoints of random bits (InternVL2-2B with as many decoder layers as give the
size; InternVL2-8B above 5 GB), in files of at most `--shard_mb`, and converts each in
processes of their own: files to our checkpoint, that back to files, and files to files
of the other layout. Counted from a started program on are

  anonymous   memory that only this process has
  resident    the same and pages of mapped files, which the system may take back

A straight line through the sizes is carried on to `--extrapolate`. Linux only.
"""

from __future__ import annotations

import importlib.util
import json
import math
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import sizes
from mpo_jax.convert import table, writer
from mpo_jax.demo import tiny_model
from mpo_jax.models import config

JOBS = ("files to checkpoint", "checkpoint to files", "original to native")
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_MIB = 2**20


class Peak:
    """Largest anonymous and resident memory of this process while it runs, in bytes."""

    _FIELDS = {"RssAnon": "anonymous", "VmRSS": "resident"}

    def __init__(self, interval: float = 0.01):
        self.before = self._now()
        self._most = dict(self.before)
        self._stop = threading.Event()
        self._interval = interval
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _now(self) -> dict[str, int]:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return {
            name: int(fields[field].split()[0]) * 1024
            for field, name in self._FIELDS.items()
        }

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            self._look()

    def _look(self) -> None:
        self._most = {n: max(v, self._most[n]) for n, v in self._now().items()}

    def stop(self) -> dict[str, int]:
        """Peaks above the start."""
        self._stop.set()
        self._thread.join()
        self._look()
        return {name: self._most[name] - self.before[name] for name in self._most}


def config_of(gigabytes: float) -> dict[str, Any]:
    """``config.json`` of about this size in bfloat16, at least one decoder layer."""
    name = "2b" if gigabytes <= 5 else "8b"

    def size(layers: int) -> int:
        raw = sizes.released(name, num_hidden_layers=layers)
        return 2 * sum(t.size for t in table.tensors(config.from_hf(raw)))

    one = size(2) - size(1)
    layers = max(1, 1 + round((gigabytes * 1e9 - size(1)) / one))
    return sizes.released(name, num_hidden_layers=layers)


def make(directory: pathlib.Path, raw: dict[str, Any], *, shard_bytes: int) -> int:
    """Write a checkpoint of random bits with a tokenizer; returns its bytes."""
    tiny_model.write_tiny_model(directory, corpus=["a b c"], vocab_size=256)
    (directory / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    shapes = table.hf_shapes(config.from_hf(raw))
    kinds = dict.fromkeys(shapes, "bfloat16")
    out = writer.Writer(directory, shapes, kinds, max_shard_bytes=shard_bytes)
    block = np.random.default_rng(0).integers(0, 256, 2 * _MIB, np.uint8)
    for name, shape in shapes.items():
        count = 2 * math.prod(shape)
        bits = np.tile(block, -(-count // block.size))[:count]
        out.put(name, bits.view(jnp.bfloat16).reshape(shape))
    out.close()
    return out.total


def largest(directory: pathlib.Path) -> dict[str, int]:
    """Bytes of the largest file and of the largest tensor."""
    cfg = config.load(directory)
    files = [path.stat().st_size for path in directory.glob("*.safetensors")]
    return {
        "file": max(files),
        "tensor": 2 * max(t.size for t in table.tensors(cfg)),
    }


def _script(name: str) -> Any:
    path = _ROOT / "scripts" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def work(job: str, src: str, dst: str, *, shard_bytes: int) -> dict[str, Any]:
    """Do one job in this process; returns seconds and peaks above the start."""
    forward, backward = _script("convert_from_hf"), _script("convert_to_hf")
    peak, start = Peak(), time.perf_counter()
    if job == JOBS[0]:
        options = {"revision": None, "new_tokens": []}
        forward.convert(src, dst, dtype="keep", overwrite=False, **options)
    else:
        backward.export(
            src,
            dst,
            dtype="keep",
            layout="native" if job == JOBS[2] else None,
            template="",
            hf_files=None,
            verify=False,
            overwrite=False,
            max_shard_bytes=shard_bytes,
        )
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "start": peak.before["anonymous"], **peak.stop()}


def measure(
    gigabytes: float, place: pathlib.Path, *, shard_bytes: int
) -> Iterator[dict[str, Any]]:
    """Every job on a model of one size, each in a process of its own."""
    model, checkpoint, out = place / "model", place / "checkpoint", place / "out"
    total = make(model, config_of(gigabytes), shard_bytes=shard_bytes)
    held = largest(model)
    for job, src, dst in zip(
        JOBS, (model, checkpoint, model), (checkpoint, out, out), strict=True
    ):
        arguments = [f"--job={job}", f"--src={src}", f"--dst={dst}"]
        arguments += [f"--shard_mb={shard_bytes // _MIB}"]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.convert", *arguments],
            cwd=_ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{job}: {done.stderr[-2000:]}")
        result = json.loads(done.stdout.strip().splitlines()[-1])
        yield {"job": job, "bytes": total, "largest": held, **result}
        shutil.rmtree(out, ignore_errors=True)
    for directory in (model, checkpoint):
        shutil.rmtree(directory)


def extrapolate(rows: list[dict[str, Any]], at: float) -> dict[str, float]:
    """Anonymous peak of each job at another size, on a line through its sizes, bytes.

    Jobs measured at one size only are left out.
    """
    out = {}
    for job in JOBS:
        points = [(r["bytes"], r["anonymous"]) for r in rows if r["job"] == job]
        if len(points) > 1:
            slope, base = np.polyfit(*np.array(points, float).T, 1)
            out[job] = float(base + slope * at)
    return out


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| job | model | largest file | anonymous | resident | seconds |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        lines.append(
            f"| {row['job']} | {row['bytes'] / 1e9:.2f} GB "
            f"| {row['largest']['file'] / _MIB:.0f} MiB "
            f"| {row['anonymous'] / _MIB:.0f} MiB | {row['resident'] / _MIB:.0f} MiB "
            f"| {row['seconds']:.0f} |"
        )
    return "\n".join(lines)


def _define() -> None:
    flags.DEFINE_list("gb", ["1", "4"], "Sizes of the models, 10⁹ bytes.")
    flags.DEFINE_integer("shard_mb", 512, "Limit of a weight file, MiB.")
    flags.DEFINE_float("extrapolate", 156.8, "Another size, 10⁹ bytes.")
    flags.DEFINE_string("place", "", "Directory with room for twice a model.")
    flags.DEFINE_string("json", "", "Write the figures here, too.")
    flags.DEFINE_enum("job", None, JOBS, "Do this one here, and print its figures.")
    flags.DEFINE_string("src", "", "Of the job.")
    flags.DEFINE_string("dst", "", "Of the job.")


def main(argv: list[str]) -> None:
    del argv
    values: Any = flags.FLAGS
    shard_bytes = values.shard_mb * _MIB
    if values.job is not None:
        done = work(values.job, values.src, values.dst, shard_bytes=shard_bytes)
        print(json.dumps(done))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=values.place or None) as place:
        for gigabytes in map(float, values.gb):
            for row in measure(gigabytes, pathlib.Path(place), shard_bytes=shard_bytes):
                rows.append(row)
                print(table_of([row]).splitlines()[-1], flush=True)
    print(table_of(rows))
    at = values.extrapolate * 1e9
    further = extrapolate(rows, at)
    for job, peak in further.items():
        print(f"{job} at {at / 1e9:g} GB: {peak / _MIB:.0f} MiB anonymous, on a line")
    if values.json:
        content = {"rows": rows, "extrapolated": {"bytes": at, "anonymous": further}}
        pathlib.Path(values.json).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    _define()
    app.run(main)
