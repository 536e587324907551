"""How many spots are there? A benchmark of tests, from ``spots.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source, read_rows
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import Truth

SOURCE = Source(hub="me/spots", files=("spots.jsonl",), licence="CC BY 4.0")


def read(folder: Folder) -> Iterator[Item]:
    for row in read_rows(folder.find(*SOURCE.files, source=SOURCE)):
        yield Item(str(row["id"]), row["question"], row["answer"], (row["image"],))


def ask(item: Item, mode: str) -> Ask:
    if mode == COT:
        return Ask(formats.FORMATS["en"].wrap(item.question), max_new_tokens=16)
    return Ask(item.question, max_new_tokens=8)


def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    said = formats.FORMATS["en" if mode == COT else "direct"].parse(response)
    if said.prediction is None:
        return Grade.of("", False, said.problem)
    truth = Truth(str(item.answer))
    return Grade.judged(said.prediction, tools.check(said.prediction, truth))


BENCHMARK = Benchmark(
    name="own_benchmarks.spots",
    title="Spots",
    source=SOURCE,
    read=read,
    protocols={"paper": Protocol(ask, grade)},
)
