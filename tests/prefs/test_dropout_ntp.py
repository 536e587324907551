"""Dropout-NTP: where an answer is cut, how it is asked on, what makes no pair."""

from __future__ import annotations

import dataclasses

import pytest
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.generate import requests
from mpo_jax.inputs import tokenizer as tokenizers
from mpo_jax.prefs import dropout_ntp, overlap
from mpo_jax.prefs.dropout_ntp import Chosen, Variant

STOP = 999


@pytest.fixture(scope="module")
def byte_tokens(tmp_path_factory):
    """A tokenizer with one token per byte."""
    path = tmp_path_factory.mktemp("bytes") / "tokenizer"
    return tokenizers.load_tokenizer(tiny_mmpr.write_tokenizer(path))


@pytest.fixture(scope="module", params=["qwen2_dir", "internlm2_dir", "phi3_dir"])
def any_tokens(request):
    return tokenizers.load_tokenizer(request.getfixturevalue(request.param))


def said(tokenizer, text: str, reason: str = requests.STOP) -> requests.Answer:
    ids = tuple(tokenizer.encode(text, bos=False, start=False))
    if reason == requests.STOP:
        ids = (*ids, STOP)
    logps = tuple(0.0 for _ in ids)
    return requests.Answer("q", 0, text, reason, 3, len(ids), 0.0, ids, logps)


def why(call) -> str:
    with pytest.raises(dropout_ntp.Dropped) as error:
        call()
    return error.value.reason


def test_half_of_the_tokens_are_kept(byte_tokens):
    found = dropout_ntp.cut(Chosen("abcdefg"), Variant(), byte_tokens)
    assert found.text == "abc" and byte_tokens.decode(found.ids) == "abc"
    quarter = dropout_ntp.cut(Chosen("abcdefgh"), Variant(ratio=0.25), byte_tokens)
    assert quarter.text == "ab"
    nothing = dropout_ntp.cut(Chosen("abc"), Variant(ratio=0), byte_tokens)
    assert nothing == dropout_ntp.Cut((), "")


def test_the_tokens_that_were_said_are_cut_and_no_others(qwen2_dir):
    tokens = tokenizers.load_tokenizer(qwen2_dir)
    text = "the the the the"
    apart = tuple(
        i for letter in text for i in tokens.encode(letter, bos=False, start=False)
    )
    whole = tokens.encode(text, bos=False, start=False)
    assert len(apart) > len(whole)
    found = dropout_ntp.cut(Chosen(text, apart), Variant(), tokens)
    assert found.ids == apart[: len(apart) // 2]
    other = dropout_ntp.cut(Chosen(text), Variant(), tokens)
    assert list(other.ids) == whole[: len(whole) // 2]


@pytest.mark.parametrize(
    "text", ["图中有三个红色的圆形。", "a😀b😀c", "é" * 7, "naïve é"]
)
@pytest.mark.parametrize("ratio", [0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
def test_no_character_is_split(byte_tokens, text, ratio):
    found = dropout_ntp.cut(Chosen(text), Variant(ratio=ratio), byte_tokens)
    assert text.startswith(found.text) and 0 < len(found.text) < len(text)
    size, wanted = len(text.encode()), int(len(text.encode()) * ratio)
    ends = [len(text[:i].encode()) for i in range(1, len(text))]
    nearest = max([e for e in ends if e <= wanted], default=ends[0])
    assert len(found.ids) == nearest < size


@pytest.mark.parametrize(
    "text", ["图中有三个红色的圆形。", "the answer is 12.\n\nYes", "a b"]
)
def test_every_tokenizer_gives_the_text_back(any_tokens, text):
    chosen = Chosen(text)
    found = dropout_ntp.cut(chosen, Variant(), any_tokens)
    rest = any_tokens.encode(text[:-1], bos=False, start=False)[len(found.ids) :]
    answer = requests.Answer(*("q", 0, "x", requests.STOP, 3, 2, 0.0), (*rest, STOP))
    text_of = dropout_ntp.rejected(chosen, found, answer, any_tokens)
    assert text_of.startswith(found.text) and found.text
    assert text_of == text[:-1]


def test_words_as_released(byte_tokens):
    words = Variant(by="words")
    found = dropout_ntp.cut(Chosen(" one two\nthree four five"), words, byte_tokens)
    assert found.text == "one"  # pieces: "", "one", "two\nthree", "four", "five"
    assert byte_tokens.decode(found.ids) == "one"
    chinese = dropout_ntp.cut(Chosen("图中有三个圆形"), words, byte_tokens)
    assert chinese == dropout_ntp.Cut((), "")


def test_what_cannot_be_cut(byte_tokens):
    def reason(text, *, ids=None, **how):
        return why(
            lambda: dropout_ntp.cut(Chosen(text, ids), Variant(**how), byte_tokens)
        )

    assert reason("") == reason(" \n") == "empty_chosen"
    assert reason("a") == reason("图") == "too_short"
    assert reason("ab", ratio=0.3) == "too_short"
    assert reason("a\ufffdb") == "broken_text"
    assert reason("abcd", ids=(1, 2, 3, 4)) == "tokenisation"
    for text, named in (("a<|im_end|>", "chat_marker"), ("<img>", "smuggled_token")):
        with pytest.raises(ledger.BadRecord) as error:
            dropout_ntp.cut(Chosen(text), Variant(), byte_tokens)
        assert error.value.reason == named and "chosen holds" in error.value.detail


def test_own_answers(byte_tokens):
    chosen = dropout_ntp.chosen_of(said(byte_tokens, "abcd"), byte_tokens)
    assert byte_tokens.decode(chosen.ids) == "abcd" and len(chosen.ids) == 4
    assert not chosen.cut_off
    long = said(byte_tokens, "abcd", requests.LENGTH)
    assert dropout_ntp.chosen_of(long, byte_tokens) == dataclasses.replace(
        chosen, cut_off=True
    )
    outside = dataclasses.replace(
        long, token_ids=(*long.token_ids, byte_tokens.img_context_id)
    )
    assert dropout_ntp.chosen_of(outside, byte_tokens).ids is None
    untold = dataclasses.replace(long, token_ids=None)
    assert dropout_ntp.chosen_of(untold, byte_tokens).ids is None


def test_the_question_goes_on_without_its_image():
    def asked(question, images=("a.png",), **how):
        return dropout_ntp.continued_question(question, images, Variant(**how))

    assert asked("<image>\nHow many?") == "How many?"
    assert asked("<image>How <image>\nmany?\n", ("a", "b")) == "How many?"
    assert asked("How many?") == "How many?"
    assert asked("<image>\nHow?", keep_image=True) == "<image>\nHow?"
    assert asked("How?", (), keep_image=True) == "How?"
    assert why(lambda: asked("How many?", ())) == "text_only"
    assert why(lambda: asked("<image>\n")) == "empty_question"


def test_what_makes_no_pair(byte_tokens):
    chosen = Chosen("one two three")
    beginning = dropout_ntp.cut(chosen, Variant(), byte_tokens)
    assert beginning.text == "one tw"

    def made(text, reason=requests.STOP, chosen=chosen, start=beginning):
        answer = said(byte_tokens, text, reason)
        return dropout_ntp.rejected(chosen, start, answer, byte_tokens)

    assert made("elve") == "one twelve"
    assert why(lambda: made("o three")) == "identical"
    assert why(lambda: made("o three\n")) == "identical"
    assert why(lambda: made("")) == why(lambda: made(" ")) == "empty_continuation"
    assert why(lambda: made("elve", requests.LENGTH)) == "cut_off"
    long = dataclasses.replace(chosen, cut_off=True)
    assert made("elve", requests.LENGTH, long) == "one twelve"
    other = dataclasses.replace(beginning, text="two")
    assert why(lambda: made("elve", start=other)) == "prefix_changed"
    with pytest.raises(ledger.BadRecord, match="rejected holds '<img>'"):
        made(f"<i{tokenizers.CUT}mg>x")  # as letters
    half = said(byte_tokens, "elvé", requests.LENGTH)
    half = dataclasses.replace(half, token_ids=half.token_ids[:-1])
    assert why(lambda: dropout_ntp.rejected(long, beginning, half, byte_tokens)) == (
        "broken_text"
    )


def test_a_continuation_of_an_endpoint_has_no_tokens(byte_tokens):
    chosen = Chosen("one two three")
    beginning = dropout_ntp.cut(chosen, Variant(), byte_tokens)
    answer = requests.Answer("q", 0, "elve", requests.STOP, 3, 2, None)
    text = dropout_ntp.rejected(chosen, beginning, answer, byte_tokens)
    assert text == "one twelve"


def test_variants_have_names_and_bounds():
    assert Variant().name == "tokens-0.5-without_image"
    assert Variant(0.25, "words", True).name == "words-0.25-with_image"
    for ratio in (-0.1, 1, float("nan")):
        with pytest.raises(ValueError, match="ratio=.*from 0 up to"):
            Variant(ratio=ratio)
    with pytest.raises(ValueError, match="by='lines': must be one of tokens, words"):
        Variant(by="lines")


def test_the_page_names_every_reason_and_kind(root):
    page = (root / "docs" / "dropout_ntp.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in page.splitlines() if "|" in line}
    for name in (*dropout_ntp.DROPPED, *overlap.MEANING):
        assert f"`{name}`" in rows, name
