"""One pair in every layout, and an import of files into a folder, for tests."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from mpo_jax.importers import inputs, pairs, run

QUESTION, CHOSEN, REJECTED = "What is it?", "A cat.", "A dog."
RULES = pairs.Rules()


def plan(**change: Any) -> run.Plan:
    rules = {
        name: change.pop(name)
        for name in ("chosen_only", "system", "history")
        if name in change
    }
    wanted = {"record_bytes": 1 << 20, "image_pixels": 1 << 20, **change}
    return run.Plan(rules=pairs.Rules(**rules), **wanted)


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def records(
    question: str = QUESTION,
    chosen: str = CHOSEN,
    rejected: str = REJECTED,
    image: str = "a.png",
) -> dict[str, tuple[str, dict[str, Any]]]:
    """Layout and record by a name, all of the same pair with one image."""
    one = {"images": [image]}
    human = {"from": "human", "value": question}
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    stored = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    answers = {"chosen": chosen, "rejected": rejected}
    return {
        "mmpr": ("mmpr", {"image": image, "question": question, **answers}),
        "rlaifv": (
            "mmpr",
            {
                "image": {"bytes": None, "path": image},
                **{"question": question, **answers, "ds_name": "x", "idx": 3},
            },
        ),
        "swift": (
            "swift",
            {
                "messages": [user(question), assistant(chosen)],
                "rejected_response": rejected,
                **one,
            },
        ),
        "swift_messages": (
            "swift",
            {
                "messages": [user(question), assistant(chosen)],
                "rejected_messages": [user(question), assistant(rejected)],
                "rejected_images": [image],
                **one,
            },
        ),
        "swift_query": (
            "swift",
            {
                "query": question,
                "response": chosen,
                "rejected_response": rejected,
                "history": [],
                "system": None,
                **one,
            },
        ),
        "trl": (
            "trl",
            {
                "prompt": [user(parts)],
                "chosen": [assistant(chosen)],
                "rejected": [assistant([{"type": "text", "text": rejected}])],
                **one,
            },
        ),
        "trl_inside": (
            "trl",
            {
                "prompt": [user([{"type": "image", "image": image}, *parts[1:]])],
                "chosen": [assistant(chosen)],
                "rejected": [assistant(rejected)],
            },
        ),
        "trl_text": ("trl", {"prompt": question, **answers, **one}),
        "trl_implicit": (
            "trl",
            {
                "chosen": [user(stored), assistant(chosen)],
                "rejected": [user(stored), assistant(rejected)],
                **one,
            },
        ),
        "trl_whole": (
            "trl",
            {
                "prompt": question,
                "chosen": [user(question), assistant(chosen)],
                "rejected": [user(question), assistant(rejected)],
                **one,
            },
        ),
        "vlfeedback": ("trl", {"prompt": question, "img_path": image, **answers}),
        "sharegpt": (
            "sharegpt",
            {
                "conversations": [human],
                "chosen": {"from": "gpt", "value": chosen},
                "rejected": {"from": "gpt", "value": rejected},
                **one,
            },
        ),
        "openai": (
            "sharegpt",
            {
                "messages": [user(question)],
                "chosen": assistant(chosen),
                "rejected": assistant(rejected),
                **one,
            },
        ),
        "alpaca": (
            "alpaca",
            {"instruction": question, "input": "", "system": "", **answers, **one},
        ),
        "alpaca_output": (
            "alpaca",
            {"instruction": question, "output": [chosen, rejected], **one},
        ),
        "rlhfv": (
            "rlhfv",
            {"text": json.dumps({"question": question, **answers}), "image": image},
        ),
    }


def imported(
    out: pathlib.Path, *paths: pathlib.Path, options: run.Plan | None = None, **how: Any
) -> list[run.Tally]:
    found = inputs.find([str(path) for path in paths], **how)
    return run.import_data(found, out, options or plan())


def lines(out: pathlib.Path, name: str) -> list[dict[str, Any]]:
    """The lines of one annotation, without where they came from."""
    text = (out / "annotations" / f"{name}.jsonl").read_text("utf-8")
    read = [json.loads(line) for line in text.split("\n") if line]
    return [{k: v for k, v in line.items() if k != "import_meta"} for line in read]
