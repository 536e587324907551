"""What to change where a step does not fit, by arithmetic on what the compiler said.

State (weights, moments) shrinks with the chips of the ``fsdp`` axis; the rest is taken
to grow with the rows of a chip. The compiler has the last word: plan again.
"""

from __future__ import annotations

import copy

from mpo_jax import config as config_lib
from mpo_jax import fields
from mpo_jax.plan import programs
from mpo_jax.train import step as step_lib
from mpo_jax.utils import slices


def advise(
    case: programs.Case, compiled: programs.Compiled, shards: int
) -> tuple[str, ...]:
    """Remedies in the order in which they cost least; each one names its option."""
    if compiled.status != programs.TOO_LARGE:
        return (
            "the compiler did not finish, which says nothing about memory; report the "
            "message, and try another model.attention or row shape",
        )
    cfg, memory = case.cfg, compiled.memory
    state = memory.params + memory.optimiser
    rest = max(memory.needed - state, 0)
    room = memory.granted - state
    found = []
    if room > 0:
        found += _fewer_rows(case, rest=rest, room=room, shards=shards)
    if cfg.model.remat != "full":
        found.append(
            f"--config.model.remat=full instead of {cfg.model.remat!r}: only the input "
            "of every layer is kept"
        )
    shape = getattr(cfg.rows, case.shape).build()
    chunk = min(cfg.model.vision_chunk or shape.tiles, shape.tiles)
    if chunk > 1:
        found.append(
            f"--config.model.vision_chunk={chunk // 2} instead of {chunk}: fewer tiles "
            "of a row in the vision tower at a time"
        )
    found += _offload(cfg)
    found += _more_chips(case, state=state, rest=rest, granted=memory.granted)
    tensor = cfg.mesh.tensor
    if room <= 0 or rest > memory.granted // 2:
        found.append(
            f"--config.mesh.tensor={2 * max(tensor, 1)}: heads and MLP of a row over "
            f"{2 * max(tensor, 1)} devices, activations too, at the price of traffic "
            "in every layer"
        )
    return tuple(found)


def _fewer_rows(case: programs.Case, *, rest: int, room: int, shards: int) -> list[str]:
    """Micro-batches that leave so few rows of a chip at a time; the batch stays.

    The reference pass takes what a micro-batch of training does.
    """
    shape = getattr(case.cfg.rows, case.shape).build()
    micro = step_lib.micro_batches(case.cfg, shape)
    rows = case.rows // shards // case.micro_batches
    if rows <= 1 or not rest:
        return [
            f"smaller config.rows.{case.shape}: a row has the least number of rows per "
            "chip already (1)"
        ]
    fewer = max(1, min(rows - 1, int(rows * room / rest)))
    field = f"optim.accumulation{'_long' if case.shape == 'long' else ''}"
    each = rows * micro
    parts = [n for n in range(micro + 1, each + 1) if each % n == 0]
    parts = [n for n in parts if each // n <= fewer]
    valid = [n for n in parts if _takes(case.cfg, field, n)]
    number = (valid or parts)[0]
    text = f"--config.{field}={number} instead of {micro}"
    if not valid:  # what the recipe's rows are a multiple of must be one of it
        text += f", with --config.rows.row_multiple={each * shards}"
    left = each // number
    return [
        f"{text}: {left} rows per chip at a time instead of {rows}, the batch stays"
    ]


def _takes(cfg: config_lib.RunConfig, field: str, value: int) -> bool:
    """Is a config still valid with this value of a field?"""
    changed = copy.deepcopy(cfg)
    group, name = field.split(".")
    setattr(getattr(changed, group), name, value)
    try:
        changed.validate()
    except ValueError:
        return False
    return True


def _offload(cfg: config_lib.RunConfig) -> list[str]:
    """Config fields that move something to host memory and are off."""
    values = {name: cfg for name in fields.names(cfg) if "offload" in name}
    found = []
    for name in values:
        value = cfg
        for part in name.split("."):
            value = getattr(value, part)
        if not value or value == "none":
            found.append(f"--config.{name}: keeps it in host memory")
    return found


def _more_chips(
    case: programs.Case, *, state: int, rest: int, granted: int
) -> list[str]:
    here = slices.lookup(case.topology)
    larger = sorted(
        (
            item
            for item in slices.table()
            if item.generation == here.generation and item.devices > here.devices
        ),
        key=lambda item: item.devices,
    )
    for item in larger:
        if state * here.devices / item.devices + rest <= granted:
            return [
                f"{item.name} ({item.chips} chips; here --topology={item.aot_name}) at "
                "the same rows per chip"
            ]
    if not larger:
        return []
    return [
        f"more chips of {here.generation} alone do not help: without weights and "
        f"moments a chip still needs {rest / programs.GIB:.1f} of "
        f"{granted / programs.GIB:.1f} GiB"
    ]
