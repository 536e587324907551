"""What is compiled, and what the compiler says of it; plain data, JSON both ways."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mpo_jax import config as config_lib
from mpo_jax.train import step as step_lib

GIB = 2**30
FITS, TOO_LARGE, FAILED = "fits", "too large", "failed"


@dataclasses.dataclass(frozen=True)
class Case:
    """One program to compile.

    Attributes:
      cfg: the run.
      topology: slice, as ``utils.slices`` knows it.
      slices: number of slices, over which the ``data`` axis lies.
      shape: ``short`` or ``long`` row shape.
      step: ``train`` or ``reference``.
      rows: rows of the global batch.
      quick: stop when memory is assigned, before code is generated. That is most of the
        compiler's time; left out are the code's size, the scheduler's cycles (so there
        is a lower bound and no estimate) and errors of the code generator.
    """

    cfg: config_lib.RunConfig
    topology: str
    slices: int
    shape: str
    step: str
    rows: int
    quick: bool = False

    @property
    def micro_batches(self) -> int:
        """Parts of the batch that a program takes one after another."""
        shape = getattr(self.cfg.rows, self.shape).build()
        if self.step != "train":
            return 1
        return step_lib.micro_batches(self.cfg, shape)

    def to_json(self) -> str:
        """Inverse of :func:`case_from_json`."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return json.dumps({**fields, "cfg": dataclasses.asdict(self.cfg)})


def case_from_json(text: str) -> Case:
    """Read a case back."""
    raw = json.loads(text)
    return Case(**{**raw, "cfg": config_lib.from_json(json.dumps(raw["cfg"]))})


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
      params, optimiser, batch: arguments, as sharded; `optimiser` is what else the
        state holds (moments, step, a moving reference), `params` includes the frozen
        reference of ``reference.mode=online``.
      host: what lies in host memory instead (``optim.offload``, ``remat=offload``).
      temporaries: activations, gradients and everything that lives inside the step.
      code: the program.
      needed: arguments, temporaries, code and what of the results takes no donated
        place.
      granted: what the compiler hands out of the chip's HBM; 0 where unknown.
    """

    params: int = 0
    optimiser: int = 0
    batch: int = 0
    host: int = 0
    temporaries: int = 0
    code: int = 0
    needed: int = 0
    granted: int = 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of a case.

    Attributes:
      status: ``fits``, ``too large`` or ``failed``.
      message: of the compiler, where it did not fit or failed.
      seconds: wall time of tracing and compiling.
      flops: of the scheduled matrix products of one device, kernels left out.
      cycles: scheduler's estimate for one device, kernels left out.
      collectives: kind -> count, bytes, bytes across slices of one device.
      kernels: name, operand shape and number of executions on one device.
      unresolved: loops whose trip count is not known.
    """

    status: str
    message: str = ""
    seconds: float = 0.0
    memory: Memory = dataclasses.field(default_factory=Memory)
    flops: float = 0.0
    cycles: float = 0.0
    collectives: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    kernels: tuple[tuple[str, tuple[int, ...], float], ...] = ()
    unresolved: tuple[str, ...] = ()


def compiled_from_dict(raw: dict[str, Any]) -> Compiled:
    """Inverse of ``dataclasses.asdict``, also after a way through JSON."""
    return Compiled(
        **{
            **raw,
            "memory": Memory(**raw["memory"]),
            "kernels": tuple(
                (name, tuple(shape), count) for name, shape, count in raw["kernels"]
            ),
            "unresolved": tuple(raw["unresolved"]),
        }
    )
