"""The held-out drawings as a benchmark, asked directly and with chain of thought.

It is named ``mpo_jax.demo.benchmark`` in an evaluation; its data folder is one that
``demo.questions`` wrote.
"""

from __future__ import annotations

from collections.abc import Iterator

from mpo_jax.demo import questions
from mpo_jax.evals.benchmark import COT, Ask, Benchmark, Grade, Item, Protocol, Tools
from mpo_jax.evals.sources import Folder, Source
from mpo_jax.prefs import prompts
from mpo_jax.verify.verdict import Truth

NAME = "mpo_jax.demo.benchmark"
MAX_NEW_TOKENS = 80
"""Of an answer: the longest right chain has some sixty tokens."""
FORMS = {COT: "en"}
"""Format by mode; the other mode is ``direct``."""
SOURCE = Source(
    hub="drawn by mpo_jax.demo", files=(questions.FILE,), licence="Apache-2.0"
)


def read(folder: Folder) -> Iterator[Item]:
    for line in questions.read(folder.find(*SOURCE.files, source=SOURCE)):
        yield Item(
            id=str(line["id"]),
            question=line["question"],
            answer=line["answer"],
            images=(line["image"],),
            categories={"task": line["task"]},
        )


def ask(item: Item, mode: str) -> Ask:
    form = FORMS.get(mode, prompts.DIRECT)
    text = item.question
    if form == prompts.DIRECT:
        text += f"\n{prompts.ASK_SHORT}"
    return Ask(
        prompts.get_format(form).wrap(text), max_new_tokens=MAX_NEW_TOKENS, max_tiles=1
    )


def grade(item: Item, response: str, mode: str, tools: Tools) -> Grade:
    said = prompts.get_format(FORMS.get(mode, prompts.DIRECT)).parse(response)
    if said.prediction is None:
        return Grade.of("", False, said.problem)
    return Grade.judged(
        said.prediction, tools.check(said.prediction, Truth(str(item.answer)))
    )


BENCHMARK = Benchmark(
    name=NAME,
    title="Held-out drawings",
    source=SOURCE,
    read=read,
    protocols={"paper": Protocol(ask, grade)},
)
