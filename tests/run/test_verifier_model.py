"""A model asked for what rules leave undecided: what it is sent, what counts."""

from __future__ import annotations

import pytest

from mpo_jax.generate import endpoint_reply, requests
from mpo_jax.run import verifier_model
from mpo_jax.verify import verdict, verifier
from mpo_jax.verify.verdict import Truth


class Model:
    """Replies by the answer that it is shown."""

    model = "verifier-1"

    def __init__(self, **replies: str):
        self.replies, self.seen = replies, []

    def answers(self, questions, *, temperature, max_new_tokens):
        assert temperature == 0 and max_new_tokens < 20
        for question in reversed(list(questions)):  # as they come, in no order
            self.seen.append(question.question)
            shown = question.question.split("=== ANSWER ===\n")[1]
            reply = self.replies.get(shown.split("\n")[0])
            if reply is None:
                yield requests.Failure(question.id, 0, "endpoint", "no reply", True)
            else:
                yield endpoint_reply.NamedAnswer(
                    *(question.id, 0, reply, "stop", 9, 1, None), model=self.model
                )


def test_only_what_is_undecided_is_asked_and_one_word_counts(caplog):
    model = Model(
        feline="right", hound="Wrong.", bird="I think it is right", fish="right"
    )
    with verifier.Verifier(last=verifier_model.last(model)) as verifier_:
        said = ["cat", "feline", "hound", "bird", "fish", "worm", "x" * 5000]
        pairs = [(one, Truth("cat")) for one in said]
        found = verifier_.check_many(pairs, ["What is it?"] * len(pairs))
    assert [v.outcome for v in found] == [
        *("right", "right", "wrong", "undecided", "right", "undecided", "undecided")
    ]
    assert found[0].rule != "model" and found[1] == verdict.Verdict("right", "model")
    assert len(model.seen) == 5  # not the plain one, nor what is too long
    assert "verifier-1 could not judge 1 of 6" in caplog.text
    assert "What is it?" in model.seen[0] and "cat" in model.seen[0]


def test_options_are_shown():
    asked = ("Which?", "the second", Truth("B", ("red", "blue")))
    assert "Which?\nA. red\nB. blue\n" in verifier_model.prompt(asked)


@pytest.mark.parametrize(
    "reply", ["", "right, I think", "unclear", "rightwrong", "yes"]
)
def test_other_replies_leave_it_undecided(reply):
    assert verifier_model.parse(reply) is None
