"""Tables, Markdown and blocks of a README."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fcdense.bench import plot, report
from fcdense.bench.compare import compare
from fcdense.bench.report import BLOCK, markdown, notes, rewrite
from fcdense.bench.results import NOT_FINITE, Results
from fcdense.bench.tables import digits, seconds, tables
from fcdense.errors import ArgumentError
from tests.bench.made_up import results, row

ROOT = Path(__file__).resolve().parents[2]


def printed(whole: Results) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    report.show(console, whole)
    return console.export_text()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.50 s"),
        (0.9996, "1.00 s"),
        (0.0123, "12.3 ms"),
        (9.996e-4, "1.00 ms"),
        (1.234e-5, "12.3 µs"),
        (5e-9, "5.00 ns"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.01234, "0.0123"),
        (0.999, "0.999"),
        (9.996, "10.0"),
        (99.96, "100"),
        (123.4, "123"),
        (12345, "12,300"),
    ],
)
def test_three_digits(value: float, text: str) -> None:
    assert digits(value) == text


def test_a_table_for_each_question_and_setting() -> None:
    rows = [row("cpu", 1.0), row("cpu", 1.0, setting="relu, float64"), row("cpu", 1.0, question="train")]
    assert [table.title for table in tables(results(*rows))] == [
        "forward (relu, float32)",
        "forward (relu, float64)",
        "train (relu, float32)",
    ]


def test_a_line_for_each_candidate() -> None:
    rows = [
        row("cpu", 4e-3),
        row("cuda:0", 1e-3, error=NOT_FINITE),
        row("cpu", 1e-3, "64x64x64"),
        row("cuda:0", 2e-3, "64x64x64"),
    ]
    (table,) = tables(results(*rows))
    assert table.headings == ["", "on", "median", "IQR", "GFLOP/s", "against\ncpu", "start", "max\nerror"]
    assert table.rows == [
        ["32x64x64", "cpu", "4.00 ms", "30 %", "1.00", "1.00x", "500 ms", "1.0e-07"],
        ["", "cuda:0", "1.00 ms", "30 %", "4.00", "4.00x", "500 ms", "not finite"],
        ["64x64x64", "cpu", "1.00 ms", "30 %", "4.00", "1.00x", "500 ms", "1.0e-07"],
        ["", "cuda:0", "2.00 ms", "30 %", "2.00", "0.500x", "500 ms", "1.0e-07"],
        ["", "cuda", "–", "–", "–", "–", "–", "–"],
    ]


def test_no_speed_up_where_the_baseline_has_no_row() -> None:
    (table,) = tables(results(row("cpu", 1.0), row("peer", 2.0), row("peer", 2.0, "64x64x64")))
    assert [line[5] for line in table.rows[:3]] == ["1.00x", "0.500x", "–"]


def test_one_candidate_is_compared_with_nobody() -> None:
    (table,) = tables(results(row("cpu", 1.0)))
    assert not any("against" in heading for heading in table.headings)
    assert {len(line) for line in table.rows} == {len(table.headings)}


def test_notes_say_where_and_why() -> None:
    text = "\n".join(notes(results(row("cpu", 1.0))))
    for part in (
        "Chip, 4 cores, openblas 0.3, 4 threads, Linux",
        "numpy 2.4",
        "11 interleaved rounds",
        "commit abc123",
    ):
        assert part in text
    assert "cuda was not measured: probe 'driver' failed: no driver." in text
    assert "disturbed" not in text
    text = "\n".join(notes(results(missing={"torch": "none", "cuda": "no driver", "jax": "none"})))
    assert "torch; jax were not measured: none" in text
    assert "cuda was not measured: no driver" in text
    text = "\n".join(notes(results(row("cpu", 1.0, samples=[1.0, None, None]), row("torch", 1.0))))
    assert "2 of 6 samples are left out" in text


def test_notes_on_a_gpu() -> None:
    facts = {"name": "Chip 200", "architecture": "sm_90", "driver": None, "cuda": 12080, "nvrtc": "12.8"}
    whole = results(row("cuda:0", 1e-3, error=0.1, tolerance=0.01), row("cuda:0", 1e-3, "a", tolerance=0.01))
    whole.machine["gpu"] = facts | {"cublaslt": None}
    text = "\n".join(notes(whole))
    assert "Chip 200 (sm_90), driver unknown for CUDA 12.8, NVRTC 12.8; numpy 2.4." in text
    assert "Rounding does not explain those marked (!)." in text
    assert "Light" not in text
    assert "cuda:0 | 1.00 ms | 30 % | 4.00 | 500 ms | 1.0e-01 (!) |" in markdown(whole)
    copy = row("cuda:0", 2e-3, "copy", case={"what": "copy"}, work=[[0, 4 * 10**9]], flops=0)
    whole = results(row("cuda:0", 2e-6, question="products", case={"dtype": "bfloat16"}), copy)
    text = "\n".join(notes(whole))
    assert "2.00 TFLOP/s for products of bfloat16, 2.00 TB/s for copies." in text
    assert "marked" not in text


def test_rates_are_those_of_rows_that_are_not_shown() -> None:
    copy = row("cuda:0", 2e-3, "copy", case={"what": "copy"}, work=[[0, 4 * 10**9]], setting="float32", flops=0)
    product = row("cuda:0", 2e-6, question="products", case={"dtype": "bfloat16"}, setting="gelu, bfloat16")
    step = row("cuda:0", 4e-6, question="train", case={"dtype": "bfloat16"}, setting="gelu, bfloat16, adamw")
    step = replace(step, work=[[4_000_000, 100]])
    text = markdown(results(copy, product, step), ["train", "adamw"], report.LAYOUTS["peers"])
    assert "| 32x64x64 | 4.00 µs | 2.00 µs | 50 % |" in text
    assert "copy" not in text.replace("copies", "")


def test_the_terminal_shows_all_of_it() -> None:
    text = printed(results(row("cpu", 4e-3), row("cuda:0", 1e-3)))
    for part in ("forward (relu, float32)", "32x64x64", "4.00 ms", "4.00x", "no driver."):
        assert part in text


def test_a_narrow_terminal_shows_every_digit() -> None:
    console = Console(width=80, record=True, file=io.StringIO())
    report.show(console, results(row("cpu", 4e-3, "1024x1024x1024"), row("cuda:0", 1e-3, "1024x1024x1024")))
    line = next(line for line in console.export_text().splitlines() if "cpu" in line and "1024" in line)
    assert line.split() == ["1024x1024x1024", "cpu", "4.00", "ms", "30", "%", "1.00", "1.00x", "500", "ms", "1.0e-07"]


def test_a_table_that_is_too_wide_is_not_cut() -> None:
    candidates = [row(f"candidate_{index}", 4e-3) for index in range(12)]
    console = Console(width=80, record=True, file=io.StringIO())
    report.show(console, results(*candidates), report.LAYOUTS["peers"])
    assert any(line.split()[-12:] == ["1.0e-07"] * 12 for line in console.export_text().splitlines())


def test_changes_point_at_regressions() -> None:
    changes = compare(results(row("cpu", 1.0), row("peer", 1.0)), results(row("cpu", 1.2), row("peer", 1.05)))
    console = Console(width=160, record=True, file=io.StringIO())
    report.show_changes(console, changes, 10.0)
    slow, fine = (line for line in console.export_text().splitlines() if "32x64x64" in line)
    assert "+20.0 % regression" in slow
    assert "+5.0 %" in fine
    assert "regression" not in fine


def test_markdown_is_a_table() -> None:
    lines = markdown(results(row("cpu", 4e-3))).splitlines()
    assert lines[0] == "**forward (relu, float32)**"
    assert lines[2] == "|  | on | median | IQR | GFLOP/s | start | max error |"
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4] == "| 32x64x64 | cpu | 4.00 ms | 30 % | 1.00 | 500 ms | 1.0e-07 |"


def test_markdown_of_some_questions() -> None:
    whole = results(row("cpu", 1.0), row("cpu", 1.0, question="train"))
    assert "forward" not in markdown(whole, ["train"])
    with pytest.raises(ArgumentError, match="no rows of: backward"):
        markdown(whole, ["backward"])


README = """# Title
<!-- bench: a.json -->
old
<!-- /bench -->
between
<!-- bench: b.json train -->
<!-- /bench -->
<!-- bench: a.json train -->
<!-- /bench -->
end
"""


def test_blocks_are_rewritten_and_nothing_else() -> None:
    whole = results(row("cpu", 1.0), row("cpu", 1.0, question="train"))
    written = rewrite(README, "a.json", whole)
    first, train = markdown(whole), markdown(whole, ["train"])
    assert written == (
        f"# Title\n<!-- bench: a.json -->\n{first}<!-- /bench -->\nbetween\n"
        "<!-- bench: b.json train -->\n<!-- /bench -->\n"
        f"<!-- bench: a.json train -->\n{train}<!-- /bench -->\nend\n"
    )
    assert rewrite(written, "a.json", whole) == written


def test_a_word_chooses_columns_for_libraries() -> None:
    whole = results(row("cpu", 1.0), row("torch", 2.0), row("cpu", 1.0, question="train"))
    written = rewrite("<!-- bench: a.json peers forward -->\n<!-- /bench -->\n", "a.json", whole)
    assert "|  | cpu | times torch |" in written
    assert "train" not in written


def test_words_choose_settings_and_ratios_alone() -> None:
    rows = [row(name, 1.0, setting=f"{f}, float32") for f in ("relu", "gelu") for name in ("cpu", "torch")]
    written = rewrite("<!-- bench: a.json speed gelu -->\n<!-- /bench -->\n", "a.json", results(*rows))
    assert written.count("**") == 2
    assert "**forward (gelu, float32)**" in written
    assert "times torch" in written
    with pytest.raises(ArgumentError, match="no rows of: tanh"):
        rewrite("<!-- bench: a.json tanh -->\n<!-- /bench -->\n", "a.json", results(*rows))


def test_a_readme_without_the_block() -> None:
    with pytest.raises(ArgumentError, match=r"<!-- bench: c\.json -->"):
        rewrite(README, "c.json", results(row("cpu", 1.0)))


@pytest.mark.parametrize(
    "readme", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[!.]*/*.md")), ids=lambda path: path.name
)
def test_committed_tables_are_those_of_the_committed_results(readme: Path) -> None:
    text = readme.read_text(encoding="utf-8")
    for name in {match[2] for match in BLOCK.finditer(text)} - {"NAME.json"}:
        assert rewrite(text, name, Results.read(ROOT / "bench" / "results" / name)) == text


def test_plot_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'fcdense\[plot\]'"):
        plot.check(Path("a.png"), "--plot")


def test_plot_formats() -> None:
    pytest.importorskip("matplotlib")
    plot.check(Path("a.svg"), "--plot")
    for path in (Path("a"), Path("a.doc")):
        with pytest.raises(ArgumentError, match="use one of"):
            plot.check(path, "--curves")


def test_there_is_nothing_to_draw_of_launches(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ArgumentError, match="no row with operations"):
        plot.plot(results(row("cuda:0", flops=0)), tmp_path / "a.svg")


def test_plot_draws_every_row(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "a.svg"
    plot.plot(results(row("cpu", 1.0), row("cuda:0", 0.1), row("cpu", 1.0, question="train")), path)
    text = path.read_text(encoding="utf-8")
    assert text.count("<!-- 32x64x64 -->") == 2
    assert "<!-- train (relu, float32) -->" in text
