"""Show what a preference data set holds: a table, histograms and an HTML page.

Example:

    python scripts/inspect_data.py --meta=MMPR/meta.json --tokenizer=InternVL2-8B \\
        --html=report.html

Takes the flags of prepare_data.py and uses the same index: what was prepared is not
visited again.
"""

from __future__ import annotations

import os

import prepare_data  # the script beside this one
import rich.bar
import rich.console
import rich.table
from absl import flags

from mpo_jax.mmpr import index as indexes
from mpo_jax.mmpr import likeness, page, page_records, summary
from mpo_jax.run import addresses
from mpo_jax.utils import cli, progress

HTML = flags.DEFINE_string("html", "", "Write a page with sample records here.")
SAMPLE = flags.DEFINE_integer(
    "sample",
    24,
    "Records on the page, beside the first ones that are alike or opposite.",
    lower_bound=0,
    upper_bound=page_records.MAX_RECORDS,
)
SEED = flags.DEFINE_integer("seed", 0, "Of the choice of records.", lower_bound=0)


def default_out() -> str:
    """Folder of indexes where --out is not given."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return os.path.join(cache, "mpo_jax", "index")


def print_histograms(index: indexes.Index, console: rich.console.Console) -> None:
    """Print one bar chart per measure."""
    for title, bins in summary.histograms(index).items():
        table = rich.table.Table(title, "records", "", box=None, min_width=60)
        most = max((count for _, count in bins), default=1)
        for label, count in bins:
            table.add_row(label, str(count), rich.bar.Bar(most, 0, count, width=40))
        console.print(table)


def print_alike(index: indexes.Index, console: rich.console.Console) -> None:
    """Print the first groups of records that are alike or opposite, and markers."""
    alike = likeness.Alike(index)
    console.print()
    for kind, groups in alike.groups.items():
        meaning = likeness.MEANING[kind]
        console.print(f"{kind}: {len(groups)} groups ({meaning})", markup=False)
        for group in groups[:10]:
            console.print(f"  {likeness.where(index, group)}", markup=False)
    marked = alike.notable[likeness.MARKED]
    meaning = likeness.MEANING[likeness.MARKED]
    console.print(f"{likeness.MARKED}: {len(marked)} records ({meaning})", markup=False)
    if len(marked):
        console.print(f"  {likeness.where(index, marked)}", markup=False)


def main(argv: list[str]) -> None:
    del argv
    prepare_data.open_no_device()
    with addresses.working(prepare_data.OUT.value or default_out()) as out:
        inspect(prepare_data.build(str(out)))


def inspect(index: indexes.Index) -> None:
    """Print what an index holds, and write the page if it is asked for."""
    console = progress.stdout_console()
    prepare_data.print_summary(index, console)
    print_histograms(index, console)
    print_alike(index, console)
    if HTML.value:
        text = page.render_page(
            index,
            sample=SAMPLE.value,
            seed=SEED.value,
            title=f"Preference data: {prepare_data.META.value}",
        )
        cli.path(HTML.value, "html").write_text(text, encoding="utf-8")
        console.print(f"page    {HTML.value}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
