"""The locks: within pyproject.toml's ranges, a hash for every file, no address."""

from __future__ import annotations

import pathlib
import re
import tomllib

import pytest
from packaging import requirements, utils, version

from mpo_jax.utils import wandb_board

FOLDER = pathlib.Path(__file__).parents[2] / "tpu_setup" / "locks"
LOCKS = [f"{kind}-{python}" for kind in ("tpu", "test") for python in ("3.11", "3.12")]
EXTRAS = {"tpu": ("tpu", "gcs", "wandb"), "test": ("test",)}
_ENTRY = re.compile(r"([A-Za-z0-9._-]+)==(\S+?)((?: ; .*?)?)((?: --hash=\S+)+)")


def entries(name: str) -> dict[str, tuple[str, list[str]]]:
    """Version and hashes of every package of a lock; every line must be one."""
    text = (FOLDER / f"{name}.txt").read_text("utf-8")
    joined = re.sub(r" \\\n\s+", " ", text)
    found = {}
    for line in joined.splitlines():
        if line.startswith("#"):
            continue
        match = _ENTRY.fullmatch(line)
        assert match, line
        package = utils.canonicalize_name(match[1])
        assert package not in found, line
        found[package] = (match[2], match[4].split())
    return found


@pytest.fixture(scope="module")
def project(root):
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.mark.parametrize("name", [*LOCKS, "uv"])
def test_every_file_has_a_hash_and_no_line_an_address(name):
    found = entries(name)
    assert found
    for package, (_, hashes) in found.items():
        assert hashes, package
        for one in hashes:
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", one), package
    text = (FOLDER / f"{name}.txt").read_text("utf-8")
    assert "://" not in text and "--index" not in text and "--find-links" not in text
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert comments[1:] == ["#    tpu_setup/locks/make.sh"]


@pytest.mark.parametrize("name", LOCKS)
def test_locks_are_within_the_ranges(name, project):
    """After a change of pyproject.toml: ``make locks``."""
    kind, python = name.split("-")
    found = entries(name)
    environment = {
        **{"python_version": python, "python_full_version": f"{python}.0"},
        **{"sys_platform": "linux", "platform_machine": "x86_64"},
        **{"platform_system": "Linux", "os_name": "posix", "extra": ""},
    }
    asked = list(project["dependencies"])
    for extra in EXTRAS[kind]:
        asked += project["optional-dependencies"][extra]
    checked = 0
    for line in asked:
        wanted = requirements.Requirement(line)
        if wanted.marker and not wanted.marker.evaluate(environment):
            continue
        if wanted.name == "torch":
            assert "torch" not in found
            continue
        pinned, _ = found[utils.canonicalize_name(wanted.name)]
        assert wanted.specifier.contains(version.Version(pinned)), (line, pinned)
        checked += 1
    assert checked >= len(project["dependencies"])


def test_workers_have_what_fields_of_a_training_ask_for(root):
    """Nobody can follow `pip install -e '.[…]'` on a worker (log.wandb, gs://)."""
    made = (root / "tpu_setup/locks/make.sh").read_text("utf-8")
    for extra, library in ((wandb_board.EXTRA, "wandb"), ("gcs", "gcsfs")):
        assert extra in EXTRAS["tpu"] and f"--extra={extra}" in made
        for python in ("3.11", "3.12"):  # startup.sh's, and either image's
            assert library in entries(f"tpu-{python}")


def test_the_compiler_that_plans_is_the_one_that_slices_run(project):
    for python in ("3.11", "3.12"):
        slices, planner = (entries(f"{kind}-{python}") for kind in ("tpu", "test"))
        for package in ("jax", "jaxlib", "libtpu", "numpy", "orbax-checkpoint"):
            assert slices[package] == planner[package], package
    extras = project["optional-dependencies"]
    # libtpu comes with jax's own extra alone, which pins it.
    assert not [line for lines in extras.values() for line in lines if "libtpu" in line]
    for name in ("plan", "test", "tpu"):
        assert any(line.startswith("jax[tpu]") for line in extras[name]), name


def test_everything_that_slices_install_is_locked(root):
    image = (root / "tpu_setup/Dockerfile").read_text("utf-8")
    startup = (root / "tpu_setup/startup.sh").read_text("utf-8")
    for text in (image, startup):
        for line in re.sub(r"\\\n\s+", " ", text).splitlines():
            if "pip install" in line and not line.startswith("#"):
                assert "--require-hashes" in line or "--no-deps" in line, line
    # Dependencies before sources, or every edit would install them again.
    order = [image.index(f"\nCOPY {word}") for word in ("tpu_setup/locks", "mpo_jax")]
    assert order == sorted(order)
    assert image.index("--require-hashes") < image.index("\nCOPY mpo_jax")
    ignored = (root / "tpu_setup/Dockerfile.dockerignore").read_text("utf-8")
    for line in re.findall(r"^COPY (.*) \S+$", image, re.M):
        for word in line.split():
            top = word.removesuffix("/tpu-${PYTHON}.txt")
            assert f"!{top}" in ignored.splitlines(), word
    assert "LABEL org.opencontainers.image.revision=${COMMIT}" in image


def test_no_message_advises_a_package_that_is_not_ours(root):
    """mpo-jax is no name of ours on any index: whoever takes it would be installed."""
    advice = re.compile(r"pip install (?:--?\S+ )*['\"]?mpo-jax")
    found = []
    for folder in ("mpo_jax", "scripts", "configs", "tpu_setup", "docs"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in (".py", ".md", ".sh"):
                if advice.search(path.read_text("utf-8")):
                    found.append(str(path.relative_to(root)))
    assert found == []
