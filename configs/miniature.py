"""The paper's claim in miniature: five methods, five seeds, two CPU cores, an hour.

  python scripts/miniature.py --config=configs/miniature.py --workdir=runs/miniature

or `make miniature`; docs/miniature.md has what it found. Each method has the best of
three learning rates. ``:search`` finds them, on a seed that shares no drawing, model or
sample with those that are reported:

  python scripts/miniature.py --config=configs/miniature.py:search \
      --workdir=runs/search

``:quickstart`` is its small form, one seed and MPO alone (`make quickstart`):

  python scripts/miniature.py --config=configs/miniature.py:quickstart \
      --workdir=runs/quickstart

Hardware: 2 CPU cores, 55 minutes (the small form: 5); more
cores, more seeds at a time.
"""

from mpo_jax.miniature import config


def get_config(form: str = "miniature") -> config.MiniatureConfig:
    forms = {
        "miniature": config.miniature,
        "search": config.search,
        "quickstart": config.quickstart,
    }
    if form not in forms:
        raise ValueError(f"form={form!r}: use one of {', '.join(forms)}")
    return forms[form]()
