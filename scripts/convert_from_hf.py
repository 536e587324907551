"""Convert released InternVL weights into a checkpoint that training starts from.

  python scripts/convert_from_hf.py --src=OpenGVLab/InternVL2-8B --dst=ckpt/8b

`--src` is a directory (config.json, *.safetensors) in the original or in the
transformers-native ('-hf') layout, or a hub id, which is downloaded. `--dst` gets

  params/   the weights (Orbax), readable in any sharding
  hf/       config.json, tokenizer, remote code: what an export carries along

Every tensor must be used exactly once and every parameter filled; otherwise nothing is
written and all that is wrong is listed. The whole model is in host memory once: about
16 GB for 8B in bfloat16. `--dry_run` lists the tensors and writes nothing.
`convert_to_hf.py` is the way back; with `--dtype=keep` on both the files are bit equal.
"""

from __future__ import annotations

import pathlib

from absl import flags

from mpo_jax import checkpoint
from mpo_jax.convert import command, files, hf, hub, source, table
from mpo_jax.models import config, internvl
from mpo_jax.nn import params as params_lib


def tensor_table(model: internvl.InternVL, dtypes: dict[str, str]) -> str:
    """One line per tensor: name, dtype, shape, and the parameters it fills."""
    tensors = list(table.tensors(model.cfg, table.detect(dtypes)))
    width = max(len(tensor.name) for tensor in tensors)
    lines = []
    for tensor in tensors:
        layer = "" if tensor.unit.layer is None else f"[{tensor.unit.layer}]"
        into = ", ".join(path + layer for path in tensor.unit.row.paths)
        shape = "×".join(str(size) for size in tensor.shape)
        lines.append(
            f"{tensor.name:{width}}  {dtypes[tensor.name]:8}  {shape:12}  -> {into}"
        )
    total = sum(tensor.size for tensor in tensors)
    return "\n".join([*lines, f"{len(tensors)} tensors, {total:,} parameters"])


def convert(
    src: str, dst: str | None, *, dtype: str, revision: str | None, overwrite: bool
) -> str:
    """Convert, or only check and list where `dst` is None. Returns what to print.

    Raises:
      FileNotFoundError, FileExistsError, ValueError: naming what is wrong.
    """
    directory = hub.resolve(src, revision=revision)
    model = internvl.InternVL(config.load(directory))
    if dst is None:
        hf.check_source(directory, model)
        return tensor_table(model, source.dtypes(directory))
    with files.new_directory(dst, overwrite=overwrite) as partial:
        params = hf.load(directory, model, dtype=dtype)
        checkpoint.save_params(
            partial / "params", params, metadata={"source": str(src), "dtype": dtype}
        )
        carried = partial / hub.FILES
        carried.mkdir()
        files.copy_carried(directory, carried)
        source.write_dtypes(carried, source.dtypes(directory))
    count = params_lib.count(params)
    return f"{pathlib.Path(dst)}: {count:,} parameters, dtype {dtype}"


if __name__ == "__main__":
    command.define_flags(
        src="Model directory, or hub id OWNER/NAME.",
        dtype="keep",
        dtype_help="Stored dtype; keep is that of the source.",
    )
    flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")
    command.run(convert, names=("revision",))
