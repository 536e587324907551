"""Counters of the server and the engine's, as Prometheus reads them."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass
class Counters:
    """What the server has done.

    Attributes:
      responses: by route and status; 499 where the client hung up.
      prompt_tokens, tokens: of requests that were taken: read, and sent back.
    """

    responses: collections.Counter[tuple[str, int]] = dataclasses.field(
        default_factory=collections.Counter
    )
    prompt_tokens: int = 0
    tokens: int = 0


def render(
    counters: Counters, gauges: Mapping[str, float], engine: Mapping[str, float]
) -> str:
    """Metrics in Prometheus' text format.

    Args:
      gauges: of the server, by name.
      engine: ``Engine.stats``; each is shown as ``mpo_engine_<name>``.
    """
    lines = ["# TYPE mpo_responses_total counter"]
    lines += [
        f'mpo_responses_total{{route="{route}",status="{status}"}} {count}'
        for (route, status), count in sorted(counters.responses.items())
    ]
    for name, value in (
        ("mpo_prompt_tokens_total", counters.prompt_tokens),
        ("mpo_generated_tokens_total", counters.tokens),
    ):
        lines += [f"# TYPE {name} counter", f"{name} {value}"]
    for name, value in gauges.items():
        lines += [f"# TYPE mpo_{name} gauge", f"mpo_{name} {float(value)}"]
    for name, value in sorted(engine.items()):
        whole = "mpo_engine_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
        lines += [f"# TYPE {whole} untyped", f"{whole} {float(value)}"]
    return "\n".join(lines) + "\n"
