"""Released totals: the table's shapes of every size add up to the published number."""

from __future__ import annotations

import math

import pytest

from mpo_jax.convert import table
from mpo_jax.models import config

VIT_300M = {
    **{"hidden_size": 1024, "num_attention_heads": 16, "intermediate_size": 4096},
    **{"num_hidden_layers": 24, "qkv_bias": True, "qk_normalization": False},
    **{"norm_type": "layer_norm", "image_size": 448},
}
VIT_6B = {"num_hidden_layers": 45, "image_size": 448}
# decoder class, vision tower, layers, width, heads, kv heads, hidden, vocabulary,
# published total; head_dim of Qwen3 is its class default.
RELEASED = {
    "2-1B": ("Qwen2", VIT_300M, 24, 896, 14, 2, 4864, 151655, 938_158_976),
    "2-2B": ("InternLM2", VIT_300M, 24, 2048, 16, 8, 8192, 92553, 2_205_754_368),
    "2-8B": ("InternLM2", VIT_300M, 32, 4096, 32, 8, 14336, 92553, 8_075_365_376),
    "2-26B": ("InternLM2", VIT_6B, 48, 6144, 48, 8, 16384, 92553, 25_514_186_112),
    "2.5-1B": ("Qwen2", VIT_300M, 24, 896, 14, 2, 4864, 151674, 938_193_024),
    "2.5-4B": ("Qwen2", VIT_300M, 36, 2048, 16, 2, 11008, 151674, 3_712_637_952),
    "2.5-38B": ("Qwen2", VIT_6B, 64, 5120, 40, 8, 27648, 151674, 38_388_164_992),
    "2.5-78B": ("Qwen2", VIT_6B, 80, 8192, 64, 8, 29568, 151674, 78_408_318_336),
    "3-2B": ("Qwen2", VIT_300M, 28, 1536, 12, 2, 8960, 151674, 2_088_957_440),
    "3-8B": ("Qwen2", VIT_300M, 28, 3584, 28, 4, 18944, 151674, 7_944_373_760),
    "3-14B": ("Qwen2", VIT_300M, 48, 5120, 40, 8, 13824, 151674, 15_117_256_704),
    "3.5-1B": ("Qwen3", VIT_300M, 28, 1024, 16, 8, 3072, 151936, 1_060_897_792),
    "3.5-2B": ("Qwen3", VIT_300M, 28, 2048, 16, 8, 6144, 151936, 2_348_347_392),
    "3.5-4B": ("Qwen3", VIT_300M, 36, 2560, 32, 8, 9728, 151936, 4_732_489_216),
    "3.5-8B": ("Qwen3", VIT_300M, 36, 4096, 32, 8, 12288, 151936, 8_528_318_464),
    "3.5-14B": ("Qwen3", VIT_300M, 40, 5120, 40, 8, 17408, 151936, 15_119_523_840),
    "3.5-38B": ("Qwen3", VIT_6B, 64, 5120, 64, 8, 25600, 151936, 38_390_405_504),
}
# Only rounded totals are known of these.
ROUNDED = {
    "2-4B": ("Phi3", VIT_300M, 32, 3072, 32, 32, 8192, 32020, 4.15e9),
    "2-40B": ("Llama", VIT_6B, 60, 7168, 56, 8, 20480, 64009, 40.1e9),
    "2-76B": ("Llama", VIT_6B, 80, 8192, 64, 8, 28672, 128265, 76.3e9),
    "3-9B": ("InternLM2", VIT_300M, 48, 4096, 32, 2, 10240, 128521, 9.14e9),
}


def total(row: tuple, layout: str) -> int:
    decoder, vision, *sizes = row[:-1]
    names = (
        *("num_hidden_layers", "hidden_size", "num_attention_heads"),
        *("num_key_value_heads", "intermediate_size", "vocab_size"),
    )
    llm = dict(zip(names, sizes, strict=True)) | {"bias": False}
    llm["architectures"] = [f"{decoder}ForCausalLM"]
    raw = {"vision_config": vision, "llm_config": llm, "force_image_size": 448}
    return sum(map(math.prod, table.hf_shapes(config.from_hf(raw), layout).values()))


@pytest.mark.parametrize("name", [*RELEASED, *ROUNDED])
def test_totals(name):
    row = (RELEASED | ROUNDED)[name]
    original, native = (total(row, lay) for lay in (table.ORIGINAL, table.NATIVE))
    assert original == native
    if name in RELEASED:
        assert original == row[-1]
    else:
        assert original == pytest.approx(row[-1], rel=2e-3)
