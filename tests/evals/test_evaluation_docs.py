"""docs/evaluation.md holds the benchmarks that there are, and an example that runs."""

from __future__ import annotations

import re

import pytest

from mpo_jax.evals import registry

HEAD = "| name | benchmark | protocols | items | home | licence |"


@pytest.fixture(scope="module")
def page(root):
    return (root / "docs" / "evaluation.md").read_text("utf-8")


def row(name: str) -> str:
    """A benchmark in the table."""
    found = registry.get(name)
    protocols = ", ".join(found.protocols)
    judged = {rules.judge.model for rules in found.protocols.values() if rules.judge}
    title = found.title + (f"; judges {', '.join(sorted(judged))}" if judged else "")
    size = f"{found.size:,}" if found.size else "–"
    source = found.source
    home = f"`{source.hub}`" + (f" ({source.notes})" if source.notes else "")
    return f"| `{name}` | {title} | {protocols} | {size} | {home} | {source.licence} |"


def test_the_table_is_that_of_the_registry(page):
    table = "\n".join([HEAD, "| --- " * 6 + "|", *map(row, registry.names())])
    assert table in page, f"put this into docs/evaluation.md:\n{table}"


def test_the_example_is_the_module_that_tests_run(page, root):
    code = (root / "tests/own_benchmarks/signs.py").read_text("utf-8")
    assert code in page.split("```python\n", 1)[1]


def test_what_configs_name_exists(root):
    from configs import eval_paper

    cfg = eval_paper.get_config()
    for named in cfg.benchmarks:
        name, _, protocol = named.partition(":")
        assert (protocol or cfg.protocol) in registry.get(name).protocols, named


def test_commands_have_flags_that_there_are(page, root):
    source = (root / "scripts/evaluate.py").read_text("utf-8")
    for flag in set(re.findall(r"--(\w+)=", page)) - {"config"}:
        assert f'"{flag}"' in source, flag
