"""``InternVL``: a model to load, look into and save, e.g. in a notebook.

::

    model = InternVL.from_pretrained("OpenGVLab/InternVL2-2B", dtype="bfloat16")
    features = model.image_features(tiles)  # [n, I, D]
    logits = model.logits(input_ids, attention_mask, tiles)  # [b, s, V]
    print(model.generate("What is shown?", "photo.png"))
    answer, history = model.chat("And what is beside it?", history=[...])
    model.save_pretrained("my-model")
"""

from __future__ import annotations

import contextlib
import functools
import io
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from mpo_jax import ledger, sharding
from mpo_jax.convert import files, hf, hub
from mpo_jax.convert import settings as settings_lib
from mpo_jax.generate import local, prompts, requests, speaker
from mpo_jax.inputs import images as images_lib
from mpo_jax.inputs import template
from mpo_jax.inputs import tokenizer as tokenizer_lib
from mpo_jax.models import internvl, network
from mpo_jax.nn import params as params_lib

IMG_CONTEXT = "<IMG_CONTEXT>"


class InternVL:
    """Weights and architecture, with compiled forward functions.

    Attributes:
      cfg: architecture.
      model: which parameters there are, and the network that they make.
      params: nested dict ``{vision, projector, language}``; may be replaced by one of
        the same shapes.
      files: directory whose config.json, tokenizer and so on belong to it, or None.
      settings: what a training run set otherwise than those files say.
      img_context_token_id: token that image features replace, or None if unknown.
      compute: how it is computed.
    """

    def __init__(
        self,
        model: internvl.InternVL,
        params: params_lib.Params,
        *,
        files: pathlib.Path | None = None,
        settings: settings_lib.Settings = settings_lib.NONE,
        img_context_token_id: int | None = None,
        dtype: str = "float32",
    ):
        self.model = model
        self.cfg = model.cfg
        self.params = params
        self.files = files
        self.settings = settings
        self.img_context_token_id = img_context_token_id
        self.compute = compute = network.Compute(dtype=jnp.dtype(dtype), remat="none")

        @jax.jit
        def image_features(weights: params_lib.Params, tiles: Any) -> jax.Array:
            return model.bind(weights).image_features(tiles, compute=compute)

        @jax.jit
        def logits(weights: params_lib.Params, *inputs: Any) -> jax.Array:
            return model.bind(weights).logits(*inputs, compute=compute)

        self._features, self._logits = image_features, logits

    @classmethod
    def from_pretrained(
        cls,
        source: str | pathlib.Path,
        *,
        dtype: str = "float32",
        img_context_token_id: int | None = None,
        revision: str | None = None,
    ) -> InternVL:
        """Load a model.

        Args:
          source: HF directory (either layout), hub id, checkpoint of
            ``scripts/convert_from_hf.py``, or workdir of a training run; directories
            also by address (``gs://…``).
          dtype: ``float32`` or ``bfloat16``, of parameters and computation.
          img_context_token_id: needed only where the directory has no tokenizer.
          revision: branch, tag or commit of a hub id.

        Raises:
          FileNotFoundError: if weights or config.json are absent.
          ValueError: if they are not a supported model; names what is wrong.
        """
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype={dtype!r}: use float32 or bfloat16")
        found = hub.locate(source, revision=revision)
        model = internvl.InternVL(found.config())
        if img_context_token_id is None:
            place = found.settings.tokenizer or found.files
            img_context_token_id = files.special_token_id(place, IMG_CONTEXT)
        return cls(
            model,
            hub.load_params(found, model, dtype=dtype),
            files=found.files,
            settings=found.settings,
            img_context_token_id=img_context_token_id,
            dtype=dtype,
        )

    def image_features(self, tiles: Any) -> jax.Array:
        """Language-space features of image tiles.

        Args:
          tiles: ``[n, S, S, 3]``, uint8 RGB, or floats that are normalised already
            (ImageNet mean and standard deviation).

        Returns:
          ``[n, I, D]`` in the model's dtype.

        Raises:
          ValueError: on another shape or dtype.
        """
        return self._features(self.params, self._tiles(tiles))

    def logits(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        tiles: Any = None,
        *,
        img_context_token_id: int | None = None,
    ) -> jax.Array:
        """Next-token logits of ordinary sequences.

        Args:
          input_ids: int ``[b, s]``, every image already ``n * I`` context tokens long.
          attention_mask: ``[b, s]``, 1 for tokens and 0 for padding on either side;
            None is all tokens. Logits at padding have no meaning.
          tiles: ``[n, S, S, 3]`` of the whole batch in reading order, as for
            :meth:`image_features`; None for text only.
          img_context_token_id: overrides the model's.

        Returns:
          float32 ``[b, s, V]``.

        Raises:
          ValueError: if shapes or token ids are wrong, or if the number of image tokens
            is not ``n * I``.
        """
        ids = np.asarray(input_ids)
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"input_ids: {ids.dtype} {ids.shape}, must be integers [b, s]"
            )
        vocab = self.cfg.language.vocab_size
        if ids.size and not 0 <= ids.min() <= ids.max() < vocab:
            raise ValueError(
                f"input_ids lie in [{ids.min()}, {ids.max()}], the vocabulary has "
                f"{vocab} tokens; does the tokenizer belong to this model?"
            )
        limit = self.cfg.language.max_position_embeddings
        if ids.shape[1] > limit:
            raise ValueError(
                f"input_ids are {ids.shape[1]} tokens long, the model was made for "
                f"{limit} (max_position_embeddings)"
            )
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        mask = np.asarray(mask)
        if mask.shape != ids.shape:
            raise ValueError(
                f"attention_mask {mask.shape} must have the shape of input_ids "
                f"{ids.shape}"
            )
        token = img_context_token_id
        if token is None:
            token = self.img_context_token_id
        if token is None and tiles is not None:
            raise ValueError(
                f"the id of {IMG_CONTEXT} is unknown, as {self.files} has no "
                "tokenizer; pass img_context_token_id"
            )
        is_image = np.zeros(ids.shape, bool) if token is None else ids == token
        pixels = None if tiles is None else self._tiles(tiles)
        count = 0 if pixels is None else pixels.shape[0]
        slots = count * self.cfg.tokens_per_tile
        if int(is_image.sum()) != slots:
            raise ValueError(
                f"input_ids hold {int(is_image.sum())} image tokens (id {token}), "
                f"{count} tiles of {self.cfg.tokens_per_tile} tokens need {slots}"
            )
        order = np.cumsum(is_image.reshape(-1)).reshape(ids.shape) - 1
        image_slot = np.where(is_image, order, -1).astype(np.int32)
        if not count:
            pixels = None
        return self._logits(
            self.params,
            ids.astype(np.int32),
            (mask != 0).astype(np.int32),
            image_slot,
            pixels,
        )

    def generate(
        self,
        questions: str | Sequence[str],
        images: Any = None,
        *,
        n: int = 1,
        system: str | None = None,
        prefix: str | Sequence[int] = "",
        max_tiles: int = 0,
        **sampling: Any,
    ) -> Any:
        """Answer questions about images.

        ::

            model.generate("What is this?", "cat.png")
            model.generate(["Left?", "Compare."], [None, ["a.png", "b.png"]], n=4,
                           temperature=1.0, seed=3, max_new_tokens=256)

        Args:
          questions: one, or several, which are answered side by side. Placeholders
            ``<image>`` say where images stand; a single one may go without.
          images: of one question: path, PIL image, a list of them, or None; of several
            questions a list of that.
          n: answers to each.
          system: other system text.
          prefix: beginning of every answer, as text or token ids; not repeated.
          max_tiles: of a question's images; 0 is the model's limit.
          sampling: ``max_new_tokens``, ``temperature``, ``top_p``, ``top_k``, ``seed``,
            ``repetition_penalty``, ``stop``: see ``generate.requests.Sampling``.

        Returns:
          The answer; a list of `n` where n > 1; for a list of questions a list of that.

        Raises:
          BadRecord: a question or an image cannot be used; a ``ValueError``.
        """
        several = not isinstance(questions, str)
        asked = list(questions) if several else [questions]
        pictures = list(images) if several and images is not None else [images]
        if len(pictures) != len(asked) and images is not None:
            raise ValueError(f"{len(asked)} questions, but images of {len(pictures)}")
        if images is None:
            pictures = [None] * len(asked)
        if not asked:
            return []
        names, read = _named(pictures)
        given = [
            requests.Question(
                number,
                question,
                names[number],
                prefix=prefix if isinstance(prefix, str) else tuple(prefix),
                system=system,
            )
            for number, question in enumerate(asked)
        ]
        found = self._answers(given, read, n=n, max_tiles=max_tiles, **sampling)
        texts = [[a.text for a in found[number]] for number in range(len(given))]
        out = texts if n > 1 else [of_question[0] for of_question in texts]
        return out if several else out[0]

    def chat(
        self,
        question: str,
        images: Any = None,
        *,
        history: Sequence[tuple[str, str]] = (),
        **options: Any,
    ) -> tuple[str, list[tuple[str, str]]]:
        """Answer one question of a conversation.

        Args:
          images: of the whole conversation, in the order of its placeholders.
          history: what an earlier call returned.
          options: as of :meth:`generate`, but ``n``.

        Returns:
          The answer, and the history with this turn. The first question is kept with
          its placeholder, as later turns need it.

        Raises:
          BadRecord: as :meth:`generate`.
        """
        names, read = _named([images])
        turns = tuple((asked, answered) for asked, answered in history)
        if len(names[0]) == 1 and not turns:
            question = template.add_placeholder(question)
        system, prefix = options.pop("system", None), options.pop("prefix", "")
        asked = requests.Question(
            0, question, names[0], prefix=prefix, system=system, history=turns
        )
        found = self._answers([asked], read, n=1, **options)
        answer = found[0][0].text
        whole = prefix + answer if isinstance(prefix, str) else answer
        return answer, [*turns, (question, whole)]

    def _answers(
        self,
        questions: list[requests.Question],
        read: Any,
        *,
        n: int,
        max_tiles: int = 0,
        **sampling: Any,
    ) -> dict[str | int, list[requests.Answer]]:
        """All answers by question, in the order of samples."""
        how = requests.Sampling(n=n, **sampling)
        chat = self._speaker.tokenizer = self._tokenizer
        policy = speaker.prompt_policy(self.cfg, max_tiles=max_tiles)
        lengths = [
            prompts.length_of(question, tokenizer=chat, policy=policy, read=read)
            for question in questions
        ]
        found: dict[str | int, list[requests.Answer]] = {q.id: [] for q in questions}
        with contextlib.closing(self._engine(lengths, how, jnp.uint8)) as engine:
            answerer = local.Local(engine, tokenizer=chat, policy=policy, read=read)
            for result in answerer.answers(questions, how):
                if isinstance(result, requests.Failure):
                    raise ledger.BadRecord(result.reason, result.detail)
                found[result.id].append(result)
        for answers in found.values():
            answers.sort(key=lambda answer: answer.sample)
        return found

    def generate_ids(
        self,
        input_ids: Any,
        tiles: Any = None,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        n: int = 1,
        seed: int = 0,
        stop_ids: Sequence[int] = (),
    ) -> list[list[int]]:
        """Go on with one ready prompt.

        Args:
          input_ids: int ``[s]`` or ``[1, s]``, images as for :meth:`logits`.
          tiles: ``[m, S, S, 3]`` as for :meth:`logits`, or None.
          temperature: 0 is greedy.
          n: continuations; the prompt is read once.
          stop_ids: tokens that end one; the token itself is part of it.

        Returns:
          The new token ids of every continuation.

        Raises:
          ValueError: a shape, id or setting is wrong.
        """
        ids = np.asarray(input_ids)
        if ids.ndim == 2 and len(ids) == 1:
            ids = ids[0]
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(
                f"input_ids: {ids.dtype} {ids.shape}, must be integers [s]"
            )
        side = self.cfg.image_size
        empty = np.zeros((0, side, side, 3), np.uint8)
        pixels = empty if tiles is None else np.asarray(self._tiles(tiles))
        how = requests.Sampling(
            n=n,
            seed=seed,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            stop_ids=tuple(int(i) for i in stop_ids),
        )
        request = requests.Request(0, ids.astype(np.int64), pixels, len(ids), how)
        made = self._engine([len(ids)], how, pixels.dtype, one=True)
        with contextlib.closing(made) as engine:
            found = speaker.answer(engine, request)
        return [found[sample] for sample in range(n)]

    def _engine(
        self, lengths: Sequence[int], how: requests.Sampling, dtype: Any, *, one=False
    ) -> Any:
        """An engine for prompts of these lengths; programs are kept between calls.

        Args:
          one: the prompt is alone, so that all slots are for it.
        """
        made = self._speaker
        weights = self._placed(self.params)
        slots = min(how.n, 32) if one else 0
        geometry = made.geometry(
            weights,
            prompts=lengths,
            answer_tokens=how.max_new_tokens,
            samples=how.n,
            slots=slots,
            group_slots=slots,
        )
        return made.engine(weights, geometry, tile_dtype=dtype)

    @functools.cached_property
    def _tokenizer(self) -> tokenizer_lib.ChatTokenizer:
        """Loaded when a text is asked; ids need none."""
        place = self.settings.tokenizer or self.files
        if place is None or files.special_token_id(place, IMG_CONTEXT) is None:
            raise ValueError(
                f"{self.files} has no tokenizer; ask with token ids: generate_ids"
            )
        return tokenizer_lib.load_tokenizer(place)

    @functools.cached_property
    def _speaker(self) -> speaker.Speaker:
        leaf = jax.tree.leaves(self.params)[0]
        mesh = getattr(leaf.sharding, "mesh", None)
        if not isinstance(mesh, jax.sharding.Mesh):
            mesh = sharding.make_mesh(devices=sorted(leaf.devices(), key=str))
        return speaker.Speaker(
            self.model,
            mesh=mesh,
            compute=self.compute,
            image_token=self.img_context_token_id,
        )

    def _placed(self, params: params_lib.Params) -> params_lib.Params:
        """Parameters on the speaker's mesh; nothing is copied where they are there."""
        places = sharding.shardings(
            self.model.shapes, self.model.axes, self._speaker.mesh
        )
        return jax.device_put(params, places)

    def save_pretrained(
        self,
        directory: str | pathlib.Path,
        *,
        dtype: str = "bfloat16",
        layout: str | None = None,
        overwrite: bool = False,
    ) -> list[str]:
        """Write a directory for the released code or for transformers.

        Args:
          dtype: of the tensors; ``keep`` is what they had in the source.
          layout: ``original`` or ``native`` (transformers' own InternVL); None is that
            of the files the model came with.
          overwrite: replace a model that is there already.

        Returns:
          Notes: what could not be written as it was meant.

        Raises:
          FileExistsError: if the directory is not empty and `overwrite` is False.
        """
        return hf.save(
            directory,
            self.params,
            self.model,
            dtype=dtype,
            source_dir=self.files,
            settings=self.settings,
            layout=layout,
            overwrite=overwrite,
        )

    def _tiles(self, tiles: Any) -> np.ndarray | jax.Array:
        side = self.cfg.image_size
        array = tiles if isinstance(tiles, jax.Array) else np.asarray(tiles)
        if array.ndim != 4 or array.shape[1:] != (side, side, 3):
            raise ValueError(f"tiles {array.shape}: must be [n, {side}, {side}, 3]")
        if array.dtype != np.uint8 and not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"tiles are {array.dtype}: must be uint8, or normalised floats"
            )
        return array.astype(np.float32) if array.dtype == np.float64 else array


def _named(images: Sequence[Any]) -> tuple[list[tuple[str, ...]], Any]:
    """Names of every question's images, and what reads them.

    Paths are their own names; PIL images are handed over as PNG, which loses nothing
    that is looked at.
    """
    held: dict[str, bytes] = {}

    def name(image: Any) -> str:
        if not isinstance(image, Image.Image):
            return str(image)
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "PNG")  # as a file's is converted
        made = f"image {len(held)} of this call"
        held[made] = buffer.getvalue()
        return made

    def read(path: str) -> bytes:
        return held[path] if path in held else images_lib.read_file(path)

    names = []
    for of_question in images:
        one = of_question is None or not isinstance(of_question, list | tuple)
        several = [] if of_question is None else [of_question] if one else of_question
        names.append(tuple(name(image) for image in several))
    return names, read
