"""The trained model as other programs read it."""

from __future__ import annotations

from mpo_jax.convert import hf, layouts
from mpo_jax.nn import params as params_lib
from mpo_jax.run import addresses, setup
from mpo_jax.utils import lease, progress, runtime, watchdog


def export(run: setup.Setup, params: params_lib.Params) -> None:
    """Write ``<workdir>/hf``: weights in bf16, other files as the run has them."""
    watchdog.beat("the export")
    lease.check()
    target, files = run.at(addresses.EXPORT), run.source.files
    notes = hf.save(
        target,
        params,
        run.model,
        source_dir=files,
        settings=run.settings,
        overwrite=True,
    )
    console = progress.console()
    console.print(f"Exported {target} ({layouts.of_files(files)} layout).")
    for note in notes:
        console.print(f"note: {note}")
    runtime.barrier("export")
