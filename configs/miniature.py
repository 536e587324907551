"""The paper's claim in miniature: five methods, five seeds, two CPU cores, an hour.

  python scripts/miniature.py --config=configs/miniature.py --workdir=runs/miniature

or `make miniature`; docs/miniature.md has what is known so far. All methods have one
learning rate as long as the search for their own has not been made. It takes seeds that
share no drawing, model or sample with those that are reported, a rate at a time:

  python scripts/miniature.py --config=configs/miniature.py --workdir=runs/search_1e-3 \
      --config.seeds=100,101 --config.learning_rates=1e-3,1e-3,1e-3,1e-3,1e-3

``:quickstart`` is its small form, one seed and MPO alone (`make quickstart`):

  python scripts/miniature.py --config=configs/miniature.py:quickstart \
      --workdir=runs/quickstart

Hardware: 2 CPU cores, an hour by estimate (the small form: 5 minutes); more cores, more
seeds at a time.
"""

from mpo_jax.miniature import config


def get_config(form: str = "miniature") -> config.MiniatureConfig:
    forms = {"miniature": config.miniature, "quickstart": config.quickstart}
    if form not in forms:
        raise ValueError(f"form={form!r}: use one of {', '.join(forms)}")
    return forms[form]()
