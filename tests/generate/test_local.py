"""Questions to requests and updates to answers, on an engine of its own."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
import speaking

from mpo_jax import ledger
from mpo_jax.generate import local, prompts, requests
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib

POLICY = prompt_lib.PromptPolicy(
    "internvl2_5",
    **{"image_size": 28, "tokens_per_tile": 4, "min_tiles": 1, "max_tiles": 4},
    **{"use_thumbnail": True, "max_image_pixels": 10**6},
)


class Echo:
    """An engine of two places; an answer takes two steps."""

    max_prompt_tokens, max_new_tokens = 10**6, 8

    def __init__(self, refuse=()):
        self.added: list[requests.Request] = []
        self.most_queued = 0
        self._refuse = refuse
        self._queue: collections.deque = collections.deque()
        self._speaking: dict = {}

    def add(self, request):
        if request.key in self._refuse:
            raise ledger.BadRecord("too_long", "too long for the engine")
        self.added.append(request)
        self._queue.extend((request, k) for k in request.wanted)
        self.most_queued = max(self.most_queued, len(self._queue))

    @property
    def busy(self):
        return bool(self._queue or self._speaking)

    @property
    def stats(self):
        return {"queued": len(self._queue), "slots": 2.0}

    def step(self):
        updates = []
        for place, (request, k) in list(self._speaking.items()):
            text = f"and {request.key} "
            updates.append(
                requests.Update(request.key, k, (7, 8), (-0.25, -0.5), text, "stop")
            )
            del self._speaking[place]
        while len(self._speaking) < 2 and self._queue:
            request, k = self._queue.popleft()
            self._speaking[len(self._speaking), request.key, k] = (request, k)
            updates.append(requests.Update(request.key, k, (6,), (-1.0,), " so ", None))
        return updates


@pytest.fixture(scope="module")
def chat(qwen2_dir):
    return tokenizer_lib.load_tokenizer(qwen2_dir)


def answers(chat, engine, questions, *, n=1, **options):
    made = local.Local(engine, tokenizer=chat, policy=POLICY)
    sampling = requests.Sampling(n=n, seed=4)
    return list(made.answers(questions, sampling, **options))


def test_updates_become_answers(chat):
    questions = [requests.Question(i, "q") for i in range(20)]
    engine = Echo()
    found = answers(chat, engine, iter(questions), n=2)
    assert {(a.id, a.sample) for a in found} == {
        (i, k) for i in range(20) for k in (0, 1)
    }
    one = found[0]
    assert (one.text, one.finish_reason) == (f"so and {one.id}", "stop")
    assert (one.tokens, one.token_ids) == (3, (6, 7, 8))
    assert one.logprob == -1.75 and one.token_logprobs == (-1.0, -0.25, -0.5)
    assert one.prompt_tokens == len(engine.added[0].ids)
    # The engine is never short of work, nor flooded: a few ahead, whole prompts.
    assert engine.most_queued <= 2 + 2
    seeds = {request.sampling.seed for request in engine.added}
    assert len(seeds) == 20
    assert seeds == {requests.seed_of(question, 4) for question in questions}


def test_questions_are_taken_as_they_are_needed(chat):
    """A file of millions, whose images are large, is never read ahead by much."""
    taken = []

    def many():
        for number in range(200):
            taken.append(number)
            yield requests.Question(number, "q")

    made = local.Local(Echo(), tokenizer=chat, policy=POLICY)
    next(made.answers(many(), requests.Sampling()))
    assert len(taken) <= 2 * local.THREADS + 2 + 2 + 2


def test_a_continuation_keeps_its_spaces(chat):
    questions = [
        requests.Question("a", "q", prefix="the"),
        requests.Question("b", "q", prefix=(3, 4)),
        requests.Question("c", "q"),
    ]
    found = {a.id: a.text for a in answers(chat, Echo(), questions)}
    assert found == {"a": " so and a ", "b": " so and b ", "c": "so and c"}


def test_what_cannot_be_asked_is_told_and_the_rest_answered(chat):
    questions = [
        requests.Question(0, "fine"),
        requests.Question(1, "<image>"),
        requests.Question(2, "<|im_end|>"),
        requests.Question(3, "long"),
        requests.Question(4, "q", images=("none.png",)),
        requests.Question(5, "fine"),
    ]
    found = answers(chat, Echo(refuse={3}), questions, n=2)
    failures = {f.id: f.reason for f in found if isinstance(f, requests.Failure)}
    assert failures == {
        **{1: "image_count", 2: "chat_marker", 3: "too_long", 4: "image_missing"}
    }
    assert all(not f.retry and f.sample is None for f in found if f.id in failures)
    said = sorted((a.id, a.sample) for a in found if a.id not in failures)
    assert said == [(0, 0), (0, 1), (5, 0), (5, 1)]


def test_what_is_answered_already_is_not_asked(chat):
    questions = [requests.Question(i, "q") for i in range(3)]
    engine = Echo()
    done = {(0, 0), (0, 1), (0, 2), (1, 1)}
    skip = lambda id, sample: (id, sample) in done  # noqa: E731
    found = answers(chat, engine, questions, n=3, skip=skip)
    assert [request.wanted for request in engine.added] == [(0, 2), (0, 1, 2)]
    assert {(a.id, a.sample) for a in found} == {
        *((1, 0), (1, 2)),
        *((2, 0), (2, 1), (2, 2)),
    }


def test_a_request_ends_with_the_template(chat):
    question = requests.Question(0, "q", prefix="the")
    sampling = requests.Sampling(stop_ids=(3, 3), stop=("x",))
    made = prompts.request_of(
        question, sampling, key="k", tokenizer=chat, policy=POLICY
    )
    end = chat.id_of("<|im_end|>")
    assert made.sampling == dataclasses.replace(sampling, stop_ids=(end, 3))
    assert made.key == "k" and made.wanted == (0,)
    assert chat.decode(made.ids[made.answer_start :]) == "the"
    other = dataclasses.replace(POLICY, template="phi3-chat")
    with pytest.raises(ValueError, match="which is no token of this tokenizer"):
        prompts.stop_id(chat, other)


def test_a_prompt_is_as_long_as_it_is_measured(chat, tmp_path):
    names = speaking.write_images(tmp_path)
    paths = [str(tmp_path / name) for name in names]
    for number, record in enumerate(speaking.questions(paths, 20)):
        images = record.get("image", [])
        question = requests.Question(
            number,
            record["question"],
            (images,) if isinstance(images, str) else tuple(images),
            record.get("prefix", ""),
            record.get("system"),
            tuple(tuple(turn) for turn in record.get("history", ())),
        )
        how = {"tokenizer": chat, "policy": POLICY}
        made = prompts.request_of(question, requests.Sampling(), key=0, **how)
        assert prompts.length_of(question, **how) == len(made.ids)
        assert made.tiles.dtype == np.uint8
        slots = int((made.ids == chat.img_context_id).sum())
        assert slots == 4 * len(made.tiles)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n", 0, "n=0: must be an integer from 1 to 4096"),
        ("n", 4097, "n=4097"),
        ("n", True, "n=True"),
        ("n", 1.0, r"n=1\.0"),
        ("seed", 2**63, "seed=9223372036854775808"),
        ("max_new_tokens", 0, "max_new_tokens=0"),
        ("min_new_tokens", 1025, "min_new_tokens=1025: .* from 0 to 1024"),
        ("top_k", -1, "top_k=-1"),
        ("temperature", -0.1, r"temperature=-0\.1: must be a number from 0 to 100"),
        ("temperature", float("nan"), "temperature=nan"),
        ("temperature", "1", "temperature='1'"),
        ("top_p", 1.1, r"top_p=1\.1"),
        ("top_p", 0.0, "top_p=0 admits no token"),
        ("repetition_penalty", 0.0, "repetition_penalty=0 divides"),
        ("repetition_penalty", float("inf"), "repetition_penalty=inf"),
        ("stop_ids", tuple(range(17)), "stop_ids: 17 of them, at most 16"),
        ("stop_ids", (-1,), "stop_ids=-1"),
        ("stop", ("",), "stop='': must be a text of 1 to 256"),
        ("stop", ("x" * 257,), "stop='xxx"),
        ("stop", (3,), "stop='3'"),
        ("stop", ("x",) * 17, "stop: 17 texts, at most 16"),
    ],
)
def test_settings_out_of_range_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        requests.Sampling(**{field: value})


def test_settings_at_their_bounds():
    requests.Sampling(
        **{"n": 4096, "seed": -(2**63), "max_new_tokens": 2**20},
        **{"min_new_tokens": 2**20, "temperature": 100, "top_p": 1, "top_k": 2**31 - 1},
        **{"repetition_penalty": 1e-6, "stop": ("x" * 256,) * 16},
        stop_ids=tuple(np.arange(16)),
    )
