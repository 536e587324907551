"""scripts/evaluate.py as real processes, on MATH-Vision's questions and pictures."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import socket
import time

import fake_gcs
import pytest
import speaking

from mpo_jax.evals import lines

pytestmark = pytest.mark.slow

NAME = "mathvision_testmini"
LIMIT = 20


class Place:
    """A model, the benchmark, and what one process finds if it is left alone."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path, shared: pathlib.Path):
        self.root, self.folder, self.shared = root, folder, shared
        self.cache = folder / "cache"
        speaking.write_model(folder / "model")
        data = folder / "data" / NAME
        data.mkdir(parents=True)
        given = shared / "data/benchmarks/mathvision/testmini.jsonl"
        (data / "testmini.jsonl").symlink_to(given)
        (data / "images").symlink_to(shared / "data/pref_mathv_real/images")
        self.finish([self.start("whole")])
        self.whole = self.files("whole")

    def start(self, name: str, *flags: str, **env: str):
        return speaking.start(
            self.root,
            f"--model={self.folder / 'model'}",
            f"--workdir={self.folder / name}",
            f"--config={self.root / 'configs/eval_paper.py'}",
            f"--benchmarks={NAME}:official",
            f"--data={self.folder / 'data'}",
            f"--limit={LIMIT}",
            "--config.max_new_tokens=24",
            "--slots=2",
            *flags,
            script="evaluate.py",
            cache=self.cache,
            **env,
        )

    def start_two(self, name: str, *flags: str, **env: str):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        return [
            self.start(
                name,
                *flags,
                MPO_COORDINATOR=address,
                MPO_NUM_PROCESSES="2",
                MPO_PROCESS_ID=str(number),
                **env,
            )
            for number in range(2)
        ]

    def finish(self, processes) -> list[str]:
        """Wait for all, which must end well."""
        try:
            outputs = [speaking.output_of(process) for process in processes]
        finally:
            for process in processes:  # one that failed leaves the others waiting
                process.kill()
        codes = [process.returncode for process in processes]
        assert codes == [0] * len(processes), outputs
        return outputs

    def files(self, name: str) -> dict[str, bytes]:
        """What was asked, said and found, byte by byte."""
        folder = self.folder / name
        assert not list(folder.rglob("*.parts"))
        kinds = ("items.jsonl", "unanswered.jsonl", "report.json", "report.md")
        paths = [*(folder / kind for kind in kinds), *folder.glob("answers/*")]
        paths += [*folder.glob("questions/*"), *folder.glob("images/*")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    def kill_at(self, name: str, processes, more: int) -> None:
        """SIGKILL when so many more answers are on disk."""
        before, deadline = self.answered(name), time.time() + 120
        while self.answered(name) < before + more:
            assert time.time() < deadline
            if any(process.poll() is not None for process in processes):
                outputs = [speaking.output_of(process) for process in processes]
                raise AssertionError(outputs)
            time.sleep(0.002)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.communicate()

    def answered(self, name: str) -> int:
        answers, found = self.folder / name / "answers", 0
        for pattern in ("*.jsonl.parts/part-*.jsonl", "*tokens.jsonl"):
            for path in answers.glob(pattern):
                try:
                    found += path.read_bytes().count(b"\n")
                except FileNotFoundError:  # merged since it was seen
                    continue
        return found


@pytest.fixture(scope="module")
def place(root, shared, tmp_path_factory):
    return Place(root, tmp_path_factory.mktemp("evaluated"), shared)


def test_every_item_is_asked_in_both_modes(place):
    found = lines.read(place.folder / "whole" / "items.jsonl")
    assert len(found) == 2 * LIMIT
    assert len({(line.mode, line.id) for line in found}) == 2 * LIMIT
    assert all((place.folder / "whole" / x).is_file() for f in found for x in f.images)
    assert all(line.prompt_tokens and line.tokens for line in found)
    report = json.loads(place.whole["report.json"])
    assert set(report["scores"][NAME]) == {"direct", "cot"}
    assert all(score["total"] == LIMIT for score in report["scores"][NAME].values())


def test_killed_twice_and_resumed_by_others_nothing_is_lost_or_answered_twice(place):
    luck = random.Random(time.time_ns())
    place.kill_at("killed", [place.start("killed")], luck.randint(4, 12))
    place.kill_at("killed", place.start_two("killed"), luck.randint(4, 12))
    said = place.finish([place.start("killed")])
    assert place.files("killed") == place.whole, said


def test_two_processes_that_share_a_bucket_alone_find_what_one_does(place):
    with fake_gcs.serve() as (url, bucket):
        env = fake_gcs.environment(url)
        env["XDG_CACHE_HOME"] = str(place.folder / "machines")
        started = place.start_two("two", "--workdir=gs://bucket/two", **env)
        first, second = place.finish(started)
        fake_gcs.arrived(bucket, "two/", place.folder / "two")
    assert place.files("two") == place.whole
    assert "gs://bucket/two/report.html" in first and "report.html" not in second


def test_our_server_gives_the_answers_of_the_model_in_process(place):
    server = speaking.start(
        place.root,
        f"--model={place.folder / 'model'}",
        *("--port=0", "--max_new_tokens=24", "--slots=2"),
        script="serve.py",
        cache=place.cache,
    )
    try:
        assert server.stdout is not None
        url = next(
            line.split()[3] for line in server.stdout if line.startswith("serving ")
        )
        place.finish([place.start("served", f"--endpoint={url}")])
    finally:
        server.kill()
        server.communicate()
    ours, theirs = (
        lines.read(place.folder / name / "items.jsonl") for name in ("whole", "served")
    )
    assert [_said(line) for line in theirs] == [_said(line) for line in ours]
    scores = [
        json.loads((place.folder / name / "report.json").read_text())["scores"]
        for name in ("whole", "served")
    ]
    assert scores[0] == scores[1]


def _said(line: lines.Line) -> tuple:
    """What does not depend on the way that an answer came."""
    tokens = (line.prompt_tokens, line.tokens, line.finish_reason)
    return (line.key, line.answer, line.grade, tokens)
