"""The whole story on one CPU: draw data, train a small InternVL, prefer, export.

  make quickstart          (or: python scripts/quickstart.py --workdir=runs/quickstart)

It draws its own preference data (charts, shapes to count, geometry; MMPR layout on
disk), trains a tokenizer and a tiny InternVL from scratch by SFT, caches the reference
log-probs, runs MPO, compares held-out pairs before and after, and asks both models the
held-out questions. Killed at any moment, the same command goes on where it stopped. It
calls what scripts/train.py and scripts/generate.py call.
"""

from __future__ import annotations

import json
import pathlib
import time

import rich.table
from absl import flags

from mpo_jax import recipes
from mpo_jax.demo import answers, dataset, tiny_model
from mpo_jax.generate import requests
from mpo_jax.run import answerer, train
from mpo_jax.utils import cli, plots, progress, runtime

_WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes")
_TRAIN = flags.DEFINE_integer("num_train", 2400, "Training pairs to draw", 64)
_EVAL = flags.DEFINE_integer("num_eval", 256, "Held-out pairs to draw", 32)
_SFT_STEPS = flags.DEFINE_integer("sft_steps", 0, "0 keeps the recipe's number", 0)
_MPO_STEPS = flags.DEFINE_integer("mpo_steps", 0, "0 keeps the recipe's number", 0)

ROWS = (
    ("rewards/accuracies", "preference accuracy", "chosen gained more; chance 0.5"),
    ("rewards/margins", "reward margin", "β·nats, reference = after SFT"),
    ("logps/accuracies", "likelihood accuracy", "chosen likelier per token"),
    ("logps/chosen", "chosen log-prob", "nats per response"),
    ("logps/rejected", "rejected log-prob", "nats per response"),
    ("loss/sigmoid", "DPO term", "ln 2 = 0.693 before"),
    ("loss/bco_pair", "BCO term", "2·ln 2 = 1.386 before"),
    ("loss/sft", "SFT term", "nats per token"),
    ("loss", "MPO loss", "0.8·DPO + 0.2·BCO + SFT"),
)


def ask(model: pathlib.Path, asked: list[answers.Item]) -> dict[int | str, str]:
    """A model's greedy answers to the held-out questions."""
    loaded = answerer.load(str(model), dtype="float32")
    how = requests.Sampling(max_new_tokens=96)
    found = loaded.local([item.question for item in asked], how)
    said = {}
    for result in found.answers([item.question for item in asked], how):
        if isinstance(result, requests.Failure):
            raise ValueError(f"question {result.id}: {result.detail}")
        said[result.id] = result.text
    return said


def main(argv: list[str]) -> None:
    del argv
    start = time.perf_counter()
    runtime.initialise()
    root = pathlib.Path(_WORKDIR.value)
    console = progress.console()

    console.rule("1  Data: drawings with questions, in MMPR layout")
    written = dataset.write_dataset(
        root / "data", num_train=_TRAIN.value, num_eval=_EVAL.value, seed=0
    )
    console.print(
        f"{_TRAIN.value} training and {_EVAL.value} held-out pairs: {root}/data"
    )
    model = root / "model"
    if not (model / "config.json").is_file():
        tiny_model.write_tiny_model(model, corpus=dataset.corpus(written["meta"]))

    console.rule("2  SFT from scratch on the chosen answers")
    sft = recipes.quickstart("sft")
    sft.model.path = str(model)
    sft.data.meta = str(written["meta"])
    sft.optim.max_steps = _SFT_STEPS.value or sft.optim.max_steps
    train.train(sft, root / "sft")

    console.rule("3  MPO on the pairs, reference = the SFT model")
    mpo = recipes.quickstart("mpo")
    mpo.model.path = str(root / "sft")
    mpo.data.meta = str(written["meta"])
    mpo.data.eval_meta = str(written["eval_meta"])
    mpo.optim.max_steps = _MPO_STEPS.value or mpo.optim.max_steps
    result = train.train(mpo, root / "mpo")

    console.rule("4  Held-out pairs, before and after MPO")
    before, after = result["before"], result["after"]
    report = root / "report.json"
    report.write_text(
        json.dumps({"before": before, "after": after}, indent=2), encoding="utf-8"
    )
    table = rich.table.Table("", "before", "after", "meaning")
    for name, label, meaning in ROWS:
        table.add_row(label, f"{before[name]:.4f}", f"{after[name]:.4f}", meaning)
    console.print(table)
    names = [name for name, _, _ in ROWS]
    plots.plot_before_after(
        {name: before[name] for name in names},
        {name: after[name] for name in names},
        root / "before_after.png",
    )

    console.rule("5  The held-out questions, answered before and after MPO")
    asked = answers.items(written["eval_meta"])
    said = {
        "before MPO": ask(root / "sft", asked),
        "after MPO": ask(root / "mpo", asked),
    }
    shares = {name: answers.accuracy(asked, found) for name, found in said.items()}
    report.write_text(
        json.dumps({"before": before, "after": after, "answers": shares}, indent=2),
        encoding="utf-8",
    )
    answers.write_page(root / "answers.html", asked, said)
    table = rich.table.Table("greedy answers", *said)
    for name in ("right", "unparsable"):
        table.add_row(name, *(f"{found[name]:.1%}" for found in shares.values()))
    console.print(table)
    console.print(
        f"Drawings and answers: {root}/answers.html\n"
        f"Model in HF layout: {root}/mpo/hf · curves: {root}/mpo/plots · numbers: "
        f"{report} · {time.perf_counter() - start:.0f} s in all."
    )


if __name__ == "__main__":
    cli.run(main)
