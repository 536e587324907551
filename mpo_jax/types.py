"""Dimension legend and the data types that flow between the layers.

One letter per axis, the same in annotations, einsum strings and comments:

====== ============================ ====== ===============================
letter meaning                      letter meaning
====== ============================ ====== ===============================
``B``  packed rows in a batch       ``D``  model width
``T``  tokens in a row (query)      ``N``  query heads
``S``  tokens, key/value side       ``K``  key/value heads (``N = K * G``)
``Q``  preference pairs per row     ``G``  query heads per key/value head
``R``  response tokens of a row     ``H``  head dim
``M``  image tiles per row          ``F``  MLP hidden dim
``I``  language tokens per tile     ``V``  vocabulary
``L``  layers (stacked)             ``C``  vision channels
====== ============================ ====== ===============================

A row is laid out role-major, ``[prompts | chosen | rejected]`` with static
budgets ``T = T_p + T_c + T_r``; see ``docs/packing.md``.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

SFT = "sft"
MPO = "mpo"


@dataclasses.dataclass(frozen=True)
class RowShape:
    """Static budgets of one packed row; each shape compiles once.

    Attributes:
      prompt_tokens: ``T_p``, prompt tokens, image tokens included.
      chosen_tokens: ``T_c``, tokens of chosen responses.
      rejected_tokens: ``T_r``, tokens of rejected responses (0 in SFT mode).
      tiles: ``M``, image tiles.
      pairs: ``Q``, preference pairs.
    """

    prompt_tokens: int
    chosen_tokens: int
    rejected_tokens: int
    tiles: int
    pairs: int

    @property
    def tokens(self) -> int:
        """``T``, tokens of the whole row."""
        return self.prompt_tokens + self.chosen_tokens + self.rejected_tokens

    @property
    def response_tokens(self) -> int:
        """``R``, tokens of both response regions."""
        return self.chosen_tokens + self.rejected_tokens


@dataclasses.dataclass(frozen=True)
class PreferenceRecord:
    """One line of an MMPR annotation, parsed and validated, not yet encoded.

    Attributes:
      source: key of the entry in meta.json.
      file: path of the annotation file.
      line: 1-based line number in that file.
      images: paths of the images, already joined with the root; () is text only.
      question: prompt text, as stored (may hold ``<image>`` placeholders).
      chosen: preferred response.
      rejected: dispreferred response.
      max_tiles: tile limit of the source (meta.json ``max_dynamic_patch``) or None.
    """

    source: str
    file: str
    line: int
    images: tuple[str, ...]
    question: str
    chosen: str
    rejected: str
    max_tiles: int | None = None


@dataclasses.dataclass(frozen=True)
class Example:
    """One encoded pair (NumPy, host). The prompt and its images stand once.

    A response segment begins with the last token that both sides share, so that
    position ``i`` of ``*_tokens`` predicts ``*_labels[i]``: no shift is needed later.

    Attributes:
      prompt: int32 ``[p]``, shared tokens without the last one; holds every
        ``<IMG_CONTEXT>`` token of the pair.
      chosen_tokens: int32 ``[c]``, last shared token, then the chosen response
        without its last label.
      chosen_labels: int32 ``[c]``, next token of every position.
      chosen_mask: bool ``[c]``, True where the label is trained.
      rejected_tokens, rejected_labels, rejected_mask: the same for the other side.
      tiles: uint8 ``[m, S, S, 3]`` RGB, tiles of all images in order.
      num_tiles: ``m``; known also where ``tiles`` was not decoded.
    """

    prompt: np.ndarray
    chosen_tokens: np.ndarray
    chosen_labels: np.ndarray
    chosen_mask: np.ndarray
    rejected_tokens: np.ndarray
    rejected_labels: np.ndarray
    rejected_mask: np.ndarray
    tiles: np.ndarray
    num_tiles: int


@dataclasses.dataclass(frozen=True)
class TooLong:
    """A record that fits in no row shape.

    Attributes:
      record_id: row of the index.
      copies: how often the record stood among the planned ids.
      detail: the exceeded budgets of the nearest shape, for the ledger.
    """

    record_id: int
    copies: int
    detail: str


def pytree(cls: type) -> type:
    """Register a frozen dataclass as a pytree, every field being data."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


@pytree
class PackedBatch:
    """Packed rows of one shape. NumPy on the host, global ``jax.Array`` on devices.

    Fields are ``Any`` because shapes, specs and abstract values travel in the same
    structure. ``R = T_c + T_r``.

    Attributes:
      tokens: int32 ``[B, T]``, role-major.
      positions: int32 ``[B, T]``; a response continues its prompt's positions.
      segment_ids: int32 ``[B, T]``, 1 + pair number in the row, 0 is padding.
      labels: int32 ``[B, R]``, next token at response positions.
      label_mask: bool ``[B, R]``.
      image_slot: int32 ``[B, T_p]``, index into the row's ``M * I`` image features
        or -1 where the token is text.
      tiles: uint8 ``[B, M, S, S, 3]``, normalised on the device.
      pair_mask: bool ``[B, Q]``.
      record_ids: int32 ``[B, Q]``, row of the index, -1 where there is no pair.
      ref_logps: float32 ``[B, Q, 2]`` reference log-probs in nats (chosen, rejected),
        or None where the step computes them or needs none.
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    labels: Any
    label_mask: Any
    image_slot: Any
    tiles: Any
    pair_mask: Any
    record_ids: Any
    ref_logps: Any = None


@pytree
class PairLogps:
    """Summed response log-probs per pair, float32, nats.

    Attributes:
      chosen, rejected: ``[..., Q]``; rejected is zeros in SFT mode.
      chosen_tokens, rejected_tokens: ``[..., Q]`` trained tokens per response.
    """

    chosen: Any
    rejected: Any
    chosen_tokens: Any
    rejected_tokens: Any
