"""Sources that give little are named, with a remedy, and stop a run beyond a limit."""

from __future__ import annotations

import pytest
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.mmpr import index, shares
from mpo_jax.types import TooLong


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    tokenizer = tiny_mmpr.write_tokenizer(folder / "tokenizer")
    good = [tiny_mmpr.pair(i) for i in range(8)]
    lines = {
        "good": good,
        "one": [*good, b"no json"],
        "lost": [tiny_mmpr.pair(i, image="i.png") for i in range(4)] + good[:1],
        "few": good,
        "off": [b"no json"],
        "none": [],
    }
    repeat = {"few": 0.1, "off": 0}
    for name, text in lines.items():
        tiny_mmpr.write_lines(folder / f"{name}.jsonl", text)
    sources = {
        name: {
            "root": "absent" if name == "lost" else ".",
            "annotation": f"{name}.jsonl",
            "repeat_time": repeat.get(name, 1),
        }
        for name in lines
    }
    meta = tiny_mmpr.write_meta(folder, sources)
    return tiny_mmpr.build_index(meta, folder / "out", tokenizer)


def test_poor_sources_are_named_the_worst_first(built):
    found = shares.shares(built)
    assert [share.name for share in found] == ["good", "one", "lost", "few", "off",
                                              "none"]  # fmt: skip
    texts = {share.name: str(share) for share in shares.poor(found)}
    assert list(texts) == ["few", "none", "lost", "one"]
    assert "leaves out 4 of 5 records, 4 of them as image_missing" in texts["lost"]
    assert "absent is no folder; correct root" in texts["lost"]
    assert "repeat_time 0.1 of 8 records is none" in texts["few"]
    assert "to 0.125 or more" in texts["few"]
    assert texts["none"] == "source 'none' has no record"


def test_the_advised_repeat_time_gives_a_pair():
    for count in (1, 3, 7, 30, 999, 123_457):
        share = shares.Share("s", "/", count, {}, 1e-9, 0)
        advised = float(str(share).split("repeat_time to ")[1].split()[0])
        assert index.pairs_of(advised, count) >= 1


def test_the_limit_stops_and_1_never_does(built):
    with pytest.raises(ValueError, match="1 of 6 sources.*0.5.*\n  source 'lost'"):
        shares.check(built, "meta.json", max_left_out=0.5)
    shares.check(built, "meta.json", max_left_out=0.8)
    with pytest.raises(ValueError, match="2 of 6 sources"):
        shares.check(built, "meta.json", max_left_out=0.1)


def test_pairs_that_fit_no_row_count_as_left_out(built):
    too_long = [TooLong(number, 1, "tiles 25 > 16") for number in range(8)]
    good = shares.shares(built, too_long)[0]
    assert (good.left_out, good.pairs, good.lost) == ({"too_long": 8}, 0, 1)
    assert "too_long (the pair fits in no row shape): raise the budgets" in str(good)
    with pytest.raises(ValueError, match=r"(?s)2 of 6 sources.*'good'.*ledger.jsonl"):
        shares.check(built, "m", max_left_out=0.5, too_long=too_long)


def test_remedies_are_for_reasons_that_exist():
    assert shares.REMEDIES.keys() <= ledger.REASONS.keys()
