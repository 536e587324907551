"""Checkpoints: of a run (everything needed to resume) and of weights alone.

The only importer of Orbax. A run's checkpoint holds the arrays ``params``,
``opt_state``, ``loop`` (step, reward shift) and, for TR-DPO, ``reference``, and as JSON
the data position, the config and what the reference cache was keyed by. A checkpoint
becomes visible by a rename: a kill at any moment leaves the last complete one. Then
come its manifests, by which a damaged one is told from a good one
(docs/checkpoints.md).
"""

from mpo_jax.checkpoint.checkpoints import Checkpoints, Resumed
from mpo_jax.checkpoint.places import check_name, check_place, steps_in
from mpo_jax.checkpoint.saving import SaveFailed
from mpo_jax.checkpoint.schedule import Schedule
from mpo_jax.checkpoint.verifying import Damaged
from mpo_jax.checkpoint.weights import (
    PARAMS,
    check_params,
    load_metadata,
    load_params,
    params_directory,
    save_params,
    verify_params,
)

__all__ = [
    "PARAMS",
    "Checkpoints",
    "Damaged",
    "Resumed",
    "SaveFailed",
    "Schedule",
    "check_name",
    "check_params",
    "check_place",
    "load_metadata",
    "load_params",
    "params_directory",
    "save_params",
    "steps_in",
    "verify_params",
]
