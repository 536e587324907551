"""Every gcloud command of qr.sh, read by gcloud itself; no account is needed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess

import pytest

REAL = shutil.which("gcloud")
ASKED = [
    ["create", "v6e-64", "--spot", "--labels=team=a"],
    ["run", "--", "python", "scripts/train.py", "--config.mesh.tensor=2"],
    ["logs"],
    ["delete"],
    ["status"],
]


def lint(words: list[str], folder) -> dict:
    """What gcloud says of a command line."""
    done = subprocess.run(
        [
            *("gcloud", "meta", "lint-gcloud-commands"),
            f"--command-string={shlex.join(words)}",
        ],
        env={
            **os.environ,
            "CLOUDSDK_CONFIG": str(folder),
            "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    (found,) = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_gcloud_understands_what_it_is_asked(stand_ins, root, tmp_path):
    if REAL is None:
        pytest.skip("gcloud is not installed")
    stand_ins.add("gcloud", "git")
    secrets = tmp_path / "env"
    secrets.touch(0o600)
    env = {"NAME": "mpo", "ZONE": "us-west4-a", "PROJECT": "p", "BUCKET": "b"}
    env |= {"REPOSITORY": "https://example.org/r.git", "REVISION": "abc", "CHECK": "0"}
    env |= {"ENV_FILE": str(secrets), "JOB": "j"}
    one = "mpo-job host-0 j running 0 0\n"
    stand_ins.script(
        {"describe": [(0, "ACTIVE\t\tv6e-8\t\n")], "job.sh status": [(0, one)]}
    )
    for argv in ASKED:
        done = stand_ins.run([root / "tpu_setup/qr.sh", *argv], **env)
        assert done.returncode == 0, done.stderr
    distinct = {tuple(call) for call in stand_ins.calls("gcloud")}
    kinds = {call[4] for call in distinct}
    assert kinds == {"create", "ssh", "scp", "delete", "describe"}
    for call in sorted(distinct):
        found = lint(list(call), tmp_path / "config")
        assert found["success"], (call, found["error_message"])
    spoilt = [*next(call for call in distinct if "create" in call), "--best-effrt"]
    assert not lint(spoilt, tmp_path / "config")["success"]
