"""Text as tokens come: any split gives the same, stop strings never leak."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mpo_jax.generate import text as text_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib

KINDS = ("qwen2", "internlm2", "phi3", "fallback")
quick = settings(max_examples=150, deadline=None)


class Fallback:
    """A ``tokenizer.json`` with byte fallback, as Llama 2's.

    One broken character makes its decoder give up a whole run of bytes.
    """

    def __init__(self) -> None:
        vocab = {f"<0x{value:02X}>": value for value in range(256)}
        letters = ["▁", *"the an", "th", "the", "▁the"]
        for piece in letters:
            vocab.setdefault(piece, len(vocab))
        merges = [("t", "h"), ("th", "e"), ("▁", "the")]
        bpe = tokenizers.models.BPE(vocab=vocab, merges=merges, byte_fallback=True)
        self._made = tokenizers.Tokenizer(bpe)
        self._made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
        self._made.decoder = tokenizers.decoders.Sequence(
            [
                tokenizers.decoders.Replace("▁", " "),
                tokenizers.decoders.ByteFallback(),
                tokenizers.decoders.Fuse(),
                tokenizers.decoders.Strip(" ", 1, 0),
            ]
        )
        self.vocab_size = len(vocab)

    def encode(self, text: str, *, bos: bool) -> list[int]:
        assert not bos
        return self._made.encode(text).ids

    def decode(self, ids) -> str:
        return self._made.decode([i for i in ids if i < self.vocab_size])


@pytest.fixture(scope="module")
def chats(qwen2_dir, internlm2_dir, phi3_dir):
    """Byte-level BPE, sentencepiece, and sentencepiece that puts a space in front."""
    folders = (qwen2_dir, internlm2_dir, phi3_dir)
    found = [tokenizer_lib.load_tokenizer(folder) for folder in folders]
    return dict(zip(KINDS, [*found, Fallback()], strict=True))


# What a tokenizer of few letters writes in many tokens, what it joins, and the rest.
texts = st.text(
    st.sampled_from(" the an答案图é漢字😀👩‍👩‍👧\u0301\n<|>")
    | st.characters(codec="utf-8"),
    max_size=40,
)
cuts = st.lists(st.integers(1, 12), min_size=1, max_size=8)


def pieces(ids, sizes):
    """The tokens in pushes of these sizes, over and over."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(ids):
            return
        yield ids[start : start + size]
        start += size


def streamed(chat, ids, sizes, **options):
    """All text of a stream, and how many tokens belong to it."""
    stream = text_lib.TextStream(chat.decode, **options)
    out, number = [], 0
    for some in pieces(ids, sizes):
        said, taken = stream.push(some)
        out.append(said)
        number += taken
        if stream.stopped:
            break
    out.append(stream.finish())
    return out, number, stream.stopped


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_gives_the_text_of_all_tokens(chats, kind):
    chat = chats[kind]

    @quick
    @given(texts, cuts)
    @example("漢字漢字漢字漢字漢字漢字", [1])
    @example("😀" * 12, [5, 1])
    @example(" the the\n the", [1])
    def check(text, sizes):
        ids = chat.encode(text, bos=False)
        out, number, stopped = streamed(chat, ids, sizes)
        assert "".join(out) == chat.decode(ids)
        assert number == len(ids) and not stopped
        # Nothing but whole characters comes before the end.
        assert "\ufffd" in text or not any("\ufffd" in part for part in out)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_prefix_is_not_repeated_and_joins_what_follows(chats, kind):
    chat = chats[kind]

    @quick
    @given(texts, st.integers(0, 30), cuts)
    @example("the the", 1, [1])
    def check(text, given, sizes):
        ids = chat.encode(text, bos=False)
        before = chat.decode(ids[:given])
        if "\ufffd" in before:
            return  # a prefix that ends within a character has no text to go on from
        out, _, _ = streamed(chat, ids[given:], sizes, prefix=ids[:given])
        assert before + "".join(out) == chat.decode(ids)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stop_string_ends_the_text_and_the_tokens(chats, kind):
    chat = chats[kind]

    @quick
    @given(
        texts,
        st.lists(st.text("the an答", min_size=1, max_size=5), min_size=1, max_size=3),
        cuts,
    )
    @example("an answer: the the the", ["the the", "er"], [7])
    @example("thethe the", ["hethe", "the t"], [1])
    def check(text, stops, sizes):
        ids = chat.encode(text, bos=False)
        out, number, stopped = streamed(chat, ids, sizes, stop=stops)
        said, whole = "".join(out), chat.decode(ids)
        assert whole.startswith(said)
        assert not any(stop in said for stop in stops)
        found = any(stop in whole for stop in stops)
        assert stopped == found
        if not found:
            assert said == whole and number == len(ids)
            return
        assert any(whole[len(said) :].startswith(stop) for stop in stops)
        # The tokens are those up to the one that completed it: no fewer would do.
        assert any(stop in chat.decode(ids[:number]) for stop in stops)
        fewer = chat.decode(ids[: number - 1])
        assert "\ufffd" in fewer or not any(stop in fewer for stop in stops)

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_no_part_of_a_stop_string_leaks_before_it_is_decided(chats, kind):
    """At every moment what was told is a prefix of the final text."""
    chat = chats[kind]
    stop = "the the"
    for text in ("an the then", "the the", "nthe thethe the", "an答 the tha"):
        ids = chat.encode(text, bos=False)
        stream = text_lib.TextStream(chat.decode, stop=[stop])
        whole, told = chat.decode(ids), ""
        final = whole[: whole.find(stop)] if stop in whole else whole
        for token in ids:
            if stream.stopped:
                break
            told += stream.push([token])[0]
            assert final.startswith(told)
        assert told + stream.finish() == final
        assert stream.stopped == (stop in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_any_tokens_at_all(chats, kind):
    """A model says what it wants: special tokens, broken bytes, rows of no token."""
    chat = chats[kind]

    @quick
    @given(st.lists(st.integers(0, chat.vocab_size + 3), max_size=40), cuts)
    def check(ids, sizes):
        out, number, stopped = streamed(chat, ids, sizes, stop=["the"], stop_ids=[3])
        assert number <= len(ids) and "the" not in "".join(out)
        assert stopped or number == len(ids)

    check()


def test_stop_tokens_have_no_text(chats):
    chat = chats["qwen2"]
    ids = chat.encode("the an", bos=False)
    letter = ids[-1]
    out, number, stopped = streamed(chat, ids, [1], stop_ids=[letter])
    assert "".join(out) == "the a" and number == len(ids) and not stopped


def test_a_character_comes_when_it_is_whole(chats):
    chat = chats["qwen2"]
    ids = chat.encode("é😀", bos=False)
    assert len(ids) == 6
    stream = text_lib.TextStream(chat.decode)
    said = [stream.push([token])[0] for token in ids]
    assert said == ["", "é", "", "", "", "😀"]


def test_broken_bytes_count_as_text_in_the_end(chats):
    chat = chats["qwen2"]
    first = chat.encode("😀", bos=False)[0]
    stream = text_lib.TextStream(chat.decode)
    said = "".join(stream.push([first])[0] for _ in range(30))
    assert 0 < len(said) <= 30 and set(said) == {"\ufffd"}
    assert len(said + stream.finish()) == 30
    stream = text_lib.TextStream(chat.decode)
    assert stream.push([first]) == ("", 1) and stream.finish() == "\ufffd"


def test_a_stop_string_of_broken_bytes_is_found_at_the_end(chats):
    chat = chats["qwen2"]
    ids = [*chat.encode("an", bos=False), chat.encode("😀", bos=False)[0]]
    out, number, stopped = streamed(chat, ids, [1], stop=["n\ufffd"])
    assert ("".join(out), number) == ("a", 3) and stopped
    stream = text_lib.TextStream(chat.decode, stop=["n\ufffd"])
    assert stream.push(ids) == ("a", 3)
    assert stream.finish() == "" and stream.stopped
