"""What pages for people share: their head, data that ends no script, a script's words.

A page is one file that loads nothing: its content policy admits its own scripts and
pictures. What data and models say reaches it escaped, or as JSON that a script shows
through ``textContent``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from typing import Any

DOM = """
const byId = (id) => document.getElementById(id);

function el(tag, className, text, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined && text !== null) node.textContent = text;
  node.append(...children);
  return node;
}
"""
"""Of scripts that build what they show: an element by its id, and a new one."""

_SURROGATE = re.compile("[\ud800-\udfff]")


def safe_json(value: Any) -> str:
    """JSON that ends no script and opens no comment, as JavaScript too.

    ``<`` stands in JSON within texts alone, where it may be written as an escape. Half
    a surrogate pair becomes U+FFFD, which is how a browser would show it.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    text = _SURROGATE.sub("\ufffd", text)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def head(title: str, style: str, policy: str) -> str:
    """Everything up to the page's heading.

    Args:
      title: any text.
      style, policy: our own: CSS, and what may be loaded.
    """
    safe = html.escape(title)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{safe}</title><style>{style}</style></head><body><h1>{safe}</h1>"
    )


def embedded_only(script: str) -> str:
    """The policy of a page that holds its pictures and exactly this script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
