"""Images find their place, and the folder appears whole or not at all."""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys

import import_cases as cases
import pytest
import tiny_mmpr

from mpo_jax import ledger
from mpo_jax.importers import output, pictures, run
from mpo_jax.mmpr import records
from mpo_jax.mmpr.meta import load_meta


@pytest.fixture
def store(tmp_path):
    (tmp_path / "stored").mkdir()
    return pictures.Pictures(tmp_path / "stored", max_pixels=10_000)


def test_bytes_get_one_file_however_they_come(store, tmp_path):
    image = tiny_mmpr.write_image(tmp_path / "a.png")
    data = image.read_bytes()
    coded = base64.b64encode(data).decode()
    wrapped = "\n".join(coded[n : n + 76] for n in range(0, len(coded), 76))
    names = set()
    for value in (
        data,
        {"bytes": data, "path": "elsewhere.png"},
        coded,
        wrapped,
        f"data:image/png;base64,{coded}",
        {"url": f"data:image/png;base64,{coded}"},
        {"bytes": coded},
    ):
        place, (name,) = store.place([value], str(tmp_path))
        assert place == pictures.STORED
        names.add(name)
    (name,) = names
    assert name.endswith(".png")
    assert (tmp_path / "stored" / name).read_bytes() == data
    assert len(list((tmp_path / "stored").rglob("*.png"))) == 1


def test_files_stay_where_they_are(store, tmp_path):
    for seed, name in enumerate(("in/a b.png", "else/b.png")):
        tiny_mmpr.write_image(tmp_path / name, seed=seed)
    root = str(tmp_path / "in")
    inside, outside = f"{root}/a b.png", str(tmp_path / "else/b.png")
    for value in ("a b.png", "./a b.png", inside, f"file://{root}/a%20b.png"):
        assert store.place([value], root) == (pictures.BESIDE, ["a b.png"])
    away = (pictures.ANYWHERE, [outside[1:]])
    assert store.place(["../else/b.png"], root) == away
    assert store.place([{"path": outside, "bytes": None}], root) == away
    both = (pictures.ANYWHERE, [inside[1:], outside[1:]])
    assert store.place(["a b.png", outside], root) == both
    assert not list((tmp_path / "stored").iterdir())
    data = (tmp_path / "else/b.png").read_bytes()
    place, names = store.place(["a b.png", data], root)  # an entry has one root
    assert place == pictures.STORED and len(set(names)) == len(names) == 2
    copying = pictures.Pictures(tmp_path / "stored", 10_000, copy=True)
    assert copying.place(["a b.png"], root) == (place, names[:1])


@pytest.mark.parametrize(
    "value, reason, detail",
    [
        (tiny_mmpr.png_bomb(100_000, 100_000), "image_too_large", "image 1"),
        (b"no image", "image_unreadable", "image 1 of the record"),
        ("data:image/png,abc", "image_unreadable", "not a data URL in base64"),
        ("https://x.org/a.png", "image_missing", "nothing is fetched"),
        ("s3://bucket/a.png", "image_missing", "nothing is fetched"),
        ("none.png", "image_missing", "--image_root"),
        ("bad\0name.png", "image_missing", "is not a file"),
        ("x" * 100_000, "image_missing", "is not a file"),
        (".", "image_missing", "is not a file"),
        ("", "bad_field", "must be a path"),
        (7, "bad_field", "must be a path"),
        ({"height": 3}, "bad_field", "no bytes and no path"),
    ],
)
def test_images_that_cannot_be_used(store, tmp_path, value, reason, detail):
    with pytest.raises(ledger.BadRecord, match=detail) as caught:
        store.place([value], str(tmp_path))
    assert caught.value.reason == reason and len(caught.value.detail) < 400
    assert not list((tmp_path / "stored").rglob("*.*"))


def test_a_cut_image_is_not_stored(store, tmp_path):
    data = tiny_mmpr.write_image(tmp_path / "a.png").read_bytes()
    with pytest.raises(ledger.BadRecord, match="cannot be decoded"):
        store.place([data[:300]], str(tmp_path))


@pytest.fixture
def source(tmp_path):
    tiny_mmpr.write_image(tmp_path / "in/a.png")
    good = cases.records()["mmpr"][1]
    return tiny_mmpr.write_lines(tmp_path / "in/x.jsonl", [good, {**good, "image": 7}])


def test_places_get_entries_of_their_own(tmp_path):
    image = tiny_mmpr.write_image(tmp_path / "in/a.png")
    other = tiny_mmpr.write_image(tmp_path / "b.png", seed=1)
    data = base64.b64encode(image.read_bytes()).decode()
    good = cases.records()["mmpr"][1]
    images = [data, "a.png", str(other), None, data]
    path = tiny_mmpr.write_lines(
        tmp_path / "in/x.jsonl", [{**good, "image": image} for image in images]
    )
    (tally,) = cases.imported(tmp_path / "out", path)
    assert (tally.written, tally.images) == (5, 4)
    meta = json.loads((tmp_path / "out/meta.json").read_text())
    assert {name: (entry["root"], entry["length"]) for name, entry in meta.items()} == {
        "x": ("images", 2),
        "x+root": (str(tmp_path / "in"), 2),
        "x+absolute": ("/", 1),
    }
    for entry in load_meta(tmp_path / "out/meta.json"):
        for line in pathlib.Path(entry.annotation).read_bytes().splitlines():
            record = records.parse_record(
                line, source=entry, line_number=1, max_bytes=10_000
            )
            assert all(os.path.isfile(image) for image in record.images)


def test_an_import_says_what_it_did(source, tmp_path):
    cases.imported(tmp_path / "out", source)
    report = json.loads((tmp_path / "out/import.json").read_text())
    told = report["sources"]["x"]
    assert (told["read"], told["written"], told["layout"]) == (2, 1, "mmpr")
    assert told["left_out"] == {"bad_field: image": 1}
    (line,) = (tmp_path / "out/annotations/x.jsonl").read_text().splitlines()
    assert json.loads(line)["import_meta"] == {"from": str(source), "line": 1}


def test_out_is_replaced_only_where_asked_and_only_an_import(source, tmp_path):
    out = tmp_path / "out"
    cases.imported(out, source)
    with pytest.raises(FileExistsError, match="--overwrite"):
        cases.imported(out, source)
    (out / "old").touch()
    with output.building(out, overwrite=True) as folder:
        (folder / "new").touch()
        assert (out / "old").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    with pytest.raises(FileExistsError, match="no import wrote it"):
        with output.building(out, overwrite=True):
            pass
    assert not list(tmp_path.glob("out.*"))


def test_a_killed_import_leaves_nothing_that_looks_finished(source, tmp_path):
    code = (
        "import os, pathlib, sys\n"
        "from mpo_jax.importers import output\n"
        "with output.building(pathlib.Path(sys.argv[1]), overwrite=False) as folder:\n"
        "    (folder / 'meta.json').write_text('{}')\n"
        "    (folder / 'images').mkdir()\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})\n"
    )
    out = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", code, str(out)])
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    assert (tmp_path / "out.building/meta.json").exists()
    cases.imported(out, source)
    assert not list(tmp_path.glob("out.*")) and (out / "annotations/x.jsonl").exists()


def test_an_import_that_fails_leaves_nothing(source, tmp_path):
    broken = tmp_path / "in/y.json"
    good = json.dumps(cases.records()["mmpr"][1])
    broken.write_text("[" + f"{good}, " * 30 + "{cut")
    with pytest.raises(ValueError, match="item 31 of the list"):
        cases.imported(tmp_path / "out", source, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_two_imports_do_not_share_a_folder(source, tmp_path):
    out = tmp_path / "out"
    with output.building(out, overwrite=False) as folder:
        (folder / "first").touch()
        with pytest.raises(FileExistsError, match="another import is writing"):
            cases.imported(out, source)
        assert (folder / "first").exists()
    assert [path.name for path in out.iterdir()] == ["first"]
    assert not list(tmp_path.glob("out.*"))


def test_the_lock_stays_until_the_folder_is_complete(source, tmp_path, monkeypatch):
    """One that went first would let another import empty the folder."""
    replace, out = output._replace, tmp_path / "out"

    def replace_beside_another(folder, target):
        with pytest.raises(FileExistsError, match="another import is writing"):
            cases.imported(out, source)
        replace(folder, target)

    with monkeypatch.context() as patch:
        patch.setattr(output, "_replace", replace_beside_another)
        with output.building(out, overwrite=False) as folder:
            (folder / "first").touch()
    assert [path.name for path in out.iterdir()] == ["first"]


def test_a_file_system_without_locks(source, tmp_path, monkeypatch):
    def flock(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    cases.imported(tmp_path / "out", source)
    assert not list(tmp_path.glob("out.*")) and (tmp_path / "out/meta.json").exists()


def test_without_a_usable_record_the_ledger_alone_is_left(source, tmp_path):
    path = tiny_mmpr.write_lines(
        tmp_path / "in/x.jsonl", [{"question": 1, "chosen": 2, "rejected": 3}] * 30
    )
    with pytest.raises(run.NothingWritten, match="out.ledger.jsonl") as caught:
        cases.imported(tmp_path / "out", path)
    assert caught.value.tallies[0].left_out == {("bad_field", "question"): 30}
    assert not (tmp_path / "out").exists()
    assert len(list(ledger.read(tmp_path / "out.ledger.jsonl"))) == 30
    tiny_mmpr.write_lines(path, [cases.records()["mmpr"][1]])
    cases.imported(tmp_path / "out", path)
    assert not list(tmp_path.glob("out.*"))


def test_an_input_inside_the_folder_is_refused(source, tmp_path):
    with pytest.raises(ValueError, match="lies in --out"):
        cases.imported(tmp_path / "in", source)
