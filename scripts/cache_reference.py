"""Compute the reference log-probs of a recipe's data once, sharded and resumable.

  python scripts/cache_reference.py --config=configs/internvl2_8b_mpo.py \
      --workdir=runs/8b --config.data.meta=/data/MMPR/meta.json

train.py does this itself where it is missing; run it alone to use another slice, or to
share one cache between runs (--config.reference.cache=DIR). The cache is keyed by the
reference weights and architecture, compute dtype, attention, tokenizer, template, tile
policy and the content of every record; training refuses one whose key differs and says
where.
"""

from __future__ import annotations

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from mpo_jax import config as config_lib
from mpo_jax.run import addresses, parameters, scoring, setup, stages
from mpo_jax.train import reference
from mpo_jax.utils import cli, progress, runtime

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/internvl2_8b_mpo.py", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run", required=True)


def main(argv: list[str]) -> None:
    del argv
    cfg: config_lib.RunConfig = _CONFIG.value
    if cfg.reference.mode != "cache":
        raise app.UsageError(f"reference.mode={cfg.reference.mode!r}: nothing to cache")
    runtime.initialise(cfg.hosts)
    run = setup.setup(cfg, _WORKDIR.value)
    with addresses.mirrored(run):
        cache(run)


def cache(run: setup.Setup) -> None:
    """Compute what is missing, and say how much there is."""
    cfg = run.cfg
    index = stages.prepare_index(run, cfg.data.meta)
    plan = stages.make_plan(run, index)
    params = parameters.reference_params(run, cfg.reference.path)
    wanted = stages.planned_records(plan, stages.num_steps(cfg, plan))
    values = scoring.prepare_reference(
        scoring.reference_scorer(run, index, wanted),
        wanted,
        fingerprint=reference.fingerprint(params),
        params=lambda: params,
        directory=cfg.reference.cache,
    )
    done = ~np.isnan(values).any(axis=1)
    progress.console().print(
        f"{done.sum():,} of {len(index):,} records have reference log-probs; mean "
        f"chosen {values[done, 0].mean():.2f}, rejected {values[done, 1].mean():.2f}."
    )


if __name__ == "__main__":
    cli.run(main)
