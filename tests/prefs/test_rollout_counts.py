"""How many rollouts each source has."""

from __future__ import annotations

import json
import os
import threading

import pytest

from mpo_jax.prefs import rollout_counts


def test_rollouts_count_by_source(tmp_path):
    path = tmp_path / "own.jsonl"
    lines = [
        *[{"source": "a", "response": "x"}] * 3,
        {"source": "b", "responses": ["x", {"response": "y"}]},
        *({"response": "x"}, {"source": "", "response": "x"}),
        *({"source": "../a"}, {"source": 3}, [1]),
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n{\n"
    path.write_text(text + json.dumps({"source": "a"}))
    assert rollout_counts.by_source(str(path)) == {"a": 4, "b": 2, "own": 2}


def test_what_cannot_be_read_twice_is_refused(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=lambda: open(path, "wb").close())
    writer.start()
    with pytest.raises(ValueError, match="pipe is no regular file.*copy it into one"):
        rollout_counts.by_source(str(path))
    writer.join()
