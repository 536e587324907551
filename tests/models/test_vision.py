"""What surrounds the vision tower: pixels in, merged patches out."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from transformers import image_utils

from mpo_jax.models import projector, vit


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(("side", "factor"), [(4, 2), (6, 3), (6, 2)])
def test_pixel_shuffle_merges_a_square_of_patches(side, factor, version):
    """Token by token. Version 1 lists the squares column by column."""
    width, out = 3, side // factor
    x = np.random.default_rng(0).normal(size=(2, side**2, width)).astype(np.float32)
    found = projector.pixel_shuffle(jnp.asarray(x), factor=factor, version=version)
    assert found.shape == (2, out**2, factor**2 * width)
    grid = x.reshape(2, side, side, width)
    for token in range(out**2):
        row, column = divmod(token, out)
        if version == "v1":
            row, column = column, row
        square = grid[
            :,
            row * factor : (row + 1) * factor,
            column * factor : (column + 1) * factor,
        ]
        np.testing.assert_array_equal(found[:, token], square.reshape(2, -1))


def test_pixels_are_normalised_by_the_statistics_of_imagenet():
    tiles = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    mean, std = image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD
    expected = (tiles / 255 - np.array(mean)) / np.array(std)
    found = vit.normalise(jnp.asarray(tiles), dtype=jnp.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    low = vit.normalise(jnp.asarray(tiles), dtype=jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_array_equal(low, found.astype(jnp.bfloat16))
    # What is normalised already is only cast.
    np.testing.assert_array_equal(vit.normalise(found, dtype=jnp.float32), found)
