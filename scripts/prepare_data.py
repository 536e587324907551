"""Validate and measure every preference record: writes the index and the ledger.

With ``--shards`` it first writes text and images into a few large ArrayRecord files
(``docs/data.md``) and indexes those; ``--meta`` then names that folder in all later
commands:

    python scripts/prepare_data.py --meta=MMPR/meta.json --shards=/data/shards \\
        --beam=--runner=DirectRunner,--direct_num_workers=8

Example, with the tokenizer of a downloaded checkpoint:

    python scripts/prepare_data.py --meta=MMPR/meta.json --tokenizer=InternVL2-8B \\
        --out=work/data

Killed at any moment, the same command goes on where it stopped. Records that cannot be
used are left out, counted by reason, and listed in the ledger with file and line. The
same command also looks whether images or annotations have changed since, and examines
those records again.
"""

from __future__ import annotations

import json
import pathlib

import jax
import rich.box
import rich.console
import rich.progress
import rich.table
from absl import flags

from mpo_jax import config, ledger
from mpo_jax.mmpr import examples, index_build, shares, summary
from mpo_jax.mmpr import index as indexes
from mpo_jax.run import addresses
from mpo_jax.utils import cli, fetched, mirror, progress, remote

_DATA = config.DataConfig()
META = flags.DEFINE_string(
    "meta",
    None,
    "MMPR meta.json, or a folder of shards: a path or an address (gs://…).",
    required=True,
)
TOKENIZER = flags.DEFINE_string("tokenizer", None, "Directory of the tokenizer.")
OUT = flags.DEFINE_string(
    "out", "", "Folder of the indexes, or its address; made if absent."
)
TEMPLATE = flags.DEFINE_string(
    "template",
    _DATA.template,
    "Chat template; empty is the one that config.json beside the tokenizer names.",
)
REROOT = flags.DEFINE_string(
    "reroot",
    _DATA.reroot,
    "OLD=NEW: replace the leading path OLD of roots, annotations and absolute images.",
)
IMAGE_SIZE = flags.DEFINE_integer("image_size", 448, "Side of a tile in pixels.")
TOKENS = flags.DEFINE_integer("tokens_per_tile", 256, "Language tokens of a tile.")
MIN_TILES = flags.DEFINE_integer("min_tiles", _DATA.min_tiles, "Fewest tiles.")
MAX_TILES = flags.DEFINE_integer(
    "max_tiles",
    _DATA.max_tiles,
    "Most tiles, thumbnail not counted, where meta.json has no max_dynamic_patch.",
)
THUMBNAIL = flags.DEFINE_bool("thumbnail", True, "Add a tile of the whole image.")
MAX_PIXELS = flags.DEFINE_integer(
    "max_image_pixels", _DATA.max_image_pixels, "Larger images are left out unread."
)
MAX_BYTES = flags.DEFINE_integer(
    "max_text_bytes", _DATA.max_text_bytes, "Longer annotation lines are left out."
)
CHOSEN_ONLY = flags.DEFINE_bool("chosen_only", False, "SFT: needs no rejected side.")
WORKERS = flags.DEFINE_integer(
    "workers", _DATA.index_workers, "Processes; 0 is one per core."
)
LOCAL_CACHE = flags.DEFINE_string(
    "local_cache",
    _DATA.local_cache,
    "Folder that keeps what is fetched from addresses; empty is in ~/.cache.",
)
LOCAL_CACHE_GB = flags.DEFINE_float(
    "local_cache_gb",
    _DATA.local_cache_gb,
    "Bound of --local_cache in 1e9 bytes.",
    lower_bound=0,
)
SHARDS = flags.DEFINE_string(
    "shards",
    "",
    "Write text and images into this folder as ArrayRecord shards first; without "
    "--tokenizer, only that.",
)
NUM_SHARDS = flags.DEFINE_integer("num_shards", 0, "Shards of each kind; 0 is by size.")
BEAM = flags.DEFINE_list(
    "beam",
    None,
    "Write the shards with Beam, by these pipeline options, such as "
    "--runner=DirectRunner.",
)
VERIFY = flags.DEFINE_bool(
    "verify", False, "--meta names shards: read all of them and compare their hashes."
)


def local_cache() -> fetched.LocalCache:
    """What is kept on this machine of data at addresses."""
    return fetched.LocalCache(LOCAL_CACHE.value, LOCAL_CACHE_GB.value)


def write_shards() -> str:
    """Write the shards that the flags describe; returns their folder."""
    remote.refuse(
        SHARDS.value,
        field="--shards",
        why="shards are written as files, and their folder appears by a rename (write "
        "them to a disk, then copy the folder: `gcloud storage cp -r`)",
    )
    try:
        from mpo_jax.mmpr import shard_writer
    except ModuleNotFoundError as error:
        raise ValueError(
            f"--shards needs {error.name}: pip install -e '.[shards]'"
        ) from error
    console = rich.console.Console(stderr=True)
    store = shard_writer.write_shards(
        META.value,
        SHARDS.value,
        reroot=REROOT.value,
        max_text_bytes=MAX_BYTES.value,
        num_shards=NUM_SHARDS.value,
        beam_options=BEAM.value,
        cache=local_cache(),
        progress=lambda note: console.print(
            f"shards: {note}", markup=False, soft_wrap=True
        ),
    )
    console.print(f"shards  {store.directory}", markup=False, soft_wrap=True)
    return str(store.directory)


def template_name(tokenizer: str) -> str:
    """Template from the flag, else from config.json beside the tokenizer."""
    if TEMPLATE.value:
        return TEMPLATE.value
    path = pathlib.Path(tokenizer) / "config.json"
    try:
        config_json = json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    name = config_json.get("template") if isinstance(config_json, dict) else None
    if not isinstance(name, str):
        raise ValueError(f"{path} names no template; give one with --template")
    return name


def build(out: str, meta: str = "") -> indexes.Index:
    """Build the index that the flags describe, with a progress bar.

    `meta` replaces ``--meta``: the folder of shards that were just written.
    """
    if not TOKENIZER.value:
        raise ValueError("--tokenizer is required: a directory")
    remote.refuse(TOKENIZER.value, field="--tokenizer", why="it is read as files")
    policy = examples.EncodePolicy(
        template=template_name(TOKENIZER.value),
        image_size=IMAGE_SIZE.value,
        tokens_per_tile=TOKENS.value,
        min_tiles=MIN_TILES.value,
        max_tiles=MAX_TILES.value,
        use_thumbnail=THUMBNAIL.value,
        max_image_pixels=MAX_PIXELS.value,
        chosen_only=CHOSEN_ONLY.value,
    )
    console = rich.console.Console(stderr=True)
    columns = (
        *rich.progress.Progress.get_default_columns(),
        rich.progress.DownloadColumn(),
        rich.progress.TextColumn("{task.fields[note]}"),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("index", total=None, note="", visible=False)

        def show(done: index_build.Progress) -> None:
            note = f"{done.kept} kept, {done.left_out} left out"
            bar.update(
                task,
                visible=True,
                total=done.bytes,
                completed=done.done_bytes,
                note=note,
            )

        return indexes.build_index(
            meta or META.value,
            out,
            tokenizer_path=TOKENIZER.value,
            policy=policy,
            reroot="" if meta else REROOT.value,
            max_text_bytes=MAX_BYTES.value,
            workers=WORKERS.value,
            progress=show,
            cache=local_cache(),
        )


def print_summary(index: indexes.Index, console: rich.console.Console) -> None:
    """Print the table per source and what was left out."""
    name, *measures = summary.SUMMARY_HEAD
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(name, overflow="fold", min_width=8)
    for measure in measures:
        table.add_column(measure, justify="right")
    *rows, total = summary.summary_rows(summary.summarise(index))
    for row in rows:
        table.add_row(*row)
    table.add_section()
    table.add_row(*total)
    console.print(table, markup=False)
    counts = ledger.count(ledger.read(index.ledger_path))  # may be millions: not held
    if counts:
        table = rich.table.Table("source", "reason", "records", "meaning")
        for (source, reason), count in sorted(counts.items(), key=lambda x: -x[1]):
            table.add_row(source, reason, str(count), ledger.REASONS[reason])
        console.print(table, markup=False)
    for share in shares.poor(shares.shares(index)):
        console.print(f"Warning: {share}.", markup=False)
    for name, path in (("index", index.directory), ("ledger", index.ledger_path)):
        place = mirror.known_as(path)
        console.print(f"{name:7} {place}", markup=False, soft_wrap=True)


def open_no_device() -> None:
    """Keep to the CPU: a message must not take a device from a run that trains."""
    jax.config.update("jax_platforms", "cpu")


def main(argv: list[str]) -> None:
    del argv
    open_no_device()
    meta = ""
    if VERIFY.value:
        from mpo_jax.mmpr import shard_writer

        count = shard_writer.verify(META.value, cache=local_cache())
        print(f"{count} shards are as they were written")
    if SHARDS.value:
        meta = write_shards()
    if (SHARDS.value or VERIFY.value) and not (OUT.value or TOKENIZER.value):
        return
    if not OUT.value:
        raise ValueError("--out is required: the folder of the indexes")
    with addresses.working(OUT.value) as out:
        index = build(str(out), meta)
        print_summary(index, progress.stdout_console())
        if not len(index):
            reasons = mirror.known_as(index.ledger_path)
            raise ValueError(f"no usable record; {reasons} has the reasons")


if __name__ == "__main__":
    cli.run(main)
