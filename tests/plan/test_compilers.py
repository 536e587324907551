"""Which interpreter compiles, with what, and whether slices install the same."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import stat
import sys

import pytest

from mpo_jax.plan import child, compilers

LOCKS = pathlib.Path(__file__).parents[2] / "tpu_setup" / "locks"
LOCKED = ("1", "2", "3", "4", "5")


def lock(folder: pathlib.Path, python: str = "3.11") -> pathlib.Path:
    lines = ["# made by hand", "absl-py==9 \\", "    --hash=sha256:00"]
    for package, version in zip(compilers.PACKAGES, LOCKED, strict=True):
        lines += [f"{package}=={version} \\", "    --hash=sha256:00"]
    (folder / f"tpu-{python}.txt").write_text("\n".join(lines), encoding="utf-8")
    return folder


def script(path: pathlib.Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
def test_an_interpreter_is_asked_for_what_it_has():
    found = compilers.of()
    assert found.executable == sys.executable
    assert found.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    for package in ("jax", "libtpu"):
        assert found.version(package) == importlib.metadata.version(package)
        assert found.to_dict()[package] == found.version(package)
    assert found.executable not in found.to_dict().values()


def test_the_libtpu_of_another_interpreter_is_not_handed_on(monkeypatch):
    """Importing jax here has set the variable, and jax there would follow it."""
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/here/libtpu.so")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/cache")
    monkeypatch.setenv("PYTHONPATH", "/more")
    found = child.environment()
    assert "TPU_LIBRARY_PATH" not in found
    assert "JAX_COMPILATION_CACHE_DIR" not in found
    root = str(pathlib.Path(child.__file__).parents[2])
    assert found["PYTHONPATH"] == f"{root}{os.pathsep}/more"
    assert found["TPU_SKIP_MDS_QUERY"] == "1"


def test_an_interpreter_that_cannot_compile_is_refused(tmp_path):
    with pytest.raises(ValueError, match="/nowhere/python does not run as Python"):
        compilers.of("/nowhere/python")
    with pytest.raises(ValueError, match="does not run as Python"):
        compilers.of(script(tmp_path / "fails", "exit 3"))
    bare = script(tmp_path / "bare", f'exec {sys.executable} -S "$@"')  # no packages
    with pytest.raises(ValueError, match=r"has no jax, .*libtpu.*\[plan\]"):
        compilers.of(bare)


def test_each_generation_has_one_compiler(tmp_path, monkeypatch):
    answer = '{"python": "3.12", "jax": "1", "jaxlib": "2", "libtpu": "3", '
    answer += '"flax": "4", "optax": "5"}'
    script(tmp_path / "python", f"echo '{answer}'")
    monkeypatch.chdir(tmp_path)
    found = compilers.by_generation(["tpu7x=./python"])
    other = compilers.Compiler(str(tmp_path / "python"), "3.12", LOCKED)
    assert found == {"tpu7x": other}
    assert compilers.label(other.to_dict()) == "libtpu 3 (jax 1, Python 3.12)"
    for wrong in (["v9=./python"], ["tpu7x"], ["tpu7x=./python", "tpu7x=./python"]):
        with pytest.raises(ValueError, match="write GENERATION=PYTHON"):
            compilers.by_generation(wrong)


def test_what_slices_install_instead_is_one_line(tmp_path):
    here = compilers.Compiler("/env/bin/python", "3.11", LOCKED)
    assert compilers.unlike_lock(here, lock(tmp_path)) == ""
    other = compilers.Compiler("/env/bin/python", "3.11", ("1", "2", "9", "4", "5"))
    text = compilers.unlike_lock(other, tmp_path)
    assert text.startswith("warning: libtpu 9 plans, but slices install libtpu==3 ")
    assert text.endswith("/env/bin/python -m pip install libtpu==3")
    assert "tpu-3.11.txt" in text and "\n" not in text
    unknown = compilers.Compiler("/env/bin/python", "3.13", LOCKED)
    text = compilers.unlike_lock(unknown, tmp_path)
    assert "libtpu 3 (jax 1, Python 3.13) plans, and no slice installs it" in text
    assert "tpu-3.13.txt" in text and "\n" not in text


def test_a_lock_must_pin_what_plans(tmp_path):
    (tmp_path / "tpu-3.11.txt").write_text("jax==1\njaxlib==2\nflax==4\noptax==5\n")
    here = compilers.Compiler("python", "3.11", LOCKED)
    with pytest.raises(ValueError, match=r"tpu-3.11.txt does not pin libtpu"):
        compilers.unlike_lock(here, tmp_path)


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_locks_of_the_repository_are_read(python):
    nothing = compilers.Compiler("python", python, ("0",) * len(compilers.PACKAGES))
    text = compilers.unlike_lock(nothing, LOCKS)
    pinned = (LOCKS / f"tpu-{python}.txt").read_text("utf-8")
    for word in text.split(" -m pip install ")[1].split():
        assert f"\n{word} \\\n" in pinned
    assert "libtpu==" in text and "jax==" in text
