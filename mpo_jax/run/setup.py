"""What a run stands on: checked config, model, tokenizer, mesh, first weights."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

import jax

from mpo_jax import checkpoint, sharding, types
from mpo_jax import config as config_lib
from mpo_jax.convert import health, hub
from mpo_jax.convert import settings as settings_lib
from mpo_jax.inputs import template as template_lib
from mpo_jax.inputs import tokenizer
from mpo_jax.mmpr import examples
from mpo_jax.models import adapted, internvl
from mpo_jax.nn import params as params_lib
from mpo_jax.train import state
from mpo_jax.utils import progress, remote, slices


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every stage needs and none changes."""

    cfg: config_lib.RunConfig
    workdir: pathlib.Path
    mesh: Any
    source: hub.Source
    model: internvl.InternVL
    tokenizer_path: pathlib.Path
    policy: examples.EncodePolicy
    img_context_id: int

    @property
    def shapes(self) -> tuple[types.RowShape, ...]:
        rows = self.cfg.rows
        return tuple(s.build() for s in (rows.short, rows.long) if s.used)

    @property
    def settings(self) -> settings_lib.Settings:
        """What exports of this run say of its prompts, whatever it started from."""
        return settings_lib.of_run(
            self.cfg.data,
            self.source.files,
            template=self.policy.template,
            tokenizer=self.tokenizer_path,
        )

    @property
    def cache_dir(self) -> pathlib.Path:
        return pathlib.Path(self.cfg.data.cache_dir or self.workdir / "data")


def setup(
    cfg: config_lib.RunConfig,
    workdir: str | pathlib.Path,
    *,
    devices: Any = None,
) -> Setup:
    """Validate the config, find model and tokenizer, make the mesh.

    Raises:
      ValueError: if config, model and tokenizer do not fit together; says what to do.
    """
    cfg.validate()
    cfg, workdir = cfg.located(), os.path.expanduser(workdir)
    _check_places(cfg, workdir)
    source = hub.locate(cfg.model.path)
    model_cfg = source.config()
    template = cfg.data.template or model_cfg.template
    if not template:
        raise ValueError(
            f"{source.files}/config.json names no template; set data.template"
        )
    path = source.settings.tokenizer or source.files
    if cfg.data.tokenizer:
        path = pathlib.Path(cfg.data.tokenizer)
        if remote.is_remote(cfg.data.tokenizer):
            path = hub.resolve(cfg.data.tokenizer, weights=False)
    chat = tokenizer.load_tokenizer(path)
    if chat.vocab_size > model_cfg.language.vocab_size:
        raise ValueError(
            f"tokenizer {path} has {chat.vocab_size} tokens, the model "
            f"{model_cfg.language.vocab_size} embeddings; set data.tokenizer to the "
            "model's own"
        )
    template_lib.check_tokenizer(
        template_lib.get_template(template), chat, where=str(path)
    )
    policy = examples.EncodePolicy(
        template=template,
        image_size=model_cfg.image_size,
        tokens_per_tile=model_cfg.tokens_per_tile,
        min_tiles=cfg.data.min_tiles,
        max_tiles=cfg.data.max_tiles,
        use_thumbnail=model_cfg.use_thumbnail,
        max_image_pixels=cfg.data.max_image_pixels,
        chosen_only=cfg.mode == types.SFT,
    )
    mesh = sharding.make_mesh(
        data=cfg.mesh.data,
        fsdp=cfg.mesh.fsdp,
        tensor=cfg.mesh.tensor,
        devices=devices,
    )
    if cfg.topology:
        _check_topology(cfg.topology, mesh)
    workdir = pathlib.Path(workdir).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    return Setup(
        cfg=cfg,
        workdir=workdir,
        mesh=mesh,
        source=source,
        model=internvl.InternVL(model_cfg, adapted.of(cfg.model, model_cfg)),
        tokenizer_path=path,
        policy=policy,
        img_context_id=chat.img_context_id,
    )


def _check_places(cfg: config_lib.RunConfig, workdir: str | pathlib.Path) -> None:
    """Refuse an address where a directory is needed; models may have one."""
    logs = "metrics are appended to, and results appear by a rename"
    read = "annotations and images are read as files, at any place in them"
    parts = "its parts appear by a rename"
    for field, place, why in (
        ("workdir", str(workdir), logs),
        ("data.meta", cfg.data.meta, read),
        ("data.eval_meta", cfg.data.eval_meta, read),
        ("data.cache_dir", cfg.data.cache_dir, parts),
        ("reference.cache", cfg.reference.cache, parts),
    ):
        remote.refuse(place, field=field, why=why)
    checkpoint.check_place(workdir)


def _check_topology(name: str, mesh: Any) -> None:
    """Check the recipe's slice name; say so where a TPU run uses another size."""
    meant = slices.lookup(name)
    devices = mesh.devices.size
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if on_tpu and devices != meant.devices:
        progress.console().print(
            f"This recipe is meant for {name} ({meant.devices} devices), here are "
            f"{devices}; rows.row_multiple and memory may need a change."
        )


def initial_params(run: Setup) -> params_lib.Params:
    """The policy's first weights on the mesh: the run's starting point, adapters drawn.

    Straight into their sharding; with ``model.init=random`` they are drawn there.

    Raises:
      ValueError: if weights that are read hold NaN or infinite values.
    """
    return _adapted(run, run.model, _base_params(run, ""))


def reference_params(run: Setup, path: str = "") -> params_lib.Params:
    """Weights of a reference, without adapters: of `path`, or of the starting point."""
    return _adapted(run, run.model.without_adapters, _base_params(run, path))


def _base_params(run: Setup, path: str) -> params_lib.Params:
    cfg, model = run.cfg.model, run.model.base
    placed = sharding.shardings(model.shapes, model.axes, run.mesh)
    dtypes = _dtypes(run)
    if cfg.init == "random" and not path:

        def draw(key: jax.Array) -> params_lib.Params:
            drawn = model.init(key)
            return jax.tree.map(lambda x, kind: x.astype(kind), drawn, dtypes)

        return jax.jit(draw, out_shardings=placed)(jax.random.key(run.cfg.seed))
    source = hub.locate(path) if path else run.source
    params = hub.load_params(source, model, dtype=dtypes, shardings=placed)
    for note in health.check(params, where=str(source.weights)):
        progress.console().print(f"note: {note}")
    return params


def _dtypes(run: Setup) -> params_lib.Params:
    """Dtype of every base parameter; of a stack that is cut, that of trained ones."""
    trained, kinds = adapted.trained(run.cfg.model), state.dtypes(run.cfg.model)
    found: dict[str, Any] = {}
    for path, _ in params_lib.flatten(run.model.without_adapters.shapes):
        base = adapted.base_path(path)
        if trained(path) or base not in found:
            found[base] = kinds["param_dtype" if trained(path) else "frozen_dtype"].name
    return params_lib.unflatten(found)


def _adapted(
    run: Setup, model: internvl.InternVL, base: params_lib.Params
) -> params_lib.Params:
    """The tree of `model` from the base's; where they are one, the base itself."""
    if model is model.base:
        return base
    trained, kinds = adapted.trained(run.cfg.model), state.dtypes(run.cfg.model)

    # Another key than that of random weights.
    key = jax.random.fold_in(jax.random.key(run.cfg.seed), 1)

    def adapt(base: params_lib.Params) -> params_lib.Params:
        flat = params_lib.flatten(model.adapt(base, key))
        return params_lib.unflatten(
            {
                path: leaf.astype(
                    kinds["param_dtype" if trained(path) else "frozen_dtype"]
                )
                for path, leaf in flat
            }
        )

    shapes, axes = model.shapes, model.axes
    placed = sharding.shardings(shapes, axes, run.mesh)
    return adapted.rebuild(adapt, base, shapes=shapes, shardings=placed)
