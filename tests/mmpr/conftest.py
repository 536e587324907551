"""An index of three sources, for tests that look at one."""

from __future__ import annotations

import pytest
import tiny_mmpr


@pytest.fixture(scope="session")
def three_sources(tmp_path_factory):
    """An index of three sources; `a` repeats a record of its own, `b` one of `a`."""
    folder = tmp_path_factory.mktemp("report")
    tokenizer = tiny_mmpr.write_tokenizer(folder / "tokenizer")
    tiny_mmpr.write_image(folder / "i.png", 90, 40)
    tiny_mmpr.write_lines(
        folder / "a.jsonl",
        [tiny_mmpr.pair(1), tiny_mmpr.pair(1), tiny_mmpr.pair(2), b"broken <b>line"],
    )
    evil = "<script>alert(1)</script>"
    tiny_mmpr.write_lines(
        folder / "b.jsonl",
        [
            tiny_mmpr.pair(1),
            tiny_mmpr.pair(5, image="i.png", chosen=evil, question='Q" & <i>?'),
            tiny_mmpr.pair(6, chosen="z" * 7000),
        ],
    )
    (folder / "c.jsonl").touch()
    sources = {
        name: {"root": ".", "annotation": f"{key}.jsonl", **more}
        for name, key, more in [
            ("a", "a", {"repeat_time": 3, "length": 4}),
            ("<b>", "b", {"repeat_time": 0.5}),
            ("c", "c", {}),
        ]
    }
    meta = tiny_mmpr.write_meta(folder, sources)
    return tiny_mmpr.build_index(meta, folder / "out", tokenizer)
