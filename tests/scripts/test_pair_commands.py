"""sample_responses.py, build_pairs.py and inspect_pairs.py as a person runs them."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import time

import pytest
import speaking
import tiny_mmpr
from PIL import Image

from mpo_jax.mmpr import index

pytestmark = pytest.mark.slow

END = "I count.\n\nFinal answer: "


@pytest.fixture(scope="module")
def place(root, tmp_path_factory):
    """A model and questions; what one process samples if it is left alone."""
    folder = tmp_path_factory.mktemp("sampled")
    speaking.write_model(folder / "model")
    images = speaking.write_images(folder)
    records = [
        {"id": i, "question": f"how many {i}?", "image": images[i % 4], "answer": i}
        for i in range(6)
    ]
    records.append({"id": 9, "question": "no answer?"})
    speaking.write_lines(folder / "questions.jsonl", records)
    return folder


def sample(root, place, output, *flags, **env):
    return speaking.start(
        root,
        f"--model={place / 'model'}",
        f"--input={place / 'questions.jsonl'}",
        f"--output={place / output}",
        *("--format=en,direct", "--n=2", "--max_new_tokens=6", "--seed=5"),
        *("--dtype=float32", "--slots=2", "--max_tiles=2"),
        *flags,
        script="sample_responses.py",
        cache=place / "cache",
        **env,
    )


def files(folder: pathlib.Path) -> dict[str, bytes]:
    names = ("rollouts.jsonl", "questions.jsonl", "sampling.json", "ledger.jsonl")
    return {name: (folder / name).read_bytes() for name in names}


def test_sampling_is_announced_resumed_and_complete(root, place):
    dry = sample(root, place, "dry", "--dry_run")
    said = speaking.output_of(dry)
    assert dry.returncode == 0, said
    assert (
        "12 prompts x 2 answers = 24 answers of at most 6 tokens: at most 144" in said
    )
    assert "1 lines left out" in said and not (place / "dry").exists()

    whole = sample(root, place, "whole")
    assert whole.wait(200) == 0, speaking.output_of(whole)
    lines = speaking.read_lines(place / "whole" / "rollouts.jsonl")
    assert len(lines) == 24 and {line["source"] for line in lines} == {"questions"}
    assert len({line["response"] for line in lines}) > 1

    broken = sample(root, place, "broken")
    parts = place / "broken" / "answers.jsonl.parts"
    deadline = time.time() + 120
    while sum(p.stat().st_size > 0 for p in parts.glob("part-*.jsonl")) < 1:
        assert time.time() < deadline and broken.poll() is None
        time.sleep(0.005)
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    again = sample(root, place, "broken")
    assert again.wait(200) == 0, speaking.output_of(again)
    assert files(place / "broken") == files(place / "whole")

    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    two = [
        sample(
            *(root, place, "two"),
            MPO_COORDINATOR=address,
            MPO_NUM_PROCESSES="2",
            MPO_PROCESS_ID=str(number),
        )
        for number in range(2)
    ]
    try:
        outputs = [speaking.output_of(process) for process in two]
    finally:
        for process in two:  # one that failed leaves the other waiting
            process.kill()
    assert [process.returncode for process in two] == [0, 0], outputs
    assert files(place / "two") == files(place / "whole")


@pytest.fixture
def run(root, tmp_path):
    def call(*flags, script="build_pairs.py", code=0):
        process = speaking.start(root, *flags, script=script)
        said = speaking.output_of(process)
        assert process.returncode == code, said
        return said

    return call


def write_rollouts(folder: pathlib.Path) -> pathlib.Path:
    """Two right answers, an unclear one, two wrong, one formless, one cut off."""
    (folder / "images").mkdir(parents=True)
    Image.new("RGB", (28, 28)).save(folder / "images" / "a.png")
    said = [
        (END + "5", "stop"),
        (END + "so five is it", "stop"),
        (END + "5.0", "stop"),
        (END + "5.9", "stop"),
        (END + "8", "stop"),
        ("I do not know", "stop"),
        ("I count and count", "length"),
    ]
    return speaking.write_lines(
        folder / "rollouts.jsonl",
        [
            {
                **{"id": "q", "sample": k, "format": "en", "question": "how many?"},
                **{"image": "images/a.png", "answer_gt": "5", "source": "counts"},
                **{"response": text, "finish_reason": ended},
            }
            for k, (text, ended) in enumerate(said)
        ],
    )


def test_pairs_are_indexed_for_training_at_once(run, tmp_path):
    path = write_rollouts(tmp_path / "data")
    said = run(
        f"--input={path}",
        f"--output={tmp_path / 'pairs'}",
        f"--cache={tmp_path / 'verdicts.sqlite'}",
        *("--workers=1", "--html"),
    )
    beside = tmp_path / "pairs" / "report.html"
    assert f"Page: {beside}" in said
    told = run(
        f"--input={tmp_path / 'pairs'}",
        f"--html={tmp_path / 'page.html'}",
        script="inspect_pairs.py",
    )
    assert f"8 pairs: {tmp_path / 'page.html'}" in told
    assert (tmp_path / "page.html").read_bytes() == beside.read_bytes()
    manifest = json.loads((tmp_path / "pairs" / "manifest.json").read_text())
    assert manifest["pairs_by_reason"] == {"format": 2, "truncated": 2, "wrong": 4}
    assert "pairs by reason: wrong" in said and "roles: right" in said
    assert (tmp_path / "verdicts.sqlite").exists()
    tokenizer = tiny_mmpr.write_tokenizer(tmp_path / "tokenizer")
    told = run(
        f"--meta={tmp_path / 'pairs' / 'meta.json'}",
        f"--tokenizer={tokenizer}",
        f"--out={tmp_path / 'index'}",
        *("--image_size=28", "--tokens_per_tile=4", "--workers=1"),
        "--template=Hermes-2",
        script="prepare_data.py",
    )
    (found,) = (tmp_path / "index").glob("*/manifest.json")
    built = index.load_index(found.parent)
    assert len(built) == 8 and not built.ledger(), told


def test_the_released_rules_on_demand(run, tmp_path):
    path = write_rollouts(tmp_path / "data")
    flags = (f"--input={path}", "--legacy", "--workers=1")
    run(*flags, f"--output={tmp_path / 'legacy'}")
    lines = speaking.read_lines(tmp_path / "legacy" / "rollouts.jsonl")
    # 5.9 is right there, and what was cut off has a wrong form.
    assert [line["role"] for line in lines] == [
        *("right", "wrong", "right", "right", "wrong", "format", "format"),
    ]
    run(*flags, "--answer_fix", f"--output={tmp_path / 'fixed'}")
    fixed = speaking.read_lines(tmp_path / "fixed" / "rollouts.jsonl")
    assert fixed[3]["response"].endswith("Final answer: 5")
    assert [line["role"] for line in fixed] == [line["role"] for line in lines]
    with open(path, "a", encoding="utf-8") as file:  # left out, but it counts
        file.write(json.dumps({"source": "counts", "responses": [""] * 500_000}))
    for name, more in (("three", ()), ("all", ("--nolegacy",))):
        run(*flags, *more, f"--output={tmp_path / name}")
        told = json.loads((tmp_path / name / "manifest.json").read_text())
        limits = {"counts": 3} if name == "three" else {}
        assert told["rules"]["max_pairs_of"] == limits
    assert told["pairs_by_reason"]["wrong"] == 4
    said = run(*flags, f"--output={tmp_path / 'three'}", code=1)
    assert "is there; name another --output" in said and "Counting" not in said
    for more in ("--cache=x", "--truncated_negatives=mixed"):
        said = run(*flags, more, f"--output={tmp_path / 'no'}", code=1)
        assert f"{more}: --legacy keeps no verdicts" in said


def test_errors_say_what_to_do(run, tmp_path):
    path = write_rollouts(tmp_path / "data")
    (tmp_path / "there").mkdir()
    flags = (f"--input={path}", "--workers=1")
    said = run(*flags, f"--output={tmp_path / 'there'}", code=1)
    assert "is there; name another --output" in said
    said = run(*flags, f"--output={tmp_path / 'x'}", "--max_accuracy=2", code=1)
    assert "max_accuracy=2.0" in said and not (tmp_path / "x").exists()
    said = run(*flags, f"--output={tmp_path / 'x'}", "--answer_fix", code=1)
    assert "--answer_fix rewrites answers; it belongs to --legacy" in said
    said = run(*flags, f"--output={tmp_path / 'x'}", "--overlap=o.json", code=1)
    assert "--overlap=o.json is shown on the page; ask for it with --html" in said
    assert not (tmp_path / "x").exists()
    said = run("--input=none.jsonl", f"--output={tmp_path / 'x'}", code=1)
    assert "none.jsonl: No such file" in said and not (tmp_path / "x").exists()
