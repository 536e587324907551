"""Bounds of fields and what is said about names that do not exist."""

from __future__ import annotations

import dataclasses
import math
import pickle

import pytest

from mpo_jax import fields


@pytest.mark.parametrize(
    ("bounds", "good", "bad", "message"),
    [
        ({"required": "name one"}, "x", "", "f is empty; name one"),
        ({"choices": ("a", "b")}, "a", "c", r"f='c': use one of \('a', 'b'\)"),
        ({"choices": ("aaa",)}, "aaa", "aab", "; did you mean 'aaa'\\?$"),
        ({"choices": ("a", "b")}, ("a", "b"), ("a", "c"), "f='c': use one of"),
        ({"each_once": True}, ("a", "b"), (), r"f=\(\): name one or more, each once"),
        ({"each_once": True}, ("a",), ("a", "a"), "name one or more, each once"),
        ({"within": (0, 1)}, 1.0, 1.01, r"f=1.01 must lie in \[0, 1\]"),
        ({"within": (0, 1)}, 0.0, -0.01, r"f=-0.01 must lie in \[0, 1\]"),
        ({"within": (0, 1)}, 0.5, math.nan, r"f=nan must lie in \[0, 1\]"),
        ({"half_open": (0, 1)}, 0.0, 1.0, r"f must be in \[0, 1\), got 1.0"),
        ({"half_open": (0, 1)}, 0.99, -0.1, r"f must be in \[0, 1\), got -0.1"),
        ({"half_open": (0, 1)}, 0.5, math.nan, r"f must be in \[0, 1\), got nan"),
        ({"at_least": 1}, 1, 0, "f=0 must be at least 1, and finite"),
        ({"at_least": 0}, 0.0, math.inf, "f=inf must be at least 0, and finite"),
        ({"at_least": 0}, (0, 1), (0, -1), "f=-1 must be at least 0, and finite"),
        ({"positive": True}, 1e-9, 0.0, "f=0.0 must be positive and finite"),
        ({"positive": True}, 1.0, math.inf, "f=inf must be positive and finite"),
        (
            {"at_least": 1, "special": {-1: "the rest"}},
            -1,
            0,
            "f=0 must be at least 1, or -1 for the rest",
        ),
    ],
)
def test_bounds(bounds, good, bad, message):
    fields.Bounds(**bounds).check("f", good)
    with pytest.raises(ValueError, match=message):
        fields.Bounds(**bounds).check("f", bad)


@dataclasses.dataclass
class Inner:
    size: int = fields.field(3, at_least=1)
    free: str = ""


@dataclasses.dataclass
class Outer:
    rate: float = fields.field(0.5, within=(0, 1))
    inner: Inner = dataclasses.field(default_factory=Inner)


def test_a_field_with_bounds_is_a_field_as_any_other():
    assert Outer() == Outer(0.5, Inner(3, ""))
    assert Inner.size == 3
    assert dataclasses.asdict(Outer()) == {
        "rate": 0.5,
        "inner": {"size": 3, "free": ""},
    }
    assert pickle.loads(pickle.dumps(Outer(0.25))) == Outer(0.25)
    with pytest.raises(TypeError, match="atleast"):
        fields.field(3, atleast=1)


def test_check_walks_the_tree():
    fields.check(Outer(1, Inner(7)))
    with pytest.raises(ValueError, match="^inner.size=0 must be at least 1"):
        fields.check(Outer(inner=Inner(0)))
    with pytest.raises(ValueError, match="^run.rate=2.0 must lie in"):
        fields.check(Outer(2.0), "run.")
    with pytest.raises(ValueError, match="^run.inner.size='3': expected int"):
        fields.check(Outer(inner=Inner("3")), "run.")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^inner=None: expected a config.Inner"):
        fields.check(Outer(inner=None))  # type: ignore[arg-type]


def test_types_are_checked_before_bounds():
    """No comparison of a string with a number comes first."""
    with pytest.raises(ValueError, match="^inner.size=None: expected int"):
        fields.check(Outer(7.0, Inner(None)))  # type: ignore[arg-type]


def test_nearest():
    known = ("sigmoid", "hinge", "Hermes-2")
    assert fields.nearest("sigmoyd", known) == ["sigmoid"]
    assert fields.nearest("hermes-2", known, ignore_case=True) == ["Hermes-2"]
    assert fields.nearest("HERMES-3", known) == []
    assert fields.nearest("zzz", known, n=3, cutoff=0.1, ignore_case=True) == []
    assert fields.nearest("ab", ("aa", "ac", "b"), n=2, cutoff=0.5) == ["b", "ac"]


def test_what_a_misspelt_name_is_answered_with():
    assert fields.did_you_mean([]) == ""
    assert fields.did_you_mean(["a"]) == "; did you mean a?"
    assert fields.did_you_mean(map(repr, "ab")) == "; did you mean 'a' or 'b'?"
    assert fields.no_such("loss", "hing", ("hinge", "ipo")) == (
        "unknown loss 'hing'; did you mean 'hinge'? (known: hinge, ipo)"
    )
    assert fields.no_such("loss", "z", ("ipo",)) == "unknown loss 'z' (known: ipo)"


def test_all_problems_at_once_and_what_is_no_field():
    cfg = Outer(7.0, Inner(0))
    assert fields.problems(Outer()) == []
    assert fields.problems(cfg, "run.") == [
        "run.rate=7.0 must lie in [0, 1]",
        "run.inner.size=0 must be at least 1, and finite",
    ]
    cfg.inner.sise = 3  # type: ignore[attr-defined]
    (told,) = fields.problems(cfg, "run.")  # bounds are looked at when types are right
    assert "no field 'run.inner.sise'; did you mean run.inner.size" in told
    with pytest.raises(ValueError, match="no field 'inner.sise'"):
        fields.check(cfg)


def test_a_tuple_that_is_empty_by_default_holds_texts():
    @dataclasses.dataclass
    class Files:
        names: tuple[str, ...] = ()

    fields.check(Files())
    fields.check(Files(("a", "b")))
    with pytest.raises(ValueError, match="expected a tuple of str"):
        fields.check(Files((1,)))  # type: ignore[arg-type]
