"""tpu_setup/startup.sh with stand-ins for the metadata server, git and uv."""

from __future__ import annotations

import pytest


@pytest.fixture
def boot(stand_ins, root):
    base, pages = stand_ins.base / "opt", stand_ins.base / "enabled"
    stand_ins.add("curl", "git", "python3", "mountpoint", "gcsfuse", "gcloud")

    def run(**answers):
        script = {
            "mpo-repository": [(0, "https://example.org/r.git\n")],
            "mpo-revision": [(0, "abc123\n")],
            "mpo-bucket": [(22, "")],
            "rev-parse": [(0, "abc123\n")],
            "cat-file": [(1, "")],
            "mountpoint": [(1, "")],
        }
        stand_ins.script({**script, **answers})
        (base / "uv/bin").mkdir(parents=True, exist_ok=True)
        stand_ins.add("uv")
        uv = base / "uv/bin/uv"
        uv.unlink(missing_ok=True)
        (stand_ins.bin / "uv").rename(uv)
        done = stand_ins.run(
            ["bash", root / "tpu_setup/startup.sh"],
            MPO_BASE=str(base),
            MPO_HUGEPAGES=str(pages),
            MPO_MOUNT=str(stand_ins.base / "bucket"),
        )
        return done, base, pages

    return run


def lines(stand_ins, *names):
    return [" ".join(call) for call in stand_ins.calls(*names)]


def test_installs_the_pinned_revision(boot, stand_ins):
    done, base, pages = boot()
    assert done.returncode == 0, done.stderr
    assert (base / "ready").read_text() == "abc123\n"
    assert not (base / "failed").exists()
    assert pages.read_text() == "always\n"
    calls = lines(stand_ins)
    fetch = next(
        i
        for i, line in enumerate(calls)
        if "fetch --quiet https://example.org/r.git abc123" in line
    )
    install = next(i for i, line in enumerate(calls) if "pip install" in line)
    assert fetch < install
    assert not lines(stand_ins, "gcsfuse", "gcloud")


def test_installs_what_the_locks_say_and_nothing_else(boot, stand_ins):
    _, base, _ = boot()
    installs = [line for line in lines(stand_ins) if "pip install" in line]
    locks = f"{base}/src/tpu_setup/locks"
    first, second, ours = installs
    assert first.startswith("python3 ") and f"--requirement {locks}/uv.txt" in first
    assert f"--requirement {locks}/tpu-3.11.txt" in second
    assert all("--require-hashes" in line for line in (first, second))
    # The project itself, with nothing fetched for it.
    assert f"--no-deps --no-build-isolation --editable {base}/src" in ours


def test_private_code_comes_out_of_the_bucket(boot, stand_ins):
    done, base, _ = boot(
        **{"mpo-repository": [(0, "gs://b/code.bundle\n")], "cat-file": [(0, "")]}
    )
    assert done.returncode == 0, done.stderr
    (copied,) = lines(stand_ins, "gcloud")
    assert copied == f"gcloud storage cp gs://b/code.bundle {base}/code.bundle"
    calls = lines(stand_ins, "git")
    assert calls[0] == f"git clone --quiet {base}/code.bundle {base}/src"
    assert not [line for line in calls if " fetch " in line]  # a bundle has no sha


def test_the_mount_is_for_reading_and_every_option_is_said(boot, stand_ins):
    done, _, _ = boot(**{"mpo-bucket": [(0, "my-bucket\n")]})
    assert done.returncode == 0, done.stderr
    (mount,) = stand_ins.calls("gcsfuse")
    assert mount[1:3] == ["-o", "allow_other,ro"]
    assert set(mount[3:-2]) == {
        "--implicit-dirs",
        "--file-mode=444",
        "--dir-mode=555",
        "--metadata-cache-ttl-secs=60",
        "--kernel-list-cache-ttl-secs=0",
    }
    assert mount[-2:] == ["my-bucket", str(stand_ins.base / "bucket")]


def test_a_bucket_that_is_mounted_stays(boot, stand_ins):
    done, _, _ = boot(**{"mpo-bucket": [(0, "my-bucket\n")], "mountpoint": [(0, "")]})
    assert done.returncode == 0 and not stand_ins.calls("gcsfuse")


@pytest.mark.parametrize(
    "answers, message",
    [
        ({"mpo-repository": [(22, "")]}, "mpo-repository"),
        ({"mpo-revision": [(22, "")]}, "mpo-revision"),
        ({"checkout": [(1, "")]}, ""),
        ({"uv pip install": [(1, "")]}, ""),
        ({"uv.txt": [(1, "")]}, ""),
        ({"mpo-bucket": [(0, "b")], "gcsfuse": [(1, "")]}, ""),
    ],
    ids=["no repository", "no revision", "checkout", "install", "uv", "mount"],
)
def test_a_failure_is_left_as_a_mark(boot, answers, message):
    done, base, _ = boot(**answers)
    assert done.returncode != 0 and message in done.stderr
    assert (base / "failed").exists() and not (base / "ready").exists()


def test_a_second_boot_starts_clean(boot):
    _, base, _ = boot(checkout=[(1, "")])
    assert (base / "failed").exists()
    done, base, _ = boot()
    assert done.returncode == 0, done.stderr
    assert (base / "ready").exists() and not (base / "failed").exists()
