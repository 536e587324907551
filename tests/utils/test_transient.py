"""What passes by itself is tried again; what does not is raised at once."""

from __future__ import annotations

import errno

import pytest

from mpo_jax.utils import cli, statuses, transient


def failing(times: int, error: Exception):
    calls = []

    def action() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "read"

    return action, calls


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch):
    monkeypatch.setattr(transient.tenacity.nap.time, "sleep", lambda seconds: None)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_storage_that_comes_back(number, caplog):
    action, calls = failing(3, OSError(number, "away", "a.jpg"))
    assert transient.patiently(action, "a.jpg", seconds=60) == "read"
    assert len(calls) == 4
    assert "a.jpg" in caplog.text and "trying again" in caplog.text


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no"), OSError(errno.ENOSPC, "full"), ValueError()]
)
def test_what_does_not_pass_is_not_tried_again(error):
    action, calls = failing(3, error)
    with pytest.raises(type(error)):
        transient.patiently(action, "a.jpg", seconds=60)
    assert len(calls) == 1
    assert cli.status_of(error) == statuses.FAILED


def test_what_has_not_passed_asks_for_another_start():
    action, calls = failing(9, OSError(errno.EIO, "away"))
    with pytest.raises(statuses.TryAgain, match="a.jpg: .*tried for 0 s") as raised:
        transient.patiently(action, "a.jpg", seconds=0)
    assert len(calls) == 1
    assert cli.status_of(raised.value) == statuses.TRY_AGAIN == 75


def test_the_cause_of_an_error_counts():
    try:
        try:
            raise OSError(errno.EIO, "away")
        except OSError as cause:
            raise ValueError("batch 3") from cause
    except ValueError as error:
        assert cli.status_of(error) == statuses.TRY_AGAIN
