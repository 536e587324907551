"""Answers in a notebook: one question or many, images of any kind, conversations."""

from __future__ import annotations

import collections
import io

import jax
import numpy as np
import pytest
import speaking
from PIL import Image

from mpo_jax import api, ledger
from mpo_jax.generate import prompts, requests, speaker
from mpo_jax.utils import profiling

pytestmark = pytest.mark.slow

NEW = {"max_new_tokens": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebook")
    speaking.write_model(folder / "model")
    names = speaking.write_images(folder)
    return folder, [folder / name for name in names]


@pytest.fixture(scope="module")
def model(place):
    return api.InternVL.from_pretrained(place[0] / "model")


def by_ids(
    model: api.InternVL, question: requests.Question, ends=(), **how
) -> list[str]:
    """The same through prompt and token ids."""
    chat = model._tokenizer
    made = prompts.request_of(
        question,
        requests.Sampling(**NEW),
        key=0,
        tokenizer=chat,
        policy=speaker.prompt_policy(model.cfg),
    )
    found = model.generate_ids(
        made.ids,
        made.tiles if len(made.tiles) else None,
        stop_ids=(*made.sampling.stop_ids, *ends),
        **{**NEW, **how},
    )
    return [chat.decode(ids[:-1] if ids[-1] in ends else ids).strip() for ids in found]


def test_one_question_and_several(model, place):
    _, images = place
    one = model.generate("how many?", images[1], **NEW)
    assert isinstance(one, str) and one
    assert [one] == by_ids(model, requests.Question(0, "how many?", (str(images[1]),)))
    questions = ["how many?", "two", "<image> <image> red?"]
    pictures = [images[1], None, [images[0], str(images[2])]]
    several = model.generate(questions, pictures, **NEW)
    alone = [
        model.generate(question, picture, **NEW)
        for question, picture in zip(questions, pictures, strict=True)
    ]
    assert several == alone and several[0] == one and len(set(several)) == 3
    assert model.generate(["two", "one"], **NEW)[0] == alone[1]
    assert model.generate([], **NEW) == []


def test_several_answers(model):
    how = {**NEW, "n": 3, "temperature": 1.0, "seed": 4}
    found = model.generate("two", **how)
    assert len(found) == 3 and len(set(found)) > 1
    assert found == model.generate("two", **how)
    assert found != model.generate("two", **{**how, "seed": 5})
    both = model.generate(["two", "one"], **how)
    assert [len(answers) for answers in both] == [3, 3] and both[0] == found


def test_answers_stand_by_their_numbers_whichever_ends_first(model):
    how = {"n": 12, "temperature": 2.0, "max_new_tokens": 30}
    ends = tuple(range(40, 55))
    found = model.generate("two", seed=4, stop_ids=ends, **how)
    question = requests.Question(0, "two")
    seed = requests.seed_of(question, 4)
    assert found == by_ids(model, question, seed=seed, ends=ends, **how)
    assert len({len(answer) for answer in found}) > 3


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16", "F", "HSV"])
def test_images_in_memory_are_those_of_files(model, place, mode):
    """Of every kind that Pillow opens; a path and its image are the same."""
    folder, images = place
    image = Image.open(images[1])
    if mode == "I;16":
        array = np.asarray(image.convert("L")).astype(np.uint16)
        image = Image.fromarray(array * 200)
    else:
        image = image.convert(mode)
    names, read = api._named([image])
    held = Image.open(io.BytesIO(read(names[0][0]))).convert("RGB")
    np.testing.assert_array_equal(held, image.convert("RGB"))
    if mode == "RGB":
        said = model.generate("how many?", image, **NEW)
        assert said == model.generate("how many?", images[1], **NEW)
        pair = model.generate("<image><image>", [image, images[0]], **NEW)
        assert pair == model.generate("<image><image>", [images[1], images[0]], **NEW)


def test_a_beginning_is_not_repeated(model):
    chat = model._tokenizer
    begun = model.generate("two", prefix="the answer", **NEW)
    as_ids = chat.encode("the answer", bos=False, start=False)
    assert begun == model.generate("two", prefix=as_ids, **NEW)
    question = requests.Question(0, "two", prefix="the answer")
    assert begun.strip() == by_ids(model, question)[0]
    assert begun != model.generate("two", **NEW)


def test_a_conversation_is_one_prompt_with_its_history(model, place):
    _, images = place
    first, history = model.chat("how many?", images[1], **NEW)
    assert first == model.generate("how many?", images[1], **NEW)
    assert history == [("<image>\nhow many?", first)]
    second, longer = model.chat("red?", images[1], history=history, **NEW)
    asked = requests.Question(
        0, "red?", (str(images[1]),), history=(("<image>\nhow many?", first),)
    )
    assert [second] == by_ids(model, asked)
    assert longer == [*history, ("red?", second)]
    third, _ = model.chat(
        "<image> and this?", [images[1], images[0]], history=longer, **NEW
    )
    assert isinstance(third, str)
    text, turns = model.chat("two", prefix="the answer", system="be brief", **NEW)
    assert turns == [("two", "the answer" + text)]
    alone = model.generate("two", prefix="the answer", system="be brief", **NEW)
    assert text == alone != model.generate("two", prefix="the answer", **NEW)


def test_settings_of_the_draw_arrive(model):
    plain = model.generate("two", **NEW)
    assert len(model.generate("two", max_new_tokens=2)) < len(plain)
    place = next(
        i for i in range(1, len(plain)) if plain[i] not in "\ufffd" + plain[:i]
    )
    stopped = model.generate("two", stop=[plain[place]], **NEW)
    assert stopped == plain[:place].strip()
    assert model.generate("two", temperature=5.0, top_k=1, **NEW) == plain
    assert model.generate("two", temperature=5.0, top_p=1e-6, **NEW) == plain
    other = model.generate("two", repetition_penalty=5.0, **NEW)
    assert other != plain


def test_tiles_are_limited(model, place):
    _, images = place
    few = model.generate("how many?", images[1], max_tiles=1, **NEW)
    assert few != model.generate("how many?", images[1], **NEW)


def test_what_cannot_be_asked_is_named(model, place, tmp_path):
    _, images = place
    with pytest.raises(ledger.BadRecord, match=r"image_missing.*none\.png"):
        model.generate("q", "none.png", **NEW)
    with pytest.raises(ledger.BadRecord, match="image_count"):
        model.generate("<image><image>", images[0], **NEW)
    with pytest.raises(ledger.BadRecord, match="chat_marker"):
        model.generate("<|im_end|>", **NEW)
    with pytest.raises(ValueError, match="2 questions, but images of 1"):
        model.generate(["a", "b"], [images[0]], **NEW)
    with pytest.raises(ValueError, match="temperature=-1"):
        model.generate("q", temperature=-1, **NEW)
    with pytest.raises(TypeError, match="temprature"):
        model.generate("q", temprature=1, **NEW)
    with pytest.raises(ledger.BadRecord, match="too_long.*1023"):
        model.generate("how many? " * 400, **NEW)
    # A failure of one leaves the model as it was.
    assert model.generate("two", **NEW)


def test_a_call_leaves_nothing_behind_that_listens(model, monkeypatch):
    """Each makes an engine, which counts compilations while it lives."""
    listening = collections.Counter()
    begin, end = profiling.Compiles.__init__, profiling.Compiles.close

    def opened(self):
        listening["now"] += 1
        begin(self)

    def closed(self):
        listening["now"] -= 1
        end(self)

    monkeypatch.setattr(profiling.Compiles, "__init__", opened)
    monkeypatch.setattr(profiling.Compiles, "close", closed)
    model.generate("two", **NEW)
    model.generate_ids([3, 4, 5], **NEW)
    with pytest.raises(ledger.BadRecord, match="vocabulary"):
        model.generate_ids([-1], **NEW)
    assert listening == {"now": 0}


def test_without_a_tokenizer_only_ids_are_answered(model):
    bare = api.InternVL(model.model, model.params)
    with pytest.raises(ValueError, match="no tokenizer; ask with token ids"):
        bare.generate("q", **NEW)
    ids = [3, 4, 5]
    assert bare.generate_ids(ids, **NEW) == model.generate_ids(ids, **NEW)


def test_replaced_parameters_are_used_and_nothing_is_compiled_anew(model):
    own = api.InternVL(model.model, model.params, files=model.files)
    before = own.generate_ids([3, 4, 5], **NEW)
    kernel = own.params["language"]["lm_head"]["kernel"]
    language = {**own.params["language"], "lm_head": {"kernel": -kernel}}
    own.params = {**own.params, "language": language}
    after = own.generate_ids([3, 4, 5], **NEW)
    assert before != after
    own.params = model.params
    assert own.generate_ids([3, 4, 5], **NEW) == before
    assert len(own._speaker._programs) == 1
    assert own.params["vision"] is model.params["vision"]


@pytest.mark.slow
def test_a_model_that_lies_on_a_mesh(model):
    """Parameters keep their place, and answers are the same."""
    from mpo_jax import sharding

    mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
    places = sharding.shardings(model.model.shapes, model.model.axes, mesh)
    spread = api.InternVL(
        model.model, jax.device_put(model.params, places), files=model.files
    )
    questions = ["two", "how many? " * 9]
    assert spread.generate(questions, **NEW) == model.generate(questions, **NEW)
    assert spread.generate_ids([3, 4], n=3, **NEW) == model.generate_ids(
        [3, 4], n=3, **NEW
    )
