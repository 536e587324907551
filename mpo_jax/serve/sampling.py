"""How an answer is drawn and delivered: fields that both routes share."""

from __future__ import annotations

import dataclasses
import secrets

from mpo_jax.generate import requests
from mpo_jax.serve import errors
from mpo_jax.serve.json_fields import Fields, is_integer
from mpo_jax.serve.limits import Limits

FIELDS = (
    *("model", "n", "seed", "temperature", "top_p", "top_k", "max_tokens"),
    *("min_tokens", "repetition_penalty", "stop", "stop_token_ids", "logprobs"),
    *("stream", "stream_options", "return_token_ids"),
)
"""Names that both routes know."""

IGNORED = (
    *("user", "safety_identifier", "metadata", "service_tier", "prompt_cache_key"),
    "dataset",  # sent along by VLMEvalKit's LMDeploy client
)
"""Fields that are accepted and have no effect."""

ONLY = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "min_p": (0,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "best_of": (1,),
    "use_beam_search": (False,),
    "ignore_eos": (False,),
    "skip_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "echo": (False,),
    "store": (False,),
}
"""Fields of other servers that may say what is done here anyway."""

_MAX_TOKENS = 2**20
_MAX_LENGTHS = ("max_tokens", "max_completion_tokens")


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What is sent back.

    Attributes:
      stream: in pieces as they come.
      include_usage: (stream) token counts at the end.
      logprobs: of every token.
      return_token_ids: of prompt and answers.
    """

    stream: bool
    include_usage: bool
    logprobs: bool
    return_token_ids: bool

    @property
    def tells_tokens(self) -> bool:
        """Is each token told of, its text certain or not?"""
        return self.logprobs or self.return_token_ids


def read_sampling(
    body: Fields, limits: Limits, *, default_tokens: int, prompts: int = 1
) -> requests.Sampling:
    """Sampling of a request; without a seed one is drawn.

    Args:
      default_tokens: `max_tokens` where the request has none.
      prompts: of the request; they share the limit on samples.

    Raises:
      Refused: 400.
    """
    longest = _max_tokens(body, default_tokens)
    top_k = body.integer("top_k", 0, -1, 2**31 - 1)
    return requests.Sampling(
        n=body.integer("n", 1, 1, max(1, limits.samples // prompts)),
        seed=body.integer("seed", secrets.randbits(63), -(2**63), 2**63 - 1),
        max_new_tokens=longest,
        min_new_tokens=body.integer("min_tokens", 0, 0, longest),
        temperature=body.number("temperature", 1.0, 0.0, 100.0),
        top_p=_positive(body, "top_p", 1.0),
        top_k=max(0, top_k),
        repetition_penalty=_positive(body, "repetition_penalty", 100.0),
        stop_ids=_stop_ids(body),
        stop=_stops(body),
    )


def _max_tokens(body: Fields, default: int) -> int:
    named = [name for name in _MAX_LENGTHS if body.has(name)]
    found = [body.integer(name, default, 1, _MAX_TOKENS) for name in named]
    if len(set(found)) > 1:
        raise body.bad(_MAX_LENGTHS[1], f"equal to max_tokens={found[0]}, or absent")
    return found[0] if found else default


def _positive(body: Fields, name: str, high: float) -> float:
    value = body.number(name, 1.0, 0.0, high)
    if not value:
        raise body.bad(name, f"above 0 and at most {high:g}")
    return value


def _stops(body: Fields) -> tuple[str, ...]:
    if isinstance(body.value("stop"), str):
        texts = [body.value("stop")]
    else:
        texts = body.listed("stop", requests.MAX_STOPS)
    for text in texts:
        longest = requests.MAX_STOP_CHARACTERS
        if not isinstance(text, str) or not 0 < len(text) <= longest:
            wanted = f"a text of 1 to {longest} characters, or a list of such"
            raise body.bad("stop", wanted)
    return tuple(texts)


def _stop_ids(body: Fields) -> tuple[int, ...]:
    ids = body.listed("stop_token_ids", requests.MAX_STOP_IDS)
    if not all(is_integer(i) and 0 <= i < 2**31 for i in ids):
        raise body.bad("stop_token_ids", "a list of token ids")
    return tuple(ids)


def read_delivery(body: Fields, *, logprobs: bool) -> Delivery:
    """What is sent back.

    Raises:
      Refused: 400.
    """
    stream = body.boolean("stream", False)
    options = Fields(
        body.value("stream_options") or {},
        "stream_options",
        ("include_usage", "continuous_usage_stats", "include_obfuscation"),
    )
    options.only({"continuous_usage_stats": (False,), "include_obfuscation": (False,)})
    if body.has("stream_options") and not stream:
        raise errors.bad("stream_options", "only with stream=true")
    return Delivery(
        stream=stream,
        include_usage=options.boolean("include_usage", False),
        logprobs=logprobs,
        return_token_ids=body.boolean("return_token_ids", False),
    )


def check_model(body: Fields, name: str) -> None:
    """Check that the request means the model that is served; absent is that one.

    Raises:
      Refused: 404.
    """
    asked = body.text("model", name)
    if asked != name:
        raise errors.Refused(
            404,
            f"model {asked[:200]!r} is not served here; {name!r} is",
            param="model",
            code="model_not_found",
        )
