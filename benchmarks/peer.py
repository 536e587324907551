"""The peers, in their own environment (torch, transformers, TRL; no JAX).

  python -m benchmarks.peer prepare  DIR            # random weights, both layouts
  python -m benchmarks.peer trl      DIR RESULT     # TRL's DPOTrainer
  python -m benchmarks.peer released DIR RESULT     # as the released trainer does it

`step_vs_trl` calls these; each writes JSON and exits, so that its peak memory is its
own. Times are of forward, backward and update alone: both read their batch before the
clock starts.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import json
import pathlib
from typing import Any

import numpy as np
import torch

from benchmarks import clock, layout, workload


def _import_torchvision() -> None:
    """Import torchvision, also where its compiled part belongs to another torch.

    The wheel of the package index is built against CUDA and does not load beside a
    CPU build of torch. Its operators (box suppression) are not used here, only its
    Python code, which wants them to be known by name.
    """
    versions = [importlib.metadata.version(n) for n in ("torch", "torchvision")]
    if versions[0].endswith("+cpu") and not versions[1].endswith("+cpu"):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
        _import_torchvision.library = library  # type: ignore[attr-defined]
    import torchvision  # noqa: F401  # pyright: ignore[reportMissingImports]


def build_config(raw: dict[str, Any]) -> Any:
    """Transformers' configuration of an original-layout one with a Qwen2 decoder."""
    import transformers

    vision, text = raw["vision_config"], raw["llm_config"]
    # InternLM2 without biases is Llama's decoder under other names.
    kind = text["architectures"][0]
    decoder = (
        transformers.Qwen2Config
        if kind == "Qwen2ForCausalLM"
        else transformers.LlamaConfig
    )
    return transformers.InternVLConfig(
        vision_config=transformers.InternVLVisionConfig(
            hidden_size=vision["hidden_size"],
            num_hidden_layers=vision["num_hidden_layers"],
            num_attention_heads=vision["num_attention_heads"],
            intermediate_size=vision["intermediate_size"],
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            norm_type=vision["norm_type"],
            layer_norm_eps=vision["layer_norm_eps"],
            image_size=[vision["image_size"]] * 2,
            patch_size=[vision["patch_size"]] * 2,
            use_absolute_position_embeddings=True,
            use_mean_pooling=True,
        ),
        text_config=decoder(
            vocab_size=text["vocab_size"],
            hidden_size=text["hidden_size"],
            intermediate_size=text["intermediate_size"],
            num_hidden_layers=text["num_hidden_layers"],
            num_attention_heads=text["num_attention_heads"],
            num_key_value_heads=text["num_key_value_heads"],
            max_position_embeddings=text["max_position_embeddings"],
            rms_norm_eps=text["rms_norm_eps"],
            rope_parameters={"rope_type": "default", "rope_theta": text["rope_theta"]},
            bos_token_id=None,
            eos_token_id=workload.SPECIALS.index("<|im_end|>"),
            pad_token_id=0,
        ),
        image_token_id=workload.IMAGE_ID,
        image_seq_length=256,
        downsample_ratio=raw["downsample_ratio"],
        tie_word_embeddings=False,
    )


def prepare(directory: pathlib.Path, *, sharpness: float = 1.0) -> None:
    """Draw weights for ``config.json``; write them in both layouts.

    Args:
      sharpness: factor of the decoder's query and key weights.
    """
    import safetensors.numpy
    import transformers

    torch.manual_seed(0)
    raw = json.loads((directory / "original" / "config.json").read_text())
    model = transformers.InternVLForConditionalGeneration(build_config(raw)).float()
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            layer.self_attn.q_proj.weight.mul_(sharpness)
            layer.self_attn.k_proj.weight.mul_(sharpness)
    tensors = {n: t.detach().numpy() for n, t in model.state_dict().items()}
    model.save_pretrained(directory / "peer")
    original = {
        n: np.ascontiguousarray(t) for n, t in layout.to_original(tensors).items()
    }
    safetensors.numpy.save_file(original, directory / "original" / "model.safetensors")


def load(directory: pathlib.Path) -> Any:
    """Model of :func:`prepare`, in training mode, float32, SDPA attention."""
    import transformers

    return transformers.InternVLForConditionalGeneration.from_pretrained(
        directory / "peer", dtype=torch.float32, attn_implementation="sdpa"
    ).train()


def processor(vocab_size: int) -> Any:
    """InternVL's processor over the word tokenizer."""
    import tokenizers
    import transformers

    text = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(
            workload.tokenizer_json(vocab_size)
        ),
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|im_end|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    )
    text.chat_template = workload.TEMPLATE
    return transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size={"height": workload.TILE, "width": workload.TILE},
            crop_to_patches=True,
            min_patches=1,
            max_patches=12,
            image_mean=[0.485, 0.456, 0.406],
            image_std=[0.229, 0.224, 0.225],
        ),
        tokenizer=text,
        video_processor=transformers.InternVLVideoProcessor(),
        image_seq_length=256,
        chat_template=workload.TEMPLATE,
    )


def _scores(query_shape: Any, key_shape: Any, factor: int) -> int:
    batch, heads, queries, head_dim = query_shape
    return factor * 2 * batch * heads * queries * key_shape[2] * head_dim


def flop_counter() -> Any:
    """Torch's counter, with the CPU's fused attention, which it does not know.

    Forward has two products, backward five (scores are recomputed); causal products
    are counted in full, as ours are.
    """
    from torch.utils import flop_counter as lib

    names = torch.ops.aten

    def forward(query: Any, key: Any, *_: Any, **__: Any) -> int:
        return _scores(query, key, 2)

    def backward(_: Any, query: Any, key: Any, *__: Any, **___: Any) -> int:
        return _scores(query, key, 5)

    mapping = {
        names._scaled_dot_product_flash_attention_for_cpu: forward,
        names._scaled_dot_product_flash_attention_for_cpu_backward: backward,
    }
    return lib.FlopCounterMode(display=False, custom_mapping=mapping)


class CountingClock(clock.Clock):
    """Also counts the FLOPs of the first step, which is warm-up."""

    def __init__(self) -> None:
        super().__init__()
        self.counter: Any = flop_counter()

    def start(self) -> None:
        if not self.wall:
            self.counter.__enter__()
        super().start()

    def stop(self) -> None:
        super().stop()
        if len(self.wall) == 1:
            self.counter.__exit__(None, None, None)

    def result(self) -> dict[str, Any]:
        return super().result() | {"flops": self.counter.get_total_flops()}


def run_trl(
    directory: pathlib.Path, *, batch: int, steps: int, checkpointing: bool
) -> dict[str, Any]:
    """TRL's DPOTrainer, its own collator, processor and fused head."""
    import datasets  # pyright: ignore[reportMissingImports]
    import transformers
    import trl  # pyright: ignore[reportMissingImports]

    raw = json.loads((directory / "original" / "config.json").read_text())
    pairs = workload.read(directory / "data")
    base = clock.peak_mib()
    model, reference = load(directory), load(directory).eval()
    records = [
        {
            "images": [str(file)],
            "prompt": [{"role": "user", "content": workload.words(pair.question)}],
            "chosen": [{"role": "assistant", "content": workload.words(pair.chosen)}],
            "rejected": [
                {"role": "assistant", "content": workload.words(pair.rejected)}
            ],
        }
        for file, pair in pairs
    ]
    data = datasets.Dataset.from_list(records).cast_column(
        "images", datasets.List(datasets.Image())
    )
    args = trl.DPOConfig(
        output_dir=str(directory / "trl"),
        loss_type=["sigmoid", "bco_pair", "sft"],
        loss_weights=[0.8, 0.2, 1.0],
        beta=0.1,
        max_length=None,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=checkpointing,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=len(pairs) // batch,
        max_steps=steps,
        learning_rate=5e-6,
        lr_scheduler_type="constant",
        weight_decay=0.05,
        max_grad_norm=1.0,
        optim="adamw_torch",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        remove_unused_columns=False,
    )
    watch = CountingClock()

    class Steps(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.stop()

    trainer = trl.DPOTrainer(
        model=model,
        ref_model=reference,
        args=args,
        train_dataset=data,
        processing_class=processor(raw["llm_config"]["vocab_size"]),
        callbacks=[Steps()],
    )
    trainer.train()
    peak = clock.peak_mib()
    history = [entry for entry in trainer.state.log_history if "loss" in entry]

    collate = trainer.data_collator
    inputs = [collate([copy.deepcopy(data[i])]) for i in range(len(pairs))]
    np.savez(
        directory / "trl_inputs.npz",
        **{f"ids_{i}": one["input_ids"].numpy() for i, one in enumerate(inputs)},
        **{f"mask_{i}": one["attention_mask"].numpy() for i, one in enumerate(inputs)},
        tiles=np.array([len(one["pixel_values"]) for one in inputs]),
    )
    return {
        **watch.result(),
        "loss": [entry["loss"] for entry in history],
        "grad_norm": [entry["grad_norm"] for entry in history],
        "logps_chosen": history[0].get("logps/chosen"),
        "logps_rejected": history[0].get("logps/rejected"),
        "tokens": int(sum(one["input_ids"].numel() for one in inputs)),
        "tiles": int(sum(len(one["pixel_values"]) for one in inputs)),
        "peak_mib": peak,
        "base_mib": base,
        "versions": {
            n: importlib.metadata.version(n) for n in ("torch", "transformers", "trl")
        },
        "threads": torch.get_num_threads(),
    }


def logps(network: Any, one: dict[str, Any]) -> tuple[Any, Any]:
    """Summed log-probs of (chosen, rejected) and trained tokens; logits everywhere."""
    inputs = {k: v for k, v in one.items() if k != "labels"}
    logits = network(**inputs, use_cache=False).logits.float()
    labels = one["labels"][:, 1:]
    trained = labels != -100
    logits = logits[:, :-1].log_softmax(-1)
    tokens = logits.gather(2, labels.clamp(min=0)[:, :, None])[:, :, 0]
    return (tokens * trained).sum(1), trained.sum(1)


def backward(model: Any, reference: Any, one: dict[str, Any], pairs: int) -> float:
    """Add the gradient of one pair of `pairs`; returns its share of the loss."""
    policy, counts = logps(model, one)
    with torch.no_grad():
        fixed, _ = logps(reference, one)
    chosen, rejected = 0.1 * (policy - fixed)
    log = torch.nn.functional.logsigmoid
    loss = -0.8 * log(chosen - rejected)
    loss = loss - 0.2 * (log(chosen) + log(-rejected))
    loss = (loss - policy[0] / counts[0]) / pairs
    loss.backward()
    return float(loss.detach())


def duplicated(pair: workload.Pair, pixels: Any) -> dict[str, Any]:
    """A pair as two sequences padded at the right, its pixels twice."""
    prompt = pair.prompt_ids(256)
    sides = [pair.response_ids(side) for side in ("chosen", "rejected")]
    width = len(prompt) + max(len(side) for side in sides)
    ids, mask = np.zeros((2, width), np.int64), np.zeros((2, width), np.int64)
    labels = np.full((2, width), -100, np.int64)
    for row, side in enumerate(sides):
        whole = np.concatenate([prompt, side])
        ids[row, : len(whole)], mask[row, : len(whole)] = whole, 1
        labels[row, len(prompt) : len(whole)] = side
    return {
        "input_ids": torch.from_numpy(ids),
        "attention_mask": torch.from_numpy(mask),
        "labels": torch.from_numpy(labels),
        "pixel_values": torch.cat([pixels, pixels]),
    }


def run_released(
    directory: pathlib.Path, *, steps: int, checkpointing: bool
) -> dict[str, Any]:
    """Chosen and rejected as one batch, pixels twice, logits everywhere.

    Own code on transformers' model, after the released trainer's order of work: policy
    forward, reference forward, the three terms, one pair at a time.
    """
    raw = json.loads((directory / "original" / "config.json").read_text())
    process = processor(raw["llm_config"]["vocab_size"])
    from PIL import Image

    batches = []
    for file, pair in workload.read(directory / "data"):
        pixels = process.image_processor(
            [Image.open(file).convert("RGB")], return_tensors="pt"
        )["pixel_values"]
        batches.append(duplicated(pair, pixels))
    base = clock.peak_mib()
    model, reference = load(directory), load(directory).eval()
    if checkpointing:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-6, weight_decay=0.05)

    watch, losses = CountingClock(), []
    for _ in range(steps):
        watch.start()
        losses.append(
            sum(backward(model, reference, one, len(batches)) for one in batches)
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        watch.stop()
    peak = clock.peak_mib()
    return {
        **watch.result(),
        "loss": losses,
        "tokens": int(sum(one["input_ids"].numel() for one in batches)),
        "tiles": int(sum(len(one["pixel_values"]) for one in batches)),
        "peak_mib": peak,
        "base_mib": base,
        "threads": torch.get_num_threads(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("prepare", "trl", "released"))
    parser.add_argument("directory", type=lambda p: pathlib.Path(p).absolute())
    parser.add_argument("result", type=pathlib.Path, nargs="?")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--checkpointing", action="store_true")
    args = parser.parse_args()
    _import_torchvision()
    if args.what == "prepare":
        prepare(args.directory)
        return
    if args.what == "trl":
        result = run_trl(
            args.directory,
            batch=args.batch,
            steps=args.steps,
            checkpointing=args.checkpointing,
        )
    else:
        result = run_released(
            args.directory, steps=args.steps, checkpointing=args.checkpointing
        )
    args.result.write_text(json.dumps(result, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
