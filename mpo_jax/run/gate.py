"""The step-0 gate: cached reference log-probs are those of the model at hand.

Everything that MPO learns from is the difference between policy and reference. Before
the first update policy and reference are one model, so what the cache holds and what
the policy computes must agree, response by response, up to rounding.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from mpo_jax import config as config_lib
from mpo_jax import loss_terms
from mpo_jax.losses import preference
from mpo_jax.nn import params as params_lib
from mpo_jax.run import scoring
from mpo_jax.train import comparison
from mpo_jax.utils import mirror, progress, watchdog

_SHOWN = 8


@dataclasses.dataclass(frozen=True)
class Cached:
    """Cached log-probs that a run is about to use.

    Attributes:
      name: of the data set, for messages.
      directory: of the cache.
      scorer: recomputes them.
      record_ids: the pairs to recompute.
      logps: float32 ``[N, 2]``, of the whole index.
    """

    name: str
    directory: pathlib.Path
    scorer: scoring.Scorer
    record_ids: np.ndarray
    logps: np.ndarray


def pass_or_stop(
    cached: Sequence[Cached],
    *,
    policy: params_lib.Params,
    reference: Callable[[], params_lib.Params],
    step: int,
) -> None:
    """Check every cache that a run is about to use, and say what was checked.

    Args:
      policy: parameters at `step`.
      reference: gives the reference's, asked only if it is another model.
      step: of the run; after step 0 the policy has moved.

    Raises:
      ValueError: as :func:`check`.
    """
    console = progress.console()
    if not cached:
        console.print(
            "Step-0 gate: nothing to compare, the step computes the reference itself."
        )
    for one in cached:
        cfg = one.scorer.run.cfg
        if not cfg.log.gate:
            console.print(
                f"Step-0 gate of {one.name} is off (log.gate=False): cached reference "
                "log-probs are taken as they are."
            )
        elif step:
            console.print(
                f"Step-0 gate of {one.name}: not repeated after step {step}, where the "
                "policy has left the reference."
            )
        else:
            same = not cfg.reference.path
            watchdog.beat(f"the step-0 gate of {one.name}")
            found = check(one, policy if same else reference(), same_model=same)
            console.print(_passed(one.name, cfg.loss, found, same_model=same))


def _passed(
    name: str,
    cfg: config_lib.LossConfig,
    found: comparison.Comparison,
    *,
    same_model: bool,
) -> str:
    text = (
        f"Step-0 gate passed, {name}: {len(found.record_ids)} pairs, cached and "
        f"recomputed log-probs differ by {found.rms:.1g} nats per root of their tokens"
    )
    if not same_model:
        return text + " (the reference's own; the policy starts from another model)."
    now, theory = preference_part(cfg, found)
    return text + f"; preference part {now:.4f}, theory {theory:.4f}."


def check(
    cached: Cached, params: params_lib.Params, *, same_model: bool
) -> comparison.Comparison:
    """Recompute the log-probs of some pairs and compare them with the cached ones.

    Args:
      params: of the policy at step 0, adapters included; or, where it starts from
        another model than the reference (`same_model` False), of the reference.

    Raises:
      ValueError: if they differ by more than rounding; names the records.
    """
    run = cached.scorer.run
    scorer = cached.scorer.for_model(run.model) if same_model else cached.scorer
    found = scorer.compare(params, cached.record_ids, cached.logps)
    dtype = run.cfg.model.dtype
    if found.agrees(dtype):
        return found
    rms, largest = comparison.tolerances(dtype)
    lines = [
        f"  {scorer.index.where(int(found.record_ids[i]))}: "
        f"cached {_pair(found.cached[i])}, now {_pair(found.found[i])}"
        for i in found.worst(_SHOWN)
    ]
    raise ValueError(
        f"step-0 gate, {cached.name}: cached reference log-probs (chosen, rejected) "
        f"are not those that {'the policy' if same_model else 'the reference'} gives "
        f"now. Per root of a response's tokens they are off by {found.rms:.2g} nats "
        f"(root mean square, allowed {rms:g} in {dtype}), at most "
        f"{found.errors.max():.2g} (allowed {largest:g}). The worst of "
        f"{len(found.record_ids)} pairs:\n" + "\n".join(lines) + "\nThe key of the "
        "cache covers weights, architecture, dtype, attention, tokenizer, template, "
        "tiles and records, so its numbers are damaged or were computed wrongly: "
        f"delete {mirror.known_as(cached.directory)} and start again. log.gate=False "
        "trains on what it holds"
    )


def preference_part(
    cfg: config_lib.LossConfig, found: comparison.Comparison
) -> tuple[float, float]:
    """Weighted preference terms over the compared pairs, and their theory.

    With policy = reference, DPO is ln 2 and BCO 2·ln 2 (δ = 0), so the paper's part is
    0.8·ln 2 + 0.4·ln 2 = 0.8318.
    """
    compared = loss_terms.with_reference(cfg.terms)

    def part(policy: np.ndarray) -> float:
        sides = [
            jnp.asarray(values[:, side])
            for values in (policy, found.cached)
            for side in (0, 1)
        ]
        pairs = preference.pair_inputs(
            *sides, beta=cfg.beta, label_smoothing=cfg.label_smoothing
        )
        total = 0.0
        for term, weight in zip(cfg.terms, cfg.weights, strict=True):
            if term in compared:
                total += weight * float(preference.pair_losses(term, pairs).mean())
        return total

    return part(found.found), part(found.cached)


def _pair(values: np.ndarray) -> str:
    return f"({values[0]:.4f}, {values[1]:.4f})"
