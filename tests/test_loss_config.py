"""Which mixtures of loss terms make sense, and that ``losses`` knows the same terms."""

from __future__ import annotations

import math

import pytest

from mpo_jax import config, loss_terms
from mpo_jax.losses import preference


def _loss(**options) -> config.LossConfig:
    if "terms" in options:
        options.setdefault("weights", (1.0,) * len(options["terms"]))
    return config.LossConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"terms": ()}, "loss.terms is empty"),
        ({"terms": ("sigmoid",), "weights": (1.0, 2.0)}, "1 terms .* 2 weights"),
        ({"terms": ("sigmoyd",)}, "loss.terms: unknown loss 'sigmoyd'; did you mean"),
        ({"terms": ("stf",)}, "did you mean 'sft'"),
        ({"terms": ("sft", "sft")}, "'sft' and 'sft' are the same loss"),
        ({"terms": ("hinge", "rso")}, "'hinge' and 'rso' are the same loss"),
        ({"weights": (1.0, -0.1, 1.0)}, "weight of 'bco_pair' must be finite and >= 0"),
        ({"weights": (1.0, math.inf, 1.0)}, "weight of 'bco_pair' must be finite"),
        ({"weights": (0.0, 0.0, 0.0)}, "all 0"),
        ({"delta": "cumulativ"}, "loss.delta='cumulativ': .*mean 'cumulative'"),
        ({"delta_decay": 1.0}, "loss.delta_decay must be in"),
        ({"sft_reduction": "tokens"}, "loss.sft_reduction='tokens': .*mean 'token'"),
        ({"beta": -1.0}, "loss.beta=-1.0 must be positive and finite"),
        ({"beta": math.inf}, "loss.beta=inf must be positive and finite"),
        (
            {"label_smoothing": 0.5},
            r"loss.label_smoothing must be in \[0, 0.5\), got 0.5",
        ),
        ({"terms": ("exo_pair",)}, "'exo_pair' is infinite at label_smoothing 0"),
        ({"terms": ("robust",), "label_smoothing": 0.6}, "got 0.6"),
        ({"terms": ("cdpo",)}, "'cdpo' with label_smoothing 0 is 'sigmoid'"),
        ({"terms": ("hinge",), "label_smoothing": 0.1}, "no term of .* reads it"),
        ({"terms": ("sft",), "label_smoothing": 0.1}, "no term of .* reads it"),
    ],
)
def test_mistakes(options, message):
    loss = _loss(**options)
    with pytest.raises(ValueError, match=message):
        loss.validate()
    cfg = config.RunConfig(loss=loss)
    cfg.model.path, cfg.data.meta = "model", "meta.json"
    with pytest.raises(ValueError, match=message):
        cfg.validate()


@pytest.mark.parametrize("term", loss_terms.TERMS)
def test_every_term_is_accepted(term):
    smoothed = loss_terms.canonical(term) in loss_terms.SMOOTHED
    _loss(terms=(term,), label_smoothing=0.1 if smoothed else 0.0).validate()


def test_the_terms_are_those_that_are_computed():
    assert loss_terms.PAIR_TERMS == tuple(preference.LOSSES)
    assert set(loss_terms.ALIASES.values()) <= set(loss_terms.PAIR_TERMS)
    for terms in (loss_terms.SMOOTHED, loss_terms.BATCH_COUPLED):
        assert terms <= set(loss_terms.PAIR_TERMS)
    assert len(set(loss_terms.TERMS)) == len(loss_terms.TERMS) == 14


def test_terms_that_compare_with_a_reference():
    assert loss_terms.with_reference(("sft", "orpo")) == ()
    assert loss_terms.with_reference(("sigmoid", "sft", "rso")) == ("sigmoid", "rso")
    pairs = (*loss_terms.PAIR_TERMS, *loss_terms.ALIASES)
    assert loss_terms.with_reference(loss_terms.TERMS) == pairs
