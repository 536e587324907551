"""The engine: which prompt stands in which group, which answer in which slot.

All of it is plain bookkeeping on the host. Between two decodings of some steps it looks
at what has ended, gives free slots the next answer to the same prompt, and free groups
the next prompt. What an answer says does not depend on any of that.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import numpy as np

from mpo_jax import ledger
from mpo_jax.generate import programs as programs_lib
from mpo_jax.generate import requests, sampler, text
from mpo_jax.nn import params as params_lib
from mpo_jax.utils import profiling


@dataclasses.dataclass
class _Job:
    """A prompt and those of its answers that have not begun.

    Attributes:
      ids: of the prompt; of an answer that goes on with other rotary frequencies, its
        tokens so far, too.
      samples: numbers of the answers to give.
      answer: the one that goes on, else None.
    """

    request: requests.Request
    ids: np.ndarray
    samples: collections.deque[int]
    answer: _Answer | None = None


@dataclasses.dataclass
class _Answer:
    """One answer while it is given."""

    request: requests.Request
    sample: int
    stream: text.TextStream
    tokens: list[int] = dataclasses.field(default_factory=list)


class Engine:
    """Answers requests on one model; see ``requests.Engine``.

    Attributes:
      geometry: static sizes.
      max_prompt_tokens, max_new_tokens: limits of a request.
    """

    def __init__(
        self,
        programs: programs_lib.Programs,
        weights: params_lib.Params,
        *,
        decode: text.Decode,
        image_token: int | None,
    ):
        """Make the cache; from now on nothing is compiled.

        Args:
          programs: compiled for these parameters' shapes.
          weights: parameters on the programs' mesh; kept, not copied.
          decode: text of token ids without special tokens.
          image_token: id of ``<IMG_CONTEXT>``; None where no request has images.
        """
        self.geometry = programs.geometry
        self._programs, self._weights = programs, weights
        self._model, self._decode = programs.model, decode
        self._image_token = image_token
        self._positions = self._model.cfg.language.max_position_embeddings
        rope = self._model.cfg.language.rope
        self._short = rope.original_length if rope.long_frequencies else _ENDLESS
        self.max_new_tokens = self.geometry.answer_tokens
        self.max_prompt_tokens = min(self.geometry.buckets[-1] + 1, self._positions - 1)
        self._shards = programs.shapes.shards
        self._cache, self._features = self._programs.new_cache()
        self._slots: sampler.Slots = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), self._programs.shapes.slots
        )
        self._queue: collections.deque[_Job] = collections.deque()
        self._jobs: list[_Job | None] = [None] * self.geometry.groups
        self._answers: dict[tuple[int, int], _Answer] = {}
        self._keys: collections.Counter[Hashable] = collections.Counter()
        self._counters: collections.Counter[str] = collections.Counter()
        self._compiles = profiling.Compiles()

    def close(self) -> None:
        """Stop counting compilations."""
        self._compiles.close()

    @property
    def busy(self) -> bool:
        """Is anything queued or being answered?"""
        return bool(self._queue or self._answers or any(self._jobs))

    @property
    def stats(self) -> dict[str, float]:
        """Counters since the start, and gauges."""
        lanes = self.geometry.groups * self.geometry.slots
        return {
            **{name: float(self._counters[name]) for name in _COUNTERS},
            "seconds_decoding": self._counters["microseconds_decoding"] / 1e6,
            "queued": float(len(self._queue)),
            "slots": float(lanes),
            "slots_active": float(len(self._answers)),
            "compilations": float(self._compiles.programs),
        }

    def add(self, request: requests.Request) -> None:
        """Queue a request.

        Raises:
          BadRecord: ``too_long``, or its ids and tiles do not fit the model.
          ValueError: its key is in use.
        """
        if request.key in self._keys:
            raise ValueError(f"key {request.key!r} is that of a request at work")
        self._check(request)
        samples = collections.deque(request.wanted)
        self._keys[request.key] = len(samples)
        self._queue.append(_Job(request, np.asarray(request.ids, np.int32), samples))

    def cancel(self, key: Hashable) -> None:
        """Forget a request and free its slots; no further update of it comes."""
        self._queue = collections.deque(
            job for job in self._queue if job.request.key != key
        )
        for group, job in enumerate(self._jobs):
            if job is not None and job.request.key == key:
                self._jobs[group] = None
        for place, answer in list(self._answers.items()):
            if answer.request.key == key:
                del self._answers[place]
                self._slots.active[place] = False
        del self._keys[key]

    def step(self) -> list[requests.Update]:
        """Fill free slots, decode some tokens in all of them, tell what is new."""
        self._fill_slots()
        while self._fill_groups():
            self._fill_slots()
        if not self._answers:
            return []
        before = self._slots.count
        start = time.perf_counter()
        slots = self._programs.put(self._slots, self._programs.shapes.slots)
        self._cache, slots, tokens, logps = self._programs.decode(
            self._weights, self._cache, slots
        )
        tokens, logps = np.asarray(tokens), np.asarray(logps)
        self._slots = jax.tree.map(np.array, slots)  # copies, which can be written
        spent = time.perf_counter() - start
        self._counters["microseconds_decoding"] += round(1e6 * spent)
        updates = []
        for place, answer in sorted(self._answers.items()):
            number = int(self._slots.count[place] - before[place])
            column = (slice(number), *place)
            update = self._harvest(place, answer, tokens[column], logps[column])
            if update is not None:
                updates.append(update)
        return updates

    def _check(self, request: requests.Request) -> None:
        """Raise BadRecord where the model cannot read a request."""
        ids, cfg = np.asarray(request.ids), self._model.cfg
        if ids.ndim != 1 or not len(ids):
            raise ledger.BadRecord("bad_field", "a prompt has at least one token")
        if len(ids) > self.max_prompt_tokens:
            raise ledger.BadRecord(
                "too_long",
                f"the prompt has {len(ids)} tokens, the longest is "
                f"{self.max_prompt_tokens}; lower max_tiles, shorten the text or raise "
                "max_prompt_tokens",
            )
        wanted = request.wanted
        if not wanted or min(wanted) < 0 or len(set(wanted)) < len(wanted):
            raise ledger.BadRecord(
                "bad_field",
                f"samples={ledger.short(wanted)}: must be numbers from 0, each once",
            )
        vocab = cfg.language.vocab_size
        if not 0 <= ids.min() <= ids.max() < vocab:
            raise ledger.BadRecord(
                "bad_field",
                f"token ids lie in [{ids.min()}, {ids.max()}], the vocabulary has "
                f"{vocab}",
            )
        shape = self._programs.shapes.tiles.shape[1:]
        if request.tiles.shape[1:] != shape:
            raise ledger.BadRecord(
                "bad_field", f"tiles {request.tiles.shape}: must be [m, {shape}]"
            )
        slots = int(self._is_image(ids).sum())
        wanted = len(request.tiles) * cfg.tokens_per_tile
        if slots != wanted:
            raise ledger.BadRecord(
                "image_count",
                f"the prompt has {slots} image tokens, {len(request.tiles)} tiles of "
                f"{cfg.tokens_per_tile} tokens need {wanted}",
            )
        if self._is_image(ids[-1:])[0]:
            raise ledger.BadRecord("bad_field", "the last token is an image token")

    def _is_image(self, ids: np.ndarray) -> np.ndarray:
        if self._image_token is None:
            return np.zeros(ids.shape, bool)
        return ids == self._image_token

    def _fill_slots(self) -> None:
        """Give free slots the next answer to the prompt of their group."""
        for group, job in enumerate(self._jobs):
            if job is None:
                continue
            for slot in range(self.geometry.slots):
                if job.samples and (group, slot) not in self._answers:
                    self._begin((group, slot), job)
            if not job.samples:
                self._jobs[group] = None  # nothing is left to begin

    def _begin(self, place: tuple[int, int], job: _Job) -> None:
        """Begin an answer, or go on with one, in a free slot."""
        request, how = job.request, job.request.sampling
        sample = job.samples.popleft()
        answer = job.answer or _Answer(
            request,
            sample,
            text.TextStream(
                self._decode,
                prefix=request.ids[request.answer_start :].tolist(),
                stop=how.stop,
                stop_ids=how.stop_ids,
            ),
        )
        self._answers[place] = answer
        slots, rules = self._slots, self._slots.rules
        slots.token[place] = job.ids[-1]
        slots.length[place] = 0
        slots.count[place] = len(answer.tokens)
        slots.limit[place] = len(answer.tokens) + self._room(job, answer)
        slots.active[place] = True
        seed = how.seed & (2**64 - 1)
        rules.seed[place] = (seed >> 32, seed & (2**32 - 1))
        rules.sample[place] = sample
        rules.temperature[place] = how.temperature
        rules.top_p[place] = how.top_p
        rules.top_k[place] = how.top_k
        rules.penalty[place] = how.repetition_penalty
        rules.min_new[place] = how.min_new_tokens
        rules.stop_ids[place] = -1
        rules.stop_ids[place][: len(how.stop_ids)] = how.stop_ids

    def _room(self, job: _Job, answer: _Answer) -> int:
        """Tokens that an answer may gain before it ends or is read anew."""
        room = min(
            job.request.sampling.max_new_tokens - len(answer.tokens),
            self.geometry.answer_tokens - len(answer.tokens),
            self._positions - len(job.ids),
        )
        if len(job.ids) <= self._short:  # what is fed stays this short
            room = min(room, self._short + 1 - len(job.ids))
        return room

    def _fill_groups(self) -> bool:
        """Read as many waiting prompts as one prefill takes; False if there is none."""
        free = self._free_groups()
        rows: list[tuple[_Job, int]] = []
        bucket = 0
        while self._queue and free:
            size = self.geometry.bucket(max(len(self._queue[0].ids) - 1, 1))
            if rows and size != bucket:
                break
            bucket = size
            room = self.geometry.rows(bucket, self._shards)
            group = next((g for g in free if self._used(rows, g) < room), None)
            if group is None:
                break
            free.remove(group)
            rows.append((self._queue.popleft(), group))
        if not rows:
            return False
        self._prefill(bucket, rows)
        return True

    def _free_groups(self) -> list[int]:
        """Groups without work, the data shards taking turns."""
        taken = {group for group, _ in self._answers}
        each = self.geometry.groups // self._shards
        order = [s * each + g for g in range(each) for s in range(self._shards)]
        return [g for g in order if self._jobs[g] is None and g not in taken]

    def _shard(self, group: int) -> int:
        return group * self._shards // self.geometry.groups

    def _used(self, rows: list[tuple[_Job, int]], group: int) -> int:
        """Rows of a prefill that are taken on a group's shard."""
        return sum(self._shard(g) == self._shard(group) for _, g in rows)

    def _prefill(self, bucket: int, rows: list[tuple[_Job, int]]) -> None:
        """Read prompts into their groups."""
        shapes = self._programs.shapes.prompts[bucket]
        prompts: sampler.Prompts = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), shapes
        )
        prompts.image_slot[:] = -1
        prompts.groups[:] = -1
        each = len(prompts.groups) // self._shards
        filled = [0] * self._shards
        tiles: list[np.ndarray] = []
        start = 0
        for job, group in rows:
            shard = self._shard(group)
            row = shard * each + filled[shard]
            filled[shard] += 1
            cached = job.ids[:-1]
            prompts.ids[row, : len(cached)] = cached
            prompts.lengths[row] = len(cached)
            prompts.long[row] = len(job.ids) > self._short
            prompts.groups[row] = group - shard * (self.geometry.groups // self._shards)
            # What the model itself has said is text, whatever token it took.
            asked = cached[: len(job.request.ids)]
            found = np.flatnonzero(self._is_image(asked))
            prompts.image_slot[row, found] = start + np.arange(len(found))
            start += len(found)
            tiles.append(job.request.tiles)
            self._slots.prompt_lengths[group] = len(cached)
            self._slots.long[group] = prompts.long[row]
            self._jobs[group] = job
            self._counters["prompts"] += 1
            self._counters["prompt_tokens"] += len(cached)
        self._encode(tiles)
        self._cache = self._programs.prefill[bucket](
            self._weights,
            self._cache,
            self._features,
            self._programs.put(prompts, shapes),
        )

    def _encode(self, tiles: list[np.ndarray]) -> None:
        """Features of all tiles, in order, into the buffer."""
        shape = self._programs.shapes.tiles
        start = 0
        for batch in _batches(tiles, shape.shape, shape.dtype):
            self._features = self._programs.encode(
                self._weights,
                self._features,
                *self._programs.put(
                    (batch, np.int32(start)), (shape, self._programs.shapes.start)
                ),
            )
            start += len(batch)
        self._counters["tiles"] += sum(len(x) for x in tiles)

    def _harvest(
        self,
        place: tuple[int, int],
        answer: _Answer,
        tokens: np.ndarray,
        logps: np.ndarray,
    ) -> requests.Update | None:
        """An answer's new tokens; where it has ended, its slot is free."""
        said, number = answer.stream.push(tokens.tolist())
        ids = tuple(tokens[:number].tolist())
        answer.tokens += ids
        self._counters["tokens"] += number
        ended = answer.stream.stopped or not self._slots.active[place]
        reason = None
        if ended:
            del self._answers[place]
            self._slots.active[place] = False
            if not self._goes_on(answer):
                said += answer.stream.finish()
                reason = self._reason(answer)
                self._counters["answers"] += 1
                self._keys.subtract([answer.request.key])
                self._keys += collections.Counter()  # drops those at 0
        return requests.Update(
            answer.request.key,
            answer.sample,
            ids,
            tuple(logps[:number].tolist()),
            said,
            reason,
        )

    def _reason(self, answer: _Answer) -> str:
        last = answer.tokens[-1]
        if answer.stream.stopped or last in answer.request.sampling.stop_ids:
            return requests.STOP
        return requests.LENGTH

    def _goes_on(self, answer: _Answer) -> bool:
        """Queue an answer again whose sequence has outgrown its rotary frequencies."""
        request = answer.request
        if answer.stream.stopped or answer.tokens[-1] in request.sampling.stop_ids:
            return False
        job = _Job(
            request,
            np.concatenate([request.ids, np.asarray(answer.tokens, np.int32)]),
            collections.deque([answer.sample]),
            answer,
        )
        if len(job.ids) != self._short + 1 or self._room(job, answer) < 1:
            return False
        self._queue.appendleft(job)
        self._counters["read_anew"] += 1
        return True


_ENDLESS = 2**31
_COUNTERS = ("prompts", "prompt_tokens", "tiles", "answers", "tokens", "read_anew")


def _batches(
    tiles: list[np.ndarray], shape: tuple[int, ...], dtype: Any
) -> Iterator[np.ndarray]:
    """All tiles in batches of one shape, the last padded."""
    every = [tile for of_prompt in tiles for tile in of_prompt]
    for start in range(0, len(every), shape[0]):
        batch = np.zeros(shape, dtype)
        for place, tile in enumerate(every[start : start + shape[0]]):
            batch[place] = tile
        yield batch
