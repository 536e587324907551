r"""Show finished pairs to a person: counts, short cuts, overlap, pairs side by side.

  python scripts/inspect_pairs.py --input=runs/pairs,runs/ntp --html=report.html
  python scripts/inspect_pairs.py … --overlap=overlap.json --examples=400

`--input` is one or more folders of build_pairs.py or dropout_ntp.py, with commas
between them; their own `--html` writes OUTPUT/report.html. `--overlap` is the report of
find_overlap.py on the questions; the page says whether what it names stands in pairs.
docs/pairs.md says what the page shows.
"""

from __future__ import annotations

from absl import flags

from mpo_jax.prefs import quality_page
from mpo_jax.utils import cli, progress

_INPUT = flags.DEFINE_list("input", None, "Finished folders of pairs", required=True)
_HTML = flags.DEFINE_string("html", None, "Write the page to this file", required=True)
_OVERLAP = flags.DEFINE_string("overlap", "", "Report of find_overlap.py, or none")
_EXAMPLES = flags.DEFINE_integer(
    "examples",
    quality_page.EXAMPLES,
    "Pairs that are shown, evenly over reasons",
    lower_bound=0,
    upper_bound=quality_page.MAX_EXAMPLES,
)


def main(argv: list[str]) -> None:
    del argv
    found = quality_page.write(
        [name for name in _INPUT.value if name],
        cli.path(_HTML.value, "html"),
        overlap=_OVERLAP.value,
        examples=_EXAMPLES.value,
    )
    console = progress.stdout_console()
    console.print(f"{found.total:,} pairs: {_HTML.value}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    cli.run(main)
