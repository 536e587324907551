"""What a run stands on: checked config, model, tokenizer, mesh."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from mpo_jax import checkpoint, sharding, types
from mpo_jax import config as config_lib
from mpo_jax.convert import hub
from mpo_jax.convert import settings as settings_lib
from mpo_jax.inputs import template as template_lib
from mpo_jax.inputs import tokenizer
from mpo_jax.mmpr import examples
from mpo_jax.models import adapted, internvl
from mpo_jax.models import config as model_config
from mpo_jax.run import addresses
from mpo_jax.utils import progress, remote, slices, wandb_board


@dataclasses.dataclass(frozen=True)
class Setup:
    """What every stage needs and none changes.

    Attributes:
      place: the work directory as it was named: a directory, or an address.
    """

    cfg: config_lib.RunConfig
    place: str | pathlib.Path
    mesh: Any
    source: hub.Source
    model: internvl.InternVL
    tokenizer_path: pathlib.Path
    policy: examples.EncodePolicy
    img_context_id: int

    @property
    def workdir(self) -> pathlib.Path:
        """Where this process has the files of the work directory."""
        return addresses.local(self.place)

    def at(self, name: str) -> str | pathlib.Path:
        """What others write to the work directory itself, address or not."""
        return remote.join(self.place, name)

    @property
    def shapes(self) -> tuple[types.RowShape, ...]:
        rows = self.cfg.rows
        return tuple(s.build() for s in (rows.short, rows.long) if s.used)

    @property
    def uses_reference(self) -> bool:
        """Whether the policy is compared with a reference."""
        return self.cfg.mode == types.MPO and self.cfg.reference.mode != "none"

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
        place = self.cfg.data.cache_dir
        return addresses.local(place) if place else self.workdir / addresses.DATA


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
    checkpoint.check_place(workdir)
    wandb_board.check(cfg.log.wandb)
    source = hub.locate(cfg.model.path)
    model_cfg = source.config()
    policy = _encode_policy(cfg, source, model_cfg)
    path = _tokenizer_path(cfg, source)
    chat = _checked_tokenizer(path, policy.template, model_cfg)
    mesh = sharding.make_mesh(
        data=cfg.mesh.data,
        fsdp=cfg.mesh.fsdp,
        tensor=cfg.mesh.tensor,
        devices=devices,
    )
    if cfg.topology:
        _check_topology(cfg.topology, mesh)
    place = str(workdir).rstrip("/")
    if not remote.is_remote(place):
        place = pathlib.Path(workdir).absolute()
    _make_folder(addresses.local(place))
    return Setup(
        cfg=cfg,
        place=place,
        mesh=mesh,
        source=source,
        model=internvl.InternVL(model_cfg, adapted.of(cfg.model, model_cfg)),
        tokenizer_path=path,
        policy=policy,
        img_context_id=chat.img_context_id,
    )


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"--workdir={folder}: there is a file, or a link to nothing, where this "
            "directory would be; name another one"
        ) from error


def _encode_policy(
    cfg: config_lib.RunConfig,
    source: hub.Source,
    model_cfg: model_config.InternVLConfig,
) -> examples.EncodePolicy:
    """How records become tokens and tiles."""
    template = cfg.data.template or model_cfg.template
    if not template:
        raise ValueError(
            f"{source.files}/config.json names no template; set data.template"
        )
    return examples.EncodePolicy(
        template=template,
        image_size=model_cfg.image_size,
        tokens_per_tile=model_cfg.tokens_per_tile,
        min_tiles=cfg.data.min_tiles,
        max_tiles=cfg.data.max_tiles,
        use_thumbnail=model_cfg.use_thumbnail,
        max_image_pixels=cfg.data.max_image_pixels,
        chosen_only=cfg.mode == types.SFT,
    )


def _tokenizer_path(cfg: config_lib.RunConfig, source: hub.Source) -> pathlib.Path:
    """The config's tokenizer, else the one that the model came with."""
    given = cfg.data.tokenizer
    if not given:
        return source.settings.tokenizer or source.files
    if remote.is_remote(given):
        return hub.resolve(given, weights=False)
    return pathlib.Path(given)


def _checked_tokenizer(
    path: pathlib.Path, template: str, model_cfg: model_config.InternVLConfig
) -> tokenizer.ChatTokenizer:
    """The tokenizer, which must fit the model's embeddings and the template."""
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
    return chat


def _check_topology(name: str, mesh: Any) -> None:
    """Check the recipe's slice name; say so where a TPU run uses another size."""
    meant = slices.lookup(name)
    devices = mesh.devices.size
    on_tpu = mesh.devices.flat[0].platform == "tpu"
    if on_tpu and devices != meant.devices:
        progress.console().print(
            f"This recipe is meant for {name} ({meant.devices} devices), here are "
            f"{devices}; rows follow, memory may need a change (scripts/plan.py)."
        )
