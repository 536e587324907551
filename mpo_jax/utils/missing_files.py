"""Why a file that a record names does not exist, and what would help.

Looked up only when a file does not exist.
"""

from __future__ import annotations

import os
import re
import unicodedata

from mpo_jax import ledger

_ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".7z", ".rar", ".parquet")


def why_missing(path: str) -> str:
    """What is wrong with the path of a file that cannot be opened, and what to do.

    Looks at the folders above it, and at nearby names, but lists no folder.
    """
    parts = os.path.abspath(path).split("/")
    known = len(parts)
    while known > 1 and not os.path.lexists("/".join(parts[:known])):
        known -= 1
    found = "/".join(parts[:known]) or "/"
    if known == len(parts):
        what = "a link to nowhere" if os.path.islink(found) else "no file"
        return f"is {what}"
    missing = parts[known]
    if os.path.isfile(found):
        if found.lower().endswith(_ARCHIVES):
            return f"does not exist: {found!r} is an archive; unpack it"
        return f"does not exist: {found!r} is a file, not a folder"
    if os.path.islink(found) and not os.path.exists(found):
        return f"does not exist: {found!r} is a link to nowhere"
    hint = _hint(found, missing, parts[known + 1 :])
    hint = hint or "check root in meta.json, and that the images are unpacked"
    return f"does not exist: there is no {ledger.short(missing)} in {found!r}; {hint}"


def _hint(found: str, missing: str, rest: list[str]) -> str | None:
    """What would help; `missing` is the first name that the folder `found` lacks."""
    there = os.path.join(found, *rest) if rest else ""
    if missing == os.path.basename(found) and there and os.path.exists(there):
        return f"{there!r} is there: {missing!r} stands in root and in image"
    for form in ("NFC", "NFD"):
        other = unicodedata.normalize(form, missing)
        if other != missing and os.path.lexists(os.path.join(found, other)):
            return (
                f"there is one whose letters are encoded as {form}; write it so in the "
                "record, or rename the file"
            )
    stem, dot = os.path.splitext(missing)
    cases = (stem + dot.lower(), stem + dot.upper(), missing.lower(), missing.upper())
    for other in cases:
        if other != missing and os.path.lexists(os.path.join(found, other)):
            return f"there is {other!r}; upper and lower case differ"
    if "\\" in missing:
        return "write / instead of \\"
    if missing != missing.strip():
        return "the name begins or ends in white space"
    if re.search(r"\.\w{3,4}\s*[,;]", missing):
        return "if several files are meant, write a JSON list"
    if missing.lower().endswith(_ARCHIVES):
        return "records name files, not members of archives: unpack it"
    if re.fullmatch("[A-Za-z]:", missing):
        return f"{missing!r} is a drive of Windows; write the path on this machine"
    if missing.startswith(("~", "$")):
        return f"{missing!r} is not replaced in records; write the whole path"
    return None
