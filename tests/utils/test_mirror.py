"""What is kept in step with an address, in the order in which things may go wrong."""

from __future__ import annotations

import json
import pathlib
import uuid

import pytest

from mpo_jax.utils import line_parts, metrics, mirror, remote


@pytest.fixture
def address():
    there = f"memory://{uuid.uuid4().hex}/run"
    yield there
    remote.Folder(there).clear()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def opened(address: str, number: int = 0, **options):
    options = {"every_s": 1000.0, "growing": ("metrics.jsonl",)} | options
    return mirror.open_mirror(address, number=number, **options)


def there(address: str) -> dict[str, bytes]:
    folder = remote.Folder(address)
    return {name: folder.read(name) for name in folder.tree()}


def test_what_is_written_arrives_and_comes_back_to_another_machine(
    address, tmp_path, monkeypatch
):
    with opened(address) as one:
        (one.folder / "data").mkdir()
        (one.folder / "data" / "index.parquet").write_bytes(b"index")
        (one.folder / "report.md").write_text("report")
        (one.folder / "data" / "half.tmp").write_text("not whole")
    assert there(address) == {"data/index.parquet": b"index", "report.md": b"report"}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    with opened(address) as one:
        assert (one.folder / "data" / "index.parquet").read_bytes() == b"index"
        (one.folder / "report.md").unlink()
    assert set(there(address)) == {"data/index.parquet"}


def test_what_is_not_wanted_or_elsewhere_is_not_fetched(address, tmp_path, monkeypatch):
    with opened(address) as one:
        for name in ("data", "plots", "checkpoints"):
            (one.folder / name).mkdir()
            (one.folder / name / "file").write_text(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    options = {"elsewhere": ("checkpoints",), "wanted": ("data", "a.jsonl")}
    with opened(address, **options) as one:
        (one.folder / "a.jsonl").write_text("a")
    remote.Folder(address).write("stranger.bin", b"not of this run")
    with opened(address, **options) as one:
        found = {p.name for p in one.folder.iterdir() if not p.name.startswith(".")}
        assert found == {"data", "a.jsonl"}
        mirror.fetch(one.folder / "plots")
        assert (one.folder / "plots" / "file").read_text() == "plots"
        (one.folder / "checkpoints").mkdir()
        (one.folder / "checkpoints" / "mine").write_text("never sent")
    assert set(there(address)) == {
        *("data/file", "plots/file", "checkpoints/file"),
        *("a.jsonl", "stranger.bin"),
    }


def test_more_than_a_run_has_is_refused_and_not_fetched(address, monkeypatch):
    for name in ("model/a", "model/b", "small"):
        remote.Folder(address).write(name, bytes(400))
    monkeypatch.setattr(mirror, "MOST_BYTES", 1000)
    with pytest.raises(ValueError, match=r"most in model \(.*a folder of its own"):
        with opened(address):
            pass
    assert not list(mirror.folder_of(address, 0).glob("m*"))
    with opened(address, wanted=("small",)) as one:
        assert (one.folder / "small").stat().st_size == 400


def test_what_a_killed_process_had_not_sent_is_dropped(address):
    with opened(address) as one:
        (one.folder / "kept").write_text("sent")
    # As a process that was killed leaves it: written, not sent.
    (one.folder / "kept").write_text("changed since")
    (one.folder / "never sent").write_text("x")
    remote.Folder(address).write("from another host", b"y")
    with opened(address) as one:
        found = {p.name for p in one.folder.iterdir() if not p.name.startswith(".")}
        assert found == {"kept", "from another host"}
        assert (one.folder / "kept").read_text() == "sent"
    assert set(there(address)) == {"kept", "from another host"}


def test_what_was_deleted_there_goes_here_and_the_other_way(address):
    with opened(address) as one:
        (one.folder / "a").write_text("a")
        (one.folder / "b").write_text("b")
        one.push()
        (one.folder / "a").unlink()
        one.push()
        assert set(there(address)) == {"b"}
        remote.Folder(address).delete("b")
        one.pull()
        assert not (one.folder / "b").exists()


def test_nothing_is_sent_or_fetched_twice(address, monkeypatch):
    moved = []
    for name in ("upload", "download"):
        real = getattr(remote.Folder, name)

        def count(self, first, second, real=real, name=name):
            moved.append(name)
            return real(self, first, second)

        monkeypatch.setattr(remote.Folder, name, count)
    with opened(address) as one:
        (one.folder / "a").write_text("a")
        one.push()
        one.push()
        one.pull()
    with opened(address) as one:
        one.pull()
        assert moved == ["upload"]
        remote.Folder(address).write("a", b"b")  # as long as before
        one.pull()
        assert (one.folder / "a").read_text() == "b"
        assert moved == ["upload", "download"]


def test_hosts_exchange_what_they_wrote_and_delete_nothing_of_each_other(address):
    with opened(address, 0) as first, opened(address, 1) as second:
        assert first.folder != second.folder
        (second.folder / "part-1").write_text("old")
        second.push()
        first.pull()
        (first.folder / "part-1").unlink()  # stale, the first one thinks
        (second.folder / "part-1").write_text("fresh")
        second.push()
        first.push()
        assert there(address) == {"part-1": b"fresh"}
        first.pull()
        assert (first.folder / "part-1").read_text() == "fresh"


@pytest.mark.parametrize("known", [False, True])
def test_what_vanishes_between_a_listing_and_its_reading_is_gone(
    address, monkeypatch, known
):
    """The first host deletes what a killed start has left while others fetch it."""
    folder, download = remote.Folder(address), remote.Folder.download
    with opened(address, 1) as one:
        if known:
            folder.write("answers/part-0", b"of an earlier start")
            one.pull()
        folder.write("answers/part-0", b"stale")
        folder.write("answers/part-1", b"good")

        def deleted_before(self, name, file):
            if name.endswith("part-0"):
                folder.delete(name)
            download(self, name, file)

        monkeypatch.setattr(remote.Folder, "download", deleted_before)
        one.pull("answers")
        assert {p.name for p in (one.folder / "answers").iterdir()} == {"part-1"}
        monkeypatch.undo()
        folder.write("answers/part-0", b"fresh")
        one.pull("answers")
        assert (one.folder / "answers" / "part-0").read_bytes() == b"fresh"


def test_what_is_new_on_both_sides_is_kept_here(address):
    with opened(address) as one:
        (one.folder / "a").write_text("mine")
        remote.Folder(address).write("a", b"theirs")
        one.pull()
        assert (one.folder / "a").read_text() == "mine"


def test_files_arrive_in_the_order_in_which_they_were_written(address, monkeypatch):
    """So that what says that a folder is whole comes last."""
    sent, upload = [], remote.Folder.upload

    def noted(self, file, name):
        sent.append(name)
        return upload(self, file, name)

    monkeypatch.setattr(remote.Folder, "upload", noted)
    with opened(address) as one:
        for number, name in enumerate(("z", "manifest", "a")):
            path = one.folder / name
            path.write_text(name)
            mirror.os.utime(path, (number, number))
    assert sent == ["z", "manifest", "a"]


def test_two_processes_of_a_machine_do_not_share_a_mirror(address):
    with opened(address) as one:
        with pytest.raises(ValueError, match="another process of this machine"):
            with opened(address):
                raise AssertionError("both have it")
        (one.folder / "a").write_text("a")
    assert set(there(address)) == {"a"}


def test_a_store_that_is_away_ends_nothing_before_the_end(address, monkeypatch, caplog):
    def away(self, file, name):
        raise ConnectionError("away")

    monkeypatch.setattr(mirror, "PATIENCE_S", 0.0)
    with pytest.raises(mirror.transient.statuses.TryAgain, match="away"):
        with opened(address, every_s=0.05) as one:
            with monkeypatch.context() as patch:
                patch.setattr(remote.Folder, "upload", away)
                (one.folder / "a").write_text("a")
                mirror.offer(one.folder / "a")
                assert "is behind: ConnectionError: away" in caplog.text
                with pytest.raises(mirror.transient.statuses.TryAgain):
                    mirror.publish(one.folder / "a")
            mirror.publish(one.folder / "a")
            assert set(there(address)) == {"a"}
            monkeypatch.setattr(remote.Folder, "upload", away)
            (one.folder / "b").write_text("b")


def test_an_error_of_the_run_is_not_hidden_by_one_of_the_store(address, monkeypatch):
    with pytest.raises(KeyError, match="of the run"):
        with opened(address) as one:
            (one.folder / "a").write_text("a")
            raise KeyError("of the run")
    assert set(there(address)) == {"a"}


def test_a_path_outside_is_nobodys_business(address, tmp_path):
    with opened(address) as one:
        for of in (mirror.publish, mirror.fetch, mirror.offer, mirror.grow):
            of(tmp_path / "elsewhere")
        assert mirror.known_as(one.folder / "a" / "b") == f"{address}/a/b"
        assert mirror.known_as(tmp_path) == str(tmp_path)


def lines_there(address: str) -> list[int]:
    text, _ = line_parts.read(remote.Folder(address).folder("metrics"))
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_metrics_arrive_in_parts_and_a_killed_run_loses_none(address):
    """Steps 1 and 2 are saved; 3 was sent and is done again; 4 was never sent."""
    with opened(address) as one:
        writer = metrics.Writer(one.folder, tensorboard=False)
        mirror.grow(writer.path)
        for step in (1, 2, 3):
            writer.write(step, {"loss": 1.0})
            mirror.publish(writer.path)
            assert lines_there(address) == list(range(1, step + 1))
        assert set(remote.Folder(address).folder("metrics").sizes()) == {
            f"00000-0000{part}.jsonl" for part in range(4)
        }
        before = there(address)
        writer.write(4, {"loss": 1.0})
        writer.close()
    folder = remote.Folder(address)
    folder.clear()
    for name, content in before.items():
        folder.write(name, content)
    with opened(address) as one:
        writer = metrics.Writer(one.folder, tensorboard=False, resume_step=2)
        assert lines_there(address) == [1, 2, 3]  # until the new start has written
        mirror.grow(writer.path)
        assert lines_there(address) == [1, 2]
        writer.write(3, {"loss": 1.0})
    assert lines_there(address) == [1, 2, 3]
    assert "metrics.jsonl" not in there(address)


@pytest.mark.parametrize("killed_at", range(8))
def test_metrics_are_whole_whatever_is_killed_when(address, tmp_path, killed_at):
    """Killed after any write or deletion of a new generation, readers see no gap."""
    folder, path = remote.Folder(address), tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    parts = line_parts.LineParts(path, folder)
    parts.begin()
    with path.open("a") as file:
        file.write('{"step": 2}\n{"st')
    parts.push()
    assert line_parts.read(folder)[0] == b'{"step": 1}\n{"step": 2}\n'

    class Killed(Exception):
        pass

    done = []

    class Dying(remote.Folder):
        def write(self, name, data):
            self._act(lambda: super(Dying, self).write(name, data))

        def delete(self, name):
            self._act(lambda: super(Dying, self).delete(name))

        def _act(self, action):
            if len(done) >= killed_at:
                raise Killed
            done.append(action())

    path.write_text('{"step": 1}\n')
    again = line_parts.LineParts(path, Dying(address))
    try:
        again.begin()
        with path.open("a") as file:
            file.write('{"step": 2, "new": 1}\n')
        again.push()
    except Killed:
        assert killed_at < 4
    found = [json.loads(line) for line in line_parts.read(folder)[0].splitlines()]
    new = [{"step": 1}, {"step": 2, "new": 1}][: 1 + (killed_at > 3)]
    assert found == (new if killed_at else [{"step": 1}, {"step": 2}])


def test_many_parts_become_one(address, tmp_path, monkeypatch):
    monkeypatch.setattr(line_parts, "_MOST", 5)
    folder, path = remote.Folder(address), tmp_path / "metrics.jsonl"
    path.write_text("")
    parts = line_parts.LineParts(path, folder)
    parts.begin()
    for step in range(23):
        with path.open("a") as file:
            file.write(f"{step}\n")
        parts.push()
        assert line_parts.read(folder)[0].split() == [
            str(n).encode() for n in range(step + 1)
        ]
        assert len(folder.sizes()) <= 5


def test_a_reader_meets_a_generation_that_replaces_what_it_has_listed(
    address, tmp_path, monkeypatch
):
    folder, path = remote.Folder(address), tmp_path / "metrics.jsonl"
    path.write_text("1\n2\n")
    parts = line_parts.LineParts(path, folder)
    parts.begin()
    listed, sizes = [], remote.Folder.sizes

    def replaced_after(self):
        found = sizes(self)
        listed.append(found)
        if len(listed) == 1:
            parts.begin()
        return found

    monkeypatch.setattr(remote.Folder, "sizes", replaced_after)
    assert line_parts.read(folder)[0] == b"1\n2\n"
    assert len(listed) > 2


def test_a_part_that_is_missing_is_named(address, tmp_path, caplog):
    folder = remote.Folder(address)
    for part in (0, 1, 3):
        folder.write(f"00004-{part:05d}.jsonl", b"%d\n" % part)
    folder.write("00005-00001.jsonl", b"never begun\n")
    assert line_parts.read(folder)[0] == b"0\n1\n"
    assert "part 2 of generation 4 is missing" in caplog.text
    assert line_parts.read(remote.Folder(f"{address}/nothing")) == (b"", 0.0)
