"""MPO for InternVL in JAX. Importing this package touches no device.

Public: ``InternVL`` (notebook API, see ``mpo_jax.api``); losses in
``mpo_jax.losses.preference``; tiling in ``mpo_jax.inputs.images``.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpo_jax.api import InternVL

__all__ = ["InternVL", "__version__"]

try:
    __version__ = importlib.metadata.version("mpo-jax")
except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "InternVL":
        from mpo_jax.api import InternVL

        return InternVL
    raise AttributeError(f"module 'mpo_jax' has no attribute {name!r}")
