"""Weighted sum of loss terms over a global batch, and metrics.

The MPO paper's ``L = 0.8 L_p + 0.2 L_q + 1.0 L_g`` is the default of
:class:`mpo_jax.config.LossConfig`. Everything is a mean over the real pairs of the
whole global batch, so that packing, padding and accumulation change nothing.
``docs/losses.md`` has the formulas, the names and the reward shift's modes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mpo_jax import config as config_lib
from mpo_jax import fields, loss_terms, types
from mpo_jax.losses import preference, reward_shift

Metrics = dict[str, tuple[Array, Array]]
"""Name to float32 ``(sum, weight)``; the mean over batches is sum / sum."""


class Totals(NamedTuple):
    """Denominators of the whole global batch, for the loss of a part of it.

    Attributes:
      pairs: scalar, real pairs.
      chosen_tokens: scalar, trained tokens of their chosen responses.
    """

    pairs: Any
    chosen_tokens: Any


def needs_reference(config: config_lib.LossConfig) -> bool:
    """True where a term compares with the reference model."""
    return bool(loss_terms.with_reference(config.terms))


def needs_rejected(config: config_lib.LossConfig) -> bool:
    """True where a term reads rejected responses (all but ``sft``)."""
    return any(term != loss_terms.SFT_TERM for term in config.terms)


def needs_two_passes(config: config_lib.LossConfig) -> bool:
    """True where a pair's loss depends on log-probs of the batch's other pairs.

    So it is with the AOT losses, which sort the batch, and with `bco_pair` under a
    reward shift that includes the current batch. Gradient accumulation must then
    compute the log-probs of all micro-batches before the first gradient. Otherwise
    it may sum the gradients of :func:`mixed_loss` with `totals` over micro-batches.
    Terms of weight 0 are only logged and do not count.
    """
    for term, weight in zip(config.terms, config.weights, strict=True):
        name = loss_terms.canonical(term)
        coupled = name in loss_terms.BATCH_COUPLED
        if name == "bco_pair":
            coupled = config.delta in reward_shift.INCLUDES_THIS_BATCH
        if weight and coupled:
            return True
    return False


def mixed_loss(
    policy: types.PairLogps,
    reference: Float[Array, "*pairs 2"] | None,
    pair_mask: Bool[Array, "*pairs"],
    shift: reward_shift.RewardShift,
    *,
    config: config_lib.LossConfig,
    totals: Totals | None = None,
) -> tuple[Float[Array, ""], tuple[Metrics, reward_shift.RewardShift]]:
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
        every part the same `shift`; its update is ``reward_shift.delta_for`` of the
        summed reward metrics. Refused where :func:`needs_two_passes`.

    Returns:
      ``(loss, (metrics, new_shift))``, the loss a float32 scalar.

    Raises:
      ValueError: no reference though a term needs one, `totals` with terms that need
        the whole batch, a name or an option that cannot be computed with. Whether the
        config makes sense is checked by ``LossConfig.validate``.
    """
    if reference is None and needs_reference(config):
        compared = loss_terms.with_reference(config.terms)
        raise ValueError(
            f"loss.terms {compared} need reference log-probs, got None; set "
            "reference.mode or use reference-free terms (sft, orpo)"
        )
    if totals is not None and needs_two_passes(config):
        raise ValueError(
            f"loss.terms {tuple(config.terms)} with delta {config.delta!r} couple the "
            "pairs of a batch: pass the whole global batch, without totals"
        )
    batch = _batch(policy, reference, pair_mask)
    if totals is None:
        totals = Totals(batch.pairs, batch.chosen_tokens)
    metrics: Metrics = {}
    delta = jnp.zeros((), jnp.float32)
    if "bco_pair" in config.terms:
        delta, shift = _delta(batch, shift, config=config)
        metrics["delta"] = (delta, jnp.ones((), jnp.float32))

    loss = jnp.zeros((), jnp.float32)
    for term, weight in zip(config.terms, config.weights, strict=True):
        if term == loss_terms.SFT_TERM and _is_over_tokens(config.sft_reduction):
            losses = -batch.chosen
            count, whole = batch.chosen_tokens, totals.chosen_tokens
        else:
            losses = _term_losses(term, batch, config=config, delta=delta)
            count, whole = batch.pairs, totals.pairs
        total = _masked_sum(losses, pair_mask)
        metrics[f"loss/{term}"] = (total, count)
        loss += weight * (total / jnp.maximum(whole.astype(jnp.float32), 1.0))
    metrics["loss"] = (loss * totals.pairs.astype(jnp.float32), batch.pairs)
    metrics |= _metrics(batch, config=config)
    return loss, (jax.lax.stop_gradient(metrics), shift)


class _Batch(NamedTuple):
    """Log-probs as float32 with padding set to 0, and what there is of them.

    Attributes:
      mask: bool, True at real pairs.
      chosen, rejected: log-probs of responses, nats.
      chosen_lengths, rejected_lengths: trained tokens of responses.
      pairs, chosen_tokens, rejected_tokens: scalars, counts of the batch.
      reference: log-probs (chosen, rejected) of the reference; None without one.
    """

    mask: Array
    chosen: Array
    rejected: Array
    chosen_lengths: Array
    rejected_lengths: Array
    pairs: Array
    chosen_tokens: Array
    rejected_tokens: Array
    reference: tuple[Array, Array] | None

    def compared(
        self, *, beta: float, label_smoothing: float = 0.0, delta: float | Array = 0.0
    ) -> preference.PairInputs:
        """Policy against reference, as a loss with these options reads it."""
        assert self.reference is not None  # mixed_loss refuses a missing one
        return preference.pair_inputs(
            self.chosen,
            self.rejected,
            *self.reference,
            beta=beta,
            label_smoothing=label_smoothing,
            delta=delta,
            mask=self.mask,
        )


def _batch(policy: types.PairLogps, reference: Array | None, mask: Array) -> _Batch:

    def clean(x: Array) -> Array:
        return jnp.where(mask, x.astype(jnp.float32), 0.0)

    sides = None
    if reference is not None:
        constant = jnp.asarray(jax.lax.stop_gradient(reference))
        sides = (clean(constant[..., 0]), clean(constant[..., 1]))
    chosen_lengths = clean(policy.chosen_tokens)
    rejected_lengths = clean(policy.rejected_tokens)
    return _Batch(
        mask=mask,
        chosen=clean(policy.chosen),
        rejected=clean(policy.rejected),
        chosen_lengths=chosen_lengths,
        rejected_lengths=rejected_lengths,
        pairs=jnp.sum(mask, dtype=jnp.float32),
        chosen_tokens=jnp.sum(chosen_lengths),
        rejected_tokens=jnp.sum(rejected_lengths),
        reference=sides,
    )


def _delta(
    batch: _Batch, shift: reward_shift.RewardShift, *, config: config_lib.LossConfig
) -> tuple[Array, reward_shift.RewardShift]:
    """Reward shift of this batch, and its state after it."""
    pairs = batch.compared(beta=config.beta)
    rewards = config.beta * (pairs.chosen + pairs.rejected) / 2
    return reward_shift.delta_for(
        config.delta,
        shift,
        _masked_sum(rewards, batch.mask) / jnp.maximum(batch.pairs, 1.0),
        batch.pairs,
        decay=config.delta_decay,
    )


def _is_over_tokens(reduction: str) -> bool:
    """Is SFT a mean over tokens, not over responses?"""
    fields.choice("loss.sft_reduction", reduction, config_lib.SFT_REDUCTIONS)
    return reduction == "token"


def _term_losses(
    term: str, batch: _Batch, *, config: config_lib.LossConfig, delta: Array
) -> Array:
    """Losses of one term per pair, unweighted."""
    if term == loss_terms.SFT_TERM:
        return preference.sft_loss(batch.chosen, batch.chosen_lengths)
    if term == loss_terms.ORPO_TERM:
        return preference.orpo_loss(
            preference.mean_logp(batch.chosen, batch.chosen_lengths),
            preference.mean_logp(batch.rejected, batch.rejected_lengths),
        )
    beside_cdpo = term == "sigmoid" and "cdpo" in config.terms
    pairs = batch.compared(
        beta=config.beta,
        label_smoothing=0.0 if beside_cdpo else config.label_smoothing,
        delta=delta,
    )
    return preference.pair_losses(term, pairs)


def _metrics(batch: _Batch, *, config: config_lib.LossConfig) -> Metrics:
    """Metrics that do not depend on the terms' losses."""
    one = jnp.ones((), jnp.float32)
    metrics: Metrics = {
        "pairs": (batch.pairs, one),
        "chosen_tokens": (batch.chosen_tokens, one),
        "logps/chosen": (jnp.sum(batch.chosen), batch.pairs),
        "logps/chosen_per_token": (jnp.sum(batch.chosen), batch.chosen_tokens),
    }
    if batch.reference is not None or needs_rejected(config):
        rejected = jnp.sum(batch.rejected)
        metrics |= {
            "rejected_tokens": (batch.rejected_tokens, one),
            "logps/rejected": (rejected, batch.pairs),
            "logps/rejected_per_token": (rejected, batch.rejected_tokens),
            "logps/accuracies": (jnp.sum(_likelier(batch)), batch.pairs),
        }
    if batch.reference is not None:
        pairs = batch.compared(beta=config.beta)
        chosen, rejected = pairs.chosen_rewards, pairs.rejected_rewards
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
