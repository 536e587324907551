"""How the fields of a run fit together; what one field takes is said beside it.

Every function takes a ``config.RunConfig`` whose fields are within their bounds, and
raises a ``ValueError`` that names the fields, their values and the remedy. ``config``
stands above this module, hence no annotation names it.
"""

from __future__ import annotations

import math
from typing import Any

from mpo_jax import fields, loss_terms, types


def check(cfg: Any) -> None:
    """Check a whole run."""
    _check_data(cfg)
    _check_param_dtype(cfg.model)
    _check_row_shapes(cfg)
    _check_accumulation(cfg)
    check_loss(cfg.loss)
    _check_sft_mode(cfg)
    _check_reference(cfg)
    _check_adapters(cfg)
    _check_frozen(cfg.model)
    _check_eval(cfg.eval)


def check_loss(loss: Any) -> None:
    """Check that terms, weights and label smoothing make sense together."""
    if len(loss.terms) != len(loss.weights):
        raise ValueError(
            f"loss.weights needs one weight per term: {len(loss.terms)} terms "
            f"{loss.terms}, {len(loss.weights)} weights {loss.weights}"
        )
    for term in loss.terms:
        if term not in loss_terms.TERMS:
            raise ValueError(
                f"loss.terms: {fields.no_such('loss', term, loss_terms.TERMS)}"
            )
    _check_repeats(loss.terms)
    _check_weights(loss.terms, loss.weights)
    _check_smoothing(loss.terms, loss.label_smoothing)


def _check_data(cfg: Any) -> None:
    data = cfg.data
    if data.max_tiles < data.min_tiles:
        raise ValueError(
            f"data.max_tiles={data.max_tiles} is below "
            f"data.min_tiles={data.min_tiles}; raise it"
        )
    if data.reroot and data.reroot.count("=") != 1:
        raise ValueError(f"data.reroot={data.reroot!r}: write OLD=NEW")
    if cfg.log.eval_every and not data.eval_meta:
        raise ValueError(
            f"log.eval_every={cfg.log.eval_every}, but data.eval_meta is empty; "
            "name the meta.json of held-out pairs or set log.eval_every to 0"
        )


def _check_param_dtype(model: Any) -> None:
    if model.param_dtype == "bfloat16":
        # Of 20 steps at 5e-6 from random weights, 7 % of them moved at all; nor can
        # a second moment decay by the factor 0.999.
        raise ValueError(
            "model.param_dtype='bfloat16': an update of a trained parameter is below "
            "half a step of it, so most would never move; set it to 'float32'. Memory "
            "is saved by model.lora, by model.frozen_dtype='bfloat16' where a part is "
            "frozen, and by optim.offload=True"
        )


def _check_row_shapes(cfg: Any) -> None:
    if not cfg.rows.short.used:
        raise ValueError("rows.short has no budgets; at least one shape is needed")
    for name in ("short", "long"):
        shape = getattr(cfg.rows, name)
        if not shape.used:
            continue
        for field in ("prompt_tokens", "chosen_tokens", "pairs"):
            value = getattr(shape, field)
            fields.Bounds(at_least=1).check(f"rows.{name}.{field}", value)
        if cfg.mode == types.SFT and shape.rejected_tokens:
            raise ValueError(
                f"rows.{name}.rejected_tokens={shape.rejected_tokens}: mode=sft "
                "trains on chosen responses only; set it to 0"
            )
        if cfg.mode == types.MPO and shape.rejected_tokens < 1:
            raise ValueError(
                f"rows.{name}.rejected_tokens={shape.rejected_tokens}: mode=mpo "
                "needs room for rejected responses"
            )


def _check_accumulation(cfg: Any) -> None:
    rows, optim = cfg.rows, cfg.optim
    if optim.accumulation_long and not rows.long.used:
        raise ValueError(
            f"optim.accumulation_long={optim.accumulation_long}: rows.long has no "
            "budgets; leave it 0"
        )
    for field in ("accumulation", "accumulation_long"):
        micro = getattr(optim, field) or 1
        if rows.rows_per_batch % micro or (
            not rows.rows_per_batch and rows.row_multiple % micro
        ):
            raise ValueError(
                f"optim.{field}={micro} must divide rows.rows_per_batch="
                f"{rows.rows_per_batch} (or rows.row_multiple={rows.row_multiple} "
                "where the former is 0)"
            )


def _check_sft_mode(cfg: Any) -> None:
    if cfg.mode != types.SFT:
        return
    if cfg.loss.terms != (loss_terms.SFT_TERM,):
        raise ValueError(
            f"loss.terms={cfg.loss.terms!r}: mode=sft takes ('sft',) with one "
            "weight, loss.weights=(1.0,)"
        )
    if cfg.reference.mode != "none":
        raise ValueError(
            f"reference.mode={cfg.reference.mode!r}: mode=sft needs no "
            "reference; set it to 'none'"
        )


def _check_reference(cfg: Any) -> None:
    reference, compared = cfg.reference, loss_terms.with_reference(cfg.loss.terms)
    if reference.mode == "none" and compared:
        raise ValueError(
            f"reference.mode='none', but loss.terms={cfg.loss.terms} need "
            "reference log-probs; use 'cache' or 'online'"
        )
    if reference.mode == "none" and reference.path:
        raise ValueError(
            f"reference.path={reference.path!r}: reference.mode='none' reads "
            "no reference; leave it empty or use 'cache' or 'online'"
        )
    if reference.mode != "cache" and reference.cache:
        raise ValueError(
            f"reference.cache={reference.cache!r}: read with "
            f"reference.mode='cache' only, not {reference.mode!r}"
        )
    if reference.mode == "moving" and reference.path:
        raise ValueError(
            "reference.path: reference.mode='moving' starts from the policy; leave "
            "it empty"
        )


def _check_adapters(cfg: Any) -> None:
    model, lora = cfg.model, cfg.model.lora
    for part in ("language", "vision"):
        rank = getattr(lora, f"{part}_rank")
        if rank and not getattr(model, f"freeze_{part}"):
            raise ValueError(
                f"model.lora.{part}_rank={rank}: the weights under adapters are "
                f"frozen; set model.freeze_{part}=True"
            )
    if model.train_vision_layers and lora.vision_rank:
        raise ValueError(
            f"model.train_vision_layers={model.train_vision_layers} and "
            f"model.lora.vision_rank={lora.vision_rank}: train the last layers or "
            "adapters in all of them; set one to 0"
        )
    if lora.used and cfg.reference.mode == "moving":
        raise ValueError(
            "reference.mode='moving': a mixture of adapters is not the adapter of "
            "a mixture; use 'cache' or 'online' with model.lora"
        )


def _check_frozen(model: Any) -> None:
    for name, value, part in (
        ("train_vision_layers", model.train_vision_layers, "vision"),
        ("train_head", model.train_head, "language"),
    ):
        if value and not getattr(model, f"freeze_{part}"):
            raise ValueError(
                f"model.{name}={value!r}: everything of {part} is trained anyway; "
                f"set model.freeze_{part}=True"
            )
    frozen = model.freeze_vision or model.freeze_projector or model.freeze_language
    if model.frozen_dtype != "same" and not frozen:
        raise ValueError(
            f"model.frozen_dtype={model.frozen_dtype!r}: nothing is frozen; set it "
            "to 'same', or a model.freeze_…"
        )


def _check_weights(terms: tuple[str, ...], weights: tuple[float, ...]) -> None:
    for term, weight in zip(terms, weights, strict=True):
        if not 0 <= weight < math.inf:
            raise ValueError(
                f"loss.weights: weight of {term!r} must be finite and >= 0, "
                f"got {weight!r}"
            )
    if not any(weights):
        raise ValueError(
            f"loss.weights are all 0 for {terms}; nothing would be learnt: give a "
            "term a positive weight"
        )


def _check_repeats(terms: tuple[str, ...]) -> None:
    """Raise where two terms are the same loss (`sigmoid` beside `cdpo` is not)."""
    seen: dict[str, str] = {}
    for term in terms:
        name = "cdpo" if term == "cdpo" else loss_terms.canonical(term)
        if name in seen:
            raise ValueError(
                f"loss.terms: {seen[name]!r} and {term!r} are the same loss; keep one "
                "and add their weights"
            )
        seen[name] = term


def _check_smoothing(terms: tuple[str, ...], smoothing: float) -> None:
    if "cdpo" in terms and smoothing == 0:
        raise ValueError(
            "loss.terms: 'cdpo' with label_smoothing 0 is 'sigmoid'; set "
            "loss.label_smoothing above 0 or name 'sigmoid'"
        )
    if "exo_pair" in terms and smoothing == 0:
        raise ValueError(
            "loss.terms: 'exo_pair' is infinite at label_smoothing 0; set "
            "loss.label_smoothing above 0 (0.001 is what TRL takes)"
        )
    if smoothing and not any(
        loss_terms.canonical(term) in loss_terms.SMOOTHED for term in terms
    ):
        raise ValueError(
            f"loss.label_smoothing is {smoothing!r}, but no term of {terms} reads it; "
            f"set it to 0 (read by: {', '.join(sorted(loss_terms.SMOOTHED))})"
        )


def _check_eval(evaluation: Any) -> None:
    if evaluation.every and not evaluation.data:
        raise ValueError(
            f"eval.every={evaluation.every} scores benchmarks, and eval.data is empty; "
            "name the folder of their files, or set eval.every=0"
        )
