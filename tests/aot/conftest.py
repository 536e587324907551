"""Everything here needs the TPU compiler, and no TPU."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("libtpu") is None:
    pytest.skip("libtpu (the TPU compiler) is absent", allow_module_level=True)
