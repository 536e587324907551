"""Adapters of a training run as a PEFT adapter: ``adapter_config.json`` and weights.

Names are those of the modules in memory: of the released class in the original layout,
of transformers' own in the native one, so that ``peft.PeftModel.from_pretrained`` finds
them. Maps that one layout holds in one weight and another apart share their ``A`` here
(``nn/lora.py``), so every layout holds the adapter exactly, at its own rank.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, hf, hub, stream, table, transforms
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."


def save(
    directory: str | pathlib.Path,
    found: hub.Source,
    model: internvl.InternVL,
    *,
    layout: str,
    dtype: str = "float32",
    overwrite: bool = False,
) -> int:
    """Write the adapter of a located training run; returns the number of tensors.

    Args:
      model: as released.
      layout: names the modules; both native ones name them as in memory.
      dtype: of the tensors; ``keep`` is the one that they were trained in.

    Raises:
      ValueError: if the run has no adapters, or trained more than them.
      FileExistsError: see ``files.new_directory``.
    """
    run, tensors = _read(found, model, layout=layout)
    kind = None if dtype == "keep" else jnp.dtype(dtype)
    converted = {
        name: np.ascontiguousarray(tensor if kind is None else tensor.astype(kind))
        for name, tensor in tensors
    }
    config = _config(run, layout, base=hub.trained_with(found).path)
    with files.new_directory(directory, overwrite=overwrite) as partial:
        # The library's own files are readable by their owner alone.
        content = safetensors_numpy.save(converted, metadata={"format": "pt"})
        (partial / WEIGHTS).write_bytes(content)
        text = json.dumps(config, indent=2, sort_keys=True)
        (partial / CONFIG).write_text(text + "\n", encoding="utf-8")
    return len(converted)


def names(found: hub.Source, model: internvl.InternVL, *, layout: str) -> list[str]:
    """Names and shapes of the tensors that :func:`save` would write; same errors."""
    _, tensors = _read(found, model, layout=layout)
    return [f"{tuple(tensor.shape)}  {name}" for name, tensor in tensors]


def _read(
    found: hub.Source, model: internvl.InternVL, *, layout: str
) -> tuple[internvl.InternVL, Iterator[tuple[str, np.ndarray]]]:
    run = hub.run_model(found, model)
    if run.without_adapters is run:
        raise ValueError(
            f"{found.weights} was trained without adapters (model.lora); leave out "
            "--adapter"
        )
    trained = adapted.trained(hub.trained_with(found))
    others = adapted.kept_by_reference(run.shapes, trained)
    if others:
        raise ValueError(
            f"{found.weights}: {', '.join(sorted(others))} was trained besides the "
            "adapters, which an adapter cannot hold; leave out --adapter to export "
            "the merged model"
        )
    reader = stream.Reader(found.weights)
    return run, _tensors(reader, run, layout)


def _rows(
    run: internvl.InternVL, layout: str
) -> Iterator[tuple[table.Row, int, list[tuple[str, str]]]]:
    """Rows with adapters, their number of layers, paths of A and B per parameter."""
    present = dict(params_lib.flatten(run.shapes))
    in_memory = table.NATIVE_NEW if layout == table.NATIVE else layout
    for group in table.groups(run.cfg, in_memory):
        for row in group.rows:
            found = [lora.paths(path, present) for path in row.paths]
            pairs = [pair for pair in found if pair is not None]
            if pairs:
                assert len(pairs) == len(found) and len({a for a, _ in pairs}) == 1
                yield row, group.layers or 0, pairs


def _tensors(
    fetch: hf.Fetch, run: internvl.InternVL, layout: str
) -> Iterator[tuple[str, np.ndarray]]:
    for row, layers, pairs in _rows(run, layout):
        for layer in range(layers):
            a = fetch(pairs[0][0], layer)
            rank, inward = a.shape[-1], a.ndim - 1
            outs = resized(row.transform, rank, inward).to_hf(
                tuple(fetch(b, layer) for _, b in pairs)
            )
            down = a.reshape(-1, rank).T
            for name, up in zip(table.Unit(row, layer).names, outs, strict=True):
                module = _PREFIX + name.removesuffix(".weight")
                yield f"{module}.lora_A.weight", down
                yield f"{module}.lora_B.weight", up


def resized(
    transform: transforms.Transform, rank: int, inward: int
) -> transforms.Transform:
    """The transform of a weight whose `inward` input axes are one of size `rank`.

    It moves rows (outputs) as the given one does, so it is that of ``B``.
    """
    if isinstance(transform, transforms.Move):
        out = transform.split_shape[: len(transform.split_shape) - inward]
        order = (len(out), *range(len(out)))
        shape = (transform.hf_shape[0], rank)
        return transforms.Move(shape, (*out, rank), order)
    if isinstance(transform, transforms.PackedHeads):
        return dataclasses.replace(transform, rest=(rank,))
    if isinstance(transform, transforms.Split):
        return dataclasses.replace(
            transform, whole=resized(transform.whole, rank, inward)
        )
    if isinstance(transform, transforms.Fused):
        moves = tuple(resized(move, rank, inward) for move in transform.moves)
        return transforms.Fused(moves)  # type: ignore[arg-type]
    raise TypeError(f"{type(transform).__name__}: give adapter.resized its rule")


def _config(run: internvl.InternVL, layout: str, *, base: str) -> dict[str, Any]:
    """Content of ``adapter_config.json``."""
    language, vision = run.adaptation.language, run.adaptation.vision
    modules: dict[str, list[str]] = {"language": [], "vision": []}
    for row, _, pairs in _rows(run, layout):
        part = pairs[0][1].split("/", 1)[0]
        for name in row.names:
            pattern = re.escape(name.removesuffix(".weight"))
            modules[part].append(pattern.replace(re.escape("{layer}"), r"\d+"))
    default = language if language.rank else vision
    other = vision if language.rank and vision.rank else None
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": default.rank,
        "lora_alpha": _alpha(default),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": "|".join(modules["language"] + modules["vision"]),
        "rank_pattern": dict.fromkeys(modules["vision"], other.rank) if other else {},
        "alpha_pattern": (
            dict.fromkeys(modules["vision"], _alpha(other)) if other else {}
        ),
    }


def _alpha(adapters: lora.Adapters) -> int | float:
    alpha = adapters.scale * adapters.rank
    return int(alpha) if alpha == int(alpha) else alpha
