"""Data sets of a round as one."""

from __future__ import annotations

import json
import pathlib

import pytest
import tiny_mmpr

from mpo_jax.mmpr import meta as meta_lib
from mpo_jax.run import joined_meta


def write(folder: pathlib.Path, name: str, **entry):
    tiny_mmpr.write_lines(folder / "annotations" / f"{name}.jsonl", [{"a": 1}])
    (folder / "images").mkdir(exist_ok=True)
    made = {"root": "images", "annotation": f"annotations/{name}.jsonl", "length": 3}
    return tiny_mmpr.write_meta(folder, {name: made | entry})


def test_every_path_means_what_it_meant(tmp_path):
    one = write(tmp_path / "a" / "pairs", "right")
    absolute = str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    other = write(tmp_path / "b", "ntp", root=absolute, max_dynamic_patch=12)
    target = tmp_path / "round" / "data" / "meta.json"
    target.parent.mkdir(parents=True)
    found = joined_meta.join([(one, 6), (other, 1)], target)
    assert json.loads(target.read_text()) == found
    first, second = meta_lib.load_meta(target)
    assert (first.name, first.root) == ("ntp", absolute)
    assert first.annotation == str(tmp_path / "b/annotations/ntp.jsonl")
    assert first.max_tiles == 12  # its own
    assert second.root == str(tmp_path / "a/pairs/images")
    assert second.annotation == str(tmp_path / "a/pairs/annotations/right.jsonl")
    assert (second.max_tiles, second.length) == (6, 3)


def test_names_are_one_source_each_and_empty_ones_left_out(tmp_path):
    one, twin = write(tmp_path / "a", "same"), write(tmp_path / "b", "same")
    empty = write(tmp_path / "c", "none", length=0)
    target = tmp_path / "meta.json"
    with pytest.raises(ValueError, match="b/meta.json: a source is called 'same'"):
        joined_meta.join([(one, 6), (twin, 6)], target)
    with pytest.raises(ValueError, match="c/meta.json: there is no pair to train on"):
        joined_meta.join([(empty, 6)], target)
    assert not target.exists()
    assert list(joined_meta.join([(one, 6), (empty, 6)], target)) == ["same"]
