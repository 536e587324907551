"""Parts of an output: torn lines, other jobs, the order of the merge."""

from __future__ import annotations

import json
import resource

import pytest

from mpo_jax.generate import requests, results

JOB = {"questions": "abc", "sampling": {"n": 2, "stop": []}}


def line(id, sample, text="t") -> str:
    answer = requests.Answer(id, sample, text, "stop", 3, 2, -0.5, (4, 5), (-0.2, -0.3))
    return results.line_of(answer, save_tokens=False)


@pytest.fixture
def parts(tmp_path):
    found = results.Parts(tmp_path / "out.jsonl")
    found.begin(JOB)
    return found


def write(parts, process, *lines):
    with parts.writer(process) as writer:
        for one in lines:
            writer.write(one)


def test_a_line_has_what_was_said():
    answer = requests.Answer("a", 1, "é\n", "length", 3, 2, -0.5, (4, 5), (-0.2, -0.3))
    short = json.loads(results.line_of(answer, save_tokens=False))
    assert short == {
        **{"id": "a", "sample": 1, "text": "é\n", "finish_reason": "length"},
        **{"prompt_tokens": 3, "tokens": 2, "logprob": -0.5},
    }
    whole = results.line_of(answer, save_tokens=True)
    assert whole.count("\n") == 1 and whole.endswith("\n") and "é" in whole
    more = {"token_ids": [4, 5], "token_logprobs": [-0.2, -0.3]}
    assert json.loads(whole) == {**short, **more}
    unknown = requests.Answer("a", 1, "t", "stop", 3, 2, None)
    found = json.loads(results.line_of(unknown, save_tokens=True))
    assert found["token_ids"] is found["token_logprobs"] is found["logprob"] is None


def test_answers_are_merged_in_the_order_of_the_keys(parts):
    write(parts, 0, line(2, 0), line("2", 1), line(1, 1, "é"))
    write(parts, 3, line("2", 0), line(1, 0))
    keys = [(1, 0), (1, 1), (2, 0), (2, 1), ("2", 0), ("2", 1)]
    assert parts.merge(iter(keys)) == 5  # one was left out
    found = [json.loads(x) for x in parts.output.read_text().splitlines()]
    order = [(item["id"], item["sample"]) for item in found]
    assert order == [key for key in keys if key != (2, 1)]
    assert found[1]["text"] == "é"
    parts.remove()
    assert not parts.folder.exists() and parts.output.exists()


def test_only_whole_lines_count_and_a_writer_goes_on_behind_them(parts):
    write(parts, 0, line(1, 0), line(1, 1))
    file = parts.folder / "part-00000.jsonl"
    whole = file.read_bytes()
    for torn in (len(whole) - 1, len(line(1, 0)) + 5, len(line(1, 0)) + 1, 1, 0):
        file.write_bytes(whole[:torn])
        parts.load()
        assert parts.has(1, 0) == (torn > 1) and not parts.has(1, 1)
        assert len(parts) == (torn > 1)
        write(parts, 0, line(3, 0))
        lines = file.read_text().splitlines(keepends=True)
        assert lines == [line(1, 0)] * (torn > 1) + [line(3, 0)]


def test_a_torn_line_that_is_longer_than_what_is_looked_at(parts):
    file = parts.folder / "part-00000.jsonl"
    file.write_bytes(line(1, 0).encode() + b"x" * 200_000)
    write(parts, 0, line(3, 0))
    assert file.read_text() == line(1, 0) + line(3, 0)
    file.write_bytes(b"x" * 200_000)
    write(parts, 0, line(3, 0))
    assert file.read_text() == line(3, 0)


def test_a_torn_line_of_a_process_that_is_no_more(parts):
    """Started again with fewer processes: its part is read and never written."""
    write(parts, 1, line(1, 0))
    with open(parts.folder / "part-00001.jsonl", "ab") as file:
        file.write(line(1, 1).encode()[:-3])
    write(parts, 0, line(1, 1, "again"))
    assert parts.merge(iter([(1, 0), (1, 1)])) == 2
    assert json.loads(parts.output.read_text().splitlines()[1])["text"] == "again"


@pytest.mark.parametrize("damage", [b"\0\0\0\n", b"[]\n", b'{"id": 1}\n', b"\xff\n"])
def test_a_damaged_line_is_named_and_can_be_removed(parts, damage):
    write(parts, 0, line(1, 0))
    part = parts.folder / "part-00000.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole + damage + line(2, 0).encode())
    with pytest.raises(ValueError, match=r"part-00000\.jsonl:2 is no answer .*Remove"):
        parts.load()
    part.write_bytes(whole + line(2, 0).encode())
    parts.load()
    assert parts.has(1, 0) and parts.has(2, 0)


def test_an_answer_that_stands_twice_is_written_once(parts):
    write(parts, 0, line(1, 0))
    write(parts, 1, line(1, 0))
    assert parts.merge(iter([(1, 0)])) == 1
    assert parts.output.read_text() == line(1, 0)


def test_another_job_is_refused_by_name(parts):
    again = results.Parts(parts.output)
    again.begin(JOB | {"sampling": {"n": 2, "stop": ()}})  # the same as JSON
    with pytest.raises(ValueError) as error:
        again.begin({"questions": "abc", "sampling": {"n": 3, "stop": []}, "more": 1})
    message = str(error.value)
    assert "sampling.n was 2, now 3" in message and "sampling.stop" not in message
    assert "more was None, now 1" in message and "questions" not in message
    assert str(parts.folder) in message and "--output" in message


def test_a_start_forgets_what_an_earlier_one_left_out(parts):
    for name in ("ledger-00000.jsonl", "failed-00003", "part-00000.jsonl"):
        (parts.folder / name).write_text("")
    results.Parts(parts.output).begin(JOB)
    left = {path.name for path in parts.folder.iterdir()}
    assert left == {results.JOB, "part-00000.jsonl"}


def test_a_removal_that_is_cut_short_keeps_the_job(parts, monkeypatch):
    """Parts without their job would be taken for those of any."""
    write(parts, 0, line(1, 0))
    write(parts, 1, line(1, 1))

    def killed(path, *_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        parts.remove()
    monkeypatch.undo()
    assert [path.name for path in parts.folder.iterdir()] == [results.JOB]
    parts.remove()
    assert not parts.folder.exists()


def test_a_full_disk_is_an_error_and_not_a_line_less(parts):
    """A system may write a part of what it is given and say so by a number alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(OSError), parts.writer(0) as writer:
        writer.write(line(1, 0))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(line(1, 0)) + 10, hard))
            writer.write(line(1, 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write(parts, 0, line(3, 0))
    parts.load()
    assert parts.has(1, 0) and parts.has(3, 0)
