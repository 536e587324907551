"""Loading, ids of special tokens, pickling, and what no tokenizer may do."""

from __future__ import annotations

import json
import pathlib
import pickle
import shutil
import unicodedata

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.inputs import tokenizer_files

RELEASED = {
    "internvl2_2b": "tokenization_internlm2.json",
    "qwen2": "tokenization_qwen2.json",
    "internvl3": "tokenization_qwen2_5.json",
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module", params=["internlm2", "qwen2", "phi3"])
def tiny(request) -> tokenizer_lib.ChatTokenizer:
    path = request.getfixturevalue(f"{request.param}_dir")
    return tokenizer_lib.load_tokenizer(path)


@pytest.fixture(scope="module", params=list(RELEASED))
def released(request, shared):
    """A released tokenizer and its golden file."""
    path = shared / "data" / "tokenizers" / request.param
    golden = shared / "goldens" / "tokenization" / RELEASED[request.param]
    content = json.loads(golden.read_text(encoding="utf-8"))
    return request.param, tokenizer_lib.load_tokenizer(path), content


def test_released_ids(released):
    name, tokenizer, golden = released
    assert tokenizer.vocab_size == golden["vocab"]
    for token, i in golden["special"].items():
        assert tokenizer.encode(token, bos=False) == [i]
        assert tokenizer.token(i) == token
    assert tokenizer.img_context_id == golden["special"]["<IMG_CONTEXT>"]
    assert tokenizer.id_of("<|im_end|>") == golden["special"]["<|im_end|>"]
    expected = (1, 2, True) if name == "internvl2_2b" else (None, 151643, False)
    assert (tokenizer.bos_id, tokenizer.pad_id, tokenizer.add_bos) == expected
    zero = "<unk>" if name == "internvl2_2b" else "!"
    assert tokenizer.token(0) == zero


def test_added_tokens_follow_the_vocabulary_in_order(tiny):
    ids = [
        tokenizer.encode(token, bos=False)
        for tokenizer, token in ((tiny, token) for token in tokenizer_lib.ADDED_TOKENS)
    ]
    first = tiny.vocab_size - len(tokenizer_lib.ADDED_TOKENS)
    assert ids == [[i] for i in range(first, tiny.vocab_size)]
    assert (tiny.img_start_id, tiny.img_end_id, tiny.img_context_id) == (
        first,
        first + 1,
        first + 2,
    )


def test_tokens_that_are_missing_follow_the_last_id(internlm2_dir, qwen2_dir):
    for path in (internlm2_dir, qwen2_dir):
        end = tokenizer_lib.load_tokenizer(path).vocab_size
        add = (*tokenizer_lib.ADDED_TOKENS, "<mine>", "<other>")
        backend = tokenizer_files.read(path, add=add).backend
        assert [backend.id_of(token) for token in add[-2:]] == [end, end + 1]
        assert backend.encode("an<mine>", start=True)[-1] == end
        special = {token.content for token in backend.added() if token.special}
        assert special >= set(add)


def test_bos(internlm2_dir, qwen2_dir):
    internlm2 = tokenizer_lib.load_tokenizer(internlm2_dir)
    assert internlm2.encode("an", bos=True) == [1, *internlm2.encode("an", bos=False)]
    qwen2 = tokenizer_lib.load_tokenizer(qwen2_dir)
    with pytest.raises(ValueError, match="begin-of-sequence"):
        qwen2.encode("an", bos=True)


@pytest.mark.parametrize("named", [True, False])
def test_bos_is_asked_for(qwen2_dir, tmp_path, named):
    """A post-processor adds it, as Llama 3's does; no field says so."""
    plain = tokenizer_lib.load_tokenizer(qwen2_dir)
    backend = transformers.Qwen2Tokenizer.from_pretrained(qwen2_dir).backend_tokenizer
    bos = "<|endoftext|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": bos}
    config |= {"bos_token": bos} if named else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = tokenizer_lib.load_tokenizer(tmp_path)
    assert found.add_bos and not plain.add_bos
    ids = found.encode("the", bos=found.add_bos)
    assert ids == [plain.id_of(bos), *plain.encode("the", bos=False)]
    loaded = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert ids == loaded("the").input_ids

    # What training would leave out is refused.
    backend.post_processor = processors.TemplateProcessing(
        single=f"$A {bos}", special_tokens=[(bos, backend.token_to_id(bos))]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="only one token before a text"):
        tokenizer_lib.load_tokenizer(tmp_path)


def test_bos_of_a_model_file_that_was_saved_again(phi3_dir, tmp_path):
    """Newer versions drop the field, and leave the model file beside their own."""
    for added in (True, False):
        path = tmp_path / str(added)
        shutil.copytree(phi3_dir, path)
        backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<s>": 0, "a": 1}, []))
        if added:
            backend.post_processor = processors.TemplateProcessing(
                single="<s> $A", special_tokens=[("<s>", 0)]
            )
        else:
            backend.post_processor = processors.ByteLevel()
        backend.save(str(path / "tokenizer.json"))
        assert tokenizer_lib.load_tokenizer(path).add_bos is added


@given(text=TEXT | st.text("the an\n<|img>/", max_size=40))
def test_text_comes_back(tiny, text):
    ids = tiny.encode(text, bos=False)
    assert all(0 <= i < tiny.vocab_size for i in ids)
    decoded = tiny.decode(ids, skip_special=False)
    # U+2581 is how sentencepiece writes a space; byte-level BPE normalises to NFC.
    expected = {text, text.replace("\u2581", " "), unicodedata.normalize("NFC", text)}
    assert decoded in expected


@given(
    left=st.text("the an\n!é", max_size=12),
    token=st.sampled_from(tokenizer_lib.ADDED_TOKENS),
    right=st.text("the an\n!é", max_size=12),
)
def test_special_tokens_split_text(tiny, left, token, right):
    """Templates rely on it: parts may be encoded for themselves."""
    whole = tiny.encode(left + token + right, bos=False)
    parts = [tiny.encode(left, bos=False)]
    parts += [tiny.encode(text, bos=False, start=False) for text in (token, right)]
    assert len(parts[1]) == 1
    assert whole == sum(parts, [])
    assert tiny.decode(whole) == left + right


def test_decode_ignores_padded_rows(tiny):
    ids = tiny.encode("the an", bos=False)
    assert tiny.decode([*ids, tiny.vocab_size + 5, -1]) == "the an"
    with pytest.raises(IndexError, match="outside"):
        tiny.token(tiny.vocab_size)


def test_lone_surrogates_are_an_error(tiny):
    with pytest.raises(UnicodeEncodeError):
        tiny.encode("a\ud800", bos=False)


def test_pickles(tiny):
    again = pickle.loads(pickle.dumps(tiny))
    text = "the <ref>an</ref>\n\nthe<|im_end|>答案 ok"
    assert again.encode(text, bos=False) == tiny.encode(text, bos=False)
    assert again.fingerprint == tiny.fingerprint


def test_fingerprint_follows_what_decides_ids(internlm2_dir, qwen2_dir, tmp_path):
    def edited(source: pathlib.Path, **changes) -> str:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(source, path)
        config = json.loads((path / "tokenizer_config.json").read_text())
        config |= changes
        (path / "tokenizer_config.json").write_text(json.dumps(config))
        return tokenizer_lib.load_tokenizer(path).fingerprint

    for source in (internlm2_dir, qwen2_dir):
        original = tokenizer_lib.load_tokenizer(source).fingerprint
        assert len(original) == 64
        assert edited(source, model_max_length=7, chat_template="{{x}}") == original
        assert edited(source, pad_token="<|im_end|>") != original
    assert edited(internlm2_dir, add_bos_token=False) != edited(internlm2_dir)
    base = tokenizer_lib.load_tokenizer(qwen2_dir).fingerprint
    path = tmp_path / "merges"
    shutil.copytree(qwen2_dir, path)
    merges = (path / "merges.txt").read_text(encoding="utf-8")
    (path / "merges.txt").write_text(merges + "a n\n", encoding="utf-8")
    vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
    vocabulary = {t: i + (i >= 260) for t, i in vocabulary.items()} | {"an": 260}
    (path / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    config = json.loads((path / "tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {str(int(i) + 1): v for i, v in decoder.items()}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_lib.load_tokenizer(path).fingerprint != base


@pytest.mark.parametrize("layout", ["internlm2", "qwen2"])
def test_never_runs_code_of_the_checkpoint(layout, internlm2_dir, qwen2_dir, tmp_path):
    """auto_map and a module beside it, as in the released directories."""
    source = internlm2_dir if layout == "internlm2" else qwen2_dir
    path = tmp_path / "checkpoint"
    shutil.copytree(source, path)
    auto_map = {"AutoTokenizer": ["evil.Tokenizer", None], "AutoConfig": "evil.Config"}
    config = json.loads((path / "tokenizer_config.json").read_text())
    config["auto_map"] = auto_map
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"model_type": "internvl_chat", "auto_map": auto_map}
    (path / "config.json").write_text(json.dumps(model))
    trace = tmp_path / "ran"
    (path / "evil.py").write_text(f"open({str(trace)!r}, 'w').close()\n")
    tokenizer = tokenizer_lib.load_tokenizer(path)
    expected = tokenizer_lib.load_tokenizer(source).encode("the an", bos=False)
    assert tokenizer.encode("the an", bos=False) == expected
    assert not trace.exists()


def test_tokenizer_json_is_taken_as_it_is(qwen2_dir, tmp_path):
    import transformers

    qwen2 = transformers.Qwen2Tokenizer.from_pretrained(str(qwen2_dir))
    qwen2.save_pretrained(str(tmp_path))
    assert (tmp_path / "tokenizer.json").is_file()
    original = tokenizer_lib.load_tokenizer(qwen2_dir)
    again = tokenizer_lib.load_tokenizer(tmp_path)
    text = "the  an\n\n!<box>é</box> 答案"
    assert again.encode(text, bos=False) == original.encode(text, bos=False)
    assert again.vocab_size == original.vocab_size


def test_errors_name_the_remedy(internlm2_dir, qwen2_dir, tmp_path):
    with pytest.raises(ValueError, match="tokenizer.model.*tokenizer.json.*merges"):
        tokenizer_lib.load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="data.tokenizer"):
        tokenizer_lib.load_tokenizer(tmp_path / "absent")

    def broken(source: pathlib.Path, name: str, text: str) -> pathlib.Path:
        path = tmp_path / f"broken{len(list(tmp_path.iterdir()))}"
        shutil.copytree(source, path)
        (path / name).write_text(text)
        return path

    config = json.loads((internlm2_dir / "tokenizer_config.json").read_text())
    decoder = config["added_tokens_decoder"]
    single = {k: v | {"single_word": True} for k, v in decoder.items()}
    image = {"9999": {"content": "<img>", "special": True, "rstrip": True}}
    twice = {i: {"content": "<twice>", "special": True} for i in ("9998", "9999")}
    for source, name, text, why in (
        (internlm2_dir, "tokenizer.model", "nonsense", "tokenizer.model"),
        (internlm2_dir, "tokenizer_config.json", "{", "not JSON"),
        (internlm2_dir, "tokenizer_config.json", "[]", "JSON object"),
        (internlm2_dir, "added_tokens.json", '{"<s>": 9}', "has id 9"),
        (internlm2_dir, "added_tokens.json", '{"<img>": 2}', "share an id"),
        (qwen2_dir, "vocab.json", "nonsense", "cannot load"),
        (qwen2_dir, "tokenizer_config.json", '{"tokenizer_class": "X"}', "'X'"),
    ):
        with pytest.raises(ValueError, match=why):
            tokenizer_lib.load_tokenizer(broken(source, name, text))
    for change, why in (
        ({"added_tokens_decoder": single}, "single_word"),
        ({"added_tokens_decoder": decoder | image}, "'<img>' has lstrip or rstrip"),
        ({"added_tokens_decoder": decoder | twice}, "'<twice>' has id 9998 .* 9999"),
        (
            {"tokenizer_class": "LlamaTokenizer", "legacy": False}
            | {"add_prefix_space": False},
            "add_prefix_space",
        ),
        ({"pad_token": None}, "pad_token"),
        ({"bos_token": None, "add_bos_token": True}, "bos_token"),
    ):
        text = json.dumps(config | change)
        with pytest.raises(ValueError, match=why):
            tokenizer_lib.load_tokenizer(
                broken(internlm2_dir, "tokenizer_config.json", text)
            )


def test_chat_tokens_that_swallow_white_space(phi3_dir, make_phi3, tmp_path):
    """Phi-3's; and the fingerprint covers it."""
    tokenizer = tokenizer_lib.load_tokenizer(phi3_dir)
    plain = tokenizer.encode("<|user|>the", bos=False)
    assert tokenizer.encode("<|user|> \n\tthe", bos=False) == plain
    assert tokenizer.encode("<ref> the", bos=False)[-1] != plain[-1]
    config = json.loads((phi3_dir / "tokenizer_config.json").read_text())
    for entry in config["added_tokens_decoder"].values():
        entry["rstrip"] = False
    decoder = {"added_tokens_decoder": config["added_tokens_decoder"]}
    other = tokenizer_lib.load_tokenizer(make_phi3(tmp_path / "keeps", **decoder))
    assert other.encode("<|user|> the", bos=False) != plain
    legacy = tokenizer_lib.load_tokenizer(make_phi3(tmp_path / "old", legacy=True))
    found = {t.fingerprint for t in (tokenizer, other, legacy)}
    assert len(found) == 3
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("the<|user|> the", bos=False) == tokenizer.encode(
        "the<|user|> the", bos=False
    )


def test_a_fast_tokenizer_with_a_leading_space_goes_on_without_it(phi3_dir, tmp_path):
    """A tokenizer.json of Llama's kind: parts of a text get no space of their own."""
    from mpo_jax.convert import native_files

    backend, _, chat = native_files._backend(phi3_dir)
    (tmp_path / "fast").mkdir()
    backend.save(str(tmp_path / "fast" / "tokenizer.json"))
    config = {"pad_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizer"}
    (tmp_path / "fast" / "tokenizer_config.json").write_text(json.dumps(config))
    fast = tokenizer_lib.load_tokenizer(tmp_path / "fast")
    for text in ("the an", "the<|user|> the", "é答案  x"):
        for start in (True, False):
            ids = fast.encode(text, bos=False, start=start)
            assert ids == chat.encode(text, bos=False, start=start), (text, start)
