"""Preference losses of one pair, as pure functions of summed log-probs.

Every loss of the MPO paper's comparison (arXiv 2411.10442, table of PO algorithms)
is here under the name that TRL gives it; values and gradients agree with TRL 0.10.1.
``docs/losses.md`` has all formulas on one page. All log-probs are in nats, all
arithmetic is float32, rewards are ``beta * (policy - reference)``.

With ``c = log pi(chosen)/pi_ref(chosen)``, ``r = log pi(rejected)/pi_ref(rejected)``
and ``x = beta * (c - r)``, all losses but the two AOT ones look at one pair only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Num

from mpo_jax import fields, loss_terms

_MAX_MEAN_LOGP = -1e-6
"""ORPO: log-odds diverge at probability 1, so mean log-probs stop short of 0."""


class PairInputs(NamedTuple):
    """What a loss of the table :data:`LOSSES` gets; all arrays have one shape.

    Attributes:
      chosen, rejected: float32, policy minus reference log-prob (nats), 0 at padding.
      policy_margin, reference_margin: float32, chosen minus rejected log-prob of one
        model; only the AOT losses need them apart.
      mask: bool, True at real pairs.
      beta: strength of the pull towards the reference.
      label_smoothing: assumed share of flipped labels.
      delta: reward shift of BCO, scalar.
    """

    chosen: Array
    rejected: Array
    policy_margin: Array
    reference_margin: Array
    mask: Array
    beta: float
    label_smoothing: float
    delta: float | Array

    @property
    def chosen_rewards(self) -> Array:
        """Implicit rewards of chosen responses."""
        return self.beta * self.chosen

    @property
    def rejected_rewards(self) -> Array:
        """Implicit rewards of rejected responses."""
        return self.beta * self.rejected


def sigmoid(pairs: PairInputs) -> Array:
    """DPO: ``-log s(x)``; cDPO with label smoothing ``e``.

    ``-(1 - e) * log s(x) - e * log s(-x)``. DPO: arXiv 2305.18290 eq. 7, the paper's
    ``L_p``; cDPO: E. Mitchell, "A note on DPO with noisy preferences", 2023.
    """
    return _smoothed_nll(_logits(pairs), pairs.label_smoothing)


def hinge(pairs: PairInputs) -> Array:
    """SLiC / RSO: ``max(0, 1 - x)`` (arXiv 2305.10425; RSO: arXiv 2309.06657)."""
    return jax.nn.relu(1.0 - _logits(pairs))


def ipo(pairs: PairInputs) -> Array:
    """IPO: ``(c - r - 1 / (2 * beta)) ** 2`` (arXiv 2310.12036 eq. 17).

    `c` and `r` are sums over tokens, as in the IPO paper. TRL's trainer divides
    log-probs by the response length first; divide before the call for that variant.
    """
    return jnp.square(pairs.chosen - pairs.rejected - 0.5 / pairs.beta)


def bco_pair(pairs: PairInputs) -> Array:
    """BCO: ``-log s(beta * c - delta) - log s(-(beta * r - delta))``.

    A sum, not a mean, of both sides: the MPO paper's ``L_q = L_q+ + L_q-``; BCO:
    arXiv 2404.04656.
    """
    chosen = pairs.beta * pairs.chosen - pairs.delta
    rejected = pairs.beta * pairs.rejected - pairs.delta
    return -jax.nn.log_sigmoid(chosen) - jax.nn.log_sigmoid(-rejected)


def sppo_hard(pairs: PairInputs) -> Array:
    """SPPO, hard labels: ``(c - 1/(2 beta))**2 + (r + 1/(2 beta))**2``.

    arXiv 2405.00675, with win probabilities 1 and 0.
    """
    target = 0.5 / pairs.beta
    return jnp.square(pairs.chosen - target) + jnp.square(pairs.rejected + target)


def nca_pair(pairs: PairInputs) -> Array:
    """NCA: ``-log s(bc) - log s(-bc) / 2 - log s(-br) / 2``, ``b`` = beta.

    arXiv 2402.05369, the case of two responses.
    """
    chosen = pairs.beta * pairs.chosen
    rejected = pairs.beta * pairs.rejected
    return (
        -jax.nn.log_sigmoid(chosen)
        - 0.5 * jax.nn.log_sigmoid(-chosen)
        - 0.5 * jax.nn.log_sigmoid(-rejected)
    )


def robust(pairs: PairInputs) -> Array:
    """Robust DPO: ``(-(1 - e) log s(x) + e log s(-x)) / (1 - 2 e)``.

    Unbiased under a share ``e`` of flipped labels (arXiv 2403.00409). Unlike the
    others it may be negative.
    """
    logits, smoothing = _logits(pairs), pairs.label_smoothing
    right, flipped = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return (smoothing * flipped - (1.0 - smoothing) * right) / (1.0 - 2.0 * smoothing)


def aot(pairs: PairInputs) -> Array:
    """AOT, unpaired: margins of policy and reference are sorted, then compared.

    ``k``-th smallest policy margin against ``k``-th smallest reference margin of the
    whole batch, in the cDPO loss (arXiv 2406.05882). The ``k``-th loss stands at the
    ``k``-th real pair; it does not belong to that pair.
    """
    policy = _sort_real(pairs.policy_margin, pairs.mask)
    reference = _sort_real(pairs.reference_margin, pairs.mask)
    return _smoothed_nll(pairs.beta * (policy - reference), pairs.label_smoothing)


def aot_pair(pairs: PairInputs) -> Array:
    """AOT, paired: log-ratios of chosen and rejected are sorted, then compared.

    As :func:`aot`, with ``k``-th smallest ``c`` against ``k``-th smallest ``r``.
    """
    chosen = _sort_real(pairs.chosen, pairs.mask)
    rejected = _sort_real(pairs.rejected, pairs.mask)
    return _smoothed_nll(pairs.beta * (chosen - rejected), pairs.label_smoothing)


def exo_pair(pairs: PairInputs) -> Array:
    """EXO: KL divergence from the policy's preference to the smoothed label.

    ``s(x) (log s(x) - log(1 - e)) + s(-x) (log s(-x) - log e)``, arXiv 2402.00856
    eq. 16. Infinite at ``e = 0``; TRL then takes 0.001 unasked, here it is an error.
    """
    logits, smoothing = _logits(pairs), pairs.label_smoothing
    right = jax.nn.log_sigmoid(logits) - math.log1p(-smoothing)
    flipped = jax.nn.log_sigmoid(-logits) - math.log(smoothing)
    return jax.nn.sigmoid(logits) * right + jax.nn.sigmoid(-logits) * flipped


LOSSES: dict[str, Callable[[PairInputs], Array]] = {
    "sigmoid": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "nca_pair": nca_pair,
    "robust": robust,
    "aot": aot,
    "aot_pair": aot_pair,
    "exo_pair": exo_pair,
}
"""Losses that compare policy and reference on a pair: ``loss_terms.PAIR_TERMS``."""


def canonical_name(name: str) -> str:
    """Name in :data:`LOSSES` of a loss or alias.

    Raises:
      ValueError: no such loss; the message names the nearest ones.
    """
    resolved = loss_terms.canonical(name)
    if resolved not in LOSSES:
        known = (*LOSSES, *loss_terms.ALIASES)
        raise ValueError(fields.no_such("loss", name, known))
    return resolved


def check_loss_options(name: str, *, beta: float, label_smoothing: float) -> None:
    """Check the options of one loss, given by canonical name.

    Raises:
      ValueError: `beta` is not positive and finite, `label_smoothing` is outside
        [0, 0.5), or is 0 with `exo_pair`.
    """
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be positive and finite, got {beta!r}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            "label_smoothing is the assumed share of flipped labels and must be in "
            f"[0, 0.5), got {label_smoothing!r}"
        )
    if name == "exo_pair" and label_smoothing == 0:
        raise ValueError(
            "loss 'exo_pair' is infinite at label_smoothing 0; set it above 0 "
            "(0.001 is what TRL takes)"
        )


def pair_loss(
    name: str,
    policy_chosen: Float[Array, "*pairs"],
    policy_rejected: Float[Array, "*pairs"],
    reference_chosen: Float[Array, "*pairs"],
    reference_rejected: Float[Array, "*pairs"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    delta: float | Float[Array, ""] = 0.0,
    mask: Bool[Array, "*pairs"] | None = None,
) -> tuple[Float[Array, "*pairs"], Float[Array, "*pairs"], Float[Array, "*pairs"]]:
    """Loss and implicit rewards of every pair.

    Args:
      name: a key of :data:`LOSSES` or an alias in ``loss_terms.ALIASES``.
      policy_chosen, policy_rejected: response log-probs of the trained model, summed
        over tokens, nats, any shape.
      reference_chosen, reference_rejected: the same of the reference; treated as
        constants by callers, not here.
      beta: strength of the pull towards the reference, > 0.
      label_smoothing: assumed share of flipped labels, [0, 0.5); read by the losses
        in ``loss_terms.SMOOTHED``.
      delta: reward shift, read by `bco_pair`; pass it through ``stop_gradient``.
      mask: bool, True at real pairs; None means all. Padding takes part in nothing,
        whatever it holds: its losses, rewards and gradients are 0.

    Returns:
      ``(losses, chosen_rewards, rejected_rewards)``, float32, in the shape given.

    Raises:
      ValueError: unknown name or an option out of range.
    """
    pairs = pair_inputs(
        policy_chosen,
        policy_rejected,
        reference_chosen,
        reference_rejected,
        beta=beta,
        label_smoothing=label_smoothing,
        delta=delta,
        mask=mask,
    )
    return pair_losses(name, pairs), pairs.chosen_rewards, pairs.rejected_rewards


def pair_inputs(
    policy_chosen: Float[Array, "*pairs"],
    policy_rejected: Float[Array, "*pairs"],
    reference_chosen: Float[Array, "*pairs"],
    reference_rejected: Float[Array, "*pairs"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    delta: float | Float[Array, ""] = 0.0,
    mask: Bool[Array, "*pairs"] | None = None,
) -> PairInputs:
    """What all losses of the same pairs read; arguments as of :func:`pair_loss`."""
    if mask is None:
        mask = jnp.ones(policy_chosen.shape, bool)
    pc, pr, rc, rr = (
        jnp.where(mask, x.astype(jnp.float32), 0.0)
        for x in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    )
    # Close numbers are subtracted first: (pc - rc) is exact in float32 near the
    # reference, so policy = reference gives exactly 0.
    return PairInputs(
        chosen=pc - rc,
        rejected=pr - rr,
        policy_margin=pc - pr,
        reference_margin=rc - rr,
        mask=mask,
        beta=beta,
        label_smoothing=label_smoothing,
        delta=delta,
    )


def pair_losses(name: str, pairs: PairInputs) -> Float[Array, "*pairs"]:
    """Loss of every pair, without its rewards.

    Args:
      name: as of :func:`pair_loss`.
      pairs: what :func:`pair_inputs` gives.

    Returns:
      float32 in the shape of ``pairs.mask``, 0 at padding.

    Raises:
      ValueError: unknown name or an option out of range.
    """
    loss = canonical_name(name)
    check_loss_options(loss, beta=pairs.beta, label_smoothing=pairs.label_smoothing)
    return jnp.where(pairs.mask, LOSSES[loss](pairs), 0.0)


def orpo_loss(
    chosen_mean_logp: Float[Array, "*pairs"], rejected_mean_logp: Float[Array, "*pairs"]
) -> Float[Array, "*pairs"]:
    """ORPO's odds-ratio term, ``-log s(log odds(chosen) - log odds(rejected))``.

    ``odds = p / (1 - p)`` with ``p = exp(mean log-prob per token)``; no reference.
    ORPO's NLL is the ``sft`` term, its lambda the weight of this one (arXiv
    2403.07691 eqs. 6-7). Mean log-probs are capped at -1e-6, where odds are 1e6.

    Args:
      chosen_mean_logp, rejected_mean_logp: log-prob per token, nats, <= 0.

    Returns:
      float32 losses in the shape given.
    """
    odds = _log_odds(chosen_mean_logp) - _log_odds(rejected_mean_logp)
    return -jax.nn.log_sigmoid(odds)


def sft_loss(
    chosen_logp: Float[Array, "*pairs"], chosen_tokens: Num[Array, "*pairs"]
) -> Float[Array, "*pairs"]:
    """Generation loss ``L_g = -log pi(chosen) / |chosen|`` per response.

    Args:
      chosen_logp: summed log-prob, nats.
      chosen_tokens: trained tokens; 0 (padding) gives loss 0 and gradient 0.

    Returns:
      float32 nats per token, in the shape given.
    """
    return -mean_logp(chosen_logp, chosen_tokens)


def mean_logp(
    logp: Float[Array, "*pairs"], tokens: Num[Array, "*pairs"]
) -> Float[Array, "*pairs"]:
    """Log-prob per token, float32, nats; 0 where a response has no tokens."""
    tokens = tokens.astype(jnp.float32)
    logp = jnp.where(tokens > 0, logp.astype(jnp.float32), 0.0)
    return logp / jnp.maximum(tokens, 1.0)


def _logits(pairs: PairInputs) -> Array:
    return pairs.beta * (pairs.chosen - pairs.rejected)


def _smoothed_nll(logits: Array, smoothing: float) -> Array:
    """Negative log-likelihood of preferring chosen, labels flipped at `smoothing`."""
    right, flipped = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(1.0 - smoothing) * right - smoothing * flipped


def _sort_real(values: Array, mask: Array) -> Array:
    """Sort the real entries of `values`, ascending, into the real positions.

    Padding sorts behind all real values and is then replaced by 0, so that it gets
    no gradient. Needs finite values: the sentinel is the largest float32, since an
    infinite one would make ``inf - inf`` of the padding.
    """
    sentinel = jnp.finfo(values.dtype).max
    flat_mask = mask.reshape(-1)
    ordered = jnp.sort(jnp.where(flat_mask, values.reshape(-1), sentinel))
    rank = jnp.maximum(jnp.cumsum(flat_mask) - 1, 0)
    return jnp.where(flat_mask, ordered[rank], 0.0).reshape(values.shape)


def _log_odds(logp: Array) -> Array:
    """``logp - log(1 - exp(logp))`` without cancellation at either end."""
    logp = jnp.minimum(logp.astype(jnp.float32), _MAX_MEAN_LOGP)
    # Each form is exact where it is used and finite where it is not.
    near_one = jnp.log(-jnp.expm1(logp))
    near_zero = jnp.log1p(-jnp.exp(logp))
    return logp - jnp.where(logp > -math.log(2.0), near_one, near_zero)
