"""A small copy of a released model's directory, for trying a recipe on a CPU.

All that the data pipeline sees stays real (tokenizer, vocabulary, template, image
size, tokens per tile); only widths and depths shrink. It has no weights: train from it
with ``model.init=random``.
"""

from __future__ import annotations

import json
import pathlib
import shutil

from mpo_jax.models import config as model_config

WEIGHTS = (".safetensors", ".bin", ".index.json", ".pt", ".msgpack", ".h5")


def shrink(
    source: str | pathlib.Path,
    target: str | pathlib.Path,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
) -> pathlib.Path:
    """Write the small copy.

    Args:
      source: directory with config.json and tokenizer files (weights are not needed).
      target: new directory.
      width: hidden size of both towers; the MLPs are twice as wide.
      layers: layers of each tower.
      heads, kv_heads: attention heads of the decoder; the vision tower has `heads`.

    Raises:
      FileExistsError: if `target` exists and is not empty.
      FileNotFoundError: if the source has no config.json.
      ValueError: if the source's config is not supported, or sizes do not divide.
    """
    sizes = {"width": width, "layers": layers, "heads": heads, "kv_heads": kv_heads}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} must be at least 1")
    if heads % kv_heads:
        raise ValueError(f"heads={heads} must be a multiple of kv_heads={kv_heads}")
    if width % (2 * heads):
        raise ValueError(
            f"width={width} must be a multiple of 2 * heads={2 * heads} (rotary pairs)"
        )
    source, target = pathlib.Path(source), pathlib.Path(target)
    if target.exists() and any(target.iterdir()):
        raise FileExistsError(f"{target} is not empty; name a new directory")
    model_config.load(source)
    raw = json.loads((source / "config.json").read_text(encoding="utf-8"))
    raw["llm_config"] |= {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    raw["llm_config"].pop("head_dim", None)
    raw["vision_config"] |= {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }
    model_config.from_hf(raw)
    target.mkdir(parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copyfile(file, target / file.name)
    text = json.dumps(raw, indent=2, ensure_ascii=False)
    (target / "config.json").write_text(text + "\n", encoding="utf-8")
    return target
