"""How an OpenAI-compatible server is reached, and what its errors mean.

Extra: ``pip install -e '.[endpoint]'``.
"""

from __future__ import annotations

import os
import urllib.parse
from typing import Any

from mpo_jax import ledger
from mpo_jax.generate import endpoint_reply, requests
from mpo_jax.generate.endpoint_asking import EndpointError

ENDPOINT = "endpoint"
"""Reason of a failure that is not the question's fault."""

MAX_CONCURRENCY = 1024
"""Requests in flight at most."""

_CONNECT_S = 10.0
_MAX_WORDS = 500
AGAIN = "start the command again"
_RETRIED = (408, 409, 429)
_OF_ALL = {
    401: "set OPENAI_API_KEY to a key that the server knows",
    403: "set OPENAI_API_KEY to a key that may ask this model",
    404: "check the URL and the model's name; the server may lack this route",
}
"""Statuses that every request would get, and what to do."""


class Client:
    """A server and the model of it that is asked.

    Attributes:
      url: base of its API, which ends in ``/v1``.
      model: its name at the server.
      engine: what the server says that it is, such as ``vllm``; None if nothing.
      version: of the engine, where it says.
      concurrency: requests in flight at most.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None,
        concurrency: int,
        timeout_s: float,
        retries: int,
    ):
        """Ask the server which models it has.

        Args:
          url: such as ``http://host:8000``; ``/v1`` is added where it is missing.
          model: None is the only one that the server has.
          timeout_s: seconds until a request counts as failed.
          retries: further tries of a request that failed for a reason that may pass,
            after 0.5, 1, 2, 4, 8, 8, … seconds (some less by chance), or as the server
            asks.

        Raises:
          EndpointError: the server cannot be reached or has no such model.
          ValueError: an argument is wrong, or the client library is absent.
        """
        self.url = address(url)
        for name, value, low, high in (
            ("concurrency", concurrency, 1, MAX_CONCURRENCY),
            ("retries", retries, 0, 100),
            ("timeout_s", timeout_s, 0.001, 86_400),
        ):
            if not low <= value <= high:
                raise ValueError(f"{name}={value!r}: must be from {low} to {high}")
        self._openai = _client_library()
        self.concurrency = concurrency
        self._timeout_s, self._retries = timeout_s, retries
        with self._openai.OpenAI(**self._options()) as client:
            self.model, self.engine = self._meet(client, model)
            self.version = self._version_of(client)

    def describe(self) -> dict[str, Any]:
        """Who is asked, as JSON values, for a manifest; without credentials.

        What only changes how fast is left out: a run may go on with other values.
        """
        return {
            "url": without_credentials(self.url),
            "model": self.model,
            "engine": self.engine,
            "engine_version": self.version,
        }

    def connect(self) -> Any:
        """What requests go through, an ``AsyncOpenAI`` to be closed."""
        return self._openai.AsyncOpenAI(**self._options())

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What a failed request raises, and whoever reads a bad reply."""
        return (self._openai.APIError, endpoint_reply.BadReply)

    def failure(self, id: str | int, sample: int, error: Any) -> requests.Failure:
        """What came of a request that raised one of :attr:`errors`.

        Raises:
          EndpointError: every request would fail so.
        """
        if isinstance(error, endpoint_reply.BadReply):
            detail, retry = f"{error}; {AGAIN}", True
        else:
            detail, retry = self._explain(error)
        reason = ENDPOINT if retry else "unsupported"
        return requests.Failure(id, sample, reason, detail, retry)

    def _options(self) -> dict[str, Any]:
        """Of a client; the library retries by itself."""
        connect = min(_CONNECT_S, self._timeout_s)
        return {
            "base_url": self.url,
            "api_key": os.environ.get("OPENAI_API_KEY") or "EMPTY",
            "timeout": self._openai.Timeout(self._timeout_s, connect=connect),
            "max_retries": self._retries,
        }

    def _meet(self, client: Any, model: str | None) -> tuple[str, str | None]:
        """Name of the model, and of the engine that serves it."""
        where = without_credentials(self.url)
        try:
            reply = client.models.with_raw_response.list()
            names = endpoint_reply.models_of(reply.text)
        except endpoint_reply.BadReply as error:
            raise EndpointError(f"{where}: {error}; is this its URL?") from error
        except self._openai.APIError as error:
            raise EndpointError(
                f"{where}/models: {_words(error)}; is the server up, and is this its "
                f"URL?{_remedy(error)}"
            ) from error
        if model is None and len(names) == 1:
            model = next(iter(names))
        if model not in names:
            wanted = f"{len(names)} models" if model is None else f"no model {model!r}"
            known = ", ".join(map(repr, names)) or "none"
            raise EndpointError(f"{where} has {wanted}; name one of: {known}")
        return model, names[model]

    def _version_of(self, client: Any) -> str | None:
        """What vLLM says at ``/version``; other engines do not say."""
        root = self.url.removesuffix("/v1")
        bare = client.with_options(base_url=root, max_retries=0)
        try:
            found = bare.get("/version", cast_to=object)
        except (self._openai.APIError, ValueError):  # no such route, or no JSON
            return None
        version = found.get("version") if isinstance(found, dict) else None
        return version if isinstance(version, str) else None

    def _explain(self, error: Any) -> tuple[str, bool]:
        """What happened to a request, and whether another time may be better."""
        status, words = getattr(error, "status_code", 0), _words(error)
        if status in _OF_ALL:
            where = without_credentials(self.url)
            raise EndpointError(f"{where}: {words}{_remedy(error)}") from error
        if 400 <= status < 500 and status not in _RETRIED:
            return f"the server refuses it: {words}; change the question", False
        return f"{words}, after {self._retries} retries; {AGAIN}", True


def address(url: str) -> str:
    """The base of an API, which ends in ``/v1``.

    Raises:
      ValueError: it is no http(s) URL.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known or parts.query or parts.fragment:
        raise ValueError(
            f"endpoint={ledger.short(url)}: must be a URL such as http://localhost:8000"
        )
    path = parts.path.rstrip("/")
    path += "" if path.endswith("/v1") else "/v1"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "", ""))


def without_credentials(url: str) -> str:
    """A URL without user name and password."""
    parts = urllib.parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _client_library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ValueError(
            f"an endpoint needs {error.name}: pip install -e '.[endpoint]'"
        ) from error
    return openai


def _words(error: Any) -> str:
    """What went wrong, in one line: the library's words and the cause's."""
    words = [str(getattr(error, "status_code", "")), error.message, error.__cause__]
    if words[0] in error.message:  # the library names most statuses itself
        del words[0]
    line = ": ".join(" ".join(str(word).split()) for word in words if word)
    return line if len(line) <= _MAX_WORDS else line[:_MAX_WORDS] + "..."


def _remedy(error: Any) -> str:
    remedy = _OF_ALL.get(getattr(error, "status_code", 0))
    return f"; {remedy}" if remedy else ""
