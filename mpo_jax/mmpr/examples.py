"""One record to one encoded pair, or to the reason why it is left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from mpo_jax import ledger, types
from mpo_jax.inputs import images, template
from mpo_jax.inputs.tokenizer import ChatTokenizer


@dataclasses.dataclass(frozen=True)
class EncodePolicy:
    """How records become tokens and tiles; part of every cache key.

    Attributes:
      template: name of the chat template, see ``template.TEMPLATES``.
      image_size: ``S``, side of a tile in pixels.
      tokens_per_tile: ``I``, language tokens of a tile.
      min_tiles: fewest tiles of an image.
      max_tiles: most tiles of a record's images, thumbnails not counted, where the
        record sets no limit of its own; several images share it.
      use_thumbnail: add a tile of the whole image where there is more than one.
      max_image_pixels: larger images are refused.
      chosen_only: encode the chosen side alone (SFT); `rejected` is not looked at.
    """

    template: str
    image_size: int
    tokens_per_tile: int
    min_tiles: int
    max_tiles: int
    use_thumbnail: bool
    max_image_pixels: int
    chosen_only: bool = False

    def __post_init__(self) -> None:
        template.get_template(self.template)
        for name in ("image_size", "tokens_per_tile", "min_tiles", "max_tiles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.min_tiles > self.max_tiles:
            raise ValueError(
                f"min_tiles={self.min_tiles} is more than max_tiles={self.max_tiles}"
            )
        if self.max_image_pixels < 1:
            raise ValueError(f"max_image_pixels={self.max_image_pixels} admits none")

    def fingerprint(self) -> dict[str, Any]:
        """Every field as JSON values; for cache keys."""
        return dataclasses.asdict(self)


def build_example(
    record: types.PreferenceRecord,
    tokenizer: ChatTokenizer,
    *,
    policy: EncodePolicy,
    with_tiles: bool = True,
    read: Callable[[str], bytes] = images.read_file,
) -> types.Example:
    """Encode a record: validate, tile its images, tokenise, split off the prompt.

    Sample kinds as upstream's MPO dataset: a single image gets its placeholder put in
    front where the question has none; several images need one placeholder each and
    share the tile limit (at least one tile each). Unlike upstream, superfluous
    placeholders are refused instead of trained on as text, without an image too, and
    text only needs no blank tile.

    Args:
      record: the parsed annotation line.
      tokenizer: the model's tokenizer.
      policy: what to encode.
      with_tiles: False leaves `tiles` empty (``[0, S, S, 3]``); images are decoded
        all the same, so that both ways refuse the same records.
      read: gives the bytes of an image by its path.

    Returns:
      The example, however long; nothing is truncated.

    Raises:
      BadRecord: with a reason of ``ledger.REASONS``.
      OSError: the file system failed, see ``images.read_file``.
    """
    chat = template.get_template(policy.template)
    _check_text(record, tokenizer, policy.chosen_only)
    question = record.question
    if len(record.images) == 1:
        question = template.add_placeholder(question)
    placeholders = question.count(template.PLACEHOLDER)
    if placeholders != len(record.images):
        remedy = "they must be equal"
        if not record.images:
            remedy = "name the images in the field image, or remove the placeholders"
        raise ledger.BadRecord(
            "image_count",
            f"question has {placeholders} {template.PLACEHOLDER!r} for "
            f"{len(record.images)} images; {remedy}",
        )
    tiles, counts = _load_tiles(record, policy, with_tiles, read)
    image_tokens = [count * policy.tokens_per_tile for count in counts]

    def encode(response: str) -> tuple[np.ndarray, np.ndarray]:
        return template.encode_side(
            tokenizer,
            chat,
            question,
            response,
            num_image_tokens=image_tokens,
            text_only=not record.images,
        )

    chosen_ids, chosen_labels = encode(record.chosen)
    shared, chosen_end = _trained_span(chosen_labels, "chosen", record.chosen)
    rejected_ids, rejected_labels = chosen_ids[:0], chosen_labels[:0]
    rejected_end = 0
    if not policy.chosen_only:
        rejected_ids, rejected_labels = encode(record.rejected)
        first, rejected_end = _trained_span(
            rejected_labels, "rejected", record.rejected
        )
        if np.array_equal(chosen_ids, rejected_ids):
            detail = (
                f"chosen and rejected give the same tokens: {_short(record.chosen)}"
            )
            raise ledger.BadRecord("identical", detail)
        # The sides can differ before the first label where a response begins with
        # white space that merges into the header's newline.
        shared = min(shared, first, _common_prefix(chosen_ids, rejected_ids))

    example = types.Example(
        prompt=chosen_ids[: shared - 1],
        **_response("chosen", chosen_ids, chosen_labels, shared, chosen_end),
        **_response("rejected", rejected_ids, rejected_labels, shared, rejected_end),
        tiles=tiles,
        num_tiles=sum(counts),
    )
    _check_slots(example, tokenizer, policy)
    return example


def _check_text(
    record: types.PreferenceRecord, tokenizer: ChatTokenizer, chosen_only: bool
) -> None:
    texts = {"question": record.question, "chosen": record.chosen}
    if not chosen_only:
        texts["rejected"] = record.rejected
    for field, text in texts.items():
        for reason, found in (
            ("smuggled_token", template.find_image_token(text)),
            ("chat_marker", template.find_chat_marker(text, tokenizer)),
        ):
            if found:
                at = max(0, text.index(found) - 20)
                raise ledger.BadRecord(
                    reason,
                    f"{field} holds {found!r}: ...{_short(text[at:])}; remove it",
                )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"{field} is not Unicode text: {error.reason} at character "
            raise ledger.BadRecord(
                "bad_field", f"{detail}{error.start}; write it anew"
            ) from error
    if not chosen_only and record.chosen == record.rejected:
        detail = f"chosen and rejected are both {_short(record.chosen)}"
        raise ledger.BadRecord("identical", detail)


def _load_tiles(
    record: types.PreferenceRecord,
    policy: EncodePolicy,
    with_tiles: bool,
    read: Callable[[str], bytes],
) -> tuple[np.ndarray, list[int]]:
    """Tiles of all images (uint8 ``[m, S, S, 3]``) and the number for each image."""
    size = policy.image_size
    counts: list[int] = []
    limit = policy.max_tiles if record.max_tiles is None else record.max_tiles
    most = max(1, limit // max(1, len(record.images)))
    how = {
        "min_num": min(policy.min_tiles, most),
        "max_num": most,
        "image_size": size,
        "use_thumbnail": policy.use_thumbnail,
    }
    opened = []
    for path in record.images:
        image = images.open_image(path, max_pixels=policy.max_image_pixels, read=read)
        counts.append(images.tile_count(*image.size, **how))
        if with_tiles:
            opened.append(image)
    tiles = np.empty((sum(counts) if with_tiles else 0, size, size, 3), np.uint8)
    start = 0
    for image, count in zip(opened, counts, strict=False):  # none is open without tiles
        images.tile(image, **how, out=tiles[start : start + count])
        start += count
    return tiles, counts


def _trained_span(labels: np.ndarray, field: str, response: str) -> tuple[int, int]:
    """First trained position and one past the last.

    Raises:
      BadRecord: there is none.
    """
    (trained,) = np.nonzero(labels != template.IGNORED)
    if len(trained):
        return int(trained[0]), int(trained[-1]) + 1
    if not response.strip():
        raise ledger.BadRecord("no_labels", f"{field} is empty: {response[:40]!r}")
    raise ledger.BadRecord(
        "tokenisation",
        f"tokens of {field} cannot be told from the prompt's: {_short(response)}; "
        "white space at an edge or the text of a special token can cause it",
    )


def _response(
    side: str, ids: np.ndarray, labels: np.ndarray, shared: int, end: int
) -> dict[str, Any]:
    """Token, label and mask fields of one side, empty where it was not encoded."""
    return {
        f"{side}_tokens": ids[shared - 1 : max(end - 1, 0)],
        f"{side}_labels": ids[shared:end],
        f"{side}_mask": labels[shared:end] != template.IGNORED,
    }


def _common_prefix(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    (differ,) = np.nonzero(first[:length] != second[:length])
    return int(differ[0]) if len(differ) else length


def _check_slots(
    example: types.Example, tokenizer: ChatTokenizer, policy: EncodePolicy
) -> None:
    """Raise BadRecord unless exactly the prompt's image slots await the tiles."""
    context = tokenizer.img_context_id
    slots = int(np.count_nonzero(example.prompt == context))
    expected = example.num_tiles * policy.tokens_per_tile
    stray = sum(
        int(np.count_nonzero(ids == context))
        for ids in (
            example.chosen_tokens,
            example.chosen_labels,
            example.rejected_tokens,
            example.rejected_labels,
        )
    )
    if slots != expected or stray:
        raise ledger.BadRecord(
            "image_count",
            f"prompt has {slots} image tokens for {example.num_tiles} tiles of "
            f"{policy.tokens_per_tile}, the responses have {stray}",
        )


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:60] + "…")
