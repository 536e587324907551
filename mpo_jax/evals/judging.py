"""Grades by a judge behind an endpoint, each asked for once and kept.

A judgement is kept under a hash of everything that it depends on: the judge's name, the
message, temperature and longest answer. What failed is not kept, so that the next run
asks again. One process judges.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import logging

from mpo_jax import ledger
from mpo_jax.evals import benchmark, grading, lines
from mpo_jax.evals.lines import Judgement
from mpo_jax.generate import requests, results, text_endpoint

MAX_LINE = 1 << 24
"""Bytes of a kept judgement."""

Place = tuple[str, int]
"""Id of an item, number of the sample."""


@dataclasses.dataclass(frozen=True)
class Kept:
    """What a judge said.

    Attributes:
      text: as it came.
      answered_by: name of the model in the reply.
    """

    text: str
    answered_by: str


@dataclasses.dataclass(frozen=True)
class Judged:
    """What came of asking a judge.

    Attributes:
      judgements: by place.
      failures: why others have none, by place; the next run asks again.
      answered_by: how many judgements stand behind each name in the replies.
    """

    judgements: Mapping[Place, Judgement]
    failures: Mapping[Place, requests.Failure]
    answered_by: Mapping[str, int]


def judge(
    said: Sequence[grading.Said],
    judge: benchmark.Judge,
    endpoint: text_endpoint.TextEndpoint,
    cache: pathlib.Path,
    *,
    done: Callable[[], None] = lambda: None,
) -> Judged:
    """Grade responses by a judge.

    A blank response is wrong without being asked about, and measured by a reference
    with all points.

    Args:
      said: items and responses, each place once.
      judge: how a benchmark asks and reads; the model that is asked, and part of what
        is kept, is the endpoint's.
      cache: JSON lines of judgements, of any benchmarks and judges; added to.
      done: called after each request.

    Raises:
      EndpointError: the server refuses every request.
      ValueError: the cache is damaged before its last line; names the line.
    """
    if endpoint.model != judge.model:
        logging.warning(
            "%s judges, the authors' judge is %s: these are other scores, named after "
            "their judge",
            endpoint.model,
            judge.model,
        )
    asked = {
        (one.item.id, one.sample): judge.prompt(one.item, one.text)
        for one in said
        if one.text.strip()
    }
    keys = {place: key_of(endpoint.model, text, judge) for place, text in asked.items()}
    kept = read(cache)
    missing = {keys[place]: text for place, text in asked.items()}
    missing = {key: text for key, text in missing.items() if key not in kept}
    failed = _ask(missing, judge, endpoint, cache, kept, done)
    names = collections.Counter(
        kept[key].answered_by for key in keys.values() if key in kept
    )
    _warn_of_others(names, endpoint.model)
    items = {(one.item.id, one.sample): one.item for one in said}
    return Judged(
        judgements={
            place: _judgement(item, keys.get(place), kept, judge, endpoint.model)
            for place, item in items.items()
            if keys.get(place) not in failed
        },
        failures={place: failed[key] for place, key in keys.items() if key in failed},
        answered_by=dict(names),
    )


def key_of(model: str, prompt: str, judge: benchmark.Judge) -> str:
    """What a judgement is kept under, hexadecimal."""
    pinned = [model, prompt, float(judge.temperature), int(judge.max_new_tokens)]
    return hashlib.sha256(json.dumps(pinned).encode()).hexdigest()


def read(path: pathlib.Path) -> dict[str, Kept]:
    """Judgements of a cache by key; of two under one key the first.

    A torn last line, which a killed process leaves, is named and passed over.

    Raises:
      ValueError: another line is damaged; names it.
    """
    found: dict[str, Kept] = {}
    if not path.exists():
        return found
    for number, line in _lines(path):
        if not line.endswith(b"\n"):
            logging.warning(
                "%s: line %d is torn, a process was killed there; what it held is "
                "asked again",
                path,
                number,
            )
            return found
        key, kept = _parsed(line, f"{path}: line {number}")
        found.setdefault(key, kept)
    return found


def _lines(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ValueError(
                    f"{path}: line {number} has more than {MAX_LINE} bytes; it is no "
                    "judgement: remove it, and what it held is asked again"
                )
            yield number, line


def _parsed(line: bytes, where: str) -> tuple[str, Kept]:
    try:
        value = json.loads(line)
        texts = [value[name] for name in ("key", "text", "answered_by")]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("key, text and answered_by must be texts")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{where} is no judgement ({ledger.short(str(error))}); remove it, and "
            "what it held is asked again"
        ) from error
    key, text, answered_by = texts
    return key, Kept(text, answered_by)


def _ask(
    missing: Mapping[str, str],
    judge: benchmark.Judge,
    endpoint: text_endpoint.TextEndpoint,
    cache: pathlib.Path,
    kept: dict[str, Kept],
    done: Callable[[], None],
) -> dict[str, requests.Failure]:
    """Ask for what is missing; adds it to the cache and to `kept`.

    Returns:
      What failed, by key.
    """
    failed: dict[str, requests.Failure] = {}
    if not missing:
        return failed
    cache.parent.mkdir(parents=True, exist_ok=True)
    found = endpoint.answers(
        (requests.Question(key, text) for key, text in missing.items()),
        temperature=judge.temperature,
        max_new_tokens=judge.max_new_tokens,
    )
    with results.Writer(cache) as out:
        for answer in found:
            key = str(answer.id)
            if isinstance(answer, requests.Failure):
                failed[key] = answer
            else:
                kept[key] = Kept(answer.text, answer.model)
                line = {
                    "key": key,
                    "judge": endpoint.model,
                    "answered_by": answer.model,
                    "finish_reason": answer.finish_reason,
                    "text": answer.text,
                }
                out.write(lines.dumps(line) + "\n")
            done()
    return failed


def _warn_of_others(names: Mapping[str, int], model: str) -> None:
    others = [
        f"{name or 'no name'} ({n})" for name, n in names.items() if name != model
    ]
    if others:
        logging.warning(
            "%s was asked, and answers came from %s: name the version that is meant",
            model,
            ", ".join(sorted(others)),
        )


def _judgement(
    item: benchmark.Item,
    key: str | None,
    kept: Mapping[str, Kept],
    judge: benchmark.Judge,
    model: str,
) -> Judgement:
    """Of a response; without a key it was blank."""
    if key is None:
        blank = benchmark.Grade.of("", False, grading.EMPTY)
        return Judgement(model, "", dataclasses.replace(blank, reference=1.0))
    text = kept[key].text
    return Judgement(model, text, judge.parse(item, text))
