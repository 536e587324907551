"""tpu_setup/startup.sh with stand-ins for the metadata server, git and uv."""

from __future__ import annotations

import pytest


@pytest.fixture
def boot(stand_ins, root):
    base, pages = stand_ins.base / "opt", stand_ins.base / "enabled"
    stand_ins.add("curl", "git", "python3", "mountpoint", "gcsfuse")

    def run(**answers):
        script = {
            "mpo-repository": [(0, "https://example.org/r.git\n")],
            "mpo-revision": [(0, "abc123\n")],
            "mpo-bucket": [(22, "")],
            "rev-parse": [(0, "abc123\n")],
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
        )
        return done, base, pages

    return run


def test_installs_the_pinned_revision(boot, stand_ins):
    done, base, pages = boot()
    assert done.returncode == 0, done.stderr
    assert (base / "ready").read_text() == "abc123\n"
    assert not (base / "failed").exists()
    assert pages.read_text() == "always\n"
    calls = [" ".join(call) for call in stand_ins.calls()]
    fetch = next(
        i for i, line in enumerate(calls) if "fetch --quiet origin abc123" in line
    )
    install = next(i for i, line in enumerate(calls) if f"{base}/src[tpu]" in line)
    assert fetch < install
    assert not [line for line in calls if line.startswith("gcsfuse")]


@pytest.mark.parametrize(
    "answers, message",
    [
        ({"mpo-repository": [(22, "")]}, "mpo-repository"),
        ({"mpo-revision": [(22, "")]}, "mpo-revision"),
        ({"checkout": [(1, "")]}, ""),
        ({"uv pip install": [(1, "")]}, ""),
    ],
    ids=["no repository", "no revision", "checkout", "install"],
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
