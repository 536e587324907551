"""Write a checkpoint back as a directory that the released code or transformers load.

  python scripts/convert_to_hf.py --src=runs/mpo --dst=InternVL2-8B-mine
  python scripts/convert_to_hf.py --src=OpenGVLab/InternVL3-8B --dst=InternVL3-8B-hf \
      --layout=native --dtype=keep

`--src` is a checkpoint of convert_from_hf.py, the workdir of a training run (its newest
checkpoint counts), or a model directory or hub id in either layout, which is rewritten
tensor by tensor. `--dst` gets safetensors in shards of at most 5 GB beside config.json
and tokenizer.

`--layout=original` is that of the released code: tokenizer and remote code are carried
along untouched from the model that the weights came from. `--layout=native` is that of
transformers' own InternVL ('-hf'): configuration, processor, chat template and a fast
tokenizer are written, no code is. Without the flag it is the layout of that model. A
training run names the model by itself; where it is gone, name a directory or hub id
with `--hf_files`.

Adapters of a LoRA run are merged into the weights. `--adapter` writes them alone
instead, as a PEFT adapter for the model in `--layout` (docs/lora.md).

`--verify` reads the export back before it appears: every tensor is compared, and torch
(which must be installed) loads it into transformers' own class and must give our logits
and greedy tokens. It needs both models in host memory in float32; any difference is an
error.

Weights pass through memory a tensor at a time. A run that was killed goes on, with the
first file that it had not finished, when it is started again; `--dst` appears by a
rename when everything is written.

`--src`, `--hf_files` and `--dst` may be addresses such as gs://bucket/model (with the
extra `gcs`): tensors are fetched one by one, each file is uploaded when it is complete
(so that much space is needed here), config.json last.

`--dtype=keep` gives every tensor the dtype that it had in the original files.
`--dry_run` lists the tensors and the files they go to, and writes nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from absl import flags

from mpo_jax.convert import adapter as adapter_lib
from mpo_jax.convert import command, files, hf, hub, layouts, places, table, writer
from mpo_jax.convert import verify as verify_lib
from mpo_jax.models import internvl
from mpo_jax.utils import remote


def listing(
    model: internvl.InternVL, dtypes: Mapping[str, str], layout: str, max_bytes: int
) -> str:
    """One line per tensor: file, dtype, bytes, name; then the total."""
    sizes = {
        name: math.prod(shape) * jnp.dtype(dtypes[name]).itemsize
        for name, shape in table.hf_shapes(model.cfg, layout).items()
    }
    plan = writer.plan_shards(sizes, max_shard_bytes=max_bytes)
    lines = [
        f"{plan[n]}  {dtypes[n]:8}  {size:>12} bytes  {n}" for n, size in sizes.items()
    ]
    return "\n".join([*lines, f"{len(sizes)} tensors, {sum(sizes.values())} bytes"])


def export(
    src: str,
    dst: str | None,
    *,
    dtype: str,
    layout: str | None,
    template: str,
    hf_files: str | None,
    verify: bool,
    overwrite: bool,
    adapter: bool = False,
    max_shard_bytes: int = writer.SHARD_BYTES,
) -> str:
    """Export, or only list where `dst` is None. Returns what to print.

    Raises:
      FileNotFoundError, FileExistsError, ValueError: naming what is wrong.
    """
    found = hub.locate(src, files=hf_files)
    if template:
        settings = dataclasses.replace(found.settings, template=template)
        found = dataclasses.replace(found, settings=settings)
    model = internvl.InternVL(found.config())
    layout = layouts.choose(layout, found.files)
    if adapter:
        if verify:
            raise ValueError(
                "--verify compares a whole model; leave out --adapter or it"
            )
        return export_adapter(
            found, dst, model, layout=layout, dtype=dtype, overwrite=overwrite
        )
    described = found.weights if found.kind == "hf" else found.files
    dtypes = hf.target_dtypes(model, dtype=dtype, source_dir=described, layout=layout)
    if dst is None:
        return preview(found, model, dtypes, layout, max_shard_bytes)
    if verify:
        remote.refuse(dst, field="--dst", why="--verify reads the export with torch")
    job = {
        "weights": str(found.weights),
        "files": str(found.files),
        "dtype": dtype,
        "max_shard_bytes": max_shard_bytes,
        "of": files.fingerprint(found.weights),
        "layout": layout,
        "beside": files.fingerprint(found.files),
        "settings": found.settings.describe(),
    }
    with contextlib.ExitStack() as stack:
        partial, store = new_place(stack, dst, job=job, overwrite=overwrite)
        notes = layouts.write_files(
            found.files,
            partial,
            layout=layout,
            kinds=set(dtypes.values()),
            settings=found.settings,
        )
        with hub.fetching(found, model) as fetch:
            notes += hf.write_weights(
                partial,
                fetch,
                model,
                dtypes,
                layout=layout,
                by_row=found.kind != "hf",
                max_bytes=max_shard_bytes,
                store=store,
            )
        if verify:
            with hub.fetching(found, model) as fetch:
                report = verify_lib.check(partial, fetch, model, origin=found.files)
                notes.append(report)
    text = f"{dst}: {len(dtypes)} tensors, {layout} layout, dtype {dtype}"
    return "\n".join([text, *(f"note: {note}" for note in notes)])


def export_adapter(
    found: hub.Source,
    dst: str | None,
    model: internvl.InternVL,
    *,
    layout: str,
    dtype: str,
    overwrite: bool,
) -> str:
    """Write what was trained as a PEFT adapter, or only list its tensors."""
    if dst is None:
        return "\n".join(adapter_lib.names(found, model, layout=layout))
    remote.refuse(dst, field="--dst", why="an adapter is small: upload it after")
    count = adapter_lib.save(
        dst, found, model, layout=layout, dtype=dtype, overwrite=overwrite
    )
    return f"{dst}: PEFT adapter, {count} tensors, {layout} layout"


def preview(
    found: hub.Source,
    model: internvl.InternVL,
    dtypes: Mapping[str, str],
    layout: str,
    max_shard_bytes: int,
) -> str:
    """What an export would write and from where."""
    lines = [listing(model, dtypes, layout, max_shard_bytes)]
    lines += [f"weights: {found.weights}"]
    if layouts.same_files(found.files, layout):
        carried = ", ".join(file.name for file in files.carried_files(found.files))
        lines.append(f"carried along from {found.files}: {carried}")
    return "\n".join(lines)


def new_place(
    stack: contextlib.ExitStack, dst: str, *, job: Mapping[str, Any], overwrite: bool
) -> tuple[pathlib.Path, Any]:
    """Folder to write into, and the store that uploads from it where there is one."""
    if remote.is_remote(dst):
        place = places.new_model(dst, job=job, overwrite=overwrite)
        partial, _, store = stack.enter_context(place)
        return partial, store
    place = files.resumable_directory(dst, job=job, overwrite=overwrite)
    return stack.enter_context(place)[0], None


if __name__ == "__main__":
    command.define_flags(
        src="Converted checkpoint, training workdir, model directory or hub id.",
        dtype="bfloat16",
        dtype_help="Written dtype; keep is that of the original files.",
    )
    flags.DEFINE_enum(
        "layout",
        None,
        layouts.CHOICES,
        "Written layout; default is the source's. native_new has the tensor names that "
        "transformers has in memory.",
    )
    flags.DEFINE_string(
        "template", "", "Chat template, where the source names none or another one."
    )
    flags.DEFINE_string(
        "hf_files", None, "Directory or hub id with config.json, tokenizer and so on."
    )
    flags.DEFINE_bool("verify", False, "Compare with torch before it appears.")
    flags.DEFINE_bool(
        "adapter", False, "Write the adapter of a LoRA run for PEFT, not the model."
    )
    flags.DEFINE_integer(
        "max_shard_bytes",
        writer.SHARD_BYTES,
        "Limit of a weight file; one tensor is never split.",
        lower_bound=1,
    )
    command.run(
        export,
        names=(
            *("layout", "template", "hf_files", "verify", "adapter"),
            "max_shard_bytes",
        ),
    )
