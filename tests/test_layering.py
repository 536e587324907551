"""The import rules of docs/architecture.md, read from the source with ast."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

# From top to bottom. A module imports its own unit or a lower row, never a sibling.
ROWS = (
    {"scripts", "configs"},
    {"miniature"},
    {"run", "demo", "api", "plan", "serve"},
    {"evals", "prefs", "train", "convert", "importers"},
    {"generate", "packing"},
    {"losses", "models", "mmpr"},
    {"nn", "inputs", "verify", "checkpoint"},
    {"sharding", "recipes", "recipe_config"},
    {"utils"},
    {"config"},
    {"config_checks", "config_paths"},
    {"types", "fields", "ledger", "loss_terms"},
)
RANK = {unit: len(ROWS) - i for i, row in enumerate(ROWS) for unit in row}

# Worker processes run these: they must not open a device, so they do not import jax
# (only `types` brings it in, to register pytrees), nor what does.
HOST = ("inputs", "mmpr", "packing", "verify", "ledger")
_HOST_MAY = {
    *("types", "fields", "ledger"),
    *("utils.atomic", "utils.file_kinds", "utils.missing_files"),
    *("utils.remote", "utils.objects", "utils.located", "utils.fetched"),
    *("utils.web_page", "utils.orphans", "utils.transient", "utils.statuses"),
}

# Units that may use less than the rows below them.
ONLY = {
    "configs": {
        *("config", "models.config", "recipe_config", "recipes", "miniature.config"),
    },
    "inputs": _HOST_MAY,
    "mmpr": _HOST_MAY | {"inputs"},
    "packing": _HOST_MAY | {"inputs", "mmpr"},
    "verify": set(),
}

# Where a library may be imported (a unit or a module); elsewhere its names are unknown,
# so that a new version of it concerns these files alone.
HOMES = {
    "orbax": {"checkpoint"},
    "grain": {"packing.pipeline", "mmpr.array_records"},
    "transformers": {"convert", "inputs.tokenizer_files"},
    "flax": {"models", "nn"},
    "optax": {"train"},
    "matplotlib": {"utils.plots", "utils.plan_plot", "utils.score_plots"},
    "tensorboardX": {"utils.tensorboard"},
    "safetensors": {"convert"},
    "huggingface_hub": {"convert"},
    "ml_collections": {"configs", "scripts"},
    "tensorstore": {"convert.stream", "checkpoint.reading"},
    "fsspec": {"utils.remote"},
    "tenacity": {"utils.transient"},
    "wandb": {"utils.wandb_board"},
    "datasets": {"importers.hub"},
    "etils": {"checkpoint"},
    "torch": {"convert.verify"},
    "tensorflow_datasets": {"mmpr.shard_builder"},
    "apache_beam": {"mmpr.shard_builder", "run.beam_pairing"},
    "array_record": {"mmpr.shard_writer"},
    "math_verify": {"verify"},
    "openai": {"generate.endpoint_client"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "tensorflow": set(),
}


def modules(root: pathlib.Path) -> Iterator[tuple[str, pathlib.Path]]:
    """Names without ``mpo_jax``: ``inputs.images``, ``scripts.train``, ``""``."""
    for top in ("mpo_jax", "scripts", "configs"):
        for path in sorted((root / top).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            if top == "mpo_jax":
                parts = parts[1:]
            yield ".".join(p for p in parts if p != "__init__"), path


def imports(path: pathlib.Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import, also inside functions.

    ``from mpo_jax.inputs import images`` is ``mpo_jax.inputs.images`` where that is a
    module (`known`), else what stands before ``import``.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                yield node.lineno, "." * node.level + (node.module or "")
                continue
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                inside = longer.removeprefix("mpo_jax.") in known
                yield node.lineno, longer if inside else str(node.module)


def within(name: str, homes: set[str]) -> bool:
    return any(name == home or name.startswith(home + ".") for home in homes)


def violations(root: pathlib.Path) -> list[str]:
    found = []
    everything = dict(modules(root))
    known = set(everything) | {name.rpartition(".")[0] for name in everything}
    for name, path in everything.items():
        unit = name.split(".")[0]
        where = path.relative_to(root)
        if name and unit not in RANK:
            found.append(f"{where}: mpo_jax.{unit} has no row in test_layering.py")
            continue
        for line, target in imports(path, known):
            problem = None
            library = target.split(".")[0]
            if target.startswith("."):
                problem = "relative import; write mpo_jax.…"
            elif library == "mpo_jax":
                problem = _own(name, unit, target.removeprefix("mpo_jax").lstrip("."))
            elif library in HOMES and not within(name, HOMES[library]):
                homes = ", ".join(sorted(HOMES[library])) or "tests"
                problem = f"{library} belongs in {homes}"
            elif library in ("jax", "jaxlib") and unit in HOST:
                problem = f"{unit} runs no jax"
            if problem:
                found.append(f"{where}:{line}: imports {target}: {problem}")
    return found


def _own(name: str, unit: str, target: str) -> str | None:
    other = target.split(".")[0]
    if not name:  # mpo_jax/__init__.py hands out the public API, lazily
        return None if other == "api" else "only the API is public"
    if other == unit:
        return None
    if other not in RANK:
        return "the package root is for users; import a module"
    if unit in ONLY and not within(target, ONLY[unit]):
        return f"{unit} may import {sorted(ONLY[unit])} only"
    if RANK[other] == RANK[unit]:
        return "siblings do not import each other"
    return None if RANK[other] < RANK[unit] else "imports run downwards"


def test_layers_and_libraries(root: pathlib.Path):
    found = violations(root)
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "where, line, problem",
    [
        ("mpo_jax/losses/x.py", "from mpo_jax.models import internvl", "siblings"),
        ("mpo_jax/train/x.py", "from mpo_jax import convert", "siblings"),
        ("mpo_jax/nn/x.py", "import mpo_jax.train.step", "downwards"),
        ("mpo_jax/types.py", "from mpo_jax.config import RunConfig", "downwards"),
        ("mpo_jax/train/x.py", "from mpo_jax.run import setup", "downwards"),
        ("mpo_jax/mmpr/x.py", "from mpo_jax import config", "mmpr may import"),
        (
            "mpo_jax/inputs/x.py",
            "from mpo_jax.utils import slices",
            "inputs may import",
        ),
        ("mpo_jax/inputs/x.py", "from mpo_jax.mmpr import index", "inputs may import"),
        ("mpo_jax/mmpr/x.py", "from mpo_jax.packing import plan", "mmpr may import"),
        ("mpo_jax/models/x.py", "from mpo_jax.mmpr import index", "siblings"),
        ("mpo_jax/config.py", "from mpo_jax.utils import slices", "downwards"),
        ("mpo_jax/packing/x.py", "import jax.numpy as jnp", "runs no jax"),
        ("mpo_jax/inputs/x.py", "def f():\n    from jax import Array", "runs no jax"),
        ("mpo_jax/train/x.py", "from orbax.checkpoint import v1", "in checkpoint"),
        ("mpo_jax/train/x.py", "import grain", "packing.pipeline"),
        ("mpo_jax/mmpr/x.py", "from transformers import A", "inputs.tokenizer_files"),
        ("mpo_jax/utils/x.py", "import matplotlib.pyplot", "in utils.plan_plot"),
        ("mpo_jax/train/x.py", "from flax import nnx", "in models, nn"),
        ("scripts/x.py", "def f():\n    import torch", "in convert.verify"),
        ("configs/x.py", "from mpo_jax.run import train", "configs may import"),
        ("mpo_jax/importers/x.py", "from mpo_jax import convert", "siblings"),
        ("mpo_jax/importers/x.py", "import datasets", "in importers.hub"),
        ("mpo_jax/inputs/x.py", "from . import images", "relative"),
        ("mpo_jax/run/x.py", "from mpo_jax import InternVL", "package root"),
        ("mpo_jax/__init__.py", "from mpo_jax import config", "only the API"),
        ("mpo_jax/new/x.py", "", "has no row"),
    ],
)
def test_the_checker_finds(tmp_path: pathlib.Path, where, line, problem):
    for other in (
        *("models/internvl", "run/setup", "train/step", "convert/hf"),
        *("inputs/images", "mmpr/index", "packing/plan"),
        *("utils/slices", "config", "types"),
    ):
        path = tmp_path / "mpo_jax" / f"{other}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert violations(tmp_path) == []
    path = tmp_path / where
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(line)
    found = violations(tmp_path)
    assert len(found) == 1 and problem in found[0], found


def test_every_row_is_drawn_in_the_document(root: pathlib.Path):
    text = (root / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.split("## Layers")[1].split("```")[1]
    lines = [set(line.split("(")[0].split()) for line in drawing.splitlines()]
    assert [line for line in lines if line] == list(ROWS)


def test_importing_the_package_loads_no_jax(root: pathlib.Path):
    names = [f"mpo_jax.{name}" for name in _HOST_MAY if name.startswith("utils.")]
    code = f"import sys, mpo_jax, {', '.join(names)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
