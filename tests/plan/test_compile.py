"""Cases, meshes and refusals; what the compiler itself does is in tests/aot."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types

import pytest

from mpo_jax import config, recipes
from mpo_jax.plan import child, compilers, programs
from mpo_jax.plan import compile as compile_lib


def released(**mesh: int) -> config.RunConfig:
    cfg = recipes.released_mpo()
    cfg.model.path = "OpenGVLab/InternVL2-1B"
    cfg.data.meta = "data/meta.json"
    cfg.mesh = config.MeshConfig(**mesh)
    return cfg


def compiler(libtpu: str = "0.0.42.1") -> compilers.Compiler:
    """One that exists nowhere."""
    versions = ("0.10.2", "0.10.2", libtpu, "0.12.8", "0.2.8")
    return compilers.Compiler("/env/bin/python", "3.11", versions)


def test_case_survives_json():
    case = programs.Case(released(tensor=2), "v6e:2x2", 2, "long", "train", 8)
    assert programs.case_from_json(case.to_json()) == case


def test_result_survives_json():
    result = programs.Compiled(
        programs.FITS,
        seconds=1.5,
        memory=programs.Memory(params=3, granted=9),
        collectives={"all-gather": {"count": 1.0, "bytes": 2.0, "across_slices": 0.0}},
        kernels=(("splash_mha_fwd", (2, 512, 64), 4.0),),
        unresolved=("while.1",),
    )
    text = json.dumps(dataclasses.asdict(result))
    assert programs.compiled_from_dict(json.loads(text)) == result


@pytest.mark.parametrize(
    ("mesh", "topology", "slices", "expected"),
    [
        ({}, "v5e:4x8", 1, (1, 32, 1)),
        ({}, "tpu7x:2x2x1", 1, (1, 8, 1)),
        ({"tensor": 4}, "v5litepod-16", 1, (1, 4, 4)),
        ({}, "v6e-64", 2, (2, 64, 1)),
        ({"data": 4}, "v6e-64", 2, (4, 32, 1)),
        ({"data": -1, "fsdp": 8}, "v5e:4x4", 2, (4, 8, 1)),
    ],
)
def test_mesh(mesh, topology, slices, expected):
    found = compile_lib.mesh_shape(released(**mesh), topology, slices)
    assert tuple(found[axis] for axis in ("data", "fsdp", "tensor")) == expected


@pytest.mark.parametrize(
    ("mesh", "slices", "message"),
    [
        ({"tensor": 3}, 1, "tensor=3 does not fit the 4 devices"),
        ({"fsdp": 2}, 1, "does not fit the 4 devices of 1 × v5e:2x2"),
        ({"data": 3}, 2, "must be a multiple of the 2 slices"),
    ],
)
def test_mesh_that_does_not_fit(mesh, slices, message):
    with pytest.raises(ValueError, match=message):
        compile_lib.mesh_shape(released(**mesh), "v5e:2x2", slices)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, "
            "the total memory required for HLO temporaries (18.50G) exceeds available "
            "HBM (15.75G). HLO module: jit_step.",
            (18.5, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.50G of "
            "15.75G hbm. Exceeded hbm capacity by 13.75G.",
            (29.5, 15.75),
        ),
        ("RESOURCE_EXHAUSTED: something new", (0, 0)),
    ],
)
def test_figures_of_a_refusal(message, expected):
    gib = programs.GIB
    assert compile_lib.out_of_memory(message) == tuple(int(x * gib) for x in expected)


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        (
            "warning\nF1122 fusion.cc:1] Check failed: rank == 3 no window\n*** trace",
            "the compiler aborted: Check failed: rank == 3 no window",
        ),
        ("Traceback\nAttributeError: x\n", "ended with status -6: AttributeError: x"),
        ("", "ended with status -6: no output"),
    ],
)
def test_an_abort_of_the_compiler_is_a_result(monkeypatch, stderr, message):
    """The process dies by a signal and leaves no result; its last words count."""

    class Dead:
        returncode = -6

        def __init__(self, command, **options):
            assert command[0] == "/env/bin/python"
            options["stderr"].write(stderr.encode())

        def poll(self):
            return self.returncode

    monkeypatch.setattr(child.subprocess, "Popen", Dead)
    case = programs.Case(released(), "v5e:2x2", 1, "short", "train", 4)
    result = compile_lib.run(case, compiler=compiler())
    assert result.status == programs.FAILED
    assert message in result.message


def test_memory_is_what_was_assigned_and_not_what_the_analysis_sums_up(tmp_path):
    """libtpu 0.0.42: 20.5 GiB of temporaries in a program that a chip of 16 takes."""
    report = tmp_path / "m.jit_step.cl_1.after_optimizations-memory-usage-report.txt"
    report.write_text(
        "Memory Space: default (color=0)\nTotal bytes: 16000 (15.6KiB)\n"
        "Memory Space: vmem (color=1)\nTotal bytes: 700 (700B)\n"
    )
    assigned = compile_lib.assigned_bytes(tmp_path)
    assert assigned == 16000

    class Compiled:
        def memory_analysis(self):
            return types.SimpleNamespace(
                **{"argument_size_in_bytes": 1500, "output_size_in_bytes": 1400},
                **{"alias_size_in_bytes": 1300, "temp_size_in_bytes": 20500},
                **{"generated_code_size_in_bytes": 60, "host_temp_size_in_bytes": 7},
            )

    held = programs.Memory(params=500, optimiser=900, batch=100, host=3)
    found = compile_lib.measured(Compiled(), held, granted=16500, assigned=assigned)
    assert found == dataclasses.replace(
        held, host=10, temporaries=14400, code=60, needed=16060, granted=16500
    )


def test_a_report_without_a_sum_is_an_error(tmp_path):
    report = tmp_path / "m.jit_step.cl_1.after_optimizations-memory-usage-report.txt"
    report.write_text("Memory Space: default (color=0)\n")
    with pytest.raises(ValueError, match="report has no total"):
        compile_lib.assigned_bytes(tmp_path)


def test_scheduled_program_after_code_generation_is_preferred(tmp_path):
    with pytest.raises(ValueError, match="no scheduled program"):
        compile_lib.scheduled(tmp_path)
    first = tmp_path / "module_0001.jit_step.cl_1.after_optimizations.txt"
    first.write_text("x" * 10)
    assert compile_lib.scheduled(tmp_path) == first
    second = tmp_path / "module_0001.jit_step.cl_1.after_codegen.txt"
    second.write_text("x")
    assert compile_lib.scheduled(tmp_path) == second


def test_results_are_kept_while_case_code_and_compiler_are_the_same(
    monkeypatch, tmp_path
):
    ran = []

    def answer(
        case: programs.Case, *, python: str, timeout: float
    ) -> programs.Compiled:
        ran.append(case.rows)
        status = programs.FAILED if case.rows == 12 else programs.FITS
        return programs.Compiled(status, seconds=case.rows)

    monkeypatch.setattr(compile_lib, "_run", answer)

    def call(
        rows: int, kept: object = tmp_path, who: compilers.Compiler | None = None
    ) -> float:
        case = programs.Case(released(), "v5e:2x2", 1, "short", "train", rows)
        who = who or compiler()
        return compile_lib.run(case, compiler=who, kept=kept).seconds

    assert [call(4), call(4), call(8), call(4)] == [4, 4, 8, 4]
    assert ran == [4, 8]
    # A failure may be the machine's, so it is tried again.
    assert [call(12), call(12), call(4, None)] == [12, 12, 4]
    assert ran == [4, 8, 12, 12, 4]
    assert [call(4, who=compiler("0.0.52")), call(4)] == [4, 4]
    assert ran == [4, 8, 12, 12, 4, 4]
    moved = dataclasses.replace(compiler(), executable="/elsewhere/python")
    assert call(4, who=moved) == 4  # the same compiler, wherever it lies
    assert len(ran) == 6


def test_kept_results_depend_on_all_code_that_reads_a_program():
    package = pathlib.Path(compile_lib.__file__).parents[1]
    for module in ("hlo", "loops", "schedule", "compile", "child"):
        assert (package / "plan" / f"{module}.py").is_file()
        assert f"plan/{module}.py" in compile_lib._SOURCES
