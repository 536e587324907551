"""Judgements from a server: asked once, kept, read back; failures are no grades."""

from __future__ import annotations

import json
import logging as std_logging

import numpy as np
import openai_double
import pytest

from mpo_jax.evals import benchmark, grading, judging
from mpo_jax.evals.benchmark import Grade, Item, Judge
from mpo_jax.generate import endpoint_asking, endpoint_reply, requests, text_endpoint
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib

NAME = "judge-0613"


def parse(item: Item, text: str) -> Grade:
    return Grade.of(text, text.endswith(item.answer or ""), "judge")


JUDGE = Judge(NAME, lambda item, response: f"{item.question}|{response}", parse)


@pytest.fixture
def double(qwen2_dir):
    """A server whose answer repeats the message's text after the bar."""

    def change(reply, body) -> None:
        said = body["messages"][-1]["content"].partition("|")[2]
        reply["choices"][0]["message"]["content"] = f"I say {said}"

    policy = prompt_lib.PromptPolicy(
        template="internvl2_5",
        image_size=28,
        tokens_per_tile=4,
        min_tiles=1,
        max_tiles=6,
        use_thumbnail=True,
        max_image_pixels=1_000_000,
    )
    double = openai_double.Double(
        tokenizer_lib.load_tokenizer(qwen2_dir), policy, models=(NAME,), change=change
    )
    with openai_double.serve(double):
        yield double


def said(*texts: str) -> list[grading.Said]:
    item = Item("q1", "Is it?", "yes")
    return [grading.Said(item, sample, text) for sample, text in enumerate(texts)]


def endpoint(double, **options) -> text_endpoint.TextEndpoint:
    return text_endpoint.TextEndpoint(double.url, model=NAME, **options)


def run(double, cache, *texts: str, judge: Judge = JUDGE, **options):
    return judging.judge(said(*texts), judge, endpoint(double, **options), cache)


def test_what_is_sent(double, tmp_path):
    judge = Judge(NAME, JUDGE.prompt, parse, temperature=0.2, max_new_tokens=7)
    run(double, tmp_path / "j.jsonl", "yes", judge=judge)
    assert double.bodies == [
        {
            "model": NAME,
            "messages": [{"role": "user", "content": "Is it?|yes"}],
            "temperature": 0.2,
            "max_tokens": 7,
            "n": 1,
        }
    ]


def test_judgements_are_kept_and_asked_for_once(double, tmp_path):
    cache = tmp_path / "deep" / "j.jsonl"
    ticks = []
    first = judging.judge(
        said("yes", "no", "yes", " \n"),
        JUDGE,
        endpoint(double),
        cache,
        done=lambda: ticks.append(1),
    )
    assert len(double.bodies) == 2 == len(ticks)  # equal messages once, blank ones not
    judged = first.judgements
    assert [judged["q1", k].grade.verdict.right for k in range(4)] == [
        True,
        False,
        True,
        False,
    ]
    assert judged["q1", 0].text == "I say yes" and judged["q1", 0].model == NAME
    blank = judged["q1", 3]
    assert (blank.text, blank.grade.points, blank.grade.reference) == ("", 0.0, 1.0)
    assert blank.grade.verdict.rule == grading.EMPTY
    assert not first.failures and first.answered_by == {NAME: 3}
    kept = [json.loads(line) for line in cache.read_text().splitlines()]
    assert len(kept) == 2 and {line["text"] for line in kept} == {
        "I say yes",
        "I say no",
    }
    assert {line["finish_reason"] for line in kept} == {"stop"}
    again = run(double, cache, "yes", "no", "yes", " \n")
    assert again == first and len(double.bodies) == 2
    run(double, cache, "yes", "maybe")
    assert len(double.bodies) == 3


def test_whatever_a_judgement_depends_on_is_in_its_key():
    keys = {
        judging.key_of(model, prompt, Judge("", JUDGE.prompt, parse, **options))
        for model, prompt, options in [
            ("a", "p", {}),
            ("b", "p", {}),
            ("a", "q", {}),
            ("a", "p", {"temperature": 0.2}),
            ("a", "p", {"max_new_tokens": 9}),
        ]
    }
    assert len(keys) == 5
    assert judging.key_of("a", "p", JUDGE) == judging.key_of(
        "a", "p", Judge("other", lambda i, r: "", parse)
    )


def test_a_failed_request_is_no_grade_and_is_asked_again(double, tmp_path):
    cache = tmp_path / "j.jsonl"
    judge_ = endpoint(double, concurrency=1, retries=1)
    double.faults = [500, 500]
    found = judging.judge(said("yes", "no"), JUDGE, judge_, cache)
    assert list(found.judgements) == [("q1", 1)]
    failure = found.failures["q1", 0]
    assert failure.retry and "500" in failure.detail and failure.reason == "endpoint"
    assert len(cache.read_text().splitlines()) == 1
    found = run(double, cache, "yes", "no")
    assert not found.failures and len(found.judgements) == 2
    assert len(double.bodies) == 4


@pytest.mark.parametrize(
    "raw, words",
    [
        ('{"choices": []}', "one was asked for"),
        ("<html>", "no JSON"),
        (
            json.dumps(
                {
                    "choices": [{"finish_reason": "content_filter"}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
                }
            ),
            "finish_reason='content_filter'",
        ),
        (
            json.dumps(
                {
                    "choices": [{"finish_reason": "stop", "message": {}}],
                    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
                }
            ),
            "is None, not a text",
        ),
        (
            json.dumps(
                {"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 1}}
            ),
            "usage.completion_tokens=None",
        ),
    ],
)
def test_a_bad_reply_is_a_failure(double, tmp_path, raw, words):
    double.raw = raw
    cache = tmp_path / "j.jsonl"
    found = run(double, cache, "yes")
    assert not found.judgements and words in found.failures["q1", 0].detail
    assert cache.read_text() == ""


def test_a_text_that_is_no_unicode_is_not_sent(double, tmp_path):
    found = run(double, tmp_path / "j.jsonl", "\ud800", "yes")
    assert found.failures["q1", 0].reason == "bad_field"
    assert found.judgements["q1", 1].grade.verdict.right and len(double.bodies) == 1


def test_who_answered_is_said(double, tmp_path, caplog):
    def change(reply, body) -> None:
        reply["model"] = f"{NAME}-preview"

    double.change = change
    with caplog.at_level(std_logging.WARNING, "absl"):
        found = run(double, tmp_path / "j.jsonl", "yes", "no")
    assert found.answered_by == {f"{NAME}-preview": 2}
    assert f"{NAME} was asked, and answers came from {NAME}-preview (2)" in caplog.text
    assert found.judgements["q1", 0].model == NAME


def test_another_judge_is_said(double, tmp_path, caplog):
    judge = Judge("gpt-4-0613", JUDGE.prompt, parse)
    with caplog.at_level(std_logging.WARNING, "absl"):
        run(double, tmp_path / "j.jsonl", "yes", judge=judge)
    assert f"{NAME} judges, the authors' judge is gpt-4-0613" in caplog.text


def test_a_torn_last_line_is_named_and_asked_again(double, tmp_path, caplog):
    cache = tmp_path / "j.jsonl"
    run(double, cache, "yes", "no", concurrency=1)
    whole = cache.read_bytes()
    cache.write_bytes(whole[:-9])
    with caplog.at_level(std_logging.WARNING, "absl"):
        found = run(double, cache, "yes", "no", concurrency=1)
    assert f"{cache}: line 2 is torn" in caplog.text
    assert len(found.judgements) == 2 and len(double.bodies) == 3
    assert cache.read_bytes() == whole


@pytest.mark.parametrize(
    "line, words",
    [
        (b"{", "line 1 is no judgement"),
        (b'{"key": "a", "text": 3, "answered_by": "x"}', "must be texts"),
        (b'{"key": "a"}', "no judgement"),
        (b"[]", "no judgement"),
        (b"x" * 100, "more than 50 bytes"),
    ],
)
def test_a_damaged_cache_is_named(tmp_path, monkeypatch, line, words):
    monkeypatch.setattr(judging, "MAX_LINE", 50)
    cache = tmp_path / "j.jsonl"
    cache.write_bytes(line + b"\n")
    with pytest.raises(ValueError) as caught:
        judging.read(cache)
    assert words in str(caught.value) and str(cache) in str(caught.value)


def test_a_judge_needs_a_name_that_the_server_knows(double):
    with pytest.raises(ValueError, match="name the model"):
        text_endpoint.TextEndpoint(double.url, model="")
    with pytest.raises(endpoint_asking.EndpointError, match="no model 'other'"):
        text_endpoint.TextEndpoint(double.url, model="other")


def test_a_server_that_refuses_all_ends_the_run(double, tmp_path):
    judge_ = endpoint(double)
    double.faults = [401]
    with pytest.raises(endpoint_asking.EndpointError, match="OPENAI_API_KEY"):
        judging.judge(said("yes"), JUDGE, judge_, tmp_path / "j.jsonl")


def test_a_text_endpoint_sends_words_alone(double):
    questions = [
        requests.Question("a", "one|1", system="Be brief."),
        requests.Question("b", "two|2", images=("x.png",)),
        requests.Question("c", "three|3"),
    ]
    found = {
        item.id: item
        for item in endpoint(double).answers(
            questions,
            temperature=0.0,
            max_new_tokens=5,
            skip=lambda id, sample: id == "c",
        )
    }
    assert set(found) == {"a", "b"}
    answer, failure = found["a"], found["b"]
    assert isinstance(answer, endpoint_reply.NamedAnswer)
    assert (answer.text, answer.model) == ("I say 1", NAME)
    assert isinstance(failure, requests.Failure) and failure.reason == "unsupported"
    assert double.bodies[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert endpoint(double).describe()["model"] == NAME


def test_points_of_a_run_are_those_of_its_judgements(double, tmp_path):
    found = run(double, tmp_path / "j.jsonl", "yes", "no", "no", "yes")
    grades = [found.judgements["q1", k].grade for k in range(4)]
    items = [one.item for one in said(*"abcd")]
    score = benchmark.weighted(JUDGE.metric, items, grades)
    assert score(np.ones(4)) == 50.0
