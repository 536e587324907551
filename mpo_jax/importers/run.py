"""An import: inputs in, a folder of MMPR out, and what happened on the way."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mpo_jax import ledger
from mpo_jax.importers import inputs, layouts, messages, output, pictures, readers
from mpo_jax.importers.inputs import Input
from mpo_jax.importers.pairs import Pair, Rules

_PROBE = 20
"""Records that a layout is told from."""
_REPORT = 10_000
_MAX_FIELDS = 200
"""Fields that are counted by name; objects with random keys have many more."""


@dataclasses.dataclass
class Tally:
    """What became of one source.

    Attributes:
      source: the input.
      layout: name of its layout.
      detected: whether that was found out, not given.
      read, written: numbers of records.
      left_out: number by (reason, field).
      first: (line, detail) of the first of each.
      notes: number of records by what was changed in them.
      unused: number of records by field that was not carried over.
      images: number of images that written records name.
    """

    source: Input
    layout: str
    detected: bool
    read: int = 0
    written: int = 0
    images: int = 0
    left_out: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    first: dict[tuple[str, str], tuple[int, str]] = dataclasses.field(
        default_factory=dict
    )
    notes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unused: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add_bad(self, number: int, error: ledger.BadRecord) -> None:
        field = error.detail.split(":")[0].split("[")[0].split(" ")[0]
        self.left_out[error.reason, field] += 1
        self.first.setdefault((error.reason, field), (number, error.detail))

    def add_good(self, record: dict[str, Any], pair: Pair) -> None:
        self.written += 1
        self.images += len(pair.images)
        self.notes.update(pair.notes)
        for key, value in record.items():
            if key not in pair.used and value is not None:
                known = key in self.unused or len(self.unused) < _MAX_FIELDS
                self.unused[key if known else "(others)"] += 1


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything about an import but its inputs and its folder.

    Attributes:
      rules: what becomes of system texts and earlier turns.
      record_bytes: bound on a line or an item of a list.
      image_pixels: bound on an image that is stored.
      limit: records read of each input; 0 is all.
      copy_images: store images that are files as well.
    """

    rules: Rules
    record_bytes: int
    image_pixels: int
    limit: int = 0
    copy_images: bool = False


class NothingWritten(ValueError):
    """No record of any source could be used.

    Attributes:
      tallies: what became of the sources.
    """

    def __init__(self, tallies: list[Tally], ledger_path: pathlib.Path):
        super().__init__(
            f"no record could be imported; nothing is written but {ledger_path}, which "
            "names every line and why"
        )
        self.tallies = tallies


def import_data(
    sources: Sequence[Input],
    out: str | os.PathLike[str],
    plan: Plan,
    *,
    overwrite: bool = False,
    progress: Callable[[Tally], None] = lambda tally: None,
) -> list[Tally]:
    """Write the records of all sources as one MMPR data set.

    Args:
      sources: see :func:`mpo_jax.importers.inputs.find`.
      out: folder that appears when all is written.
      plan: rules and bounds.
      overwrite: replace an earlier import.
      progress: called when a layout is known, and every 10,000 records.

    Returns:
      What became of every source.

    Raises:
      FileExistsError: `out` is there.
      NothingWritten: its ledger lies beside, as ``OUT.ledger.jsonl``.
      ValueError: no or several layouts fit, an input cannot be read to its end, or it
        lies in `out`.
    """
    target = pathlib.Path(out).absolute()
    beside = target.with_name(f"{target.name}.{output.LEDGER}")
    _check_outside(sources, target)
    with output.building(target, overwrite=overwrite) as folder:
        store = pictures.Pictures(
            folder / "images", plan.image_pixels, plan.copy_images
        )
        tallies = []
        with output.Writer(folder, chosen_only=plan.rules.chosen_only) as writer:
            for source in sources:
                tallies.append(_import_one(source, plan, writer, store, progress))
                writer.end_source()
            writer.finish(_report(tallies, plan))
        if not any(tally.written for tally in tallies):
            os.replace(folder / output.LEDGER, beside)
            raise NothingWritten(tallies, beside)
    beside.unlink(missing_ok=True)  # of an earlier import that wrote nothing
    return tallies


def preview(source: Input, plan: Plan) -> Iterator[tuple[int, Any, Any]]:
    """The first records of an input and what they become; writes nothing.

    Yields:
      (number, record or BadRecord, MMPR line or BadRecord), `plan.limit` of them.
    """
    layout, items = _layout(source, plan)
    store = pictures.Pictures(None, plan.image_pixels, plan.copy_images)
    writer = output.Writer(None, chosen_only=plan.rules.chosen_only)
    rules = dataclasses.replace(plan.rules, tags=source.tags)
    for number, record in items:
        try:
            _, place, line = _convert(source, layout, number, record, rules, store)
            writer.write(source, place, line)
            yield number, record, line
        except ledger.BadRecord as error:
            yield number, record, error


def _import_one(
    source: Input,
    plan: Plan,
    writer: output.Writer,
    store: pictures.Pictures,
    progress: Callable[[Tally], None],
) -> Tally:
    layout, items = _layout(source, plan)
    tally = Tally(source, layout.name, detected=not source.layout)
    rules = dataclasses.replace(plan.rules, tags=source.tags)
    progress(tally)
    for number, record in items:
        tally.read += 1
        try:
            pair, place, line = _convert(source, layout, number, record, rules, store)
            writer.write(source, place, line)
            tally.add_good(record, pair)
        except ledger.BadRecord as error:
            tally.add_bad(number, error)
            entry = ledger.Entry(
                source.name, source.path, number, error.reason, error.detail
            )
            writer.leave_out(entry)
        if tally.read % _REPORT == 0:
            progress(tally)
    return tally


def _convert(
    source: Input,
    layout: layouts.Layout,
    number: int,
    record: Any,
    rules: Rules,
    store: pictures.Pictures,
) -> tuple[Pair, str, dict[str, Any]]:
    """The pair, the place of its images, and its line.

    Raises:
      BadRecord: it cannot be used.
    """
    if isinstance(record, ledger.BadRecord):
        raise record
    if not isinstance(record, dict):
        detail = f"record: must be an object, got {messages.short(record)}"
        raise ledger.BadRecord("bad_json", detail)
    try:
        pair = layout.convert(record, rules)
    except ledger.BadRecord as error:
        others = layouts.matching(record)
        if others and layout.name not in others:
            detail = f"{error.detail}; it looks like layout {others[0]}"
            raise ledger.BadRecord(error.reason, detail) from error
        raise
    place, images = store.place(pair.images, source.root)
    return pair, place, output.line_of(pair, images, source.path, number)


def _layout(source: Input, plan: Plan) -> tuple[layouts.Layout, Iterator[readers.Item]]:
    """The layout of an input, and all its items.

    Raises:
      ValueError: it cannot be told, or no record has what the layout needs.
    """
    items = inputs.rows(source, max_bytes=plan.record_bytes)
    if plan.limit:
        items = itertools.islice(items, plan.limit)
    head = list(itertools.islice(items, _PROBE))
    objects = [record for _, record in head if isinstance(record, dict)]
    if not objects:
        problem = f"{head[0][1]}"[:200] if head else "it is empty"
        raise ValueError(
            f"{source.path}: read as {source.kind}, its first {len(head)} records are "
            f"no JSON objects ({problem}); the file must hold one object a line, or a "
            "list of objects"
        )
    if source.layout:
        layout = layouts.LAYOUTS[source.layout]
    else:
        layout = layouts.detect(objects, source.path)
    if not plan.rules.chosen_only and not any(map(layouts.has_rejected, objects)):
        raise ValueError(
            f"{source.path}: layout {layout.name}, and none of the first "
            f"{len(objects)} records has a rejected answer (fields "
            f"{messages.names(objects[0])}); for SFT on the answers import with "
            "--chosen_only"
        )
    return layout, itertools.chain(head, items)


def _check_outside(sources: Sequence[Input], target: pathlib.Path) -> None:
    """An input inside the folder that is replaced would be lost."""
    for source in sources:
        for path in (os.path.abspath(source.path), source.root):
            if target == pathlib.Path(path) or target in pathlib.Path(path).parents:
                raise ValueError(f"input {path} lies in --out {target}; name another")


def _report(tallies: Sequence[Tally], plan: Plan) -> dict[str, Any]:
    """What import.json says."""
    rules = {
        name: getattr(plan.rules, name) for name in ("chosen_only", "system", "history")
    }
    return {
        "rules": rules,
        "limit": plan.limit,
        "copy_images": plan.copy_images,
        "sources": {
            tally.source.name: {
                "path": tally.source.path,
                "kind": tally.source.kind,
                "layout": tally.layout,
                "image_root": tally.source.root,
                "columns": dict(tally.source.columns),
                "read": tally.read,
                "written": tally.written,
                "left_out": {
                    f"{reason}: {field}": count
                    for (reason, field), count in sorted(tally.left_out.items())
                },
                "notes": dict(tally.notes),
                "not_carried_over": dict(tally.unused),
            }
            for tally in tallies
        },
    }
