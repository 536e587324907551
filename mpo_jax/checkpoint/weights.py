"""Checkpoints of weights: written alone, and read out of those of a run."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from orbax.checkpoint import v1 as ocp

from mpo_jax.checkpoint import fitting, places, reading, verifying
from mpo_jax.utils import progress

PARAMS = "params"
_WITHIN = f"{PARAMS}/"


def save_params(path: str | pathlib.Path, params: Any, *, metadata: dict) -> None:
    """Write weights alone, atomically.

    Args:
      metadata: JSON-able description (source, dtype, fingerprint).
    """
    ocp.save_checkpointables(
        places.for_orbax(path),
        {PARAMS: params},
        overwrite=True,
        custom_metadata=metadata,
    )


def params_directory(path: str | os.PathLike[str]) -> Any:
    """Where the weights of a converted checkpoint or of a training run lie.

    Accepts the directory itself, a converted checkpoint (``<dir>/params``) and a
    training ``workdir``: its newest checkpoint whose files are there in their sizes;
    newer ones that are damaged are named. None if it is none of these. A
    ``pathlib.Path``, or for an address (``gs://…``) an ``epath.Path``. Contents are
    compared by :func:`verify_params`.

    Raises:
      Damaged: if there are checkpoints, all damaged, or the named one is.
    """
    root = places.absolute(path)
    if not root.is_dir():
        return None
    runs = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    steps = [p for p in runs.iterdir() if p.name.isdigit() and p.is_dir()]
    newest = _newest(sorted(steps, key=lambda p: int(p.name), reverse=True))
    if newest is not None:
        return newest
    for candidate in (root / PARAMS, root):
        if (candidate / PARAMS / reading.TREE).is_file():
            problems = verifying.at_a_glance(candidate, within=_WITHIN)
            if problems:
                raise _damaged({candidate: problems})
            return candidate
    return None


def _newest(steps: Sequence[Any]) -> Any:
    """The first that is not damaged; None if there is no checkpoint among them."""
    bad: dict[Any, list[str]] = {}
    for step in steps:
        problems = verifying.at_a_glance(step, within=_WITHIN)
        if not problems:
            for worse, why in bad.items():
                _tell(f"{_damaged({worse: why})}\nTaken instead: {step}")
            return step
        bad[step] = problems
    if any((step / reading.CHECKPOINT).exists() for step in steps):
        raise _damaged(bad)
    return None


def _damaged(bad: dict[Any, list[str]]) -> verifying.Damaged:
    return verifying.Damaged(
        "\n".join(
            f"{path} is damaged:\n{verifying.listed(why)}" for path, why in bad.items()
        )
    )


@functools.lru_cache(maxsize=64)
def _tell(text: str) -> None:
    """Print once, however often a program asks where weights are."""
    progress.console().print(text)


def verify_params(path: str | pathlib.Path) -> None:
    """Compare the content of stored weights with their manifest, and say so.

    Weights that were saved alone, or by an older version, have none: then only what
    shows at a glance is checked. On several processes all call it.

    Raises:
      Damaged: naming the files.
    """
    found = _found(path)
    verdict = verifying.of(found, within=_WITHIN)
    if verdict.problems:
        raise verifying.Damaged(
            f"{found} is damaged:\n{verdict}\nName another checkpoint"
            + (f", such as {found.parent}/STEP" if found.name.isdigit() else "")
        )
    if not verdict.unverified or found.name.isdigit():
        _tell(f"Weights of {found}: {verdict}.")


def _found(path: str | pathlib.Path) -> Any:
    found = params_directory(path)
    if found is None:
        raise FileNotFoundError(
            f"{path} holds no checkpoint; convert a HF model with "
            "scripts/convert_from_hf.py, or name a training --workdir"
        )
    return found


def check_params(path: str | pathlib.Path, abstract: Any) -> None:
    """Check the shapes of stored weights without reading them; raises ValueError."""
    found = params_directory(path) or places.absolute(path)
    stored = ocp.checkpointables_metadata(places.for_orbax(found)).metadata
    fitting.check(PARAMS, abstract, stored[PARAMS], path=found)


def load_params(path: str | pathlib.Path, abstract: Any) -> Any:
    """Read weights of a converted checkpoint or of a training run.

    Args:
      path: see :func:`params_directory`.
      abstract: tree of ``ShapeDtypeStruct``, with shardings where they matter.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      Damaged: naming the files, if they are not as they were saved.
      ValueError: naming the leaves, if it is of another model.
    """
    found = _found(path)
    verify_params(found)
    stored = ocp.checkpointables_metadata(places.for_orbax(found)).metadata
    fitting.check(PARAMS, abstract, stored[PARAMS], path=found)
    return ocp.load_checkpointables(places.for_orbax(found), {PARAMS: abstract})[PARAMS]


def load_metadata(path: str | pathlib.Path) -> dict:
    """JSON stored with a checkpoint of weights or of a run; {} if there is none."""
    found = params_directory(path)
    if found is None:
        return {}
    stored: Any = ocp.metadata(places.for_orbax(found)).custom_metadata
    return dict(stored or {})
