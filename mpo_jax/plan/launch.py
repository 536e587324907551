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


@dataclasses.dataclass(frozen=True)
class _Remedy:
    """A field that may mend a problem.

    Attributes:
      change: ``FIELD=VALUE``.
      words: what comes of it.
    """

    change: str
    words: str = ""

    def __str__(self) -> str:
        return f"--config.{self.change}{self.words}"


@dataclasses.dataclass(frozen=True)
class _Problem:
    """Something that a launch should not be started with.

    Attributes:
      shape, kind: by these it is found again with other fields.
      text: without advice.
      remedies: groups to try; of each the first one that mends it is told.
      chips: advice on the number of chips, if that helps.
    """

    shape: str
    kind: str
    text: str
    remedies: tuple[Sequence[_Remedy], ...] = ()
    chips: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.shape, self.kind


def check(launch: Launch, kept: Sequence[Kept], workload: estimate.Workload) -> Found:
    """Everything that is known of a launch before it costs anything.

    A field that is advised has been tried: with it the problem is gone, and no other
    one comes.

    Raises:
      ValueError: if config and slice cannot go together at all.
    """
    told, problems = _look(launch, kept, workload)
    told = [*_taken_for(launch), *told, *_planned_by(launch, kept)]

    def mends(remedy: _Remedy, problem: _Problem) -> bool:
        try:
            cfg = planner.changed(launch.cfg, [remedy.change])
            changed = dataclasses.replace(launch, cfg=cfg)
            _, left = _look(changed, kept, workload)
        except ValueError:
            return False
        allowed = {one.key for one in problems} - {problem.key}
        return {one.key for one in left} <= allowed

    # More chips and fewer at once is no advice.
    torn = {"pairs", "memory"} <= {one.kind for one in problems}
    said = []
    for one in problems:
        found = [next((r for r in g if mends(r, one)), None) for g in one.remedies]
        fields_ = " or ".join(str(remedy) for remedy in found if remedy)
        advice = [one.chips] if one.chips and not torn else []
        advice.append(f"set {fields_}" if fields_ else "ask scripts/plan.py what helps")
        said.append(f"{one.text}; {', or '.join(advice)}")
    return Found(tuple(dict.fromkeys(told)), tuple(said))


def _look(
    launch: Launch, kept: Sequence[Kept], workload: estimate.Workload
) -> tuple[list[str], list[_Problem]]:
    """What is known of a launch, and what is wrong with it.

    Raises:
      ValueError: if config and slice cannot go together at all.
    """
    request = planner.Request(
        launch.name, launch.cfg, topology=launch.topology, slices=launch.slices
    )
    told, problems = [], []
    for case, shards in planner.cases(request, workload):
        if problem := _rows_that_do_not_divide(launch, case, shards):
            problems.append(problem)
            continue
        told.append(_rows(case, shards, workload))
        problems += _pairs_off(launch, case, workload)
        found = _memory(launch, case, shards, kept)
        if isinstance(found, _Problem):
            problems.append(found)
        else:
            told.append(f"{case.shape} rows: {found}")
        told += [f"costs time: {said}" for said in costs.costs(case, None)]
    return told, problems


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


def _rows_that_do_not_divide(
    launch: Launch, case: programs.Case, shards: int
) -> _Problem | None:
    needed = shards * case.micro_batches
    if case.rows % needed == 0:
        return None
    optim, each = launch.cfg.optim, case.rows // shards
    # A batch has as many rows of either shape.
    of = shards * math.lcm(optim.accumulation, optim.accumulation_long or 1)
    rows = [batch_rows.nearest(case.rows, of), (case.rows // of + 1) * of]
    micro = [n for n in range(1, each + 1) if each % n == 0]
    micro.sort(key=lambda n: abs(n - case.micro_batches))
    return _Problem(
        case.shape,
        "rows",
        f"rows.rows_per_batch={case.rows} does not divide over {needed} = {shards} "
        f"shards × {case.micro_batches} micro-batches of {case.shape} rows",
        (
            [_Remedy("rows.rows_per_batch=0", " (rows follow from the slice)")],
            [_Remedy(f"rows.rows_per_batch={count}") for count in rows],
            [_Remedy(f"{_micro_field(case)}={n}") for n in micro],
        ),
    )


def _micro_field(case: programs.Case) -> str:
    """The field that splits rows of the shape of a case into micro-batches."""
    return f"optim.accumulation{'_long' if case.shape == 'long' else ''}"


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
    launch: Launch, case: programs.Case, workload: estimate.Workload
) -> Iterator[_Problem]:
    """A derived batch far from the recipe's number of pairs, and what to set."""
    wanted = case.cfg.rows.pairs_per_batch
    shape = getattr(case.cfg.rows, case.shape).build()
    pairs = case.rows * workload.pairs(shape)
    if case.cfg.rows.rows_per_batch or _near(pairs, wanted):
        return
    devices, over = _devices(launch), []
    for tensor in (2, 4, 8):
        if launch.cfg.mesh.tensor < tensor and devices % tensor == 0:
            of = batch_rows.multiple(case.cfg.rows.row_multiple, devices // tensor)
            rows = batch_rows.nearest(wanted / workload.pairs(shape), of)
            over.append(_Remedy(f"mesh.tensor={tensor}", f" ({rows} rows)"))
    as_it_is = _Remedy(f"rows.pairs_per_batch={pairs:.0f}", " to train with that")
    yield _Problem(
        case.shape,
        "pairs",
        f"{case.shape} rows: {case.rows} are the fewest for {devices} devices, about "
        f"{pairs:.0f} pairs instead of rows.pairs_per_batch={wanted}",
        (over, [as_it_is]),
        "take fewer devices",
    )


def _devices(launch: Launch) -> int:
    """Of all its slices."""
    return slices.lookup(launch.topology).devices * launch.slices


def _near(pairs: float, wanted: float) -> bool:
    return 1 / MOST_PAIRS_OFF <= pairs / wanted <= MOST_PAIRS_OFF


def _memory(
    launch: Launch, case: programs.Case, shards: int, kept: Sequence[Kept]
) -> str | _Problem:
    """Why a step fits, as far as is known, or that it does not."""
    near = [one for one in kept if _comparable(launch, case, one)]
    if not near or changed_memory(launch):
        return _state_alone(launch, case, kept)
    granted, devices = _granted(launch, kept), _devices(launch)
    each = case.rows // shards
    fits, said = _judged(near, launch, devices, each / case.micro_batches, granted)
    if fits:
        return said
    # A run takes the next number that divides: the exact one is tried before others.
    taken = {
        number: batch_rows.micro_batches(case.rows, shards, number)
        for number in range(case.micro_batches + 1, each + 1)
    }
    fewer = [
        _Remedy(f"{_micro_field(case)}={number}", f" for {each // micro} at a time")
        for number, micro in sorted(taken.items(), key=lambda x: (x[1], x[0] != x[1]))
        if _judged(near, launch, devices, each // micro, granted)[0]
    ]
    generation = slices.lookup(launch.topology).generation
    sizes = [s.devices for s in slices.table() if s.generation == generation]
    helped = _judged(near, launch, max(sizes), 1, granted)[0]
    return _Problem(
        case.shape,
        "memory",
        f"{case.shape} rows: {said}",
        (fewer,),
        "take more chips" if helped else "",
    )


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
    launch: Launch, case: programs.Case, kept: Sequence[Kept]
) -> str | _Problem:
    """What can be said of a recipe that was never planned like this."""
    why = ", ".join(changed_memory(launch)) or f"remat={launch.cfg.model.remat!r}"
    unknown = f"no kept result is of {launch.name} with its {why}"
    plan = f"plan it first: {launch.command}"
    cfg = copy.deepcopy(launch.cfg)
    if family.lookup(cfg.model.path) is None:
        cfg.model.path = launch.recipe.model.path
    if family.lookup(cfg.model.path) is None:
        return f"memory is not known: {unknown}; {plan}"
    held = planner.held(cfg)
    need = (held.params + held.optimiser + held.reference) / _devices(launch)
    granted = _granted(launch, kept)
    said = f"weights and optimiser alone need {_of(need, granted)} of a device"
    if need > granted:
        text = f"{case.shape} rows: do not fit: {said}"
        return _Problem(case.shape, "memory", text, chips="take more chips")
    return f"{said}, the rest is not known: {unknown}; {plan}"
