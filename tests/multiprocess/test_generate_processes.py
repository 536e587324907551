"""scripts/generate.py as real processes: killed, several, another number of them."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import socket
import time

import pytest
import speaking

pytestmark = pytest.mark.slow

SAMPLING = ("--n=2", "--temperature=1", "--seed=5", "--max_new_tokens=24")
NUMBER = 24
"""Questions; with two answers at a time there is time to be killed."""


class Place:
    """A model, questions and what one process answers if it is left alone."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path):
        self.root, self.folder = root, folder
        self.cache = folder / "cache"
        speaking.write_model(folder / "model")
        images = speaking.write_images(folder)
        records = speaking.questions(images, NUMBER)
        records[5:5] = [{"id": "bad"}, {"id": "no", "question": "q", "image": "no.png"}]
        records[20:20] = [3, {"id": 1, "question": "twice"}]
        speaking.write_lines(folder / "in.jsonl", records)
        process = self.start("whole")
        output = speaking.output_of(process)
        assert process.returncode == 0, output
        self.whole = self.files("whole")
        assert len(self.whole[""].splitlines()) == 2 * NUMBER
        assert len(self.whole[".ledger.jsonl"].splitlines()) == 4

    def start(self, name: str, *flags: str, **env: str):
        return speaking.start(
            self.root,
            f"--model={self.folder / 'model'}",
            f"--input={self.folder / 'in.jsonl'}",
            f"--output={self.folder / name}.jsonl",
            "--dtype=float32",
            "--slots=2",
            "--save_tokens",
            *SAMPLING,
            *flags,
            cache=self.cache,
            **env,
        )

    def start_two(self, name: str):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        return [
            self.start(
                name,
                MPO_COORDINATOR=address,
                MPO_NUM_PROCESSES="2",
                MPO_PROCESS_ID=str(number),
            )
            for number in range(2)
        ]

    def finish(self, processes) -> list[str]:
        """Wait for all, which must end well and leave no parts."""
        try:
            outputs = [speaking.output_of(process) for process in processes]
        finally:
            for process in processes:  # one that failed leaves the others waiting
                process.kill()
        assert [process.returncode for process in processes] == [0] * len(processes), (
            outputs
        )
        return outputs

    def files(self, name: str) -> dict[str, bytes]:
        """Every file of an output by the end of its name."""
        output = self.folder / f"{name}.jsonl"
        found = {
            path.name.removeprefix(output.name): path.read_bytes()
            for path in self.folder.glob(f"{output.name}*")
        }
        assert found.keys() == {"", ".ledger.jsonl", ".run.json"}
        return found

    def kill_at(self, name: str, processes, lines: int) -> int:
        """SIGKILL when so many more answers are on disk; returns how many are."""
        before, deadline = self.answered(name), time.time() + 120
        while self.answered(name) < before + lines:
            assert time.time() < deadline
            if any(process.poll() is not None for process in processes):
                outputs = [speaking.output_of(process) for process in processes]
                raise AssertionError(outputs)
            time.sleep(0.002)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        for process in processes:
            process.communicate()
        return self.answered(name)

    def answered(self, name: str) -> int:
        parts = (self.folder / f"{name}.jsonl.parts").glob("part-*")
        return sum(path.read_bytes().count(b"\n") for path in parts)


@pytest.fixture(scope="module")
def place(root, tmp_path_factory):
    return Place(root, tmp_path_factory.mktemp("asked"))


def test_killed_at_random_moments_it_ends_as_if_left_alone(place):
    luck = random.Random(time.time_ns())
    process = place.start("killed")  # while it starts, wherever that is
    time.sleep(luck.uniform(0.2, 2.0))
    process.kill()
    process.communicate()
    if process.returncode == 0:  # a fast machine: it had ended
        for path in place.folder.glob("killed.jsonl*"):
            path.unlink()
    for lines in (luck.randint(1, 12), luck.randint(1, 12)):
        process = place.start("killed")
        done = place.kill_at("killed", [process], lines)
        assert not (place.folder / "killed.jsonl").exists()
    # And torn in the midst of a line, as a file system may leave it.
    (part,) = (place.folder / "killed.jsonl.parts").glob("part-*")
    with open(part, "rb+") as file:
        file.truncate(part.stat().st_size - luck.randint(1, 40))
    (said,) = place.finish([place.start("killed")])
    assert place.files("killed") == place.whole, (done, said)


def test_what_is_finished_and_what_is_another_run(place):
    (said,) = place.finish([place.start("whole")])
    assert (
        "Every question is answered in" in said and place.files("whole") == place.whole
    )
    process = place.start("whole", "--temperature=0.5")
    output = speaking.output_of(process)
    assert process.returncode == 1
    assert "answers of another run: sampling.temperature was 1.0, now 0.5" in output
    assert "Traceback" not in output


def test_two_processes_write_the_file_of_one(place):
    outputs = place.finish(place.start_two("two"))
    assert place.files("two") == place.whole
    assert "48 answers: " in outputs[0] and "48 answers: " not in outputs[1]


def test_killed_and_resumed_with_another_number_of_processes(place):
    place.kill_at("changed", place.start_two("changed"), 6)
    process = place.start("changed")
    assert place.kill_at("changed", [process], 4) < 2 * NUMBER
    place.finish(place.start_two("changed"))
    assert place.files("changed") == place.whole
