"""Numbers of pairs against plain ones: shares, lengths, answers, sample, overlap."""

from __future__ import annotations

import collections
import hashlib
import json
import random

import numpy as np
import pair_world
import pytest
from pair_world import FORMAT, WRONG, judged, pair

from mpo_jax.prefs import guesses
from mpo_jax.prefs.overlap_report import Report
from mpo_jax.prefs.pair_folder import MAX_REASONS, SIDES, Folder, Reader
from mpo_jax.prefs.pair_quality import ALL, evenly, measure, quotas


def measured(folder, *, examples=50, overlap=None):
    return measure(Reader([Folder(folder)]), examples=examples, overlap=overlap)


@pytest.fixture(scope="module")
def files():
    return pair_world.drawn(400)


@pytest.fixture(scope="module")
def found(files, tmp_path_factory):
    return measured(pair_world.write(tmp_path_factory.mktemp("q") / "pairs", files))


def rows_of(files, suffix=""):
    return [r for name, rows in files.items() if name.endswith(suffix) for r in rows]


def area(chosen, rejected):
    """Share of pairs whose chosen value is larger; equal ones are half."""
    return np.mean(
        [(a > b) + (a == b) / 2 for a, b in zip(chosen, rejected, strict=True)]
    )


def test_pairs_are_counted_by_source_and_reason(found, files):
    assert found.total == 400
    assert found.by_reason() == {
        "wrong": len(rows_of(files, WRONG)),
        "format": len(rows_of(files, FORMAT)),
    }
    assert found.by_source() == {
        source: {
            "wrong": len(files[source + WRONG]),
            "format": len(files[source + FORMAT]),
        }
        for source in "ab"
    }


@pytest.mark.parametrize("reason, suffix", [(ALL, ""), ("wrong", WRONG)])
def test_lengths_and_the_guess_by_them(found, files, reason, suffix):
    rows = rows_of(files, suffix)
    sides = [[len(row[name]) for row in rows] for name in ("chosen", "rejected")]
    told = found.characters[reason]
    assert told.chosen == collections.Counter(sides[0])
    assert told.rejected == collections.Counter(sides[1])
    assert told.longer.value == pytest.approx(area(*sides))
    assert told.longer.ties == sum(a == b for a, b in zip(*sides, strict=True))
    tokens = [
        (row["chosen_meta"]["tokens"], row["rejected_meta"]["tokens"]) for row in rows
    ]
    both = [pair for pair in tokens if None not in pair]
    assert len(both) < len(rows)
    longer = found.tokens[reason].longer
    assert longer.pairs == len(both)
    assert longer.value == pytest.approx(area(*zip(*both, strict=True)))


def half_of(id):
    return hashlib.blake2b(repr(id).encode(), digest_size=8).digest()[-1] & 1


def test_the_guess_by_answers_knows_other_questions_only(found, files):
    rows = [
        (half_of(row["id"]), *(row[f"{side}_meta"]["prediction"] for side in SIDES))
        for row in rows_of(files, WRONG)
    ]
    rows = [(half, one.replace("(B)", "b"), other) for half, one, other in rows]
    right = []
    for half, *said in rows:
        others = [row for row in rows if row[0] != half]
        liked = [
            (sum(row[1] == answer for row in others) + 1)
            / (sum(row[2] == answer for row in others) + 1)
            for answer in said
        ]
        right.append((liked[0] > liked[1]) + (liked[0] == liked[1]) / 2)
    told = found.answers
    assert told.guessed.value == pytest.approx(np.mean(right)) and np.mean(right) > 0.6
    assert told.guessed.pairs == len(rows)
    assert told.without == len(rows_of(files, FORMAT))
    most = collections.Counter(answer for _, *said in rows for answer in said)
    assert told.top()[:3] == [
        (answer, sum(r[1] == answer for r in rows), sum(r[2] == answer for r in rows))
        for answer, _ in most.most_common(3)
    ]


def test_answers_that_are_all_different_tell_nothing(tmp_path):
    rows = [
        pair(i, "c", "r", chosen_meta=judged(f"c{i}", "right", "x"))
        | {"rejected_meta": judged(f"r{i}", "wrong", "x")}
        for i in range(100)
    ]
    told = measured(pair_world.write(tmp_path / "p", {"a" + WRONG: rows}))
    # Whoever knew the answers of the same question would be right in all of them.
    assert told.answers.guessed.value == 0.5


def test_shares_have_an_interval_over_prompts():
    rng = random.Random(1)
    share, wins = guesses.Share(), []
    for prompt in range(60):
        likely = rng.random()
        for _ in range(rng.randrange(1, 9)):
            difference = 1 if rng.random() < likely else -1
            wins.append((prompt, difference > 0))
            share.add(prompt, difference)
    assert share.value == np.mean([won for _, won in wins])
    low, high = share.interval()
    by_prompt = [[won for p, won in wins if p == prompt] for prompt in range(60)]
    means = []
    draw = np.random.default_rng(0)
    for _ in range(2000):
        picked = [by_prompt[k] for k in draw.integers(0, 60, 60)]
        means.append(np.mean([won for wins in picked for won in wins]))
    assert np.quantile(means, [0.025, 0.975]) == pytest.approx([low, high], abs=0.02)
    alone = guesses.Share()
    for number, (_, won) in enumerate(wins):
        alone.add(number, 1 if won else -1)
    narrow = alone.interval()
    assert narrow[1] - narrow[0] < high - low  # pairs of a prompt are alike


@pytest.mark.parametrize("prompts", [0, 1])
def test_too_few_prompts_have_no_interval(prompts):
    share = guesses.Share()
    for prompt in range(prompts):
        share.add(prompt, 1)
        share.add(prompt, 0)
    assert share.interval() is None
    assert share.value == (0.75 if prompts else None)


def test_bins_and_quantiles():
    assert guesses.steps(13) == [0, 1, 2, 3, 4, 6, 8, 12]
    lengths = collections.Counter({0: 1, 5: 2, 6: 3, 11: 1, 12: 1, 999: 1})
    assert guesses.binned(lengths, [0, 1, 2, 3, 4, 6, 8, 12]) == [
        *(1, 0, 0, 0, 2, 3, 1, 2)
    ]
    values = sorted(lengths.elements())
    for share in (0.1, 0.5, 0.9):
        want = np.quantile(values, share, method="inverted_cdf")
        assert guesses.quantile(lengths, share) == want


# ---- the sample ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers, most, shares",
    [
        ({"a": 100, "b": 100}, 10, {"a": 5, "b": 5}),
        ({"a": 100, "b": 2}, 10, {"a": 8, "b": 2}),
        ({"a": 1, "b": 2}, 10, {"a": 1, "b": 2}),
        ({"a": 9, "b": 9, "c": 9}, 2, {"a": 0, "b": 1, "c": 1}),
        ({}, 5, {}),
    ],
)
def test_shares_are_even(numbers, most, shares):
    assert evenly(numbers, most) == shares


def texts_of(folder, places):
    reader = Reader([Folder(folder)])
    return [reader.read(*place).chosen.text for place in places]


def test_the_sample_is_even_and_the_same_in_any_order(found, files, tmp_path):
    given = quotas(found.pairs, 50)
    by_reason = collections.Counter()
    for (_, reason), number in given.items():
        by_reason[reason] += number
    assert by_reason == {"wrong": 25, "format": 25}
    turned = {name: rows[::-1] for name, rows in files.items()}
    texts = []
    for name, rows in (("same", files), ("turned", turned)):
        folder = pair_world.write(tmp_path / name, rows)
        places = measured(folder).sample
        texts.append(texts_of(folder, places))
    assert len(set(texts[0])) == 50 and texts[0] == texts[1]
    annotations = [place[0] for place in found.sample[:4]]
    reasons = [("wrong", "format")[annotation % 2] for annotation in annotations]
    assert reasons == ["format", "wrong", "format", "wrong"]  # they take turns


# ---- lines ---------------------------------------------------------------------------


def test_lines_that_are_no_pairs_are_counted(tmp_path):
    folder = pair_world.write(tmp_path / "p", {"a" + WRONG: [pair(1, "c", "r")]})
    with open(folder / "annotations" / f"a{WRONG}.jsonl", "ab") as file:
        file.write(b'{"question": "q", "chosen": 3, "rejected": "r"}\n\n')
        file.write(b"nonsense\n" + b'"' + b"x" * 4_000_100 + b'"\n')
        file.write(json.dumps(pair(2, "c", "r")).encode() + b"\n")
    told = measured(folder)
    assert told.total == 2
    assert told.bad == {"bad_field": 1, "bad_json": 2}
    assert f"a{WRONG}.jsonl:2: bad_field: chosen=3" in told.first_bad


def test_reasons_are_bounded_and_notes_may_be_anything(tmp_path):
    rows = [pair(k, "c", "r", reason=f"why {k}") for k in range(MAX_REASONS + 9)]
    rows += [pair([1], "c", "r", reason=3, chosen_meta="x", rejected_meta=[1])]
    rows += [pair(1, "c", "r", chosen_meta={"prediction": 3, "tokens": "9"})]
    told = measured(pair_world.write(tmp_path / "p", {"any": rows}))
    assert told.total == len(rows) and len(told.by_reason()) == MAX_REASONS + 1
    assert not told.tokens[ALL].longer.pairs and told.answers.without == len(rows)


def test_a_folder_without_pairs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no meta.json; name a finished --output"):
        Folder(tmp_path)


@pytest.mark.parametrize(
    "manifest, named",
    [
        ({"rollouts": "9"}, "'rollouts'='9'"),
        ({"roles": {"right": None}}, "'roles'="),
        ({"counts": {"dropped": [3]}}, "'dropped'="),
        ({"counts": 3}, "'counts or sources'=3"),
        ({"sources": {"a": {"prompts": 0.5}}}, "'a'="),
    ],
)
def test_a_manifest_without_counts_is_refused(tmp_path, manifest, named):
    folder = pair_world.write(tmp_path / "p", {"a": [pair(1, "c", "r")]}, manifest)
    with pytest.raises(ValueError, match="must be counts.*build the folder again") as e:
        Folder(folder)
    assert named in str(e.value)


def test_several_folders_are_one(files, found, tmp_path):
    folders = []
    for k in range(2):
        of = {n: rows for i, (n, rows) in enumerate(files.items()) if i // 2 == k}
        folders.append(Folder(pair_world.write(tmp_path / str(k), of)))
    told = measure(Reader(folders), examples=50, overlap=None)
    assert told.by_source() == found.by_source() and told.rules == found.rules
    assert told.sample == found.sample


# ---- overlap -------------------------------------------------------------------------


def report_of(tmp_path, examples, **fields):
    kinds = {}
    for kind, id, question in examples:
        place = kinds.setdefault(kind, {"count": 0, "examples": []})
        place["count"] += 1
        one = {"line": 1, "id": id, "question": question}
        place["examples"].append(one | {"with_id": "m1", "with_question": "it"})
    told = {"input": {"lines": 9, "removed": 3}, "overlap": {"a": {"m": kinds}}}
    path = tmp_path / "overlap.json"
    path.write_text(json.dumps(told | fields))
    return Report(path)


def test_overlap_that_still_stands_in_pairs_is_found(tmp_path):
    prompt = "Answer in a word.\nQuestion: <image> How MANY are 5? Think first."
    rows = [
        pair(1, "c", "r") | {"question": prompt},
        pair(2, "c", "r") | {"question": "Another?"},
        pair(3, "c", "r") | {"question": "How many are there?"},
        {"question": "<image>\nWithout an id?", "chosen": "c", "rejected": "r"},
    ]
    folder = pair_world.write(tmp_path / "p", {"a" + WRONG: rows})
    told = report_of(
        tmp_path,
        [
            ("equal", "1", "<image>\nhow many are 5"),
            ("near", "2", "Which one?"),  # the id is another question's now
            ("same_text_other_image", "3", "How many are there?"),  # stays
            ("image", "77", "Without an id?"),
            ("image", "78", "It was left out"),
            ("equal", "78", "It was left out"),
        ],
        kept_in="kept.jsonl",
    )
    measured(folder, overlap=told)
    assert [example.id for example in told.standing] == ["1", "77"]
    assert told.looked == 4 and told.kept_in == "kept.jsonl"
    assert ("a", "m", "image", 2) in told.counts and told.removed == 3


@pytest.mark.parametrize("text", ["[]", "{", '{"input": {}}', '{"overlap": {}}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x.json is no .*(name|again)"):
        Report(path)
