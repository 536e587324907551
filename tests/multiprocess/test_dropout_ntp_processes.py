"""scripts/dropout_ntp.py as real processes: killed in both steps, and on two."""

from __future__ import annotations

import pathlib
import socket
import time

import ntp_place
import pytest
import speaking

pytestmark = pytest.mark.slow

NUMBER = 20
FILES = ("annotations/in.jsonl", "manifest.json", "ledger.jsonl", "meta.json")


class Place:
    """A model, questions, and the pairs of one undisturbed process."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path):
        self.root, self.folder = root, folder
        ntp_place.write_model(folder / "model")
        records = ntp_place.records(speaking.write_images(folder), NUMBER)
        speaking.write_lines(folder / "in.jsonl", [*records, {"question": 1}])
        process = self.start("whole", "--html")
        output = speaking.output_of(process)
        assert process.returncode == 0, output
        assert "pairs of 21 lines" in output and "Seam: " in output
        self.whole = self.files("whole")
        page = folder / "whole" / "report.html"
        assert f"Page: {page}" in output
        assert "dropout_ntp" in page.read_text() and "<h2>Seam</h2>" in page.read_text()

    def start(self, name: str, *flags: str, **env: str):
        return speaking.start(
            self.root,
            f"--model={self.folder / 'model'}",
            f"--input={self.folder / 'in.jsonl'}",
            f"--output={self.folder / name}",
            *("--dtype=float32", "--slots=2", "--max_new_tokens=16", "--max_tiles=4"),
            *flags,
            script="dropout_ntp.py",
            cache=self.folder / "cache",
            **env,
        )

    def files(self, name: str) -> list[bytes]:
        return [(self.folder / name / file).read_bytes() for file in FILES]

    def kill_in(self, name: str, step: str) -> None:
        """SIGKILL once some answers of a step are on disk."""
        process = self.start(name)
        parts = self.folder / name / "work" / f"{step}.answers.jsonl.parts"
        deadline = time.time() + 150
        while sum(p.read_bytes().count(b"\n") for p in parts.glob("part-*")) < 3:
            assert time.time() < deadline
            assert process.poll() is None, speaking.output_of(process)
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert not (self.folder / name / "meta.json").exists()


@pytest.fixture(scope="module")
def place(root, tmp_path_factory):
    return Place(root, tmp_path_factory.mktemp("ntp"))


def test_killed_in_both_steps_it_ends_as_if_left_alone(place):
    place.kill_in("killed", "own")
    place.kill_in("killed", "cut")
    process = place.start("killed")
    output = speaking.output_of(process)
    assert process.returncode == 0, output
    assert place.files("killed") == place.whole


def test_two_processes_make_the_pairs_of_one(place):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = [
        place.start(
            "two",
            MPO_COORDINATOR=address,
            MPO_NUM_PROCESSES="2",
            MPO_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    try:
        outputs = [speaking.output_of(process) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert place.files("two") == place.whole
