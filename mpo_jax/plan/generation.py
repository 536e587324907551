"""Plans of generation: what is asked, what the compiler said, what follows.

Plain data and arithmetic. The bound is of decoding alone, in tokens a second over all
chips, with every slot at work on answers of full length. A step takes at least

* the weights that it reads and the filled cache once through HBM,
* the products of its tokens at the bf16 peak,
* what its collectives send over all links at once,

and a step gives one token to every slot. Means are over an answer's life: its own keys
and values are half of the longest answer. Reading prompts comes on top
(:func:`prefill_share`).
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from mpo_jax import config as config_lib
from mpo_jax.models import flops as flops_lib
from mpo_jax.models.config import InternVLConfig
from mpo_jax.plan import compilers, estimate, programs
from mpo_jax.utils import slices

PROGRAMS = ("decode", "prefill", "encode")


@dataclasses.dataclass(frozen=True)
class Case:
    """Generation on a slice.

    Attributes:
      cfg: names the model; nothing else of it counts.
      topology: slice, as ``utils.slices`` knows it.
      slices: number of slices. Every host answers questions of its own.
      prompt_tokens: longest prompt, its image tokens included.
      answer_tokens: longest answer.
      samples: answers to a prompt.
      slots: answers at a time of a host; 0 is as many as suit and fit.
      tensor: devices that share one copy of the model; 0 chooses.
    """

    cfg: config_lib.RunConfig
    topology: str
    slices: int
    prompt_tokens: int
    answer_tokens: int
    samples: int
    slots: int = 0
    tensor: int = 0

    def to_json(self) -> str:
        """Inverse of :func:`case_from_json`."""
        return json.dumps(dataclasses.asdict(self))


def case_from_json(text: str) -> Case:
    """Read a case back."""
    raw = json.loads(text)
    return Case(**{**raw, "cfg": config_lib.from_json(json.dumps(raw["cfg"]))})


@dataclasses.dataclass(frozen=True)
class Planned:
    """What was chosen for a host, and what the compiler says of its programs.

    Attributes:
      status: ``fits``, ``too large`` or ``failed``; of all programs together.
      message: where it is not ``fits``.
      seconds: wall time of tracing and compiling.
      data, tensor: mesh of a host.
      groups, slots: prompts at a time, and answers of each.
      prompt_room, answer_room: tokens that the caches hold of each.
      granted: HBM of a device that the compiler hands out.
      weights, cache, features: bytes of a device, held all the time.
      read: of `weights`, what a decode step reads.
      programs: ``decode``, ``prefill`` (of the longest prompts) and ``encode``. Their
        ``memory.params`` is `weights`, ``memory.batch`` what else is held, and
        ``memory.needed`` counts all that is held, argument of the program or not.
    """

    status: str
    message: str = ""
    seconds: float = 0.0
    data: int = 1
    tensor: int = 1
    groups: int = 0
    slots: int = 0
    prompt_room: int = 0
    answer_room: int = 0
    granted: int = 0
    weights: int = 0
    cache: int = 0
    features: int = 0
    read: int = 0
    programs: dict[str, programs.Compiled] = dataclasses.field(default_factory=dict)


def planned_from_dict(raw: dict[str, Any]) -> Planned:
    """Inverse of ``dataclasses.asdict``, also after a way through JSON."""
    found = {
        name: programs.compiled_from_dict(compiled)
        for name, compiled in raw["programs"].items()
    }
    return Planned(**{**raw, "programs": found})


@dataclasses.dataclass(frozen=True)
class Bound:
    """Tokens a second of all chips that no program can pass.

    Attributes:
      hbm, products, links: what each would allow by itself.
      step: seconds of a decode step at the smallest of them.
    """

    hbm: float
    products: float
    links: float
    step: float

    @property
    def tokens(self) -> float:
        """The smallest."""
        return min(self.hbm, self.products, self.links)

    @property
    def binds(self) -> str:
        """What it is due to."""
        causes = {"HBM": self.hbm, "products": self.products, "links": self.links}
        return min(causes, key=lambda cause: causes[cause])


def hosts(case: Case) -> int:
    """Processes, each with a model of its own."""
    return slices.lookup(case.topology).hosts * case.slices


def bound(case: Case, planned: Planned, model: InternVLConfig) -> Bound:
    """What bounds decoding of a case that was compiled."""
    chip, share = _chip(case)
    lanes = planned.groups * planned.slots  # of a host
    seen = case.prompt_tokens + case.answer_tokens / 2
    read = planned.read + filled(case, planned, model)
    devices = planned.data * planned.tensor
    flops = flops_lib.forward(
        model, flops_lib.Counts(0, 0, 0, lanes, 0, lanes * (seen + 1))
    ).total
    sent = sum(
        kind["bytes"] for kind in planned.programs["decode"].collectives.values()
    )
    seconds = {
        "hbm": read / (chip.bandwidth * share),
        "products": flops / (chip.flops * share * devices),
        "links": sent / (chip.links / 2 * share),
    }
    tokens = lanes * hosts(case)
    return Bound(
        **{
            name: tokens / spent if spent else float("inf")
            for name, spent in seconds.items()
        },
        step=max(seconds.values()),
    )


def filled(case: Case, planned: Planned, model: InternVLConfig) -> float:
    """Bytes of a device's cache that a step reads: prompts, answers half as long as
    the longest."""
    lang = model.language
    divides = lang.num_key_value_heads % planned.tensor == 0
    heads = lang.num_key_value_heads // (planned.tensor if divides else 1)
    token = 2 * 2 * lang.num_hidden_layers * heads * lang.head_dim  # bfloat16
    groups = planned.groups / planned.data
    answers = planned.slots * case.answer_tokens / 2
    return token * groups * (case.prompt_tokens + answers)


def prefill_share(case: Case, model: InternVLConfig) -> float:
    """Products of reading a prompt without images, over those of all its answers."""
    visible = case.prompt_tokens * (case.prompt_tokens + 1) / 2
    prompt = flops_lib.Counts(0, 0, case.prompt_tokens, 0, 0, visible)
    tokens = case.samples * case.answer_tokens
    seen = case.prompt_tokens + case.answer_tokens / 2
    answers = flops_lib.Counts(0, 0, 0, tokens, 0, tokens * (seen + 1))
    read, said = (flops_lib.forward(model, x).total for x in (prompt, answers))
    return read / said


def _chip(case: Case) -> tuple[estimate.Chip, float]:
    """The chip's figures, and the share of it that a device is."""
    sold = slices.lookup(case.topology)
    return estimate.CHIPS[sold.generation], sold.chips / sold.devices


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A case, what was chosen and compiled, what follows.

    Attributes:
      name: of the request.
      compiler: who compiled.
      bound, prefill: None where it does not fit; `prefill` is :func:`prefill_share`.
      advice: what to change where it does not fit.
    """

    name: str
    case: Case
    planned: Planned
    compiler: compilers.Compiler
    bound: Bound | None = None
    prefill: float | None = None
    advice: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Do all programs compile, and fit beside what is held?"""
        return self.planned.status == programs.FITS

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        case, found = self.case, self.bound
        asked = {
            field.name: getattr(case, field.name)
            for field in dataclasses.fields(case)
            if field.name != "cfg"
        }
        return {
            "name": self.name,
            "step": "generate",
            "model": case.cfg.model.path,
            **asked,
            "hosts": hosts(case),
            "compiler": self.compiler.to_dict(),
            "planned": dataclasses.asdict(self.planned),
            "bound": None
            if found is None
            else {
                **dataclasses.asdict(found),
                "tokens": found.tokens,
                "binds": found.binds,
            },
            "prefill_share": self.prefill,
            "advice": list(self.advice),
        }


def conclude(
    name: str,
    case: Case,
    planned: Planned,
    model: InternVLConfig,
    compiler: compilers.Compiler,
) -> Outcome:
    """What follows from a compiled case."""
    outcome = Outcome(name, case, planned, compiler)
    if not outcome.fits:
        return dataclasses.replace(outcome, advice=advise(case, planned))
    return dataclasses.replace(
        outcome,
        bound=bound(case, planned, model),
        prefill=prefill_share(case, model),
    )


def advise(case: Case, planned: Planned) -> tuple[str, ...]:
    """Remedies in the order in which they cost least; each one names its option."""
    if planned.status != programs.TOO_LARGE:
        return ("the compiler did not finish, which says nothing about memory",)
    found = []
    lanes = planned.groups * planned.slots
    if lanes > planned.data:
        found.append(
            f"--slots={lanes // 2} instead of {lanes}: fewer answers at a time"
        )
    here = slices.lookup(case.topology)
    devices = here.devices // here.hosts
    if 2 * planned.tensor <= devices:
        found.append(
            f"--tensor={2 * planned.tensor}: more devices share one copy of the model"
        )
    found.append(
        f"--max_new_tokens={case.answer_tokens // 2} or "
        f"--prompt_tokens={case.prompt_tokens // 2}: shorter answers or prompts"
    )
    found.append("--topology=…: a generation with more memory (v6e, v5p, tpu7x)")
    return tuple(found)
