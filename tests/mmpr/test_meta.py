"""meta.json: fields, paths as people write them, and files that are none."""

from __future__ import annotations

import json

import pytest

from mpo_jax.mmpr import meta, records, store

GOOD = {"image": "x/1.jpg", "question": "Q?", "chosen": "yes", "rejected": "no"}


def write_meta(folder, entries):
    path = folder / "meta.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    (folder / "a.jsonl").touch()
    return path


def test_real_meta(shared):
    folder = shared / "data" / "pref_mathv_real"
    (source,) = meta.load_meta(folder / "meta.json")
    assert source.name == "mathv_testmini_correctness_pairs"
    assert source.root == str(folder.absolute())
    assert source.length == 218 and source.repeat_time == 1
    lines = list(records.iter_lines(source.annotation, max_bytes=100_000))
    assert len(lines) == 218
    for offset, number, line in lines:
        record = records.parse_record(
            line, source=source, line_number=number, max_bytes=100_000
        )
        assert len(record.images) == 1 and record.images[0].startswith(source.root)
        again = records.read_record(
            source, offset, line_number=number, max_bytes=100_000
        )
        assert again == record


def test_meta_fields(tmp_path):
    path = write_meta(
        tmp_path,
        {
            "one/with slash": {"root": "i", "annotation": "a.jsonl"},
            "two": {
                "root": "/absolute",
                "annotation": str(tmp_path / "a.jsonl"),
                "data_augment": False,
                "repeat_time": 0.5,
                "length": 3,
                "max_dynamic_patch": 6,
                "note": "unknown fields are warned of",
            },
        },
    )
    one, two = meta.load_meta(path)
    assert one == meta.Source(
        name="one/with slash",
        root=str(tmp_path / "i"),
        annotation=str(tmp_path / "a.jsonl"),
    )
    assert (two.root, two.repeat_time, two.length, two.max_tiles) == (
        "/absolute",
        0.5,
        3,
        6,
    )


def test_reroot(tmp_path):
    entries = {
        "a": {"root": "/mnt/c/MMPR/images", "annotation": "/mnt/c/MMPR/a.jsonl"},
        "b": {"root": "/mnt/c/MMPR2", "annotation": "a.jsonl"},
    }
    path = write_meta(tmp_path, entries)
    moved, kept = meta.load_meta(path, reroot=f"/mnt/c/MMPR/={tmp_path}")
    assert moved.root == str(tmp_path / "images")
    assert moved.annotation == str(tmp_path / "a.jsonl")
    assert kept.root == "/mnt/c/MMPR2"  # only whole path components match
    assert meta.load_meta(path, reroot="/mnt/c/MMPR=.")[0] == moved
    entries["a"]["annotation"] = "/mnt/c/MMPR/none.jsonl"
    write_meta(tmp_path, entries)
    with pytest.raises(FileNotFoundError, match="data.reroot=OLD=NEW"):
        meta.load_meta(path)
    with pytest.raises(ValueError, match="must read OLD=NEW"):
        meta.load_meta(path, reroot="/mnt/c/MMPR")
    write_meta(tmp_path, {"b": entries["b"]})
    with pytest.raises(ValueError, match="begins with '/elsewhere'"):
        meta.load_meta(path, reroot="/elsewhere=/x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"root": None}, "root must be a path, got None; '.' where there are no im"),
        ({"annotation": "x\\a.jsonl"}, "write / instead of"),
        ({"root": "a\0"}, "root must be a path"),
        ({"annotation": ""}, "annotation must be a path, got ''"),
        ({"annotation": "s3://b/x/a.jsonl"}, "is a URL.*reroot=s3://b/x=/FOLDER"),
        ({"root": "s3://bucket/x"}, "is a URL"),
        ({"annotation": 3}, "annotation must be a path, got 3"),
        ({"annotation": "a.json"}, "must end in .jsonl: JSON lines, one object"),
        ({"repeat_time": "1"}, "repeat_time must be a number >= 0, got '1'"),
        ({"repeat_time": -1}, "repeat_time must be a number"),
        ({"repeat_time": True}, "repeat_time must be a number"),
        ({"repeat_time": float("nan")}, "repeat_time must be a number"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch must be a whole number >= 1"),
        ({"max_dynamic_patch": 6.0}, "max_dynamic_patch must be a whole number"),
        ({"length": "many"}, "length must be a whole number"),
        ({"data_augment": "no"}, "data_augment must be true or false"),
        ({"data_augment": True}, "source 'math': data_augment is true.*reference"),
        ({"repeat_tme": 1}, "unknown field 'repeat_tme'; is 'repeat_time' meant"),
    ],
)
def test_bad_meta_fields(tmp_path, change, message):
    entry = {"root": ".", "annotation": "a.jsonl", **change}
    path = write_meta(tmp_path, {"math": entry})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        meta.load_meta(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": {},}', "remove the trailing comma at line 1 column 9: "),
        ('{"a": {"root": "i",\n "length": 3 ,\n }\n}', "comma at line 2 column 14: "),
        ('{"a": [1,]}', "trailing comma at line 1 column 9: "),
        ('{"a": 1 "b"}', "not valid JSON: Expecting ',' delimiter: line 1"),
        ('{"question": "Q?", "chosen": "y"}', "is an annotation .JSON lines"),
        ("version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer"),
        ("[" * 100_000, "not valid JSON"),
        ('{"\\ud800": {}}', "not valid JSON.*surrogates"),
        ("[]", "one entry per source"),
        ("{}", "one entry per source"),
        ('{"a": []}', "source 'a': must be an object"),
        ('{"root": "i", "annotation": "a"}', 'must be an object.*reads {"name": {"'),
        ('{\n"question": "Q?",\n"chosen": "y"}', "is an annotation .JSON lines"),
        ('{"prompt": {}}', "source 'prompt': root must be a path"),
        ('{"a": {}, "a": {}}', r"repeated keys \['a'\]"),
    ],
)
def test_bad_meta_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        meta.load_meta(write_meta(tmp_path, text))


def test_missing_meta(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        meta.load_meta(tmp_path / "none.json")


def test_null_is_as_if_absent(tmp_path):
    entry = {"root": ".", "annotation": "a.jsonl"}
    (plain,) = meta.load_meta(write_meta(tmp_path, {"a": entry}))
    names = ("repeat_time", "data_augment", "length", "max_dynamic_patch")
    nulls = {**entry, **dict.fromkeys(names)}
    assert meta.load_meta(write_meta(tmp_path, {"a": nulls})) == [plain]


def released(folder, prefix):
    """A data set whose paths begin with `prefix`, as in MMPR-v1.2."""
    (folder / "annotations").mkdir(parents=True)
    (folder / "images" / "m3cot").mkdir(parents=True)
    line = json.dumps({**GOOD, "image": "1.jpg"})
    (folder / "annotations" / "a.jsonl").write_text(line + "\n")
    entry = {"root": "images/m3cot", "annotation": "annotations/a.jsonl"}
    entry = {key: f"{prefix}/{value}" for key, value in entry.items()}
    path = folder / "meta.json"
    path.write_text(json.dumps({"a": entry}))
    return path


def test_paths_that_begin_with_the_own_folder(tmp_path, caplog):
    folder = tmp_path / "MMPR-v1.2"
    (source,) = meta.load_meta(released(folder, "MMPR-v1.2"))
    assert source.root == str(folder / "images" / "m3cot")
    assert source.annotation == str(folder / "annotations" / "a.jsonl")
    assert caplog.text.count("as in MMPR as released") == 1
    # What lies below the folder itself comes first.
    inner = folder / "MMPR-v1.2" / "images" / "m3cot"
    inner.mkdir(parents=True)
    assert meta.load_meta(folder / "meta.json")[0].root == str(inner)


def test_a_dot_in_front_changes_nothing(tmp_path):
    folder = tmp_path / "MMPR-v1.2"
    path = released(folder, "./MMPR-v1.2")
    assert meta.load_meta(path)[0].root == str(folder / "images" / "m3cot")
    (source,) = meta.load_meta(path, reroot="./MMPR-v1.2/=.")
    assert source.root == str(folder / "images" / "m3cot")


@pytest.mark.parametrize("prefix", ["MMPR-v1.2", "data/MMPR", "/mnt/cluster/MMPR"])
def test_message_names_the_rule_that_works(tmp_path, prefix):
    path = released(tmp_path / "mine", prefix)
    with pytest.raises(FileNotFoundError, match=f"data.reroot={prefix}=. "):
        meta.load_meta(path)
    with pytest.raises(FileNotFoundError, match=f"data.reroot={prefix}=. "):
        meta.load_meta(path, reroot=f"{prefix}=/wrong")
    (source,) = meta.load_meta(path, reroot=f"{prefix}=.")
    assert source.root == str(tmp_path / "mine" / "images" / "m3cot")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"root": "~/images", "annotation": "~/a.jsonl"}
    write_meta(tmp_path, {"a": entry})
    _, (source,) = store.open_data("~/meta.json")
    assert source.place[:2] == (str(tmp_path / "images"), str(tmp_path / "a.jsonl"))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.jsonl").touch()
    (source,) = meta.load_meta(tmp_path / "meta.json", reroot=f"{tmp_path}=~/x")
    assert source.root == str(tmp_path / "x" / "images")


def test_urls_in_meta_go_where_reroot_says(tmp_path):
    entry = {"root": "s3://b/MMPR/images", "annotation": "s3://b/MMPR/a.jsonl"}
    path = write_meta(tmp_path, {"a": entry})
    with pytest.raises(ValueError, match="is a URL.*data.reroot=s3://b/MMPR"):
        meta.load_meta(path)
    (source,) = meta.load_meta(path, reroot="s3://b/MMPR=.")
    assert source.place[:2] == (str(tmp_path / "images"), str(tmp_path / "a.jsonl"))


def test_files_of_other_kinds_are_named_whatever_their_suffix(tmp_path):
    for name, data, message in (
        ("a.json", b'[{"question": "Q?"}]', "is a JSON list; write its items"),
        ("a.jsonl.gz", b"\x1f\x8b\x08", "is compressed with gzip"),
        ("a.parquet", b"PAR1\x15", "is a Parquet file; scripts/import_data.py"),
        ("a.txt", b"{}\n", "must end in .jsonl: JSON lines"),
    ):
        (tmp_path / name).write_bytes(data)
        path = write_meta(tmp_path, {"a": {"root": ".", "annotation": name}})
        with pytest.raises(ValueError, match=message):
            meta.load_meta(path)


def test_reroot_of_images_alone(tmp_path):
    """A rule must match something, and the first lines are looked at for it."""
    path = write_meta(tmp_path, {"a": {"root": "/", "annotation": "a.jsonl"}})
    lines = ["[", "", json.dumps({**GOOD, "image": ["/mnt/x/1.jpg"]})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    (source,) = meta.load_meta(path, reroot="/mnt/x=y")
    assert source.reroot == f"/mnt/x={tmp_path / 'y'}"
    with pytest.raises(ValueError, match="no root, annotation or absolute image path"):
        meta.load_meta(path, reroot="/mnt/z=y")


def test_what_is_no_meta_json(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    path = write_meta(tmp_path, {"a": {"root": ".", "annotation": "a.jsonl"}})
    with pytest.raises(FileNotFoundError, match=f"without shards.*--meta={path}"):
        store.open_data(tmp_path)
    with pytest.raises(FileNotFoundError, match="neither shards nor a meta.json"):
        store.open_data(empty)
    line = json.dumps(GOOD) + "\n"
    for name in ("a.jsonl", "lines.json"):
        (tmp_path / name).write_text(line * 2)
        with pytest.raises(ValueError, match=f'Write one.*"annotation": "{name}"'):
            store.open_data(tmp_path / name)
