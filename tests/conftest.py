"""Shared fixtures: eight fake CPU devices, strict rank promotion, reference data."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib

import programs

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Compiling is most of the suite's time; optimised code would run for milliseconds.
# The third flag halves it; versions without it would refuse to start.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false"
    * importlib.metadata.version("jaxlib").startswith("0.10."),
)

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(programs.of_this_machine()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
import small_tokenizers
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
COMPILED = os.environ["JAX_COMPILATION_CACHE_DIR"]


def pytest_configure(config: pytest.Config) -> None:
    """Tidy up once, not in every worker."""
    if not hasattr(config, "workerinput"):
        programs.drop_unused()


@pytest.fixture(autouse=True)
def _programs_are_kept():
    """Where compiled programs go is not what the last test has made of it."""
    yield
    if jax.config.jax_compilation_cache_dir != COMPILED:
        jax.config.update("jax_compilation_cache_dir", COMPILED)
        compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Reference material beside the checkout; tests skip where it is absent."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("reference material (../shared) is absent")
    return path


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    """Root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict[str, pathlib.Path]:
    """Data and model of ``small_runs``."""
    import small_runs

    return small_runs.make_world(tmp_path_factory.mktemp("world"))


# Tokenizers of ``small_tokenizers``, one of each per session.


@pytest.fixture(scope="session")
def internlm2_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_internlm2(
        tmp_path_factory.mktemp("tokenizers") / "internlm2"
    )


@pytest.fixture(scope="session")
def qwen2_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_qwen2(tmp_path_factory.mktemp("tokenizers") / "qwen2")


@pytest.fixture(scope="session")
def phi3_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return small_tokenizers.write_phi3(tmp_path_factory.mktemp("tokenizers") / "phi3")


@pytest.fixture(scope="session")
def merging_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """InternLM2 with a piece that joins the header's newline to what follows."""
    path = tmp_path_factory.mktemp("tokenizers") / "merging"
    return small_tokenizers.write_internlm2(path, extra=("th", "\nth"))


@pytest.fixture(scope="session")
def make_phi3():
    """:func:`small_tokenizers.write_phi3`, for tests that change its configuration."""
    return small_tokenizers.write_phi3


@pytest.fixture(scope="session")
def make_sentencepiece():
    """:func:`small_tokenizers.sentencepiece_model`."""
    return small_tokenizers.sentencepiece_model
