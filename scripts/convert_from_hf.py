"""Convert released InternVL weights into a checkpoint that training starts from.

  python scripts/convert_from_hf.py --src=OpenGVLab/InternVL2-8B --dst=ckpt/8b

`--src` is a directory (config.json, *.safetensors) in the original or in the
transformers-native ('-hf') layout, or a hub id, which is downloaded. `--dst` gets

  params/   the weights (Orbax), readable in any sharding
  hf/       config.json, tokenizer, remote code: what an export carries along

Every tensor must be used exactly once and every parameter filled; otherwise nothing is
written and all that is wrong is listed. Weights pass through memory a tensor at a time;
a run that was killed goes on where it was when it is started again, and `--dst` appears
by a rename when all is written. `--dry_run` lists the tensors and writes nothing.
`--new_tokens='<think>,</think>'` adds tokens to the tokenizer, and rows that are the
mean of the old ones; train policy and reference from this checkpoint.
`--src` and `--dst` may be addresses such as gs://bucket/model (with the extra `gcs`).
`convert_to_hf.py` is the way back; with `--dtype=keep` on both the files are bit equal.
"""

from __future__ import annotations

import contextlib

from absl import flags

from mpo_jax import checkpoint
from mpo_jax.convert import (
    command,
    files,
    hf,
    hub,
    places,
    source,
    stream,
    table,
    vocabulary,
)
from mpo_jax.models import config, internvl
from mpo_jax.utils import remote


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
    src: str,
    dst: str | None,
    *,
    dtype: str,
    revision: str | None,
    new_tokens: list[str],
    overwrite: bool,
) -> str:
    """Convert, or only check and list where `dst` is None. Returns what to print.

    Raises:
      FileNotFoundError, FileExistsError, ValueError: naming what is wrong.
    """
    found = hub.locate(src, revision=revision)
    if found.kind != "hf":
        raise ValueError(f"{src} is a checkpoint already; name a model directory")
    model = internvl.InternVL(config.load(found.files))
    if dst is None:
        hf.check_source(found.weights, model)
        return tensor_table(model, source.dtypes(found.weights))
    addition = vocabulary.plan(found.files, tuple(new_tokens))
    job = {"source": str(found.weights), "dtype": dtype, "new_tokens": new_tokens}
    job |= {"of": files.fingerprint(found.weights)}
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(source.opened(found.weights))
        source.account(opened, model.cfg)
        if remote.is_remote(dst):
            place = places.new_model(dst, job=job, overwrite=overwrite)
            partial, progress, _ = stack.enter_context(place)
            params = remote.join(dst, checkpoint.PARAMS)
        else:
            place = files.resumable_directory(dst, job=job, overwrite=overwrite)
            partial, progress = stack.enter_context(place)
            params = partial / checkpoint.PARAMS
        notes = stream.write(
            params,
            opened,
            model,
            progress,
            dtype=dtype,
            metadata={"source": str(src), "dtype": dtype},
            addition=addition,
        )
        carried = partial / hub.FILES
        carried.mkdir(exist_ok=True)
        files.copy_model_files(found.files, carried)
        for folder in (carried, carried / files.KEPT):
            if folder.is_dir():
                vocabulary.write_files(folder, model.cfg, addition)
        source.write_dtypes(carried, source.dtypes(found.weights))
    larger = vocabulary.extended(model.cfg, addition)
    count = sum(tensor.size for tensor in table.tensors(larger))
    text = f"{dst}: {count:,} parameters, dtype {dtype}"
    return "\n".join([text, *(f"note: {note}" for note in notes)])


if __name__ == "__main__":
    command.define_flags(
        src="Model directory, or hub id OWNER/NAME.",
        dtype="keep",
        dtype_help="Stored dtype; keep is that of the source.",
    )
    flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")
    flags.DEFINE_list("new_tokens", [], "Texts that become tokens, comma separated.")
    command.run(convert, names=("revision", "new_tokens"))
