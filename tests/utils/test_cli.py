"""What every program does with its arguments, its errors and its environment."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import stat

import pytest
import rich.console

from mpo_jax.utils import cli, progress, runtime, statuses


def raised(action) -> OSError:
    with pytest.raises(OSError) as error:
        action()
    return error.value


def test_system_errors_name_file_and_remedy(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    text = cli.explain(raised((file / "below").read_text))
    assert text.startswith(f"{file}/below: Not a directory; ")
    text = cli.explain(raised(tmp_path.read_text))
    assert text.startswith(f"{tmp_path}: Is a directory; ")
    text = cli.explain(raised(lambda: file.rename(tmp_path / "no" / "x")))
    assert f"{file} -> {tmp_path}/no/x: No such file" in text
    assert cli.explain(raised(lambda: open(tmp_path / ("x" * 400)))).endswith(
        "name a shorter path"
    )
    for number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC):
        text = cli.explain(OSError(number, os.strerror(number), "/a/b"))
        assert text.startswith("/a/b: ") and "; " in text
    assert isinstance(PermissionError(), cli.EXPLAINED)


def test_our_own_errors_stay_as_they_are():
    for error in (ValueError("a: b"), FileNotFoundError("no a; name b")):
        assert cli.explain(error) == str(error)


@pytest.mark.parametrize(
    ("argument", "expanded"),
    [
        ("--workdir=~/runs/x", "/home/me/runs/x"),
        ("--config.model.path=~/m", "/home/me/m"),
        ("--workdir=/a/~/b", None),
        ("--new_tokens=~", None),
        ("~/x", None),
        ("--flag", None),
    ],
)
def test_home_directories(monkeypatch, argument, expanded):
    monkeypatch.setenv("HOME", "/home/me")
    name = argument.split("=")[0]
    wanted = argument if expanded is None else f"{name}={expanded}"
    assert cli._expanded(argument) == wanted


LAUNCH = {
    "MPO_COORDINATOR": "10.0.0.1:1234",
    "MPO_NUM_PROCESSES": "2",
    "MPO_PROCESS_ID": "1",
}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *[({name: None}, (name, "is not set")) for name in LAUNCH],
        *[({name: ""}, (name, "is not set")) for name in LAUNCH],
        ({"MPO_NUM_PROCESSES": "two"}, ("MPO_NUM_PROCESSES='two'",)),
        ({"MPO_NUM_PROCESSES": "0"}, ("MPO_NUM_PROCESSES='0'",)),
        ({"MPO_PROCESS_ID": "2"}, ("MPO_PROCESS_ID='2'", "0 to 1")),
        ({"MPO_PROCESS_ID": "-1"}, ("MPO_PROCESS_ID='-1'",)),
        ({"MPO_COORDINATOR": "host"}, ("MPO_COORDINATOR='host'", "HOST:PORT")),
        ({"MPO_COORDINATOR": ":1234"}, ("HOST:PORT",)),
        ({"MPO_COORDINATOR": "host:70000"}, ("HOST:PORT",)),
    ],
)
def test_launch_variables(monkeypatch, changes, words):
    for name, value in (LAUNCH | changes).items():
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    with pytest.raises(ValueError) as error:
        runtime.initialise()
    for word in words:
        assert word in str(error.value)


def test_launch_variables_that_are_whole(monkeypatch):
    for name, value in LAUNCH.items():
        monkeypatch.setenv(name, value)
    assert runtime._launch() == ("10.0.0.1:1234", 2, 1)
    monkeypatch.setenv("MPO_COORDINATOR", "[::1]:1234")
    assert runtime._launch() == ("[::1]:1234", 2, 1)
    for name in LAUNCH:
        monkeypatch.delenv(name)
    assert runtime._launch() is None


def test_brackets_are_printed(capsys):
    path = pathlib.Path("/runs/b[/x]/[red]/lr[1e-5]")
    progress.console().print(f"Resuming {path} after step 3.")
    assert f"Resuming {path} after step 3." in capsys.readouterr().err


def test_brackets_in_the_name_of_a_run():
    """The bar shows it: a closing tag there ended the run."""
    with progress.bar(extra="loss {task.fields[loss]}") as bar:
        bar.add_task("b[/x]", total=2, loss="[red]1")
        out = io.StringIO()
        rich.console.Console(file=out, width=120).print(bar.get_renderable())
    assert "b[/x]" in out.getvalue() and "loss [red]1" in out.getvalue()


def test_a_mode_of_no_one(tmp_path):
    """A file that cannot be read is not called absent (root reads all)."""
    from mpo_jax.convert import files, source

    file = tmp_path / files.SINGLE
    file.write_bytes(b"x")
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user reads every file")
    with pytest.raises(PermissionError):
        with source.opened(tmp_path):
            pass
    file.chmod(stat.S_IRUSR)


class Others:
    """The other hosts; notes whether they were waited for."""

    def __init__(self):
        self.waited = 0

    def wait_for_news(self):
        self.waited += 1

    def fail(self, message, status):
        raise SystemExit(status)


@pytest.mark.parametrize(
    "words, waited",
    [
        ("UNAVAILABLE: the connection to a task is closed", 1),
        ("ABORTED: Error writing … Stale file handle [os_error_code='116']", 0),
        ("UNAVAILABLE: … [http_response_code='503']", 0),
    ],
)
def test_storage_that_speaks_like_a_lost_host_is_told_at_once(
    monkeypatch, words, waited
):
    others = Others()
    monkeypatch.setattr(cli.peers, "others", lambda: others)
    error = OSError("a save")
    error.__cause__ = ValueError(words)
    error.args = (f"a save: {words}",)
    with pytest.raises(SystemExit) as raised:
        cli._end(error, program="train.py", trace=False)
    assert raised.value.code == statuses.TRY_AGAIN
    assert others.waited == waited


GONE = "Gloo all-reduce failed: connection closed by peer"


def _raise_while_closing(before: str) -> None:
    try:
        raise RuntimeError(before)
    finally:
        raise ValueError("what closes the run meets another error")


def _raise_instead(before: str) -> None:
    try:
        raise RuntimeError(before)
    except RuntimeError:
        raise ValueError("which was expected") from None


@pytest.mark.parametrize(
    "fail, before, status, waited",
    [
        (_raise_while_closing, GONE, statuses.TRY_AGAIN, 1),
        (_raise_while_closing, "a bug", statuses.FAILED, 0),
        (_raise_instead, GONE, statuses.FAILED, 0),
    ],
)
def test_a_lost_host_is_not_hidden_by_what_closes_the_run(
    monkeypatch, fail, before, status, waited
):
    others = Others()
    monkeypatch.setattr(cli.peers, "others", lambda: others)
    with pytest.raises(ValueError) as closing:
        fail(before)
    with pytest.raises(SystemExit) as raised:
        cli._end(closing.value, program="train.py", trace=False)
    assert (raised.value.code, others.waited) == (status, waited)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_host_that_is_lost_at_the_very_end_is_a_reason_to_start_again(
    monkeypatch, stopped
):
    """A preempted machine may vanish while the others wait for it to leave."""
    others = Others()
    monkeypatch.setattr(cli.peers, "others", lambda: others)
    monkeypatch.setattr(cli.app, "run", lambda guarded, **_: guarded([]))
    monkeypatch.setattr(cli.flags, "DEFINE_bool", lambda *_: Trace)
    monkeypatch.setattr(cli.faulthandler, "enable", lambda **_: None)  # pytest has its
    monkeypatch.setattr(cli.sys, "argv", ["train.py"])

    def lost():
        raise statuses.TryAgain("not all 2 hosts came to 'end'")

    def main(argv):
        del argv
        if stopped:
            raise statuses.Stopped(statuses.STOPPED)

    monkeypatch.setattr(cli.runtime, "finish", lost)
    with pytest.raises(SystemExit) as raised:
        cli.run(main)
    assert raised.value.code == statuses.TRY_AGAIN


class Trace:
    value = False


@pytest.mark.parametrize("words", [False, True])
def test_a_word_that_nobody_reads_is_a_mistake(monkeypatch, words):
    """absl ends flags at it: those behind it did nothing, and nobody said so."""
    seen = []
    argv = ["train.py", "true", "--", "--config.no=1", "--workdir=~/x"]
    monkeypatch.setattr(cli.sys, "argv", argv)
    monkeypatch.setattr(cli.app, "run", lambda guarded, **_: guarded(cli.sys.argv))
    monkeypatch.setattr(cli.flags, "DEFINE_bool", lambda *_: Trace)
    monkeypatch.setattr(cli.faulthandler, "enable", lambda **_: None)
    monkeypatch.setattr(cli.runtime, "finish", lambda: None)
    console = rich.console.Console(file=io.StringIO(), width=200)
    monkeypatch.setattr(cli.progress, "console", lambda: console)
    if words:  # and what stands behind -- is another program's
        cli.run(lambda argv: seen.append(list(argv)), words=True)
        assert seen == [argv]
        return
    with pytest.raises(SystemExit) as raised:
        cli.run(lambda argv: seen.append(list(argv)))
    assert raised.value.code == statuses.FAILED and not seen
    assert "'true' is no flag" in console.file.getvalue()
