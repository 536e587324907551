"""The engine: batching, limits, stops, and answers that depend on nobody beside."""

from __future__ import annotations

import dataclasses
import functools

import asked
import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from mpo_jax import ledger, sharding
from mpo_jax.generate import engine as engine_lib
from mpo_jax.generate import programs as programs_lib
from mpo_jax.models import internvl, network

MODEL = internvl.InternVL(packed.tiny_config(max_position_embeddings=60))
SIZES = asked.geometry(prompt_tokens=48, buckets=(16, 48))


def letters(ids) -> str:
    """A text of one letter a token."""
    return "".join(chr(ord("0") + int(i)) for i in ids)


@pytest.fixture(scope="module")
def programs():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    weights = jax.jit(MODEL.init)(jax.random.key(0))
    weights = asked.placed(MODEL, jax.tree.map(lambda x: 2 * x, weights), mesh)
    compute = network.Compute(dtype=jnp.float32, remat="none")
    made = programs_lib.Programs(MODEL, weights, SIZES, mesh=mesh, compute=compute)
    return made, weights


@pytest.fixture
def make(programs):
    """Makes engines; each must end without a compilation."""
    made = []

    def new() -> engine_lib.Engine:
        made.append(
            engine_lib.Engine(*programs, decode=letters, image_token=packed.IMG)
        )
        return made[-1]

    yield new
    for one in made:
        assert one.stats["compilations"] == 0
        assert one.busy or not one._slots.active.any()  # nobody decodes for nobody
        one.close()


def tiles(number: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    side = packed.SIZE
    return rng.integers(0, 256, (number, side, side, 3), np.uint8)


def ids(length: int, seed: int, images: int = 0) -> np.ndarray:
    text = np.random.default_rng(seed).integers(6, packed.VOCAB, length)
    text[1 : 1 + images] = packed.IMG
    return text


def ask_for(key, length=9, *, images=0, **how):
    how = {"max_new_tokens": 14, **how}
    prompt = ids(length, sum(map(ord, str(key))), images)
    return asked.request(key, prompt, tiles(images, len(str(key))), **how)


SUBJECT = ask_for("subject", 12, images=2, n=3, temperature=1.0, seed=7)
NEIGHBOURS = (
    ask_for("greedy", 5),
    ask_for("pictured", 10, images=3, n=2),  # read together with the subject
    ask_for("penalty", 20, repetition_penalty=1.5, max_new_tokens=30),
    ask_for("top", 40, images=1, temperature=2.0, top_k=5, top_p=0.8, n=3, seed=2),
    ask_for("one", 1, temperature=0.7, n=2, max_new_tokens=1),
    ask_for("stopped", 7, min_new_tokens=3, stop_ids=(6, 7, 8, 9, 10), n=2),
)


@pytest.fixture(scope="module")
def alone(programs):
    """What the subject says where nobody else is."""
    one = engine_lib.Engine(*programs, decode=letters, image_token=packed.IMG)
    found = asked.ask(one, SUBJECT)
    one.close()
    assert len({tuple(said.ids) for said in found.values()}) == 3
    return found


def same(found: asked.Everything, expected: asked.Everything) -> None:
    for place, said in expected.items():
        assert found[place] == said, place  # log-probs bit for bit, too


def test_an_answer_does_not_depend_on_its_neighbours(make, alone):
    """Bit for bit, wherever it stands, after whom and beside what settings."""
    orders = [(SUBJECT, *NEIGHBOURS), (*NEIGHBOURS, SUBJECT)]
    orders += [(*NEIGHBOURS[:2], SUBJECT, *NEIGHBOURS[2:])]
    orders += [(one, SUBJECT) for one in NEIGHBOURS]
    before = None
    for order in orders:
        found = asked.ask(make(), *order)
        same(found, alone)
        if len(order) > 2:
            before = before or found
            same(found, before)  # the neighbours do not depend on it either


def test_an_engine_that_has_answered_before_answers_the_same(make, alone):
    one = make()
    asked.ask(one, *NEIGHBOURS)
    same(asked.ask(one, SUBJECT), alone)
    same(asked.ask(one, SUBJECT), alone)


def test_neighbours_that_go_away(make, alone):
    """Cancelled while they wait, while they speak, and when they have a prompt only."""
    for steps in range(3):
        one = make()
        for request in (NEIGHBOURS[3], NEIGHBOURS[2], SUBJECT, NEIGHBOURS[0]):
            one.add(request)
        found: asked.Everything = {}
        for _ in range(steps):
            asked.take(found, one.step())
        for key in ("top", "penalty", "greedy"):
            one.cancel(key)
        ours = {
            place for place, said in one._answers.items() if said.request is SUBJECT
        }
        assert {tuple(p) for p in np.argwhere(one._slots.active).tolist()} <= ours
        found = {place: said for place, said in found.items() if place[0] == "subject"}
        while one.busy:
            asked.take(found, one.step())
        same(found, alone)
        assert found.keys() == alone.keys()
        # Their keys and slots are free again.
        same(asked.ask(one, NEIGHBOURS[0]), asked.ask(make(), NEIGHBOURS[0]))


def test_single_samples_are_those_of_all(make, alone):
    one = make()
    for wanted in ((2,), (0, 1), (1,)):
        request = dataclasses.replace(SUBJECT, samples=wanted)
        found = asked.ask(one, request)
        assert {k for _, k in found} == set(wanted)
        for place, said in found.items():
            assert said == alone[place]


def test_the_seed_decides(make, alone):
    other = dataclasses.replace(
        SUBJECT, sampling=dataclasses.replace(SUBJECT.sampling, seed=8)
    )
    found = asked.ask(make(), other)
    assert all(found[place].ids != said.ids for place, said in alone.items())


def test_more_requests_than_groups_and_more_samples_than_slots(make):
    """Every prompt is read once; a free slot is filled before the longest has ended."""
    one = make()
    given = [
        ask_for(("many", i), 3 + 5 * i, n=3, temperature=1.0, max_new_tokens=2 + 3 * i)
        for i in range(9)
    ]
    found = asked.ask(one, *given)
    for request in given:
        for k in range(3):
            said = found[request.key, k]
            assert said.reason == "length"
            wanted = min(request.sampling.max_new_tokens, 60 - len(request.ids))
            assert len(said.ids) == wanted and said.text == letters(said.ids)
    stats = one.stats
    total = sum(len(said.ids) for said in found.values())
    assert (stats["prompts"], stats["answers"], stats["tokens"]) == (9, 27, total)
    assert stats["prompt_tokens"] == sum(len(r.ids) - 1 for r in given)
    assert (stats["queued"], stats["slots"], stats["slots_active"]) == (0, 4, 0)
    assert stats["seconds_decoding"] > 0 and not one.busy and one.step() == []
    # Batching answer by answer would take the longest of every four.
    chunks = sum(-(-len(said.ids) // SIZES.steps) for said in found.values())
    assert chunks > 2 * max(-(-len(s.ids) // SIZES.steps) for s in found.values())


def test_gauges_while_it_works(make):
    one = make()
    for i in range(4):
        one.add(ask_for(("gauge", i), 5, n=2, max_new_tokens=20))
    assert one.busy and one.stats["queued"] == 4
    updates = one.step()
    assert len(updates) == 4 and all(len(u.ids) == SIZES.steps for u in updates)
    assert all(u.finish_reason is None for u in updates)
    assert one.stats["queued"] == 2 and one.stats["slots_active"] == 4
    assert one.stats["tiles"] == 0


def test_tiles_are_encoded_once_for_all_answers(make):
    one = make()
    asked.ask(one, ask_for("pictures", 20, images=5, n=4, temperature=1.0))
    assert one.stats["tiles"] == 5


def test_images_are_seen(make):
    """Other pixels, and the same in another order, are other answers."""
    one = make()
    prompt = ids(12, 3, 3)
    pixels = tiles(3, 1)
    how = {"n": 4, "temperature": 1.0, "max_new_tokens": 12}
    found = [
        asked.ask(one, asked.request(0, prompt, some, **how))
        for some in (pixels, pixels[::-1], 255 - pixels, pixels)
    ]
    logps = [[said.logps for said in one.values()] for one in found]
    assert logps[0] == logps[3]
    assert logps[0] != logps[1] and logps[0] != logps[2]


def test_limits_end_with_length(make):
    """Of the request, of the engine's answers, of the model's positions."""
    one = make()
    assert one.max_prompt_tokens == 49 and one.max_new_tokens == 32
    given = [
        ask_for("request", 5, max_new_tokens=3),
        ask_for("engine", 5, max_new_tokens=1000),
        ask_for("positions", 49, max_new_tokens=1000),
    ]
    found = asked.ask(one, *given)
    lengths = {key: len(said.ids) for (key, _), said in found.items()}
    assert lengths == {"request": 3, "engine": 32, "positions": 60 - 49}
    assert {said.reason for said in found.values()} == {"length"}
    assert [said.text for said in found.values()] == [
        letters(said.ids) for said in found.values()
    ]


def test_a_stop_token_ends_with_stop_even_as_the_last_that_fits(make):
    one = make()
    said = asked.ask(one, ask_for("plain", 8, max_new_tokens=20))["plain", 0]
    place = _first_new(said.ids, after=3)
    stop = (said.ids[place],)
    for limit in (place + 1, 20):
        again = asked.ask(
            one, ask_for("plain", 8, max_new_tokens=limit, stop_ids=(0, *stop))
        )["plain", 0]
        assert again.ids == said.ids[: place + 1] and again.reason == "stop"
        assert again.logps == said.logps[: place + 1]
        assert again.text == letters(again.ids[:-1])
    short = asked.ask(one, ask_for("plain", 8, max_new_tokens=place, stop_ids=stop))[
        "plain", 0
    ]
    assert short.reason == "length" and len(short.ids) == place


def _first_new(tokens: list[int], *, after: int) -> int:
    """Place of a token that has not come before."""
    return next(i for i in range(after, len(tokens)) if tokens[i] not in tokens[:i])


@pytest.mark.parametrize("length", [1, 2, 4, 9])
def test_stop_strings_cut_text_and_tokens(make, length):
    """Also where a string lies over two chunks of steps."""
    one = make()
    how = {"temperature": 1.0, "n": 2, "max_new_tokens": 20}
    whole = asked.ask(one, ask_for("text", 8, **how))
    for start in range(20 - length):
        text = whole["text", 0].text
        stop = text[start : start + length]
        found = asked.ask(one, ask_for("text", 8, stop=("~~~", stop), **how))
        assert not one._slots.active.any()
        for k in range(2):
            plain, said = whole["text", k], found["text", k]
            place = plain.text.find(stop)
            if place < 0:
                assert said == plain
                continue
            assert said.text == plain.text[:place] and said.reason == "stop"
            assert said.ids == plain.ids[: place + length]
            assert said.logps == plain.logps[: place + length]


def test_text_joins_a_given_beginning(programs):
    """As sentencepiece has it: a space between two tokens, none before the first."""

    def spaced(tokens) -> str:
        return " ".join(letters([token]) for token in tokens)

    one = engine_lib.Engine(*programs, decode=spaced, image_token=packed.IMG)
    plain = ask_for("joined", 8)
    said = asked.ask(one, plain)["joined", 0]
    assert said.text == spaced(said.ids)
    begun = asked.ask(one, dataclasses.replace(plain, answer_start=6))["joined", 0]
    assert begun.ids == said.ids and begun.text == " " + said.text
    one.close()


def test_a_beginning_of_a_stop_string_is_told_at_the_end(make):
    one = make()
    plain = asked.ask(one, ask_for("end", 8, max_new_tokens=10))["end", 0]
    stop = plain.text[-3:] + "~"
    said = asked.ask(one, ask_for("end", 8, max_new_tokens=10, stop=(stop,)))
    assert said["end", 0] == plain and plain.reason == "length"


@pytest.mark.parametrize(
    ("request_", "reason", "message"),
    [
        (ask_for("long", 50), "too_long", r"50 tokens, the longest is 49; lower"),
        (asked.request(0, [64], tiles(0)), "bad_field", r"\[64, 64\], .* has 64"),
        (asked.request(0, [-1, 3], tiles(0)), "bad_field", r"\[-1, 3\]"),
        (asked.request(0, [], tiles(0)), "bad_field", "at least one token"),
        (asked.request(0, [[1, 2]], tiles(0)), "bad_field", "at least one token"),
        (asked.request(0, [5, 8], tiles(0)), "image_count", "1 image tokens, 0 tiles"),
        (asked.request(0, [5, 8], tiles(2)), "image_count", "tokens need 2"),
        (asked.request(0, [7, 8], tiles(1)), "image_count", "0 image tokens, 1 tiles"),
        (asked.request(0, [8, 5], tiles(1)), "bad_field", "last token is an image"),
        (
            asked.request(0, [5, 8], np.zeros((1, 14, 14, 3), np.uint8)),
            "bad_field",
            r"tiles \(1, 14, 14, 3\): must be",
        ),
        (asked.request(0, [8], tiles(0), samples=()), "bad_field", "samples"),
        (asked.request(0, [8], tiles(0), samples=(0, 0)), "bad_field", "samples"),
        (asked.request(0, [8], tiles(0), samples=(-1,)), "bad_field", "samples"),
    ],
)
def test_what_the_model_cannot_read_is_refused(make, request_, reason, message):
    one = make()
    with pytest.raises(ledger.BadRecord, match=message) as error:
        one.add(request_)
    assert error.value.reason == reason
    assert not one.busy
    # Its key is free, and the engine works.
    asked.ask(one, dataclasses.replace(ask_for("fine", 3), key=request_.key))


def test_the_longest_prompt_and_the_shortest(make):
    one = make()
    found = asked.ask(one, ask_for("longest", 49), ask_for("shortest", 1))
    assert len(found["longest", 0].ids) == 11 and len(found["shortest", 0].ids) == 14


def test_a_key_at_work_cannot_be_used_again(make):
    one = make()
    one.add(ask_for("key", 5))
    with pytest.raises(ValueError, match="'key' is that of a request at work"):
        one.add(ask_for("key", 5))
    while one.busy:
        with pytest.raises(ValueError, match="at work"):
            one.add(ask_for("key", 5))
        one.step()
    asked.ask(one, ask_for("key", 5))
    one.add(ask_for("key", 5))
    one.cancel("key")
    assert not one.busy
    asked.ask(one, ask_for("key", 5))


def test_an_image_token_that_the_model_says_is_text(programs):
    """It stands in the answer like any other and is fed as a token."""
    one = engine_lib.Engine(*programs, decode=letters, image_token=packed.IMG)
    how = {"temperature": 100.0, "n": 40, "max_new_tokens": 20, "seed": 1}
    found = asked.ask(one, ask_for("wild", 6, **how))
    one.close()
    assert any(packed.IMG in said.ids[:-1] for said in found.values())
    said = next(said for said in found.values() if packed.IMG in said.ids[:-1])
    whole = np.concatenate([ask_for("wild", 6).ids, said.ids])[None]
    compute = network.Compute(dtype=jnp.float32, remat="none")
    none = np.full(whole.shape, -1)
    logits = MODEL.bind(programs[1]).logits(
        jnp.asarray(whole),
        jnp.ones(whole.shape, int),
        jnp.asarray(none),
        None,
        compute=compute,
    )
    logps = np.asarray(jax.nn.log_softmax(logits[0, 5:-1]))
    expected = logps[np.arange(20), said.ids]
    np.testing.assert_allclose(said.logps, expected, rtol=1e-4, atol=1e-5)


def test_draws_follow_the_rule_of_seed_sample_and_token(programs):
    """From the forward pass and ``jax.random`` alone, seeds of 64 bits included."""
    one = engine_lib.Engine(*programs, decode=letters, image_token=packed.IMG)
    seeds = (3, 2**40 + 3, -5)
    prompt = ids(8, 1)
    given = [
        asked.request(
            s, prompt, tiles(0), n=2, temperature=1.3, seed=s, max_new_tokens=9
        )
        for s in seeds
    ]
    found = asked.ask(one, *given)
    one.close()
    whole = np.stack([np.concatenate([prompt, said.ids]) for said in found.values()])
    compute = network.Compute(dtype=jnp.float32, remat="none")
    none = jnp.full(whole.shape, -1)
    forward = jax.jit(
        functools.partial(MODEL.bind(programs[1]).logits, compute=compute)
    )
    logits = forward(jnp.asarray(whole), jnp.ones_like(none), none, None)
    shares = np.asarray(jax.nn.softmax(logits / 1.3), np.float64)[:, 7:-1]
    for (seed, sample), of_answer, said in zip(
        found, shares, found.values(), strict=True
    ):
        with jax.enable_x64(True):
            key = jax.random.key(seed)
        for token, share in enumerate(of_answer):
            folded = jax.random.fold_in(jax.random.fold_in(key, sample), token)
            number = float(jax.random.uniform(folded, dtype=jnp.float32))
            expected = np.searchsorted(np.cumsum(share), number * share.sum(), "right")
            assert said.ids[token] == expected, (seed, sample, token)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "order"),
    [
        ((2, 2, 2), "plain"),
        ((2, 2, 2), "reversed"),
        ((2, 2, 2), "interleaved"),
        ((8, 1, 1), "plain"),
        ((1, 2, 4), "plain"),
    ],
)
def test_any_mesh_gives_the_same_greedy_tokens(programs, sizes, order):
    """Uneven requests over shards, tensor beyond the heads, devices in any order."""
    devices = jax.devices()
    devices = {
        "plain": devices,
        "reversed": devices[::-1],
        "interleaved": [*devices[::2], *devices[1::2]],
    }[order]
    grid = np.asarray(devices).reshape(sizes)
    mesh = jax.sharding.Mesh(
        grid, sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    weights = asked.placed(MODEL, jax.device_get(programs[1]), mesh)
    shards = sizes[0] * sizes[1]
    compute = network.Compute(dtype=jnp.float32, remat="none")
    made = programs_lib.Programs(
        MODEL,
        weights,
        dataclasses.replace(SIZES, groups=max(2, shards)),
        mesh=mesh,
        compute=compute,
    )
    create = functools.partial(
        engine_lib.Engine, decode=letters, image_token=packed.IMG
    )
    given = [
        ask_for(
            ("mesh", i), 2 + 4 * i, images=min(i, 3), n=1 + i % 3, max_new_tokens=12
        )
        for i in range(11)
    ]
    expected = asked.ask(create(*programs), *given)
    one = create(made, weights)
    found = asked.ask(one, *given)
    assert one.stats["compilations"] == 0
    one.close()
    for place, said in expected.items():
        assert found[place].ids == said.ids, place
        np.testing.assert_allclose(found[place].logps, said.logps, rtol=1e-4, atol=1e-5)
    # Bits do not depend on neighbours here either.
    for subject in (given[4], given[9]):
        some = asked.ask(create(made, weights), *given[:2], subject)
        assert all(
            some[subject.key, k] == found[subject.key, k] for k in subject.wanted
        )


def test_geometries(programs):
    _, weights = programs
    mesh = sharding.make_mesh(data=4, fsdp=1, tensor=2)
    compute = network.Compute(dtype=jnp.float32, remat="none")
    with pytest.raises(ValueError, match="2 groups do not divide over 4 data shards"):
        programs_lib.Programs(MODEL, weights, SIZES, mesh=mesh, compute=compute)
    with pytest.raises(ValueError, match="prompt_tokens=50: no multiple of 16"):
        asked.geometry(prompt_tokens=50)
    found = asked.geometry(groups=8, prefill_tokens=100)
    assert (found.rows(16, 1), found.rows(16, 4), found.rows(64, 1)) == (6, 2, 1)
    assert asked.geometry(prefill_tokens=1).rows(64, 1) == 1
    assert [found.bucket(n) for n in (1, 16, 17, 64)] == [16, 16, 64, 64]
    for buckets in ((16, 16), (64, 16), (16, 80)):
        with pytest.raises(ValueError, match="buckets=.* do not rise"):
            asked.geometry(buckets=buckets)
