"""Answers per second on the same weights: this project and transformers' `generate`.

  python -m benchmarks.generate                      # a slice of 1B on the CPU
  python -m benchmarks.generate --check              # greedy tokens alone
  python -m benchmarks.generate --device=gpu --size=1b --dtype=bfloat16

Every side and case has a process of its own, one after another; each answers twice and
its first call is left out. Answers have a fixed number of tokens, drawn at temperature
1 from all tokens. Before anything is timed, greedy tokens of all sides are compared: a
difference is an error. On the CPU the cases run on one core, where processor time is
read, and on two, where the wall clock is. On a GPU whole models run with weights that
each side draws for itself, so that tokens are not compared.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import clock, report, sizes
from benchmarks import generate_cases as cases

SIDES = ("ours", "generate", "cache", "padded")
"""Ours; transformers with ``num_return_sequences``; with a prompt cache prefilled once;
with padded batches of different prompts."""
ONE, TWO = "1", "2"
"""Cores of a run, as JSON keys."""


class Runner:
    """Starts sides in processes of their own.

    Attributes:
      work: directory for jobs, results and weights.
      python: interpreter of the peers.
    """

    def __init__(self, work: pathlib.Path, python: str):
        self.work, self.python = work, python
        work.mkdir(parents=True, exist_ok=True)

    def prepare(self, config: dict[str, Any]) -> pathlib.Path:
        """Directory with weights for `config` in both layouts; drawn once."""
        language = config["llm_config"]
        name = f"slice_{language['num_hidden_layers']}_{language['vocab_size']}"
        directory = self.work / name
        file = directory / "original" / "config.json"
        text = json.dumps(config, indent=2)
        done = directory / ".complete"
        if not done.is_file() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            done.unlink(missing_ok=True)
            file.write_text(text, encoding="utf-8")
            module = "benchmarks.generate_peer"
            self._start([self.python, "-m", module, "prepare", directory], {})
            done.touch()
        return directory

    def run(self, side: str, job: cases.Job) -> dict[str, Any]:
        """The result of one side; ours starts twice, to compile and to be measured."""
        file, result = self.work / "job.json", self.work / "result.json"
        if side != "ours":
            command = [self.python, "-m", "benchmarks.generate_peer", side]
            return self._measure(command, job, file, result, {})
        command = [sys.executable, "-m", "benchmarks.generate_ours"]
        with _compile_cache() as environment:
            first = dataclasses.replace(job, calls=1)
            cold = self._measure(command, first, file, result, environment)
            if job.calls == 1:
                return cold
            found = self._measure(command, job, file, result, environment)
        return found | {"peak_compiling_mib": cold["peak_mib"]}

    def _measure(
        self,
        command: Sequence[Any],
        job: cases.Job,
        file: pathlib.Path,
        result: pathlib.Path,
        environment: dict[str, str],
    ) -> dict[str, Any]:
        job.write(file)
        result.unlink(missing_ok=True)
        if job.device == "cpu":
            command = [*_pinned(job.threads), *command]
        self._start([*command, file, result], settings(job) | environment)
        return json.loads(result.read_text(encoding="utf-8"))

    def _start(self, command: Sequence[Any], environment: dict[str, str]) -> None:
        """From the repository root, which both sides import `benchmarks` from."""
        root = pathlib.Path(__file__).resolve().parent.parent
        subprocess.run(
            [str(part) for part in command],
            check=True,
            cwd=root,
            env=os.environ | environment,
        )


def settings(job: cases.Job) -> dict[str, str]:
    """Environment of a process: the same threads for XLA and torch."""
    if job.device == "gpu":
        # Else JAX would take most of the memory at once, and its peak said nothing.
        return {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    found = {
        "JAX_PLATFORMS": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": str(job.threads),
    }
    if job.threads == 1:
        found["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    return found


def _pinned(threads: int) -> list[str]:
    """Command prefix that keeps a process on the first cores of this one.

    Raises:
      ValueError: if there are fewer.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < threads:
        raise ValueError(f"--cores={threads}: this process may use {len(cores)}")
    return ["taskset", "-c", ",".join(map(str, cores[:threads]))]


@contextlib.contextmanager
def _compile_cache() -> Iterator[dict[str, str]]:
    """Environment of processes that share compiled programs."""
    with tempfile.TemporaryDirectory(prefix="mpo_cache_") as directory:
        yield {
            "JAX_COMPILATION_CACHE_DIR": directory,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }


def compare(name: str, results: Mapping[str, dict[str, Any]]) -> int:
    """Tokens of the sides' answers, which must be the same.

    Raises:
      ValueError: naming case, sides, answer and position of the first difference.
    """
    (first, expected), *others = results.items()
    for other, found in others:
        if len(found["ids"]) != len(expected["ids"]):
            raise ValueError(
                f"{name}: {len(expected['ids'])} answers of {first}, "
                f"{len(found['ids'])} of {other}"
            )
        for number, (a, b) in enumerate(
            zip(expected["ids"], found["ids"], strict=True)
        ):
            if a != b:
                place = next(
                    (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y),
                    min(len(a), len(b)),
                )
                raise ValueError(
                    f"{name}, answer {number}: from token {place} on {first} has "
                    f"{a[place : place + 4]}, {other} {b[place : place + 4]}; "
                    "not the same work, so nothing is timed"
                )
    return sum(len(answer) for answer in expected["ids"])


def check_sight(name: str, answers: Sequence[Sequence[int]]) -> None:
    """The first two prompts differ in their pictures alone, and so must their answers.

    Raises:
      ValueError: if they agree: equal tokens would say nothing about pictures.
    """
    if answers[0] == answers[1]:
        raise ValueError(
            f"{name}: two pictures, one answer: these weights are blind, and the "
            "comparison says nothing about pictures"
        )


def check_work(name: str, side: str, case: cases.Case, found: dict[str, Any]) -> None:
    """A peer computed what its name says.

    Raises:
      ValueError: if its decoder saw another number of positions, or the prompt cache's
        tower other tiles than those of the one prompt.
    """
    if side == "ours":
        return
    expected = case.positions(side)
    if found["positions"] != expected:
        raise ValueError(
            f"{name}, {side}: the decoder computed {found['positions']} positions, "
            f"not {expected}"
        )
    tiles = sum(prompt.tiles for prompt in case.prompts)
    if side == "cache" and found["tiles"] != tiles:
        raise ValueError(f"{name}: {found['tiles']} tiles were encoded, not {tiles}")


def check(
    runner: Runner, job: cases.Job, who: Sequence[str], *, quick: bool
) -> dict[str, int]:
    """Compare greedy tokens of all sides; tokens of each case."""
    compared = {}
    for name, case in cases.checked(quick=quick).items():
        sides = _sides(case, who)
        if len(sides) < 2:
            print(f"check {name}: {', '.join(sides) or 'nobody'} alone, not compared")
            if not sides:
                continue
        one = dataclasses.replace(job, case=case, calls=1, temperature=0.0)
        results = {}
        for side in sides:
            print(f"check {name}: {side}", flush=True)
            results[side] = runner.run(side, one)
            check_work(name, side, case, results[side])
        tokens = compare(name, results)
        if len(case.prompts) > 1:
            check_sight(name, results[sides[0]]["ids"])
        if len(sides) > 1:
            compared[name] = tokens
    return compared


def _sides(case: cases.Case, who: Sequence[str]) -> list[str]:
    return [side for side in ("ours", *case.peers) if side in who]


def figures(case: cases.Case, results: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Of one side, from its results by number of cores (a GPU's under ``2``).

    Processor time and memory are those of one core, wall time that of two; None where
    that was not run.
    """
    one, two = results.get(ONE), results.get(TWO)
    processor = clock.warm(one["processor_seconds"]) if one else None
    wall = clock.warm(two["seconds"]) if two else None
    memory = one or two or {}
    return {
        "processor_seconds": processor,
        "tokens_per_processor_second": case.new_tokens / processor
        if processor
        else None,
        "wall_seconds": wall,
        "tokens_per_s": case.new_tokens / wall if wall else None,
        "peak_mib": memory["peak_mib"],
        "peak_compiling_mib": memory.get("peak_compiling_mib"),
        "cores_of_others": max(
            (clock.warm(r["cores_of_others"]) or 0.0 for r in results.values()),
            default=0.0,
        ),
    }


def summarise(
    case: cases.Case, results: Mapping[str, Mapping[str, dict[str, Any]]]
) -> dict[str, Any]:
    """Figures by side, with ratios to ours (above 1: we need less)."""
    summary = {side: figures(case, found) for side, found in results.items()}
    ours = summary.get("ours")
    for side, entry in summary.items():
        if ours is None or side == "ours":
            continue
        entry["ratio"] = {
            name: entry[name] / ours[name]
            for name in ("processor_seconds", "wall_seconds", "peak_mib")
            if entry[name] and ours[name]
        }
    return summary


def show(summary: Mapping[str, Mapping[str, dict[str, Any]]]) -> str:
    """Markdown table of all cases."""
    rows = []
    for case, entries in summary.items():
        for side, entry in entries.items():
            ratio = entry.get("ratio", {})
            values = (
                (entry["processor_seconds"], 2),
                (entry["tokens_per_processor_second"], 0),
                (ratio.get("processor_seconds"), 2),
                (entry["wall_seconds"], 2),
                (entry["tokens_per_s"], 0),
                (ratio.get("wall_seconds"), 2),
                (entry["peak_mib"], 0),
                (entry["peak_compiling_mib"], 0),
                (ratio.get("peak_mib"), 2),
                (entry["cores_of_others"], 2),
            )
            cells = ["" if v is None else f"{v:.{digits}f}" for v, digits in values]
            rows.append([case, side, *cells])
    head = ["case", "side", "CPU s, 1 core", "tokens/CPU s", "ratio to ours"]
    head += ["wall s", "tokens/s", "ratio to ours"]
    head += ["peak MiB", "peak MiB, compiling", "ratio to ours", "cores of others"]
    return report.table(head, rows)


def time_case(
    runner: Runner,
    job: cases.Job,
    name: str,
    case: cases.Case,
    who: Sequence[str],
    *,
    cores: Sequence[int],
) -> dict[str, dict[str, Any]]:
    """Results by side and number of cores; a GPU's stand under two."""
    results: dict[str, dict[str, Any]] = {side: {} for side in _sides(case, who)}
    for count in cores if job.device == "cpu" else (2,):
        one = dataclasses.replace(job, case=case, threads=count)
        for side in results:
            print(f"{name}, {count} threads: {side}", flush=True)
            found = runner.run(side, one)
            check_work(name, side, case, found)
            del found["ids"]
            results[side][str(count)] = found
    return results


def has_cuda(python: str) -> bool:
    """Does torch of this interpreter have a GPU? False where there is no torch."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    done = subprocess.run([python, "-c", code], stderr=subprocess.DEVNULL)
    return done.returncode == 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    names = list(cases.timed(quick=False))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="*", metavar="NAME", help=", ".join(names))
    parser.add_argument("--who", nargs="*", choices=SIDES, default=list(SIDES))
    parser.add_argument("--check", action="store_true", help="compare tokens and stop")
    parser.add_argument("--quick", action="store_true", help="small, tries the script")
    parser.add_argument("--calls", type=int, default=2, help="the first is left out")
    parser.add_argument("--cores", type=int, nargs="*", choices=(1, 2), default=[1, 2])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--size", choices=("1b", "2b"), default="1b")
    parser.add_argument("--layers", type=int, help="of a tower; 1, on a GPU all")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--venv", type=pathlib.Path, help="the peers'; none: this one")
    parser.add_argument("--work", type=pathlib.Path, default="build/benchmarks")
    parser.add_argument("--out", type=pathlib.Path)
    args = parser.parse_args(argv)
    if args.calls < 2:
        parser.error(f"--calls={args.calls}: the first is left out, so at least 2")
    if args.check and args.device == "gpu":
        parser.error("--check: on a GPU each side draws its own weights; use the CPU")
    if args.device == "cpu" and args.dtype != "float32":
        parser.error(f"--dtype={args.dtype}: on a CPU float32, whose tokens are equal")
    if args.device == "cpu" and args.size != "1b":
        parser.error(f"--size={args.size}: on a CPU slices of 1b alone")
    known = list(cases.timed(quick=args.quick))
    args.cases = args.cases or known
    for name in args.cases:
        if name not in known:
            parser.error(f"--cases: {name} is none of {', '.join(known)}")
    return args


def config_of(args: argparse.Namespace) -> dict[str, Any]:
    """Of the model: a slice with one layer, on a GPU all of it, or as asked for."""
    if args.device == "gpu" and not args.layers:
        return sizes.released(args.size)
    return sizes.slice_of(args.size, layers=args.layers or 1)


def who_runs(args: argparse.Namespace, python: str) -> tuple[list[str], list[str]]:
    """Sides that can run here, and what is to be said about it."""
    if args.device == "cpu":
        return args.who, []
    notes = ["weights drawn by each side for itself: tokens are not compared"]
    if set(args.who) <= {"ours"} or has_cuda(python):
        return args.who, notes
    notes.append(f"torch of {python} is absent or has no GPU: ours alone")
    return [side for side in args.who if side == "ours"], notes


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    python = sys.executable
    if args.venv:
        python = str(args.venv.absolute() / "bin" / "python")
    work = args.work.absolute()
    runner = Runner(work / "generate", python)
    config, (who, notes) = config_of(args), who_runs(args, python)
    known = cases.timed(quick=args.quick)
    job = cases.Job(
        config=config,
        case=known[args.cases[0]],
        weights=str(runner.prepare(config)) if args.device == "cpu" else "",
        device=args.device,
        dtype=args.dtype,
        threads=max(args.cores),
        calls=args.calls,
        temperature=1.0,
    )
    content: dict[str, Any] = {
        "size": args.size,
        "layers": config["llm_config"]["num_hidden_layers"],
        "vocab_size": job.vocab_size,
        "dtype": args.dtype,
        "notes": notes,
    }
    for note in notes:
        print(f"note: {note}")
    if args.device == "cpu":
        content["greedy_tokens_compared"] = check(runner, job, who, quick=args.quick)
        print(f"greedy tokens that are equal: {content['greedy_tokens_compared']}")
    if args.check:
        return
    summary: dict[str, Any] = {}
    for name in args.cases:
        results = time_case(runner, job, name, known[name], who, cores=args.cores)
        summary[name] = summarise(known[name], results)
        content[name] = {"summary": summary[name], "raw": results}
        # After every case: all together take long.
        out = args.out or work / f"generate_{args.device}_{args.size}.json"
        report.write(out, content)
    print("\n" + show(summary))


if __name__ == "__main__":
    main()
