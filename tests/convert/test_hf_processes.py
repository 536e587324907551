"""Reading and writing where parameters span two processes (gloo, one machine)."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, table
from mpo_jax.models import config

pytestmark = pytest.mark.slow

RAW = {
    "vision_config": {
        "hidden_size": 24,
        "num_attention_heads": 3,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "patch_size": 7,
        "image_size": 28,
    },
    "llm_config": {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
}

WORKER = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
port, process, source, out = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(process))
from mpo_jax import sharding
from mpo_jax.convert import hf
from mpo_jax.models import config, internvl

model = internvl.InternVL(config.load(source))
mesh = sharding.make_mesh(data=1, fsdp=4)
places = sharding.shardings(model.shapes, model.axes, mesh)
params = hf.load(source, model, shardings=places)
kernel = params["projector"]["fc1"]["kernel"]
assert not kernel.is_fully_addressable and not kernel.is_fully_replicated
hf.save(out, params, model, source_dir=source)
print("done", process)
"""


def test_two_processes_write_once(root, tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.standard_normal(shape).astype(jnp.bfloat16)
        for name, shape in table.hf_shapes(config.from_hf(RAW)).items()
    }
    safetensors_numpy.save_file(tensors, source / files.SINGLE)
    (source / "config.json").write_text(json.dumps(RAW))
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(pathlib.Path(root)),
        "JAX_ENABLE_COMPILATION_CACHE": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(worker), str(port), str(number), source, out],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for number, process in enumerate(processes):
        assert process.returncode == 0, outputs[number]
        assert f"done {number}" in outputs[number]
    written = safetensors_numpy.load_file(out / files.SINGLE)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert written[name].tobytes() == tensor.tobytes(), name
    assert {p.name for p in tmp_path.iterdir()} == {"source", "out", "worker.py"}
