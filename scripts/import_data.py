r"""Import preference or SFT data of other trainers' layouts as MMPR.

  python scripts/import_data.py --out=data/mine mine.jsonl
  python scripts/train.py --config=configs/internvl2_8b_mpo.py --workdir=runs/mine \
      --config.data.meta=data/mine/meta.json

Inputs are JSON lines, JSON lists (both also .gz), Parquet, hub ids (OWNER/NAME) and
folders of the `datasets` library. The layout is told from the fields (--layout forces
it), an example of each:

  mmpr      {"image": "a.png", "question": "What is it?", "chosen": "A cat.",
             "rejected": "A dog."}        also as a list or Parquet; RLAIF-V
  swift     {"messages": [{"role": "user", "content": "<image>What is it?"},
             {"role": "assistant", "content": "A cat."}],
             "rejected_response": "A dog.", "images": ["a.png"]}
            {"query": "What is it?", "response": "A cat.",
             "rejected_response": "A dog.", "images": ["a.png"]}
  trl       {"prompt": [{"role": "user", "content": [{"type": "image"},
             {"type": "text", "text": "What is it?"}]}],
             "chosen": [{"role": "assistant", "content": "A cat."}],
             "rejected": [{"role": "assistant", "content": "A dog."}],
             "images": ["a.png"]}
            {"prompt": "What is it?", "chosen": "A cat.", "rejected": "A dog.",
             "img_path": "a.png"}
  sharegpt  {"conversations": [{"from": "human", "value": "<image>What is it?"}],
             "chosen": {"from": "gpt", "value": "A cat."},
             "rejected": {"from": "gpt", "value": "A dog."}, "images": ["a.png"]}
  alpaca    {"instruction": "What is it?", "input": "", "chosen": "A cat.",
             "rejected": "A dog.", "images": ["a.png"]}
  internvl  {"image": "a.png", "conversations": [
             {"from": "human", "value": "<image>\nWhat is it?"},
             {"from": "gpt", "value": "A cat."}]}          with --chosen_only
  rlhfv     {"image": {"bytes": ..., "path": "a.png"}, "text":
             "{\"question\": ..., \"chosen\": ..., \"rejected\": ...}"}

--columns=question=prompt_text renames the field prompt_text to question first.
Image paths are relative to the input's folder or to --image_root and stay where they
are; bytes, base64 and data URLs become files of OUT/images. Nothing is fetched.

--dry_run shows the first records beside what they become and writes nothing. OUT
appears when all is written; what was left out is in OUT/ledger.jsonl with file, line
and reason. docs/import.md has the rest.
"""

from __future__ import annotations

import json
import os

import rich.box
import rich.console
import rich.table
import rich.text
from absl import flags

from mpo_jax import config, ledger
from mpo_jax.importers import inputs, layouts, pairs, run
from mpo_jax.utils import cli, progress

INPUT = flags.DEFINE_multi_string(
    "input", [], "File, folder or hub id; may be repeated, or given without the flag."
)
OUT = flags.DEFINE_string("out", "", "Folder to write; must not exist.")
LAYOUT = flags.DEFINE_enum("layout", "", ["", *layouts.LAYOUTS], "Of all inputs.")
COLUMNS = flags.DEFINE_list("columns", [], "FIELD=THEIRS: field THEIRS is our FIELD.")
IMAGE_ROOT = flags.DEFINE_string("image_root", "", "Folder of relative image paths.")
CHOSEN_ONLY = flags.DEFINE_bool("chosen_only", False, "SFT: needs no rejected side.")
SYSTEM = flags.DEFINE_enum(
    "system",
    pairs.REFUSE,
    [pairs.REFUSE, pairs.FOLD, pairs.DROP],
    "System texts, which MMPR has not: leave the record out, write the text before the "
    "question, or leave the text out.",
)
HISTORY = flags.DEFINE_enum(
    "history",
    pairs.REFUSE,
    [pairs.REFUSE, pairs.FOLD],
    "Earlier turns, which MMPR has not: leave the record out, or write them before the "
    "question as 'User: …', 'Assistant: …'.",
)
COPY_IMAGES = flags.DEFINE_bool(
    "copy_images", False, "Copy image files into OUT as well, so that it can be moved."
)
SUBSET = flags.DEFINE_string("subset", "", "Configuration of a hub data set.")
SPLIT = flags.DEFINE_string("split", "", "Split of a hub data set or folder.")
DATASET_INFO = flags.DEFINE_string(
    "dataset_info",
    "",
    "LLaMA-Factory's dataset_info.json; inputs are then names of its entries.",
)
LIMIT = flags.DEFINE_integer(
    "limit", 0, "Records read of each input; 0 is all (3 in a dry run).", lower_bound=0
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Show records beside what they become; write nothing."
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an earlier import at OUT.")
MAX_PIXELS = flags.DEFINE_integer(
    "max_image_pixels",
    config.DataConfig().max_image_pixels,
    "Larger images are not stored.",
    lower_bound=1,
)
MAX_BYTES = flags.DEFINE_integer(
    "max_record_bytes",
    64 << 20,
    "Longer lines and items of lists are left out.",
    lower_bound=1,
)


def find_inputs(names: list[str]) -> list[inputs.Input]:
    """The inputs that the flags describe."""
    if not names:
        raise ValueError("name at least one input: a file, a folder or a hub id")
    columns = inputs.parse_columns(COLUMNS.value)
    if not DATASET_INFO.value:
        return inputs.find(
            names,
            image_root=os.path.expanduser(IMAGE_ROOT.value),
            columns=columns,
            layout=LAYOUT.value,
            subset=SUBSET.value,
            split=SPLIT.value,
        )
    if columns or SUBSET.value or SPLIT.value:
        raise ValueError("--dataset_info says columns, subset and split itself")
    return inputs.from_dataset_info(
        os.path.expanduser(DATASET_INFO.value),
        names,
        image_root=os.path.expanduser(IMAGE_ROOT.value),
        layout=LAYOUT.value,
    )


def show_preview(source: inputs.Input, plan: run.Plan) -> None:
    """Print the first records beside what they become."""
    console = progress.stdout_console()
    table = rich.table.Table("line", "source", "MMPR", box=rich.box.SIMPLE_HEAD)
    table.title = f"{source.path} ({source.kind})"
    table.show_lines = True
    for number, record, line in run.preview(source, plan):
        left = str(record) if isinstance(record, ledger.BadRecord) else shown(record)
        right = (
            f"left out: {line}" if isinstance(line, ledger.BadRecord) else shown(line)
        )
        table.add_row(str(number), rich.text.Text(left), rich.text.Text(right))
    console.print(table)


def shown(record: object) -> str:
    """JSON over several lines; long texts and bytes are cut."""

    def cut(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): cut(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value[:8]]
        if isinstance(value, bytes):
            return f"<{len(value)} bytes>"
        if isinstance(value, str) and len(value) > 400:
            return value[:400] + f"… ({len(value)} characters)"
        if value is None or isinstance(value, bool | int | float | str):
            return value
        return str(value)

    return json.dumps(cut(record), indent=1, ensure_ascii=False)


def print_summary(tallies: list[run.Tally]) -> None:
    """Print what was read, written and left out, by source and reason."""
    console = progress.stdout_console()
    numbers = ("read", "written", "left out", "images")
    table = rich.table.Table("source", "layout", box=rich.box.SIMPLE_HEAD)
    for name in numbers:
        table.add_column(name, justify="right")
    for tally in tallies:
        left_out = sum(tally.left_out.values())
        counts = (tally.read, tally.written, left_out, tally.images)
        layout = tally.layout + (" (detected)" if tally.detected else "")
        table.add_row(
            rich.text.Text(tally.source.name), layout, *(f"{n:,}" for n in counts)
        )
    console.print(table)
    table = rich.table.Table("source", "left out", "records", "first")
    for tally in tallies:
        for key, count in tally.left_out.most_common():
            line, detail = tally.first[key]
            table.add_row(
                rich.text.Text(tally.source.name),
                rich.text.Text(": ".join(key)),
                f"{count:,}",
                rich.text.Text(f"line {line}: {detail}"),
            )
    if table.row_count:
        console.print(table)
    for tally in tallies:
        for note, count in tally.notes.most_common():
            say(console, f"{tally.source.name}: {note} (records: {count:,})")
        if tally.unused:
            fields = [
                f"{name} ({count:,})" for name, count in tally.unused.most_common()
            ]
            say(console, f"{tally.source.name}: not carried over: {', '.join(fields)}")


def print_next(out: str) -> None:
    """Print the commands that come next."""
    console = progress.stdout_console()
    only = " --chosen_only" if CHOSEN_ONLY.value else ""
    recipe = "sft" if CHOSEN_ONLY.value else "mpo"
    say(console, f"wrote {out}/meta.json; next:")
    say(
        console,
        f"  python scripts/inspect_data.py --meta={out}/meta.json{only} "
        "--tokenizer=MODEL_FOLDER --html=page.html",
    )
    say(
        console,
        f"  python scripts/train.py --config=configs/internvl2_8b_{recipe}.py "
        f"--workdir=runs/mine --config.data.meta={out}/meta.json",
    )


def say(console: rich.console.Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def report_progress(tally: run.Tally) -> None:
    """Print the layout when it is known, and how far the reading is."""
    console = progress.console()
    name = tally.source.name
    if not tally.read:
        how = "detected" if tally.detected else "as given"
        text = f"{name}: {tally.source.kind}, layout {tally.layout} ({how})"
    else:
        text = f"{name}: {tally.read:,} read, {tally.written:,} written"
    say(console, text)


def main(argv: list[str]) -> None:
    try:
        import_all([*INPUT.value, *argv[1:]])
    except OSError as error:  # no permission, no space: the message has the path
        if isinstance(error, cli.EXPLAINED):
            raise
        raise ValueError(str(error)) from error


def import_all(names: list[str]) -> None:
    """Show or import what the flags describe."""
    sources = find_inputs(names)
    plan = run.Plan(
        rules=pairs.Rules(
            chosen_only=CHOSEN_ONLY.value, system=SYSTEM.value, history=HISTORY.value
        ),
        record_bytes=MAX_BYTES.value,
        image_pixels=MAX_PIXELS.value,
        limit=LIMIT.value or (3 if DRY_RUN.value else 0),
        copy_images=COPY_IMAGES.value,
    )
    if DRY_RUN.value:
        for source in sources:
            show_preview(source, plan)
        return
    if not OUT.value:
        raise ValueError("--out is required: a folder that does not exist yet")
    out = str(cli.path(OUT.value, "out"))
    try:
        tallies = run.import_data(
            sources, out, plan, overwrite=OVERWRITE.value, progress=report_progress
        )
    except run.NothingWritten as error:
        print_summary(error.tallies)
        raise
    print_summary(tallies)
    print_next(out)


if __name__ == "__main__":
    cli.run(main, words=True)
