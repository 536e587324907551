"""The checkpoints of one run: saved, verified, chosen, set aside."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from orbax.checkpoint import v1 as ocp

from mpo_jax import config
from mpo_jax.checkpoint import agreement, fitting, places, saving, verifying
from mpo_jax.checkpoint import files as files_lib
from mpo_jax.checkpoint import patience as patience_lib
from mpo_jax.utils import lease, progress, remote, runtime, transient, watchdog

DAMAGED, REPLACED = "damaged", "replaced"


@dataclasses.dataclass(frozen=True)
class Resumed:
    """A checkpoint that a run goes on from.

    Attributes:
      step: updates that it holds.
      meta: JSON that was stored with it.
      trees: by name, as they were asked for.
      verdict: what was checked, for people.
    """

    step: int
    meta: dict[str, Any]
    trees: dict[str, Any]
    verdict: str


class Checkpoints:
    """Checkpoints of one run, saved in the background, the last few kept.

    On several processes, each opens them, and all make the same calls.
    """

    def __init__(self, directory: str | pathlib.Path, cfg: config.CheckpointConfig):
        self.directory = places.absolute(directory)
        self._asked = cfg.resume_step
        self._cfg, self._retry_seconds = cfg, cfg.retry_seconds
        self._alone = jax.process_count() == 1
        # Several processes cannot give up a save together: docs/checkpoints.md.
        self._patience = patience_lib.Patience(self._retry_seconds * self._alone)
        self._given_up: set[int] = set()
        self._errors = saving.Errors()
        self._checkpointer = self._opened(self._cfg)

    def _opened(self, cfg: config.CheckpointConfig) -> Any:
        """Orbax's own; what a save that failed has left is removed before the next."""
        # Typed Any: Orbax's own policies do not satisfy its protocol's annotations.
        policies: Any = ocp.training.preservation_policies
        decisions: Any = ocp.training.save_decision_policies
        kept: list[Any] = [policies.LatestN(cfg.keep_last)]
        if cfg.keep_every:
            kept.append(policies.EveryNSteps(cfg.keep_every))
        # One process makes directories before anything is written in the background:
        # where one cannot be made, nothing waits for it.
        context = ocp.Context()
        context.asynchronous.create_directories_asynchronously = not self._alone
        return ocp.training.Checkpointer(
            places.for_orbax(self.directory),
            context=context,
            save_decision_policy=decisions.FixedIntervalPolicy(1),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
        )

    _save: saving.Save | None = None
    _closed = False
    _failed = False

    def _place(self, step: int) -> Any:
        return self.directory / str(step)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, damaged or not, in order."""
        return [found.step for found in self._checkpointer.checkpoints]

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, or None."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, trees: Mapping[str, Any], *, meta: dict, last: bool = False
    ) -> None:
        """Start saving; returns once the arrays are copied.

        In the background Orbax writes, and then this process its manifest, for which it
        reads back what it has written. The next save waits for both.

        One process whose storage is away says so and goes on: :meth:`check` asks for
        another save, for ``checkpoint.retry_seconds``.

        Args:
          trees: name -> pytree of arrays.
          meta: JSON-able, stored with the checkpoint.
          last: no later step will make up for it: one process stays until it is whole.

        Raises:
          SaveFailed: if this save cannot begin, or the one before has failed, and it
            may not pass or has not in time.
        """
        self._finish()
        self._begin(step, trees, meta)
        if not (last and self._alone):
            return
        self._finish()
        while self._patience.tried:
            watchdog.beat(f"storage, to save step {step}")
            time.sleep(self._patience.pause_s())
            self._begin(step, trees, meta)
            self._finish()

    def _begin(self, step: int, trees: Mapping[str, Any], meta: dict) -> None:
        place = self._place(step)
        try:
            lease.check()  # what follows makes every directory that is missing
            if self._patience.tried:
                self._open_again()
            self._errors.first = None
            if self._patience.tried and step in self.steps():
                written = None  # whole, though what came after failed
            else:
                written = self._checkpointer.save_checkpointables_async(
                    step, dict(trees), custom_metadata=meta, force=True
                )
        except Exception as error:
            if not (isinstance(error, OSError) or transient.is_transient(error)):
                raise
            self._failed = True
            failure = saving.failure(step, place, error)
            failure.__cause__ = error
            self._patience.failed(failure)
            return
        self._save = saving.Save(
            step,
            place,
            written,
            errors=self._errors,
            retry_seconds=self._retry_seconds,
            doubtful=step in self._given_up,
        )

    def _open_again(self) -> None:
        """Begin anew after a failure: what it has left is removed, and steps listed."""
        self._release()
        self._checkpointer = self._opened(self._cfg)

    def check(self) -> bool:
        """Whether a save that failed is to be made up for now; for every step, cheap.

        Raises:
          SaveFailed: the save under way has failed, see :meth:`save`.
        """
        if self._save is not None and self._save.over():
            self._finish()
        return self._save is None and self._patience.due()

    def _finish(self) -> None:
        """Wait for the save under way; a failure that may pass is said."""
        save = self._save
        try:
            self.wait()
        except saving.SaveFailed as failure:
            if save is None or not save.again:
                raise
            self._given_up.add(save.step)
            self._patience.failed(failure)
        else:
            if save is not None:
                self._failed = False
                self._patience.ended_well(save.step)

    def wait(self) -> None:
        """Wait for the save under way and its manifest.

        Raises:
          SaveFailed: if it failed.
        """
        save, self._save = self._save, None
        if save is not None:
            try:
                save.result()
            except saving.SaveFailed:
                self._failed = True
                raise

    def meta(self, step: int) -> dict[str, Any]:
        """JSON that was stored with a checkpoint."""
        stored: Any = self._checkpointer.metadata(step).custom_metadata
        return dict(stored or {})

    def restore(self, step: int, abstract: Mapping[str, Any]) -> dict[str, Any]:
        """Load trees into the given shapes, dtypes and shardings, unverified.

        Raises:
          ValueError: naming the leaves, if the checkpoint is of another model.
        """
        stored = self._checkpointer.checkpointables_metadata(step).metadata
        path = self._place(step)
        for name, tree in abstract.items():
            if name not in stored:
                raise ValueError(
                    f"{path} holds no {name!r}, only {sorted(stored)}; it was written "
                    "by a run with other settings (reference.mode?)"
                )
            fitting.check(name, tree, stored[name], path=path)
        return self._checkpointer.load_checkpointables(step, dict(abstract))

    def resume(
        self,
        abstract: Mapping[str, Any],
        *,
        check: Callable[[int, dict[str, Any]], None],
    ) -> Resumed | None:
        """Load the newest checkpoint that is as it was saved; None if there is none.

        Damaged ones that are newer are named, file by file, and set aside when an older
        one has been loaded: renamed, never deleted. With ``checkpoint.resume_step`` it
        is that one, or what a run with this setting has saved since, and what others
        saved after that step is set aside.

        Args:
          abstract: trees of shapes, dtypes and shardings.
          check: raises ValueError if a run cannot go on from a step and its meta.

        Raises:
          Damaged: if none is good, and none was set aside.
          ValueError: if there is no such step; if `check` or the trees do not allow it.
          OSError: if a file cannot be read by a process, see ``verifying.of``.
        """
        tries, replaced = self._candidates()
        bad: dict[int, verifying.Verdict] = {}
        for step in tries:
            verdict = verifying.of(self._place(step), step=step)
            if verdict.problems:
                bad[step] = verdict
                continue
            found = self._loaded(step, verdict, abstract, check)
            for worse, why in bad.items():
                self._set_aside(worse, f"is damaged:\n{why}", prefix=DAMAGED)
            for newer in replaced:
                after = f"comes after checkpoint.resume_step={self._asked}"
                self._set_aside(newer, after, prefix=REPLACED)
            if bad or replaced:
                runtime.barrier("checkpoints are set aside")
                self._checkpointer.reload()
            return found
        if bad:
            raise self._none_left(bad)
        return None

    def _candidates(self) -> tuple[list[int], list[int]]:
        """Steps to try, the first one first; and steps that a chosen one replaces."""
        steps = agreement.numbers(self.steps())
        if not self._asked:
            return steps[::-1], []
        later = [step for step in steps if step > self._asked]
        since = [step for step in later if self._resume_step_of(step) == self._asked]
        since = agreement.numbers(since)
        if self._asked not in steps and not since:
            there = ", ".join(map(str, steps)) or "none at all"
            raise ValueError(
                f"checkpoint.resume_step={self._asked}: {self.directory} has no "
                f"checkpoint of that step; there are: {there}"
            )
        chosen = [self._asked] if self._asked in steps else []
        return [*since[::-1], *chosen], [s for s in later if s not in since]

    def _resume_step_of(self, step: int) -> int:
        """The ``checkpoint.resume_step`` of the run that saved a checkpoint."""
        try:
            stored = self.meta(step)["config"]["checkpoint"]
            return int(stored.get("resume_step", 0))
        except (ValueError, KeyError, TypeError, AttributeError):
            return 0  # older than the field, or damaged: not one to go on from

    def _loaded(
        self,
        step: int,
        verdict: verifying.Verdict,
        abstract: Mapping[str, Any],
        check: Callable[[int, dict[str, Any]], None],
    ) -> Resumed:
        """Check and load; of what could not be verified, doubt is part of the error."""
        try:
            meta = self.meta(step)
            check(step, meta)
            trees = self.restore(step, abstract)
        except (ValueError, KeyError) as error:
            if not verdict.unverified:
                raise
            others = [s for s in self.steps() if s != step]
            raise ValueError(
                f"{self._place(step)} could not be verified ({verdict.unverified}), "
                f"and this run cannot go on from it: {error}\nEither it is damaged, or "
                f"the settings are others; {_remedy(others)}"
            ) from error
        return Resumed(step, meta, trees, str(verdict))

    def _none_left(self, bad: Mapping[int, verifying.Verdict]) -> verifying.Damaged:
        what = "\n".join(
            f"{self._place(step)} is damaged:\n{verdict}"
            for step, verdict in bad.items()
        )
        others = [step for step in self.steps() if step not in bad]
        return verifying.Damaged(
            f"{what}\nNo checkpoint is left to go on from, and nothing was changed. "
            f"Put its files back, or {_remedy(others)}"
        )

    def _set_aside(self, step: int, why: str, *, prefix: str) -> None:
        """Give a checkpoint a name that nobody takes for a step; the first process."""
        if not runtime.is_main():
            return
        old = self._place(step)
        if remote.is_remote(old):
            # Beside the checkpoints: Orbax clears out what is not committed there.
            folder = self.directory.parent / f"{self.directory.name}_aside"
        else:
            folder = self.directory
        number = 1
        while _is_taken(new := folder / f"{prefix}_{step}_{number}"):
            number += 1
        files_lib.of(old).move(str(new))
        progress.console().print(f"{old} {why}\nIt is set aside as {new}.")

    def close(self) -> None:
        """Wait and release; safe to call twice, and where a save has failed.

        Without it Orbax's threads meet the end of the interpreter, and their traceback
        hides what ended the program.
        """
        if self._closed:
            return
        self._closed = True
        try:
            self.wait()
        finally:
            self._release()
            self._errors.close()

    def _release(self) -> None:
        if self._failed and jax.process_count() > 1:
            return  # Orbax would wait for the other processes, and they wait for us
        try:
            self._checkpointer.close()
        except Exception as error:
            if not self._failed:
                raise
            logging.debug("said before, by SaveFailed: %s", error)


def _is_taken(place: Any) -> bool:
    """Whether a name is in use, if only by a link to nothing."""
    return place.exists() if remote.is_remote(place) else os.path.lexists(place)


def _remedy(others: list[int]) -> str:
    if others:
        named = ", ".join(map(str, others))
        return f"choose another with --config.checkpoint.resume_step=N: {named}"
    return "name another --workdir to begin anew"
