"""Templates against the reference ids and labels, and their rules by example."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo_jax.inputs import template as template_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.models import family

GOLDEN = {
    "tokenization_internlm2.json": "internvl2_2b",
    "tokenization_qwen2.json": "qwen2",
    "tokenization_qwen2_5.json": "internvl3",
}
JOINT = ("internlm2-chat", "Hermes-2")
# Changes of the tiny Phi-3 tokenizer's configuration.
PHI3 = {
    "new": {},
    "legacy": {"legacy": True},
    "named": {
        "additional_special_tokens": [
            *("<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        ]
    },
    "nobos": {"add_bos_token": False},
    "lpad": {"pad_token": "</s>"},
}


@pytest.fixture(scope="module")
def internlm2(internlm2_dir):
    return tokenizer_lib.load_tokenizer(internlm2_dir)


@pytest.fixture(scope="module")
def qwen2(qwen2_dir):
    return tokenizer_lib.load_tokenizer(qwen2_dir)


@pytest.fixture(scope="module")
def phi3(phi3_dir):
    return tokenizer_lib.load_tokenizer(phi3_dir)


@pytest.fixture(scope="module")
def fitting(internlm2, qwen2, phi3):
    """Tokenizers that have the chat tokens of a template."""

    def find(name):
        return (phi3,) if name == "phi3-chat" else (internlm2, qwen2)

    return find


@pytest.mark.parametrize("kind", PHI3)
def test_phi3_equals_the_slow_tokenizer(make_phi3, tmp_path, kind):
    """Ids of transformers 4.37.2's slow Llama tokenizer over the same files.

    The trained positions follow ``preprocess_phi3`` turn by turn on those ids. 12,000
    random conversations agreed when the file was made; it keeps some of each kind.
    """
    file = pathlib.Path(__file__).with_name("phi3_reference.json")
    cases = json.loads(file.read_text(encoding="utf-8"))[kind]
    tokenizer = tokenizer_lib.load_tokenizer(make_phi3(tmp_path / "phi3", **PHI3[kind]))
    assert len(cases) >= 8 and sum(bool(case["trained"]) for case in cases) >= 3
    for case in cases:
        ids, labels = encode(
            tokenizer,
            "phi3-chat",
            case["question"],
            case["response"],
            case["counts"],
            text_only=not case["counts"],
        )
        assert ids.tolist() == case["ids"]
        (trained,) = np.nonzero(labels != template_lib.IGNORED)
        assert trained.tolist() == case["trained"]
        assert (labels[trained] == ids[trained]).all()
        assert tokenizer.encode(case["text"], bos=False) == case["text_ids"]


def test_every_released_model_has_a_template():
    for member in family.MEMBERS:
        assert template_lib.get_template(member.template).name == member.template


def test_a_tokenizer_without_the_chat_tokens_is_refused(internlm2, qwen2, phi3):
    """By template, token and what would fit."""
    chat = template_lib.get_template
    for name in template_lib.TEMPLATES:
        fits = [phi3] if name == "phi3-chat" else [internlm2, qwen2]
        for tokenizer in (internlm2, qwen2, phi3):
            if tokenizer in fits:
                template_lib.check_tokenizer(chat(name), tokenizer, "x")
                continue
            with pytest.raises(ValueError, match=f"template '{name}' needs") as error:
                template_lib.check_tokenizer(chat(name), tokenizer, "some/where")
            message = str(error.value)
            assert "some/where" in message and chat(name).markers[0] in message
            other = "internlm2-chat" if name == "phi3-chat" else "phi3-chat"
            assert f"use data.template={other}" in message


@pytest.mark.parametrize("golden", list(GOLDEN))
def test_ids_and_labels_equal_the_reference(shared, golden):
    """Every case, both sides, exactly."""
    path = shared / "goldens" / "tokenization" / golden
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    directory = shared / "data" / "tokenizers" / GOLDEN[golden]
    tokenizer = tokenizer_lib.load_tokenizer(directory)
    assert len(cases) >= 18
    for case in cases:
        question = case["question"]
        if not case["text_only"]:
            question = template_lib.add_placeholder(question)
        for side in ("chosen", "rejected"):
            ids, labels = template_lib.encode_side(
                tokenizer,
                template_lib.get_template(case["template"]),
                question,
                case[side],
                num_image_tokens=case["num_image_tokens"],
                text_only=case["text_only"],
            )
            assert ids.dtype == labels.dtype == np.int32
            assert ids.tolist() == case[f"{side}_input_ids"], (case["template"], side)
            assert labels.tolist() == case[f"{side}_labels"], (case["template"], side)


def encode(tokenizer, name, question, response, counts=(), text_only=False):
    return template_lib.encode_side(
        tokenizer,
        template_lib.get_template(name),
        question,
        response,
        num_image_tokens=counts,
        text_only=text_only,
    )


def trained_text(tokenizer, ids, labels):
    trained = ids[labels != template_lib.IGNORED]
    return tokenizer.decode(trained, skip_special=False)


@pytest.mark.parametrize("name", list(template_lib.TEMPLATES))
def test_trains_response_and_end_token(fitting, name):
    chat = template_lib.get_template(name)
    for tokenizer in fitting(name):
        ids, labels = encode(tokenizer, name, "the 图", "an 答案\nthe", text_only=True)
        assert trained_text(tokenizer, ids, labels) == f"an 答案\nthe{chat.stop}"
        whole = template_lib.render_prompt(chat, "the 图") + "an 答案\nthe"
        if name == "phi3-chat":  # its chat tokens swallow the newline
            whole = whole.replace("|>\n", "|>")
            bos = "<s> "
            decoded = tokenizer.decode(ids, skip_special=False)
            assert decoded == bos + whole + chat.separator
            continue
        end = chat.separator
        bos = "<s>" if tokenizer.add_bos else ""
        assert tokenizer.decode(ids, skip_special=False) == bos + whole + end


def test_leading_newline_on_byte_level_bpe(qwen2):
    """It merges into the header's newline: that token is masked, as upstream."""
    for name in ("Hermes-2", "internvl2_5"):
        plain, _ = encode(qwen2, name, "an", "the", text_only=True)
        ids, labels = encode(qwen2, name, "an", "\nthe", text_only=True)
        assert trained_text(qwen2, ids, labels) == "the<|im_end|>"
        (start,) = np.nonzero(labels != template_lib.IGNORED)
        assert qwen2.decode(ids[[start[0] - 1]]) == "\n\n"
        assert qwen2.decode(plain[[start[0] - 1]]) == "\n"
        assert ids[: start[0] - 1].tolist() == plain[: start[0] - 1].tolist()


def test_internlm_rule_strips(internlm2):
    stripped = encode(internlm2, "internlm2-chat", " the \n", "\n\n an", text_only=True)
    plain = encode(internlm2, "internlm2-chat", "the", "an", text_only=True)
    assert stripped[0].tolist() == plain[0].tolist()
    assert stripped[1].tolist() == plain[1].tolist()


def test_internlm_rule_notices_merges_across_the_header(merging_dir):
    """One token spans header and response: upstream trains nothing of it."""
    tokenizer = tokenizer_lib.load_tokenizer(merging_dir)
    ids, labels = encode(tokenizer, "internlm2-chat", "a", "th", text_only=True)
    assert "\nth" in [tokenizer.token(i) for i in ids]
    assert (labels == template_lib.IGNORED).all()
    ids, labels = encode(tokenizer, "internlm2-chat", "a", "an", text_only=True)
    assert trained_text(tokenizer, ids, labels) == "an<|im_end|>"


@pytest.mark.parametrize("name", JOINT)
def test_text_of_the_pad_token_leaves_no_label(internlm2, qwen2, name):
    """Upstream counts non-pad tokens, so such a record never lines up."""
    for tokenizer, pad in ((internlm2, "</s>"), (qwen2, "<|endoftext|>")):
        ids, labels = encode(tokenizer, name, "the", f"an{pad}", text_only=True)
        assert tokenizer.pad_id in ids
        assert (labels == template_lib.IGNORED).all()


@pytest.mark.parametrize("name", JOINT)
def test_empty_response_is_a_bare_header(internlm2, name):
    ids, labels = encode(internlm2, name, "the", "", text_only=True)
    assert (labels == template_lib.IGNORED).all()
    text = internlm2.decode(ids, skip_special=False)
    assert text.endswith("<|im_start|>assistant\n")


def test_empty_response_still_ends_in_internvl2_5(internlm2):
    ids, labels = encode(internlm2, "internvl2_5", "the", "", text_only=True)
    assert trained_text(internlm2, ids, labels) == "<|im_end|>"


@pytest.mark.parametrize("name", list(template_lib.TEMPLATES))
def test_images_go_to_placeholders_in_order(fitting, name):
    internlm2 = fitting(name)[0]
    question = "<image> an <image>\nthe <image>"
    ids, _ = encode(internlm2, name, question, "<image> an", (2, 3))
    runs = "".join("x" if i == internlm2.img_context_id else "." for i in ids)
    assert [len(run) for run in runs.replace(".", " ").split()] == [2, 3]
    text = internlm2.decode(ids)
    assert text.count("<image>") == 2  # one in the question, one in the response
    literal, _ = encode(internlm2, name, question, "an", (2, 3), text_only=True)
    assert internlm2.img_context_id not in literal


@pytest.mark.parametrize("name", list(template_lib.TEMPLATES))
def test_too_few_placeholders(fitting, name):
    internlm2 = fitting(name)[0]
    with pytest.raises(ValueError, match="2 images but 1"):
        encode(internlm2, name, "<image> the", "an", (2, 2))


def test_joint_templates_reach_into_the_response_as_upstream(internlm2):
    ids, _ = encode(internlm2, "internlm2-chat", "the", "an <image>", (2,))
    assert (ids == internlm2.img_context_id).sum() == 2
    with pytest.raises(ValueError, match="1 images but 0"):
        encode(internlm2, "internvl2_5", "the", "an <image>", (2,))


@pytest.mark.parametrize("name", list(template_lib.TEMPLATES))
@given(
    question=st.text("the an\n!<图>", max_size=30),
    response=st.text("the an\n!<答案>", min_size=1, max_size=30),
    count=st.integers(1, 9),
)
def test_prompt_rendering_and_encoding_agree(fitting, name, question, response, count):
    """The rendered prompt, tokenised in one piece, is what training sees."""
    chat = template_lib.get_template(name)
    question = "<image>\nq" + question.strip()
    response = "a" + response.strip()
    prompt = template_lib.render_prompt(chat, question, num_image_tokens=[count])
    for tokenizer in fitting(name):
        ids, labels = encode(tokenizer, name, question, response, (count,))
        rendered = tokenizer.encode(prompt, bos=tokenizer.add_bos)
        (trained,) = np.nonzero(labels != template_lib.IGNORED)
        assert rendered == ids[: trained[0]].tolist()


def test_render_prompt():
    chat = template_lib.get_template("internvl2_5")
    system = f"<|im_start|>system\n{chat.system_message}<|im_end|>\n"
    image = "<img><IMG_CONTEXT><IMG_CONTEXT></img>"
    assert template_lib.render_prompt(chat, "a?", num_image_tokens=[2]) == (
        f"{system}<|im_start|>user\n{image}\na?<|im_end|>\n<|im_start|>assistant\n"
    )
    prompt = template_lib.render_prompt(
        chat,
        "and <image>?",
        num_image_tokens=[2, 1],
        history=[("<image>\nb?", "c")],
        system_message="S",
    )
    assert prompt == (
        "<|im_start|>system\nS<|im_end|>\n"
        f"<|im_start|>user\n{image}\nb?<|im_end|>\n<|im_start|>assistant\nc<|im_end|>\n"
        "<|im_start|>user\nand <img><IMG_CONTEXT></img>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert chat.stop == "<|im_end|>"
    older = template_lib.get_template("internlm2-chat")
    assert template_lib.render_prompt(older, "a?").endswith(
        "<|im_end|><|im_start|>user\na?<|im_end|><|im_start|>assistant\n"
    )


def test_render_prompt_refuses_smuggled_image_tokens():
    chat = template_lib.get_template("internvl2_5")
    for token in tokenizer_lib.IMAGE_TOKENS:
        with pytest.raises(ValueError, match="must not stand"):
            template_lib.render_prompt(chat, f"a{token}b")
        with pytest.raises(ValueError, match="must not stand"):
            template_lib.render_prompt(chat, "a", history=[("b", token)])
        assert template_lib.find_image_token(f"x{token}") == token
    assert template_lib.find_image_token("<image> <IMG> <box>") is None
    with pytest.raises(ValueError, match="2 images but 1"):
        template_lib.render_prompt(chat, "a", num_image_tokens=[1, 1])


def test_unknown_template_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'internvl2_5'"):
        template_lib.get_template("internvl2.5")
    with pytest.raises(ValueError, match="did you mean 'Hermes-2'"):
        template_lib.get_template("hermes2")
    with pytest.raises(ValueError, match="Known: internlm2-chat, Hermes-2"):
        template_lib.get_template("zzzz")
