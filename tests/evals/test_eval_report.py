"""Reports: JSON, Markdown and plots say the same, whatever the texts hold."""

from __future__ import annotations

import json
import re

import graded_lines
import pytest
from graded_lines import grade, line

from mpo_jax.evals import lines, markdown, pin, report, report_run, tables
from mpo_jax.evals.benchmark import Judge
from mpo_jax.evals.lines import Unanswered
from mpo_jax.evals.report_run import Run
from mpo_jax.evals.scores import Draws

DRAWS = Draws(resamples=100)


def run(name: str = "tuned", cot: int = 8, weights: str = "w") -> Run:
    """Ten items, direct 4 right; `cot` right with CoT."""
    made = []
    for i in range(10):
        fields = {"categories": {"kind": "ab"[i % 2]}, "tokens": 5 + i}
        made.append(line(str(i), "right" if i < 4 else "wrong", **fields))
        outcome = "right" if i < cot else "wrong"
        made.append(line(str(i), outcome, mode="cot", **fields))
    parts = pin.of_run(decoding={}, scorer="1", weights=weights)
    return Run(name, made, [], pin.Pin(parts))


def known(**protocol):
    return {"sums": graded_lines.benchmark(size=20, **protocol)}


def write(folder, given: Run, benchmarks=None, **options):
    chosen = benchmarks or known()
    return report.write(folder, given, chosen, draws=DRAWS, **options)


def test_files_of_a_report(tmp_path):
    found = write(tmp_path, run(), base=run("base", 5, "v"))
    stored = json.loads((tmp_path / "report.json").read_text())
    assert stored == found
    entry = stored["scores"]["sums"]["cot"]
    assert (entry["score"], entry["correct"], entry["total"]) == (80.0, 8, 10)
    assert stored["direct_vs_cot"]["sums"]["difference"] == 40.0
    assert list(stored["base"]["pin_differences"]) == ["weights"]
    assert stored["base"]["comparisons"]["sums"]["cot"]["difference"] == 30.0
    assert (tmp_path / "report.html").is_file()
    text = (tmp_path / "report.md").read_text()
    assert "| sums | paper | 40.0 \\[" in text
    assert "| +40.0 \\[" in text
    assert f"Pin `{stored['pin']['id']}`" in text
    assert "The pins differ in: `weights`." in text
    assert "**sums: 10 of 20 items: a subset.**" in text
    assert "## Against base" in text and "| 0 / 3 | 0.2500 |" in text
    shown = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert shown == [
        "plots/scores.png",
        "plots/sums_by_kind.png",
        "plots/sums_lengths.png",
    ]
    assert all((tmp_path / path).stat().st_size > 1_000 for path in shown)


def test_the_same_run_makes_the_same_files(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, run())
    for file in ("report.json", "report.md", "report.html"):
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two


def test_a_run_is_read_from_its_folder(tmp_path):
    given = run()
    lines.write(tmp_path / "items.jsonl", given.lines)
    write(tmp_path, given)
    found = Run.read(tmp_path)
    assert (found.name, found.lines, found.pin) == (
        tmp_path.name,
        given.lines,
        given.pin,
    )
    (tmp_path / "report.json").unlink()
    assert Run.read(tmp_path, name="base") == Run("base", found.lines)
    failed = [Unanswered("sums", "paper", "cot", "1", "endpoint: 500", 0)]
    lines.write_unanswered(tmp_path / report_run.UNANSWERED, failed)
    assert Run.read(tmp_path).unanswered == failed
    (tmp_path / report_run.JSON).write_text("{")
    with pytest.raises(ValueError, match="report.json: not JSON"):
        Run.read(tmp_path)


def test_a_report_of_nothing_but_failures(tmp_path):
    failed = [Unanswered("sums", "paper", "cot", "1", "endpoint: 500", 0)]
    found = write(tmp_path, Run("broken", [], failed))
    assert found["scores"]["sums"]["cot"]["score"] is None
    assert "| sums | paper | – | – | – |" in (tmp_path / "report.md").read_text()


def test_rules_and_judge_stand_beside_each_other(tmp_path):
    judge = Judge("gpt-9", lambda item, text: "", lambda item, text: grade())
    given = [
        line(
            str(i),
            "right" if i % 2 else "wrong",
            corrected=grade("right"),
            judge=graded_lines.judgement("right" if i % 3 else "wrong", "gpt-9"),
        )
        for i in range(6)
    ]
    write(tmp_path, Run("r", given), known(judge=judge, notes=("It guesses | A.",)))
    text = (tmp_path / "report.md").read_text()
    assert "- It guesses \\| A." in text
    assert "(gpt-9) | 1 / 2 of 6, 0 undecided |" in text
    assert "direct: rule and judge differ on 2, 3, 4." in text
    write(tmp_path, Run("r", [line("1")]), known(judge=judge))
    assert "by a judge (gpt-9); none was asked." in (tmp_path / "report.md").read_text()


def test_samples_have_a_table_of_their_own(tmp_path):
    given = [
        line(str(i), "right" if k else "wrong", mode="cot", sample=k)
        for i in range(3)
        for k in range(2)
    ]
    write(tmp_path, Run("r", given))
    text = (tmp_path / "report.md").read_text()
    assert "| sums | paper | cot | any | 2 | 100.0 | 0.0 |" in text
    assert "upper bound" in text


def test_texts_of_data_stay_in_their_cells(tmp_path):
    hostile = "a|b\n# <img src=x onerror=y> [x](http://x) `c` \ud800"
    given = [line("1", categories={hostile: hostile}, grade=grade(rule=hostile))]
    given.append(line("2", categories={hostile: "other"}))
    write(tmp_path, Run(hostile, given), known(details=lambda of: {"note": hostile}))
    text = (tmp_path / "report.md").read_text("utf-8")
    before, _, rest = text.partition("```json")
    details, _, after = rest.partition("```")
    assert json.loads(details) == {"note": hostile.replace("\ud800", "?")}
    prose = before + after
    assert "\n# <" not in text and "<img" not in prose.replace("\\<", "")
    tables_of_text = [part for part in prose.split("\n\n") if part.startswith("|")]
    assert len(tables_of_text) == 4
    for table in tables_of_text:
        bars = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(bars) == 1


def test_markdown_tables_have_a_cell_for_each_name():
    found = markdown.table(tables.Table(("a", "b", "c"), [["1", "2", "3"]], 1))
    assert found == "| a | b | c |\n| :-- | :-- | --: |\n| 1 | 2 | 3 |"


@pytest.mark.parametrize(
    "p_value, said", [(0.5, "0.5000"), (0.00005, "< 0.0001"), (0.03, "0.0300")]
)
def test_p_values_and_groups_are_said(p_value, said):
    entry = {
        "items": 4,
        "first_score": 50.0,
        "second_score": 75.0,
        "first_interval": [40.0, 60.0],
        "second_interval": [75.0, 75.0],
        "difference": 25.0,
        "interval": [None, None],
        "mcnemar": {"only_first_right": 1, "only_second_right": 2, "p_value": p_value},
        "grouped": p_value == 0.03,
    }
    made = {
        "scores": {"sums": {"cot": {"protocol": "paper"}}},
        "base": {"comparisons": {"sums": {"cot": entry}}},
    }
    table = tables.against_base(made)
    assert table is not None
    scores = ["50.0 [40.0, 60.0]", "75.0", "+25.0", "1 / 2"]
    note = " (items in groups)" if p_value == 0.03 else ""
    assert table.rows == [["sums", "paper", "cot", "4", *scores, said + note]]
