"""Whether a stored tree has the leaves and shapes that a run needs."""

from __future__ import annotations

from typing import Any

import jax


def check(name: str, abstract: Any, stored: Any, *, path: Any) -> None:
    """Compare trees before Orbax does: its own error does not name the leaves.

    Raises:
      ValueError: naming the leaves.
    """
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


def _leaves(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
    }
