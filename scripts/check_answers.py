r"""Judge answers against the truth: right, wrong or undecided, and by which rule.

  python scripts/check_answers.py --input=rollouts.jsonl --output=judged.jsonl

A line of `--input` is

  {"answer_gt": "\\frac{1}{2}", "response": "… so it is \\boxed{0.5}."}

with "prediction" (the final answer alone) in place of "response", and, where there
are any, "question", "options" (a list, or {"A": "red", …}) and "kind" (what the true
answer is: option, yes_no, number, time, date, list, maths, text; found where absent).
"answer_gt" may be a number. A line of `--output` is the same line, in the same order,
with

  "prediction": "0.5", "verdict": "right", "rule": "maths"

"verdict" is right, wrong or undecided: what could not be compared is never wrong.
Lines that cannot be used are named in OUTPUT.ledger.jsonl. OUTPUT appears when all is
judged; with `--cache=FILE` a repeated or broken-off run is answered from FILE.

`--endpoint=URL --endpoint_model=NAME` asks a model for what stays undecided; its
verdicts bear the rule "model".

`--format` says by which prompt's rules a final answer is read from a response; auto
takes the last box, else what follows "Final answer:" or "答案:", else what the last
"answer is" says, else all of it. docs/checking.md has the rest.
"""

from __future__ import annotations

import collections
import os

import jax
import rich.console
import rich.table
from absl import flags

from mpo_jax.generate import text_endpoint
from mpo_jax.run import checking, verifier_model
from mpo_jax.utils import cli, progress
from mpo_jax.verify import formats, maths
from mpo_jax.verify import policy as policies
from mpo_jax.verify.verifier import Verifier

_INPUT = flags.DEFINE_string("input", None, "Answers, JSON lines", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Judged answers", required=True)
_FORMAT = flags.DEFINE_enum(
    "format",
    checking.AUTO,
    [checking.AUTO, *formats.FORMATS],
    "Prompt that the responses answer; says where their final answer stands",
)
_PERCENT = flags.DEFINE_enum(
    "percent",
    policies.DEFAULT.percent,
    policies.PERCENTS,
    "Is 50 % the same as 50 (sign_optional), or not (strict)?",
)
_RELATIVE = flags.DEFINE_float(
    "relative",
    policies.DEFAULT.relative,
    "Numbers are the same within this share of the true one, as 0.05 for charts",
    lower_bound=0,
)
_UNITS_OPTIONAL = flags.DEFINE_bool(
    "units_optional",
    policies.DEFAULT.units_optional,
    "A unit that one side alone gives is what the other means",
)
_CONVERT_UNITS = flags.DEFINE_bool(
    "convert_units", policies.DEFAULT.convert_units, "5 cm is 50 mm"
)
_CACHE = flags.DEFINE_string("cache", "", "File that keeps verdicts (SQLite), or none")
_WORKERS = flags.DEFINE_integer(
    "workers",
    0,
    "Processes for mathematics; 0 is one per core",
    lower_bound=0,
    upper_bound=maths.MAX_WORKERS,
)
_SECONDS = flags.DEFINE_float(
    "seconds", 0.5, "Processor time for the mathematics of one answer", lower_bound=0.01
)
_ENDPOINT = flags.DEFINE_string(
    "endpoint", "", "URL of a server whose model is asked for what stays undecided"
)
_ENDPOINT_MODEL = flags.DEFINE_string(
    "endpoint_model", "", "Its name there, with its version"
)
_CONCURRENCY = flags.DEFINE_integer(
    "concurrency", 16, "Requests to the endpoint at a time", 1
)


def print_summary(summary: checking.Summary, console: rich.console.Console) -> None:
    """Print how many answers got which verdict by which rule."""
    total = sum(summary.verdicts.values())
    by_outcome: collections.Counter[str] = collections.Counter()
    table = rich.table.Table("verdict", "rule", "answers", "share", box=None)
    ordered = sorted(summary.verdicts.items(), key=lambda i: (i[0].outcome, -i[1]))
    for verdict, count in ordered:
        by_outcome[verdict.outcome] += count
        share = f"{count / total:.1%}"
        table.add_row(verdict.outcome, verdict.rule, str(count), share)
    for outcome, count in sorted(by_outcome.items()):
        share = f"{count / total:.1%}"
        table.add_row(outcome, "all", str(count), share, style="bold")
    console.print(table)
    rate = total / max(summary.seconds, 1e-9)
    console.print(f"{total} answers in {summary.seconds:.1f} s, {rate:.0f}/s")


def main(argv: list[str]) -> None:
    del argv
    jax.config.update("jax_platforms", "cpu")  # messages open no device
    policy = policies.Policy(
        percent=_PERCENT.value,
        relative=_RELATIVE.value,
        units_optional=_UNITS_OPTIONAL.value,
        convert_units=_CONVERT_UNITS.value,
    )
    output, last = str(cli.path(_OUTPUT.value, "output")), None
    if _ENDPOINT.value:
        model = text_endpoint.TextEndpoint(
            _ENDPOINT.value,
            model=_ENDPOINT_MODEL.value,
            concurrency=_CONCURRENCY.value,
        )
        last = verifier_model.last(model)
    with Verifier(
        policy,
        workers=_WORKERS.value or min(os.cpu_count() or 1, maths.MAX_WORKERS),
        seconds=_SECONDS.value,
        cache_path=os.path.expanduser(_CACHE.value) or None,
        last=last,
    ) as verifier:
        summary = checking.check_file(
            str(cli.path(_INPUT.value, "input")), output, verifier, form=_FORMAT.value
        )
    console = progress.stdout_console()
    print_summary(summary, console)
    if summary.left_out:
        told = ", ".join(f"{n} {reason}" for reason, n in summary.left_out.items())
        console.print(f"Left out: {told}; see {output}.ledger.jsonl", markup=False)


if __name__ == "__main__":
    cli.run(main)
