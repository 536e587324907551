"""What a file is, told from its first bytes, where it is not what it should be.

Downloads leave pointers and error pages, tools compress or write other encodings.
Each such file deserves one message with its name, not the words of a parser.
"""

from __future__ import annotations

import dataclasses

_ISO_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC"}


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
      name: with its article, for messages.
      remedy: what to do to get the file that was meant.
    """

    name: str
    remedy: str


_LFS = Kind("a git-lfs pointer", "run `git lfs pull` where it was cloned")
_HTML = Kind(
    "an HTML page", "the download gave an error or login page; fetch the file again"
)
_PICTURE = "convert it to PNG or JPEG"
_UNPACK = "unpack it"

_MAGIC = {
    b"version https://git-lfs": _LFS,
    b"\x1f\x8b": Kind("compressed with gzip", "decompress it with `gunzip`"),
    b"PK\x03\x04": Kind("a ZIP archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": Kind(
        "compressed with Zstandard", "decompress it with `unzstd`"
    ),
    b"\xfd7zXZ\x00": Kind("compressed with xz", "decompress it with `unxz`"),
    b"BZh": Kind("compressed with bzip2", "decompress it with `bunzip2`"),
    b"7z\xbc\xaf\x27\x1c": Kind("a 7-Zip archive", _UNPACK),
    b"Rar!": Kind("a RAR archive", _UNPACK),
    b"PAR1": Kind("a Parquet file", "scripts/import_data.py reads Parquet"),
    b"ARROW1": Kind("an Arrow file", "write it as JSON lines"),
    b"%PDF": Kind("a PDF document", _PICTURE),
    b"\x00\x00\x01\x00": Kind("an icon file", _PICTURE),
    b"8BPS": Kind("a Photoshop file", _PICTURE),
    b"\xff\x0a": Kind("a JPEG XL image", _PICTURE),
    b"\x00\x00\x00\x0cJXL ": Kind("a JPEG XL image", _PICTURE),
    b"\x00\x00\x00\x0cjP  ": Kind("a JPEG 2000 image", _PICTURE),
}
_UTF_REMEDY = "write it as UTF-8: `iconv -f {name} -t UTF-8 OLD > NEW`"
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def of_bytes(head: bytes) -> Kind | None:
    """Kind of a file that begins with `head`; None where that is nothing known.

    Images of the formats that are read, and text in UTF-8, are nothing known.
    """
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[4:8] == b"ftyp" and head[8:12] in _ISO_BRANDS:
        return Kind(f"an {_ISO_BRANDS[head[8:12]]} image", _PICTURE)
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return _encoded(name)
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return _HTML
    if start.startswith((b"<svg", b"<?xml")):
        return Kind("an XML (perhaps SVG) file", _PICTURE)
    return None


def of_text(head: bytes) -> Kind | None:
    """Like :func:`of_bytes`, for a file that should be text in UTF-8.

    Args:
      head: the beginning of the file, cut after a whole line or anywhere.
    """
    kind = of_bytes(head)
    if kind is not None:
        return kind
    if head and not head.strip(b"\0"):
        return Kind("filled with NUL bytes", "a copy broke off; copy it again")
    if head.count(b"\0") * 3 > len(head):  # Latin letters in UTF-16 without a mark
        return _encoded("UTF-16BE" if head[0] == 0 else "UTF-16LE")
    return None


def of_undecodable(text: bytes) -> Kind:
    """What text that is no UTF-8 may be: the encoding is a guess, and called one."""
    try:
        decoded = text.decode("gb18030")
    except UnicodeDecodeError:
        decoded = ""
    foreign = [c for c in decoded if ord(c) > 127]
    # GB18030 decodes nearly anything; common Han characters tell that it was meant.
    han = sum("\u4e00" <= c <= "\u9fff" or "\u3000" <= c <= "\u303f" or c > "\uff00"
              for c in foreign)  # fmt: skip
    if foreign and han > 0.9 * len(foreign):
        return _encoded("GB18030", "probably ")
    return Kind(
        "text in another encoding than UTF-8",
        "write it as UTF-8: `iconv -f ENCODING -t UTF-8 OLD > NEW`, with ENCODING such "
        "as CP1252, BIG5 or SHIFT_JIS",
    )


def _encoded(name: str, doubt: str = "") -> Kind:
    return Kind(f"text in the encoding {doubt}{name}", _UTF_REMEDY.format(name=name))
