"""Items as questions: files of JSON lines that ``generate`` answers, and pictures.

Below a work directory stand ``questions/PART.jsonl`` and ``images/HASH.png``: each
picture once, by its content, as it is in the benchmark's files. A part has one limit of
tiles and one of new tokens, as an engine has.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence

from mpo_jax import ledger
from mpo_jax.evals import benchmark, sources
from mpo_jax.utils import atomic

QUESTIONS, IMAGES = "questions", "images"
_INDEX = "parts.json"
_SUFFIXES = (
    (b"\x89PNG", ".png"),
    (b"\xff\xd8", ".jpg"),
    (b"GIF8", ".gif"),
    (b"RIFF", ".webp"),
    (b"BM", ".bmp"),
)


@dataclasses.dataclass(frozen=True, order=True)
class Part:
    """Items of a benchmark that are asked under the same limits.

    Attributes:
      benchmark, protocol, mode: names.
      max_tiles, max_new_tokens: the limits.
    """

    benchmark: str
    protocol: str
    mode: str
    max_tiles: int
    max_new_tokens: int

    @property
    def name(self) -> str:
        """Of its files."""
        limits = f"{self.max_tiles}tiles_{self.max_new_tokens}tokens"
        return f"{self.benchmark}.{self.protocol}.{self.mode}.{limits}"


@dataclasses.dataclass(frozen=True)
class Question:
    """An item as it is asked.

    Attributes:
      part: that it belongs to.
      id: of the item.
      text, system: of the message.
      images: paths below the work directory.
    """

    part: Part
    id: str
    text: str
    system: str | None
    images: tuple[str, ...]

    @property
    def line(self) -> str:
        """For ``generate.questions``."""
        found: dict[str, object] = {"id": self.id, "question": self.text}
        if self.images:
            found["image"] = list(self.images)
        if self.system is not None:
            found["system"] = self.system
        return json.dumps(found, ensure_ascii=False) + "\n"


class Pictures:
    """The pictures of items in a work directory, each once."""

    def __init__(self, workdir: pathlib.Path, folder: sources.Folder):
        """
        Args:
          workdir: where ``images/`` stands.
          folder: of the benchmark's files.
        """
        self._workdir, self._folder = workdir, folder
        self._known: dict[str, str] = {}

    def put(self, image: sources.Image) -> str:
        """Path of a picture below the work directory, where it is from now on.

        Raises:
          BadRecord: there is none.
        """
        if isinstance(image, bytes):
            return self._put(image)
        if image not in self._known:
            self._known[image] = self._put(sources.image_bytes(image, self._folder))
        return self._known[image]

    def _put(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()[:32]
        suffix = next((s for head, s in _SUFFIXES if data.startswith(head)), "")
        name = f"{IMAGES}/{digest}{suffix}"
        path = self._workdir / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_whole(path, lambda temporary: _write(temporary, data))
        return name


def _write(path: pathlib.Path, data: bytes) -> None:
    path.write_bytes(data)


def path_of(part: Part, workdir: pathlib.Path) -> pathlib.Path:
    """Of a part's questions."""
    return workdir / QUESTIONS / f"{part.name}.jsonl"


def write(found: Sequence[Question], workdir: pathlib.Path) -> None:
    """Write questions by part, in order, and which parts there are, each file whole."""
    parts: dict[Part, list[Question]] = {}
    for question in found:
        parts.setdefault(question.part, []).append(question)
    (workdir / QUESTIONS).mkdir(parents=True, exist_ok=True)
    for part, questions in parts.items():
        text = "".join(question.line for question in questions)
        atomic.write_whole(path_of(part, workdir), functools.partial(_text, text=text))
    index = json.dumps([dataclasses.asdict(part) for part in parts], indent=1) + "\n"
    atomic.write_whole(
        workdir / QUESTIONS / _INDEX, functools.partial(_text, text=index)
    )


def _text(path: pathlib.Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace")


def parts(workdir: pathlib.Path) -> list[Part]:
    """The parts that :func:`write` wrote last."""
    text = (workdir / QUESTIONS / _INDEX).read_text(encoding="utf-8")
    return [Part(**fields) for fields in json.loads(text)]


def of_item(
    item: benchmark.Item,
    protocol: benchmark.Protocol,
    part: Part,
    pictures: Pictures,
) -> Question:
    """An item under a protocol.

    Args:
      part: names benchmark, protocol and mode; limits above 0 replace the protocol's.

    Raises:
      BadRecord: it has no question, or a picture is missing.
    """
    if not item.question:
        raise ledger.BadRecord(
            "bad_field", "the benchmark's files here have no questions, only answers"
        )
    ask = protocol.ask(item, part.mode)
    part = dataclasses.replace(
        part,
        max_tiles=part.max_tiles or ask.max_tiles,
        max_new_tokens=part.max_new_tokens or ask.max_new_tokens,
    )
    images = tuple(pictures.put(image) for image in item.images)
    return Question(part, item.id, ask.text, ask.system, images)


def limited(items: Sequence[benchmark.Item], limit: int) -> list[benchmark.Item]:
    """About `limit` items, spread evenly, groups whole; 0 takes all."""
    if not limit or limit >= len(items):
        return list(items)
    groups = list(dict.fromkeys(_group(item) for item in items))
    number = max(1, round(limit * len(groups) / len(items)))
    chosen = {groups[k * len(groups) // number] for k in range(number)}
    return [item for item in items if _group(item) in chosen]


def _group(item: benchmark.Item) -> tuple[str, str]:
    return (item.group, "" if item.group else item.id)
