"""Checkpoints: of a run (everything needed to resume) and of weights alone.

The only importer of Orbax. A run's checkpoint holds the arrays ``params``,
``opt_state``, ``loop`` (step, reward shift) and, for TR-DPO, ``reference``, and as JSON
the data position, the config and what the reference cache was keyed by. A checkpoint
becomes visible by a rename: a kill at any moment leaves the last complete one.
"""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from etils import epath
from etils.epath import gpath
from orbax.checkpoint import v1 as ocp

from mpo_jax import config
from mpo_jax.utils import remote

PARAMS = "params"


@epath.register_path_cls
class _Directory(gpath.PosixGPath):
    """A directory whose own name is never taken for a pattern.

    Orbax finds the files of each process by ``glob``, whose pattern would hold the
    directory's name: in one such as ``lr[1e-5]`` it found none, and saved nothing.
    """

    def glob(self, pattern: str) -> Iterator[_Directory]:  # type: ignore[override]
        for name in glob.iglob(pattern, root_dir=str(self)):
            yield self / name


def check_place(path: Any) -> None:
    """Check that checkpoints can be written to a directory of this name.

    Raises:
      ValueError: if it holds a backslash, which TensorStore takes for a separator.
    """
    if "\\" in str(path):
        raise ValueError(
            f"{path}: checkpoints cannot be written to a path with a backslash; name "
            "another one"
        )


def _place(path: Any) -> Any:
    """A path, absolute; an address as Orbax's own kind, since pathlib would fold it."""
    check_place(path)
    if not remote.is_remote(path):
        return pathlib.Path(os.path.expanduser(path)).absolute()
    if not str(path).startswith(("gs://", "s3://")):
        raise ValueError(
            f"{path}: Orbax checkpoints are read from and written to directories, "
            "gs:// and s3://"
        )
    remote.Folder(str(path))  # names what is not installed
    return epath.Path(str(path))


def _orbax(path: Any) -> Any:
    """The same as Orbax should see it."""
    place = _place(path)
    return _Directory(place) if isinstance(place, pathlib.Path) else place


def _leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def _json(value: Any) -> dict[str, Any]:
    return dict(value or {})


def _check(name: str, abstract: Any, stored: Any, *, path: Any) -> None:
    """Compare trees before Orbax does: its own error does not name the leaves."""
    wanted, found = _leaves(abstract), _leaves(stored)
    problems = [f"missing {leaf}" for leaf in sorted(set(wanted) - set(found))]
    problems += [f"surplus {leaf}" for leaf in sorted(set(found) - set(wanted))]
    for leaf in sorted(set(wanted) & set(found)):
        ours = tuple(wanted[leaf].shape)
        theirs = tuple(getattr(found[leaf], "shape", ours) or ())
        if ours != theirs:
            problems.append(f"{leaf} has shape {theirs}, this run needs {ours}")
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        shown = "\n  ".join(problems[:20] + more)
        raise ValueError(
            f"{path}: {name!r} does not fit this run's model or optimiser:\n  {shown}\n"
            "Use the config of the run that wrote it, or another --workdir."
        )


class Checkpoints:
    """Checkpoints of one run, saved in the background, the last few kept."""

    def __init__(self, directory: str | pathlib.Path, cfg: config.CheckpointConfig):
        self.directory = _place(directory)
        # Typed Any: Orbax's own policies do not satisfy its protocol's annotations.
        policies: Any = ocp.training.preservation_policies
        decisions: Any = ocp.training.save_decision_policies
        kept: list[Any] = [policies.LatestN(cfg.keep_last)]
        if cfg.keep_every:
            kept.append(policies.EveryNSteps(cfg.keep_every))
        self._checkpointer = ocp.training.Checkpointer(
            _orbax(directory),
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, trees: Mapping[str, Any], *, meta: dict) -> None:
        """Start saving; returns once the arrays are copied.

        Args:
          trees: name -> pytree of arrays.
          meta: JSON-able, stored with the checkpoint.
        """
        self.wait()
        self._pending = self._checkpointer.save_checkpointables_async(
            step, dict(trees), custom_metadata=meta, force=True
        )

    _pending: Any = None
    _closed = False

    def wait(self) -> None:
        """Wait for the save under way; raises if it failed."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def meta(self, step: int) -> dict:
        """JSON that was stored with a checkpoint."""
        return _json(self._checkpointer.metadata(step).custom_metadata)

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Load trees into the given shapes, dtypes and shardings.

        Raises:
          ValueError: naming the leaves, if the checkpoint is of another model.
        """
        stored = self._checkpointer.checkpointables_metadata(step).metadata
        path = self.directory / str(step)
        for name, tree in abstract.items():
            if name not in stored:
                raise ValueError(
                    f"{path} holds no {name!r}, only {sorted(stored)}; it was written "
                    "by a run with other settings (reference.mode?)"
                )
            _check(name, tree, stored[name], path=path)
        return self._checkpointer.load_checkpointables(step, dict(abstract))

    def close(self) -> None:
        """Wait and release; safe to call twice, and where a save has failed.

        Without it Orbax's threads meet the end of the interpreter, and their traceback
        hides what ended the program.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._checkpointer.close()


def save_params(path: str | pathlib.Path, params: Any, *, metadata: dict) -> None:
    """Write weights alone, atomically.

    Args:
      metadata: JSON-able description (source, dtype, fingerprint).
    """
    ocp.save_checkpointables(
        _orbax(path),
        {PARAMS: params},
        overwrite=True,
        custom_metadata=metadata,
    )


def params_directory(path: str | os.PathLike[str]) -> Any:
    """Where the weights of a converted checkpoint or of a training run lie.

    Accepts the directory itself, a converted checkpoint (``<dir>/params``) and a
    training ``workdir`` (its newest checkpoint); None if it is none of these. A
    ``pathlib.Path``, or for an address (``gs://…``) an ``epath.Path``.
    """
    root = _place(path)
    if not root.is_dir():
        return None
    runs = root / "checkpoints" if (root / "checkpoints").is_dir() else root
    steps = [p for p in runs.iterdir() if p.is_dir() and p.name.isdigit()]
    newest = [max(steps, key=lambda p: int(p.name))] if steps else []
    for candidate in (*newest, root / PARAMS, root):
        if (candidate / PARAMS / "_METADATA").is_file():
            return candidate
    return None


def check_params(path: str | pathlib.Path, abstract: Any) -> None:
    """Check the shapes of stored weights without reading them; raises ValueError."""
    found = params_directory(path) or _place(path)
    stored = ocp.checkpointables_metadata(_orbax(found)).metadata
    _check(PARAMS, abstract, stored[PARAMS], path=found)


def load_params(path: str | pathlib.Path, abstract: Any) -> Any:
    """Read weights of a converted checkpoint or of a training run.

    Args:
      path: see :func:`params_directory`.
      abstract: tree of ``ShapeDtypeStruct``, with shardings where they matter.

    Raises:
      FileNotFoundError: if there is no checkpoint.
      ValueError: naming the leaves, if it is of another model.
    """
    found = params_directory(path)
    if found is None:
        raise FileNotFoundError(
            f"{path} holds no checkpoint; convert a HF model with "
            "scripts/convert_from_hf.py, or name a training --workdir"
        )
    stored = ocp.checkpointables_metadata(_orbax(found)).metadata
    _check(PARAMS, abstract, stored[PARAMS], path=found)
    return ocp.load_checkpointables(_orbax(found), {PARAMS: abstract})[PARAMS]


def load_metadata(path: str | pathlib.Path) -> dict:
    """JSON stored with a checkpoint of weights or of a run; {} if there is none."""
    found = params_directory(path)
    if found is None:
        return {}
    return _json(ocp.metadata(_orbax(found)).custom_metadata)
