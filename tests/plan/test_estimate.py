"""Chip figures, kernels, bounds: by hand and against JAX's own table."""

from __future__ import annotations

import pytest
from jax.experimental.pallas import tpu as pltpu
from test_compile import released

from mpo_jax import types
from mpo_jax.models import family
from mpo_jax.models import flops as flops_lib
from mpo_jax.plan import estimate, programs
from mpo_jax.utils import slices

SHAPE = types.RowShape(1024, 256, 256, 4, 2)


@pytest.mark.parametrize(
    ("generation", "version", "cores"),
    [
        ("v4", pltpu.ChipVersion.TPU_V4, 2),
        ("v5e", pltpu.ChipVersion.TPU_V5E, 1),
        ("v5p", pltpu.ChipVersion.TPU_V5P, 2),
        ("v6e", pltpu.ChipVersion.TPU_V6E, 1),
        ("tpu7x", pltpu.ChipVersion.TPU_7X, 2),
    ],
)
def test_chips_agree_with_jax(generation, version, cores):
    chip = estimate.CHIPS[generation]
    info = pltpu.get_tpu_info_for_chip(version, 1)
    assert chip.flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.01)
    # GB there, GiB here.
    assert chip.hbm == pytest.approx(cores * info.hbm_capacity_bytes, rel=0.01)
    rel = 0.13 if generation == "v5p" else 0.01  # Cloud's page says 2,765 GB/s
    wide = cores * info.mem_bw_bytes_per_second
    assert chip.bandwidth == pytest.approx(wide, rel=rel)


def test_every_generation_has_a_chip():
    assert set(estimate.CHIPS) == {g.name for g in slices.GENERATIONS}


def test_kernels_by_formula():
    heads, visible = 8, flops_lib.of_budget(SHAPE).visible
    decoder = [
        ("splash_mha_fwd_segmented_residuals", (heads, 1536, 128), 2.0),
        ("splash_mha_dq_segmented_no_residuals", (heads, 1536, 128), 1.0),
        ("splash_mha_dkv_segmented_no_residuals", (heads, 1536, 128), 1.0),
    ]
    found = estimate.kernel_flops(tuple(decoder), SHAPE)
    # Forward twice (recomputed), 2 + 2 products; backward 3 + 4.
    assert found == 2 * (2 * 2 + 3 + 4) * heads * visible * 128
    tower = (("splash_mha_fwd_segmented", (4, 16, 1152, 64), 3.0),)
    assert estimate.kernel_flops(tower, SHAPE) == 3 * 2 * 2 * 4 * 16 * 1152**2 * 64
    with pytest.raises(ValueError, match="ring_attention .* is unknown"):
        estimate.kernel_flops((("ring_attention", (1, 2, 3), 1.0),), SHAPE)


def made(**values) -> programs.Compiled:
    return programs.Compiled(
        **{
            "status": programs.FITS,
            "flops": 197e12,
            "cycles": 3e9,
            "collectives": {
                "all-gather": {"count": 1.0, "bytes": 100e9, "across_slices": 0.0}
            },
            "memory": programs.Memory(params=819 * 10**6),
            **values,
        }
    )


def estimated(compiled: programs.Compiled, **options) -> estimate.Estimate:
    cfg = released()
    model = family.lookup(cfg.model.path)
    assert model is not None
    case = programs.Case(cfg, "v5e:2x2", 1, "short", options.pop("step", "train"), 4)
    return estimate.estimate(
        case, compiled, model, workload=estimate.Workload(), **options
    )


def test_times_of_one_device():
    found = estimated(made())
    assert (found.products, found.memory) == (1.0, pytest.approx(1e-3))
    assert found.links == pytest.approx(0.5)  # 100 GB over 200 GB/s outward
    assert found.bound == 1.0
    assert found.seconds == pytest.approx(2.0)  # cycles at 1.5 GHz
    assert found.mfu == pytest.approx(found.useful / (2.0 * 4 * 197e12))
    assert found.mfu_bound == pytest.approx(2 * found.mfu)
    assert found.pairs_per_second == pytest.approx(found.pairs / 2.0)


def test_the_estimate_is_never_below_the_bound_nor_made_up():
    assert estimated(made(cycles=1e6)).seconds == 1.0
    assert estimated(made(cycles=0.0)).seconds == 0.0
    assert estimated(made(cycles=0.0)).mfu == 0.0


def test_traffic_between_slices_is_not_timed_as_links():
    between = {"all-reduce": {"count": 1.0, "bytes": 1e12, "across_slices": 1e12}}
    assert estimated(made(collectives=between)).links == 0.0


def test_useful_flops_by_step_and_frozen_parts():
    train = estimated(made())
    assert train.useful < train.budget
    reference = estimated(made(), step="reference")
    assert train.useful == pytest.approx(3 * reference.useful, rel=0.01)
    only_language = flops_lib.Trained(vision=False, projector=False)
    assert estimated(made(), trained=only_language).useful < train.useful


def test_workload_on_the_recipe_shape():
    shape = types.RowShape(4352, 1024, 1152, 16, 8)
    counts = estimate.Workload().counts(shape)
    assert counts.pairs == pytest.approx(2.67, abs=0.01)
    assert counts.prompt == pytest.approx(0.96 * 4352)
    # The prompt must have room for its image tokens.
    assert counts.prompt > 256 * counts.tiles
    with pytest.raises(ValueError, match=r"fill of tiles must lie in \(0, 1\]"):
        estimate.Workload(tiles=1.2)
    with pytest.raises(ValueError, match="pair_prompt=0 must be positive"):
        estimate.Workload(pair_prompt=0)


def test_sft_rows_have_no_rejected_side():
    counts = estimate.Workload().counts(types.RowShape(4096, 2048, 0, 16, 12))
    assert counts.rejected == 0 and counts.responses == 0.77 * 2048
