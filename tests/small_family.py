"""Small models of every decoder of the family, in the original layout."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors_numpy

from mpo_jax.convert import files, table
from mpo_jax.models import config

SMALL_VIT = {"qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
SU = {
    "rope_scaling": {
        "type": "su",
        "short_factor": [1.0, 1.5],
        "long_factor": [1.0, 4.0],
    },
    "original_max_position_embeddings": 16,
    "sliding_window": 4096,
    # The class defaults lie outside a small vocabulary.
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
FAMILY = {
    "internlm2": ("InternLM2ForCausalLM", SMALL_VIT, {"bias": False, **DYNAMIC}),
    "internlm2-bias": ("InternLM2ForCausalLM", {}, {"bias": True}),
    "qwen2": ("Qwen2ForCausalLM", SMALL_VIT, {"rope_theta": 1e6, **DYNAMIC}),
    "qwen3": ("Qwen3ForCausalLM", SMALL_VIT, {"head_dim": 8}),
    "llama": ("LlamaForCausalLM", {}, {}),
    "phi3": ("Phi3ForCausalLM", SMALL_VIT, SU),
}


def original(directory: pathlib.Path, name: str, tokenizer_files: pathlib.Path):
    """An original-layout directory with random weights."""
    architecture, vision, language = FAMILY[name]
    shutil.copytree(tokenizer_files, directory)
    raw = json.loads((directory / "config.json").read_text())
    vocab = raw["llm_config"]["vocab_size"]
    raw["vision_config"] = {
        **{"hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 16},
        **{"num_hidden_layers": 2, "patch_size": 14, "image_size": 56},
        **vision,
    }
    raw["llm_config"] = {
        **{"architectures": [architecture], "vocab_size": vocab, "hidden_size": 16},
        **{"intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "max_position_embeddings": 512},
        **language,
    }
    raw["force_image_size"], raw["torch_dtype"] = 56, "bfloat16"
    (directory / "config.json").write_text(json.dumps(raw))
    rng = np.random.default_rng(0)
    tensors = {}
    for tensor in table.tensors(config.from_hf(raw)):
        noise = rng.standard_normal(tensor.shape)
        noise = 1 + 0.3 * noise if "norm" in tensor.name else 0.2 * noise
        tensors[tensor.name] = noise.astype(jnp.bfloat16)
    safetensors_numpy.save_file(tensors, directory / files.SINGLE)
    return tensors
