"""Where a model comes from: directory, converted checkpoint, training run or hub id.

Nothing that is fetched is ever executed: remote code (``*.py``) is only carried along.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import huggingface_hub
import jax
import jax.numpy as jnp
from huggingface_hub import errors as hub_errors

from mpo_jax import checkpoint
from mpo_jax import config as config_lib
from mpo_jax.convert import files as files_lib
from mpo_jax.convert import hf, places, stream
from mpo_jax.convert import settings as settings_lib
from mpo_jax.convert import source as source_lib
from mpo_jax.models import adapted, internvl
from mpo_jax.models import config as model_config
from mpo_jax.nn import lora
from mpo_jax.nn import params as params_lib
from mpo_jax.utils import remote

FILES = "hf"
"""Sub-directory of a converted checkpoint with config.json, tokenizer and so on."""
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TEXTS = ("*.json", "*.model", "*.txt", "*.py", "*.jinja", "*.md", "LICENSE*")


@dataclasses.dataclass(frozen=True)
class Source:
    """A located model.

    Attributes:
      kind: ``hf`` (safetensors) or ``orbax``.
      weights: directory that holds them, or its address.
      files: local directory with config.json and what else an export carries along.
      settings: what a training run set otherwise than those files say.
    """

    kind: str
    weights: str | pathlib.Path
    files: pathlib.Path
    settings: settings_lib.Settings = settings_lib.NONE

    def config(self) -> model_config.InternVLConfig:
        """The architecture, with the run's template and tile limits.

        Raises:
          FileNotFoundError, ValueError: see ``models.config.load``.
        """
        return self.settings.of_model(model_config.load(self.files))


def resolve(
    source: str | pathlib.Path, *, revision: str | None = None, weights: bool = True
) -> pathlib.Path:
    """Local directory of a model; a hub id is downloaded (or found in the cache).

    Args:
      source: directory, or id such as ``OpenGVLab/InternVL2-8B``. A directory wins.
      revision: branch, tag or commit of an id.
      weights: False fetches configuration and tokenizer only.

    Raises:
      FileNotFoundError: if it is neither a directory nor an id that can be had.
      ValueError: if it is an address and weights are wanted, since those are not
        downloaded: :func:`locate` reads them where they are.
    """
    if not str(source):
        raise FileNotFoundError("no model is named; give a directory or a hub id")
    if remote.is_remote(source) and not weights:
        return places.mirror(str(source))
    remote.refuse(source, field="model", why="its weights are wanted on a disk here")
    path = pathlib.Path(os.path.expanduser(source))
    if path.is_dir():
        return path
    if path.exists():
        raise FileNotFoundError(f"{source} is a file; give the model's directory")
    if not _ID.fullmatch(str(source)):
        raise FileNotFoundError(
            f"{source} is no directory and no model id (OWNER/NAME); check the path"
        )
    patterns = [*_TEXTS, "*.safetensors"] if weights else [*_TEXTS]
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                str(source), revision=revision, allow_patterns=patterns
            )
        )
    except (hub_errors.HfHubHTTPError, OSError) as error:
        raise FileNotFoundError(
            f"{source} is no local directory, and the hub did not give it: {error}"
        ) from error


def locate(
    source: str | pathlib.Path,
    *,
    revision: str | None = None,
    files: str | pathlib.Path | None = None,
) -> Source:
    """Find weights and accompanying files of a model.

    Args:
      source: HF directory or hub id, converted checkpoint (``params`` and ``hf``), or
        a training workdir, whose newest checkpoint counts; each a path or an address
        (``gs://…``), where weights are read in place and small files are fetched.
      files: directory with config.json and tokenizer, where `source` names none. A
        training run names the model that it started from.

    Raises:
      FileNotFoundError: saying what is missing.
    """
    directory: str | pathlib.Path
    named = None if files is None else resolve(files, weights=False)
    if remote.is_remote(source):
        directory = str(source).rstrip("/")
        if "config.json" in places.check_finished(directory):
            return Source("hf", directory, named or places.mirror(directory))
    else:
        directory = resolve(source, revision=revision)
        if (directory / "config.json").is_file():
            return Source("hf", directory, named or directory)
    weights = checkpoint.params_directory(directory)
    if weights is None and "adapter_config.json" in files_lib.file_sizes(directory):
        raise FileNotFoundError(
            f"{directory} is a PEFT adapter without its model; merge the two first "
            "(merge_and_unload) and name the result"
        )
    if weights is None:
        raise FileNotFoundError(
            f"{directory} holds neither a config.json (HF directory) nor a checkpoint"
        )
    named, settings = _beside(directory, named)
    if remote.is_remote(directory):
        weights = str(weights)
    return Source("orbax", weights, named, settings)


def _beside(
    directory: str | pathlib.Path, named: pathlib.Path | None = None
) -> tuple[pathlib.Path, settings_lib.Settings]:
    """Files that belong to a checkpoint, and what its run set otherwise.

    Args:
      named: directory to take the files from, instead of those that are found.
    """
    run = checkpoint.load_metadata(directory).get("config") or {}
    bundled = remote.join(directory, FILES)
    if named is None and "config.json" in files_lib.file_sizes(bundled):
        named = resolve(bundled, weights=False)
    files, start = named, settings_lib.NONE
    if files is None:
        files, start = _of_start(directory, run)
    if run.get("data") is None:  # converted, not trained
        return files, start
    data = _section(config_lib.DataConfig(), run["data"])
    tokenizer = start.tokenizer
    if data.tokenizer:
        try:
            tokenizer = resolve(data.tokenizer, weights=False)
        except FileNotFoundError as error:
            # Files that the run exported, or that are named, come with a tokenizer.
            if named is None:
                raise FileNotFoundError(
                    f"{directory} was trained with data.tokenizer={data.tokenizer}, "
                    "which is not there (any more); put it back, or name a model "
                    "directory that holds this tokenizer (--hf_files)"
                ) from error
    template = data.template or start.template or model_config.load(files).template
    return files, settings_lib.of_run(
        data, files, template=template, tokenizer=tokenizer
    )


def _section(default: Any, stored: Mapping[str, Any]) -> Any:
    """Part of a stored config; one that is older than a field has its default."""
    names = {field.name for field in dataclasses.fields(default)}
    known = {name: value for name, value in stored.items() if name in names}
    return dataclasses.replace(default, **known)


def _of_start(
    directory: str | pathlib.Path, run: Mapping[str, Any]
) -> tuple[pathlib.Path, settings_lib.Settings]:
    """The same of the model that a run started from, which may be a run's too."""
    start = (run.get("model") or {}).get("path")
    if not start:
        raise FileNotFoundError(
            f"{directory} has no {FILES}/config.json and names no model that it "
            "started from; name a model directory for config.json and tokenizer "
            "(--hf_files)"
        )
    origin: str | pathlib.Path = start.rstrip("/")
    if not remote.is_remote(start):
        try:
            origin = resolve(start, weights=False)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{directory} was trained from {start}: {error}. If it is gone, name a "
                "model directory for config.json and tokenizer (--hf_files)"
            ) from error
    if "config.json" in files_lib.file_sizes(origin):
        return resolve(origin, weights=False), settings_lib.NONE
    if checkpoint.params_directory(origin) is not None:
        return _beside(origin)
    beside = remote.join(origin, FILES)
    if "config.json" in files_lib.file_sizes(beside):
        return resolve(beside, weights=False), settings_lib.NONE
    raise FileNotFoundError(
        f"{directory} was trained from {start}, which has no config.json (any more); "
        "name a model directory for config.json and tokenizer (--hf_files)"
    )


@contextlib.contextmanager
def fetching(found: Source, model: internvl.InternVL) -> Iterator[hf.Fetch]:
    """How to get layers of the parameters of a located model, for one export.

    Released files are read tensor by tensor, checkpoints layer by layer (or parameter
    by parameter: see ``stream.Reader``).

    Raises:
      ValueError: naming tensors or parameters that do not fit the model.
    """
    if found.kind == "hf":
        with source_lib.opened(found.weights) as opened:
            yield hf.fetch_source(opened, model)
        return
    # Headers only; names what is of another model.
    run = run_model(found, model)
    checkpoint.check_params(found.weights, run.shapes)
    checkpoint.verify_params(found.weights)
    yield hf.folded(stream.Reader(found.weights), run)


def trained_with(found: Source) -> config_lib.ModelConfig:
    """Model part of the config that a checkpoint was trained with; else the default."""
    if found.kind == "hf":
        return config_lib.ModelConfig()
    stored = (checkpoint.load_metadata(found.weights).get("config") or {}).get("model")
    return config_lib.from_json(json.dumps({"model": stored or {}})).model


def run_model(found: Source, model: internvl.InternVL) -> internvl.InternVL:
    """The model whose parameters a located checkpoint holds: `model`, or it adapted."""
    adaptation = adapted.of(trained_with(found), model.cfg)
    if adaptation == adapted.UNADAPTED:
        return model
    return internvl.InternVL(model.cfg, adaptation)


def load_params(
    source: Source,
    model: internvl.InternVL,
    *,
    dtype: str | Mapping[str, Any] = "float32",
    shardings: Mapping[str, Any] | None = None,
) -> params_lib.Params:
    """Read the weights of a located model, whichever way they are stored.

    Adapters of a training run are folded in.

    Args:
      model: as released (a base).
      dtype: ``float32``, ``bfloat16`` or ``float16``, or a nested dict of them.
      shardings: nested dict like the parameters; None places them on the first device.

    Raises:
      FileNotFoundError, ValueError: see ``hf.load`` and ``checkpoint.load_params``.
    """
    if shardings is None:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shardings = dict(jax.tree.map(lambda _: device, model.shapes))
    if source.kind == "hf":
        return hf.load(source.weights, model, dtype=dtype, shardings=shardings)
    if isinstance(dtype, str):
        kinds = {path: dtype for path, _ in params_lib.flatten(model.shapes)}
    else:
        kinds = dict(params_lib.flatten(dtype))
    run = run_model(source, model)
    found = load_run_params(source, run, kinds=kinds, shardings=shardings)
    if run is model:
        return found
    return adapted.rebuild(
        run.fold_adapters, found, shapes=model.shapes, shardings=shardings
    )


def load_run_params(
    source: Source,
    run: internvl.InternVL,
    *,
    kinds: Mapping[str, Any],
    shardings: Mapping[str, Any],
) -> params_lib.Params:
    """Parameters of a training run as they are: adapters, float32, beside the rest.

    Args:
      run: see :func:`run_model`.
      kinds: dtypes by paths of the base.
      shardings: nested dict like the base's parameters.

    Raises:
      FileNotFoundError, ValueError: see ``checkpoint.load_params``.
    """
    places = dict(params_lib.flatten(shardings))
    whole = _everywhere(next(iter(places.values())))
    abstract = {}
    for path, leaf in params_lib.flatten(run.shapes):
        base, adapter = adapted.base_path(path), lora.is_adapter(path)
        kind = jnp.float32 if adapter else jnp.dtype(kinds[base])
        place = whole if adapter else places[base]
        abstract[path] = jax.ShapeDtypeStruct(leaf.shape, kind, sharding=place)
    return checkpoint.load_params(source.weights, params_lib.unflatten(abstract))


def _everywhere(place: Any) -> Any:
    """Sharding of small arrays on the devices of `place`."""
    if isinstance(place, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
    return place
