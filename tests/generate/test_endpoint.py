"""The endpoint client against a server that makes prompts by the engines' rules."""

from __future__ import annotations

import base64
import builtins
import contextlib
import dataclasses
import io
import time

import jinja2
import numpy as np
import openai_double
import pytest
from PIL import Image, ImageOps

from mpo_jax.generate import endpoint as endpoint_lib
from mpo_jax.generate import (
    endpoint_asking,
    endpoint_client,
    endpoint_prompt,
    endpoint_reply,
    requests,
)
from mpo_jax.generate.requests import Answer, Failure, Question, Sampling
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import prompt as prompt_lib
from mpo_jax.inputs import template as template_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib

SIDE, PER_TILE = 28, 4
GREEDY = Sampling()
SEED_B = 720079663921728


def policy_of(template: str) -> prompt_lib.PromptPolicy:
    return prompt_lib.PromptPolicy(
        template=template,
        image_size=SIDE,
        tokens_per_tile=PER_TILE,
        min_tiles=1,
        max_tiles=6,
        use_thumbnail=True,
        max_image_pixels=1_000_000,
    )


@dataclasses.dataclass
class Pair:
    """A server and how to open clients of its model."""

    double: openai_double.Double

    def endpoint(self, **options) -> endpoint_lib.Endpoint:
        own = {"tokenizer": self.double.tokenizer, "policy": self.double.policy}
        return endpoint_lib.Endpoint(self.double.url, **(own | options))

    def ask(self, *questions: Question, sampling: Sampling = GREEDY, **options):
        return list(self.endpoint(**options).answers(questions, sampling))


@pytest.fixture
def start(qwen2_dir, internlm2_dir):
    """Starts a server; of the InternLM2 tokenizer where a template strips or joins."""
    with contextlib.ExitStack() as stack:

        def started(template: str = "internvl2_5", **options) -> Pair:
            path = qwen2_dir if template == "internvl2_5" else internlm2_dir
            tokenizer = tokenizer_lib.load_tokenizer(path)
            double = openai_double.Double(tokenizer, policy_of(template), **options)
            return Pair(stack.enter_context(openai_double.serve(double)))

        yield started


@pytest.fixture
def pair(start) -> Pair:
    return start()


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    """Four tiles: three and the whole."""
    path = tmp_path_factory.mktemp("pictures") / "wide.png"
    Image.new("RGB", (90, 30), (9, 99, 199)).save(path)
    return str(path)


def data_url(path: str, kind: str = "image/png") -> str:
    with open(path, "rb") as file:
        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"


def test_what_is_sent(pair, picture):
    question = Question("q", "the?", images=(picture,), seed=3)
    sampling = Sampling(
        temperature=0.5, top_p=0.9, top_k=7, repetition_penalty=1.1, stop=("!",)
    )
    sampling = dataclasses.replace(
        sampling, max_new_tokens=9, min_new_tokens=2, stop_ids=(5,)
    )
    (answer,) = pair.ask(question, sampling=sampling, max_tiles=4)
    assert isinstance(answer, Answer)
    end = pair.double.tokenizer.id_of("<|im_end|>")
    assert pair.double.paths == ["/v1/chat/completions"]
    assert pair.double.bodies == [
        {
            "model": "internvl",
            "messages": [
                {
                    "role": "system",
                    "content": template_lib.get_template("internvl2_5").system_message,
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {
                                "url": data_url(picture),
                                "max_dynamic_patch": 4,
                            },
                        },
                        {"type": "text", "text": "the?"},
                    ],
                },
            ],
            "n": 1,
            "seed": endpoint_prompt.seed_of(question, 0, 0),
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 7,
            "min_p": 0.0,
            "repetition_penalty": 1.1,
            "max_tokens": 9,
            "min_tokens": 2,
            "stop": ["!"],
            "stop_token_ids": [end, 5],
            "logprobs": True,
            "return_token_ids": True,
            "mm_processor_kwargs": {"max_dynamic_patch": 4},
        }
    ]


def test_what_is_sent_of_text_alone(pair):
    (answer,) = pair.ask(Question("q", "the?", system="an an", history=(("a", "b"),)))
    assert isinstance(answer, Answer)
    body = pair.double.bodies[0]
    assert body["messages"] == [
        {"role": "system", "content": "an an"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "the?"},
    ]
    # Nothing is left to the server's defaults, nor to its generation_config.json.
    told = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}
    told |= {"min_p": 0.0, "min_tokens": 0, "max_tokens": 1024, "stop": None, "n": 1}
    assert told.items() <= body.items()
    assert "mm_processor_kwargs" not in body


def test_what_an_answer_holds(pair):
    pair.double.text = "the an"
    (answer,) = pair.ask(Question("q", "the?"))
    tokenizer = pair.double.tokenizer
    ids = (*tokenizer.encode("the an", bos=False), tokenizer.id_of("<|im_end|>"))
    own = prompt_lib.make_prompt("the?", tokenizer, policy=pair.double.policy)
    logps = tuple(-0.5 - k for k in range(len(ids)))
    assert answer == Answer(
        id="q",
        sample=0,
        text="the an",
        finish_reason="stop",
        prompt_tokens=len(own.ids),
        tokens=len(ids),
        logprob=sum(logps),
        token_ids=ids,
        token_logprobs=logps,
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang", "lmdeploy"])
@pytest.mark.parametrize("template", ["internvl2_5", "Hermes-2", "internlm2-chat"])
def test_engines_make_our_prompt(start, picture, engine, template):
    """The double counts by the engine's rules, and vLLM's tokens are compared too."""
    pair = start(template, engine=engine)
    front = [
        Question("bare", " the? ", images=(picture,)),
        Question("one", "<image>\nthe an?", images=(picture,)),
        Question("two", "<image>\n<image>\nthe!", images=(picture,) * 2),
        Question(
            "history",
            "and\n0",
            images=(picture,),
            history=(("<image>\nthe", "an"), (" the ", "0")),
        ),
        Question("begun", "the?", images=(picture,), prefix="an"),
        Question("ids", "the?", prefix=(7, 8)),
    ]
    inside = [
        Question("inside", "0: <image>\n1: <image>an", images=(picture,) * 2),
        Question("behind", "the\n<image>", images=(picture,)),
    ]
    found = {item.id: item for item in pair.ask(*front, *inside)}
    assert all(isinstance(found[question.id], Answer) for question in front)
    for question in inside:
        if engine == "sglang":  # it can only put images in front
            failure = found[question.id]
            assert (failure.reason, failure.retry) == ("unsupported", False)
        else:
            assert isinstance(found[question.id], Answer)
    tokens = {name: item.prompt_tokens for name, item in found.items() if name == "two"}
    made = prompt_lib.make_prompt(
        front[2].question,
        pair.double.tokenizer,
        policy=pair.double.policy,
        images=front[2].images,
    )
    assert tokens == {"two": len(made.ids)}


def test_engines_have_words_of_their_own(start, picture):
    pair = start(engine="lmdeploy")
    sampling = Sampling(min_new_tokens=3)
    question = Question("q", "the <image>", images=(picture,))
    (answer,) = pair.ask(question, sampling=sampling)
    body = pair.double.bodies[0]
    assert body["messages"][1]["content"][1]["text"] == "the <IMAGE_TOKEN>"
    assert (body["top_k"], body["min_new_tokens"]) == (0, 3)
    assert "min_tokens" not in body and "stop_token_ids" not in body
    assert answer.logprob is None and answer.token_logprobs is None
    assert len(answer.token_ids) == answer.tokens
    with pytest.raises(ValueError, match="stop_ids.*lmdeploy.*stop"):
        pair.ask(question, sampling=Sampling(stop_ids=(5,)))
    (failure,) = pair.ask(Question("q", "the <IMAGE_TOKEN>"))
    assert failure.reason == "unsupported" and "<IMAGE_TOKEN>" in failure.detail


def test_tile_limit_is_shared(pair, picture):
    question = Question("q", "<image>\n<image>\nthe", images=(picture,) * 2)
    pair.ask(question, max_tiles=5)
    body = pair.double.bodies[0]
    parts = body["messages"][1]["content"][:2]
    assert [part["image_url"]["max_dynamic_patch"] for part in parts] == [2, 2]
    assert body["mm_processor_kwargs"] == {"max_dynamic_patch": 2}


def test_images_of_a_conversation_go_with_their_turns(pair, picture, tmp_path):
    other = written(Image.new("RGB", (30, 30)), "small.png", tmp_path)
    history = (("the <image>\n<image>", "an"), ("and?", "0"))
    question = Question("q", "<image>\n!", images=(other, picture, picture))
    question = dataclasses.replace(question, history=history)
    (answer,) = pair.ask(question)
    assert isinstance(answer, Answer)
    sent = [
        [part["image_url"]["url"] for part in message["content"][:-1]]
        for message in pair.double.bodies[0]["messages"]
        if isinstance(message["content"], list)
    ]
    assert sent == [[data_url(other), data_url(picture)], [data_url(picture)]]


def written(image: Image.Image, name: str, folder, **options) -> str:
    path = folder / name
    image.save(path, **options)
    return str(path)


def test_image_bytes_are_what_the_model_sees(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    rgb = Image.fromarray(colours[..., :3])
    rgba = Image.fromarray(colours)
    turned = Image.Exif()
    turned[0x0112] = 6
    as_they_are = {
        written(rgb, "a.png", tmp_path): "image/png",
        written(rgb, "a.jpg", tmp_path): "image/jpeg",
        written(rgb, "a.webp", tmp_path, lossless=True): "image/webp",
        written(rgb, "a.gif", tmp_path): "image/gif",
        written(rgb, "a.bmp", tmp_path): "image/bmp",
        written(rgb.convert("L"), "l.png", tmp_path): "image/png",
    }
    anew = [
        written(rgba, "rgba.png", tmp_path),
        written(rgb, "turned.jpg", tmp_path, exif=turned),
        written(rgb, "a.tiff", tmp_path),
        written(rgb, "a.ppm", tmp_path),
        written(rgb, "a.tga", tmp_path),
        written(rgb.convert("CMYK"), "cmyk.jpg", tmp_path),
        written(
            *(rgb, "moving.gif", tmp_path),
            **{"save_all": True, "append_images": [ImageOps.invert(rgb)]},
        ),
        written(rgb, "clear.png", tmp_path, transparency=(1, 2, 3)),
    ]
    for path, kind in as_they_are.items():
        sent = endpoint_prompt.image_bytes(path, 10_000, images_lib.read_file)
        assert sent == (kind, images_lib.read_file(path)), path
    for path in anew:
        kind, data = endpoint_prompt.image_bytes(path, 10_000, images_lib.read_file)
        assert kind == "image/png" and data != images_lib.read_file(path), path
        with Image.open(io.BytesIO(data)) as image:
            assert image.mode == "RGB" and not image.getexif() and not image.info
            ours = images_lib.open_image(path, max_pixels=10_000)
            np.testing.assert_array_equal(np.asarray(image), np.asarray(ours))


def test_a_beginning_without_image_goes_as_tokens(pair):
    tokenizer, policy = pair.double.tokenizer, pair.double.policy
    for prefix in ("the an", tuple(tokenizer.encode("the!", bos=False))):
        pair.double.bodies.clear()
        (answer,) = pair.ask(Question("q", "the?", prefix=prefix))
        made = prompt_lib.make_prompt("the?", tokenizer, policy=policy, prefix=prefix)
        (body,) = pair.double.bodies
        assert body["prompt"] == made.ids.tolist()
        assert (body["logprobs"], body["echo"], body["n"]) == (1, False, 1)
        assert "messages" not in body and "continue_final_message" not in body
        assert answer.prompt_tokens == len(made.ids)
        assert answer.logprob is not None and answer.token_ids is not None
    assert set(pair.double.paths) == {"/v1/completions"}


def test_a_beginning_with_image_is_the_last_message(pair, picture):
    tokenizer = pair.double.tokenizer
    for prefix in ("the an", tuple(tokenizer.encode("the an", bos=False))):
        pair.double.bodies.clear()
        question = Question("q", "the?", images=(picture,), prefix=prefix)
        (answer,) = pair.ask(question)
        (body,) = pair.double.bodies
        assert body["messages"][-1] == {"role": "assistant", "content": "the an"}
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
        assert isinstance(answer, Answer) and answer.text == "the an"
    # "t", "h" are "th" as text: no request gives these tokens.
    split = tuple(tokenizer.id_of(letter) for letter in "th")
    question = Question("q", "the?", images=(picture,), prefix=split)
    (failure,) = pair.ask(question)
    assert (failure.sample, failure.reason, failure.retry) == (
        None,
        "unsupported",
        False,
    )
    assert "other tokens" in failure.detail


@pytest.mark.parametrize("images", [0, 1])
def test_an_echo_is_no_answer(pair, picture, images):
    def echo(reply, body):
        for choice in reply["choices"]:
            if "text" in choice:
                choice["text"] = "an 0 0 " + choice["text"]
            else:
                choice["message"]["content"] = "an 0 0 " + choice["message"]["content"]

    question = Question("q", "the?", images=(picture,) * images, prefix="an 0 0 ")
    pair.double.text = "an 0 0 an 0 0 !"  # a model may repeat itself
    (answer,) = pair.ask(question)
    assert answer.text == pair.double.text
    pair.double.text, pair.double.change = "the!", echo
    (failure,) = pair.ask(question)
    assert failure.retry and "repeats the given beginning" in failure.detail


def test_every_sample_has_a_seed_of_its_own(pair):
    sampling = Sampling(n=5, seed=11, temperature=1.0)
    own = Question("a", "the?", seed=4)
    questions = (own, Question("b", "the?"), Question(1, "!"), Question("1", "!"))
    answers = pair.ask(*questions, sampling=sampling)
    assert {(a.id, a.sample) for a in answers} == {
        (q.id, k) for q in questions for k in range(5)
    }
    seeds = sorted(body["seed"] for body in pair.double.bodies)
    assert len(set(seeds)) == 20 and 1 <= seeds[0] <= seeds[-1] <= 2**53
    assert all(body["n"] == 1 for body in pair.double.bodies)
    pair.double.bodies.clear()
    pair.ask(*questions[::-1], sampling=sampling)
    assert sorted(body["seed"] for body in pair.double.bodies) == seeds
    # Resuming relies on it: this must never change.
    assert endpoint_prompt.seed_of(questions[1], 11, 0) == SEED_B
    other = dataclasses.replace(sampling, seed=12)
    assert endpoint_prompt.seed_of(questions[1], other.seed, 0) != SEED_B
    again = endpoint_prompt.seed_of(own, 11, 2)
    assert again == endpoint_prompt.seed_of(own, 12, 2) in seeds


def test_skipped_samples_are_not_asked(pair):
    questions = [Question("a", "the?"), Question("b", "the?")]
    answers = pair.endpoint().answers(
        questions, Sampling(n=3), skip=lambda name, sample: name == "a" or sample == 1
    )
    assert {(a.id, a.sample) for a in answers} == {("b", 0), ("b", 2)}
    assert len(pair.double.bodies) == 2


@pytest.mark.parametrize("faults", [[429, 500], [408, 409], [503, 429]])
def test_what_may_pass_is_tried_again(pair, faults):
    endpoint = pair.endpoint()
    pair.double.faults = list(faults)
    (answer,) = endpoint.answers([Question("q", "the?")], GREEDY)
    assert isinstance(answer, Answer)
    assert len(pair.double.bodies) == 3
    assert pair.double.bodies[0] == pair.double.bodies[2]


def test_a_broken_connection_is_tried_again(pair):
    endpoint = pair.endpoint()
    pair.double.faults = [openai_double.HANG_UP]
    (answer,) = endpoint.answers([Question("q", "the?")], GREEDY)
    assert isinstance(answer, Answer) and len(pair.double.bodies) == 2


def test_after_the_last_try_it_is_a_failure(pair):
    endpoint = pair.endpoint(retries=2)
    pair.double.faults = [500, 503, 429]
    (failure,) = endpoint.answers([Question("q", "the?")], GREEDY)
    assert failure == Failure(
        id="q", sample=0, reason="endpoint", detail=failure.detail, retry=True
    )
    assert "429" in failure.detail and "2 retries" in failure.detail
    assert len(pair.double.bodies) == 3


def test_a_server_that_is_slow_or_away_is_a_failure(pair):
    hasty = pair.endpoint(retries=0, timeout_s=1.0)  # opening it has to be quicker
    patient = pair.endpoint(retries=0)
    pair.double.delay_s = 30.0
    (failure,) = hasty.answers([Question("q", "the?")], GREEDY)
    assert failure.retry and "timed out" in failure.detail
    pair.double.delay_s, pair.double.faults = 0.0, [openai_double.HANG_UP]
    (failure,) = patient.answers([Question("q", "the?")], GREEDY)
    assert failure.retry and "Connection error" in failure.detail


def test_a_refused_question_is_not_asked_again(pair):
    endpoint = pair.endpoint(concurrency=1)
    pair.double.error = {"error": {"message": "the prompt is too long"}}
    pair.double.faults = [400]
    questions = [Question("a", "the?"), Question("b", "the?")]
    failure, answer = endpoint.answers(questions, GREEDY)
    assert (failure.id, failure.sample, failure.retry) == ("a", 0, False)
    assert failure.reason == "unsupported"
    assert "too long" in failure.detail and "400" in failure.detail
    assert isinstance(answer, Answer)


def test_questions_that_cannot_be_asked(pair, picture, tmp_path):
    bad = [
        Question("count", "<image><image>", images=(picture,)),
        Question("missing", "the?", images=(str(tmp_path / "none.png"),)),
        Question("marker", "the <|im_end|>"),
    ]
    found = pair.ask(*bad, Question("good", "the?"), sampling=Sampling(n=2))
    failures = {item.id: item for item in found if isinstance(item, Failure)}
    assert {name: failure.reason for name, failure in failures.items()} == {
        "count": "image_count",
        "missing": "image_missing",
        "marker": "chat_marker",
    }
    assert all(f.sample is None and not f.retry for f in failures.values())
    assert [item.id for item in found if isinstance(item, Answer)] == ["good"] * 2


def test_when_all_are_refused_it_is_not_the_questions(pair):
    endpoint = pair.endpoint(concurrency=2)
    pair.double.error = {"error": {"message": "unknown field min_p"}}
    pair.double.faults = [400] * 100
    questions = (Question(k, "the?") for k in range(50))
    found = endpoint.answers(questions, GREEDY)
    seen = []
    with pytest.raises(endpoint_asking.EndpointError, match="unknown field min_p"):
        seen.extend(found)
    assert len(pair.double.bodies) < 20
    # After one answer it is the questions.
    pair.double.faults = []
    endpoint = pair.endpoint(concurrency=1)
    found = endpoint.answers((Question(k, "the?") for k in range(12)), GREEDY)
    assert isinstance(next(found), Answer)
    pair.double.faults = [422] * 11
    assert sum(isinstance(item, Failure) for item in found) > (
        endpoint_asking.MAX_REFUSALS
    )


@pytest.mark.parametrize("status, words", [(401, "OPENAI_API_KEY"), (404, "name")])
def test_what_concerns_all_requests_ends_the_run(pair, status, words):
    endpoint = pair.endpoint()
    pair.double.faults = [status] * 50
    with pytest.raises(endpoint_asking.EndpointError, match=f"{status}.*{words}"):
        list(endpoint.answers([Question(k, "the?") for k in range(9)], GREEDY))


def test_another_prompt_is_refused(pair, picture):
    def more(tokens):
        def change(reply, body):
            reply["usage"]["prompt_tokens"] += tokens
            del reply["prompt_token_ids"]

        return change

    question = Question("q", "the?", images=(picture,))
    own = prompt_lib.make_prompt(
        "the?", pair.double.tokenizer, policy=pair.double.policy, images=(picture,)
    )
    for tokens, likely in (
        (3, "chat template"),
        (-2 * PER_TILE, "2 tiles fewer.*max_dynamic_patch"),
    ):
        pair.double.change = more(tokens)
        ours, theirs = len(own.ids), len(own.ids) + tokens
        expected = f"'q'.* {theirs} .* {ours}.*{likely}"
        with pytest.raises(endpoint_reply.PromptMismatch, match=expected):
            pair.ask(question)
    (answer,) = pair.ask(question, check_parity=False)
    assert answer.prompt_tokens == theirs
    assert pair.endpoint(check_parity=False).describe()["check_parity"] is False


def test_every_answer_is_compared(pair):
    def change(reply, body):
        reply["usage"]["prompt_tokens"] += len(pair.double.bodies) == 4

    pair.double.change = change
    endpoint = pair.endpoint(concurrency=1)
    found = endpoint.answers((Question(k, "the?") for k in range(9)), GREEDY)
    assert [next(found).id for _ in range(3)] == [0, 1, 2]
    with pytest.raises(endpoint_reply.PromptMismatch):
        list(found)


def test_other_tokens_in_the_same_number_are_refused(pair):
    def swap(reply, body):
        ids = reply["prompt_token_ids"]
        ids[5], ids[6] = ids[6], ids[5]

    pair.double.change = swap
    with pytest.raises(endpoint_reply.PromptMismatch, match="from token 5 on"):
        pair.ask(Question("q", "the?"))


def test_a_server_without_counts_cannot_be_compared(pair):
    def change(reply, body):
        del reply["usage"]["prompt_tokens"], reply["prompt_token_ids"]

    pair.double.change = change
    with pytest.raises(endpoint_reply.PromptMismatch, match="usage.prompt_tokens=None"):
        pair.ask(Question("q", "the?"))
    (answer,) = pair.ask(Question("q", "the?"), check_parity=False)
    own = prompt_lib.make_prompt(
        "the?", pair.double.tokenizer, policy=pair.double.policy
    )
    assert answer.prompt_tokens == len(own.ids)


def test_another_system_text_is_noticed(pair):
    def render(reply, body):
        body["messages"][0]["content"] = "You are Qwen."
        reply["usage"]["prompt_tokens"] = len(pair.double.prompt_ids(body))

    pair.double.change = render
    with pytest.raises(endpoint_reply.PromptMismatch, match="system text"):
        pair.ask(Question("q", "the?"))


def change_choice(**fields):
    return lambda reply, body: reply["choices"][0].update(fields)


@pytest.mark.parametrize(
    "change, words",
    [
        (change_choice(finish_reason="content_filter"), "content_filter"),
        (change_choice(finish_reason="tool_calls"), "tool_calls"),
        (change_choice(finish_reason=None), "finish_reason=None"),
        (change_choice(message={"content": None}), "None, not a text"),
        (change_choice(message=None), "message=None"),
        (change_choice(message={"content": "\ud800"}), "no Unicode"),
        (change_choice(message={"content": "the STOP an"}), "ignores stop"),
        (lambda reply, body: reply["choices"].clear(), r"choices=\[\]"),
        (
            lambda reply, body: reply["usage"].update(completion_tokens=None),
            "completion_tokens=None",
        ),
    ],
)
def test_what_is_no_answer_is_a_failure(pair, change, words):
    pair.double.change = change
    (failure,) = pair.ask(Question("q", "the?"), sampling=Sampling(stop=("STOP",)))
    assert isinstance(failure, Failure)
    assert (failure.reason, failure.retry, failure.sample) == ("endpoint", True, 0)
    assert words.replace("\\", "") in failure.detail


@pytest.mark.parametrize("raw", ["", "no json", "[]", '{"choices": 3}', "[" * 100_000])
def test_any_reply_at_all_is_a_failure(pair, raw):
    pair.double.raw = raw
    (failure,) = pair.ask(Question("q", "the?"))
    assert (failure.reason, failure.retry) == ("endpoint", True)


def test_length_is_an_end(pair):
    pair.double.change = change_choice(finish_reason="length")
    (answer,) = pair.ask(Question("q", "the?"))
    assert answer.finish_reason == requests.LENGTH


@pytest.mark.parametrize(
    "fields",
    [
        {"logprobs": None, "token_ids": None},
        {"logprobs": {"content": [{"logprob": -1.0}]}, "token_ids": [1]},  # too few
        {"logprobs": {"content": None}, "token_ids": "ab"},
        {"logprobs": {"token_logprobs": [None] * 7}, "token_ids": [-1] * 7},
    ],
)
def test_what_a_server_does_not_say_is_none(pair, fields):
    pair.double.change = change_choice(**fields)
    (answer,) = pair.ask(Question("q", "the?"))
    assert answer.text == "the an"
    assert answer.logprob is answer.token_ids is answer.token_logprobs is None


def test_requests_in_flight_are_bounded(pair):
    pair.double.delay_s = 0.05
    endpoint = pair.endpoint(concurrency=3)
    taken = []

    def questions():
        for number in range(12):
            taken.append(number)
            yield Question(number, "the?")

    answers = endpoint.answers(questions(), GREEDY)
    next(answers)
    assert len(taken) < 12  # they are taken when there is room
    assert len(list(answers)) == 11
    assert pair.double.most_active == 3


def test_a_caller_that_stops_cancels_what_is_in_flight(pair):
    pair.double.delays_s, pair.double.delay_s = [0.0], 60.0
    answers = pair.endpoint(concurrency=4).answers(
        (Question(k, "the?") for k in range(1000)), GREEDY
    )
    next(answers)
    while pair.double.active < 4:
        time.sleep(0.01)
    begun = time.monotonic()
    answers.close()
    while pair.double.active:
        assert time.monotonic() < begun + 60
        time.sleep(0.01)
    assert pair.double.gone == 4
    time.sleep(0.1)
    assert len(pair.double.bodies) == 1 + 4


def test_results_wait_for_a_slow_caller(pair):
    """Neither are answers gathered without a bound nor questions."""
    answers = pair.endpoint(concurrency=2).answers(
        (Question(k, "the?") for k in range(100)), GREEDY
    )
    next(answers)
    time.sleep(0.3)
    assert len(pair.double.bodies) <= 1 + 2 + 2
    answers.close()


def test_an_error_of_the_questions_reaches_the_caller(pair):
    def questions():
        yield Question("a", "the?")
        raise OSError("the file is gone")

    with pytest.raises(OSError, match="the file is gone"):
        list(pair.endpoint().answers(questions(), GREEDY))


def test_an_error_of_the_client_reaches_the_caller():
    def connect():
        raise OSError("no sockets left")

    found = endpoint_asking.answers(
        [Question("a", "the?")],
        [0],
        prepare=lambda question: question,
        connect=connect,
        ask=lambda *asked: pytest.fail("there is nothing to ask"),
        skip=lambda name, sample: False,
        concurrency=1,
    )
    with pytest.raises(OSError, match="no sockets left"):
        list(found)


def test_an_image_in_an_answer_cannot_be_asked(pair, picture):
    history = (("the", "an <image>"),)
    question = Question("q", "and?", images=(picture,), history=history)
    (failure,) = pair.ask(question)
    assert (failure.reason, failure.retry) == ("unsupported", False)
    assert "earlier answer" in failure.detail


def test_which_model_is_asked(start):
    pair = start(models=("a", "b"))
    with pytest.raises(endpoint_asking.EndpointError, match="2 models.*'a', 'b'"):
        pair.endpoint()
    with pytest.raises(endpoint_asking.EndpointError, match="no model 'c'.*'a', 'b'"):
        pair.endpoint(model="c")
    pair.ask(Question("q", "the?"), model="b")
    assert pair.double.bodies[0]["model"] == "b"


def test_who_is_asked_stands_in_the_manifest(pair):
    url = pair.double.url.replace("http://", "http://me:secret@") + "/v1/"
    endpoint = endpoint_lib.Endpoint(
        url, tokenizer=pair.double.tokenizer, policy=pair.double.policy
    )
    assert endpoint.describe() == {
        "url": f"{pair.double.url}/v1",
        "model": "internvl",
        "engine": "vllm",
        "engine_version": "0.33.0",
        "check_parity": True,
    }


def test_the_key_comes_from_the_environment(pair, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    pair.endpoint()
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    pair.ask(Question("q", "the?"))
    keys = [headers["authorization"] for headers in pair.double.headers]
    assert keys == ["Bearer EMPTY", "Bearer sesame", "Bearer sesame"]


def test_a_server_that_is_not_there(qwen2_dir):
    own = {
        "tokenizer": tokenizer_lib.load_tokenizer(qwen2_dir),
        "policy": policy_of("internvl2_5"),
    }
    with pytest.raises(
        endpoint_asking.EndpointError, match="127.0.0.1:1/v1.*is the serv"
    ):
        endpoint_lib.Endpoint("http://me:pw@127.0.0.1:1", retries=0, **own)


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a", "http://", "http://a:b", "http://a?b=c"]
)
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="endpoint="):
        endpoint_client.address(url)


def test_addresses():
    assert endpoint_client.address("http://a:8000") == "http://a:8000/v1"
    assert endpoint_client.address("https://a/openai/v1/") == "https://a/openai/v1"


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"retries": -1}, {"timeout_s": float("nan")}]
)
def test_options_have_bounds(pair, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        pair.endpoint(**options)


def test_without_the_library_it_says_what_to_install(pair, monkeypatch):
    real = builtins.__import__

    def absent(name, *rest, **options):
        if name == "openai":
            raise ImportError("no openai", name="openai")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[endpoint\]'"):
        pair.endpoint()


@pytest.mark.parametrize("name", template_lib.TEMPLATES)
@pytest.mark.parametrize("last", [True, False])
def test_the_chat_template_of_the_page(root, name, last):
    """docs/endpoint.md gives one, and says how those of other models differ."""
    chat = template_lib.get_template(name)
    source = (root / "docs" / "endpoint.md").read_text(encoding="utf-8")
    source = source.split("```jinja\n")[1].split("```")[0]
    if name in ("Hermes-2", "internlm2-chat"):
        source = source.replace(r"<|im_end|>\n", "<|im_end|>")
    elif name == "phi3-chat":
        source = source.replace(r"<|im_end|>\n", "<|end|>")
        source = source.replace(
            "'<|im_start|>' + m['role'] + '", "'<|' + m['role'] + '|>"
        )
        source = source.replace("<|im_start|>assistant", "<|assistant|>")
    history = [("a?", "b.")] * last
    messages = [{"role": "system", "content": chat.system_message}]
    for asked, answered in history:
        messages.append({"role": "user", "content": asked})
        messages.append({"role": "assistant", "content": answered})
    messages.append({"role": "user", "content": "c?"})
    # Servers compile it with these options, as transformers does.
    compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = compiled.from_string(source).render(
        messages=messages, add_generation_prompt=True
    )
    assert text == template_lib.render_prompt(chat, "c?", history=history)
