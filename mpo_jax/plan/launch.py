"""Is a training worth billing a slice for? Rows, memory and costs, without a compiler.

Rows are those of a run (``planner.cases``). Whether they fit is read from results that
were kept (``docs/planning_results.json``): of this very program, of one that needs
more, or by arithmetic from one that is near: state shrinks with the devices, the rest
grows at most with the rows that a device takes at a time.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from mpo_jax import config as config_lib
from mpo_jax import fields
from mpo_jax.models import family
from mpo_jax.nn import stack
from mpo_jax.plan import compilers, costs, estimate, planner, programs
from mpo_jax.utils import batch_rows, slices

MOST_PAIRS_OFF = 1.5
"""Factor by which a derived batch may differ from ``rows.pairs_per_batch``."""

# The same program takes 3 to 7 % more on another generation (v5e and v6e, 64 devices).
_OTHER_GENERATION = 1.25

# What decides memory beside rows and rematerialisation, by the beginning of its name.
_OF_MEMORY = ("model.", "rows.short.", "rows.long.", "reference.mode", "mode", "mesh.")
_NOT_OF_MEMORY = ("model.path", "model.init", "model.drop_path", "model.remat")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A training that somebody is about to start.

    Attributes:
      name: of the recipe: its file without folder and ending.
      cfg: with all overrides.
      recipe: the same without any; kept results are of this one.
      topology, slices: where.
      command: how ``scripts/plan.py`` is told of `cfg`.
    """

    name: str
    cfg: config_lib.RunConfig
    recipe: config_lib.RunConfig
    topology: str
    slices: int = 1
    command: str = ""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What the compiler once said of a program of a recipe.

    Attributes:
      devices: of all slices.
      rows: of a device, at a time.
      params, state: bytes of a device for weights; for weights and optimiser.
      compiler: who said it, for people.
    """

    name: str
    topology: str
    generation: str
    devices: int
    shape: str
    remat: str
    rows: float
    fits: bool
    params: int
    state: int
    needed: int
    granted: int
    compiler: str

    def arithmetic(self, devices: int, rows: float) -> float:
        """Bytes of a device for so many rows on so many devices, rather too many.

        State and two sets of gradients (one is added to the other) are shared out over
        the devices; the rest grows at most with the rows of a device.
        """
        shared = (self.state + 2 * self.params) * self.devices / devices
        rest = max(self.needed - self.state - self.params, 0)
        return shared + rest * max(1, rows / self.rows)


@dataclasses.dataclass(frozen=True)
class Found:
    """What is said of a launch; with a problem it should not be started."""

    told: tuple[str, ...]
    problems: tuple[str, ...]


def read_kept(file: pathlib.Path) -> tuple[list[Kept], estimate.Workload]:
    """Training programs of a file that ``scripts/plan.py --table`` wrote, and for what
    rows."""
    raw = json.loads(file.read_text(encoding="utf-8"))
    kept = [_kept(one) for one in raw["outcomes"] if one["step"] == "train"]
    return kept, estimate.Workload(**raw["workload"])


def _kept(raw: dict[str, Any]) -> Kept:
    sold, memory = slices.lookup(raw["topology"]), raw["compiled"]["memory"]
    return Kept(
        name=raw["name"],
        topology=raw["topology"],
        generation=sold.generation,
        devices=sold.devices * raw["slices"],
        shape=raw["shape"],
        remat=raw["remat"],
        rows=raw["rows_per_chip"],
        fits=raw["compiled"]["status"] == programs.FITS,
        params=memory["params"],
        state=memory["params"] + memory["optimiser"],
        needed=memory["needed"],
        granted=memory["granted"],
        compiler=compilers.label(raw["compiler"]),
    )


def check(launch: Launch, kept: Sequence[Kept], workload: estimate.Workload) -> Found:
    """Everything that is known of a launch before it costs anything.

    Raises:
      ValueError: if config and slice cannot go together at all.
    """
    request = planner.Request(
        launch.name, launch.cfg, topology=launch.topology, slices=launch.slices
    )
    sold = slices.lookup(launch.topology)
    devices = sold.devices * launch.slices
    told, problems = _taken_for(launch), []
    for case, shards in planner.cases(request, workload):
        if problem := _rows_that_do_not_divide(case, shards):
            problems.append(problem)
            continue
        told.append(_rows(case, shards, workload))
        problems += _pairs_off(launch, case, devices, workload)
        fits, said = _memory(launch, case, shards, devices, kept)
        (told if fits else problems).append(f"{case.shape} rows: {said}")
        told += [f"costs time: {said}" for said in costs.costs(case, None)]
    told += _planned_by(launch, kept)
    return Found(tuple(dict.fromkeys(told)), tuple(problems))


def _taken_for(launch: Launch) -> list[str]:
    """A model that only the workers see is taken for the recipe's; say so."""
    path, recipes = launch.cfg.model.path, launch.recipe.model.path
    if path == recipes or family.lookup(path) is not None:
        return []
    return [f"model.path={path} is not here and taken for {recipes}"]


def _planned_by(launch: Launch, kept: Sequence[Kept]) -> Iterator[str]:
    """Compilers of what is known of the recipe; another may need more memory."""
    own = [one for one in kept if one.name == launch.name]
    generation = slices.lookup(launch.topology).generation
    same = [one for one in own if one.generation == generation]
    for compiler in dict.fromkeys(one.compiler for one in same or own):
        yield f"planned by {compiler}"


def _rows_that_do_not_divide(case: programs.Case, shards: int) -> str:
    needed = shards * case.micro_batches
    if case.rows % needed == 0:
        return ""
    field = "accumulation_long" if case.shape == "long" else "accumulation"
    return (
        f"rows.rows_per_batch={case.rows} does not divide over {needed} = {shards} "
        f"shards × {case.micro_batches} micro-batches of {case.shape} rows; set "
        f"--config.rows.rows_per_batch to a multiple of {needed} (0 lets rows follow "
        f"from the slice), or --config.optim.{field}"
    )


def _rows(case: programs.Case, shards: int, workload: estimate.Workload) -> str:
    shape = getattr(case.cfg.rows, case.shape).build()
    each, micro = case.rows // shards, case.micro_batches
    pairs = case.rows * workload.pairs(shape)
    return (
        f"{case.shape} rows: {case.rows} a batch, {each} a device"
        f"{f' in {micro} micro-batches' if micro > 1 else ''}; about {pairs:.0f} pairs "
        f"(rows.pairs_per_batch={case.cfg.rows.pairs_per_batch})"
    )


def _pairs_off(
    launch: Launch, case: programs.Case, devices: int, workload: estimate.Workload
) -> Iterator[str]:
    """A derived batch far from the recipe's number of pairs, and what to set."""
    wanted = case.cfg.rows.pairs_per_batch
    shape = getattr(case.cfg.rows, case.shape).build()
    pairs = case.rows * workload.pairs(shape)
    if case.cfg.rows.rows_per_batch or _near(pairs, wanted):
        return
    remedies = [f"--config.rows.pairs_per_batch={pairs:.0f} to train with that"]
    for tensor in (2, 4, 8):
        shards = devices // tensor
        if launch.cfg.mesh.tensor >= tensor or devices % tensor:
            continue
        of = batch_rows.multiple(case.cfg.rows.row_multiple, shards)
        rows = batch_rows.nearest(wanted / workload.pairs(shape), of)
        if _near(rows * workload.pairs(shape), wanted):
            remedies.insert(0, f"--config.mesh.tensor={tensor} ({rows} rows)")
            break
    yield (
        f"{case.shape} rows: {case.rows} are the fewest for {devices} devices, about "
        f"{pairs:.0f} pairs instead of rows.pairs_per_batch={wanted}; take fewer "
        f"devices, or set {' or '.join(remedies)}"
    )


def _near(pairs: float, wanted: float) -> bool:
    return 1 / MOST_PAIRS_OFF <= pairs / wanted <= MOST_PAIRS_OFF


def _memory(
    launch: Launch,
    case: programs.Case,
    shards: int,
    devices: int,
    kept: Sequence[Kept],
) -> tuple[bool, str]:
    """Whether a step fits, as far as is known, and how that is known."""
    near = [one for one in kept if _comparable(launch, case, one)]
    if not near or changed_memory(launch):
        return _state_alone(launch, devices, kept)
    granted = _granted(launch, kept)
    each, micro = case.rows // shards, case.micro_batches
    fits, said = _judged(near, launch, devices, each / micro, granted)
    if fits:
        return fits, said
    field = "accumulation_long" if case.shape == "long" else "accumulation"
    for fewer in range(each // micro - 1, 0, -1):
        if each % fewer == 0 and _judged(near, launch, devices, fewer, granted)[0]:
            remedy = f"set --config.optim.{field}={each // fewer} for {fewer} at a time"
            return False, f"{said}; {remedy}"
    return False, f"{said}; take more chips, or ask scripts/plan.py what else helps"


def _comparable(launch: Launch, case: programs.Case, kept: Kept) -> bool:
    """Is it of this recipe, and does it keep no less for the gradient?"""
    order = stack.REMAT  # from most memory to least
    hungrier = order.index(kept.remat) <= order.index(launch.cfg.model.remat)
    return (kept.name, kept.shape) == (launch.name, case.shape) and hungrier


def _granted(launch: Launch, kept: Sequence[Kept]) -> float:
    """Bytes of a device that the compiler hands out."""
    generation = slices.lookup(launch.topology).generation
    known = [one.granted for one in kept if one.generation == generation]
    sold = next(g for g in slices.GENERATIONS if g.name == generation)
    hbm = estimate.CHIPS[generation].hbm / sold.devices_per_chip
    return max(known, default=0.95 * hbm)


def changed_memory(launch: Launch) -> list[str]:
    """Overridden fields that kept results say nothing about."""
    ours, theirs = (
        fields.flat(json.loads(cfg.to_json())) for cfg in (launch.cfg, launch.recipe)
    )
    changed = [
        name
        for name in ours
        if ours[name] != theirs[name]
        and (name.startswith(_OF_MEMORY) or name == "optim.offload")
        and name not in _NOT_OF_MEMORY
    ]
    there = pathlib.Path(launch.cfg.model.path)
    if there.is_dir() and family.lookup(str(there)) != family.lookup(
        launch.recipe.model.path
    ):
        changed.append("model.path")
    return changed


def _judged(
    near: Sequence[Kept], launch: Launch, devices: int, rows: float, granted: float
) -> tuple[bool, str]:
    """By results that settle it; else by arithmetic from what is most like it."""
    generation = slices.lookup(launch.topology).generation
    same = [one for one in near if one.generation == generation]
    for one in same:
        exact = one.devices == devices and one.rows == rows
        if exact and one.remat == launch.cfg.model.remat and one.fits:
            return True, f"fits: {_of(one.needed, one.granted)} (planned)"
    for one in same:
        if one.fits and one.devices <= devices and one.rows >= rows:
            return True, f"fits: {_what(one)} (planned)"
    for one in same:
        equal = one.remat == launch.cfg.model.remat
        if equal and not one.fits and one.devices >= devices and one.rows <= rows:
            return False, f"does not fit: {_what(one)} (planned)"
    best = min(near, key=lambda one: _unlikeness(one, launch, devices))
    need = best.arithmetic(devices, rows)
    if best.generation != generation:
        need *= _OTHER_GENERATION
    said = (
        f"{rows:g} at a time need some {_of(need, granted)}, reckoned from "
        f"{best.rows:g} on {best.topology}"
    )
    if need <= granted:
        return True, f"fits: {said}"
    return False, f"may not fit: {said} (to be sure: {launch.command})"


def _what(kept: Kept) -> str:
    return (
        f"{kept.rows:g} at a time on {kept.topology} need "
        f"{_of(kept.needed, kept.granted)}"
    )


def _unlikeness(kept: Kept, launch: Launch, devices: int) -> tuple[Any, ...]:
    """The smaller, the more a result says: same remat, generation, devices, in turn."""
    return (
        not kept.fits,  # of a refused program only a sum is known
        kept.remat != launch.cfg.model.remat,
        kept.generation != slices.lookup(launch.topology).generation,
        abs(math.log(kept.devices / devices)),
        kept.needed,
    )


def _of(needed: float, granted: float) -> str:
    return f"{needed / programs.GIB:.2f} of {granted / programs.GIB:.2f} GiB"


def _state_alone(
    launch: Launch, devices: int, kept: Sequence[Kept]
) -> tuple[bool, str]:
    """What can be said of a recipe that was never planned like this."""
    why = ", ".join(changed_memory(launch)) or f"remat={launch.cfg.model.remat!r}"
    unknown = f"no kept result is of {launch.name} with its {why}"
    plan = f"plan it first: {launch.command}"
    cfg = copy.deepcopy(launch.cfg)
    if family.lookup(cfg.model.path) is None:
        cfg.model.path = launch.recipe.model.path
    if family.lookup(cfg.model.path) is None:
        return True, f"memory is not known: {unknown}; {plan}"
    held = planner.held(cfg)
    need = (held.params + held.optimiser + held.reference) / devices
    granted = _granted(launch, kept)
    said = f"weights and optimiser alone need {_of(need, granted)} of a device"
    if need > granted:
        return False, f"do not fit: {said}; take more chips"
    return True, f"{said}, the rest is not known: {unknown}; {plan}"
