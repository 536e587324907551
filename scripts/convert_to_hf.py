"""Write a checkpoint back as a directory that the released InternVL code loads.

  python scripts/convert_to_hf.py --src=runs/mpo --dst=InternVL2-8B-mine

`--src` is a checkpoint of convert_from_hf.py or the workdir of a training run (its
newest checkpoint counts). `--dst` gets safetensors in the original layout, in shards
of at most 5 GB, beside config.json, tokenizer and remote code, carried along untouched
from the model that the weights came from. A training run names that model by itself;
where it is gone, name a directory or hub id with `--hf_files`.

`--dtype=keep` gives every tensor the dtype that it had in the original files.
`--dry_run` lists the tensors and the files they go to, and writes nothing.
"""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
from absl import app, flags

from mpo_jax.convert import files, hf, hub, table
from mpo_jax.models import config, internvl


def define_flags() -> None:
    flags.DEFINE_string("src", None, "Converted checkpoint, or training workdir.")
    flags.DEFINE_string("dst", None, "Directory to write.")
    flags.DEFINE_enum(
        "dtype",
        "bfloat16",
        ["keep", "float32", "bfloat16", "float16"],
        "Written dtype; keep is that of the original files.",
    )
    flags.DEFINE_string(
        "hf_files", None, "Directory or hub id with config.json, tokenizer and so on."
    )
    flags.DEFINE_bool("overwrite", False, "Replace a model that is there already.")
    flags.DEFINE_bool("dry_run", False, "List tensors and files, write nothing.")
    flags.mark_flag_as_required("src")


def export(
    src: str, dst: str | None, *, dtype: str, hf_files: str | None, overwrite: bool
) -> str:
    """Export, or only list where `dst` is None. Returns what to print.

    Raises:
      FileNotFoundError, FileExistsError, ValueError: naming what is wrong.
    """
    source = hub.locate(src, files=hf_files)
    model = internvl.InternVL(config.load(source.files))
    dtypes = hf.target_dtypes(model, dtype=dtype, source_dir=source.files)
    if dst is None:
        sizes = {
            tensor.name: tensor.size * jnp.dtype(dtypes[tensor.name]).itemsize
            for tensor in table.tensors(model.cfg)
        }
        plan = hf.plan_shards(sizes)
        lines = [
            f"{plan[n]}  {dtypes[n]:8}  {size:>12} bytes  {n}"
            for n, size in sizes.items()
        ]
        carried = ", ".join(file.name for file in files.carried_files(source.files))
        lines.append(f"weights: {source.weights}, {sum(sizes.values())} bytes")
        return "\n".join([*lines, f"carried along from {source.files}: {carried}"])
    # float32 holds every stored dtype exactly.
    params = hub.load_params(source, model, dtype="float32")
    hf.save(
        dst,
        params,
        model,
        dtype=dtype,
        source_dir=source.files,
        overwrite=overwrite,
    )
    return f"{pathlib.Path(dst)}: {len(dtypes)} tensors, dtype {dtype}"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    values = flags.FLAGS
    if values.dst is None and not values.dry_run:
        raise app.UsageError("--dst is missing (or ask for --dry_run)")
    # Conversion is host work; it must not take an accelerator from a running job.
    jax.config.update("jax_platforms", "cpu")
    try:
        print(
            export(
                values.src,
                None if values.dry_run else values.dst,
                dtype=values.dtype,
                hf_files=values.hf_files,
                overwrite=values.overwrite,
            )
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    define_flags()
    app.run(main)
