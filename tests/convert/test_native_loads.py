"""A native export as a user takes it home: transformers alone loads and runs it."""

from __future__ import annotations

import json
import logging
import pathlib
import shutil

import numpy as np
import pytest
import small_family
import small_tokenizers
from PIL import Image
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, hf, layouts
from mpo_jax.demo import tiny_model
from mpo_jax.inputs import template, tokenizer
from mpo_jax.models import config, internvl
from mpo_jax.nn import params as params_lib

QUESTION = "the an?\nthe"
# Decoder, tokenizer and template as in InternVL3-8B, 2-8B and 2-4B.
KINDS = {
    "qwen2": (small_tokenizers.write_qwen2, "internvl2_5"),
    "internlm2": (small_tokenizers.write_internlm2, "internlm2-chat"),
    "phi3": (small_tokenizers.write_phi3, "phi3-chat"),
}


def write_words(path: pathlib.Path, kind: str, blank: pathlib.Path) -> pathlib.Path:
    """A tokenizer with the configuration of a tiny model of its vocabulary."""
    write, name = KINDS[kind]
    options = {}
    if kind == "phi3":  # named as special: no space token before the first
        markers = template.TEMPLATES[name].markers
        options["additional_special_tokens"] = list(markers)
    write(path, **options)
    raw = json.loads((blank / "config.json").read_text())
    chat = tokenizer.load_tokenizer(path)
    image_ids = {t: chat.id_of(t) for t in tokenizer.ADDED_TOKENS}
    (path / "added_tokens.json").write_text(json.dumps(image_ids))
    raw["llm_config"]["vocab_size"] = chat.vocab_size
    raw["template"] = name
    (path / "config.json").write_text(json.dumps(raw))
    return path


@pytest.fixture(scope="module", params=KINDS)
def native(request, tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("native")
    blank = tiny_model.write_tiny_model(root / "blank", corpus=["a"], vocab_size=256)
    words = write_words(root / "words", request.param, blank)
    small_family.original(root / "start", request.param, words)
    model = internvl.InternVL(config.load(root / "start"))
    params = hf.load(root / "start", model, dtype="keep")
    out = root / request.param
    hf.save(
        out,
        params,
        model,
        dtype="keep",
        source_dir=root / "start",
        layout="native",
    )
    shutil.rmtree(root / "start")
    return out


def expected_prompt(native: pathlib.Path) -> list[int]:
    """Ids that training sees before the answer, for one image of one tile."""
    cfg, chat = config.load(native), tokenizer.load_tokenizer(native)
    prompt = template.render_prompt(
        template.get_template(cfg.template),
        QUESTION,
        num_image_tokens=[cfg.tokens_per_tile],
    )
    return chat.encode(prompt, bos=chat.add_bos)


def messages(image: Image.Image | None = None) -> list[dict]:
    picture = {"type": "image"} | ({} if image is None else {"image": image})
    content = [picture, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": content}]


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_transformers_loads_and_generates(native, caplog):
    import torch
    import transformers

    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.WARNING, logger="transformers"):
            words = transformers.AutoTokenizer.from_pretrained(native)
            loaded, info = (
                transformers.InternVLForConditionalGeneration.from_pretrained(
                    native, output_loading_info=True, dtype=torch.float32
                )
            )
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(info.values()), info
    advice = "rope_parameters['original_max_position_embeddings']"  # Phi-3's own way
    told = [record.getMessage() for record in caplog.records]
    assert [message for message in told if advice not in message] == []

    # The prompt is that of training, token by token. The processor puts image tokens
    # in place of the template's one; test_auto_processor has it do so.
    cfg, chat = config.load(native), tokenizer.load_tokenizer(native)
    context = words.context_image_token
    image = words.start_image_token + context * cfg.tokens_per_tile
    text = words.apply_chat_template(
        messages(), add_generation_prompt=True, tokenize=False
    )
    assert text.count(context) == 1
    text = text.replace(context, image + words.end_image_token)
    inputs = words(text, return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    assert prompt == expected_prompt(native)
    images = transformers.AutoImageProcessor.from_pretrained(native)
    pixels = images(images=[picture()], return_tensors="pt")["pixel_values"]
    assert tuple(pixels.shape) == (1, 3, cfg.image_size, cfg.image_size)

    out = loaded.eval().generate(
        **inputs, pixel_values=pixels, max_new_tokens=4, do_sample=False
    )
    assert out[0, : len(prompt)].tolist() == prompt
    assert 1 <= len(out[0]) - len(prompt) <= 4
    stop = words.convert_tokens_to_ids(template.get_template(cfg.template).stop)
    assert stop in loaded.generation_config.eos_token_id

    # The tokenizer as a user calls it, and ours from the same files.
    for sentence in (QUESTION, "the<ref>an</ref>  é答案", "<|end|> the"):
        ours = chat.encode(sentence, bos=chat.add_bos)
        assert words(sentence)["input_ids"] == ours


def test_names_as_in_memory(native, tmp_path):
    """The other native layout: the same model under transformers' own names."""
    import torch
    import transformers

    model, new = internvl.InternVL(config.load(native)), tmp_path / "new"
    params = hf.load(native, model, dtype="keep")
    hf.save(new, params, model, dtype="keep", source_dir=native, layout="native_new")
    kind = transformers.InternVLForConditionalGeneration
    loaded, info = kind.from_pretrained(
        new, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    state = loaded.state_dict()
    assert state.keys() == safetensors_numpy.load_file(new / files.SINGLE).keys()
    expected = kind.from_pretrained(native, dtype=torch.float32).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name
    assert layouts.of_files(new) == "native"
    for (path, found), (_, want) in zip(
        params_lib.flatten(hf.load(new, model, dtype="keep")),
        params_lib.flatten(params),
        strict=True,
    ):
        np.testing.assert_array_equal(found, want, err_msg=path)


def test_auto_processor(native):
    """Needs torchvision, which the tests do not ask for: its wheel wants torch for
    CUDA, and where it cannot be imported transformers' processors cannot either."""
    try:
        import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"no torchvision for AutoProcessor: {error}")
    import torch
    import transformers

    made = transformers.AutoProcessor.from_pretrained(native)
    inputs = made.apply_chat_template(
        messages(picture()),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    assert inputs["input_ids"][0].tolist() == expected_prompt(native)
    side = config.load(native).image_size
    assert tuple(inputs["pixel_values"].shape) == (1, 3, side, side)
    loaded = transformers.InternVLForConditionalGeneration.from_pretrained(
        native, dtype=torch.float32
    )
    out = loaded.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    assert isinstance(made.decode(out[0, inputs["input_ids"].shape[1] :]), str)


def test_phi3_says_where_prompts_differ(tmp_path):
    """Chat tokens without a name in the configuration: a space token comes first."""
    blank = tiny_model.write_tiny_model(tmp_path / "b", corpus=["a"], vocab_size=256)
    words = write_words(tmp_path / "words", "phi3", blank)
    file = words / "tokenizer_config.json"
    raw = json.loads(file.read_text())
    del raw["additional_special_tokens"]
    file.write_text(json.dumps(raw))
    small_family.original(tmp_path / "start", "phi3", words)
    (tmp_path / "out").mkdir()
    (note,) = layouts.write_files(
        tmp_path / "start", tmp_path / "out", layout="native", kinds={"float32"}
    )
    assert "tokenizer.json begins a prompt with" in note
    # Training on the export goes on with the original's ids.
    prompt = template.TEMPLATES["phi3-chat"].system
    ids = [
        tokenizer.load_tokenizer(tmp_path / name).encode(prompt, bos=True)
        for name in ("start", "out")
    ]
    assert ids[0] == ids[1] and len(ids[0]) == 3
