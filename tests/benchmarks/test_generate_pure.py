"""`benchmarks.generate`: the parts that need no clock and no peer."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks import generate, generate_cases, generate_ours, sizes, workload
from mpo_jax.generate import requests

VOCAB = 99
IMAGE = generate_cases.Prompt(tokens=600, tiles=2, new_tokens=5)
TEXT = generate_cases.Prompt(tokens=20, tiles=0, new_tokens=3, words=1)


def job(case: generate_cases.Case) -> generate_cases.Job:
    config = sizes.slice_of("1b", layers=1, vocab_size=VOCAB)
    return generate_cases.Job(config, case, "weights", "cpu", "float32", 1, 2, 1.0)


def result(seconds: float, **changes):
    return {
        "seconds": [90.0, seconds],
        "processor_seconds": [90.0, 2 * seconds],
        "cores_of_others": [5.0, 0.25],
        "peak_mib": 100 * seconds,
        "ids": [[1, 2]],
    } | changes


def test_prompts_have_their_tokens_and_tiles():
    ids = IMAGE.ids(VOCAB)
    assert len(ids) == 600 and (ids == workload.IMAGE_ID).sum() == 512
    assert IMAGE.pixels().shape == (2, 448, 448, 3)
    assert len(TEXT.ids(VOCAB)) == 20
    assert not (TEXT.ids(VOCAB) == workload.IMAGE_ID).any()
    other = dataclasses.replace(IMAGE, picture=1)
    np.testing.assert_array_equal(other.ids(VOCAB), ids)
    assert (other.pixels() != IMAGE.pixels()).any()
    assert (dataclasses.replace(IMAGE, words=1).ids(VOCAB) != ids).any()
    with pytest.raises(ValueError, match="tokens=518.*519"):
        dataclasses.replace(IMAGE, tokens=518).ids(VOCAB)


def test_cases_are_what_the_requirement_says():
    found = generate_cases.timed(quick=False)
    assert list(found) == ["n32", "n8", "n1", "text_n32", "many_text", "many_tiles"]
    (prompt,) = found["n32"].prompts
    assert (prompt.tiles, prompt.new_tokens, found["n32"].n) == (7, 256, 32)
    assert 1792 < prompt.tokens < 1900
    assert found["n32"].new_tokens == 32 * 256
    assert found["text_n32"].prompts[0].tokens == 128
    for name, tiles in (("many_text", 0), ("many_tiles", 7)):
        many = found[name]
        assert (len(many.prompts), many.n, many.slots) == (64, 1, 16)
        assert {p.tiles for p in many.prompts} == {tiles}
        lengths = np.array([p.new_tokens for p in many.prompts])
        assert 16 <= lengths.min() < 30 and 300 < lengths.max() <= 512
        assert len({tuple(p.ids(VOCAB)) for p in many.prompts}) == 64
    for case in generate_cases.checked(quick=False).values():
        for prompt in case.prompts:
            prompt.ids(VOCAB)
    assert generate_cases.timed(quick=True).keys() >= {"n1", "n8", "many_tiles"}


def test_positions_of_each_peer():
    one = generate_cases.Case((IMAGE,), n=4, slots=4)
    assert one.positions("generate") == 4 * (600 + 4)
    assert one.positions("cache") == 599 + 4 * 5
    many = generate_cases.Case((IMAGE, TEXT, TEXT), n=1, slots=2)
    assert [len(batch) for batch in many.batches()] == [2, 1]
    # Two rows as long as the longer prompt and answer; then one alone.
    assert many.positions("padded") == 2 * (600 + 4) + 20 + 2
    assert one.peers == ("generate", "cache") and many.peers == ("padded",)


def test_job_survives_the_disk(tmp_path):
    written = job(generate_cases.Case((IMAGE, TEXT), n=1, slots=2))
    written.write(tmp_path / "job.json")
    assert generate_cases.read(tmp_path / "job.json") == written
    assert written.vocab_size == VOCAB


def test_threads_are_the_same_for_both_sides():
    one = job(generate_cases.Case((IMAGE,), n=1, slots=1))
    found = generate.settings(one)
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["XLA_FLAGS"] == "--xla_cpu_multi_thread_eigen=false"
    two = generate.settings(dataclasses.replace(one, threads=2))
    assert two["OMP_NUM_THREADS"] == "2" and "XLA_FLAGS" not in two
    gpu = generate.settings(dataclasses.replace(one, device="gpu"))
    assert gpu == {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    with pytest.raises(ValueError, match="--cores=9999"):
        generate._pinned(9999)


def test_other_tokens_are_an_error():
    def sides(*ids):
        names = ("ours", "generate", "cache")
        return {name: {"ids": i} for name, i in zip(names, ids, strict=True)}

    same = [[1, 2, 3], [4, 5]]
    assert generate.compare("a", sides(same, same, same)) == 5
    with pytest.raises(ValueError, match=r"answer 1: from token 1 on ours.*cache \[6"):
        generate.compare("a", sides(same, same, [[1, 2, 3], [4, 6]]))
    with pytest.raises(ValueError, match="answer 0: from token 2 on"):
        generate.compare("a", sides(same, [[1, 2], [4, 5]], same))
    with pytest.raises(ValueError, match="2 answers of ours, 1 of generate"):
        generate.compare("a", sides(same, same[:1], same))
    generate.check_sight("a", [[1, 2], [1, 3]])
    with pytest.raises(ValueError, match="blind"):
        generate.check_sight("a", [[1, 2], [1, 2], [3]])


def test_peers_must_do_what_their_names_say():
    case = generate_cases.Case((IMAGE,), n=4, slots=4)
    cached = {"positions": case.positions("cache"), "tiles": 2}
    generate.check_work("a", "cache", case, cached)
    generate.check_work("a", "ours", case, {})
    with pytest.raises(ValueError, match="cache: the decoder computed 2416"):
        full = {"positions": case.positions("generate"), "tiles": 2}
        generate.check_work("a", "cache", case, full)
    with pytest.raises(ValueError, match="8 tiles were encoded, not 2"):
        generate.check_work("a", "cache", case, cached | {"tiles": 8})


def test_summary_has_processor_time_of_one_core_and_wall_time_of_two():
    case = generate_cases.Case((IMAGE,), n=4, slots=4)
    results = {
        "ours": {"1": result(1.0, peak_compiling_mib=300), "2": result(0.5)},
        "cache": {"1": result(3.0), "2": result(1.0)},
    }
    found = generate.summarise(case, results)
    assert found["ours"]["processor_seconds"] == 2
    assert found["ours"]["tokens_per_processor_second"] == 10
    assert found["ours"]["wall_seconds"] == 0.5
    assert found["ours"]["tokens_per_s"] == 40
    assert found["ours"]["peak_compiling_mib"] == 300
    assert found["ours"]["cores_of_others"] == 0.25
    assert found["cache"]["ratio"] == {
        "processor_seconds": 3,
        "wall_seconds": 2,
        "peak_mib": 3,
    }
    assert "ratio" not in found["ours"]
    header, _, ours, cache = generate.show({"n4": found}).splitlines()
    assert ours.split(" | ")[:5] == ["| n4", "ours", "2.00", "10", ""]
    assert cache.split(" | ")[2:8] == ["6.00", "3", "3.00", "1.00", "20", "2.00"]
    assert header.count("|") == cache.count("|") == ours.count("|")


def test_summary_without_ours_or_without_two_cores():
    case = generate_cases.Case((IMAGE,), n=4, slots=4)
    found = generate.summarise(case, {"cache": {"1": result(3.0)}})
    assert "ratio" not in found["cache"]
    assert found["cache"]["wall_seconds"] is None
    assert generate.show({"n4": found}).endswith("| 300 |  |  | 0.25 |")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--check", "--device=gpu"], "draws its own weights"),
        (["--dtype=bfloat16"], "float32"),
        (["--size=2b"], "slices of 1b"),
        (["--calls=1"], "at least 2"),
        (["--cases", "n32", "--quick"], "n32 is none of n4"),
    ],
)
def test_options_that_do_not_fit(capsys, arguments, message):
    with pytest.raises(SystemExit):
        generate.parse(arguments)
    assert message in capsys.readouterr().err


def test_whole_model_on_a_gpu_and_a_slice_on_a_cpu(monkeypatch):
    def layers(*arguments):
        config = generate.config_of(generate.parse(arguments))
        return config["llm_config"]["num_hidden_layers"]

    assert layers() == 1
    assert layers("--layers=3") == 3
    assert layers("--device=gpu", "--size=2b") == 24
    assert layers("--device=gpu", "--layers=2") == 2
    args = generate.parse(["--device=gpu", "--who", "cache", "ours"])
    monkeypatch.setattr(generate, "has_cuda", lambda _: True)
    who, notes = generate.who_runs(args, "python")
    assert who == ["cache", "ours"] and "not compared" in notes[0]
    monkeypatch.setattr(generate, "has_cuda", lambda _: False)
    who, notes = generate.who_runs(args, "python")
    assert who == ["ours"] and "ours alone" in notes[1]
    assert generate.who_runs(generate.parse([]), "python")[1] == []


class Countdown:
    """An engine with one slot: a prompt's answer is its length, counted down."""

    max_prompt_tokens = max_new_tokens = 1000

    def __init__(self):
        self.waiting: list[requests.Request] = []
        self.given: list[int] = []

    def add(self, request: requests.Request) -> None:
        self.waiting.append(request)

    def cancel(self, key) -> None:
        raise NotImplementedError

    def step(self) -> list[requests.Update]:
        request = self.waiting[-1]  # the last comes first: order is the caller's work
        ids = (len(request.ids) - len(self.given),)
        self.given += ids
        done = len(self.given) == request.sampling.max_new_tokens
        if done:
            self.waiting.pop()
            self.given = []
        reason = requests.LENGTH if done else None
        return [requests.Update(request.key, 0, ids, (0.0,), "", reason)]

    @property
    def busy(self) -> bool:
        return bool(self.waiting)

    @property
    def stats(self) -> dict[str, float]:
        return {}


def test_answers_of_many_prompts_come_in_their_order():
    case = generate_cases.Case((IMAGE, TEXT), n=1, slots=1)
    call = generate_ours.answer_many(Countdown(), job(case))
    expected = [[600, 599, 598, 597, 596], [20, 19, 18]]
    assert call(0) == call(1) == expected


class Recorder:
    def generate_ids(self, ids, tiles, **options):
        self.seen = (len(ids), None if tiles is None else len(tiles), options)
        return [np.arange(options["max_new_tokens"])] * options["n"]


@pytest.mark.parametrize("prompt, tiles", [(IMAGE, 2), (TEXT, None)])
def test_one_prompt_goes_through_the_api(prompt, tiles):
    model = Recorder()
    call = generate_ours.answer_one(model, job(generate_cases.Case((prompt,), 3, 3)))
    answers = call(7)
    assert json.dumps(answers) == json.dumps([list(range(prompt.new_tokens))] * 3)
    assert model.seen[:2] == (prompt.tokens, tiles)
    assert model.seen[2] == {
        "max_new_tokens": prompt.new_tokens,
        "temperature": 1.0,
        "n": 3,
        "seed": 7,
    }
