"""Files of benchmarks with real small pictures, in each of their formats."""

from __future__ import annotations

import base64
import csv
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: int = 24) -> bytes:
    """A PNG of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(out, "PNG")
    return out.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def write_jsonl(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_tsv(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
    """As pandas writes it for VLMEvalKit; pictures are given as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        out = csv.DictWriter(file, list(rows[0]), delimiter="\t", lineterminator="\n")
        out.writeheader()
        for row in rows:
            out.writerow({name: _cell(value) for name, value in row.items()})
    return path


def _cell(value: Any) -> Any:
    return base64_of(value) if isinstance(value, bytes) else value


def write_parquet(path: pathlib.Path, table: Mapping[str, Sequence[Any]]):
    """Columns; pictures are given as the hub has them, see :func:`hub_image`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(table)), path)
    return path


def hub_image(data: bytes | None, path: str | None = None) -> dict[str, Any]:
    return {"bytes": data, "path": path}
