"""Where the files of a source lie: paths of meta.json to paths here or to addresses.

Relative paths are relative to the folder of meta.json, or to its parent where they
begin with the folder's own name, as in MMPR as released. ``reroot`` replaces a leading
path, of images as well. Folders may lie in a bucket, wherever meta.json is.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from absl import logging

from mpo_jax import ledger
from mpo_jax.mmpr import annotations
from mpo_jax.utils import located, objects

_HEAD = 1 << 20
_PEEK = 100  # lines of an annotation that are looked at for a reroot of images


class Place(NamedTuple):
    """Where the files of a source lie; what its records' image paths depend on.

    Attributes:
      root: absolute folder, or address of one, that image paths are relative to.
      annotation: absolute path or address of the JSON-lines file.
      reroot: ``OLD=NEW``, replaces the leading path of absolute image paths and of
        URLs; NEW is absolute or an address. "" replaces nothing.
      anywhere: absolute image paths need not lie below `root` (meta.json has the
        root "").
    """

    root: str
    annotation: str
    reroot: str = ""
    anywhere: bool = False


def moved(path: str, rule: str) -> str:
    """`path` with its leading part replaced by ``OLD=NEW``; as it is if none matches.

    Only whole components match; OLD may be the beginning of a URL.
    """
    if not _begins(path, rule):
        return path
    old, _, new = rule.partition("=")
    return located.join(new, path[len(old) :].lstrip("/"))


def _begins(path: str, rule: str) -> bool:
    old = rule.partition("=")[0]
    return bool(rule) and (path + "/").startswith(old.rstrip("/") + "/")


def _normal(path: str) -> str:
    """A path or URL in the one form in which beginnings are compared."""
    if objects.is_store(path):
        return located.normal(path)
    if not path or "://" in path:
        return path.rstrip("/")
    return os.path.normpath(os.path.expanduser(path))


def _begin_of_urls(entry: Mapping[str, Any]) -> str:
    """What the URLs of an entry have in common: one rule moves them all."""
    urls = [entry.get("root"), os.path.dirname(str(entry.get("annotation")))]
    parts = [url.split("/") for url in urls if isinstance(url, str) and "://" in url]
    return "/".join(os.path.commonprefix(parts))


class Finder:
    """Turns the paths of one meta.json into paths on this machine and addresses."""

    def __init__(self, meta_path: str, reroot: str):
        """`meta_path`: absolute, or an address."""
        self.meta_path, self.folder = meta_path, located.parent(meta_path)
        self.given, self.rule = reroot, ""
        self._rule_used = self._parent_used = False
        self._places: list[Place] = []
        # Sources share folders; a store is asked once for each.
        self._is_file = functools.cache(located.is_file)
        self._is_folder = functools.cache(located.is_folder)
        if reroot:
            old, equals, new = reroot.partition("=")
            if not (old and equals and new):
                raise ValueError(
                    f"reroot {reroot!r} must read OLD=NEW, both not empty, such as "
                    "/mnt/cluster/MMPR=/data/MMPR"
                )
            new = located.normal(located.join(self.folder, os.path.expanduser(new)))
            self.rule = f"{_normal(old)}={new}"

    def place(self, where: str, entry: Mapping[str, Any]) -> Place:
        """Where the files of an entry lie; the annotation exists and is one."""
        values = {key: self._value(where, entry, key) for key in ("root", "annotation")}
        annotation, found = self._find(values["annotation"], self._is_file)
        if found:
            annotations.check(annotation, where)
        if not annotation.endswith(".jsonl"):
            raise ValueError(
                f"{where}: annotation {annotation!r} must end in .jsonl: JSON lines, "
                "one object per line. scripts/import_data.py writes such files from "
                "other layouts"
            )
        if not found:
            raise FileNotFoundError(
                f"{where}: annotation {annotation!r} does not exist; "
                f"{self._remedy(_normal(entry['annotation']))}"
            )
        root, _ = self._find(values["root"], self._is_folder)
        anywhere = not values["root"]
        self._places.append(Place(root, annotation, self.rule, anywhere))
        return self._places[-1]

    def finish(self) -> None:
        """After all entries: one line about the parent folder; a rule must match."""
        if self._parent_used:
            logging.warning(
                "%s: paths that begin with %r are below %s, as in MMPR as released",
                self.meta_path,
                located.name(self.folder),
                located.parent(self.folder),
            )
        if self.rule and not self._rule_used and not self._moves_images():
            raise ValueError(
                f"reroot {self.given!r}: no root, annotation or absolute image path of "
                f"{self.meta_path} begins with {self.given.partition('=')[0]!r}; the "
                f"first root is {self._places[0].root!r}"
            )

    def _value(self, where: str, entry: Mapping[str, Any], key: str) -> str:
        """Path of an entry after reroot; only a root may be empty."""
        value = entry.get(key)
        empty = value == "" and key == "annotation"
        if not isinstance(value, str) or empty or "\0" in value:
            none = "; '.' where there are no images" if key == "root" else ""
            raise ValueError(
                f"{where}: {key} must be a path, got {ledger.short(value)}{none}"
            )
        path = _normal(value)
        self._rule_used |= _begins(path, self.rule)
        path = moved(path, self.rule)
        if "://" in path:
            rule = ledger.option("reroot", f"{_begin_of_urls(entry)}=/FOLDER")
            remedy = f"copy or mount the data and say where it is with {rule}"
            if not objects.is_store(path):
                raise ValueError(f"{where}: {key} {value!r} is a URL; {remedy}")
            try:
                objects.connect(path)
            except ValueError as error:
                raise ValueError(
                    f"{where}: {key} {value!r} is a URL that cannot be read here: "
                    f"{error}. Or {remedy}"
                ) from error
        return path

    def _find(self, value: str, exists: Callable[[str], bool]) -> tuple[str, bool]:
        """Where `value` is, from the folder of meta.json or its parent, and if it is.

        Without a file there, the former.
        """
        path = located.normal(located.join(self.folder, value))
        if exists(path):
            return path, True
        if value.split("/")[0] == located.name(self.folder):
            above = located.normal(located.join(located.parent(self.folder), value))
            if exists(above):
                self._parent_used = True
                return above, True
        return path, False

    def _remedy(self, value: str) -> str:
        """A rule under which an annotation is found, if there is one."""
        parts = pathlib.PurePath(value).parts
        for count in range(1, len(parts)):
            rest = os.path.join(*parts[count:])
            if located.is_file(located.join(self.folder, rest)):
                old = os.path.join(*parts[:count])
                rule = ledger.option("reroot", f"{old}=.")
                return f"{rest!r} is in {self.folder!r}: give {rule}"
        if "\\" in value:
            return "write / instead of \\"
        rule = ledger.option("reroot", "OLD=NEW")
        if objects.is_store(self.folder):
            return f"upload the annotations, or replace the leading path with {rule}"
        return f"unpack the annotations, or replace the leading path with {rule}"

    def _moves_images(self) -> bool:
        """Whether the rule matches an image that the first lines name."""
        for path in {place.annotation for place in self._places}:
            for name in _first_images(path):
                if _begins(name, self.rule):
                    return True
        return False


def _first_images(annotation: str) -> Iterator[str]:
    lines = located.head(annotation, _HEAD).split(b"\n")
    for line in itertools.islice(lines, _PEEK):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the ledger will have it, or it is cut
        images = record.get("image") if isinstance(record, dict) else None
        for name in images if isinstance(images, list) else [images]:
            if isinstance(name, str):
                yield name
