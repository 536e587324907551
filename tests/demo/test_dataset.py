"""The data set on disk: MMPR layout, idempotence, disjoint splits."""

from __future__ import annotations

import hashlib
import json
import pathlib
from typing import Any

import pytest
from PIL import Image

from mpo_jax.demo import dataset, drawings
from mpo_jax.mmpr import record_fields, records
from mpo_jax.mmpr.meta import load_meta

LIMIT = 10_000
SIZES: dict[str, Any] = {"num_train": 60, "num_eval": 30}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> dict[str, pathlib.Path]:
    out_dir = tmp_path_factory.mktemp("demo")
    return dataset.write_dataset(out_dir, **SIZES, seed=3)


def _records(meta: pathlib.Path) -> list[tuple[dict, pathlib.Path]]:
    found = []
    for entry in json.loads(meta.read_text()).values():
        lines = (meta.parent / entry["annotation"]).read_text("utf-8").splitlines()
        assert len(lines) == entry["length"]
        for line in lines:
            record = json.loads(line)
            found.append((record, meta.parent / entry["root"] / record["image"]))
    return found


def _digests(out_dir: pathlib.Path) -> dict[str, str]:
    files = sorted(path for path in out_dir.rglob("*") if path.is_file())
    return {
        str(path.relative_to(out_dir)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.mark.parametrize("key, count", [("meta", 60), ("eval_meta", 30)])
def test_meta_has_the_fields_of_mmpr_and_all_pairs(written, key, count):
    meta = json.loads(written[key].read_text())
    assert list(meta) == ["demo_count", "demo_chart", "demo_geometry"]
    for entry in meta.values():
        assert entry["root"] == "images" and entry["annotation"].endswith(".jsonl")
        assert entry["data_augment"] is False and entry["repeat_time"] == 1
        assert entry["max_dynamic_patch"] == 1
        assert entry["length"] == count // 3
    for record, image in _records(written[key]):
        with Image.open(image) as opened:
            assert (opened.format, opened.mode) == ("PNG", "RGB")
            assert opened.size == (112, 112)
        assert record["rejected_kind"] in drawings.REJECTED_KINDS
        assert record_fields.check(record, chosen_only=False) == []  # no warning
        assert record["chosen"].endswith(f"Final answer: {record['answer_gt']}")


def test_the_loader_reads_every_record(written):
    """What is written is what the project's own reader accepts, none left out."""
    for key, count in (("meta", 60), ("eval_meta", 30)):
        parsed = []
        for source in load_meta(written[key]):
            lines = records.iter_lines(source.annotation, max_bytes=LIMIT)
            for _, number, line in lines:
                parsed.append(
                    records.parse_record(
                        line, source=source, line_number=number, max_bytes=LIMIT
                    )
                )
        assert len(parsed) == count
        assert all(pathlib.Path(r.images[0]).is_file() for r in parsed)
        assert {r.max_tiles for r in parsed} == {1}


def test_splits_share_no_image_and_no_image_question_pair(written):
    seen = []
    for key in ("meta", "eval_meta"):
        pairs = _records(written[key])
        seen.append({(p.read_bytes(), r["question"]) for r, p in pairs})
    assert not seen[0] & seen[1]
    assert not {image for image, _ in seen[0]} & {image for image, _ in seen[1]}


def test_second_call_writes_nothing_and_other_arguments_write_again(tmp_path):
    calls = []
    sizes: dict[str, Any] = {"num_train": 6, "num_eval": 3}

    def write(seed: int) -> None:
        dataset.write_dataset(
            tmp_path, **sizes, seed=seed, progress=lambda *a: calls.append(a)
        )

    write(0)
    assert calls[-1] == (9, 9) and len(calls) == 9
    first = _digests(tmp_path)
    write(0)
    assert len(calls) == 9
    write(1)
    assert len(calls) == 18 and _digests(tmp_path) != first
    write(0)
    assert _digests(tmp_path) == first  # nothing of seed 1 is left


def test_a_lost_image_or_an_interrupted_call_is_repaired(tmp_path):
    sizes: dict[str, Any] = {"num_train": 6, "num_eval": 3}
    dataset.write_dataset(tmp_path, **sizes, seed=0)
    whole = _digests(tmp_path)
    next((tmp_path / "images").rglob("*.png")).unlink()
    dataset.write_dataset(tmp_path, **sizes, seed=0)
    assert _digests(tmp_path) == whole

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.write_dataset(tmp_path, **sizes, seed=1, progress=stop)
    dataset.write_dataset(tmp_path, **sizes, seed=0)
    assert _digests(tmp_path) == whole


def test_larger_data_set_begins_with_the_smaller_one(written, tmp_path):
    larger = dataset.write_dataset(tmp_path, num_train=90, num_eval=30, seed=3)
    small = [r for r, _ in _records(written["meta"])]
    assert all(r in [r for r, _ in _records(larger["meta"])] for r in small)


def test_files_of_others_are_neither_removed_nor_replaced(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "note.txt").write_text("mine")
    for seed in (0, 1):
        dataset.write_dataset(tmp_path, num_train=3, num_eval=3, seed=seed)
    assert (tmp_path / "runs" / "note.txt").read_text() == "mine"

    foreign = tmp_path / "foreign"
    (foreign / "images").mkdir(parents=True)
    (foreign / "images" / "cat.png").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="images.*out_dir"):
        dataset.write_dataset(foreign, num_train=3, num_eval=3, seed=0)
    assert (foreign / "images" / "cat.png").read_bytes() == b"precious"


def test_too_few_pairs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="num_eval=2"):
        dataset.write_dataset(tmp_path, num_train=3, num_eval=2, seed=0)


def test_corpus_holds_every_text(written):
    texts = list(dataset.corpus(written["meta"]))
    assert len(texts) == 3 * 60
    record, _ = _records(written["meta"])[0]
    assert texts[:3] == [record["question"], record["chosen"], record["rejected"]]
