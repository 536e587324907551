"""The command: flags to model and server, what it prints, how it ends."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
import serve_parts as parts

ROOT = pathlib.Path(__file__).parents[2]

# The script with an engine that needs no model.
PROGRAM = """
import runpy, sys, types
import echo_engine, serve_parts
from mpo_jax.inputs import tokenizer as tokenizer_lib

class Loaded:
    def __init__(self, model, **options):
        print(model, sorted(options.items()), flush=True)
        self.tokenizer = tokenizer_lib.load_tokenizer(model)
        self.engine = echo_engine.EchoEngine(self.tokenizer)
        self.policy, self.name = serve_parts.policy(), "echo"

    def words(self):
        return "described"

sys.modules["mpo_jax.run.answerer"] = types.SimpleNamespace(load_engine=Loaded)
sys.argv[0] = "scripts/serve.py"
runpy.run_path("scripts/serve.py", run_name="__main__")
"""


def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "scripts")))
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_it_serves_until_it_is_told_to_end(qwen2_dir):
    process = start(f"--model={qwen2_dir}", "--port=0", "--max_tiles=6", "--name=mine")
    assert process.stdout is not None and process.stderr is not None
    told = process.stdout.readline()
    assert "('max_tiles', 6)" in told and "('dtype', 'auto')" in told
    assert process.stdout.readline() == "described\n"
    said = process.stdout.readline().split()
    assert said[:3] == ["serving", "mine", "at"]
    url = said[3]
    assert url.startswith("http://127.0.0.1:")
    body = parts.chat("the?", model="mine")
    answer = httpx2.post(f"{url}/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"]
    evil = httpx2.get(f"{url}/models", headers={"host": "evil.example"})
    assert evil.status_code == 400
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and not out
    (line,) = err.splitlines()
    assert "ended by SIGTERM" in line


@pytest.mark.slow
@pytest.mark.parametrize("key", ["", "secret"])
def test_a_server_for_other_machines(qwen2_dir, key):
    flags = (f"--model={qwen2_dir}", "--port=0", "--host=0.0.0.0")
    process = start(*flags, MPO_API_KEY=key)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(3)]
    url = lines[-1].split()[-1].replace("0.0.0.0", "127.0.0.1")
    assert httpx2.get(f"{url}/models").status_code == (401 if key else 200)
    head = {"authorization": "Bearer secret"}
    assert httpx2.get(f"{url}/models", headers=head).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0
    assert ("no authentication; set MPO_API_KEY" in err) == (not key)


@pytest.mark.slow
def test_an_address_that_is_taken(qwen2_dir):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        process = start(f"--model={qwen2_dir}", f"--port={port}")
        out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and not out  # nothing was loaded
    assert f"127.0.0.1:{port}: Address already in use" in err.replace("\n", " ")
