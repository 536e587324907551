"""Two sets of answers to the same items: CoT with direct, a run with its base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mpo_jax.evals import benchmark as benchmark_lib
from mpo_jax.evals import scores as scores_lib
from mpo_jax.evals import statistics
from mpo_jax.evals.benchmark import Benchmark, Item, Protocol
from mpo_jax.evals.modes import Mode, Modes
from mpo_jax.evals.scores import Draws
from mpo_jax.evals.sheet import Sheet


def direct_with_cot(
    found: Modes, benchmarks: Mapping[str, Benchmark], draws: Draws
) -> dict[str, dict[str, Any]]:
    """What CoT gains over direct answers, by benchmark; as :func:`between`."""
    direct, cot = benchmark_lib.MODES
    return {
        name: between(
            of[direct],
            of[cot],
            scores_lib.protocol_of(benchmarks, name, of[cot].protocol),
            draws,
        )
        for name, of in found.items()
        if direct in of and cot in of
    }


def with_base(
    base: Modes, found: Modes, benchmarks: Mapping[str, Benchmark], draws: Draws
) -> dict[str, dict[str, dict[str, Any]]]:
    """What a run gains over its base, by benchmark and mode; as :func:`between`.

    Where the two have another protocol, the only entry is ``not_compared``.
    """
    compared: dict[str, dict[str, dict[str, Any]]] = {}
    for name, of in found.items():
        for mode in of.values():
            first = base.get(name, {}).get(mode.name)
            if first is None:
                continue
            if first.protocol != mode.protocol:
                why = f"protocols differ: {first.protocol} and {mode.protocol}"
                entry = {"not_compared": why}
            else:
                protocol = scores_lib.protocol_of(benchmarks, name, mode.protocol)
                entry = between(first, mode, protocol, draws)
            compared.setdefault(name, {})[mode.name] = entry
    return compared


def between(
    first: Mode, second: Mode, protocol: Protocol, draws: Draws
) -> dict[str, Any]:
    """Compare on the items that both have answered.

    Args:
      first, second: of one benchmark under one protocol.

    Returns:
      JSON values: ``items`` compared, ``first_only_answered`` and
      ``second_only_answered`` that are not, ``changed_items`` whose question or truth
      differs and which are not either; ``first_score`` and ``second_score`` on the
      compared ones with their intervals, ``difference`` (second less first) with its
      paired ``interval``; ``mcnemar`` on what is right by the rule, None for means
      over samples; ``grouped`` where items come in groups, which McNemar's test does
      not know of.
    """
    ours = {item.id: item for item in second.sheet.items}
    theirs = {item.id: item for item in first.sheet.items}
    common = [id for id in ours if id in theirs]
    same = [id for id in common if _same_item(ours[id], theirs[id])]
    one, other = first.sheet.only(same), second.sheet.only(same)
    # The same items, and perhaps only the second run's are whole.
    one = dataclasses.replace(one, items=other.items)
    ones = np.ones(len(same))
    before, after = one.weighted(protocol.metric), other.weighted(protocol.metric)
    gain = statistics.difference(before, after)
    groups = other.groups()
    return {
        "items": len(same),
        "first_only_answered": len(theirs) - len(common),
        "second_only_answered": len(ours) - len(common),
        "changed_items": len(common) - len(same),
        "first_score": scores_lib.number(before(ones)),
        "first_interval": scores_lib.bounds(before, other, draws),
        "second_score": scores_lib.number(after(ones)),
        "second_interval": scores_lib.bounds(after, other, draws),
        "difference": scores_lib.number(gain(ones)),
        "interval": scores_lib.bounds(gain, other, draws),
        "mcnemar": _mcnemar(one, other),
        "grouped": bool(len(groups)) and int(groups.max()) + 1 < len(groups),
    }


def _same_item(one: Item, other: Item) -> bool:
    return (one.question, one.answer, one.options) == (
        other.question,
        other.answer,
        other.options,
    )


def _mcnemar(one: Sheet, other: Sheet) -> dict[str, int | float] | None:
    if len(one.rounds) != 1 or len(other.rounds) != 1 or not one.items:
        return None
    found = statistics.mcnemar(one.right(), other.right())
    return {
        "both_right": found.both,
        "both_wrong": found.neither,
        "only_first_right": found.first,
        "only_second_right": found.second,
        # Not rounded: small ones are what is asked for.
        "p_value": found.p_value,
    }
