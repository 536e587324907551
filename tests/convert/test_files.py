"""Directories that appear whole: leftovers of kills, modes, disks that are full."""

from __future__ import annotations

import errno
import fcntl
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mpo_jax.convert import files, health, writer

KILLED = """
import os, pathlib, signal, sys
from mpo_jax.convert import files
with files.new_directory(sys.argv[1], overwrite=True) as partial:
    (partial / "config.json").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def model_at(path: pathlib.Path, text: str) -> pathlib.Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(text)
    return path


def hidden(path: pathlib.Path) -> list[str]:
    return sorted(p.name for p in path.iterdir() if p.name.startswith("."))


def test_what_a_killed_process_left_goes_with_the_next(tmp_path, root):
    target = model_at(tmp_path / "hf", "old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(target)],
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=120,
    )
    assert done.returncode == -9 and ".hf.partial" in hidden(tmp_path)
    with files.new_directory(target, overwrite=True) as partial:
        assert not list(partial.iterdir())
        (partial / "config.json").write_text("newer")
    assert hidden(tmp_path) == []
    assert (target / "config.json").read_text() == "newer"


def test_killed_between_the_two_renames(tmp_path):
    """The old model has a hidden name then, and is the only one that is whole."""
    model_at(tmp_path / ".hf.replaced", "old")
    with pytest.raises(FileExistsError, match="not empty"):
        with files.new_directory(tmp_path / "hf"):
            pass
    assert (tmp_path / "hf" / "config.json").read_text() == "old"
    # After the second one it is only to be deleted.
    model_at(tmp_path / ".hf.replaced", "older")
    with files.new_directory(tmp_path / "hf", overwrite=True) as partial:
        (partial / "config.json").write_text("new")
    assert hidden(tmp_path) == []


def test_two_at_once_are_refused(tmp_path):
    with files.new_directory(tmp_path / "hf") as partial:
        with pytest.raises(FileExistsError, match="another process"):
            with files.new_directory(tmp_path / "hf"):
                pass
        (partial / "config.json").write_text("first")
    assert (tmp_path / "hf" / "config.json").read_text() == "first"


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with files.new_directory(tmp_path / "hf") as partial:
        (partial / "config.json").write_text("{}")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_modes_of_a_store_are_not_copied(tmp_path):
    source = model_at(tmp_path / "store", "{}")
    model_at(source / files.KEPT, "{}")
    for path in (source / "config.json", source / files.KEPT, source):
        path.chmod(0o555)
    target = tmp_path / "out"
    target.mkdir()
    files.copy_model_files(source, target)
    for path in (target / files.KEPT, target / files.KEPT / "config.json"):
        assert path.stat().st_mode & 0o200
    for path in (source, source / files.KEPT):  # so that pytest can clear up
        path.chmod(0o755)


def test_read_only_folders_of_our_own_are_replaced(tmp_path):
    target = model_at(tmp_path / "hf", "old")
    model_at(target / files.KEPT, "old").chmod(0o555)
    with files.new_directory(target, overwrite=True) as partial:
        (partial / "config.json").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with files.new_directory("~/models/mine") as partial:
        (partial / "config.json").write_text("{}")
    assert (tmp_path / "models" / "mine").is_dir()


def test_errors_of_a_full_disk_name_the_file(tmp_path, monkeypatch):
    made = writer.Writer(tmp_path, {"a": (4,)}, {"a": "float32"})

    def full(name, block):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left") as error:
        with files.naming(tmp_path / "x"):
            full("a", None)
    assert error.value.filename == str(tmp_path / "x")
    made.put("a", np.ones(4, np.float32))
    # A device that is always full.
    with pytest.raises(OSError) as error, files.naming(tmp_path / "y"):
        with open("/dev/full", "wb", buffering=0) as stream:
            stream.write(b"x")
    assert error.value.errno == errno.ENOSPC
    assert error.value.filename == str(tmp_path / "y")


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.0])
def test_blocks_are_judged(kind, value):
    import jax.numpy as jnp

    seen = health.Health()
    block = np.full((3, 4), 0.5)
    block[1, 2] = value
    seen.see("a", block.astype(jnp.dtype(kind)))
    for part in (np.zeros((2, 2)), np.eye(2)):
        seen.see("b", part.astype(jnp.dtype(kind)))
    seen.see("c", np.zeros((2, 2), jnp.dtype(kind)))
    seen.see("bias", np.zeros(2, jnp.dtype(kind)))
    notes = seen.notes()
    assert notes[-1].startswith("nothing but zeros in c; ")
    if value == 3.0:
        assert len(notes) == 1
    else:
        assert notes[0] == "NaN or infinite values in a"
