"""What a client is told when a request is refused, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpo_jax import ledger

_TYPES = {401: "authentication_error", 404: "not_found_error", 503: "overloaded_error"}


class Refused(Exception):
    """A request that gets no answer.

    Attributes:
      status: of HTTP.
      message: the field, its value and what to do.
      param: the field at fault, such as ``messages[1].content``; None is none.
      code: a short name for programs, such as ``too_long``.
      headers: of the response, beside the usual.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """``{"error": {message, type, param, code}}``."""
        usual = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, usual)
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def bad(param: str, message: str, code: str = "invalid_value") -> Refused:
    """A 400 on one field; the message begins with its name."""
    return Refused(400, f"{param}: {message}", param=param, code=code)


def busy(message: str, retry_after: float) -> Refused:
    """A 503 that says when to come again."""
    headers = {"retry-after": str(max(1, round(retry_after)))}
    return Refused(503, message, code="overloaded", headers=headers)


def of_record(error: ledger.BadRecord) -> Refused:
    """The client's share of what the rooms below refuse."""
    status = 413 if error.reason == "image_too_large" else 400
    return Refused(status, error.detail, code=error.reason)
