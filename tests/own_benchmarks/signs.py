"""Traffic signs: which of four is it? From ``signs.jsonl`` beside its pictures."""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source, read_rows
from mpo_jax.verify import formats
from mpo_jax.verify.verdict import OPTION, Truth

SOURCE = Source(hub="me/signs", files=("signs.jsonl",), licence="CC BY 4.0")


def read(folder: Folder) -> Iterator[Item]:
    for row in read_rows(folder.find(*SOURCE.files, source=SOURCE)):
        yield Item(
            id=str(row["id"]),
            question=row["question"],
            answer=row["answer"],
            images=(row["image"],) if "image" in row else (),
            options=tuple(row["options"]),
            categories={"country": row["country"]},
        )


def ask(item: Item, mode: str) -> Ask:
    options = "\n".join(f"{chr(65 + i)}. {o}" for i, o in enumerate(item.options))
    text = f"{item.question}\n{options}"
    if mode == COT:
        return Ask(formats.FORMATS["en"].wrap(text), max_new_tokens=1024)
    return Ask(f"{text}\nAnswer with the letter alone.", max_new_tokens=16)


def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    said = formats.FORMATS["en" if mode == COT else "direct"].parse(response)
    truth = Truth(str(item.answer), item.options, OPTION)
    if said.prediction is None:
        return Grade.of("", False, said.problem)
    return Grade.judged(said.prediction, tools.check(said.prediction, truth))


BENCHMARK = Benchmark(
    name="own_benchmarks.signs",
    title="Traffic signs",
    source=SOURCE,
    read=read,
    protocols={"paper": Protocol(ask, grade)},
)
