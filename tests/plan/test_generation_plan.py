"""Plans of generation: bounds by hand, verdicts, remedies, what is kept and printed."""

from __future__ import annotations

import dataclasses
import json

import pytest
from test_compile import compiler, released

from mpo_jax.models import family
from mpo_jax.plan import child, compile_generation, generation, programs
from mpo_jax.plan import generation_report as report

GIB = programs.GIB


def case(topology: str = "v5e:2x4", **values) -> generation.Case:
    cfg = released()
    cfg.model.path = "OpenGVLab/InternVL2-8B"
    asked = {"prompt_tokens": 2048, "answer_tokens": 1024, "samples": 32, **values}
    return generation.Case(cfg, topology, asked.pop("slices", 1), **asked)


def model():
    found = family.lookup("OpenGVLab/InternVL2-8B")
    assert found is not None
    return found


def compiled(status: str = programs.FITS, **values) -> programs.Compiled:
    memory = programs.Memory(
        params=8 * GIB, temporaries=GIB, needed=14 * GIB, granted=16 * GIB
    )
    return programs.Compiled(status, **{"memory": memory, **values})


def planned(**values) -> generation.Planned:
    sent = {"all-reduce": {"count": 64.0, "bytes": 2e6, "across_slices": 0.0}}
    found = {name: compiled() for name in generation.PROGRAMS}
    found["decode"] = compiled(collectives=sent)
    return generation.Planned(
        **{
            "status": programs.FITS,
            **{"data": 4, "tensor": 2, "groups": 28, "slots": 8},
            **{"prompt_room": 2560, "answer_room": 1024, "granted": 16 * GIB},
            **{"weights": 8 * GIB, "cache": 5 * GIB, "read": 7 * 10**9},
            "programs": found,
            **values,
        }
    )


def test_cases_and_results_survive_json():
    asked = case(slots=64, tensor=4, slices=2)
    assert generation.case_from_json(asked.to_json()) == asked
    text = json.dumps(dataclasses.asdict(planned()))
    assert generation.planned_from_dict(json.loads(text)) == planned()


def test_bound_by_hand():
    found = generation.bound(case(), planned(), model())
    # 32 layers of 8 heads of 128, keys and values, 2 bytes, on two devices.
    token = 32 * 8 * 128 * 2 * 2 / 2
    cache = 7 * token * (2048 + 8 * 512)  # 7 of 28 prompts on a shard
    assert generation.filled(case(), planned(), model()) == cache
    seconds = (7e9 + cache) / 819e9
    assert found.hbm == pytest.approx(28 * 8 / seconds)
    weights = 32 * 4096 * (2 * 4096 + 2 * 1024 + 3 * 14336) + 4096 * 92553
    attention = 2 * 32 * 4096 * (2048 + 512 + 1)
    flops = 2 * (weights + attention)
    assert found.products == pytest.approx(8 * 197e12 / flops)
    assert found.links == pytest.approx(28 * 8 / (2e6 / 200e9))
    assert (found.tokens, found.binds) == (found.hbm, "HBM")
    assert found.step == pytest.approx(seconds)


def test_what_binds_is_the_smallest():
    fewer = dataclasses.replace(planned(), read=1000, groups=4000)
    short = case(prompt_tokens=16, answer_tokens=16, samples=32)
    assert generation.bound(short, fewer, model()).binds == "products"
    sent = {"all-gather": {"count": 1.0, "bytes": 1e12, "across_slices": 0.0}}
    found = planned().programs | {"decode": compiled(collectives=sent)}
    slow = generation.bound(case(), planned(programs=found), model())
    assert slow.binds == "links" and slow.step == pytest.approx(1e12 / 200e9)
    alone = planned().programs | {"decode": compiled()}
    assert generation.bound(case(), planned(programs=alone), model()).links > 1e300


def test_hosts_and_slices_answer_side_by_side():
    one = generation.bound(case("v6e:2x4"), planned(), model())
    two = generation.bound(case("v6e:2x4", slices=2), planned(), model())
    assert two.tokens == pytest.approx(2 * one.tokens) and two.step == one.step
    assert generation.hosts(case("v6e:4x4", slices=2)) == 8


def test_heads_that_do_not_divide_are_read_by_every_device():
    whole = generation.filled(case(), planned(tensor=1), model())
    assert generation.filled(case(), planned(tensor=8), model()) == whole / 8
    assert generation.filled(case(), planned(tensor=16), model()) == whole


def test_half_a_chip_has_half_its_memory_traffic():
    chip = generation.bound(case("v5p:2x2x1"), planned(), model())
    core = generation.bound(case("tpu7x:2x2x1"), planned(), model())
    assert core.hbm / chip.hbm == pytest.approx(7380 / 2 / 2765)


def test_many_answers_share_the_reading_of_a_prompt():
    many = generation.prefill_share(case(), model())
    assert generation.prefill_share(case(samples=1), model()) == 32 * many
    assert 2048 / 1024 / 32 * 0.8 < many < 2048 / 1024 / 32


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((programs.FITS, programs.FITS), programs.FITS),
        ((programs.FITS, programs.TOO_LARGE), programs.TOO_LARGE),
        ((programs.FAILED, programs.TOO_LARGE), programs.FAILED),
    ],
)
def test_a_plan_fits_where_all_its_programs_do(statuses, expected):
    found = {
        name: compiled(status, message=f"{status}!")
        for name, status in zip(("decode", "encode"), statuses, strict=True)
    }
    verdict = compile_generation.together(planned(), found, seconds=3.0)
    assert (verdict.status, verdict.seconds) == (expected, 3.0)
    assert (verdict.message == "") == (expected == programs.FITS)
    if expected == programs.FAILED:
        assert verdict.message == "decode: failed!"


def test_remedies_name_their_options():
    large = planned(status=programs.TOO_LARGE, message="decode: x", programs={})
    outcome = generation.conclude("8b", case(), large, model(), compiler())
    assert not outcome.fits and outcome.bound is None
    text = report.words(outcome)
    assert "n=32: decode: x" in text
    for remedy in ("--slots=112 instead of 224", "--tensor=4", "--max_new_tokens=512"):
        assert remedy in text
    whole = planned(status=programs.TOO_LARGE, tensor=8, data=1, groups=0, slots=0)
    advice = " ".join(generation.advise(case(), whole))
    assert "--slots" not in advice and "--tensor" not in advice
    failed = planned(status=programs.FAILED, message="aborted")
    assert "says nothing about memory" in " ".join(generation.advise(case(), failed))


def test_a_table_of_what_fits_and_what_does_not():
    good = generation.conclude("8b", case(), planned(), model(), compiler())
    bad = generation.Planned(programs.TOO_LARGE, "x", granted=16 * GIB, weights=GIB)
    other = compiler("0.0.52")
    outcomes = [good, generation.conclude("8b", case("v6e:4x4"), bad, model(), other)]
    lines = report.markdown(outcomes).splitlines()
    assert len({line.count("|") for line in lines}) == 1
    for cell in ("4 × 2", "28 × 8", "2,048 / 1,024", "14.00 of 16.00", "HBM"):
        assert f"| {cell} |" in lines[2]
    assert "too large: – of 16.00" in lines[3] and "1 × 1 × 4" in lines[3]
    assert lines[2].endswith("| 0.0.42.1 (3.11) |")
    assert lines[3].endswith("| 0.0.52 (3.11) |")
    who = list(report.memory(outcomes).columns[-1].cells)
    assert who == ["0.0.42.1"] * len(generation.PROGRAMS) + ["0.0.52"]
    assert report.memory(outcomes).row_count == len(generation.PROGRAMS) + 1
    assert report.traffic(outcomes).row_count == 1
    assert report.speed(outcomes).row_count == 2
    bars = report.bars(outcomes)
    assert [bar.granted for bar in bars] == [16.0] * 3
    # 8 of weights, 5 of cache, 1 of temporaries are all that is needed.
    assert all(sum(bar.parts.values()) == pytest.approx(14.0) for bar in bars)
    raw = json.loads(json.dumps(good.to_dict()))
    assert raw["bound"]["binds"] == "HBM" and raw["hosts"] == 1
    assert raw["compiler"]["libtpu"] == "0.0.42.1"


def test_an_abort_is_a_result_and_is_not_kept(monkeypatch, tmp_path):
    class Dead:
        returncode = -6

        def __init__(self, command, **options):
            assert command[0] == "/env/bin/python"
            options["stderr"].write(b"F1 x.cc:1] Check failed: rank == 3\n")

        def poll(self):
            return self.returncode

    monkeypatch.setattr(child.subprocess, "Popen", Dead)
    found = compile_generation.run(case(), compiler=compiler(), kept=tmp_path)
    assert found.status == programs.FAILED
    assert "the compiler aborted: Check failed: rank == 3" in found.message
    assert not list(tmp_path.iterdir())


def test_results_are_kept_by_what_was_asked(monkeypatch, tmp_path):
    ran = []

    def answer(
        asked: generation.Case, *, python: str, timeout: float
    ) -> generation.Planned:
        ran.append(asked.samples)
        return planned(seconds=float(asked.samples))

    monkeypatch.setattr(compile_generation, "_run", answer)
    for samples in (32, 1, 32):
        asked = case(samples=samples)
        found = compile_generation.run(asked, compiler=compiler(), kept=tmp_path)
        assert found.seconds == samples
    assert ran == [32, 1]
    compile_generation.run(case(), compiler=compiler("0.0.52"), kept=tmp_path)
    assert ran == [32, 1, 32]


def test_kept_results_depend_on_all_code_that_makes_them(root):
    for module in ("generation", "compile_generation", "compile", "child"):
        assert f"plan/{module}.py" in compile_generation._SOURCES
    for pattern in compile_generation._SOURCES:
        assert list((root / "mpo_jax").glob(pattern)), pattern
