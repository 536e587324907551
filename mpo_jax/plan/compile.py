"""Compiles the true step for a TPU slice that is not there.

The functions are those of training (``run/train.py``): abstract state, the step of
``train/step.py``, the mesh of ``sharding``; only arrays are replaced by their shapes.
So what is measured is the program that a run would execute. Nothing is allocated.

Each case runs in a process of its own (``plan/child.py``), which is this module's
command line; :func:`run` starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import math
import os
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from mpo_jax import config as config_lib
from mpo_jax.plan import child, compilers, programs
from mpo_jax.utils import slices

_STEP = "jit_step"  # what the compiler calls the program
# Schedules only matter for their first values, which are constants of the program.
_STEPS = 1000


# What a compiled program and its reading depend on, relative to the package.
_SOURCES = (
    *("sharding.py", "types.py", "train/step.py", "train/state.py"),
    *("train/optimizer.py", "nn/*.py", "models/*.py", "losses/*.py"),
    *(
        "plan/child.py",
        "plan/compile.py",
        "plan/programs.py",
        "plan/hlo.py",
        "plan/loops.py",
        "plan/schedule.py",
    ),
)


def fingerprint(case: str, sources: Sequence[str], compiler: compilers.Compiler) -> str:
    """Of everything a result depends on: case, our code, compiler.

    Args:
      sources: patterns of files, relative to the package.
    """
    package_root = pathlib.Path(__file__).parents[1]
    digest = hashlib.sha256(case.encode())
    digest.update(json.dumps(compiler.to_dict()).encode())
    for pattern in sources:
        for file in sorted(package_root.glob(pattern)):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def run(
    case: programs.Case,
    *,
    compiler: compilers.Compiler | None = None,
    kept: pathlib.Path | None = None,
    timeout: float = 3600.0,
) -> programs.Compiled:
    """Compile a case in a process of its own.

    A program that does not fit, or on which the compiler fails or aborts, is a result.

    Args:
      compiler: None is this interpreter's.
      kept: directory of earlier results, read and added to; None keeps none.

    Raises:
      ValueError: if the case itself is wrong (unknown model, mesh that does not fit).
    """
    compiler = compiler or compilers.of()
    if kept is None:
        return _run(case, python=compiler.executable, timeout=timeout)
    file = kept / f"{fingerprint(case.to_json(), _SOURCES, compiler)}.json"
    if file.is_file():
        return programs.compiled_from_dict(json.loads(file.read_text(encoding="utf-8")))
    found = _run(case, python=compiler.executable, timeout=timeout)
    if found.status != programs.FAILED:
        keep(file, dataclasses.asdict(found))
    return found


def keep(file: pathlib.Path, result: dict[str, Any]) -> None:
    """Write a result, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(result), encoding="utf-8")
    temporary.rename(file)


def _run(case: programs.Case, *, python: str, timeout: float) -> programs.Compiled:
    """Start the process and read its result.

    Raises:
      ValueError: if the case itself is wrong (unknown model, mesh that does not fit).
    """
    with tempfile.TemporaryDirectory(prefix="mpo_plan_") as place:
        directory = pathlib.Path(place)
        dump = directory / "dump"
        start = time.monotonic()
        words = child.run(
            __name__,
            case.to_json(),
            directory,
            python=python,
            dumped=_STEP,
            timeout=timeout,
            enough=lambda: case.quick and assigned(dump),
        )
        seconds = time.monotonic() - start
        raw = child.result(directory)
        if raw is not None:
            return programs.compiled_from_dict(raw)
        known = directory / "held.json"
        if case.quick and known.is_file() and assigned(dump):
            memory = programs.Memory(**json.loads(known.read_text(encoding="utf-8")))
            return _from_report(dump, case, memory, seconds)
    return programs.Compiled(programs.FAILED, words, seconds)


def mesh_shape(
    cfg: config_lib.RunConfig, topology: str, num_slices: int
) -> dict[str, int]:
    """Sizes of the mesh axes, without devices.

    Several slices lie along ``data``: if the config leaves that at 1, it is their
    number.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    devices = slices.lookup(topology).devices * num_slices
    sizes = dataclasses.asdict(cfg.mesh)
    if num_slices > 1 and sizes["data"] == 1:
        sizes["data"] = num_slices
    if num_slices > 1 and sizes["data"] != -1 and sizes["data"] % num_slices:
        raise ValueError(
            f"mesh.data={sizes['data']} must be a multiple of the {num_slices} slices"
        )
    fixed = math.prod(size for size in sizes.values() if size != -1)
    free = [axis for axis, size in sizes.items() if size == -1]
    if len(free) > 1 or devices % fixed or (not free and fixed != devices):
        raise ValueError(
            f"mesh data={cfg.mesh.data} × fsdp={cfg.mesh.fsdp} × "
            f"tensor={cfg.mesh.tensor} does not fit the {devices} devices of "
            f"{num_slices} × {topology}; change config.mesh (-1 takes the rest)"
        )
    for axis in free:
        sizes[axis] = devices // fixed
    return sizes


def compile_here(case: programs.Case, dump: pathlib.Path) -> programs.Compiled:
    """Compile in this process, whose environment :func:`run` has set.

    Raises:
      ValueError: as :func:`run`.
    """
    import jax
    from jax.experimental import topologies

    from mpo_jax import sharding
    from mpo_jax.models import adapted, internvl

    cfg, sold = case.cfg, slices.lookup(case.topology)
    model_cfg = architecture(cfg)
    model = internvl.InternVL(model_cfg, adapted.of(cfg.model, model_cfg))
    sizes = mesh_shape(cfg, case.topology, case.slices)
    options = dict(sold.aot_options)
    if case.slices > 1:
        options["num_slices"] = case.slices
    described = topologies.get_topology_desc(sold.aot_name, platform="tpu", **options)
    mesh = sharding.make_mesh(**sizes, devices=list(described.devices))
    start = time.monotonic()
    built, arguments, memory = _program(case, model, mesh)
    if case.quick:
        memory = dataclasses.replace(memory, granted=granted(mesh))
        text = json.dumps(dataclasses.asdict(memory))
        (dump.parent / "held.json").write_text(text, encoding="utf-8")
    with jax.set_mesh(mesh):  # and nothing else: no operation can run on these devices
        lowered = built.lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            return not_compiled(str(error), memory, time.monotonic() - start)
    seconds = time.monotonic() - start
    memory = measured(
        compiled, memory, granted=granted(mesh), assigned=assigned_bytes(dump)
    )
    return read(dump, memory, seconds)


def architecture(cfg: config_lib.RunConfig) -> Any:
    """``InternVLConfig`` of a run.

    Raises:
      ValueError: if the model is not known.
    """
    from mpo_jax.models import family

    found = family.lookup(cfg.model.path)
    if found is None:
        raise ValueError(
            f"model.path={cfg.model.path!r} is neither a directory with a config.json "
            "nor a released model that models/family.py lists"
        )
    return found


def measured(
    compiled: Any, memory: programs.Memory, *, granted: int, assigned: int
) -> programs.Memory:
    """What a compiled program takes beside its arguments, and in sum.

    The compiler's analysis is not asked for temporaries: that of libtpu 0.0.42 and
    0.0.50 has more than the program was assigned, more than a chip has.

    Args:
      compiled: ``jax.stages.Compiled``.
      memory: of its arguments.
      assigned: see :func:`assigned_bytes`.
    """
    analysis = compiled.memory_analysis()
    assert analysis is not None
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    others = analysis.argument_size_in_bytes + max(results, 0)
    return dataclasses.replace(
        memory,
        host=memory.host + analysis.host_temp_size_in_bytes,
        temporaries=assigned - others,
        code=analysis.generated_code_size_in_bytes,
        needed=assigned + analysis.generated_code_size_in_bytes,
        granted=granted,
    )


def assigned(dump: pathlib.Path) -> bool:
    """Has the compiler assigned memory, and written that down?"""
    done = list(dump.glob(f"*{_STEP}*.after_optimizations_after_buffer_*.txt"))
    return bool(done) and time.time() - done[0].stat().st_mtime > 1.0


def _from_report(
    dump: pathlib.Path, case: programs.Case, memory: programs.Memory, seconds: float
) -> programs.Compiled:
    """Result from the compiler's report on memory, where it was stopped after that."""
    needed = assigned_bytes(dump)
    arguments = memory.params + memory.optimiser + memory.batch
    memory = dataclasses.replace(memory, temporaries=needed - arguments, needed=needed)
    return read(dump, memory, seconds)


def assigned_bytes(dump: pathlib.Path, module: str = _STEP) -> int:
    """HBM of a device that arguments, temporaries and results take in a program.

    From the compiler's report on memory: by this sum it refuses a program.
    """
    (report,) = dump.glob(f"*{module}*-memory-usage-report.txt")
    total = re.search(r"Total bytes: (\d+)", report.read_text(encoding="utf-8"))
    if total is None:
        raise ValueError(f"the compiler's report has no total: {report}")
    return int(total.group(1))


def not_compiled(
    message: str, memory: programs.Memory, seconds: float
) -> programs.Compiled:
    """Result of a program that the compiler has refused."""
    if "RESOURCE_EXHAUSTED" not in message:
        return programs.Compiled(programs.FAILED, message[:500], seconds, memory)
    needed, available = out_of_memory(message)
    memory = dataclasses.replace(memory, needed=needed, granted=available)
    return programs.Compiled(programs.TOO_LARGE, message[:500], seconds, memory)


_UNITS = {"B": 1, "": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def out_of_memory(message: str) -> tuple[int, int]:
    """Bytes needed and available, as the compiler's refusal states them.

    The parts are not listed there. Zeros where the text says nothing of them.
    """
    number = r"\(?([\d.]+)([KMGTB]?)\)?"
    for pattern in (
        rf"{number}\s+exceeds available HBM {number}",
        rf"[Uu]sed {number} of {number} hbm",
        rf"{number}\s+exceed\w* .*?{number}",
    ):
        match = re.search(pattern, message)
        if match:
            need, need_unit, have, have_unit = match.groups()
            return (
                int(float(need) * _UNITS[need_unit]),
                int(float(have) * _UNITS[have_unit]),
            )
    return 0, 0


def granted(mesh: Any) -> int:
    """HBM of one device that the compiler hands out, from what it refuses.

    One array of 16 TB: the refusal names the limit and takes no time.
    """
    import jax
    import jax.numpy as jnp

    from mpo_jax import sharding

    big = jax.ShapeDtypeStruct(
        (2**20, 2**22), jnp.float32, sharding=sharding.replicated(mesh)
    )
    try:
        jax.jit(lambda x: x + 1).lower(big).compile()
    except jax.errors.JaxRuntimeError as error:
        return out_of_memory(str(error))[1]
    return 0


def _program(
    case: programs.Case, model: Any, mesh: Any
) -> tuple[Any, Any, programs.Memory]:
    """Jitted step of a case, its abstract arguments, and what these take."""
    import jax

    from mpo_jax import sharding
    from mpo_jax.models import adapted
    from mpo_jax.train import optimizer, state, step

    cfg = case.cfg
    shape = getattr(cfg.rows, case.shape).build()
    transform, schedule = optimizer.build(cfg.optim, cfg.optim.max_steps or _STEPS)
    abstract = state.abstract_run(cfg, model, transform=transform, mesh=mesh)
    batch = abstract_batch(case, image_size=model.cfg.image_size, mesh=mesh)
    params = per_device(abstract.params)
    if case.step == "reference":
        batch = dataclasses.replace(batch, ref_logps=None)
        built = step.build_logps_step(model.without_adapters, cfg.model, shape, mesh)
        weights = adapted.without_adapters(abstract.params)
        memory = programs.Memory(params=per_device(weights), batch=per_device(batch))
        return built, (weights, batch), memory
    built = step.build_train_step(
        model,
        cfg,
        shape,
        transform=transform,
        schedule=schedule,
        out_shardings=state.shardings_of(abstract),
        compiler_options=sharding.compiler_options(mesh),
    )
    online = None
    if cfg.reference.mode == "online":
        online = adapted.without_adapters(abstract.params)
        if not cfg.reference.path:
            online = adapted.kept_by_reference(online, adapted.trained(cfg.model))
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct((), key.dtype, sharding=sharding.replicated(mesh))
    memory = programs.Memory(
        params=params + per_device(online),
        optimiser=per_device(abstract) - params,
        batch=per_device(batch),
        host=per_device(abstract, kind=state.HOST),
    )
    return built, (abstract, batch, key, online), memory


def abstract_batch(case: programs.Case, *, image_size: int, mesh: Any) -> Any:
    """``types.PackedBatch`` of shapes and shardings."""
    import jax
    import jax.numpy as jnp

    from mpo_jax import sharding, types

    shape = getattr(case.cfg.rows, case.shape).build()
    placed = sharding.batch_sharding(mesh)
    needed = sharding.data_shards(mesh) * case.micro_batches
    if case.rows % needed:
        raise ValueError(
            f"{case.rows} rows per batch do not divide over {needed} = devices of the "
            "data and fsdp axes × optim.accumulation; set rows.rows_per_batch or "
            "--rows_per_chip"
        )

    def array(*dims: int, dtype: Any = jnp.int32) -> Any:
        return jax.ShapeDtypeStruct((case.rows, *dims), dtype, sharding=placed)

    stored = case.cfg.mode == types.MPO and case.cfg.reference.mode == "cache"
    pairs, responses = shape.pairs, shape.response_tokens
    return types.PackedBatch(
        tokens=array(shape.tokens),
        positions=array(shape.tokens),
        segment_ids=array(shape.tokens),
        labels=array(responses),
        label_mask=array(responses, dtype=jnp.bool_),
        image_slot=array(shape.prompt_tokens),
        tiles=array(shape.tiles, image_size, image_size, 3, dtype=jnp.uint8),
        pair_mask=array(pairs, dtype=jnp.bool_),
        record_ids=array(pairs),
        ref_logps=array(pairs, 2, dtype=jnp.float32) if stored else None,
    )


def per_device(tree: Any, *, kind: str = "device") -> int:
    """Bytes per device of what lies in this kind of memory."""
    import jax

    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if (leaf.sharding.memory_kind or "device") == kind
    )


def read(
    dump: pathlib.Path, memory: programs.Memory, seconds: float, module: str = _STEP
) -> programs.Compiled:
    """Sum up the scheduled program that the compiler has dumped."""
    from mpo_jax.plan import hlo, schedule

    text = scheduled(dump, module).read_text(encoding="utf-8", errors="replace")
    found = schedule.totals(hlo.parse(text))
    return programs.Compiled(
        status=programs.FITS,
        seconds=seconds,
        memory=memory,
        flops=found.flops,
        cycles=found.cycles,
        collectives={
            kind: dataclasses.asdict(traffic)
            for kind, traffic in sorted(found.collectives.items())
        },
        kernels=tuple(
            (name, shape, count) for (name, shape), count in found.kernels.items()
        ),
        unresolved=found.unresolved,
    )


def scheduled(dump: pathlib.Path, module: str = _STEP) -> pathlib.Path:
    """File of the scheduled module: after code generation, which notes the cycles.

    Raises:
      ValueError: if the compiler has written none.
    """
    for stage in ("after_codegen", "after_optimizations"):
        found = sorted(dump.glob(f"*{module}*.{stage}.txt"))
        if found:
            return max(found, key=lambda path: path.stat().st_size)
    raise ValueError(f"the compiler has written no scheduled program to {dump}")


def main() -> None:
    """Compile the case in a directory; for :func:`run`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    directory = parser.parse_args().directory
    case = programs.case_from_json(
        (directory / "case.json").read_text(encoding="utf-8")
    )
    try:
        found = compile_here(case, directory / "dump")
        child.write(directory, dataclasses.asdict(found))
    except (ValueError, FileNotFoundError) as error:
        child.write(directory, {"error": str(error)})


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
