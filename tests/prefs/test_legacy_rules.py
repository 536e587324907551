"""The released rules with their errors, and beside each what the default says."""

from __future__ import annotations

import pytest

from mpo_jax.evals import edit_distance, text_scores
from mpo_jax.prefs import legacy, pairs
from mpo_jax.prefs.questions import Question
from mpo_jax.prefs.rollouts import Group, Rollout
from mpo_jax.verify import formats, ladder
from mpo_jax.verify.verdict import Truth, Verdict

DEFAULT = "questions"


def tools(*, maths: bool = False, latex: bool = False) -> legacy.Tools:
    return legacy.Tools(
        *(text_scores.evalai, edit_distance.levenshtein),
        *(lambda *_: maths, lambda *_: latex),
    )


def right(prediction, truth, source=DEFAULT, *, maths=False) -> bool:
    modes = legacy.modes_of(source)
    return legacy.check(prediction, truth, modes, tools(maths=maths)).right


def default(prediction, truth) -> str:
    verdict = ladder.decide(prediction, Truth(truth))
    return "maths" if verdict is None else verdict.outcome


@pytest.mark.parametrize(
    "source, modes",
    [
        ("chartqa_trainval", ("relaxed_accuracy",)),
        ("docvqa_train_56k", ("anls",)),
        ("infographics", ("anls",)),
        (
            "geometry3k",
            ("math_verify_score", "vqa_score", "relaxed_accuracy", "mc_score"),
        ),
        (
            "mavis_function_log",
            (
                *("math_verify_score", "vqa_score", "mc_score", "math_score"),
                "latex_score",
            ),
        ),
        (
            "mavis_geometry",
            ("math_verify_score", "vqa_score", "relaxed_accuracy", "mc_score"),
        ),
        ("Geometry", ("math_verify_score", "vqa_score", "mc_score", "math_score")),
    ],
)
def test_rules_go_by_the_name_of_the_file(source, modes):
    assert legacy.modes_of(source) == modes


@pytest.mark.parametrize(
    "prediction, truth, source, wanted",
    [
        ("B. cat", "B", DEFAULT, True),
        ("(B) cat", "B", DEFAULT, True),
        ("b", "B", DEFAULT, True),
        ("B) cat", "B", DEFAULT, False),
        ("cat", "B", DEFAULT, False),
        ("12.9", "12", DEFAULT, False),
        ("5.004", "5", DEFAULT, True),
        ("5 cm", "5", DEFAULT, True),
        ("30,594", "30594", DEFAULT, True),
        ("two", "2", DEFAULT, True),
        ("the dog", "dog", DEFAULT, True),
        ("None", "0", DEFAULT, True),
        ("A.", "A", DEFAULT, True),
        ("104", "100", "chartqa", True),
        ("106", "100", "chartqa", False),
        ("2011", "2012", "chartqa", False),
        ("0.0", "0", "chartqa", False),
        ("50", "50%", "chartqa", True),
        ("same", "Same", "docvqa", True),
    ],
)
def test_boundary_cases(prediction, truth, source, wanted):
    assert right(prediction, truth, source) == wanted


# The error, and what the default says of the same answer.
@pytest.mark.parametrize(
    "prediction, truth, source, released, ours",
    [
        ("5.9", "5", DEFAULT, True, "wrong"),
        ("0.5", "0", DEFAULT, True, "wrong"),
        ("19 march 2001", "19 March 2002", "docvqa", False, "wrong"),
        ("12 main street", "12 Main  Street", "docvqa", False, "right"),
        ("xyz", "12345", "docvqa", True, "undecided"),
        ("104", "100", "geometry3k", True, "wrong"),
        ("104", "100", DEFAULT, False, "wrong"),
        ("None", "0", DEFAULT, True, "undecided"),
    ],
)
def test_errors_of_verdicts(prediction, truth, source, released, ours):
    assert right(prediction, truth, source) == released
    assert default(prediction, truth) == ours


def test_what_normalises_to_nothing_wipes_a_hit():
    assert right("x+1", "1+x", maths=True)
    assert not right("(a)", "{a}", maths=True)  # "a" is an article
    assert not right("x+1", "1+x", maths=False)


@pytest.mark.parametrize(
    "prediction, truth, source, asked",
    [
        (r"\frac{1}{2}", "0.5", "mavis", True),
        ("0.5", r"\frac{1}{2}", "mavis", True),
        ("3/6", "x", "mavis", True),
        ("a/b", "x", "mavis", False),
        ("3/b", "x", "mavis", False),
        (r"\frac{1}{2}", "0.5", "Mavis", False),
        (r"\frac{1}{2}", "0.5", DEFAULT, False),
    ],
)
def test_latex_counts_in_mavis_alone(prediction, truth, source, asked):
    modes = legacy.modes_of(source)
    found = legacy.check(prediction, truth, modes, tools(latex=True))
    assert found.right == asked and (found.rule == legacy.LATEX) == asked
    assert not right(prediction, truth, source)


@pytest.mark.parametrize(
    "form, response, wanted, ours",
    [
        ("en", "a\nb\nFinal answer: 5", "5", "5"),
        ("en", "a\nFinal answer: 5", None, "5"),  # one line feed is too few
        ("en", "\n\nFinal answer: 5", None, "5"),  # no rationale
        ("en", "a\n\nFinal answer: 5\nsince", None, "5"),
        ("en", "a\n\n答案: 5", "5", "5"),
        ("en", "a\n\nfive", None, None),
        ("en", "Final answer: 1\nFinal answer: 2\nno\nFinal answer: 3", None, "3"),
        ("visual", "a\n\nFinal Answer: 5", "5", "5"),
        (
            "en_v2",
            "it is five as one can well see",
            "it is five as one can well see",
            None,
        ),
        ("en_v2", "five", None, None),
        (
            "en_v2",
            "so it must be \\boxed{\\frac{1}{2}}",
            "\\frac{1}{2}",
            "\\frac{1}{2}",
        ),
        ("en_r1", "<think>short</think>so \\boxed{5}", None, "5"),
        ("en_r1", f"<think>{'long ' * 9}</think>so \\boxed{{5}}", "5", "5"),
        ("direct", "5\n", "5", "5"),
    ],
)
def test_errors_of_parsing(form, response, wanted, ours):
    assert legacy.parse(response, form).prediction == wanted
    name = "en" if form == "visual" else form
    assert formats.FORMATS[name].parse(response).prediction == ours


def test_a_positive_no_is_entailed_by_a_missing_answer():
    question = Question(1, "q", (), Truth("no"), "s")
    good = Rollout(question, "en", 0, "no, it is not")
    bad = Rollout(question, "en", 1, "who knows")
    judged = [
        pairs.Judged(good, formats.Parsed("no"), Verdict("right", "yes_no")),
        pairs.Judged(
            bad, formats.Parsed(None, "no_answer"), Verdict("undecided", "no_answer")
        ),
    ]
    group = Group("q", (good, bad))
    assert len(pairs.make(group, judged, pairs.Rules()).pairs) == 1
    released = pairs.Rules(entails=pairs.entailed_anyhow, none_is_text=True)
    found = pairs.make(group, judged, released)
    assert found.pairs == () and found.skipped == {"entailed": 1}
    assert pairs.entailed_anyhow("5", "15") and not pairs.entailed("5", "15")


@pytest.mark.parametrize(
    "response, prediction, truth, wanted",
    [
        ("a\nFinal answer: 15", "15", "5", "a\nFinal answer: 5"),
        ("15\nFinal answer: 15", "15", "5", "15\nFinal answer: 5"),
        ("a\nFinal answer:** A. cat", "** A. cat", "A", "a\nFinal answer:A"),
        ("a\nFinal answer: ** A. cat", "** A. cat", "A", "a\nFinal answer:A"),
        ("a\nFinal answer: Bob", "Bob", "B", "a\nFinal answer: Bob"),
        ("a\nFinal answer: 1,500", "1,500", "1500", "a\nFinal answer: 1500"),
        ("a\n**Final answer: 5**", "5**", "5", "a\nFinal answer: 5"),
        ("a\nFinal answer: 8", "8", "5", "a\nFinal answer: 8"),
        ("Final answer: 15", "15", "5", None),
    ],
)
def test_answers_are_rewritten_wrong_ones_too(response, prediction, truth, wanted):
    assert legacy.fixed(response, prediction, truth) == wanted
