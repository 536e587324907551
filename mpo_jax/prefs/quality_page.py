"""``report.html`` of pairs: whether they are fit to train on, for a person.

One file that loads nothing: pictures are small JPEG data URIs, texts are escaped or
JSON, and its content policy admits its own script. Its size is bounded, and so is the
memory that it takes, whatever the number of pairs is.
"""

from __future__ import annotations

import html
import os
import pathlib
from collections.abc import Sequence

from mpo_jax.mmpr import page_records
from mpo_jax.prefs import quality_parts as parts
from mpo_jax.prefs import quality_script, seam
from mpo_jax.prefs.overlap_report import Report
from mpo_jax.prefs.pair_folder import Folder, Reader
from mpo_jax.prefs.pair_quality import ALL, Quality, measure
from mpo_jax.prefs.quality_examples import Shown, clipped
from mpo_jax.utils import atomic, progress, web_page

NAME = "report.html"
EXAMPLES = 200
MAX_EXAMPLES = page_records.MAX_RECORDS


def write(
    inputs: Sequence[str | os.PathLike[str]],
    output: pathlib.Path,
    *,
    overlap: str = "",
    examples: int = EXAMPLES,
) -> Quality:
    """Write the page of some finished folders.

    Args:
      inputs: folders of pairs.
      output: the page.
      overlap: report of find_overlap.py; "" where nobody looked.
      examples: number of pairs to show, at most :data:`MAX_EXAMPLES`.

    Raises:
      OSError: a file cannot be read or written.
      ValueError: something that is named is not what it should be.
    """
    if not inputs:
        raise ValueError("input is empty; name one or more finished folders of pairs")
    if not 0 <= examples <= MAX_EXAMPLES:
        raise ValueError(f"examples={examples}: must be from 0 to {MAX_EXAMPLES}")
    folders = [Folder(path) for path in inputs]
    report = Report(overlap) if overlap else None
    reader = Reader(folders)
    found = measure(reader, examples=examples, overlap=report)
    shown = Shown()
    shown.add(reader, found.sample)
    text = render(folders, found, shown, report)

    def write_to(temporary: pathlib.Path) -> None:
        # Half a surrogate pair in a name: UTF-8 has no place for it.
        temporary.write_text(text, encoding="utf-8", errors="replace")

    output = pathlib.Path(os.path.abspath(os.path.expanduser(output)))
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_whole(output, write_to)
    return found


def check(*, html: bool, overlap: str) -> None:
    """Refuse options before hours of work that would fail at its end.

    Raises:
      OSError: the report of find_overlap.py cannot be read.
      ValueError: it is none, or no page is asked for that shows it.
    """
    if overlap and not html:
        raise ValueError(
            f"--overlap={overlap} is shown on the page; ask for it with --html"
        )
    if overlap:
        Report(overlap)


def write_beside(folder: str | os.PathLike[str], *, overlap: str = "") -> None:
    """Write the page into the finished folder itself, and say so.

    Raises:
      OSError, ValueError: as :func:`write`.
    """
    path = pathlib.Path(os.path.expanduser(folder)) / NAME
    write([folder], path, overlap=overlap)
    progress.stdout_console().print(f"Page: {path}", markup=False, soft_wrap=True)


def render(
    folders: Sequence[Folder], found: Quality, shown: Shown, report: Report | None
) -> str:
    """The page."""
    names = ", ".join(clipped(folder.path.name, 80) for folder in folders[:8])
    title = f"Pairs: {names}" + (" and more" if len(folders) > 8 else "")
    policy = web_page.embedded_only(quality_script.SCRIPT)
    data = web_page.safe_json({"pairs": shown.pairs, "pictures": shown.pictures})
    body = [
        web_page.head(title, quality_script.STYLE, policy),
        _numbers(folders, found),
        _to_look_at(folders, found, shown, report),
        "<h2>Pairs by source and reason</h2>",
        parts.by_source(found),
        *(_of_folder(folder, several=len(folders) > 1) for folder in folders),
        "<h2>Lengths</h2>",
        parts.note(
            "“Chosen is longer” is the share of pairs in which a guess by length alone "
            "is right (its area under the curve), a tie being half: 50% is no bias. "
            "Intervals are 95%, over prompts."
        ),
        *(
            f"<h3>{unit}</h3>{parts.lengths(unit, lengths)}"
            for unit, lengths in (
                ("characters", found.characters),
                ("tokens", found.tokens),
            )
        ),
        f"<h2>Final answers</h2>{parts.answers(found)}",
        f"<h2>Verdicts and rules</h2>{parts.rules(found)}",
        f"<h2>Overlap with evaluations</h2>{parts.overlaps(report)}",
        f"<h2 id=browse>Pairs ({len(shown.pairs):,} of {found.total:,})</h2>",
        parts.note(
            "Drawn evenly over reasons, then over sources. Grey: both begin so; "
            "marked: the other answer lacks it."
        ),
        quality_script.BODY,
        f'<script type="application/json" id="data">{data}</script>',
        f"<script>{quality_script.SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(body)


def _numbers(folders: Sequence[Folder], found: Quality) -> str:
    rollouts, prompts = parts.rollouts(folders)
    told = [("pairs", found.total)]
    told += [(f"pairs: {reason}", n) for reason, n in found.by_reason().items()]
    told += [("prompts", prompts)] * bool(prompts)
    told += [("answers judged", rollouts)] * bool(rollouts)
    cells = (
        f"<div><b>{number:,}</b>{html.escape(clipped(name, 80))}</div>"
        for name, number in told
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def _of_folder(folder: Folder, *, several: bool) -> str:
    """What the maker of a folder has counted."""
    heading = f": {html.escape(clipped(folder.path.name, 80))}" if several else ""
    seams = parts.seam_words(folder)
    return "\n".join(
        [
            f"<h2>Prompts{heading}</h2>{parts.roles(folder)}{parts.prompts(folder)}",
            f"<h2>Left out{heading}</h2>{parts.left_out(folder)}",
            f"<h2>Seam{heading}</h2><p>{html.escape(seams)}</p>{_seam_note()}"
            if seams
            else "",
        ]
    )


def _seam_note() -> str:
    return parts.note(
        "Both answers share their beginning. A classifier sees the "
        f"{seam.BEFORE} tokens before the cut and the {seam.AFTER} behind it; chance "
        "is 50%. Above it, training could learn the cut instead of what was said."
    )


# ---- what to look at -----------------------------------------------------------------


def _to_look_at(
    folders: Sequence[Folder], found: Quality, shown: Shown, report: Report | None
) -> str:
    """What speaks against training on these pairs as they are."""
    said = [*_damage(folders, found, shown), *_short_cuts(folders, found)]
    if report is None:
        said.append("Overlap with evaluations was not checked.")
    elif report.standing:
        said.append(parts.standing_words(report))
    if not said:
        return '<div class="look fine">Nothing stands out.</div>'
    items = "".join(f"<li>{html.escape(text)}</li>" for text in said)
    return f'<div class="look"><b>To look at</b><ul>{items}</ul></div>'


def _damage(folders: Sequence[Folder], found: Quality, shown: Shown) -> list[str]:
    """Files that are not as they were written."""
    said = []
    if not found.total:
        said.append("There is no pair.")
    if found.bad:
        number = sum(found.bad.values())
        said.append(
            f"{number:,} lines are no pairs; the first: {clipped(found.first_bad, 400)}"
        )
    told = [_pairs_told(folder) for folder in folders]
    counted = [number for number in told if number is not None]
    if len(counted) == len(folders) and sum(counted) != found.total:
        said.append(
            f"The manifests count {sum(counted):,} pairs, the files hold "
            f"{found.total:,}: they were changed afterwards."
        )
    if shown.missing:
        said.append(
            f"{shown.missing:,} of {len(shown.pictures):,} pictures of the pairs shown "
            "cannot be shown; each says why."
        )
    if shown.changed:
        said.append(f"{shown.changed:,} pairs changed while the page was made.")
    return said


def _pairs_told(folder: Folder) -> int | None:
    counts = folder.manifest.get("counts", folder.manifest)
    number = counts.get("pairs") if isinstance(counts, dict) else None
    return number if type(number) is int else None


def _short_cuts(folders: Sequence[Folder], found: Quality) -> list[str]:
    """What could be learnt instead of what is right."""
    said = []
    for unit, lengths in (("characters", found.characters), ("tokens", found.tokens)):
        for reason, of in lengths.items():
            if (reason != ALL or len(lengths) > 2) and parts.is_biased(of.longer):
                longer = "longer" if (of.longer.value or 0) > 0.5 else "shorter"
                said.append(
                    f"Length in {unit}, {reason}: chosen answers are {longer}; the "
                    f"longer one is chosen in {parts.share_words(of.longer)} of pairs."
                )
    guessed = found.answers.guessed
    if parts.is_biased(guessed) and (guessed.value or 0) > 0.5:
        said.append(
            f"Final answers alone tell the chosen one in {parts.share_words(guessed)} "
            "of pairs."
        )
    for folder in folders:
        words, checked = parts.seam_words(folder), folder.manifest.get("seam")
        if words and checked and not checked["at_chance"]:
            said.append(words)
    return said
