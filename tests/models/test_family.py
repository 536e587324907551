"""Released sizes against their published totals, from shapes alone."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest

from mpo_jax.convert import table
from mpo_jax.models import config, family, internvl
from mpo_jax.nn import params


@pytest.mark.parametrize("member", family.MEMBERS, ids=lambda member: member.name)
def test_total_is_the_published_one(member: family.Member):
    total = params.count(internvl.InternVL(member.config).shapes)
    if member.parameters is None:
        # Only a rounded total is published; the size is in the name.
        billions = float(member.name.rsplit("-", 1)[-1].removesuffix("B"))
        # 4B is 4.15 billion, 9B is 9.14 billion.
        assert total / 1e9 == pytest.approx(billions, rel=0.04)
    else:
        assert total == member.parameters
    for layout in (table.ORIGINAL, table.NATIVE):
        shapes = table.hf_shapes(member.config, layout)
        assert sum(math.prod(shape) for shape in shapes.values()) == total


def test_names_are_unique():
    assert len({member.name for member in family.MEMBERS}) == len(family.MEMBERS)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("OpenGVLab/InternVL2-8B", "InternVL2-8B"),
        ("OpenGVLab/InternVL2-8B-MPO", "InternVL2-8B"),
        ("OpenGVLab/InternVL2_5-1B-MPO", "InternVL2_5-1B"),
        ("OpenGVLab/InternVL3-14B-Instruct", "InternVL3-14B"),
        ("OpenGVLab/InternVL3-14B-Pretrained", "InternVL3-14B"),
        ("OpenGVLab/InternVL3_5-8B", "InternVL3_5-8B"),
        ("OpenGVLab/InternVL2-9B", None),
        ("someone/InternVL2-8B", None),
        ("InternVL2-8B", None),
        ("", None),
    ],
)
def test_lookup_by_id(path: str, name: str | None):
    found = family.member(path)
    assert (found and found.name) == name
    assert family.lookup(path) == (found and found.config)


def test_a_directory_wins(tmp_path, monkeypatch):
    raw = family.MEMBERS[0].config_json
    raw["llm_config"]["num_hidden_layers"] = 3
    place = tmp_path / family.OWNER / "InternVL2-8B"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(raw))
    monkeypatch.chdir(tmp_path)
    found = family.lookup("OpenGVLab/InternVL2-8B")
    assert found is not None and found.language.num_hidden_layers == 3
    (place / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        family.lookup("OpenGVLab/InternVL2-8B")


@pytest.mark.parametrize("size", ["8B", "26B"])
def test_agrees_with_the_released_config(shared, size: str):
    """Everything that is read of the released file, not only what sets the shapes."""
    (path,) = (shared / "data" / "configs").glob(f"InternVL2-{size}.config*.json")
    ours = family.lookup(f"OpenGVLab/InternVL2-{size}")
    assert ours is not None
    theirs = config.load(path)
    # Only the initialiser is left out: released weights are never drawn.
    blank = {"initializer_range": 0.0}
    for found in (ours, theirs):
        assert found.image_size == 448
    assert dataclasses.replace(
        ours,
        vision=dataclasses.replace(ours.vision, initializer_factor=0.0, **blank),
        language=dataclasses.replace(ours.language, **blank),
    ) == dataclasses.replace(
        theirs,
        vision=dataclasses.replace(theirs.vision, initializer_factor=0.0, **blank),
        language=dataclasses.replace(theirs.language, **blank),
    )
