"""Processes, devices and caches: what a program sets up before it computes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from mpo_jax import config, fields
from mpo_jax.utils import late_hosts, peers, statuses

_HOSTS = config.HostsConfig()


def initialise(
    hosts: config.HostsConfig = _HOSTS, *, distributed: bool | None = None
) -> None:
    """Join the other processes of a TPU slice, or those that the environment names.

    ``jax.distributed.initialize`` finds a TPU pod's coordinator by itself, and the one
    of several tasks of Slurm or Open MPI. Elsewhere, set ``MPO_COORDINATOR``
    (host:port), ``MPO_NUM_PROCESSES`` and ``MPO_PROCESS_ID``.

    Also quiets the libraries' progress messages, unless ``--verbosity`` asks for them.

    Args:
      hosts: how long processes wait for each other.
      distributed: None decides by the environment.

    Where the others do not come within ``hosts.connect_s``, the process ends with
    ``TRY_AGAIN``, and says whom it waited for.

    Raises:
      ValueError: if a field or one of the variables is missing or malformed; names it.
      TryAgain: the others cannot be joined.
    """
    quiet()
    fields.check(hosts, "hosts.")
    launch = _launch()
    named: dict[str, Any] = {}
    if launch is not None:
        coordinator, processes, number = launch
        named = {
            "coordinator_address": coordinator,
            "num_processes": processes,
            "process_id": number,
        }
    elif not (distributed or (distributed is None and _has_others())):
        return
    _join(hosts, named)


def _join(hosts: config.HostsConfig, named: Mapping[str, Any]) -> None:
    try:
        with late_hosts.given_up(hosts.connect_s):
            jax.distributed.initialize(
                **named,
                initialization_timeout=hosts.connect_s + late_hosts.MARGIN_S,
                heartbeat_timeout_seconds=hosts.heartbeat_s,
                shutdown_timeout_seconds=hosts.shutdown_s,
            )
    except jax.errors.JaxRuntimeError as error:
        raise statuses.TryAgain(
            f"the other hosts cannot be joined: {str(error).splitlines()[0]}"
        ) from error
    peers.join(heartbeat_s=hosts.heartbeat_s)


def finish() -> None:
    """Wait for the other processes at the end of a program."""
    others = peers.others()
    if others is not None:
        others.finish()


def quiet() -> None:
    """Leave out libraries' progress messages, unless ``--verbosity`` asks for them."""
    if "verbosity" in flags.FLAGS and flags.FLAGS["verbosity"].present == 0:
        logging.set_verbosity(logging.WARNING)


_VARIABLES = ("MPO_COORDINATOR", "MPO_NUM_PROCESSES", "MPO_PROCESS_ID")


def _launch() -> tuple[str, int, int] | None:
    """Coordinator, number of processes and of this one, if the environment says so."""
    values = [os.environ.get(name, "") for name in _VARIABLES]
    if not any(values):
        return None
    for name, value in zip(_VARIABLES, values, strict=True):
        if not value:
            present = [n for n in _VARIABLES if os.environ.get(n)]
            raise ValueError(
                f"{name} is not set, but {' and '.join(present)} is: set all of "
                f"{', '.join(_VARIABLES)}, or none of them"
            )
    address, count, number = values
    port = address.rpartition(":")[2]
    if not (":" in address[1:] and port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(
            f"MPO_COORDINATOR={address!r}: write HOST:PORT, the first process's host "
            "and a free port there"
        )
    if not count.isdecimal() or int(count) < 1:
        raise ValueError(
            f"MPO_NUM_PROCESSES={count!r}: write the number of processes, 1 or more"
        )
    if not number.isdecimal() or int(number) >= int(count):
        raise ValueError(
            f"MPO_PROCESS_ID={number!r}: write this process's number, from 0 to "
            f"{int(count) - 1} (MPO_NUM_PROCESSES={count})"
        )
    return address, int(count), int(number)


def _has_others() -> bool:
    """Whether JAX can find a coordinator by itself: on TPU VMs, for Slurm, Open MPI."""
    tasks = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")
    several = any(os.environ.get(name, "1") not in ("", "1") for name in tasks)
    return several or _on_tpu_host()


def _on_tpu_host() -> bool:
    if os.environ.get("JAX_PLATFORMS", "") not in ("", "tpu", "tpu,cpu"):
        return False
    return any(pathlib.Path("/dev").glob("accel*")) or any(
        pathlib.Path("/dev/vfio").glob("[0-9]*")
    )


def is_main() -> bool:
    """True in the process that prints, plots and writes small files.

    A process that is alone opens no device to know it.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process has come here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agreed(value: np.ndarray) -> np.ndarray:
    """The first process's array, in every process; same shape and dtype in all."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.broadcast_one_to_all(value)).astype(value.dtype)


def largest(values: np.ndarray) -> np.ndarray:
    """Element by element the largest of all processes' arrays; one shape in all."""
    if jax.process_count() == 1:
        return values
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values)).max(axis=0)


PROGRAMS = "~/.cache/mpo_jax/programs"
"""Where commands without a work directory keep compiled programs."""


def programs_cache(directory: str) -> None:
    """:func:`compilation_cache` as a flag names it: a directory, or ``none``."""
    compilation_cache(
        None if directory == "none" else os.path.expanduser(directory or PROGRAMS)
    )


def compilation_cache(directory: str | pathlib.Path | None) -> None:
    """Keep compiled programs on disk, so that a restart does not compile again.

    On TPU, GPU and CPU. ``JAX_COMPILATION_CACHE_DIR`` and
    ``JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS`` win where they are set.

    Args:
      directory: made when it is first written to; None keeps nothing from now on.
    """
    from jax.experimental.compilation_cache import compilation_cache as cache

    if directory is not None and os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update(
        "jax_compilation_cache_dir", None if directory is None else str(directory)
    )
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    # JAX decides at the first compilation whether there is a cache, and that may
    # have happened already.
    cache.reset_cache()


def log_devices() -> None:
    """One line on what this process computes with."""
    logging.info(
        "process %d of %d, %d local of %d %s devices, jax %s",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        jax.device_count(),
        jax.default_backend(),
        jax.__version__,
    )
