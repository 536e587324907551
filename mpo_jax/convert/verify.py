"""Does an export hold what we meant, and does torch compute the same from it?

The only user of torch outside the tests. Both layouts are loaded into transformers' own
InternVL; no code of a checkpoint runs. An original layout goes there by the table, in
memory.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mpo_jax.convert import files, hf, source, table
from mpo_jax.inputs import tokenizer
from mpo_jax.models import config, internvl, native_config, network

RELATIVE = 1e-4
"""Bound on the difference of float32 logits, relative to the largest logit.

Small models reach 1e-6; the rest is for the order of sums in wide and deep ones.
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of an export.

    Attributes:
      name, dtype, size: as written; size in bytes.
      difference: largest absolute one from our value in that dtype.
    """

    name: str
    dtype: str
    size: int
    difference: float


def compare_tensors(
    directory: str | pathlib.Path, fetch: hf.Fetch, model: internvl.InternVL
) -> list[Entry]:
    """Read every written tensor and compare it with our parameters, one at a time."""
    entries = []
    with source.opened(directory) as opened:
        source.account(opened, model.cfg)
        for unit in table.units(model.cfg, opened.layout):
            for name, ours in hf.tensors_of(unit, fetch):
                written = opened.found[name].read()
                meant = ours.astype(written.dtype).astype(np.float32)
                wide = written.astype(np.float32)
                same = np.array_equal(meant, wide, equal_nan=True)
                worst = 0.0 if same else float(np.max(np.abs(meant - wide)))
                kind = written.dtype.name
                entries.append(Entry(name, kind, written.nbytes, worst))
    return entries


def compare_config(
    directory: str | pathlib.Path,
    model: internvl.InternVL,
    *,
    origin: str | pathlib.Path | None = None,
) -> list[str]:
    """Fields of the written ``config.json`` that describe another model than ours.

    Args:
      origin: directory of the configuration that was meant. With it, a scaling rule
        is compared as it is written too: ``dynamic`` is the plain rule to us, but its
        factor counts in other programs.

    Returns:
      One line per field, with its name in the file, the value read and ours.

    Raises:
      ValueError: if the file is malformed or names something that is not supported.
    """
    directory = pathlib.Path(directory)
    raw = files.read_json(directory / "config.json")
    native = native_config.is_native(raw)
    stated, meant = config.load(directory).fields(), model.cfg.fields()
    differ = [name for name, ours in meant.items() if stated[name] != ours]
    if "template" in differ and not meant["template"]:
        # A model of the native layout names none; an export may gain one.
        differ.remove("template")
    wrong = []
    if "language.rope" in differ:
        # Computed from several fields: the rule itself is wrong if those agree.
        differ.remove("language.rope")
        inputs = ("rope_theta", "head_dim", "max_position_embeddings")
        if not {f"language.{name}" for name in inputs} & set(differ):
            field = _written_name("language.rope", native=native)
            wrong = [f"config.json: {field} gives other rotary frequencies than ours"]
    wrong += [
        f"config.json: {_written_name(name, native=native)} is {stated[name]!r}, "
        f"ours is {meant[name]!r}"
        for name in differ
    ]
    if origin is not None:
        rules = [
            _rope_scaling(files.read_json(pathlib.Path(place) / "config.json"))
            for place in (directory, origin)
        ]
        if rules[0] != rules[1]:
            field = _written_name("language.rope", native=native)
            wrong.append(f"config.json: {field} is {rules[0]}, ours is {rules[1]}")
    if native:
        wrong += _compare_native(directory, raw, model)
    return wrong


def _compare_native(
    directory: pathlib.Path, raw: Mapping[str, Any], model: internvl.InternVL
) -> list[str]:
    """As :func:`compare_config`, of fields that the original layout does not have."""
    wanted = {
        "image_token_id": files.special_token_id(directory, tokenizer.IMG_CONTEXT),
        "image_seq_length": model.cfg.tokens_per_tile,
        "tie_word_embeddings": False,
    }
    return [
        f"config.json: {name} is {raw.get(name)!r}, must be {value!r}"
        for name, value in wanted.items()
        if raw.get(name) != value
    ]


def compare_dtype(directory: str | pathlib.Path, kinds: Collection[str]) -> list[str]:
    """Fields of ``config.json`` that name a dtype which no tensor has.

    Transformers loads weights in the dtype that is written there.
    """
    raw = files.read_json(pathlib.Path(directory) / "config.json")
    found = []
    for section in ("", "vision_config", "llm_config", "text_config"):
        content = raw.get(section) or {} if section else raw
        for name in ("torch_dtype", "dtype"):
            stated = content.get(name)
            if stated and stated not in kinds:
                where = f"{section}.{name}".lstrip(".")
                found.append(
                    f"config.json: {where} is {stated!r}, the tensors are "
                    f"{', '.join(sorted(kinds))}"
                )
    return found


def _rope_scaling(raw: dict[str, Any]) -> dict[str, Any]:
    """The scaling rule of a ``config.json``, whichever way it is spelt."""
    if native_config.is_native(raw):
        raw = native_config.to_original(raw)
    llm = raw["llm_config"]
    scaling = llm.get("rope_scaling") or llm.get("rope_parameters") or {}
    rule = native_config.scaling_rule(scaling)
    return {} if rule["type"] in ("default", None) else rule


# Fields whose name in the file is another one: (ours, original, native). A section
# alone stands for all of its fields of the same name.
_WRITTEN = {
    "vision": ("vision_config", "vision_config"),
    "vision.qkv_bias": ("vision_config.qkv_bias", "vision_config.attention_bias"),
    "vision.qk_normalization": (
        "vision_config.qk_normalization",
        "vision_config.use_qk_norm",
    ),
    "vision.initializer_factor": (
        "vision_config.initializer_factor",
        "vision_config.layer_scale_init_value",
    ),
    "language": ("llm_config", "text_config"),
    "language.kind": ("llm_config.architectures", "text_config.model_type"),
    "language.qk_norm": ("llm_config.architectures", "text_config.model_type"),
    "language.qkv_bias": ("llm_config.attention_bias", "text_config.attention_bias"),
    "language.out_bias": ("llm_config.attention_bias", "text_config.attention_bias"),
    "language.rope": ("llm_config.rope_scaling", "text_config.rope_scaling"),
    "image_size": ("force_image_size", "image_seq_length"),
    "select_layer": ("select_layer", "vision_feature_layer"),
    "min_tiles": ("min_dynamic_patch", f"{native_config.KEPT}.min_dynamic_patch"),
    "max_tiles": ("max_dynamic_patch", f"{native_config.KEPT}.max_dynamic_patch"),
    "use_thumbnail": ("use_thumbnail", f"{native_config.KEPT}.use_thumbnail"),
    "template": ("template", f"{native_config.KEPT}.template"),
}


def _written_name(name: str, *, native: bool) -> str:
    if name in _WRITTEN:
        return _WRITTEN[name][native]
    section, _, rest = name.rpartition(".")
    return f"{_WRITTEN[section][native]}.{rest}" if section else name


def example(model: internvl.InternVL, token: int, *, seed: int = 0):
    """Ids ``[1, s]`` and normalised tiles ``[2, S, S, 3]`` of one made-up question."""
    rng = np.random.default_rng(seed)
    cfg = model.cfg
    count = min(2, max(1, cfg.max_tiles))
    # Below every special token of the family, and inside any vocabulary.
    text = rng.integers(3, min(20_000, cfg.language.vocab_size), 24)
    text[text == token] = 3
    image = np.full(count * cfg.tokens_per_tile, token)
    ids = np.concatenate([text[:8], image, text[8:]])[None]
    side = cfg.image_size
    return ids, rng.standard_normal((count, side, side, 3)).astype(np.float32)


def torch_model(directory: str | pathlib.Path, token: int):
    """The export in transformers' own class, float32, built from its ``config.json``.

    Raises:
      ValueError: if it misses a tensor, or does not know or not fit one; names them.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"verifying needs torch ({error}): pip install torch"
        ) from error
    directory = pathlib.Path(directory)
    raw = files.read_json(directory / "config.json")
    # What the export says, not what it was made from: a wrong field must show.
    stated = internvl.InternVL(config.load(directory))
    kind = transformers.InternVLForConditionalGeneration
    if native_config.is_native(raw):
        loaded, info = kind.from_pretrained(  # type: ignore[misc]
            str(directory),
            dtype=torch.float32,
            output_loading_info=True,
            local_files_only=True,
        )
        wrong = {name: sorted(map(str, found)) for name, found in info.items() if found}
        if wrong:
            raise ValueError(f"{directory}: transformers reports {wrong}")
        return loaded.eval()
    native = native_config.from_original(
        raw, stated.cfg, image_token_id=token, dtype="float32"
    )
    native.pop(native_config.KEPT)
    built: Any = kind(transformers.InternVLConfig(**native)).eval()
    with source.opened(directory) as opened:
        fetch = hf.fetch_source(opened, stated)
        state = {
            name: torch.from_numpy(np.array(tensor, np.float32))
            for unit in table.units(stated.cfg, table.NATIVE_NEW)
            for name, tensor in hf.tensors_of(unit, fetch)
        }
    missing, unknown = built.load_state_dict(state, strict=False, assign=True)
    if missing or unknown:
        raise ValueError(f"{directory}: missing {missing}, unexpected {unknown}")
    return built


def compare_outputs(
    directory: str | pathlib.Path, model: internvl.InternVL, *, new_tokens: int = 8
) -> tuple[float, list[int], list[int]]:
    """Logits and greedy tokens of torch and of this project from the written weights.

    The greedy tokens are torch's; ours are what we would have taken at each of them.
    Both models are in host memory in float32 at once.

    Returns:
      Largest difference of logits relative to the largest logit, torch's tokens, ours.

    Raises:
      ValueError: if torch cannot load the export, or the directory has no tokenizer.
    """
    token = files.special_token_id(directory, tokenizer.IMG_CONTEXT)
    if token is None:
        raise ValueError(
            f"{directory}: no tokenizer that knows {tokenizer.IMG_CONTEXT}"
        )
    reference = torch_model(directory, token)
    import torch

    ids, tiles = example(model, token)
    pixels = torch.from_numpy(tiles.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        for _ in range(new_tokens):
            logits = reference(
                input_ids=torch.from_numpy(ids), pixel_values=pixels
            ).logits
            newest = int(logits[0, -1].argmax())
            if newest == token:  # it would ask for another tile
                newest = int(logits[0, -1].topk(2).indices[1])
            ids = np.concatenate([ids, [[newest]]], axis=1)
        logits = reference(input_ids=torch.from_numpy(ids), pixel_values=pixels).logits
    expected = logits[0].numpy()
    del reference

    params = hf.load(directory, model, dtype="float32")
    is_image = ids == token
    slot = np.where(is_image, np.cumsum(is_image).reshape(ids.shape) - 1, -1)
    compute = network.Compute(dtype=jnp.float32, remat="none")

    @jax.jit
    def run(weights: Any, *inputs: jax.Array) -> jax.Array:
        return model.bind(weights).logits(*inputs, compute=compute)

    ours = run(
        params,
        jnp.asarray(ids, jnp.int32),
        jnp.ones(ids.shape, jnp.int32),
        jnp.asarray(slot, jnp.int32),
        jnp.asarray(tiles),
    )
    found = np.array(ours)[0]
    difference = float(np.abs(found - expected).max() / np.abs(expected).max())
    start = ids.shape[1] - new_tokens
    found[:, token] = -np.inf
    return difference, ids[0, start:].tolist(), found[start - 1 : -1].argmax(1).tolist()


def check(
    directory: str | pathlib.Path,
    fetch: hf.Fetch,
    model: internvl.InternVL,
    *,
    origin: str | pathlib.Path | None = None,
) -> str:
    """All of it. Returns a report to print.

    Args:
      origin: see :func:`compare_config`.

    Raises:
      ValueError: with the report, if anything differs. A wrong ``config.json`` ends it
        before weights are read.
    """
    wrong = compare_config(directory, model, origin=origin)
    if wrong:
        raise ValueError("\n".join(["verification failed:", *wrong]))
    entries = compare_tensors(directory, fetch, model)
    width = max(len(entry.name) for entry in entries)
    lines = [
        f"{e.name:{width}}  {e.dtype:8}  {e.size:>12} bytes  max difference "
        f"{e.difference:g}"
        for e in entries
    ]
    wrong = [f"{e.name} differs by {e.difference:g}" for e in entries if e.difference]
    wrong += compare_dtype(directory, {entry.dtype for entry in entries})
    difference, theirs, ours = compare_outputs(directory, model)
    lines.append(f"logits: relative difference {difference:.2g}, bound {RELATIVE:g}")
    lines.append(f"greedy tokens: torch {theirs}, ours {ours}")
    if not difference <= RELATIVE:
        wrong.append("logits differ")
    if theirs != ours:
        wrong.append("greedy tokens differ")
    if wrong:
        raise ValueError("\n".join([*lines, "verification failed:", *wrong]))
    return "\n".join([*lines, f"verified: {len(entries)} tensors"])
