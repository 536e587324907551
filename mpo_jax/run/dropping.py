"""Dropout-NTP pairs from a file of questions: own answers, continuations, MMPR.

The output holds what training takes (``meta.json``, ``annotations/``), what became of
every line (``manifest.json``, ``ledger.jsonl``) and, in ``work/``, what was asked and
said. Both steps are those of ``run.answering``: resumable, over any number of
processes. All else is a function of these files, done anew by the first process at
every start, a line at a time; ``meta.json`` comes last.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import requests, results
from mpo_jax.inputs.tokenizer import ChatTokenizer
from mpo_jax.prefs import dropout_ntp, ntp_input, seam
from mpo_jax.run import answering, line_files
from mpo_jax.utils import atomic, progress, runtime

Asker = Callable[[answering.Lines, requests.Sampling], requests.Answerer]
"""Makes what answers a file of questions."""
META, MANIFEST, LEDGER = "meta.json", "manifest.json", "ledger.jsonl"
_WORK, _JOB = "work", "job.json"
_GIVEN, _OWN, _CUT = "given.jsonl", "own.jsonl", "cut.jsonl"


@dataclasses.dataclass(frozen=True)
class Task:
    """What is to be made.

    Attributes:
      input: file of questions.
      output: folder.
      root: folder of the images; "" is the input's.
      name: of the source in ``meta.json``.
      variant: how answers are cut and asked on.
      sampling: of own answers and of continuations.
      max_tiles: of a question's images; training is told the same.

    Raises:
      ValueError: more than one answer to a question, or a name that is no file's.
    """

    input: pathlib.Path
    output: pathlib.Path
    root: str
    name: str
    variant: dropout_ntp.Variant
    sampling: requests.Sampling
    max_tiles: int

    def __post_init__(self) -> None:
        if self.sampling.n != 1:
            raise ValueError(f"n={self.sampling.n}: a question gives one pair, so 1")
        if not self.name or pathlib.PurePath(self.name).name != self.name:
            raise ValueError(f"name={self.name!r}: must be the name of a file")

    def job(self) -> dict[str, Any]:
        """JSON-able: all that an output depends on, the answerer aside."""
        return {
            "input": line_files.digest(self.input),
            "root": ntp_input.root_of(self.input, self.root),
            "name": self.name,
            "variant": dataclasses.asdict(self.variant),
            "sampling": dataclasses.asdict(self.sampling),
            "max_tiles": self.max_tiles,
        }

    def work(self, name: str) -> pathlib.Path:
        """A file of what was asked and said."""
        return self.output / _WORK / name

    def answers(self, asked: str) -> pathlib.Path:
        """The answers to one of them."""
        return self.work(asked).with_suffix(".answers.jsonl")


class Incomplete(ValueError):
    """Answers are missing that a later start asks for again."""


class Tally:
    """What became of every line.

    Attributes:
      lines: that are not blank.
      dropped: number of lines by reason.
      bad: entries of lines that cannot be used.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.dropped: collections.Counter[str] = collections.Counter()
        self.bad: list[ledger.Entry] = []

    def leave_out(self, path: pathlib.Path, line: int, why: ledger.BadRecord) -> None:
        """Name a line in the ledger."""
        source, file = dropout_ntp.REASON, str(path)
        self.bad.append(ledger.Entry(source, file, line, why.reason, why.detail))


def make(task: Task, tokenizer: ChatTokenizer, asker: Asker) -> dict[str, Any] | None:
    """Ask, on every process, and write the pairs, on the first.

    Returns:
      The manifest; None on other processes than the first.

    Raises:
      Incomplete: some requests failed for a reason that may pass.
      ValueError: the output is another task's.
    """
    tally = Tally()
    if runtime.is_main():
        _begin(task)
        _write_given(task, tally)
    runtime.barrier("questions are written")
    _ask(task, _OWN, asker)
    if runtime.is_main():
        _write_cut(task, tokenizer, tally)
    runtime.barrier("beginnings are written")
    _ask(task, _CUT, asker)
    manifest = _write_pairs(task, tokenizer, tally) if runtime.is_main() else None
    runtime.barrier("pairs are written")
    return manifest


def _begin(task: Task) -> None:
    """Make the folder, or go on in it; what a run without its end left is no data."""
    task.work("").mkdir(parents=True, exist_ok=True)
    atomic.clean(task.work(""))
    atomic.clean(task.output)
    job, file = task.job(), task.work(_JOB)
    if file.exists():
        stored = json.loads(file.read_text(encoding="utf-8"))
        differing = results.differences(stored, job)
        if differing:
            raise ValueError(
                f"{task.output} holds pairs of another run: {'; '.join(differing)}. "
                "Name another --output or move it away"
            )
    results.write_json(file, job)


def _write_given(task: Task, tally: Tally) -> None:
    """The input's good lines, each content once, and those that need an answer."""
    root = ntp_input.root_of(task.input, task.root)
    seen: set[bytes] = set()

    def given() -> Iterator[ntp_input.Given]:
        with progress.bar() as bar:
            number = bar.add_task("Reading questions and images", total=None)
            for found in ntp_input.read(task.input, root):
                bar.advance(number)
                tally.lines += 1
                if isinstance(found, ledger.Entry):
                    tally.bad.append(
                        dataclasses.replace(found, source=dropout_ntp.REASON)
                    )
                elif bytes.fromhex(found.key) in seen:
                    tally.dropped[dropout_ntp.DUPLICATE] += 1
                else:
                    seen.add(bytes.fromhex(found.key))
                    yield found

    line_files.write_all(task.work(_GIVEN), (found.to_json() for found in given()))
    own = (_own_question(found, root) for found in _given(task) if found.chosen is None)
    _write_asked(task, _OWN, own)


def _own_question(given: ntp_input.Given, root: str) -> dict[str, Any]:
    asked: dict[str, Any] = {"id": given.key, "question": given.question}
    return asked | _image(given, root) | _seed(given)


def _image(given: ntp_input.Given, root: str) -> dict[str, Any]:
    paths = [str(pathlib.Path(root, image)) for image in given.images]
    return {"image": paths} if paths else {}


def _seed(given: ntp_input.Given) -> dict[str, Any]:
    return {} if given.seed is None else {"seed": given.seed}


def _given(task: Task) -> Iterator[ntp_input.Given]:
    for found in line_files.read(task.work(_GIVEN)):
        yield ntp_input.Given.of_json(found)


def _ask(task: Task, asked: str, asker: Asker) -> None:
    """Answer one of our files of questions; on every process."""
    path = task.work(asked)
    if not path.stat().st_size:
        return
    lines = answering.Lines(str(path), "")
    console = progress.console()
    what = "Own answers" if asked == _OWN else "Continuations"
    number = sum(1 for _ in lines.all())
    most = number * task.sampling.max_new_tokens
    console.print(f"{what}: {number} questions, at most {most:,} tokens")
    complete = answering.answer_file(
        asker(lines, task.sampling),
        lines,
        str(task.answers(asked)),
        task.sampling,
        save_tokens=True,
    )
    if not complete:
        raise Incomplete("some answers are missing; start the same command again")


def _write_cut(task: Task, tokenizer: ChatTokenizer, tally: Tally) -> None:
    """Questions with the beginning of their answer; the pair so far goes along."""
    root, variant = ntp_input.root_of(task.input, task.root), task.variant

    def asked() -> Iterator[dict[str, Any]]:
        for given, chosen in _chosen(task, tokenizer):
            try:
                if chosen is None:
                    raise dropout_ntp.Dropped(dropout_ntp.NO_ANSWER)
                question = dropout_ntp.continued_question(
                    given.question, given.images, variant
                )
                cut = dropout_ntp.cut(chosen, variant, tokenizer)
            except dropout_ntp.Dropped as error:
                tally.dropped[error.reason] += 1
                continue
            except ledger.BadRecord as error:
                tally.leave_out(task.input, given.line, error)
                continue
            pair = {
                "given": given.to_json(),
                "chosen": dataclasses.asdict(chosen),
                "beginning": cut.text,
            }
            line = {"id": f"{given.key}.{variant.name}", "question": question}
            line |= {"prefix": list(cut.ids), **_seed(given)}
            image = _image(given, root) if variant.keep_image else {}
            yield line | image | {"pair": pair}

    _write_asked(task, _CUT, asked())


def _chosen(
    task: Task, tokenizer: ChatTokenizer
) -> Iterator[tuple[ntp_input.Given, dropout_ntp.Chosen | None]]:
    """Every question with its preferred answer, where there is one."""
    own = line_files.Answers(task.answers(_OWN))
    for given in _given(task):
        if given.chosen is not None:
            yield given, dropout_ntp.Chosen(given.chosen)
            continue
        answer = own.take(given.key)
        yield given, answer and dropout_ntp.chosen_of(answer, tokenizer)


def _write_pairs(task: Task, tokenizer: ChatTokenizer, tally: Tally) -> dict[str, Any]:
    """Annotations, ledger and manifest, then ``meta.json``."""
    windows = seam.Windows()
    count = collections.Counter()

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, bos=False, start=False)

    def pairs() -> Iterator[dict[str, Any]]:
        for line, rejected in _rejected(task, tokenizer, tally):
            given = ntp_input.Given.of_json(line["pair"]["given"])
            chosen, shared = line["pair"]["chosen"], len(line["pair"]["beginning"])
            # Words are stripped as released, so the chosen one may begin earlier.
            start = chosen["text"].find(line["pair"]["beginning"])
            windows.add(
                given.key,
                seam.window(chosen["text"], start + shared, encode, tokenizer.decode),
                seam.window(rejected, shared, encode, tokenizer.decode),
            )
            count["pairs"] += 1
            count["chosen_characters"] += len(chosen["text"])
            count["rejected_characters"] += len(rejected)
            yield mmpr_line(given, chosen["text"], rejected, task.variant)

    annotation = task.output / "annotations" / f"{task.name}.jsonl"
    annotation.parent.mkdir(exist_ok=True)
    line_files.write_all(annotation, pairs())
    results.write_ledger(task.output / LEDGER, sorted(tally.bad, key=lambda e: e.line))
    manifest = _manifest(task, tally, count, seam.check(windows.pairs()))
    results.write_json(task.output / MANIFEST, manifest)
    entry = {
        "root": ntp_input.root_of(task.input, task.root),
        "annotation": f"annotations/{task.name}.jsonl",
        "data_augment": False,
        "repeat_time": 1,
        "max_dynamic_patch": task.max_tiles,
        "length": count["pairs"],
    }
    results.write_json(task.output / META, {task.name: entry})
    return manifest


def _rejected(
    task: Task, tokenizer: ChatTokenizer, tally: Tally
) -> Iterator[tuple[dict[str, Any], str]]:
    """What was asked on, with the rejected answer."""
    continued = line_files.Answers(task.answers(_CUT))
    for line in line_files.read(task.work(_CUT)):
        answer, pair = continued.take(line["id"]), line["pair"]
        try:
            if answer is None:
                raise dropout_ntp.Dropped(dropout_ntp.NO_ANSWER)
            text = dropout_ntp.rejected(
                dropout_ntp.Chosen(
                    pair["chosen"]["text"], None, pair["chosen"]["cut_off"]
                ),
                dropout_ntp.Cut(tuple(line["prefix"]), pair["beginning"]),
                answer,
                tokenizer,
            )
        except dropout_ntp.Dropped as error:
            tally.dropped[error.reason] += 1
        except ledger.BadRecord as error:
            tally.leave_out(task.input, pair["given"]["line"], error)
        else:
            yield line, text


def mmpr_line(
    given: ntp_input.Given, chosen: str, rejected: str, variant: dropout_ntp.Variant
) -> dict[str, Any]:
    """A pair as MMPR has it, with what made it."""
    line: dict[str, Any] = {} if given.id is None else {"id": given.id}
    if given.images:
        several = list(given.images)
        line["image"] = several[0] if len(several) == 1 else several
    line |= {"question": given.question, "chosen": chosen, "rejected": rejected}
    return line | {"reason": dropout_ntp.REASON, "variant": variant.name}


def _manifest(
    task: Task,
    tally: Tally,
    count: collections.Counter[str],
    found: seam.Found | None,
) -> dict[str, Any]:
    left_out = collections.Counter(entry.reason for entry in tally.bad)
    pairs = count["pairs"]
    return {
        **task.job(),
        "answerer": _answerer(task),
        "counts": {
            "lines": tally.lines,
            "pairs": pairs,
            "dropped": dict(tally.dropped),
            "left_out": dict(left_out),
        },
        "mean_characters": {
            side: count[f"{side}_characters"] / max(pairs, 1)
            for side in ("chosen", "rejected")
        },
        "seam": found and {**dataclasses.asdict(found), "at_chance": found.at_chance},
    }


def _answerer(task: Task) -> Any:
    """What the last answers depend on; None where none was asked for."""
    for asked in (_CUT, _OWN):
        answers = task.answers(asked)
        path = answers.with_name(answers.name + ".run.json")
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))["answerer"]
    return None


def _write_asked(task: Task, name: str, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file of questions; one that has answers may not change.

    Raises:
      ValueError: it would.
    """
    path, answers = task.work(name), task.answers(name)
    parts = answers.with_name(answers.name + ".parts")
    before = line_files.digest(path) if answers.exists() or parts.exists() else None
    new = path.with_name(f"new-{name}")
    line_files.write_all(new, lines)
    if before is not None and line_files.digest(new) != before:
        new.unlink()
        raise ValueError(
            f"{path} has answers, and the questions are others now: an image has other "
            "bytes than then, or appeared or vanished. Put it back, or name another "
            "--output"
        )
    new.replace(path)
