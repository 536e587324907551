"""What became of rollouts on their way to pairs, in numbers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.prefs import pairs
from mpo_jax.prefs.rollouts import Group

ALL_RIGHT, ALL_WRONG, MIXED, UNDECIDED = ANSWERED = (
    "all_right",
    "all_wrong",
    "mixed",
    "undecided",
)
"""How the answers to a prompt turned out, undecided ones apart."""

_RATIOS = (0.25, 0.5, 0.8, 1.25, 2.0, 4.0)
_BINS = 10

Count = collections.Counter[str]


def _count() -> Any:
    return dataclasses.field(default_factory=collections.Counter)


@dataclasses.dataclass
class Counts:
    """Counts of a run; its memory does not grow with the number of prompts."""

    left_out: Count = _count()
    roles: Count = _count()
    verdicts: Count = _count()
    skipped: Count = _count()
    answered: Count = _count()
    accuracy: Count = _count()
    pairs: Count = _count()
    per_prompt: Count = _count()
    ratios: Count = _count()
    characters: Count = _count()
    sources: dict[str, Count] = dataclasses.field(default_factory=dict)
    filtered: int = 0
    prompts: int = 0

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Counts:
        """What :meth:`state` has told."""
        found = cls(filtered=state["filtered"], prompts=state["prompts"])
        for name in _COUNTS:
            getattr(found, name).update(state[name])
        for source, count in state["sources"].items():
            found.sources[source] = collections.Counter(count)
        return found

    def state(self) -> dict[str, Any]:
        """All of it as JSON values, to be merged elsewhere."""
        return dict(vars(self))

    def merge(self, other: Counts) -> None:
        """Add what was counted elsewhere; the order of additions changes nothing."""
        for name in _COUNTS:
            getattr(self, name).update(getattr(other, name))
        for source, count in other.sources.items():
            self.sources.setdefault(source, collections.Counter()).update(count)
        self.filtered += other.filtered
        self.prompts += other.prompts

    def leave_out(self, entry: ledger.Entry) -> None:
        self.left_out[entry.reason] += 1

    def add(
        self, group: Group, judged: Sequence[pairs.Judged], made: pairs.Made
    ) -> None:
        """Count a prompt with its rollouts and pairs."""
        source = self.sources.setdefault(group.question.source, collections.Counter())
        self.prompts += 1
        source["prompts"] += 1
        for one in judged:
            self.roles[one.role] += 1
            self.verdicts[f"{one.verdict.outcome}: {one.verdict.rule}"] += 1
            source["rollouts"] += 1
            source[f"rollouts, {one.role}"] += 1
        self.answered[answered(made.accuracy)] += 1
        source[f"prompts, {answered(made.accuracy)}"] += 1
        if made.accuracy is not None:
            self.accuracy[bin_of(made.accuracy)] += 1
        self.filtered += made.filtered
        self.skipped.update(made.skipped)
        self.per_prompt[str(len(made.pairs))] += 1
        for pair in made.pairs:
            self.pairs[pair.reason] += 1
            source[f"pairs, {pair.reason}"] += 1
            ratio = pairs.length_ratio(pair.chosen, pair.rejected)
            self.ratios[ratio_of(ratio)] += 1
            self.characters["chosen"] += len(pair.chosen.rollout.response)
            self.characters["rejected"] += len(pair.rejected.rollout.response)

    def report(self) -> dict[str, Any]:
        """All of it as JSON values, in fixed order."""
        total = sum(self.pairs.values())
        return {
            "rollouts": sum(self.roles.values()),
            "left_out": _sorted(self.left_out),
            "roles": {role: self.roles[role] for role in pairs.ROLES},
            "verdicts": _sorted(self.verdicts),
            "prompts": self.prompts,
            "answered": {name: self.answered[name] for name in ANSWERED},
            "accuracy": {name: self.accuracy[name] for name in bins()},
            "filtered_by_accuracy": self.filtered,
            "pairs": total,
            "pairs_by_reason": _sorted(self.pairs),
            "skipped": {why: self.skipped[why] for why in pairs.SKIPPED},
            "pairs_per_prompt": {
                number: self.per_prompt[number]
                for number in sorted(self.per_prompt, key=int)
            },
            "length_ratio": {name: self.ratios[name] for name in ratios()},
            "mean_characters": {
                side: round(self.characters[side] / total, 1) if total else None
                for side in ("chosen", "rejected")
            },
            "sources": {
                source: _sorted(self.sources[source]) for source in sorted(self.sources)
            },
        }


_COUNTS = [
    field.name
    for field in dataclasses.fields(Counts)
    if field.default_factory is collections.Counter
]


def _sorted(count: Mapping[str, int]) -> dict[str, int]:
    return {name: count[name] for name in sorted(count)}


def answered(accuracy: float | None) -> str:
    """One of ``ANSWERED``."""
    if accuracy is None:
        return UNDECIDED
    return {0.0: ALL_WRONG, 1.0: ALL_RIGHT}.get(accuracy, MIXED)


def bins() -> list[str]:
    """Names of the accuracy's bins: none right, tenths, all right."""
    between = [f"{i / _BINS:.1f}-{(i + 1) / _BINS:.1f}" for i in range(_BINS)]
    return ["0", *between, "1"]


def bin_of(accuracy: float) -> str:
    """The bin of an accuracy; one between two bins is in the upper one."""
    if accuracy in (0.0, 1.0):
        return str(int(accuracy))
    return bins()[1 + int(accuracy * _BINS + 1e-9)]


def ratios() -> list[str]:
    """Names of the bins of chosen length over rejected length."""
    between = [f"{a:g}-{b:g}" for a, b in zip(_RATIOS, _RATIOS[1:], strict=False)]
    return [f"below {_RATIOS[0]:g}", *between, f"from {_RATIOS[-1]:g}"]


def ratio_of(ratio: float) -> str:
    """The bin of a ratio."""
    return ratios()[sum(ratio >= limit for limit in _RATIOS)]
