"""What a run set of its prompts stands in its exports, in every layout."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
import small_family

from mpo_jax import api, checkpoint
from mpo_jax import config as config_lib
from mpo_jax.convert import files, hf, hub, layouts, settings, table, verify
from mpo_jax.inputs import tokenizer
from mpo_jax.models import config, internvl, native_config

TILES = (2, 4)


@pytest.fixture(scope="module")
def origin(tmp_path_factory, tokenizer_files) -> pathlib.Path:
    path = tmp_path_factory.mktemp("origin") / "model"
    small_family.original(path, "qwen2", tokenizer_files)
    (path / "generation_config.json").write_text('{"do_sample": true, "top_p": 0.8}')
    (path / "modeling_x.py").write_text("from .configuration_x import X\n")
    (path / "configuration_x.py").write_text("X = 1\n")
    return path


@pytest.fixture(scope="module")
def native(origin, tmp_path_factory, script) -> pathlib.Path:
    path = tmp_path_factory.mktemp("native") / "model"
    script(origin, path, layout="native", dtype="keep")
    return path


@pytest.fixture(scope="module")
def born(native, tmp_path_factory) -> pathlib.Path:
    """A native model that was never another: no template is named."""
    path = tmp_path_factory.mktemp("born") / "model"
    shutil.copytree(native, path)
    shutil.rmtree(path / files.KEPT)
    raw = read(path / "config.json")
    del raw[native_config.KEPT]
    files.write_json(path / "config.json", raw)
    return path


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory, tokenizer_files) -> pathlib.Path:
    """Another order of the vocabulary."""
    path = tmp_path_factory.mktemp("words") / "tokenizer"
    shutil.copytree(tokenizer_files, path)
    vocabulary = read(path / "vocab.json")
    vocabulary["x"], vocabulary["y"] = vocabulary["y"], vocabulary["x"]
    files.write_json(path / "vocab.json", vocabulary)
    return path


def read(file: pathlib.Path) -> dict:
    return json.loads(file.read_text())


def write_run(workdir: pathlib.Path, start: pathlib.Path, **data) -> pathlib.Path:
    """A checkpoint as a training from `start` with these data fields leaves it."""
    cfg = config_lib.RunConfig()
    cfg.model.path, cfg.data.meta = str(start), "meta.json"
    cfg.data.min_tiles, cfg.data.max_tiles = TILES
    for name, value in data.items():
        setattr(cfg.data, name, str(value))
    params = hf.load(start, internvl.InternVL(config.load(start)), dtype="float32")
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", cfg.checkpoint)
    meta = {"config": dataclasses.asdict(cfg)}
    checkpoints.save(3, {"params": params}, meta=meta)
    checkpoints.close()
    return workdir


@pytest.mark.parametrize("start", ["origin", "native", "born"])
@pytest.mark.parametrize("layout", ["original", "native"])
def test_template_and_tiles(request, tmp_path, script, start, layout):
    """A run's values from every start in every layout, and again from the export."""
    start = request.getfixturevalue(start)
    run = write_run(tmp_path / "run", start, template="Hermes-2")
    text = script(run, tmp_path / "out", layout=layout)
    out = tmp_path / "out"
    cfg = config.load(out)
    assert (cfg.template, cfg.min_tiles, cfg.max_tiles) == ("Hermes-2", *TILES)
    before = config.load(start)
    assert (before.template, before.max_tiles) != (cfg.template, cfg.max_tiles)
    assert cfg.use_thumbnail == before.use_thumbnail and cfg.language == before.language
    assert read(out / "config.json")["torch_dtype"] == "float32"
    if layout == "native":
        processor = read(out / "preprocessor_config.json")
        assert (processor["min_patches"], processor["max_patches"]) == TILES
        jinja = (out / "chat_template.jinja").read_text()
        assert "上海人工智能实验室联合商汤科技" in jinja  # Hermes-2's system message
        replaced = "gives another prompt" in text
        assert replaced is (start != request.getfixturevalue("origin"))
    # The export needs no --template on its way back.
    script(out, tmp_path / "back", layout="original")
    assert config.load(tmp_path / "back").template == "Hermes-2"


@pytest.mark.parametrize("start", ["origin", "native"])
@pytest.mark.parametrize("layout", ["original", "native"])
def test_tokenizer(request, tmp_path, script, other_tokenizer, start, layout):
    """The run's tokenizer; its image tokens stand in the files as training had them."""
    start = request.getfixturevalue(start)
    run = write_run(tmp_path / "run", start, tokenizer=other_tokenizer)
    script(run, tmp_path / "out", layout=layout)
    out = tmp_path / "out"
    meant = tokenizer.load_tokenizer(other_tokenizer)
    found = tokenizer.load_tokenizer(out)
    text = "x y z a b c"
    assert found.encode(text, bos=False) == meant.encode(text, bos=False)
    model = tokenizer.load_tokenizer(start)
    assert model.encode(text, bos=False) != meant.encode(text, bos=False)
    token = files.special_token_id(out, tokenizer.IMG_CONTEXT)
    assert token == meant.img_context_id
    if layout == "native":
        assert read(out / "config.json")["image_token_id"] == token
        script(out, tmp_path / "back", layout="original")
        found = tokenizer.load_tokenizer(tmp_path / "back")
        assert found.encode(text, bos=False) == meant.encode(text, bos=False)


def test_image_tokens_are_written_down(tmp_path, origin, tokenizer_files):
    """A bare language model's tokenizer gets them when it is loaded; files must too."""
    bare = tmp_path / "bare"
    shutil.copytree(tokenizer_files, bare)
    for name in ("tokenizer.json", "tokenizer_config.json", "added_tokens.json"):
        if (bare / name).is_file():
            text = (bare / name).read_text()
            (bare / name).write_text(text.replace("<IMG_CONTEXT>", "<OTHER>"))
    meant = tokenizer.load_tokenizer(bare)
    assert files.special_token_id(bare, "<IMG_CONTEXT>") is None
    out = tmp_path / "out"
    shutil.copytree(origin, out)
    settings.Settings(tokenizer=bare).into_tokenizer(out)
    assert files.special_token_id(out, "<IMG_CONTEXT>") == meant.img_context_id
    assert tokenizer.load_tokenizer(out).img_context_id == meant.img_context_id


def test_a_tokenizer_that_is_gone(tmp_path, origin, script):
    run = write_run(tmp_path / "run", origin, tokenizer=tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="data.tokenizer=.*gone.*--hf_files"):
        script(run, tmp_path / "out")
    script(run, tmp_path / "out", hf_files=str(origin))  # the remedy works
    assert config.load(tmp_path / "out").max_tiles == TILES[1]


def test_a_run_that_started_from_a_run(tmp_path, origin, script, other_tokenizer):
    """Neither was exported: files of the first start, settings of both."""
    first = write_run(
        tmp_path / "a", origin, template="Hermes-2", tokenizer=other_tokenizer
    )
    second = write_run(tmp_path / "b", origin)
    meta = checkpoint.load_metadata(second)
    meta["config"]["model"]["path"] = str(first)
    model = internvl.InternVL(config.load(origin))
    checkpoints = checkpoint.Checkpoints(
        second / "checkpoints", config_lib.CheckpointConfig()
    )
    checkpoints.save(4, {"params": hf.load(origin, model)}, meta=meta)
    checkpoints.close()
    found = hub.locate(second)
    assert found.files == origin and found.config().template == "Hermes-2"
    assert found.settings.tokenizer == other_tokenizer
    loaded = api.InternVL.from_pretrained(second)
    loaded.save_pretrained(tmp_path / "out")
    assert config.load(tmp_path / "out").template == "Hermes-2"


def test_the_flag_wins(tmp_path, origin, script):
    run = write_run(tmp_path / "run", origin, template="Hermes-2")
    script(run, tmp_path / "out", template="internvl2_5")
    assert config.load(tmp_path / "out").template == "internvl2_5"


def test_nothing_set_changes_no_byte(tmp_path, origin, native, script):
    for start in (origin, native):
        out = tmp_path / start.parent.name
        script(start, out, dtype="keep")
        for file in start.iterdir():
            if file.is_file() and file.suffix != ".safetensors":
                assert (out / file.name).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_dtype_in_every_section(tmp_path, native, script, dtype):
    script(native, tmp_path / "out", dtype=dtype)
    raw = read(tmp_path / "out" / "config.json")
    for section in (raw, raw["text_config"], raw["vision_config"]):
        assert section["torch_dtype"] == dtype
    assert raw[native_config.KEPT]["torch_dtype"] == dtype
    # The check looks at it.
    raw["text_config"]["torch_dtype"] = "bfloat16"
    files.write_json(tmp_path / "out" / "config.json", raw)
    (wrong,) = verify.compare_dtype(tmp_path / "out", {dtype})
    assert "text_config.torch_dtype is 'bfloat16'" in wrong


def test_stated_dtype():
    assert settings.stated_dtype({"float32"}, "bfloat16") == "float32"
    assert settings.stated_dtype({"float32", "bfloat16"}, "bfloat16") == "bfloat16"
    assert settings.stated_dtype({"float16", "bfloat16"}, None) == "float32"


def test_generation_settings_are_kept(native):
    found = read(native / "generation_config.json")
    assert found["do_sample"] is True and found["top_p"] == 0.8
    assert found["eos_token_id"]


TEXT_ONLY = (
    "{%- for m in messages %}{{- m.role + m.content }}{%- endfor %}",
    "{%- for m in messages %}{{- m.role }}"
    "{%- if m.content is string %}{{- m.content }}{%- endif %}{%- endfor %}",
)
OF_IMAGES = (
    "{%- for m in messages %}{{- m.role }}{%- for c in m.content %}"
    "{{- c.text if c.type == 'text' else '<IMG_CONTEXT>' }}{%- endfor %}{%- endfor %}"
)


@pytest.mark.parametrize("name", files.CHAT_TEMPLATES)
@pytest.mark.parametrize("text", [*TEXT_ONLY, OF_IMAGES])
def test_a_chat_template_is_judged_by_its_prompt(tmp_path, origin, script, text, name):
    start = tmp_path / "start"
    shutil.copytree(origin, start)
    content = text if name.endswith("jinja") else json.dumps({"chat_template": text})
    (start / name).write_text(content)
    told = script(start, tmp_path / "out", layout="native", dtype="keep")
    written = (tmp_path / "out" / name) if text is OF_IMAGES else None
    if written is not None:
        assert written.read_text() == content and "of the source" not in told
    else:
        ours = (tmp_path / "out" / "chat_template.jinja").read_text()
        assert "<IMG_CONTEXT>" in ours and f"{name} of the source" in told
        assert (tmp_path / "out" / files.KEPT / name).read_text() == content


def test_code_that_auto_map_names(tmp_path, origin, script):
    start = tmp_path / "start"
    shutil.copytree(origin, start)
    raw = read(start / "config.json")
    raw["auto_map"] = {"AutoModel": "modeling_x.X", "AutoConfig": "a/b--c.C"}
    files.write_json(start / "config.json", raw)
    assert "note" not in script(start, tmp_path / "whole", dtype="keep")
    (start / "configuration_x.py").unlink()  # imported by the other
    told = script(start, tmp_path / "out", dtype="keep")
    assert "auto_map of config.json" in told and "(configuration_x.py)" in told


def test_the_original_survives_a_checkpoint(tmp_path, root, native, origin, script):
    """native -> our checkpoint -> original: every file of the original is there."""
    import importlib.util

    spec = importlib.util.spec_from_file_location(
        "convert_from_hf", root / "scripts/convert_from_hf.py"
    )
    assert spec is not None and spec.loader is not None
    forward = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(forward)
    options = {"dtype": "keep", "revision": None, "overwrite": False}
    for name, tokens in (("plain", []), ("more", ["<think>"])):
        forward.convert(str(native), str(tmp_path / name), new_tokens=tokens, **options)
        out = tmp_path / f"{name}-out"
        dtype = "float32" if tokens else "keep"
        told = script(tmp_path / name, out, layout="original", dtype=dtype)
        assert "note" not in told
        kept = {f.name for f in origin.iterdir()}
        assert {f.name for f in out.iterdir()} == kept
        known = files.special_token_id(out, "<think>")
        assert (known is not None) is bool(tokens)


@pytest.mark.parametrize("layout", ["original", "native", "native_new"])
@pytest.mark.parametrize("name", ["qwen2", "internlm2"])
def test_a_tied_head(tmp_path, tokenizer_files, script, layout, name):
    """Absent head: the embedding where that is meant; exports have both, untied."""
    from safetensors import numpy as safetensors_numpy

    small_family.original(tmp_path / "start", name, tokenizer_files)
    script(tmp_path / "start", tmp_path / "model", layout=layout, dtype="keep")
    directory = tmp_path / "model"
    tensors = safetensors_numpy.load_file(directory / files.SINGLE)
    (head,) = (n for n in tensors if n.endswith(("lm_head.weight", ".output.weight")))
    del tensors[head]
    safetensors_numpy.save_file(tensors, directory / files.SINGLE)
    raw = read(directory / "config.json")
    section = raw["llm_config" if layout == "original" else "text_config"]
    raw["tie_word_embeddings"] = section["tie_word_embeddings"] = False
    files.write_json(directory / "config.json", raw)
    model = internvl.InternVL(config.load(directory))
    with pytest.raises(ValueError, match=f"missing {head}"):
        hf.load(directory, model)
    section["tie_word_embeddings"] = True
    files.write_json(directory / "config.json", raw)
    language = hf.load(directory, model)["language"]
    np.testing.assert_array_equal(
        language["lm_head"]["kernel"], language["embedding"]["table"].T
    )
    script(directory, tmp_path / "out", dtype="keep", layout=layout)
    assert head in safetensors_numpy.load_file(tmp_path / "out" / files.SINGLE)
    assert "true" not in [
        line.split(":")[1].strip(" ,\n")
        for line in (tmp_path / "out" / "config.json").read_text().splitlines()
        if "tie_word_embeddings" in line
    ]


def test_an_original_with_a_text_config(origin):
    raw = read(origin / "config.json")
    assert config.from_hf(raw | {"text_config": {}}) == config.from_hf(raw)
    assert layouts.of_files(origin) == table.ORIGINAL
