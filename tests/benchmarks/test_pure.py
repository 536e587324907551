"""Benchmarks: the parts that need no clock and no peer."""

from __future__ import annotations

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from benchmarks import (
    clock,
    convert,
    count,
    device,
    flops,
    layout,
    mix,
    ours,
    packing,
    plot,
    sizes,
    step_flops,
    step_vs_trl,
    workload,
)
from mpo_jax import config as config_lib
from mpo_jax import types
from mpo_jax.models import config as model_config
from mpo_jax.packing import plan as plans
from mpo_jax.train import step

LONG = types.RowShape(4096, 2560, 4608, 16, 8)


@pytest.mark.parametrize("tiles", mix.TILES)
def test_mix_has_the_papers_means_and_extremes(tiles):
    lengths = mix.mmpr_like(40_000, tiles=tiles)
    share = mix.HALVES[0].share
    for side, column in enumerate((lengths.chosen, lengths.rejected)):
        means = [half.means[1 + side] for half in mix.HALVES]
        wanted = share * means[0] + (1 - share) * means[1] + mix.STOP_TOKENS
        # Clipping at the extremes and sampling: about 1 % together.
        assert column.mean() == pytest.approx(wanted, rel=0.02)
        assert column.max() <= max(h.most[side] for h in mix.HALVES) + 1
    assert set(np.unique(lengths.tiles)) <= {1, *range(3, 14)}
    text = lengths.prompt - mix.TOKENS_PER_TILE * lengths.tiles
    assert text.min() > mix.TEMPLATE_TOKENS


def test_recipe_fills_its_binding_budget():
    rows = config_lib.RunConfig().rows
    lengths = mix.mmpr_like(6000)
    cfg = model_config.from_hf(sizes.released("8b"))
    entry = packing.rate_plan(lengths, (rows.short.build(), LONG), cfg)
    assert entry["fill"][entry["binding"]] >= 0.90
    assert entry["too_long"] == 0
    padding = packing.rate_padding(lengths, cfg, batch=8)
    assert padding["maximum"]["useful_share"] < padding["longest"]["useful_share"]
    assert padding["longest"]["useful_share"] < entry["useful_share"]
    assert entry["tflops_per_pair"] < padding["longest"]["tflops_per_pair"]


def test_visited_blocks_are_those_of_the_static_mask():
    from mpo_jax.nn import roles as roles_lib

    shape, block = types.RowShape(40, 24, 16, 1, 1), 16
    roles = (shape.prompt_tokens, shape.chosen_tokens, shape.rejected_tokens)
    mask = np.asarray(roles_lib.dense_mask(roles))
    mask = mask.reshape(5, block, 5, block).any(axis=(1, 3))
    # Blocks of 16 do not end where the roles do; the formula may only err upwards,
    # by blocks in which chosen and rejected meet.
    found = flops.visited(shape, block)
    assert mask.sum() * block**2 <= found <= (mask.sum() + 1) * block**2


def test_jaxpr_count_agrees_with_the_formula():
    """A forward step on packed rows, counted and by formula."""
    cfg = packed.tiny_config()
    rng = np.random.default_rng(0)
    host = packed.batch([[packed.example(rng, tiles=1)]])
    from mpo_jax.models import internvl, network
    from mpo_jax.nn import params

    model = internvl.InternVL(cfg)
    weights = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32),
        model.shapes,
    )
    compute = network.Compute(dtype=jnp.float32, remat="none", attention="reference")

    def forward(tree: params.Params) -> jax.Array:
        found = step.model_logps(model, tree, host, shape=packed.SHAPE, compute=compute)
        return found.chosen

    expected = flops.row(cfg, packed.SHAPE, block=packed.SHAPE.tokens)
    assert count.of(forward, weights) == pytest.approx(expected.total, rel=0.01)


@pytest.mark.slow
def test_flops_of_a_step_by_what_is_recomputed():
    """The step of the benchmark's slice, counted, against the duplicated layout."""
    raw = sizes.slice_of("1b", layers=2)
    full = dict.fromkeys(step_vs_trl.recipe_fill(), 1.0)
    found = {
        remat: step_flops.ours_per_pair(raw, tiles=1, fill=full, remat=remat)["step"]
        for remat in ("none", "dots", "full")
    }
    assert found["none"] < found["dots"] < found["full"]
    assert 2 < step_flops.duplicated_per_pair(raw, tiles=1) / found["none"] < 2.7


def test_count_unrolls_scans_and_counts_rematerialised_work():
    w = jax.ShapeDtypeStruct((8, 8), jnp.float32)

    def body(x, _):
        return x @ x, None

    def loop(x):
        return jnp.sum(jax.lax.scan(body, x, None, length=5)[0])

    one = 2 * 8**3
    assert count.of(loop, w) == 5 * one
    assert count.of(jax.grad(loop), w) == 5 * 3 * one
    again = jax.grad(lambda x: jnp.sum(jax.checkpoint(lambda y: (y @ y) @ y)(x)))
    assert count.of(again, w) >= 6 * one

    def open_loop(x):
        return jax.lax.while_loop(lambda y: y[0, 0] < 1, lambda y: y @ y, x)

    with pytest.raises(ValueError, match="length is open"):
        count.of(open_loop, w)


def test_slice_keeps_the_heads_share():
    whole = sizes.released("1b")["llm_config"]
    part = sizes.slice_of("1b", layers=2)["llm_config"]
    assert part["hidden_size"] == whole["hidden_size"]
    assert part["vocab_size"] / 2 == pytest.approx(whole["vocab_size"] / 24, rel=1e-3)
    assert whole["num_hidden_layers"] == 24  # not changed in place


def test_workload_survives_the_disk_and_fits_its_lengths(tmp_path):
    drawn = workload.write(tmp_path, pairs=4, tiles=1, vocab_size=99)
    for (file, pair), expected in zip(workload.read(tmp_path), drawn, strict=True):
        assert file.is_file()
        for name in ("question", "chosen", "rejected"):
            np.testing.assert_array_equal(getattr(pair, name), getattr(expected, name))
    found = ours.examples(tmp_path, tokens_per_tile=256, image_size=448)
    assert [len(e.chosen_labels) for e in found] == [301, 301, 301, 212]
    assert [len(e.rejected_labels) for e in found] == [351, 351, 351, 172]
    # Prompt tokens but the last, which opens both responses.
    assert [len(e.prompt) for e in found] == [256 + 126] * 3 + [256 + 71]
    fill = {"prompt_tokens": 0.9, "chosen_tokens": 0.7, "rejected_tokens": 0.7}
    shape = ours.row_shape(found, rows=2, fill=fill | {"tiles": 0.9})
    assert shape.pairs == 2 and shape.tiles == 2
    assert shape.chosen_tokens * 0.7 >= 602


@pytest.mark.parametrize("tiles", workload.GRIDS)
def test_pictures_have_the_tiles_they_promise(tiles):
    from mpo_jax.inputs import images

    found = images.tile(
        workload.picture(tiles, seed=0),
        min_num=1,
        max_num=12,
        image_size=448,
        use_thumbnail=True,
    )
    assert len(found) == tiles


def test_tokenizer_and_template_give_our_ids():
    tokenizers = pytest.importorskip("tokenizers")
    jinja2 = pytest.importorskip("jinja2")
    text = tokenizers.Tokenizer.from_str(workload.tokenizer_json(40))
    (pair,) = workload.draw(pairs=1, tiles=1, vocab_size=40)
    content = [
        {"type": "image"},
        {"type": "text", "text": workload.words(pair.question)},
    ]
    rendered = jinja2.Template(workload.TEMPLATE).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )
    rendered = rendered.replace(
        "<IMG_CONTEXT>", "<img>" + 3 * "<IMG_CONTEXT>" + "</img>"
    )
    assert text.encode(rendered).ids == pair.prompt_ids(3).tolist()


def test_of_lengths_costs_what_it_says():
    pair = workload.of_lengths(
        prompt=600, chosen=20, rejected=30, tiles=2, vocab_size=99, seed=0
    )
    tiles = np.zeros((2, 4, 4, 3), np.uint8)
    found = ours.example(pair, tiles, tokens_per_tile=256)
    assert len(found.prompt) == 600
    assert (len(found.chosen_tokens), len(found.rejected_tokens)) == (20, 30)


def test_layout_joins_query_key_value():
    names = {
        f"model.vision_tower.encoder.layer.0.attention.{p}_proj.weight": np.full(
            (2, 2), i
        )
        for i, p in enumerate("qkv")
    }
    found = layout.to_original(names | {"lm_head.weight": np.zeros(1)})
    joined = found["vision_model.encoder.layers.0.attn.qkv.weight"]
    np.testing.assert_array_equal(joined[:, 0], [0, 0, 1, 1, 2, 2])
    assert set(found) == {
        "vision_model.encoder.layers.0.attn.qkv.weight",
        "language_model.lm_head.weight",
    }


def test_summary_compares_with_ours_and_refuses_other_work(tmp_path):
    def entry(seconds, loss):
        return {
            "seconds": [9.0, seconds, seconds],
            "processor_seconds": [9.0, 2 * seconds, 2 * seconds],
            "cores_of_others": [None, None, None],
            "tokens": int(100 * seconds),
            "tiles": 4,
            "flops": 1e12 * seconds,
            "peak_mib": 1000 * seconds,
            "base_mib": 0,
            "loss": [loss],
        }

    results = {
        "ours": entry(1.0, 2.0) | {"reference_seconds": 0.5, "reference_flops": 0.5e12},
        "released": entry(3.0, 2.0001),
    }
    found = step_vs_trl.summarise(results, pairs=2)["released"]["ratio"]
    assert found["time"] == pytest.approx(3)
    assert found["time_with_reference"] == pytest.approx(2)
    assert found["flops"] == pytest.approx(3)
    assert found["peak"] == pytest.approx(3)
    assert step_vs_trl.check_same_work(results, tmp_path)["released/loss"] < 1e-4
    results["released"]["loss"] = [2.1]
    with pytest.raises(ValueError, match="not the same work"):
        step_vs_trl.check_same_work(results, tmp_path)


def test_inputs_of_the_peer_are_compared(tmp_path):
    (pair,) = workload.write(tmp_path / "data", pairs=1, tiles=1, vocab_size=99)
    sides = [
        np.concatenate([pair.prompt_ids(256), pair.response_ids(side)])
        for side in ("chosen", "rejected")
    ]
    width = max(len(side) for side in sides)
    ids = np.stack([np.pad(side, (0, width - len(side))) for side in sides])
    mask = np.stack([np.arange(width) < len(side) for side in sides])

    def save(**changes):
        arrays = {"ids_0": ids, "mask_0": mask, "tiles": np.array([2])} | changes
        np.savez(tmp_path / "trl_inputs.npz", **arrays)

    save()
    step_vs_trl.check_inputs(tmp_path)
    other = ids.copy()
    other[1, 400] += 1
    save(ids_0=other)
    with pytest.raises(ValueError, match="rejected"):
        step_vs_trl.check_inputs(tmp_path)


def test_device_work_fits_and_peaks_are_by_name():
    work = json.loads(json.dumps(device.draw_work("toy", 1)))
    rows = device.pairs_of(work, 512)
    assert rows and rows[0]
    shape = types.RowShape(*work["shape"])
    need = np.array(work["rows"][0]).sum(axis=0)
    budgets = [getattr(shape, name) for name in plans.BUDGETS[:4]]
    assert (need <= budgets).all()
    assert device.peak_tflops("NVIDIA H100 80GB HBM3") == 989.0
    assert device.peak_tflops("cpu") is None
    failed = {"error": ["no torch"]}
    assert device.summarise({"torch": failed}) == {}


def test_clock_leaves_out_the_first_step():
    watch = clock.Clock()
    for _ in range(3):
        watch.start()
        watch.stop()
    assert len(watch.result()["seconds"]) == 3
    assert clock.warm([9.0, 1.0, 2.0]) == 1.5
    assert clock.warm([None, None]) is None
    assert clock.peak_mib() > 1


def test_plot_takes_the_ratios_of_all_files(tmp_path):
    values = {key: 2.0 for key in plot.QUANTITIES}
    case = {"summary": {"ours": {}, "trl": {"ratio": values | {"tokens": 1.0}}}}
    found = plot.ratios([{"layers": 1, "7 tiles": case}])
    assert found == {"7 tiles\ntrl": values}
    plot.draw(found, tmp_path / "ratios.png")
    assert (tmp_path / "ratios.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no ratios"):
        plot.ratios([{"layers": 1}])


def test_converter_sizes_and_lines(tmp_path):
    """The size that is asked for, peaks of this process, a line through them."""
    for gigabytes in (1.5, 4, 20):
        raw = convert.config_of(gigabytes)
        cfg = model_config.from_hf(raw)
        found = 2 * sum(t.size for t in convert.table.tensors(cfg)) / 1e9
        assert abs(found - gigabytes) < 0.25  # half a decoder layer of the larger
    peak = convert.Peak(interval=0.001)
    held = np.ones(40 * 2**20, np.uint8)
    time.sleep(0.05)
    found = peak.stop()
    assert held.nbytes <= found["anonymous"] <= found["resident"] + 2**20
    rows = [
        {"job": convert.JOBS[0], "bytes": size, "anonymous": 3 + 2 * size}
        for size in (10, 30)
    ]
    rows.append({"job": convert.JOBS[1], "bytes": 10, "anonymous": 3})
    further = convert.extrapolate(rows, 100)
    assert list(further) == [convert.JOBS[0]]
    assert further[convert.JOBS[0]] == pytest.approx(203)


@pytest.mark.slow
def test_converter_jobs(tmp_path):
    """Each job runs on a small checkpoint in small files, and is measured."""
    raw = sizes.released("1b", num_hidden_layers=1, vocab_size=300)
    raw["vision_config"] |= {"num_hidden_layers": 1, "hidden_size": 64}
    raw["vision_config"] |= {"num_attention_heads": 4, "intermediate_size": 64}
    total = convert.make(tmp_path / "model", raw, shard_bytes=2**23)
    held = convert.largest(tmp_path / "model")
    assert held["tensor"] <= held["file"] < total
    places = ("model", "checkpoint", "out", "native")
    model, checkpoint, out, native = (str(tmp_path / place) for place in places)
    for job, src, dst in (
        (convert.JOBS[0], model, checkpoint),
        (convert.JOBS[1], checkpoint, out),
        (convert.JOBS[2], model, native),
    ):
        done = convert.work(job, src, dst, shard_bytes=2**23)
        row = {"job": job, "bytes": total, "largest": held, **done}
        assert done["seconds"] > 0 and done["anonymous"] >= 0
        assert f"| {job} | " in convert.table_of([row])
    for file in (tmp_path / "model").glob("*.safetensors"):
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
