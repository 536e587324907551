"""Our own client of servers, asking ours: prompts and answers are those in process."""

from __future__ import annotations

import dataclasses

import echo_engine
import pytest
import serve_parts as parts

from mpo_jax.generate import endpoint, endpoint_prompt, prompts, requests
from mpo_jax.inputs import tokenizer as tokenizer_lib

Question = requests.Question
QUESTIONS = (
    Question(1, "the?"),
    Question(2, "the?", ("a",)),
    Question(3, "the <image> an?", ("a",), system="an"),
    Question(4, "a: <image>\nan: <image>\nthe?", ("a", "b")),
    Question(5, "<image>\n<image>\nthe?", ("b", "a")),
    Question(6, "an?", ("a",), history=(("<image>\nthe?", "a"),)),
    Question(7, "<image>\nan?", ("a", "b"), history=(("<image>\nthe?", "a"),)),
    Question(8, "the?", prefix=" the an"),
    Question(9, "the?", ("a",), prefix="an the"),
    Question(10, "the?", prefix=(70, 71, 72)),
    Question(11, "an?", history=(("the?", "a"),), seed=5),
)


@pytest.mark.parametrize("template", ["internvl2_5", "internlm2-chat"])
def test_our_client_and_our_server(qwen2_dir, internlm2_dir, template):
    path = internlm2_dir if template == "internlm2-chat" else qwen2_dir
    tokenizer = tokenizer_lib.load_tokenizer(path)
    app, engine = parts.application(tokenizer, template=template)
    files = {"a": parts.picture(90, 30, seed=1), "b": parts.picture(30, 50, seed=2)}
    read, policy = files.__getitem__, parts.policy(template)
    sampling = requests.Sampling(
        n=2,
        seed=3,
        temperature=0.7,
        top_k=9,
        min_new_tokens=2,
        max_new_tokens=24,
        stop_ids=(5,),
        stop=("zz",),
    )
    with parts.serving(app) as (host, port):
        asked = endpoint.Endpoint(
            f"http://{host}:{port}",
            tokenizer=tokenizer,
            policy=policy,
            max_tiles=4,
            retries=0,
            read=read,
        )
        assert asked.model == parts.NAME
        answers = list(asked.answers(QUESTIONS, sampling))
    assert [a for a in answers if isinstance(a, requests.Failure)] == []
    assert len(answers) == 2 * len(QUESTIONS)
    questions = {question.id: question for question in QUESTIONS}
    for answer in answers:
        question = questions[answer.id]
        seed = endpoint_prompt.seed_of(question, sampling.seed, answer.sample)
        request = prompts.request_of(
            question,
            dataclasses.replace(sampling, n=1, seed=seed),
            key=0,
            tokenizer=tokenizer,
            policy=policy,
            max_tiles=4,
            read=read,
        )
        alone = echo_engine.EchoEngine(tokenizer)
        assert [answer.text] == echo_engine.run(alone, request)
        assert answer.prompt_tokens == len(request.ids)
        assert len(answer.token_ids or ()) == answer.tokens
        assert len(answer.token_logprobs or ()) == answer.tokens
    drawn = {asked.sampling for asked in engine.asked}
    assert {dataclasses.replace(s, seed=0) for s in drawn} == {
        dataclasses.replace(request.sampling, n=1, seed=0)
    }
