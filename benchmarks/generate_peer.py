"""The peers of `generate`: transformers' InternVL, three ways; no JAX.

  python -m benchmarks.generate_peer prepare  DIR          # weights, both layouts
  python -m benchmarks.generate_peer generate JOB RESULT   # num_return_sequences=n
  python -m benchmarks.generate_peer cache    JOB RESULT   # the prompt prefilled once
  python -m benchmarks.generate_peer padded   JOB RESULT   # batches, padded left

Positions of the decoder and tiles of the tower are counted in the last call, so that
it is seen what each way computes.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import clock, peer
from benchmarks import generate_cases as cases

SHARPNESS = 4.0
"""Of the decoder's attention: with transformers' first weights it is nearly even, and
greedy answers hardly depend on prompt and picture."""
_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
_STD = np.array((0.229, 0.224, 0.225), np.float32)

Answers = list[list[int]]
"""New ids of every answer: those of a prompt together, prompts in their order."""


def load(job: cases.Job) -> Any:
    """The model, SDPA attention, no gradients."""
    if importlib.util.find_spec("torchvision"):
        peer._import_torchvision()
    import transformers

    dtype = getattr(torch, job.dtype)
    kind: Any = transformers.InternVLForConditionalGeneration
    if job.weights:
        model = kind.from_pretrained(
            pathlib.Path(job.weights) / "peer", dtype=dtype, attn_implementation="sdpa"
        )
    else:
        torch.manual_seed(0)
        config = peer.build_config(job.config)
        config._attn_implementation = "sdpa"
        torch.set_default_dtype(dtype)
        with torch.device(_device(job)):
            model = kind(config)
        torch.set_default_dtype(torch.float32)
    # Nothing ends an answer; `generate` would go back to the model's own token.
    model.generation_config = transformers.GenerationConfig(pad_token_id=0)
    return model.to(_device(job)).eval().requires_grad_(False)


def _device(job: cases.Job) -> str:
    return "cuda" if job.device == "gpu" else "cpu"


def inputs_of(
    job: cases.Job, prompts: tuple[cases.Prompt, ...]
) -> dict[str, torch.Tensor]:
    """A batch padded on the left; pixels of all its tiles, normalised."""
    width = max(prompt.tokens for prompt in prompts)
    ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - prompt.tokens :] = prompt.ids(job.vocab_size)
        mask[row, width - prompt.tokens :] = 1
    found = {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
    }
    if any(prompt.tiles for prompt in prompts):
        tiles = np.concatenate([prompt.pixels() for prompt in prompts])
        pixels = (tiles.astype(np.float32) / 255 - _MEAN) / _STD
        pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        found["pixel_values"] = pixels.to(getattr(torch, job.dtype))
    return {name: tensor.to(_device(job)) for name, tensor in found.items()}


def _generate(model: Any, job: cases.Job, *, new: int, **inputs: Any) -> torch.Tensor:
    """New ids ``[rows, new]``, drawn from all tokens; a row never ends earlier.

    Raises:
      ValueError: if `generate` stopped early all the same.
    """
    width = inputs["input_ids"].shape[1]
    # One token to choose from is greedy, also where several answers are asked for.
    draw: dict[str, Any] = {"top_k": 1}
    if job.temperature:
        draw = {"top_k": 0, "temperature": job.temperature}
    out = model.generate(
        **inputs,
        **draw,
        do_sample=True,
        top_p=1.0,
        max_new_tokens=new,
    )
    if out.shape[1] != width + new:
        raise ValueError(f"asked for {new} tokens, {out.shape[1] - width} came")
    return out[:, width:]


def answer_generate(model: Any, job: cases.Job, inputs: list[dict]) -> Answers:
    """``generate(num_return_sequences=n)``."""
    (prompt,) = job.case.prompts
    return _generate(
        model,
        job,
        new=prompt.new_tokens,
        num_return_sequences=job.case.n,
        **inputs[0],
    ).tolist()


def answer_cache(model: Any, job: cases.Job, inputs: list[dict]) -> Answers:
    """The prompt but its last token once, its cache n times, ``generate`` goes on."""
    import transformers

    (prompt,) = job.case.prompts
    ids, mask = inputs[0]["input_ids"], inputs[0]["attention_mask"]
    # transformers 5.24 renamed it.
    known = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in known else "past_key_values"
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        pixel_values=inputs[0].get("pixel_values"),
        use_cache=True,
        logits_to_keep=1,
        **{name: cache},
    )
    cache.batch_repeat_interleave(job.case.n)
    return _generate(
        model,
        job,
        new=prompt.new_tokens,
        input_ids=ids.repeat(job.case.n, 1),
        attention_mask=mask.repeat(job.case.n, 1),
        **{name: cache},
    ).tolist()


def answer_padded(model: Any, job: cases.Job, inputs: list[dict]) -> Answers:
    """Batch after batch, each until its longest answer is done."""
    answers = []
    for prompts, batch in zip(job.case.batches(), inputs, strict=True):
        new = max(prompt.new_tokens for prompt in prompts)
        rows = _generate(model, job, new=new, **batch).tolist()
        answers += [
            row[: prompt.new_tokens] for prompt, row in zip(prompts, rows, strict=True)
        ]
    return answers


SIDES: dict[str, Callable[[Any, cases.Job, list[dict]], Answers]] = {
    "generate": answer_generate,
    "cache": answer_cache,
    "padded": answer_padded,
}


class Work:
    """Counts what passes through a model.

    Attributes:
      positions: of the decoder, padding included.
      tiles: of the vision tower.
    """

    def __init__(self, model: Any):
        self.reset()
        hook = {"with_kwargs": True}
        model.model.language_model.register_forward_pre_hook(self._decoder, **hook)
        model.model.vision_tower.register_forward_pre_hook(self._tower, **hook)

    def reset(self) -> None:
        self.positions = self.tiles = 0

    def _decoder(self, _: Any, __: Any, named: dict[str, Any]) -> None:
        rows, width = named["inputs_embeds"].shape[:2]
        self.positions += rows * width

    def _tower(self, _: Any, unnamed: tuple, named: dict[str, Any]) -> None:
        self.tiles += len(unnamed[0] if unnamed else named["pixel_values"])


def run(job: cases.Job, side: str) -> dict[str, Any]:
    """Answer `job.calls` times; times of all, work and ids of the last."""
    import transformers

    torch.set_num_threads(job.threads)
    cuda = job.device == "gpu"
    model = load(job)
    inputs = [inputs_of(job, prompts) for prompts in job.case.batches()]
    base = clock.peak_mib()
    watch, work, answers = clock.Clock(), Work(model), []
    for number in range(job.calls):
        torch.manual_seed(number)
        work.reset()
        if cuda:
            torch.cuda.synchronize()
        watch.start()
        with torch.inference_mode():
            answers = SIDES[side](model, job, inputs)  # lists: nothing is under way
        watch.stop()
    peak = torch.cuda.max_memory_allocated() / 2**20 if cuda else clock.peak_mib()
    return {
        **watch.result(),
        "ids": answers,
        "positions": work.positions,
        "tiles": work.tiles,
        "peak_mib": peak,
        "base_mib": base,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", *SIDES))
    parser.add_argument("source", type=lambda p: pathlib.Path(p).absolute())
    parser.add_argument("result", type=pathlib.Path, nargs="?")
    args = parser.parse_args()
    if args.what == "prepare":
        peer.prepare(args.source, sharpness=SHARPNESS)
        return
    result = run(cases.read(args.source), args.what)
    args.result.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
