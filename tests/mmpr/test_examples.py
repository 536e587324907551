"""Records to examples: nothing lost, nothing shifted, nothing silently repaired."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mpo_jax import ledger, types
from mpo_jax.inputs import template as template_lib
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.mmpr import examples

POLICY = examples.EncodePolicy(
    template="internvl2_5",
    image_size=28,
    tokens_per_tile=4,
    min_tiles=1,
    max_tiles=6,
    use_thumbnail=True,
    max_image_pixels=1_000_000,
)
TEMPLATES = list(template_lib.TEMPLATES)
SIZES = ((28, 28), (90, 30), (40, 100), (200, 20))


@pytest.fixture(scope="module")
def tokenizers(internlm2_dir, qwen2_dir) -> list[tokenizer_lib.ChatTokenizer]:
    return [tokenizer_lib.load_tokenizer(path) for path in (internlm2_dir, qwen2_dir)]


@pytest.fixture(scope="module")
def fitting(tokenizers, phi3_dir):
    """Tokenizers that have the chat tokens of a template."""
    phi3 = [tokenizer_lib.load_tokenizer(phi3_dir)]
    return lambda name: phi3 if name == "phi3-chat" else tokenizers


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[str]:
    """Noise of several shapes: 1, 4, 5 and 7 tiles with POLICY."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for width, height in SIZES:
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = folder / f"{width}x{height}.png"
        Image.fromarray(pixels).save(path)
        paths.append(str(path))
    return paths


def record(question="q?", chosen="yes", rejected="no", images=(), **fields):
    return types.PreferenceRecord(
        source="test",
        file="test.jsonl",
        line=1,
        images=tuple(images),
        question=question,
        chosen=chosen,
        rejected=rejected,
        **fields,
    )


def reason(rec, tokenizer, policy=POLICY, **options) -> str:
    with pytest.raises(ledger.BadRecord) as caught:
        examples.build_example(rec, tokenizer, policy=policy, **options)
    assert caught.value.detail
    return caught.value.reason


def check(example, rec, tokenizer, policy):
    """Every invariant of an example, against ids and labels of whole sides."""
    context = tokenizer.img_context_id
    slots = example.num_tiles * policy.tokens_per_tile
    assert (example.prompt == context).sum() == slots
    counts = [slots]
    if len(rec.images) > 1:  # runs of context tokens are the images'
        is_context = np.concatenate([[False], example.prompt == context, [False]])
        edges = np.flatnonzero(np.diff(is_context.astype(np.int8)))
        counts = (edges[1::2] - edges[::2]).tolist()
        assert len(counts) == len(rec.images)
    question = rec.question
    if len(rec.images) == 1:
        question = template_lib.add_placeholder(question)
    sides = ["chosen"] if policy.chosen_only else ["chosen", "rejected"]
    for side in sides:
        ids, labels = template_lib.encode_side(
            tokenizer,
            template_lib.get_template(policy.template),
            question,
            getattr(rec, side),
            num_image_tokens=counts if rec.images else (),
            text_only=not rec.images,
        )
        (trained,) = np.nonzero(labels != template_lib.IGNORED)
        tokens = getattr(example, f"{side}_tokens")
        targets = getattr(example, f"{side}_labels")
        mask = getattr(example, f"{side}_mask")
        assert tokens.dtype == targets.dtype == example.prompt.dtype == np.int32
        assert mask.dtype == bool and mask[-1]
        assert tokens.shape == targets.shape == mask.shape
        whole = np.concatenate([example.prompt, tokens, targets[-1:]])
        assert whole.tolist() == ids[: trained[-1] + 1].tolist()
        assert tokens[1:].tolist() == targets[:-1].tolist()
        assert targets[mask].tolist() == ids[trained].tolist()
        assert context not in tokens and context not in targets
    if not policy.chosen_only:
        assert example.chosen_tokens[0] == example.rejected_tokens[0]
        same = example.chosen_labels[0] == example.rejected_labels[0]
        both_trained = example.chosen_mask[0] or example.rejected_mask[0]
        assert both_trained or not same  # the shared part ends no sooner than it must


WORDS = st.sampled_from(
    [
        "the ",
        "an",
        "!",
        "\n",
        "\n\n",
        " ",
        "<image>",
        "答案",
        "图",
        "é",
        "🙂",
        "<|",
        "0",
    ]
    + ["<box>", "▁", "\t", "[UNUSED_TOKEN_0]", "</s>", "<|endoftext|>", "<|im_end|>"]
)
TEXT = st.lists(WORDS, max_size=12).map("".join) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=20
)


@settings(max_examples=250)
@given(data=st.data())
def test_any_record_is_whole_or_refused(fitting, pictures, data):
    name = data.draw(st.sampled_from(TEMPLATES))
    tokenizer = data.draw(st.sampled_from(fitting(name)))
    number = data.draw(st.integers(0, 3))
    question = data.draw(TEXT)
    if number > 1 and data.draw(st.booleans()):
        question = "<image>\n" * number + question.replace("<image>", "")
    rec = record(
        question,
        data.draw(TEXT),
        data.draw(TEXT),
        data.draw(
            st.lists(st.sampled_from(pictures), min_size=number, max_size=number)
        ),
        max_tiles=data.draw(st.sampled_from([None, 1, 4])),
    )
    policy = dataclasses.replace(
        POLICY,
        template=name,
        chosen_only=data.draw(st.booleans()),
        use_thumbnail=data.draw(st.booleans()),
    )
    try:
        example = examples.build_example(
            rec, tokenizer, policy=policy, with_tiles=False
        )
    except ledger.BadRecord as error:
        placeholders = rec.question.count("<image>")
        texts = [rec.question, rec.chosen] + [rec.rejected] * (not policy.chosen_only)
        pad = tokenizer.token(tokenizer.pad_id)
        markers = [m for t in template_lib.TEMPLATES.values() for m in t.markers]
        justified = {
            "image_count": placeholders != number and (number, placeholders) != (1, 0),
            "smuggled_token": any(map(template_lib.find_image_token, texts)),
            "identical": not policy.chosen_only
            # U+2581 is how sentencepiece writes a space.
            and rec.chosen.replace("\u2581", " ").split()
            == rec.rejected.replace("\u2581", " ").split(),
            "no_labels": any(not text.strip() for text in texts[1:]),
            "chat_marker": any(
                token in text
                for text in texts
                for token in (*markers, "<s>", "<|endoftext|>", pad)
            ),
        }
        assert justified.get(error.reason), (error, rec)
        return
    assert len(example.tiles) == 0
    check(example, rec, tokenizer, policy)


@pytest.mark.parametrize("name", TEMPLATES)
def test_leading_newlines(fitting, name):
    """The header's last token may differ between the sides."""
    policy = dataclasses.replace(POLICY, template=name)
    for tokenizer in fitting(name):
        for chosen, rejected in (
            ("\nyes", "no"),
            ("yes", "\n\nno"),
            ("\na", "\n\na b"),
        ):
            rec = record("the?", chosen, rejected)
            example = examples.build_example(rec, tokenizer, policy=policy)
            check(example, rec, tokenizer, policy)
            stripped = ("internlm2-chat", "phi3-chat")
            if name in stripped or chosen[0] == rejected[0]:
                # Stripped, or merged alike on both sides: part of the prompt.
                assert example.chosen_mask.all() and example.rejected_mask.all()
            else:
                # The merged newline is a label that is not trained.
                assert not (example.chosen_mask[0] and example.rejected_mask[0])
                assert example.chosen_mask.any() and example.rejected_mask.any()


def test_phi3_records(fitting, pictures):
    """From a record to what is trained: nothing but the response and its end."""
    policy = dataclasses.replace(POLICY, template="phi3-chat")
    (tokenizer,) = fitting("phi3-chat")
    rec = record("<image>\nthe 图?", " the an", "an\n答案", images=[pictures[1]])
    example = examples.build_example(rec, tokenizer, policy=policy)
    check(example, rec, tokenizer, policy)
    assert example.num_tiles == 4
    chat = template_lib.get_template("phi3-chat")
    prompt = template_lib.render_prompt(
        chat, rec.question, num_image_tokens=[4 * policy.tokens_per_tile]
    )
    expected = tokenizer.encode(prompt, bos=True)
    assert [*example.prompt, example.chosen_tokens[0]] == expected
    for side, text in (("chosen", "the an<|end|>"), ("rejected", "an\n答案<|end|>")):
        labels = getattr(example, f"{side}_labels")
        assert getattr(example, f"{side}_mask").all()
        assert tokenizer.decode(labels, skip_special=False) == text
    # Its header swallows white space: then these are one response.
    same = record("the?", " the", "\n\nthe")
    assert reason(same, tokenizer, policy) == "identical"


def test_shared_beginning_is_trained_on_both_sides(tokenizers):
    """As upstream: the split is at the first label, not where the sides part."""
    rec = record("the?", "the an a", "the an b")
    for tokenizer in tokenizers:
        example = examples.build_example(rec, tokenizer, policy=POLICY)
        for side in ("chosen", "rejected"):
            labels = getattr(example, f"{side}_labels")
            text = tokenizer.decode(labels, skip_special=False)
            assert text == f"the an {'a' if side == 'chosen' else 'b'}<|im_end|>"


def test_tiles(tokenizers, pictures):
    rec = record("q", images=[pictures[1]])
    full = examples.build_example(rec, tokenizers[0], policy=POLICY)
    bare = examples.build_example(rec, tokenizers[0], policy=POLICY, with_tiles=False)
    assert full.num_tiles == bare.num_tiles == 4
    assert full.tiles.shape == (4, 28, 28, 3)
    assert bare.tiles.shape == (0, 28, 28, 3)
    assert full.tiles.dtype == bare.tiles.dtype == np.uint8
    for field in dataclasses.fields(types.Example):
        if field.name != "tiles":
            np.testing.assert_array_equal(
                getattr(full, field.name), getattr(bare, field.name)
            )


def test_tile_limits(tokenizers, pictures):
    """The record's limit wins; several images share it, one tile each at least."""

    def tiles(images, max_tiles=None, **changes):
        policy = dataclasses.replace(POLICY, **changes)
        rec = record("<image>" * len(images), images=images, max_tiles=max_tiles)
        example = examples.build_example(rec, tokenizers[0], policy=policy)
        assert len(example.tiles) == example.num_tiles
        check(example, rec, tokenizers[0], policy)
        return example.num_tiles

    wide = pictures[3]  # 200x20: takes all the tiles that it may have
    assert tiles([wide]) == 7
    assert tiles([wide], use_thumbnail=False) == 6
    assert tiles([wide], max_tiles=3) == 4
    assert tiles([wide], max_tiles=12) == 11  # 10x1 and the thumbnail
    assert tiles([wide, wide]) == 8
    assert tiles([wide] * 4, max_tiles=2) == 4
    square = pictures[0]
    assert tiles([square], min_tiles=4) == 5
    assert tiles([square, square, wide], min_tiles=4) == 9  # 2x1 and thumbnail each


def test_placeholders(tokenizers, pictures):
    tokenizer, one = tokenizers[0], pictures[0]
    for question in ("the?", "<image>\nthe?", "the <image>?"):
        rec = record(question, images=[one])
        example = examples.build_example(rec, tokenizer, policy=POLICY)
        check(example, rec, tokenizer, POLICY)
    explicit = examples.build_example(
        record("<image>\nthe?", images=[one]), tokenizer, policy=POLICY
    )
    implicit = examples.build_example(
        record("the?", images=[one]), tokenizer, policy=POLICY
    )
    np.testing.assert_array_equal(explicit.prompt, implicit.prompt)
    for question, images in (
        ("<image> <image>", [one]),
        ("the?", [one, one]),
        ("<image>", [one, one]),
        ("<image>" * 3, [one, one]),
        ("<image> ?", []),  # upstream trains it as letters
    ):
        assert reason(record(question, images=images), tokenizer) == "image_count"
    assert examples.build_example(record(), tokenizer, policy=POLICY).num_tiles == 0
    answer = record("the?", "an <image>", images=[one])
    check(
        examples.build_example(answer, tokenizer, policy=POLICY),
        answer,
        tokenizer,
        POLICY,
    )


@pytest.mark.parametrize("field", ["question", "chosen", "rejected"])
def test_smuggled_tokens(tokenizers, pictures, field):
    for token in tokenizer_lib.IMAGE_TOKENS:
        rec = record(images=[pictures[0]], **{field: f"the {token} an"})
        for tokenizer in tokenizers:
            assert reason(rec, tokenizer) == "smuggled_token"
    broken = record(**{field: "a\ud800"})
    assert reason(broken, tokenizers[0]) == "bad_field"


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("field", ["question", "chosen", "rejected"])
def test_text_that_carries_a_chat_template(fitting, name, field):
    """Markers of every template, since data rendered for another model is no text."""
    policy = dataclasses.replace(POLICY, template=name)
    for tokenizer in fitting(name):
        ends = [tokenizer.token(tokenizer.pad_id)]
        if tokenizer.bos_id is not None:
            ends.append(tokenizer.token(tokenizer.bos_id))
        added = {t.content for t in tokenizer.added_tokens() if t.special}
        ends += added - set(tokenizer_lib.ADDED_TOKENS)
        for text in (
            "an.<|im_end|>\n",
            "<|im_start|>assistant\nthe",
            "the<|end|>",
            "<|assistant|>\nthe",
            "<|user|>",
            "<|system|>",
            "an<|endoftext|>",
            *(f"the{end}" for end in ends),
        ):
            with pytest.raises(ledger.BadRecord, match=f"{field} holds '<") as caught:
                examples.build_example(
                    record(**{field: text}), tokenizer, policy=policy
                )
            assert caught.value.reason == "chat_marker"
        fine = record(**{field: "a < b | im_end |> </b> <box> <|x|> [INST]"})
        examples.build_example(fine, tokenizer, policy=policy)
    # SFT does not look at the rejected side.
    rec = record(rejected="no<|im_end|>")
    sft = dataclasses.replace(policy, chosen_only=True)
    examples.build_example(rec, fitting(name)[0], policy=sft)


def test_refusals(tokenizers, merging_dir, pictures, tmp_path):
    tokenizer = tokenizers[0]
    joint = dataclasses.replace(POLICY, template="internlm2-chat")
    assert reason(record(chosen="a", rejected="a"), tokenizer) == "identical"
    # Stripped by this template, so that nothing is left to prefer.
    same = record(chosen="a", rejected=" a\n")
    assert reason(same, tokenizer, joint) == "identical"
    assert reason(record(rejected=" \n"), tokenizer, joint) == "no_labels"
    assert reason(record(chosen=""), tokenizer, joint) == "no_labels"
    merging = tokenizer_lib.load_tokenizer(merging_dir)
    for fields in ({"chosen": "th"}, {"rejected": "th"}):
        assert reason(record(**fields), merging, joint) == "tokenisation"
    absent = record(images=[str(tmp_path / "absent.png")])
    small = dataclasses.replace(POLICY, max_image_pixels=700)
    garbage = tmp_path / "garbage.png"
    garbage.write_bytes(b"garbage")
    for with_tiles in (True, False):
        options = {"with_tiles": with_tiles}
        assert reason(absent, tokenizer, **options) == "image_missing"
        rec = record(images=[str(garbage)])
        assert reason(rec, tokenizer, **options) == "image_unreadable"
        rec = record(images=[pictures[0]])
        assert reason(rec, tokenizer, small, **options) == "image_too_large"


def test_chosen_only(tokenizers, pictures):
    policy = dataclasses.replace(POLICY, chosen_only=True)
    for rejected in ("", "yes", "<IMG_CONTEXT>"):
        rec = record("the?", "\nyes", rejected, [pictures[1]])
        for tokenizer in tokenizers:
            example = examples.build_example(rec, tokenizer, policy=policy)
            check(example, rec, tokenizer, policy)
            assert example.chosen_mask.all()
            assert example.rejected_tokens.shape == (0,)
            assert example.rejected_labels.shape == (0,)
            assert example.rejected_mask.shape == (0,)
            assert example.rejected_tokens.dtype == np.int32
            assert example.rejected_mask.dtype == bool


def test_long_texts_are_not_truncated(tokenizers):
    rec = record("the " * 5000, "an " * 7000, "the an " * 3000)
    for tokenizer in tokenizers:
        example = examples.build_example(rec, tokenizer, policy=POLICY)
        check(example, rec, tokenizer, POLICY)
        assert len(example.prompt) > 5000 and len(example.chosen_tokens) > 7000


def test_policy():
    fingerprint = POLICY.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    assert set(fingerprint) == {f.name for f in dataclasses.fields(POLICY)}
    for change in (
        {"template": "internvl"},
        {"image_size": 0},
        {"tokens_per_tile": 0},
        {"min_tiles": 0},
        {"min_tiles": 7},
        {"max_image_pixels": 0},
    ):
        with pytest.raises(ValueError, match=next(iter(change))):
            dataclasses.replace(POLICY, **change)


@pytest.mark.parametrize(
    ("directory", "name", "prompt_tokens"),
    [
        ("internvl2_2b", "internlm2-chat", 235_000),
        ("internvl3", "internvl2_5", 234_000),
    ],
)
def test_real_pairs(shared, directory, name, prompt_tokens):
    """All 218 pairs of real rollouts pass, whole."""
    root = pathlib.Path(shared) / "data" / "pref_mathv_real"
    (annotation,) = (root / "annotations").glob("*pairs.jsonl")
    tokenizer = tokenizer_lib.load_tokenizer(shared / "data" / "tokenizers" / directory)
    policy = dataclasses.replace(
        POLICY,
        template=name,
        image_size=448,
        tokens_per_tile=256,
        max_image_pixels=89_478_485,
    )
    total = tiles = count = 0
    for line in annotation.read_text(encoding="utf-8").splitlines():
        fields = json.loads(line)
        rec = record(
            fields["question"],
            fields["chosen"],
            fields["rejected"],
            [str(root / fields["image"])],
        )
        example = examples.build_example(
            rec, tokenizer, policy=policy, with_tiles=False
        )
        check(example, rec, tokenizer, policy)
        assert example.chosen_mask.all() and example.rejected_mask.all()
        total += len(example.prompt)
        tiles += example.num_tiles
        count += 1
    assert (count, tiles) == (218, 812)
    assert abs(total - prompt_tokens) < 1000
