"""Generation, small, compiled for the generations of the plans: no TPU is needed.

Decoding must leave its caches where they are: a program that copies or gathers them is
right and many times slower, and nothing else would show it.
"""

from __future__ import annotations

import concurrent.futures
import json
import pathlib

import pytest
from test_generations import LAYERS, recipe, small_model

from mpo_jax.plan import compile_generation, estimate, generation, programs
from mpo_jax.utils import slices

pytestmark = pytest.mark.slow

# A prompt whose bucket (320) is no whole number of the kernel's blocks, and many long
# answers: their cache is larger than anything else. One answer to a prompt is a program
# of its own, as arrays with an axis of one are laid out in other ways: one generation
# shows it.
ASKED = {"prompt_tokens": 300, "answer_tokens": 1000, "slots": 64}
KV_HEADS = 8
KINDS = [("v5e:2x2", 8), ("v5e:2x2", 1), ("v6e:2x2", 8)]


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    path = pathlib.Path(small_model(tmp_path_factory.mktemp("model")))
    raw = json.loads((path / "config.json").read_text("utf-8"))
    # As many heads as a true model: the compiler lays out one by itself in other ways.
    raw["llm_config"] |= {
        **{"hidden_size": 2048, "num_attention_heads": 16},
        "num_key_value_heads": KV_HEADS,
    }
    (path / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    cases = {
        (name, n): generation.Case(
            recipe(str(path)), name, 1, samples=n, tensor=2, **ASKED
        )
        for name, n in KINDS
    }
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = list(pool.map(compile_generation.run, cases.values()))
    return dict(zip(cases, found, strict=True))


@pytest.mark.parametrize(("name", "n"), KINDS)
def test_all_programs_compile_for_the_chosen_mesh(planned, name, n):
    found = planned[name, n]
    assert found.status == programs.FITS, found.message
    assert set(found.programs) == set(generation.PROGRAMS)
    sold = slices.lookup(name)
    assert (found.data * found.tensor, found.tensor) == (sold.devices, 2)
    assert found.groups * found.slots >= 64 and found.slots == n
    assert found.prompt_room >= 299 and found.answer_room >= 1000
    chip = estimate.CHIPS[sold.generation].hbm * sold.chips / sold.devices
    assert 0.93 * chip < found.granted <= 1.01 * chip
    # Keys and values of both caches, and ids; half of the key heads on a device.
    room = found.groups // found.data
    room *= found.prompt_room + found.slots * found.answer_room
    assert found.cache == room * (LAYERS * KV_HEADS // 2 * 128 * 2 * 2 + 4)


@pytest.mark.parametrize("program", ["decode", "prefill"])
@pytest.mark.parametrize(("name", "n"), KINDS)
def test_caches_stay_where_they_are(planned, name, n, program):
    found = planned[name, n]
    memory = found.programs[program].memory
    # The cache is given up for the result: there is no second one ...
    alone = memory.needed - memory.temporaries - memory.code
    held = found.weights + found.cache + found.features
    assert held <= alone < held + found.cache // 8
    # ... nor a copy of the keys or the values of all answers (half of their cache), in
    # whatever order. Weights of the queries are copied once, and scratch memory counts.
    if program == "decode":
        answers = found.slots * found.answer_room
        share = answers / (answers + found.prompt_room)
        assert memory.temporaries < 0.3 * share * found.cache


@pytest.mark.parametrize(("name", "n"), KINDS)
def test_no_collective_is_as_large_as_a_cache(planned, name, n):
    decode = planned[name, n].programs["decode"]
    sent = {kind: found["bytes"] for kind, found in decode.collectives.items()}
    assert sum(sent.values()) < planned[name, n].cache / 8
    # Two sums a layer, and a few of single numbers: none is in a loop over blocks.
    counts = {kind: found["count"] for kind, found in decode.collectives.items()}
    assert 2 * LAYERS <= sum(counts.values()) < 2 * LAYERS + 30
    assert not set(counts) & {"all-to-all", "collective-permute"}


def test_a_wrong_case_is_an_error_and_no_result(tmp_path):
    cfg = recipe(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="neither a directory"):
        compile_generation.run(generation.Case(cfg, "v5e:2x2", 1, samples=1, **ASKED))
    cfg = recipe("OpenGVLab/InternVL2-1B")
    case = generation.Case(cfg, "v5e:2x2", 1, samples=1, tensor=3, **ASKED)
    with pytest.raises(ValueError, match="tensor=3 does not divide the 4 devices"):
        compile_generation.run(case)


def test_a_model_too_large_is_a_result_with_words():
    cfg = recipe("OpenGVLab/InternVL2-26B")
    case = generation.Case(cfg, "v5e:1x1", 1, samples=1, **ASKED)
    found = compile_generation.run(case)
    assert found.status == programs.TOO_LARGE
    assert "use bfloat16, or share the model among more devices" in found.message
