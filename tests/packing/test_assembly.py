"""Row assembly: a row holds exactly its examples, laid out role-major."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mpo_jax.packing import assembly
from mpo_jax.types import Example, PackedBatch, RowShape

IMG, PER_TILE, SIDE = 7, 2, 3
SIZES = {"img_context_id": IMG, "tokens_per_tile": PER_TILE, "image_size": SIDE}
SHAPE = RowShape(30, 18, 16, 6, 4)


def make_example(rng, *, text=3, chosen=3, rejected=2, tiles=1) -> Example:
    """Random tokens other than IMG; the image tokens stand in runs among the text."""
    prompt = rng.integers(10, 99, text + tiles * PER_TILE)
    where = rng.choice(len(prompt), tiles * PER_TILE, replace=False)
    prompt[where] = IMG

    def ids(n):
        return rng.integers(10, 99, n).astype(np.int32)

    return Example(
        prompt=prompt.astype(np.int32),
        chosen_tokens=ids(chosen),
        chosen_labels=ids(chosen),
        chosen_mask=rng.random(chosen) < 0.8,
        rejected_tokens=ids(rejected),
        rejected_labels=ids(rejected),
        rejected_mask=rng.random(rejected) < 0.8,
        tiles=rng.integers(0, 256, (tiles, SIDE, SIDE, 3)).astype(np.uint8),
        num_tiles=tiles,
    )


def unpack(row: dict, shape: RowShape) -> list[Example]:
    """The examples of a row, read through segment ids alone."""
    t_p, t_c = shape.prompt_tokens, shape.chosen_tokens
    regions = {
        "prompt": slice(0, t_p),
        "chosen": slice(t_p, t_p + t_c),
        "rejected": slice(t_p + t_c, shape.tokens),
    }
    segments, result, next_tile = row["segment_ids"], [], 0
    for segment in range(1, segments.max(initial=0) + 1):
        at = {k: np.flatnonzero(segments[r] == segment) for k, r in regions.items()}
        fields = {}
        for name in ("chosen", "rejected"):
            region = regions[name]
            label = at[name] + region.start - t_p
            fields[f"{name}_tokens"] = row["tokens"][region][at[name]]
            fields[f"{name}_labels"] = row["labels"][label]
            fields[f"{name}_mask"] = row["label_mask"][label]
        prompt = row["tokens"][:t_p][at["prompt"]]
        # The features that the prompt's image tokens take, in order.
        slots = row["image_slot"][at["prompt"]]
        slots = slots[slots >= 0]
        tiles = slots[::PER_TILE] // PER_TILE
        assert slots.tolist() == [
            t * PER_TILE + k for t in tiles for k in range(PER_TILE)
        ]
        assert tiles.tolist() == list(range(next_tile, next_tile + len(tiles)))
        next_tile += len(tiles)
        result.append(
            Example(
                prompt=prompt,
                **fields,
                tiles=row["tiles"][tiles],
                num_tiles=len(tiles),
            )
        )
    return result


def assert_same(got: Example, want: Example) -> None:
    for field in dataclasses.fields(Example):
        a, b = getattr(got, field.name), getattr(want, field.name)
        np.testing.assert_array_equal(a, b, err_msg=field.name)


def assemble(examples, shape=SHAPE, *, record_ids=None, ref_logps=None) -> dict:
    """The only row of a batch, by the fields of `PackedBatch`."""
    if record_ids is None:
        record_ids = np.arange(100, 100 + len(examples))
    refs = None if ref_logps is None else [ref_logps]
    batch = assembly.assemble_batch(
        [examples], shape, record_ids=[record_ids], ref_logps=refs, **SIZES
    )
    return {k: None if v is None else v[0] for k, v in vars(batch).items()}


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(
    st.lists(
        st.tuples(
            st.integers(1, 9), st.integers(1, 7), st.integers(0, 7), st.integers(0, 3)
        ),
        max_size=5,
    ),
    st.integers(0, 99),
)
def test_row_round_trips_to_its_examples(sizes, seed):
    rng = np.random.default_rng(seed)
    examples = [
        make_example(rng, text=t, chosen=c, rejected=r, tiles=m) for t, c, r, m in sizes
    ]
    shape = RowShape(
        prompt_tokens=sum(len(e.prompt) for e in examples) + 3,
        chosen_tokens=sum(len(e.chosen_tokens) for e in examples) + 2,
        rejected_tokens=sum(len(e.rejected_tokens) for e in examples),
        tiles=sum(e.num_tiles for e in examples) + 1,
        pairs=len(examples) + 1,
    )
    row = assemble(examples, shape)

    back = unpack(row, shape)
    assert len(back) == len(examples)
    for got, want in zip(back, examples, strict=True):
        assert_same(got, want)

    # Image tokens in = features out, and text takes none.
    is_image = row["tokens"][: shape.prompt_tokens] == IMG
    np.testing.assert_array_equal(row["image_slot"] >= 0, is_image)
    assert is_image.sum() == sum(e.num_tiles for e in examples) * PER_TILE

    # Positions: the prompt from 0, both responses on from its end.
    for k, example in enumerate(examples):
        p = len(example.prompt)
        mine = row["segment_ids"] == k + 1
        assert row["positions"][mine].tolist() == [
            *range(p),
            *range(p, p + len(example.chosen_tokens)),
            *range(p, p + len(example.rejected_tokens)),
        ]

    padding = row["segment_ids"] == 0
    assert not row["tokens"][padding].any() and not row["positions"][padding].any()
    response_padding = padding[shape.prompt_tokens :]
    assert not row["labels"][response_padding].any()
    assert not row["label_mask"][response_padding].any()
    assert not row["tiles"][sum(e.num_tiles for e in examples) :].any()
    q = len(examples)
    assert row["pair_mask"].tolist() == [True] * q + [False]
    assert row["record_ids"].tolist() == [*range(100, 100 + q), -1]


def test_worked_example_of_the_docs():
    """The row of docs/packing.md, number by number."""

    def side(name, tokens, labels):
        return {
            f"{name}_tokens": np.array(tokens, np.int32),
            f"{name}_labels": np.array(labels, np.int32),
            f"{name}_mask": np.ones(len(tokens), bool),
        }

    tile = np.full((1, SIDE, SIDE, 3), 5, np.uint8)
    first = Example(
        prompt=np.array([11, IMG, IMG, 12], np.int32),
        **side("chosen", [13, 21, 22], [21, 22, 2]),
        **side("rejected", [13, 31], [31, 2]),
        tiles=tile,
        num_tiles=1,
    )
    second = Example(
        prompt=np.array([14, 15], np.int32),
        **side("chosen", [16, 23], [23, 2]),
        **side("rejected", [16, 32, 33], [32, 33, 2]),
        tiles=tile[:0],
        num_tiles=0,
    )
    row = assemble([first, second], RowShape(8, 6, 5, 2, 3))
    want = {
        "tokens": [11, 7, 7, 12, 14, 15, 0, 0]
        + [13, 21, 22, 16, 23, 0]
        + [13, 31, 16, 32, 33],
        "positions": [0, 1, 2, 3, 0, 1, 0, 0] + [4, 5, 6, 2, 3, 0] + [4, 5, 2, 3, 4],
        "segment_ids": [1, 1, 1, 1, 2, 2, 0, 0] + [1, 1, 1, 2, 2, 0] + [1, 1, 2, 2, 2],
        "labels": [21, 22, 2, 23, 2, 0] + [31, 2, 32, 33, 2],
        "image_slot": [-1, 0, 1, -1, -1, -1, -1, -1],
        "pair_mask": [True, True, False],
        "record_ids": [100, 101, -1],
    }
    for name, value in want.items():
        assert row[name].tolist() == value, name


def test_batch_shapes_and_dtypes():
    rng = np.random.default_rng(0)
    rows = [[make_example(rng), make_example(rng)], [], [make_example(rng)]]
    refs = [np.arange(4.0).reshape(2, 2), np.zeros((0, 2)), np.ones((1, 2))]
    batch = assembly.assemble_batch(
        rows,
        SHAPE,
        record_ids=[np.array([4, 9]), np.array([], np.int32), np.array([2])],
        ref_logps=refs,
        **SIZES,
    )
    assert isinstance(batch, PackedBatch)
    spec = {k: (v.dtype.name, v.shape) for k, v in vars(batch).items()}
    assert spec == {
        "tokens": ("int32", (3, 64)),
        "positions": ("int32", (3, 64)),
        "segment_ids": ("int32", (3, 64)),
        "labels": ("int32", (3, 34)),
        "label_mask": ("bool", (3, 34)),
        "image_slot": ("int32", (3, 30)),
        "tiles": ("uint8", (3, 6, SIDE, SIDE, 3)),
        "pair_mask": ("bool", (3, 4)),
        "record_ids": ("int32", (3, 4)),
        "ref_logps": ("float32", (3, 4, 2)),
    }
    assert batch.ref_logps[:, :2].tolist() == [
        [[0, 1], [2, 3]],
        [[0, 0], [0, 0]],
        [[1, 1], [0, 0]],
    ]
    assert not batch.pair_mask[1].any() and not batch.segment_ids[1].any()
    assert (batch.image_slot[1] == -1).all()
    single = assemble(rows[0], record_ids=np.array([4, 9]), ref_logps=refs[0])
    for name, value in vars(batch).items():
        np.testing.assert_array_equal(value[0], single[name], err_msg=name)


def test_sft_rows_have_no_rejected_region():
    rng = np.random.default_rng(0)
    shape = dataclasses.replace(SHAPE, rejected_tokens=0)
    examples = [make_example(rng, rejected=0), make_example(rng, rejected=0)]
    row = assemble(examples, shape)
    assert row["labels"].shape == (SHAPE.chosen_tokens,)
    for got, want in zip(unpack(row, shape), examples, strict=True):
        assert_same(got, want)
    with pytest.raises(
        ValueError, match="record 100: rejected_tokens .* 2, .* holds 0"
    ):
        assemble([make_example(rng, rejected=2)], shape)


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        ({"prompt_tokens": 9}, "record 101: prompt_tokens of its row come to 10"),
        ({"chosen_tokens": 5}, "record 101: chosen_tokens of its row come to 6"),
        ({"rejected_tokens": 3}, "record 101: rejected_tokens of its row come to 4"),
        ({"tiles": 1}, "record 101: tiles of its row come to 2"),
        ({"pairs": 1}, "record 101 is pair 2 of a row of 1 pairs"),
    ],
)
def test_overflow_names_record_and_budget(shape, text):
    rng = np.random.default_rng(0)
    examples = [make_example(rng), make_example(rng)]
    exact = RowShape(10, 6, 4, 2, 2)
    assemble(examples, exact)
    with pytest.raises(ValueError, match=text):
        assemble(examples, dataclasses.replace(exact, **shape))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"prompt": np.array([1, IMG], np.int32)}, "1 image tokens .* 1 tiles of 2"),
        ({"tiles": np.zeros((0, SIDE, SIDE, 3), np.uint8)}, "tiles are uint8"),
        ({"tiles": np.zeros((1, SIDE, SIDE, 3), np.float32)}, "tiles are float32"),
        ({"tiles": np.zeros((1, 4, 4, 3), np.uint8)}, "expected uint8 .1, 3, 3, 3."),
        ({"chosen_mask": np.ones(2, bool)}, "3 tokens, 3 labels and a mask of 2"),
        ({"chosen_labels": np.array([1, -100, 2])}, "chosen has the label -100"),
        ({"rejected_tokens": np.array([IMG, 1])}, "rejected response holds an image"),
    ],
)
def test_contradicting_example_is_refused(change, text):
    example = make_example(np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"record 100: .*{text}"):
        assemble([dataclasses.replace(example, **change)])


@pytest.mark.parametrize(
    ("refs", "text"),
    [
        (np.zeros((2, 2)), "shape"),
        (np.array([[1.0, np.nan]]), "record 100 .* cache_reference"),
    ],
)
def test_bad_reference_log_probs_are_refused(refs, text):
    example = make_example(np.random.default_rng(0))
    with pytest.raises(ValueError, match=text):
        assemble([example], ref_logps=refs)


def test_ids_and_examples_must_match():
    example = make_example(np.random.default_rng(0))
    with pytest.raises(ValueError, match="1 examples with 2 record ids"):
        assemble([example], record_ids=np.array([1, 2]))
