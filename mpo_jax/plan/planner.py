"""Plans: which programs to compile for a config, and what is said of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from mpo_jax import config as config_lib
from mpo_jax import sharding, types
from mpo_jax.losses import mixture
from mpo_jax.models import adapted, family, internvl
from mpo_jax.models import flops as flops_lib
from mpo_jax.models.config import InternVLConfig
from mpo_jax.plan import (
    advice,
    compile_generation,
    compilers,
    estimate,
    generation,
    programs,
)
from mpo_jax.plan import compile as compile_lib
from mpo_jax.train import optimizer, state
from mpo_jax.train import step as step_lib
from mpo_jax.utils import batch_rows, slices


@dataclasses.dataclass(frozen=True)
class Request:
    """What somebody asks about one config.

    Attributes:
      name: shown in tables.
      topology: slice; empty is the config's.
      slices: number of slices.
      shapes: of ``short`` and ``long``, as far as the config uses them.
      steps: of ``train`` and ``reference``; the latter only where a run has one.
      rows_per_chip: rows per data shard and micro-batch; 0 takes what a run would:
        ``rows.rows_per_batch``, or enough for ``rows.pairs_per_batch``.
      quick: memory and lower bound only (``programs.Case``).
      compiler: None is this interpreter's.
    """

    name: str
    cfg: config_lib.RunConfig
    topology: str = ""
    slices: int = 1
    shapes: tuple[str, ...] = ("short", "long")
    steps: tuple[str, ...] = ("train",)
    rows_per_chip: int = 0
    quick: bool = False
    compiler: compilers.Compiler | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A case, what the compiler says, what follows.

    Attributes:
      name: of the request.
      shards: ways in which rows are split.
      compiler: who says it.
      estimate: None where the program was not compiled.
      advice: what to change where it does not fit.
    """

    name: str
    case: programs.Case
    compiled: programs.Compiled
    shards: int
    compiler: compilers.Compiler
    estimate: estimate.Estimate | None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Does the program compile, and so fit?"""
        return self.compiled.status == programs.FITS

    @property
    def rows_per_chip(self) -> float:
        """Rows per data shard and micro-batch."""
        return self.case.rows / self.shards / self.case.micro_batches

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        case = self.case
        found = self.estimate
        return {
            "name": self.name,
            "topology": case.topology,
            "slices": case.slices,
            "shape": case.shape,
            "step": case.step,
            "rows": case.rows,
            "rows_per_chip": self.rows_per_chip,
            "remat": case.cfg.model.remat,
            "accumulation": case.micro_batches,
            "quick": case.quick,
            "model": case.cfg.model.path,
            "compiler": self.compiler.to_dict(),
            "compiled": dataclasses.asdict(self.compiled),
            "estimate": None
            if found is None
            else {
                **dataclasses.asdict(found),
                "mfu": found.mfu,
                "mfu_bound": found.mfu_bound,
                "pairs_per_second": found.pairs_per_second,
                "note": estimate.NOT_MEASURED,
            },
            "advice": list(self.advice),
        }


def to_json(outcomes: list[Outcome], workload: estimate.Workload) -> str:
    """All outcomes and the assumed fill."""
    return json.dumps(
        {
            "workload": dataclasses.asdict(workload),
            "outcomes": [outcome.to_dict() for outcome in outcomes],
        },
        indent=1,
    )


def changed(cfg: config_lib.RunConfig, changes: Sequence[str]) -> config_lib.RunConfig:
    """Copy of a config with ``FIELD=VALUE`` changes (``optim.accumulation=6``).

    Raises:
      ValueError: on an unknown field, with the nearest names.
    """
    config_lib.check_overrides([f"--config.{change}" for change in changes], cfg)
    raw = dataclasses.asdict(cfg)
    for change in changes:
        name, text = change.split("=", 1)
        *groups, field = name.split(".")
        node = raw
        for group in groups:
            node = node[group]
        try:
            node[field] = json.loads(text)
        except ValueError:
            node[field] = text
    return config_lib.from_json(json.dumps(raw))


def default_rows(
    cfg: config_lib.RunConfig,
    shape: types.RowShape,
    *,
    shards: int,
    workload: estimate.Workload,
) -> int:
    """Rows of a global batch as a run would choose them.

    Args:
      shards: parts in which the rows are split.
    """
    if cfg.rows.rows_per_batch:
        return cfg.rows.rows_per_batch
    return batch_rows.nearest(
        cfg.rows.pairs_per_batch / workload.pairs(shape),
        batch_rows.multiple(cfg.rows.row_multiple, shards),
    )


def shards_of(request: Request) -> int:
    """Parts in which the rows of a batch are split on the slices of a request.

    Raises:
      ValueError: if it names no slice, or the mesh does not fit it.
    """
    sizes = compile_lib.mesh_shape(request.cfg, topology_of(request), request.slices)
    return sizes["data"] * sizes["fsdp"]


def on_slice(request: Request, workload: estimate.Workload) -> Request:
    """The request with the micro-batches that a run would take on its slices.

    Raises:
      ValueError: as :func:`shards_of`, and if the config is not valid.
    """
    request.cfg.validate()
    shards, cfg = shards_of(request), copy.deepcopy(request.cfg)
    used = [shape.build() for shape in (cfg.rows.short, cfg.rows.long) if shape.used]
    rows = [default_rows(cfg, s, shards=shards, workload=workload) for s in used]
    if not request.rows_per_chip:
        batch_rows.follow(cfg, rows, shards)
    return dataclasses.replace(request, cfg=cfg)


def cases(
    request: Request, workload: estimate.Workload
) -> Iterator[tuple[programs.Case, int]]:
    """Programs of a request, each with its number of data shards.

    Raises:
      ValueError: if config, slice or request do not fit together.
    """
    topology, shards = topology_of(request), shards_of(request)
    request = on_slice(request, workload)
    cfg = request.cfg
    for name in request.shapes:
        shape_cfg = getattr(cfg.rows, name)
        if not shape_cfg.used:
            continue
        shape = shape_cfg.build()
        micro = step_lib.micro_batches(cfg, shape)
        rows = request.rows_per_chip * shards * micro or default_rows(
            cfg, shape, shards=shards, workload=workload
        )
        for step in request.steps:
            if step == "reference" and not has_reference(cfg):
                continue
            # The reference step sees what a micro-batch of training sees.
            case_rows = rows
            if step == "reference":
                case_rows = max(rows // micro // shards, 1) * shards
            yield (
                programs.Case(
                    cfg, topology, request.slices, name, step, case_rows, request.quick
                ),
                shards,
            )


def topology_of(request: Request) -> str:
    """The slice of a request.

    Raises:
      ValueError: if there is none, or an unknown one.
    """
    topology = request.topology or request.cfg.topology
    if not topology:
        raise ValueError(f"{request.name}: config.topology is empty; give --topology")
    slices.lookup(topology)
    return topology


def has_reference(cfg: config_lib.RunConfig) -> bool:
    """Does a run have a reference pass of its own (cached before training)?"""
    return (
        cfg.mode == types.MPO
        and cfg.reference.mode == "cache"
        and mixture.needs_reference(cfg.loss)
    )


def plan(
    name: str,
    case: programs.Case,
    *,
    shards: int,
    workload: estimate.Workload,
    compiler: compilers.Compiler | None = None,
    kept: pathlib.Path | None = None,
) -> Outcome:
    """Compile one case, or take its result from `kept`, and draw the conclusions.

    Args:
      compiler: None is this interpreter's.

    Raises:
      ValueError: if the case itself is wrong.
    """
    compiler = compiler or compilers.of()
    compiled = compile_lib.run(case, compiler=compiler, kept=kept)
    outcome = Outcome(name, case, compiled, shards, compiler, None)
    if not outcome.fits:
        return dataclasses.replace(
            outcome, advice=advice.advise(case, compiled, shards)
        )
    model = family.lookup(case.cfg.model.path)
    assert model is not None  # the compiling process has found it
    found = estimate.estimate(
        case,
        compiled,
        model,
        workload=workload,
        trained=_trained(case.cfg, model),
    )
    return dataclasses.replace(outcome, estimate=found)


def _trained(cfg: config_lib.RunConfig, model: InternVLConfig) -> flops_lib.Trained:
    return flops_lib.of_run(cfg.model, model, _run_model(cfg, model).shapes)


def _run_model(cfg: config_lib.RunConfig, model: InternVLConfig) -> internvl.InternVL:
    return _declared(model, adapted.of(cfg.model, model))


@functools.lru_cache(maxsize=16)  # a search asks hundreds of times for a few of them
def _declared(
    model: InternVLConfig, adaptation: adapted.Adaptation
) -> internvl.InternVL:
    return internvl.InternVL(model, adaptation)


@dataclasses.dataclass(frozen=True)
class Held:
    """What a run holds, over all devices.

    Attributes:
      parts: per part its name, parameters and trained parameters, adapters included.
      params, optimiser, reference: bytes; `reference` is what an online or a moving one
        does not share with the policy.
    """

    parts: tuple[tuple[str, int, int], ...]
    params: int
    optimiser: int
    reference: int


def held(cfg: config_lib.RunConfig) -> Held:
    """Parameters and bytes of a run's state, by arithmetic on shapes.

    Raises:
      ValueError: if the model is not known.
    """
    known = family.lookup(cfg.model.path)
    if known is None:
        raise ValueError(f"model.path={cfg.model.path!r} is not known")
    model, trained = _run_model(cfg, known), adapted.trained(cfg.model)
    transform, _ = optimizer.build(cfg.optim, 1)
    found = state.abstract(
        model,
        transform=transform,
        trained=trained,
        moving=cfg.reference.mode == "moving",
        mesh=sharding.make_mesh(devices=jax.devices()[:1]),
        **state.dtypes(cfg.model),
    )
    reference = found.reference
    if cfg.reference.mode == "online":
        reference = adapted.without_adapters(found.params)
        if not cfg.reference.path:
            reference = adapted.kept_by_reference(reference, trained)

    def size(tree: Any) -> int:
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    return Held(
        tuple(adapted.describe(found.params, trained)),
        *(size(tree) for tree in (found.params, found.opt_state, reference)),
    )


def comparison(
    cfg: config_lib.RunConfig, shape: types.RowShape, workload: estimate.Workload
) -> tuple[flops_lib.Comparison, flops_lib.Comparison]:
    """A mean pair in the packed and in the duplicated layout.

    Raises:
      ValueError: if the model is not known.
    """
    model = family.lookup(cfg.model.path)
    if model is None:
        raise ValueError(f"model.path={cfg.model.path!r} is not known")
    counts = workload.counts(shape)
    pair = counts * (1 / counts.pairs)
    lengths = (pair.prompt, pair.chosen, pair.rejected)
    options: dict[str, Any] = {
        "tiles": pair.tiles,
        "trained": _trained(cfg, model),
        "reference": cfg.mode == types.MPO and cfg.reference.mode != "none",
    }
    return (
        flops_lib.packed_pair(model, *lengths, **options),
        flops_lib.duplicated_pair(model, *lengths, **options),
    )


@dataclasses.dataclass(frozen=True)
class Asked:
    """What generation is planned for; see ``generation.Case``."""

    prompt_tokens: int
    answer_tokens: int
    samples: int
    slots: int = 0
    tensor: int = 0


def generation_case(request: Request, asked: Asked) -> generation.Case:
    """The case of a request.

    Raises:
      ValueError: if it names no slice, or an unknown one.
    """
    return generation.Case(
        request.cfg,
        topology_of(request),
        request.slices,
        **dataclasses.asdict(asked),
    )


def plan_generation(
    name: str,
    case: generation.Case,
    *,
    compiler: compilers.Compiler | None = None,
    kept: pathlib.Path | None = None,
) -> generation.Outcome:
    """Compile the programs of a case, or take their results from `kept`; conclude.

    Args:
      compiler: None is this interpreter's.

    Raises:
      ValueError: if the case itself is wrong.
    """
    compiler = compiler or compilers.of()
    planned = compile_generation.run(case, compiler=compiler, kept=kept)
    model = family.lookup(case.cfg.model.path)
    assert model is not None  # the compiling process has found it
    return generation.conclude(name, case, planned, model, compiler)


def search(
    request: Request,
    *,
    remats: tuple[str, ...],
    most_rows: int,
    workload: estimate.Workload,
    kept: pathlib.Path | None = None,
) -> Iterator[Outcome]:
    """Largest number of rows per chip that fits, for every remat policy.

    Doubles until a program no longer fits, then bisects; each trial is a compilation.
    Yields every trial as it ends.

    Args:
      remats: values of ``model.remat`` to try.
      most_rows: do not try more rows per chip.
    """
    for remat in remats:
        cfg = copy.deepcopy(request.cfg)
        cfg.model.remat = remat

        def trial(rows: int, cfg: config_lib.RunConfig = cfg) -> Outcome:
            asked = dataclasses.replace(request, cfg=cfg, rows_per_chip=rows)
            case, shards = next(iter(cases(asked, workload)))
            return plan(
                request.name,
                case,
                shards=shards,
                workload=workload,
                compiler=request.compiler,
                kept=kept,
            )

        low, high, rows = 0, most_rows + 1, 1
        while low + 1 < high:
            outcome = trial(rows)
            yield outcome
            if outcome.fits:
                low = rows
            else:
                high = rows
            rows = min(2 * low, most_rows) if high > most_rows else (low + high) // 2
            rows = max(rows, low + 1)


def best(outcomes: list[Outcome]) -> Outcome | None:
    """Of trials that fit, the one with most pairs per second.

    By the estimate, or by the lower bound where trials were quick.
    """

    def rate(outcome: Outcome) -> float:
        found = outcome.estimate
        return found.pairs / (found.seconds or found.bound) if found else 0.0

    return max((o for o in outcomes if o.fits), key=rate, default=None)
