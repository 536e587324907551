"""What passes by itself is tried again; what does not is raised at once."""

from __future__ import annotations

import errno

import aiohttp
import pytest
import requests

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


class Answer(Exception):
    """As gcsfs raises it."""

    def __init__(self, code):
        super().__init__("the store said so")
        self.code = code


TENSORSTORE = 'UNKNOWN: Failed writing: "/c/d/12": Failed to write 9 bytes to file 4: '


@pytest.mark.parametrize(
    "error, passes",
    [
        (ValueError(TENSORSTORE + "Input/output error [os_error_code='5']"), True),
        (ValueError("ABORTED: … Stale file handle [os_error_code='116']"), True),
        (ValueError("RESOURCE_EXHAUSTED: … [os_error_code='28']"), False),
        (ValueError("PERMISSION_DENIED: … [os_error_code='13']"), False),
        (ValueError("UNAVAILABLE: … [http_response_code='503' x='1']"), True),
        (ValueError("INVALID_ARGUMENT: … [http_response_code='400']"), False),
        (ValueError("[os_error_code='99999999999']"), False),
        (ValueError("os_error 5"), False),
        (Answer(503), True),
        (Answer("429"), True),
        (Answer(404), False),
        (Answer(None), False),
        (SystemExit(503), False),
        (aiohttp.ServerDisconnectedError(), True),
        (aiohttp.ClientPayloadError("cut"), True),
        (aiohttp.InvalidURL("x"), False),
        (requests.exceptions.ChunkedEncodingError("cut"), True),
        (requests.exceptions.ConnectionError("reset"), True),
        (requests.exceptions.ReadTimeout("slow"), True),
        (requests.exceptions.InvalidURL("x"), False),
    ],
)
def test_what_stores_and_their_clients_say(error, passes):
    """TensorStore's ``ValueError`` has the number or the status in its words."""
    assert transient.is_transient(error) == passes
    wrapped = RuntimeError("a save")
    wrapped.__cause__ = error
    assert transient.is_transient(wrapped) == passes


def test_the_numbers_of_an_error_and_of_its_causes():
    error = OSError("a save")
    error.__cause__ = ValueError("[os_error_code='28']")
    error.__cause__.__cause__ = OSError(errno.EIO, "away")
    assert transient.numbers(error) == {errno.ENOSPC, errno.EIO}
    assert transient.numbers(ValueError("no")) == set()
