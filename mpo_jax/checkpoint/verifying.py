"""Is a checkpoint what was saved? Decided by all processes together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from mpo_jax.checkpoint import agreement, reading
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import manifest as manifest_lib

_SHOWN = 10
_NO_MANIFEST = (
    "it was written by an older version, or its run was killed just after the save"
)


class Damaged(ValueError):
    """A checkpoint is not what was saved; the message names its files."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What is known of a checkpoint.

    Attributes:
      problems: what is wrong with it, one line per file; none if it is good.
      unverified: why it could not be compared with a manifest; "" if it was.
      files, size: how many, and how many bytes, were compared.
    """

    problems: tuple[str, ...]
    unverified: str
    files: int
    size: int

    def __str__(self) -> str:
        if self.problems:
            return listed(self.problems)
        if self.unverified:
            return f"not verified: {self.unverified}"
        return f"its {self.files} files ({_bytes(self.size)}) are as they were saved"


def of(directory: Any, *, step: int | None = None, within: str = "") -> Verdict:
    """Compare a checkpoint with its manifest; all processes call it, with one result.

    Each compares its share of the files. Where there is no whole manifest, all arrays
    are read once, and what can be compared is.

    Args:
      directory: a place of ``places.absolute``.
      step: that the manifest must name.
      within: only files of this folder (``params/``) and those in none; "" takes all.

    Raises:
      OSError: if a process cannot read a file that is there, or sees other files than
        the first: that says nothing about the checkpoint.
    """
    part, parts = jax.process_index(), jax.process_count()
    try:
        own = _own(directory, step=step, within=within, part=part, parts=parts)
    except OSError as error:
        if parts == 1:
            raise
        own = {"error": str(error)[:500], "problems": []}
    everyone = agreement.gathered(own)
    for number, said in enumerate(everyone):
        if "error" in said:
            raise OSError(
                f"{directory}: process {number} of {parts} cannot read it: "
                f"{said['error']}; it was left as it is: look at the storage of that "
                "host and start again"
            )
        if said["seen"] != everyone[0]["seen"]:
            raise OSError(
                f"{directory}: process {number} of {parts} sees other files there than "
                "process 0; name a work directory that all hosts share"
            )
    problems = list(dict.fromkeys(p for said in everyone for p in said["problems"]))
    cut = sum(said["count"] - len(said["problems"]) for said in everyone)
    if cut:
        problems.append(f"… and {cut} more")
    return Verdict(
        problems=tuple(problems),
        unverified=everyone[0]["unverified"],
        files=sum(said["files"] for said in everyone),
        size=sum(said["size"] for said in everyone),
    )


def _own(
    directory: Any, *, step: int | None, within: str, part: int, parts: int
) -> dict[str, Any]:
    """What this process finds, of its share."""
    files = files_lib.of(directory)
    listing = files.listed()
    found = manifest_lib.read(files, listing)
    mine = manifest_lib.share(found, within=within, part=part, parts=parts)
    problems = [*found.problems, *_step_problem(found, step)]
    problems += manifest_lib.compare(files, listing, found, mine)
    if found.missing and not problems:
        problems = reading.structure(files, listing, within=within)
        if not problems and not within:
            problems = reading.arrays(directory, files, listing, part=part, parts=parts)
    names = sorted((name, stored.size) for name, stored in listing.items())
    return {
        "problems": problems,
        "unverified": f"{found.missing}; {_NO_MANIFEST}" if found.missing else "",
        "files": len(mine),
        "size": sum(int(found.files[name]["size"]) for name in mine),
        "seen": files_lib.blake2b(f"{found.fingerprint}{names}".encode()).hexdigest(),
    }


def _step_problem(found: manifest_lib.Manifest, step: int | None) -> list[str]:
    if None in (step, found.step) or step == found.step:
        return []
    return [f"its manifest is that of step {found.step}: the directory was renamed"]


def at_a_glance(directory: Any, *, within: str) -> list[str]:
    """What is wrong with a checkpoint as far as it shows without reading arrays.

    By this process alone: files that are missing or have another size, or another
    checksum where the store keeps one, and what is no JSON.
    """
    files = files_lib.of(directory)
    listing = files.listed()
    found = manifest_lib.read(files, listing)
    names = manifest_lib.share(found, within=within, part=0, parts=1)
    problems = list(found.problems)
    problems += manifest_lib.compare(files, listing, found, names, contents=False)
    return problems or reading.structure(files, listing, within=within)


def listed(problems: Sequence[str]) -> str:
    """Problems one to a line, the first of many."""
    more = len(problems) - _SHOWN
    shown = [*problems[:_SHOWN], *([f"… and {more} more"] if more > 0 else [])]
    return "\n".join(f"  {line}" for line in shown)


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
