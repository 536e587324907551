"""A headless browser: what it makes of a page."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import urllib.parse

import pytest


def find() -> str:
    """Path of a chromium; skips where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "chrome"):
        if path := shutil.which(name):
            return path
    pytest.skip("no chromium to open the page with")


def dom(browser: str, path: pathlib.Path, profile: pathlib.Path, **state: str) -> str:
    """The page's document after its script has run.

    Args:
      profile: folder that the browser may fill.
      state: what stands in the address.
    """
    flags = ["--headless", "--no-sandbox", "--disable-gpu"]
    command = [browser, *flags, "--virtual-time-budget=5000", "--dump-dom"]
    command += [f"--user-data-dir={profile}"]
    address = "#" + urllib.parse.urlencode(state) if state else ""
    url = f"{path.resolve().as_uri()}{address}"
    done = subprocess.run([*command, url], capture_output=True, timeout=120, check=True)
    return done.stdout.decode("utf-8")
