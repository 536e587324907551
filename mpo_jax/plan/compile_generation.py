"""Compiles the true programs of generation for a TPU slice that is not there.

Mesh, slots and programs are those of ``generate/``; only arrays are replaced by their
shapes, and a device's memory by what the compiler grants of it. A host is planned: each
process has a model of its own and answers its own questions.

As ``plan/compile.py``, each case runs in a process of its own, this module's command
line.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

from mpo_jax.plan import child, compilers, generation, programs
from mpo_jax.plan import compile as compile_lib
from mpo_jax.utils import slices

# What results depend on, relative to the package.
_SOURCES = (
    *("sharding.py", "types.py", "nn/*.py", "models/*.py", "generate/*.py"),
    *("plan/child.py", "plan/compile.py", "plan/compile_generation.py"),
    *("plan/generation.py", "plan/programs.py"),
    *("plan/hlo.py", "plan/loops.py", "plan/schedule.py"),
)
# What the compiler calls each program.
_MODULES = {"decode": "jit__decode", "prefill": "jit_prefill", "encode": "jit_encode"}


def run(
    case: generation.Case,
    *,
    compiler: compilers.Compiler | None = None,
    kept: pathlib.Path | None = None,
    timeout: float = 3600.0,
) -> generation.Planned:
    """Plan and compile a case in a process of its own.

    What does not fit, or makes the compiler fail or abort, is a result.

    Args:
      compiler: None is this interpreter's.
      kept: directory of earlier results, read and added to; None keeps none.

    Raises:
      ValueError: if the case itself is wrong (unknown model, ``tensor`` that does not
        divide the devices of a host).
    """
    compiler = compiler or compilers.of()
    if kept is None:
        return _run(case, python=compiler.executable, timeout=timeout)
    key = compile_lib.fingerprint(case.to_json(), _SOURCES, compiler)
    file = kept / f"{key}.json"
    if file.is_file():
        return generation.planned_from_dict(json.loads(file.read_text("utf-8")))
    found = _run(case, python=compiler.executable, timeout=timeout)
    if found.status != programs.FAILED:
        compile_lib.keep(file, dataclasses.asdict(found))
    return found


def _run(case: generation.Case, *, python: str, timeout: float) -> generation.Planned:
    with tempfile.TemporaryDirectory(prefix="mpo_plan_") as place:
        directory = pathlib.Path(place)
        start = time.monotonic()
        words = child.run(
            __name__,
            case.to_json(),
            directory,
            python=python,
            dumped="|".join(_MODULES.values()),
            timeout=timeout,
        )
        raw = child.result(directory)
    if raw is not None:
        return generation.planned_from_dict(raw)
    seconds = time.monotonic() - start
    return generation.Planned(programs.FAILED, words, seconds)


def compile_here(case: generation.Case, dump: pathlib.Path) -> generation.Planned:
    """Compile in this process, whose environment ``child.run`` has set.

    Raises:
      ValueError: as :func:`run`.
    """
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies

    from mpo_jax import sharding
    from mpo_jax.generate import capacity, speaker
    from mpo_jax.generate import programs as programs_lib
    from mpo_jax.models import internvl, network
    from mpo_jax.nn import params as params_lib

    start = time.monotonic()
    dtype = jnp.bfloat16
    model = internvl.InternVL(compile_lib.architecture(case.cfg))
    sold = slices.lookup(case.topology)
    described = topologies.get_topology_desc(
        sold.aot_name, platform="tpu", **sold.aot_options
    )
    devices = [d for d in described.devices if d.process_index == 0]
    granted = compile_lib.granted(sharding.make_mesh(devices=devices))
    mesh = capacity.make_mesh(
        model.cfg,
        params_lib.count(model.shapes) * jnp.dtype(dtype).itemsize,
        devices=devices,
        tensor=case.tensor,
        device_memory=granted,
    )
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), model.shapes)
    weights = programs_lib.placed(shapes, model.axes, mesh)
    planned = generation.Planned(
        programs.TOO_LARGE,
        data=mesh.shape["data"],
        tensor=mesh.shape["tensor"],
        granted=granted,
        weights=compile_lib.per_device(weights),
        read=compile_lib.per_device(
            {k: v for k, v in weights["language"].items() if k != "embedding"}
        ),
    )
    compute = network.Compute(dtype=dtype, remat="none")
    made = speaker.Speaker(model, mesh=mesh, compute=compute)
    try:
        geometry = made.geometry(
            weights,
            prompts=[case.prompt_tokens],
            answer_tokens=case.answer_tokens,
            samples=case.samples,
            slots=case.slots,
            device_memory=granted,
        )
    except ValueError as error:  # nothing fits
        return dataclasses.replace(planned, message=str(error))
    lowering = programs_lib.Lowering(
        model, weights, geometry, mesh=mesh, compute=compute
    )
    planned = dataclasses.replace(
        planned,
        groups=geometry.groups,
        slots=geometry.slots,
        prompt_room=geometry.prompt_tokens,
        answer_room=geometry.answer_tokens,
        cache=compile_lib.per_device(lowering.shapes.cache),
        features=compile_lib.per_device(lowering.shapes.features),
    )
    lower = {
        "decode": lowering.decode,
        "prefill": lambda: lowering.prefill(geometry.buckets[-1]),
        "encode": lowering.encode,
    }
    found = {
        name: _compiled(lower[name], lowering, planned, dump, _MODULES[name])
        for name in generation.PROGRAMS
    }
    return together(planned, found, seconds=time.monotonic() - start)


def _compiled(
    lower: Callable[[], Any],
    lowering: Any,
    planned: generation.Planned,
    dump: pathlib.Path,
    module: str,
) -> programs.Compiled:
    """One program, in a device that holds everything all the time."""
    import jax

    start = time.monotonic()
    lowered = lower()
    held = planned.weights + planned.cache + planned.features
    memory = programs.Memory(
        params=planned.weights, batch=held - planned.weights, granted=planned.granted
    )
    with jax.set_mesh(lowering.mesh):
        try:
            compiled = lowered.compile(lowering.options)
        except jax.errors.JaxRuntimeError as error:
            return compile_lib.not_compiled(
                str(error), memory, time.monotonic() - start
            )
    memory = compile_lib.measured(
        compiled,
        memory,
        granted=planned.granted,
        assigned=compile_lib.assigned_bytes(dump, module),
    )
    analysis = compiled.memory_analysis()
    elsewhere = max(held - analysis.argument_size_in_bytes, 0)
    memory = dataclasses.replace(memory, needed=memory.needed + elsewhere)
    found = compile_lib.read(dump, memory, time.monotonic() - start, module)
    if memory.needed > memory.granted:
        return dataclasses.replace(
            found,
            status=programs.TOO_LARGE,
            message="compiles, but not beside what the other programs hold",
        )
    return found


def together(
    planned: generation.Planned,
    found: dict[str, programs.Compiled],
    *,
    seconds: float,
) -> generation.Planned:
    """The verdict on all programs: it fits where each of them does."""
    status, message = programs.FITS, ""
    for bad in (programs.TOO_LARGE, programs.FAILED):  # a failure says least of memory
        for name, compiled in found.items():
            if compiled.status == bad:
                status, message = bad, f"{name}: {compiled.message}"
    return dataclasses.replace(
        planned, status=status, message=message, seconds=seconds, programs=found
    )


def main() -> None:
    """Compile the case in a directory; for :func:`run`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=pathlib.Path)
    directory = parser.parse_args().directory
    case = generation.case_from_json((directory / "case.json").read_text("utf-8"))
    try:
        found = compile_here(case, directory / "dump")
        child.write(directory, dataclasses.asdict(found))
    except (ValueError, FileNotFoundError) as error:
        child.write(directory, {"error": str(error)})


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
