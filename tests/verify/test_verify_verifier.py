"""All rules in their order, the cache, the last judge, and what must never be right."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import pytest
from test_verify_pool import BOMBS, resident

from mpo_jax.verify import maths, verifier
from mpo_jax.verify.policy import Policy
from mpo_jax.verify.verdict import RIGHT, UNDECIDED, WRONG, Truth, Verdict

NEVER = [  # math-verify takes these for equal
    *(("2,3", "2.3"), ("10:30", "10:45"), ("4 or 5", "5"), ("4 and 5", "5")),
    *(("5, not 4", "4"), ("1/2004!", "1/2006!"), ("1/2^99", "1/2^98"), ("50%", "0.5")),
    *((r"1+1/\mathrm{e}", r"1-1/\mathrm{e}"), ("3x+4y+14=0", "3x-y+13=0")),
    *(("3x=5", "5"), ("3(4)", "7"), ("A+b", "a+b"), ("f(x)", "f(y)")),
]
ALWAYS = [
    *(("B", "B"), ("(B)", "B"), ("Yes", "yes"), (r"\frac12", r"\frac{1}{2}")),
    *(("1e3", "1000"), ("−5", "-5"), ("{1,2}", r"\{1,2\}"), ("10000", "10{,}000")),
    *((r"\sqrt{50}", r"5\sqrt{2}"), ("x^2-1", "(x-1)(x+1)"), ("y=2x+3", "y=3+2x")),
]


def truths(pairs: list[tuple[str, str]]) -> list[tuple[str, Truth]]:
    return [(prediction, Truth(truth)) for prediction, truth in pairs]


@pytest.fixture(scope="module")
def judge():
    with verifier.Verifier() as made:
        yield made


@pytest.mark.slow
def test_known_false_accepts_and_misses(judge):
    both_ways = truths(NEVER + [(b, a) for a, b in NEVER])
    found = judge.check_many(both_ways)
    assert not [p for p, v in zip(both_ways, found, strict=True) if v.right]
    found = judge.check_many(truths(ALWAYS))
    assert not [p for p, v in zip(ALWAYS, found, strict=True) if not v.right]


@pytest.mark.slow
def test_mathematics_looks_at_what_the_ladder_leaves(judge):
    same = [
        ("3x-y-5=0", "y=3x-5"),
        ("x^2+y^2=4", "y^2+x^2-4=0"),
        (r"x \le 3", r"(-\infty, 3]"),
        ("3 < x", "x > 3"),
        (r"1 \pm \sqrt5", r"1+\sqrt5, 1-\sqrt5"),
        (
            r"\begin{pmatrix}1\\0.5\end{pmatrix}",
            r"\begin{pmatrix}1\\\frac12\end{pmatrix}",
        ),
    ]
    found = judge.check_many(truths(same + [(b, a) for a, b in same]))
    assert {verdict.outcome for verdict in found} == {RIGHT}
    others = [("3x-y-6=0", "y=3x-5"), ("x < 3", "x < 4"), ("x = 1, 3", "x = 1, 2")]
    found = judge.check_many(truths(others + [(b, a) for a, b in others]))
    assert {verdict.outcome for verdict in found} == {WRONG}
    # What mathematics cannot compare either keeps the ladder's rule.
    assert judge.check("4 or 5", Truth("5")) == Verdict(
        UNDECIDED, "list_against_single"
    )
    assert judge.check("x > 3", Truth("y > 3")) == Verdict(UNDECIDED, "relation")


@pytest.mark.slow
def test_bombs_end_soon_and_small_also_in_a_thread(judge):
    assert judge.check("x+1", Truth("1+x")) == Verdict(RIGHT, "maths")
    pids = [os.getpid(), *judge._maths.pids()]
    before, peak, found = resident(pids), 0, []
    bombs = [(bomb, Truth("7x+1")) for bomb in BOMBS] + truths(
        [("7x+1", b) for b in BOMBS]
    )
    start = time.monotonic()
    thread = threading.Thread(target=lambda: found.extend(judge.check_many(bombs)))
    thread.start()
    while thread.is_alive():
        try:
            peak = max(peak, resident([os.getpid(), *judge._maths.pids()]))
        except (OSError, StopIteration):
            continue  # a worker ended while it was looked at
        time.sleep(0.01)
    assert len(found) == 2 * len(BOMBS)
    assert time.monotonic() - start < 120
    assert peak - before < 300 << 20
    assert not any(verdict.right for verdict in found)


class Counted:
    """Mathematics that counts what it is asked."""

    def __init__(self, *_: object, **__: object):
        self.asked: list[tuple[str, str]] = []

    def check_many(self, pairs):
        pairs = list(pairs)
        self.asked += pairs
        return [
            Verdict(UNDECIDED, "maths_timeout" if "t" in p else "maths")
            for p, _ in pairs
        ]

    def close(self) -> None:
        pass


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(maths, "Mathematics", Counted)
    return lambda **options: verifier.Verifier(**options)


MANY = [
    ("x+1", Truth("1+x")),
    ("5", Truth("5")),
    ("x+1", Truth("1+x")),
    ("6", Truth("5")),
]


def test_equal_pairs_are_judged_once_and_in_order(counted):
    with counted() as judge:
        found = judge.check_many(MANY)
        assert [v.outcome for v in found] == [UNDECIDED, RIGHT, UNDECIDED, WRONG]
        judge.check_many(MANY)
        assert len(judge._maths.asked) == 1
        judge.check("x+1", Truth("x+2"))
        assert len(judge._maths.asked) == 2
        assert judge.check_many([]) == []


def test_verdicts_depend_on_all_of_the_truth(counted):
    with counted() as judge:
        assert judge.check("2", Truth("B", options=("1", "2"))).right
        assert not judge.check("2", Truth("B", options=("2", "1"))).right
        assert not judge.check("2.0", Truth("2", kind="text")).right
        assert judge.check("2.0", Truth("2")).right


def test_the_file_serves_another_run_of_the_same_rules(counted, tmp_path, monkeypatch):
    path = tmp_path / "v.sqlite"
    pairs = [("x+1", Truth("1+x")), ("t+1", Truth("1+t"))]
    with counted(cache_path=path) as judge:
        judge.check_many(pairs)
        judge.check_many(pairs)
        assert len(judge._maths.asked) == 2
    with counted(cache_path=path) as judge:
        judge.check_many(pairs)
        assert [p for p, _ in judge._maths.asked] == ["t+1"]  # it had run out of time
    with counted(cache_path=path, policy=Policy(percent="strict")) as judge:
        judge.check_many(pairs)
        assert len(judge._maths.asked) == 2
    monkeypatch.setattr(maths, "version", lambda: "another")
    with counted(cache_path=path) as judge:
        judge.check_many(pairs)
        assert len(judge._maths.asked) == 2
    monkeypatch.setattr(verifier, "VERSION", "another")
    with counted(cache_path=path) as judge:
        judge.check_many(pairs)
        assert len(judge._maths.asked) == 2
    with sqlite3.connect(path) as file:
        assert file.execute("SELECT count(*) FROM verdicts").fetchone() == (4,)
    file.close()


def test_mathematics_is_not_asked_what_the_guard_refuses(counted):
    with counted() as judge:
        verdict = judge.check("x^{100000}+1", Truth("x+1"))
        assert verdict.outcome == UNDECIDED and not judge._maths.asked
        assert not verdict.rule.startswith("maths")


def test_the_last_judge_is_asked_for_the_undecided_once(counted):
    asked = []

    def last(questions):
        asked.extend(questions)
        return [Verdict(RIGHT, "any") if q == "why?" else None for q, _, _ in questions]

    with counted(last=last) as judge:
        found = judge.check_many(MANY, ["why?", "who?", "why?", "who?"])
        assert found[0] == found[2] == Verdict(RIGHT, "model")
        assert asked == [("why?", *MANY[0])]
        assert [v.outcome for v in found] == [RIGHT, RIGHT, RIGHT, WRONG]
        assert judge.check(*MANY[0], question="how?").outcome == UNDECIDED
        assert judge.check(*MANY[0]).outcome == UNDECIDED
        with pytest.raises(ValueError):
            judge.check_many(MANY, ["one"])


def test_a_last_judge_must_answer_all(counted):
    with counted(last=lambda questions: []) as judge, pytest.raises(ValueError):
        judge.check(*MANY[0])
