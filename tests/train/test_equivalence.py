"""Real pairs: a packed batch equals the same pairs one by one, in two sequences each.

The reference is the way other trainers do it: ``[prompt, chosen]`` and ``[prompt,
rejected]`` as separate sequences, each with its own full prompt and image, through the
unpacked forward pass, with shifted labels. Real records and vocabulary (InternLM2,
92,553 tokens), random weights.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mpo_jax import types
from mpo_jax.inputs import tokenizer
from mpo_jax.mmpr import examples, records
from mpo_jax.mmpr.meta import load_meta
from mpo_jax.models import config as model_config
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib
from mpo_jax.packing import assembly
from mpo_jax.train import step as step_lib

pytestmark = pytest.mark.slow

SHAPE = types.RowShape(600, 700, 700, 12, 6)
COMPUTE = network.Compute(dtype=jnp.float32, remat="none")
# A real vocabulary takes longer to compute than to compile.
OPTIMISED = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
PAIRS = (0, 40, 77, 215)


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """Model over 56-pixel tiles (4 tokens each) with real text, and real examples."""
    source = shared / "data/tokenizers/internvl2_2b"
    raw = json.loads((source / "config.json").read_text("utf-8"))
    raw["force_image_size"] = 56
    raw["vision_config"] |= {
        "image_size": 56,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    raw["llm_config"] |= {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    cfg = model_config.from_hf(raw)
    chat = tokenizer.load_tokenizer(source)
    policy = examples.EncodePolicy(
        template=cfg.template,
        image_size=56,
        tokens_per_tile=cfg.tokens_per_tile,
        min_tiles=1,
        max_tiles=3,
        use_thumbnail=True,
        max_image_pixels=10**8,
    )
    (source_entry,) = load_meta(shared / "data/pref_mathv_real/meta.json")
    lines = open(source_entry.annotation, "rb").read().splitlines()
    made = [
        examples.build_example(
            records.parse_record(
                lines[i], source=source_entry, line_number=i + 1, max_bytes=10**6
            ),
            chat,
            policy=policy,
        )
        for i in PAIRS
    ]
    model = internvl.InternVL(cfg)
    rng = np.random.default_rng(0)
    flat = {
        path: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32)
        + (1.0 if path.endswith(("scale", "ls1", "ls2")) else 0.0)
        for path, leaf in params_lib.flatten(model.shapes)
    }
    return model, params_lib.unflatten(flat), made, chat.img_context_id


LENGTH, TILES = 1000, 4


def sequences(example, img):
    """Both sides as padded sequences: ids, mask, feature slots, trained labels."""
    made = {"ids": [], "mask": [], "slots": [], "trained": []}
    for tokens, labels, mask in (
        (example.chosen_tokens, example.chosen_labels, example.chosen_mask),
        (example.rejected_tokens, example.rejected_labels, example.rejected_mask),
    ):
        ids = np.concatenate([example.prompt, tokens[:1], labels])
        rest = LENGTH - len(ids)
        slots = np.full(len(ids), -1)
        where = np.flatnonzero(ids == img)
        slots[where] = np.arange(len(where))
        trained = np.zeros(LENGTH - 1, bool)
        trained[len(example.prompt) :][: len(mask)] = mask
        made["ids"].append(np.pad(ids, (0, rest)))
        made["mask"].append(np.pad(np.ones(len(ids), np.int32), (0, rest)))
        made["slots"].append(np.pad(slots, (0, rest), constant_values=-1))
        made["trained"].append(trained)
    tiles = np.zeros((TILES, *example.tiles.shape[1:]), np.uint8)
    tiles[: len(example.tiles)] = example.tiles
    return {name: np.stack(rows) for name, rows in made.items()} | {"tiles": tiles}


def two_sequences(model, weights, inputs):
    """Summed log-probs of both sides, shifted labels and all."""
    logits = model.bind(weights).logits(
        inputs["ids"],
        inputs["mask"],
        inputs["slots"],
        inputs["tiles"],
        compute=COMPUTE,
    )
    every = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    picked = jnp.take_along_axis(every, inputs["ids"][:, 1:, None], 2)[:, :, 0]
    return jnp.sum(picked * inputs["trained"], axis=1)


def test_packed_equals_two_sequences(real):
    model, weights, made, img = real
    rows = [made[:2], made[2:3], made[3:]]
    batch = assembly.assemble_batch(
        rows,
        SHAPE,
        img_context_id=img,
        tokens_per_tile=model.cfg.tokens_per_tile,
        image_size=56,
        record_ids=[np.arange(len(row)) for row in rows],
    )
    cotangents = np.random.default_rng(1).normal(size=(len(made), 2)).astype(np.float32)
    real_pairs = np.asarray(batch.pair_mask)

    def packed(w):
        found = step_lib.model_logps(
            model, w, batch, shape=SHAPE, compute=COMPUTE, chunk=256
        )
        pairs = jnp.stack([found.chosen, found.rejected], -1)[real_pairs]
        return jnp.sum(pairs * cotangents), pairs

    @functools.partial(jax.jit, compiler_options=OPTIMISED)
    def apart(w, inputs, cotangent):
        def fn(w):
            pairs = two_sequences(model, w, inputs)
            return jnp.sum(pairs * cotangent), pairs

        return jax.value_and_grad(fn, has_aux=True)(w)

    both = jax.value_and_grad(packed, has_aux=True)
    (_, found), grads = jax.jit(both, compiler_options=OPTIMISED)(weights)
    expected, total = [], None
    for example, cotangent in zip(made, cotangents, strict=True):
        (_, pairs), part = apart(weights, sequences(example, img), cotangent)
        expected.append(pairs)
        total = part if total is None else jax.tree.map(np.add, total, part)

    # Sums of up to 800 log-probs of about -12 nats: 1e-5 relative.
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-5)
    for (path, a), (_, b) in zip(
        params_lib.flatten(grads), params_lib.flatten(total), strict=True
    ):
        scale = np.abs(b).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * scale, err_msg=path)
