"""Weighted sum of loss terms over a global batch, reward shift and metrics.

The MPO paper's ``L = 0.8 L_p + 0.2 L_q + 1.0 L_g`` is the default of
:class:`mpo_jax.config.LossConfig`. Everything is a mean over the real pairs of the
whole global batch, so that packing, padding and accumulation change nothing.
``docs/losses.md`` has the formulas, the names and the reward shift's modes.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from mpo_jax import config as config_lib
from mpo_jax import types
from mpo_jax.losses import preference

SFT = "sft"
ORPO = "orpo"
SFT_REDUCTIONS = ("sequence", "token")

Metrics = dict[str, tuple[Array, Array]]
"""Name to float32 ``(sum, weight)``; the mean over batches is sum / sum."""

_DELTAS_OF_THIS_BATCH = frozenset({"cumulative", "ema", "batch"})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RewardShift:
    """State of BCO's reward shift; part of the train state and its checkpoints.

    Fields are ``Any`` because shardings and abstract values travel in it too.

    Attributes:
      mean: float32 scalar, running mean of rewards (nats times beta).
      count: float32 scalar, pairs seen so far; 0 before the first step. Exact up to
        2**24 pairs; above, increments are rounded by less than 1e-7 of the count.
    """

    mean: Any
    count: Any


class Totals(NamedTuple):
    """Denominators of the whole global batch, for the loss of a part of it.

    Attributes:
      pairs: scalar, real pairs.
      chosen_tokens: scalar, trained tokens of their chosen responses.
    """

    pairs: Any
    chosen_tokens: Any


def init_reward_shift() -> RewardShift:
    """Reward shift before the first step: mean 0 of 0 pairs."""
    return RewardShift(mean=jnp.zeros((), "float32"), count=jnp.zeros((), "float32"))


def delta_for(
    mode: str,
    shift: RewardShift,
    batch_mean: Float[Array, ""],
    batch_count: Num[Array, ""],
    *,
    decay: float,
) -> tuple[Float[Array, ""], RewardShift]:
    """Reward shift to use in this step, and the state after it.

    The paper says only "the moving average of previous rewards"; released systems
    read that in five ways, which are the modes:

    * ``cumulative``: mean of all rewards so far, this batch included, weighted by
      pairs. What the released code does at its batch of one pair per device.
    * ``previous``: the same mean before this batch; 0 at the first step.
    * ``ema``: ``decay * mean + (1 - decay) * batch_mean``, this batch included; the
      first step takes its batch mean.
    * ``batch``: mean of this batch. ``zero``: 0. Both leave the state as it is.

    No gradient flows through delta or the state. A batch without pairs leaves the
    state as it is; delta is then the mean so far (0 with ``batch``). A batch mean
    that is not finite is passed on: skipping such a step is the caller's decision.

    Args:
      mode: one of :data:`mpo_jax.config.DELTA_MODES`.
      shift: state before this step.
      batch_mean: float32, mean over pairs of (chosen + rejected reward) / 2.
      batch_count: real pairs in the global batch.
      decay: of ``ema``, in [0, 1).

    Returns:
      ``(delta, new_shift)``, float32.

    Raises:
      ValueError: unknown mode.
    """
    _check_choice("delta", mode, config_lib.DELTA_MODES)
    shift = jax.lax.stop_gradient(shift)
    count = jax.lax.stop_gradient(batch_count).astype(jnp.float32)
    some = count > 0
    mean = jax.lax.stop_gradient(batch_mean).astype(jnp.float32)
    mean = jnp.where(some, mean, 0.0)
    if mode == "zero":
        return jnp.zeros((), jnp.float32), shift
    if mode == "batch":
        return mean, shift
    total = shift.count + count
    share = count / jnp.where(total > 0, total, 1.0)
    if mode == "ema":
        share = jnp.where(shift.count > 0, 1.0 - decay, 1.0)
    share = jnp.where(some, share, 0.0)
    updated = RewardShift(mean=shift.mean + share * (mean - shift.mean), count=total)
    return (shift.mean if mode == "previous" else updated.mean), updated


def validate_loss_config(config: config_lib.LossConfig) -> None:
    """Check a loss configuration before anything is traced.

    Raises:
      ValueError: unknown or repeated term, weights that do not match the terms, an
        option out of range, or one that no term reads; names field, value, remedy.
    """
    terms, weights = tuple(config.terms), tuple(config.weights)
    if not terms:
        raise ValueError("loss.terms is empty; name at least one term, e.g. 'sft'")
    if len(terms) != len(weights):
        raise ValueError(
            f"loss.weights needs one weight per term: {len(terms)} terms {terms}, "
            f"{len(weights)} weights {weights}"
        )
    known = [*preference.LOSSES, *preference.ALIASES, SFT, ORPO]
    for term in terms:
        if term not in known:
            raise ValueError(
                f"loss.terms: {preference.unknown_name_message(term, known)}"
            )
    _check_repeats(terms)
    for term, weight in zip(terms, weights, strict=True):
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"loss.weights: weight of {term!r} must be finite and >= 0, "
                f"got {weight!r}"
            )
    if not any(weights):
        raise ValueError(
            f"loss.weights are all 0 for {terms}; nothing would be learnt: give a "
            "term a positive weight"
        )
    _check_choice("delta", config.delta, config_lib.DELTA_MODES)
    _check_choice("sft_reduction", config.sft_reduction, SFT_REDUCTIONS)
    if not 0 <= config.delta_decay < 1:
        raise ValueError(
            f"loss.delta_decay must be in [0, 1), got {config.delta_decay!r}"
        )
    for term in _pair_terms(terms):
        try:
            preference.check_loss_options(
                preference.canonical_name(term),
                beta=config.beta,
                label_smoothing=config.label_smoothing,
            )
        except ValueError as error:
            raise ValueError(f"loss, term {term!r}: {error}") from error
    _check_smoothing(terms, config.label_smoothing)


def needs_reference(config: config_lib.LossConfig) -> bool:
    """True where a term compares with the reference model."""
    return bool(_pair_terms(config.terms))


def needs_rejected(config: config_lib.LossConfig) -> bool:
    """True where a term reads rejected responses (all but ``sft``)."""
    return any(term != SFT for term in config.terms)


def needs_two_passes(config: config_lib.LossConfig) -> bool:
    """True where a pair's loss depends on log-probs of the batch's other pairs.

    So it is with the AOT losses, which sort the batch, and with `bco_pair` under a
    reward shift that includes the current batch. Gradient accumulation must then
    compute the log-probs of all micro-batches before the first gradient. Otherwise
    it may sum the gradients of :func:`mixed_loss` with `totals` over micro-batches.
    Terms of weight 0 are only logged and do not count.
    """
    for term, weight in zip(config.terms, config.weights, strict=True):
        name = preference.ALIASES.get(term, term)
        shifted = name == "bco_pair" and config.delta in _DELTAS_OF_THIS_BATCH
        if weight and (shifted or name in preference.BATCH_COUPLED):
            return True
    return False


def mixed_loss(
    policy: types.PairLogps,
    reference: Float[Array, "*pairs 2"] | None,
    pair_mask: Bool[Array, "*pairs"],
    shift: RewardShift,
    *,
    config: config_lib.LossConfig,
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], tuple[Metrics, RewardShift]]:
    """Weighted sum of the configured terms, averaged over the real pairs.

    Differentiable with respect to ``policy.chosen`` and ``policy.rejected``; the
    reference and delta are constants. Padding pairs take part in nothing.

    Where a mix lists both ``sigmoid`` and ``cdpo`` (a row of the paper's ablation),
    ``sigmoid`` is plain DPO and only ``cdpo`` is smoothed.

    Metrics, as (sum, weight): ``loss``, ``loss/<term>`` (unweighted, per pair or per
    token), ``rewards/{chosen,rejected,margins,accuracies}`` (ties do not count as
    accurate), ``logps/{chosen,rejected}`` (nats per response),
    ``logps/{chosen,rejected}_per_token`` (nats, mean over tokens), ``logps/accuracies``
    (chosen likelier per token than rejected, no reference involved), ``delta`` (where
    `bco_pair` is a term), and per batch ``pairs``, ``chosen_tokens``,
    ``rejected_tokens``. Rewards are ``beta * (policy - reference)``, independent of
    the number of terms. Without a reference there are no rewards; where also no term
    reads rejected responses, nothing is reported of them.

    Args:
      policy: summed log-probs and token counts, any leading shape, e.g. ``[B, Q]``
        or ``[A, B, Q]`` over accumulation steps: the whole global batch.
      reference: float ``[..., 2]``, reference log-probs (chosen, rejected), nats.
      pair_mask: bool, True at real pairs.
      shift: reward shift before this step. For held-out pairs, pass the config with
        ``delta="previous"`` and drop the new shift: the trained shift is then used.
      config: terms, weights and options.
      totals: where the arrays hold only a part of the global batch, the denominators
        of the whole; losses and gradients of the parts then sum to the whole's. Pass
        every part the same `shift`; its update is ``delta_for`` of the summed reward
        metrics. Refused where :func:`needs_two_passes`.

    Returns:
      ``(loss, (metrics, new_shift))``, the loss a float32 scalar.

    Raises:
      ValueError: a wrong config (:func:`validate_loss_config`), no reference though
        a term needs one, or `totals` with terms that need the whole batch.
    """
    validate_loss_config(config)
    if reference is None and needs_reference(config):
        raise ValueError(
            f"loss.terms {_pair_terms(config.terms)} need reference log-probs, got "
            "None; set reference.mode or use reference-free terms (sft, orpo)"
        )
    if totals is not None and needs_two_passes(config):
        raise ValueError(
            f"loss.terms {tuple(config.terms)} with delta {config.delta!r} couple the "
            "pairs of a batch: pass the whole global batch, without totals"
        )
    batch = _Batch(policy, reference, pair_mask)
    if totals is None:
        totals = Totals(batch.pairs, batch.chosen_tokens)
    pairs_total = jnp.maximum(totals.pairs.astype(jnp.float32), 1.0)
    tokens_total = jnp.maximum(totals.chosen_tokens.astype(jnp.float32), 1.0)

    metrics: Metrics = {}
    delta = jnp.zeros((), jnp.float32)
    if "bco_pair" in config.terms:
        rewards = config.beta * (batch.chosen_ratio + batch.rejected_ratio) / 2
        delta, shift = delta_for(
            config.delta,
            shift,
            _masked_sum(rewards, pair_mask) / jnp.maximum(batch.pairs, 1.0),
            batch.pairs,
            decay=config.delta_decay,
        )
        metrics["delta"] = (delta, jnp.ones((), jnp.float32))

    loss = jnp.zeros((), jnp.float32)
    for term, weight in zip(config.terms, config.weights, strict=True):
        if term == SFT and config.sft_reduction == "token":
            total = -_masked_sum(batch.chosen, pair_mask)
            metrics[f"loss/{term}"] = (total, batch.chosen_tokens)
            loss += weight * (total / tokens_total)
        else:
            losses = _term_losses(term, batch, config=config, delta=delta)
            total = _masked_sum(losses, pair_mask)
            metrics[f"loss/{term}"] = (total, batch.pairs)
            loss += weight * (total / pairs_total)
    metrics["loss"] = (loss * totals.pairs.astype(jnp.float32), batch.pairs)
    metrics |= _metrics(batch, config=config)
    return loss, (jax.lax.stop_gradient(metrics), shift)


class _Batch:
    """Log-probs as float32 with padding set to 0, and their counts."""

    def __init__(
        self,
        policy: types.PairLogps,
        reference: Array | None,
        mask: Array,
    ):
        def clean(x: Array) -> Array:
            return jnp.where(mask, x.astype(jnp.float32), 0.0)

        self.mask = mask
        self.chosen, self.rejected = clean(policy.chosen), clean(policy.rejected)
        self.chosen_lengths = clean(policy.chosen_tokens)
        self.rejected_lengths = clean(policy.rejected_tokens)
        self.pairs = jnp.sum(mask, dtype=jnp.float32)
        self.chosen_tokens = jnp.sum(self.chosen_lengths)
        self.rejected_tokens = jnp.sum(self.rejected_lengths)
        self.has_reference = reference is not None
        if reference is not None:
            constant = jnp.asarray(jax.lax.stop_gradient(reference))
            self.reference_chosen = clean(constant[..., 0])
            self.reference_rejected = clean(constant[..., 1])
            self.chosen_ratio = self.chosen - self.reference_chosen
            self.rejected_ratio = self.rejected - self.reference_rejected


def _term_losses(
    term: str, batch: _Batch, *, config: config_lib.LossConfig, delta: Array
) -> Array:
    """Losses of one term per pair, unweighted."""
    if term == SFT:
        return preference.sft_loss(batch.chosen, batch.chosen_lengths)
    if term == ORPO:
        return preference.orpo_loss(
            preference.mean_logp(batch.chosen, batch.chosen_lengths),
            preference.mean_logp(batch.rejected, batch.rejected_lengths),
        )
    plain = term == "sigmoid" and "cdpo" in config.terms
    losses, _, _ = preference.pair_loss(
        term,
        batch.chosen,
        batch.rejected,
        batch.reference_chosen,
        batch.reference_rejected,
        beta=config.beta,
        label_smoothing=0.0 if plain else config.label_smoothing,
        delta=delta,
        mask=batch.mask,
    )
    return losses


def _metrics(batch: _Batch, *, config: config_lib.LossConfig) -> Metrics:
    """Metrics that do not depend on the terms' losses."""
    one = jnp.ones((), jnp.float32)
    metrics: Metrics = {
        "pairs": (batch.pairs, one),
        "chosen_tokens": (batch.chosen_tokens, one),
        "logps/chosen": (jnp.sum(batch.chosen), batch.pairs),
        "logps/chosen_per_token": (jnp.sum(batch.chosen), batch.chosen_tokens),
    }
    if batch.has_reference or needs_rejected(config):
        rejected = jnp.sum(batch.rejected)
        metrics |= {
            "rejected_tokens": (batch.rejected_tokens, one),
            "logps/rejected": (rejected, batch.pairs),
            "logps/rejected_per_token": (rejected, batch.rejected_tokens),
            "logps/accuracies": (jnp.sum(_likelier(batch)), batch.pairs),
        }
    if batch.has_reference:
        chosen = config.beta * batch.chosen_ratio
        rejected = config.beta * batch.rejected_ratio
        accurate = (chosen > rejected).astype(jnp.float32)
        metrics |= {
            "rewards/chosen": (jnp.sum(chosen), batch.pairs),
            "rewards/rejected": (jnp.sum(rejected), batch.pairs),
            "rewards/margins": (jnp.sum(chosen - rejected), batch.pairs),
            "rewards/accuracies": (jnp.sum(accurate), batch.pairs),
        }
    return metrics


def _likelier(batch: _Batch) -> Array:
    """1 where the chosen response has the higher mean log-prob per token."""
    chosen = preference.mean_logp(batch.chosen, batch.chosen_lengths)
    rejected = preference.mean_logp(batch.rejected, batch.rejected_lengths)
    return (batch.mask & (chosen > rejected)).astype(jnp.float32)


def _masked_sum(values: Array, mask: Array) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0))


def _pair_terms(terms: tuple[str, ...]) -> tuple[str, ...]:
    """Terms that compare policy and reference on pairs."""
    return tuple(term for term in terms if term not in (SFT, ORPO))


def _check_choice(field: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        nearest = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ValueError(
            f"loss.{field} must be one of {', '.join(choices)}, got {value!r}{hint}"
        )


def _check_repeats(terms: tuple[str, ...]) -> None:
    """Raise where two terms are the same loss (`sigmoid` beside `cdpo` is not)."""
    seen: dict[str, str] = {}
    for term in terms:
        name = "cdpo" if term == "cdpo" else preference.ALIASES.get(term, term)
        if name in seen:
            raise ValueError(
                f"loss.terms: {seen[name]!r} and {term!r} are the same loss; keep one "
                "and add their weights"
            )
        seen[name] = term


def _check_smoothing(terms: tuple[str, ...], smoothing: float) -> None:
    """Raise where smoothing is set but unread, or needed but not set."""
    if "cdpo" in terms and smoothing == 0:
        raise ValueError(
            "loss.terms: 'cdpo' with label_smoothing 0 is 'sigmoid'; set "
            "loss.label_smoothing above 0 or name 'sigmoid'"
        )
    read = any(
        preference.ALIASES.get(term, term) in preference.SMOOTHED for term in terms
    )
    if smoothing and not read:
        raise ValueError(
            f"loss.label_smoothing is {smoothing!r}, but no term of {terms} reads it; "
            f"set it to 0 (read by: {', '.join(sorted(preference.SMOOTHED))})"
        )
