"""What is refused, and how it is said; the server goes on."""

from __future__ import annotations

import io
import json

import pytest
import serve_parts as parts
from PIL import Image

from mpo_jax.serve.limits import Limits

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MANY = 10**5


def image(url: str) -> dict:
    return parts.user({"type": "image_url", "image_url": {"url": url}})


def said(role: str, content="the") -> dict:
    return {"role": role, "content": content}


def bomb(side: int) -> str:
    """A picture of few bytes and many pixels."""
    file = io.BytesIO()
    Image.new("1", (side, side)).save(file, "PNG")
    return parts.uri(file.getvalue())


BAD_FIELDS = [
    ({"temprature": 1}, "temperature", "temprature"),
    ({"zzz": None}, "unknown field", "zzz"),
    ({"frequency_penalty": 0.5}, "must be 0", "frequency_penalty"),
    ({"tools": [{"type": "function"}]}, "nothing else", "tools"),
    ({"n": 0}, "from 1 to", "n"),
    ({"n": 10**9}, "from 1 to", "n"),
    ({"n": True}, "whole number", "n"),
    ({"n": 1.5}, "whole number", "n"),
    ({"seed": 2**63}, "whole number", "seed"),
    ({"temperature": -1}, "number from 0 to 100", "temperature"),
    ({"temperature": "0"}, "number from 0", "temperature"),
    ({"temperature": 10**400}, "number from 0", "temperature"),
    ({"top_p": 0}, "above 0", "top_p"),
    ({"top_p": 2}, "from 0 to 1", "top_p"),
    ({"top_k": -2}, "from -1", "top_k"),
    ({"repetition_penalty": 0}, "above 0", "repetition_penalty"),
    ({"max_tokens": 0}, "from 1", "max_tokens"),
    ({"max_tokens": 10**10}, "from 1", "max_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "=4", "max_completion_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "from 0 to 4", "min_tokens"),
    ({"stop": ["a"] * 17}, "at most 16", "stop"),
    ({"stop": ["a"] * MANY}, "at most 16", "stop"),
    ({"stop": ""}, "1 to 256", "stop"),
    ({"stop": "a" * 257}, "1 to 256", "stop"),
    ({"stop": [1]}, "1 to 256", "stop"),
    ({"stop": {"a": 1}}, "a list", "stop"),
    ({"stop_token_ids": [-1]}, "token ids", "stop_token_ids"),
    ({"stop_token_ids": [True]}, "token ids", "stop_token_ids"),
    ({"stop_token_ids": [1] * 17}, "at most 16", "stop_token_ids"),
    ({"stop_token_ids": [*range(16)]}, "17 with the template's", "stop_token_ids"),
    ({"stream": 1}, "true or false", "stream"),
    ({"stream_options": {"include_usage": True}}, "stream=true", "stream_options"),
    (
        {"stream": True, "stream_options": {"usage": True}},
        "did you mean include_usage",
        "stream_options.usage",
    ),
    ({"logprobs": 1}, "true or false", "logprobs"),
    ({"top_logprobs": 1}, "logprobs=true", "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 5}, "0 or 1", "top_logprobs"),
    ({"mm_processor_kwargs": {"max_dynamic_patch": 0}}, "from 1", None),
    ({"mm_processor_kwargs": {"max_patches": 1}}, "did you mean", None),
    ({"mm_processor_kwargs": [1]}, "no object", "mm_processor_kwargs"),
    ({"continue_final_message": True}, "last message", "continue_final_message"),
    ({"add_generation_prompt": False}, "last message", "add_generation_prompt"),
    ({"messages": "the"}, "a list", "messages"),
    ({"messages": []}, "user", "messages"),
]


@pytest.mark.parametrize("fields, words, param", BAD_FIELDS)
def test_fields(make_client, fields, words, param):
    client, engine = make_client()
    response = client.post(CHAT, json=parts.chat("the?") | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert words in error["message"], error
    if param is not None:
        assert error["param"] == param
        assert param in error["message"]
    assert not engine.asked


@pytest.mark.parametrize(
    "messages, words",
    [
        ([5], "messages[0]: 5 is no object"),
        ([said("tool")], "system or user or assistant"),
        ([said("user"), said("user")], "messages[1].role"),
        ([said("assistant")], "the question"),
        ([said("system")], "the question"),
        ([said("system"), said("system"), said("user")], "the only one"),
        ([said("user"), said("system")], "must be the first"),
        ([said("assistant"), said("user")], "messages[0].role"),
        ([said("user", "")], "messages[0].content: is empty"),
        ([said("user", None)], "a list of parts"),
        ([said("user", [])], "messages[0].content: is empty"),
        ([said("user", [{"type": "video_url"}])], "text or image_url"),
        ([said("user", [{"type": "text"}])], "text alone"),
        ([said("user", [{"type": "image_url"}])], "that field alone"),
        ([said("user") | {"name": "me"}], "unknown field messages[0].name"),
        ([said("system", parts.user(parts.image_part())["content"])], "no image"),
        ([said("user", "the <image>")], "for 0 images"),
        ([parts.user("<image> <image>", parts.image_part())], "for 1 images"),
        ([image("http://localhost/a.png")], "nothing is fetched"),
        ([image("https://example.org/a.png")], "nothing is fetched"),
        ([image("file:///etc/passwd")], "nothing is fetched"),
        ([image("/etc/passwd")], "nothing is fetched"),
        ([image("data:image/png,abc")], "no image in base64"),
        ([image("data:text/html;base64,YQ==")], "no image in base64"),
        ([image("data:image/png;base64,a!b=")], "no base64"),
        ([image("data:image/png;base64,YQ")], "no base64"),
        ([image("data:image/png;base64,é")], "no base64"),
        ([image("data:image/png;base64,")], "is empty"),
        ([image("data:image/png;base64,YWJj")], "none of the formats"),
        ([image(parts.uri(parts.picture()[:200]))], "cannot be decoded"),
        ([parts.user(parts.image_part(detail="best"))], "low or medium or high"),
        ([parts.user(parts.image_part(max_dynamic_patch=41))], "at most 40"),
        ([parts.user(parts.image_part(max_patches=1))], "max_dynamic_patch"),
        (
            [parts.user(parts.image_part(detail="low"), parts.image_part())],
            "share one limit on tiles; found 6, None",
        ),
        ([parts.user(*[parts.image_part()] * 65)], "65 images, at most 64"),
        ([said("user", "a" * 2**18 + "a")], "at most 262144"),
        ([said("user")] * 257, "257 of them, at most 256"),
        ([said("user", "the \ud800")], "not Unicode"),
        ([said("user", "the " * 5000)], "at most 4096"),
    ],
)
def test_messages(make_client, messages, words):
    client, engine = make_client()
    body = json.dumps({"messages": messages})
    head = {"content-type": "application/json"}
    response = client.post(CHAT, content=body, headers=head)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"], response.text
    assert not engine.asked


@pytest.mark.parametrize(
    "fields, words",
    [
        ({}, "prompt"),
        ({"prompt": ""}, "none of them empty"),
        ({"prompt": []}, "none of them empty"),
        ({"prompt": [[]]}, "none of them empty"),
        ({"prompt": ["a", [1]], "echo": True}, "echo"),
        ({"prompt": [1, "a"]}, "list of token ids"),
        ({"prompt": [True]}, "list of token ids"),
        ({"prompt": {"a": 1}}, "list of token ids"),
        ({"prompt": ["a"] * 17}, "17 of them"),
        ({"prompt": ["a"] * 16, "n": 9}, "from 1 to 8"),
        ({"prompt": [1, 10**9]}, "prompt[0][1]: 1000000000 is no token"),
        ({"prompt": [1, -1]}, "is no token"),
        ({"prompt": "a <IMG_CONTEXT>"}, "image token"),
        ({"prompt": "\ud800"}, "no Unicode"),
        ({"prompt": [1] * 4097}, "4097 tokens, at most 4096"),
        ({"prompt": "a", "logprobs": 2}, "0 or 1"),
        ({"prompt": "a", "messages": []}, "unknown field messages"),
    ],
)
def test_prompts(make_client, fields, words):
    client, engine = make_client()
    head = {"content-type": "application/json"}
    response = client.post(TEXT, content=json.dumps(fields), headers=head)
    assert response.status_code == 400, response.text
    assert words in response.json()["error"]["message"], response.text
    assert not engine.asked


def test_image_tokens_among_token_ids(make_client, qwen2):
    client, _ = make_client()
    response = client.post(TEXT, json={"prompt": [1, qwen2.img_context_id]})
    assert response.status_code == 400 and "image token" in response.text


@pytest.mark.parametrize(
    "body, words",
    [
        (b"", "no JSON"),
        (b"the", "no JSON"),
        (b"[]", "no JSON object"),
        (b'{"n": "\xff"}', "no UTF-8: invalid start byte at byte 7"),
        (b'{"temperature": NaN}', "NaN"),
        (b'{"temperature": -Infinity}', "Infinity"),
        (
            b'{"temperature": 1e999, "messages": [{"role": "user", "content": "a"}]}',
            "0",
        ),
        (b'{"n": ' + b"1" * 5000 + b"}", "no JSON"),
        (b'{"messages": ' + b"[" * MANY + b"]" * MANY + b"}", "nested too deeply"),
        (b'{"stop": [' + b"[]," * 2**18 + b"[]]}", "brackets"),
    ],
)
def test_bodies(make_client, body, words):
    client, _ = make_client()
    head = {"content-type": "application/json"}
    response = client.post(CHAT, content=body, headers=head)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]
    assert client.post(CHAT, json=parts.chat("the?")).status_code == 200


def test_pictures_with_too_many_pixels(make_client):
    limits = Limits(image_pixels=10**6, request_pixels=15 * 10**5)
    client, engine = make_client(limits=limits)
    one = client.post(CHAT, json=parts.chat(image(bomb(1001))))
    assert one.status_code == 413
    assert "more than 1000000 pixels" in one.json()["error"]["message"]
    assert one.json()["error"]["param"] == "messages[0].content[0].image_url"
    huge = client.post(CHAT, json=parts.chat(image(bomb(20_000))))
    assert huge.status_code == 413 and "1000000 pixels" in huge.text
    two = parts.user(*image(bomb(900))["content"] * 2)
    both = client.post(CHAT, json=parts.chat(two))
    assert both.status_code == 413 and "1620000 pixels together" in both.text
    assert client.post(CHAT, json=parts.chat(image(bomb(1000)))).status_code == 200
    assert len(engine.asked) == 1


def test_more_tiles_than_a_prompt_can_have(make_client):
    client, engine = make_client(max_prompt_tokens=100)
    wide = parts.picture(parts.SIDE * 24, parts.SIDE)
    body = parts.chat(parts.user(parts.image_part(wide, detail="high")))
    response = client.post(CHAT, json=body)
    assert response.status_code == 400
    assert "images take 100 tokens" not in response.text
    assert "100 at most; lower max_dynamic_patch" not in response.text
    body = parts.chat(parts.user(*[parts.image_part(wide, detail="high")] * 2))
    response = client.post(CHAT, json=body)
    assert "images take 200 tokens, prompts have 100" in response.text
    assert not engine.asked


def test_the_engine_s_own_refusal(make_client):
    client, engine = make_client()
    engine.max_prompt_tokens = 3  # less than the server knows
    response = client.post(CHAT, json=parts.chat("the?", stream=True))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "too_long"
    engine.max_prompt_tokens = 4096
    assert client.post(CHAT, json=parts.chat("the?")).status_code == 200


def test_bodies_that_are_too_large(make_client):
    client, _ = make_client(limits=Limits(body_bytes=1000))
    head = {"content-type": "application/json"}
    told = client.post(CHAT, content=b"a" * 1001, headers=head)
    assert told.status_code == 413 and "1000 bytes" in told.text
    read = []

    def pieces():
        for number in range(100):
            read.append(number)
            yield b"a" * 100

    untold = client.post(CHAT, content=pieces(), headers=head)
    assert untold.status_code == 413
    assert client.post(CHAT, json=parts.chat("the?")).status_code == 200


def test_other_kinds_routes_and_models(make_client):
    client, _ = make_client()
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        response = client.post(CHAT, content=b"{}", headers={"content-type": kind})
        assert response.status_code == 415 and kind in response.text
    other = client.post(CHAT, json=parts.chat("the?", model="gpt-4"))
    assert other.status_code == 404
    assert other.json()["error"]["code"] == "model_not_found"
    for response in (client.get(CHAT), client.post("/v1/embeddings", json={})):
        assert response.status_code in (404, 405)
        assert response.json()["error"]["message"]


def test_a_key(make_client):
    client, _ = make_client(api_key="secret")
    right = {"authorization": "Bearer secret"}
    for head in ({}, {"authorization": "Bearer sécret"}, {"authorization": "secret"}):
        head = {name: value.encode() for name, value in head.items()}
        for response in (
            client.post(CHAT, json=parts.chat("the?"), headers=head),
            client.get("/v1/models", headers=head),
            client.get("/metrics", headers=head),
        ):
            assert response.status_code == 401
            assert response.json()["error"]["type"] == "authentication_error"
    assert client.get("/health").status_code == 200
    answer = client.post(CHAT, json=parts.chat("the?"), headers=right)
    assert answer.status_code == 200
    assert client.get("/v1/models", headers=right).status_code == 200


def test_other_names_of_the_host(make_client):
    client, _ = make_client(hosts=("localhost", "127.0.0.1", "[::1]", "::1"))
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert client.get("/health", headers={"host": host}).status_code == 200
    evil = client.get("/v1/models", headers={"host": "evil.example"})
    assert evil.status_code == 400


def test_limits_have_bounds(make_client):
    with pytest.raises(ValueError, match="limits.requests=0 must be positive"):
        make_client(limits=Limits(requests=0))
