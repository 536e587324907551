"""Which programs are compiled, what is searched, and what is advised."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
import rich.console
from test_compile import compiler, released

from mpo_jax.plan import advice, estimate, planner, programs, report
from mpo_jax.plan import compile as compile_lib
from mpo_jax.utils import plan_plot

GIB = programs.GIB
WORKLOAD = estimate.Workload()


def request(cfg=None, **values) -> planner.Request:
    cfg = cfg or released()
    return planner.Request("name", cfg, **{"topology": "v5e:4x8", **values})


def asked(**values) -> list[tuple[str, str, int]]:
    found = planner.cases(request(**values), WORKLOAD)
    return [(case.shape, case.step, case.rows) for case, _ in found]


def test_programs_of_a_recipe():
    # 256 pairs at 2.67 and 2.51 a row, to multiples of 32 devices.
    assert asked() == [("short", "train", 96), ("long", "train", 96)]
    assert asked(shapes=("short",), steps=("train", "reference")) == [
        ("short", "train", 96),
        ("short", "reference", 96),
    ]
    assert asked(rows_per_chip=2) == [("short", "train", 64), ("long", "train", 64)]


def test_accumulation_multiplies_the_rows_of_a_batch():
    cfg = released()
    cfg.optim.accumulation = cfg.rows.row_multiple = 3
    assert asked(cfg=cfg, shapes=("short",), rows_per_chip=2) == [
        ("short", "train", 32 * 3 * 2)
    ]
    found = asked(cfg=cfg, shapes=("short",), steps=("reference",), rows_per_chip=2)
    assert found == [("short", "reference", 64)]


def test_long_rows_may_go_in_more_micro_batches():
    cfg = released()
    cfg.optim.accumulation_long = cfg.rows.row_multiple = 3
    found = {
        case.shape: (case.rows, case.micro_batches)
        for case, _ in planner.cases(request(cfg=cfg, rows_per_chip=1), WORKLOAD)
    }
    assert found == {"short": (32, 1), "long": (96, 3)}


def test_configured_rows_are_taken_as_they_are():
    cfg = released()
    cfg.rows.rows_per_batch = 64
    assert asked(cfg=cfg)[0] == ("short", "train", 64)


def test_sft_has_no_reference_program():
    cfg = released()
    cfg.mode, cfg.reference.mode = "sft", "none"
    cfg.loss.terms, cfg.loss.weights = ("sft",), (1.0,)
    cfg.rows.short.rejected_tokens = cfg.rows.long.rejected_tokens = 0
    found = asked(cfg=cfg, steps=("train", "reference"))
    assert {step for _, step, _ in found} == {"train"}
    ours, usual = planner.comparison(cfg, cfg.rows.short.build(), WORKLOAD)
    assert ours.reference == usual.reference == 0
    assert ours.tokens == pytest.approx(usual.tokens)


def test_adapters_shrink_the_state():
    """By hand: InternLM2-7B has 4096 wide layers, 8 key heads of 128, 14336 inside."""
    cfg = released()
    cfg.model.path = "OpenGVLab/InternVL2-8B"
    cfg.reference.mode = "online"
    full = planner.held(cfg)
    size = sum(count for _, count, _ in full.parts)
    assert (full.params, full.reference) == (4 * size, 4 * size)
    assert full.optimiser == pytest.approx(8 * size, rel=1e-6)

    for part in ("vision", "projector", "language"):
        setattr(cfg.model, f"freeze_{part}", True)
    cfg.model.frozen_dtype, cfg.model.lora.language_rank = "bfloat16", 16
    found = planner.held(cfg)
    wide = {"wqkv": 4096 + 6144, "wo": 8192, "w1, w2, w3": 3 * (4096 + 14336)}
    adapters = 32 * 16 * sum(wide.values())
    assert [trained for _, _, trained in found.parts] == [0, 0, adapters]
    assert found.params == 2 * size + 4 * adapters
    assert found.optimiser == pytest.approx(8 * adapters, rel=1e-6)
    assert found.reference == 0
    table = rich.console.Console(width=200, file=io.StringIO(), record=True)
    table.print(report.trained({"full": full, "lora": found}))
    assert f"{adapters:,}" in table.export_text()

    cfg.model.lora.language_rank, cfg.model.train_vision_layers = 0, 2
    last = planner.held(cfg)
    assert last.parts[0][2] == pytest.approx(2 * 12.6e6, rel=0.01)  # of 24 layers
    # Weights, and a copy of what is trained, in float32.
    assert last.reference == 4 * last.parts[0][2]


def test_a_missing_topology_is_named():
    with pytest.raises(ValueError, match="config.topology is empty"):
        asked(topology="")


def fake(limit_rows: dict[str, int]):
    """A compiler under which a policy fits up to so many rows per chip."""

    def run(
        case: programs.Case, *, compiler: object, kept: object
    ) -> programs.Compiled:
        assert kept is None and compiler is not None
        rows = case.rows // 32
        need = 10 + rows
        memory = programs.Memory(
            params=2 * GIB, optimiser=4 * GIB, needed=need * GIB, granted=16 * GIB
        )
        if rows <= limit_rows[case.cfg.model.remat]:
            return programs.Compiled(
                programs.FITS, memory=memory, flops=1e12 * rows, cycles=1e9 * rows
            )
        return programs.Compiled(programs.TOO_LARGE, "too large", memory=memory)

    return run


@pytest.mark.parametrize("most", [1, 4, 16])
def test_search_finds_the_largest_that_fits(monkeypatch, most):
    limits = {"full": 11, "dots": 3, "none": 0}
    monkeypatch.setattr(compile_lib, "run", fake(limits))
    trials = list(
        planner.search(
            request(compiler=compiler()),
            remats=tuple(limits),
            most_rows=most,
            workload=WORKLOAD,
        )
    )
    for remat, limit in limits.items():
        own = [t for t in trials if t.case.cfg.model.remat == remat]
        rows = [t.rows_per_chip for t in own]
        assert len(set(rows)) == len(rows), "no program is compiled twice"
        fitting = max((t.rows_per_chip for t in own if t.fits), default=0)
        assert fitting == min(limit, most)
    best = planner.best(trials)
    assert best is not None and best.fits
    assert planner.best([t for t in trials if not t.fits]) is None


def too_large(**values) -> tuple[programs.Case, programs.Compiled]:
    cfg = released()
    cfg.model.remat = values.pop("remat", "full")
    cfg.model.vision_chunk = values.pop("vision_chunk", 8)
    rows = values.pop("rows", 96)
    case = programs.Case(cfg, "v5e:4x8", 1, "short", "train", rows)
    memory = programs.Memory(**values)
    return case, programs.Compiled(programs.TOO_LARGE, "…", memory=memory)


def test_advice_is_computed():
    case, compiled = too_large(
        **{"params": GIB, "optimiser": 2 * GIB, "needed": 21 * GIB, "granted": 15 * GIB}
    )
    text = "\n".join(advice.advise(case, compiled, 32))
    # 18 GiB for 3 rows; 12 are free: 2 rows, and 3 rows part into ones.
    assert "--config.optim.accumulation=3 instead of 1, with" in text
    assert "row_multiple=96: 1 rows per chip at a time instead of 3" in text
    changes = ["optim.accumulation=3", "rows.row_multiple=96"]
    cfg = planner.changed(case.cfg, changes)
    asked = planner.Request("x", cfg, topology="v5e:4x8", shapes=("short",))
    ((again, _),) = planner.cases(asked, WORKLOAD)
    assert (again.rows, again.micro_batches) == (96, 3)
    assert "vision_chunk=4 instead of 8" in text
    assert "remat" not in text
    assert "more chips of v5e alone do not help" in text


def test_advice_names_the_next_slice_that_would_do():
    case, compiled = too_large(
        **{"params": 4 * GIB, "optimiser": 8 * GIB, "needed": 18 * GIB},
        granted=15 * GIB,
        remat="none",
        rows=32,
        vision_chunk=1,
    )
    text = "\n".join(advice.advise(case, compiled, 32))
    assert "v5litepod-64 (64 chips; here --topology=v5e:8x8)" in text
    assert "remat=full instead of 'none'" in text
    assert "vision_chunk" not in text and "optim.accumulation" not in text


@pytest.mark.parametrize("multiple", [96, 16])
@pytest.mark.parametrize("step", ["train", "reference"])
@pytest.mark.parametrize("shape", ["short", "long"])
def test_fields_that_are_advised_are_train_pys_and_valid(multiple, step, shape):
    case, compiled = too_large(
        **{"params": GIB, "optimiser": 2 * GIB, "needed": 21 * GIB, "granted": 15 * GIB}
    )
    case.cfg.rows.row_multiple = multiple
    case.cfg.optim.accumulation = case.cfg.optim.accumulation_long = 1
    case = dataclasses.replace(case, shape=shape, step=step, rows=24 * 32)
    text = "\n".join(advice.advise(case, compiled, 32))
    assert "rows_per_chip" not in text
    (found,) = re.findall(r"--config\.(optim\.accumulation\w*=\d+) instead of 1", text)
    # 16 of 24 rows would fit; 24 rows part into halves.
    assert found == f"optim.accumulation{'_long' * (shape == 'long')}=2"
    planner.changed(case.cfg, [found]).validate()
    case.cfg.optim.accumulation = case.cfg.optim.accumulation_long = 2
    again = dataclasses.replace(case, rows=case.rows // (1 if step == "train" else 2))
    text = "\n".join(advice.advise(again, compiled, 32))
    number = {96: 3, 16: 4}[multiple]  # row_multiple=16 takes no 3
    assert f"={number} instead of 2: {24 // number} rows per chip" in text


def test_a_failed_compilation_is_not_called_a_lack_of_memory():
    case, compiled = too_large(needed=1)
    failed = dataclasses.replace(compiled, status=programs.FAILED)
    (text,) = advice.advise(case, failed, 32)
    assert "says nothing about memory" in text


def test_results_as_json_table_and_plot(monkeypatch, tmp_path):
    monkeypatch.setattr(compile_lib, "run", fake({"full": 2}))
    outcomes = [
        planner.plan(
            "name", case, shards=shards, workload=WORKLOAD, compiler=compiler()
        )
        for rows in (2, 3)
        for case, shards in planner.cases(
            request(rows_per_chip=rows, shapes=("short",)), WORKLOAD
        )
    ]
    assert [o.fits for o in outcomes] == [True, False]
    raw = json.loads(planner.to_json(outcomes, WORKLOAD))
    assert raw["outcomes"][0]["estimate"]["note"] == "not measured on TPU"
    assert raw["outcomes"][1]["estimate"] is None
    assert raw["outcomes"][1]["advice"]
    assert raw["outcomes"][0]["compiler"] == {
        **{"python": "3.11", "jax": "0.10.2", "jaxlib": "0.10.2"},
        **{"libtpu": "0.0.42.1", "flax": "0.12.8", "optax": "0.2.8"},
    }
    lines = report.markdown(outcomes).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    assert "**too large**: 13.00 of 16.00" in lines[-1]
    assert lines[0].endswith("| libtpu (Python) |")
    assert lines[-1].endswith("| 0.0.42.1 (3.11) |")
    assert list(report.memory(outcomes).columns[-1].cells) == ["0.0.42.1"] * 2
    assert "needs 13.00 GiB of 16.00" in report.words(outcomes[1])
    assert report.words(outcomes[0]) == ""
    for table in (report.memory, report.traffic, report.speed):
        assert table(outcomes).columns
    bar = plan_plot.Bar("a", {"parameters": 1.0, "code": 2.0}, 16.0, 0.5)
    plan_plot.draw([bar, bar], tmp_path / "x.png", note="not measured on TPU")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
