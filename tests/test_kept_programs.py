"""Compiled programs of tests: what is kept between runs."""

from __future__ import annotations

import os
import time

import programs


def test_programs_that_no_run_asks_for_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "ROOT", tmp_path)
    folder = tmp_path / "machine"
    folder.mkdir()
    long_ago = time.time() - programs.UNUSED_S - 60
    for name, read, written in (
        ("unused", long_ago, long_ago),
        ("read", time.time(), long_ago),
        ("new", long_ago, time.time()),
    ):
        (folder / name).touch()
        os.utime(folder / name, (read, written))
    programs.drop_unused()
    assert sorted(path.name for path in folder.iterdir()) == ["new", "read"]
