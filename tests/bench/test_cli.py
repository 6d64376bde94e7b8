"""The command from end to end, on a grid of a few microseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import threadpoolctl

from fcdense import backends
from fcdense.bench import cli, machine
from fcdense.bench.cli import DONE, MISSING, REGRESSION, USAGE, main
from fcdense.bench.results import Results

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--min-time", "0.001", "--warmup", "0"]
TINY = ["--sizes", "1x4x3,2x4x3", "--networks", "4-3-2", "--batch", "1,2", *QUICK]


def measured(path: Path, *arguments: str) -> dict[str, Any]:
    assert main([*TINY, "--json", str(path), *arguments]) == DONE
    data: dict[str, Any] = json.loads(path.read_text())
    return data


def test_the_whole_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = measured(tmp_path / "a.json", "--device", "cpu,reference")
    rows = [(row["question"], row["label"], row["candidate"]) for row in data["rows"]]
    problems = [("forward", "1x4x3"), ("forward", "2x4x3"), ("backward", "1x4x3"), ("backward", "2x4x3")]
    problems += [("train", "4-3-2, batch 1"), ("train", "4-3-2, batch 2")]
    assert rows == [(*problem, device) for problem in problems for device in ("cpu", "reference")]
    for row in data["rows"]:
        assert row["error"] < 1e-6
        assert 0 < row["q1_s"] <= row["median_s"] <= row["q3_s"]
        assert row["first_call_s"] > 0
        assert row["calls"] >= 1
    assert data["rows"][0]["case"] == {
        "dtype": "float32",
        "activation": "relu",
        "batch": 1,
        "in_features": 4,
        "out_features": 3,
    }
    shown = capsys.readouterr().out
    for part in (
        "forward (relu, float32)",
        "4-3-2, batch 2",
        "reference",
        "against",
        data["machine"]["cpu"].split()[0],
    ):
        assert part in shown


def test_where_and_when(tmp_path: Path) -> None:
    data = measured(tmp_path / "a.json", "--op", "forward", "--device", "cpu")
    assert {"cpu", "cores", "ram_bytes", "os", "load_average", "blas", "gpu"} == set(data["machine"])
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["blas"]["name"]
    assert {"python", "numpy", "fcdense"} <= set(data["versions"])
    assert data["date"].endswith("+00:00")
    assert data["plan"] == {"min_time": 0.001, "warmup": 0.0, "rounds": 11}
    assert data["missing"] == {}


@pytest.mark.skipif(backends.cuda_probes()[-1].passed, reason="there is a GPU")
def test_without_a_gpu_the_table_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = backends.cuda_probes()[-1]
    data = measured(tmp_path / "a.json", "--op", "forward")
    assert data["missing"] == {"cuda": f"probe '{probe.name}' failed: {probe.detail}"}
    shown = " ".join(capsys.readouterr().out.split())
    assert f"cuda was not measured: probe '{probe.name}' failed: {probe.detail}" in shown
    assert main([*TINY, "--device", "cpu,cuda"]) == MISSING
    assert probe.detail in capsys.readouterr().err


def test_settings_reach_the_rows(tmp_path: Path) -> None:
    options = ["--op", "train", "--dtype", "float64", "--activation", "gelu", "--optimizer", "sgd"]
    data = measured(tmp_path / "a.json", "--device", "cpu", *options)
    assert {row["setting"] for row in data["rows"]} == {"gelu, float64, sgd"}
    assert all(row["error"] < 1e-14 for row in data["rows"])


def test_peers_are_columns(tmp_path: Path) -> None:
    data = measured(tmp_path / "a.json", "--device", "cpu", "--peer", "numpy", "--op", "forward", "--sizes", "2x3x4")
    assert [row["candidate"] for row in data["rows"]] == ["cpu", "numpy"]


def scaled(path: Path, factor: float, target: Path) -> Path:
    """A copy of results whose times are multiplied by `factor`."""
    data = json.loads(path.read_text())
    for row in data["rows"]:
        for name in ("median_s", "q1_s", "q3_s"):
            row[name] *= factor
    target.write_text(json.dumps(data))
    return target


def test_regressions_end_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    measured(path, "--op", "forward", "--device", "cpu")
    faster = scaled(path, 0.5, tmp_path / "faster.json")
    report = ["report", str(path), "--compare", str(faster)]
    assert main([*report, "--fail-above", "99%"]) == REGRESSION
    assert "+100.0 % regression" in " ".join(capsys.readouterr().out.split())
    assert main([*report, "--fail-above", "101"]) == DONE
    assert main(report) == DONE
    # measuring again, against times that nothing can be slower than, and then faster than
    again = [*TINY, "--op", "forward", "--device", "cpu", "--fail-above", "10%", "--compare"]
    assert main([*again, str(scaled(path, 1e6, tmp_path / "slow.json"))]) == DONE
    assert main([*again, str(scaled(path, 1e-6, tmp_path / "fast.json"))]) == REGRESSION


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "3x4"], "expected BxIxO"),
        (["--sizes", "0x4x4"], "expected BxIxO"),
        (["--networks", "784"], "expected widths such as 784-512-10"),
        (["--batch", "1,,2"], "expected positive numbers"),
        (["--device", "gpu"], "expected cpu, cuda or cuda:N"),
        (["--dtype", "int8"], "invalid choice"),
        (["--min-time", "-1"], "--min-time"),
        (["--fail-above", "much"], "expected a percentage"),
        (["--fail-above", "10%"], "needs --compare"),
        (["--op", "forwards"], "Unknown question 'forwards'"),
        (["--activation", "rely"], "Did you mean 'relu'"),
        (["--activation", "softmax"], "works on rows"),
        (["--optimizer", "adm"], "Unknown optimizer 'adm'"),
        (["--peer", "tourch"], "Unknown peer 'tourch'"),
        (["--compare", "not_there.json"], "cannot be read"),
        (["report", "not_there.json"], "cannot be read"),
        (["report"], "required"),
    ],
)
def test_usage_errors_end_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.runner, "run", lambda *_: pytest.fail("nothing is measured before all arguments are right"))
    try:
        code = main(arguments)
    except SystemExit as error:  # argparse's own
        code = error.code  # type: ignore[assignment]
    assert code == USAGE
    assert message in capsys.readouterr().err


def test_a_plot_that_cannot_be_drawn_is_known_before(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.plot.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(cli.runner, "run", lambda *_: pytest.fail("nothing is measured"))
    assert main([*TINY, "--plot", "a.png"]) == USAGE
    assert "fcdense[plot]" in capsys.readouterr().err


def test_report_prints_markdown_and_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.json"
    measured(path, "--device", "cpu")
    capsys.readouterr()
    assert main(["report", str(path), "--op", "train"]) == DONE
    train = capsys.readouterr().out
    assert train.startswith("**train (relu, float32, adam)**\n\n|  | on |")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- bench: a.json train -->\nold\n<!-- /bench -->\n")
    assert main(["report", str(path), "--into", str(readme)]) == DONE
    assert readme.read_text() == f"<!-- bench: a.json train -->\n{train}<!-- /bench -->\n"
    (tmp_path / "b.md").write_text("no block\n")
    assert main(["report", str(path), "--into", str(tmp_path / "b.md")]) == USAGE
    assert main(["report", str(path), "--into", str(tmp_path / "not_there.md")]) == USAGE


def test_report_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "new" / "a.json"
    measured(path, "--op", "forward", "--device", "cpu")
    assert main(["report", str(path), "--plot", str(tmp_path / "a.png")]) == DONE
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("module", ["bench", "fcdense.bench"])
def test_it_is_a_program(module: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", module, *TINY, "--op", "forward", "--device", "cpu", "--peer", "numpy"]
    done = subprocess.run([*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == DONE, done.stderr
    assert len(Results.read(path).rows) == 4


def test_help_lists_the_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"], prog="fcdense bench")
    shown = capsys.readouterr().out
    for part in ("usage: fcdense bench", "forward", "backward", "train", "also measure: numpy"):
        assert part in shown


def test_no_commit_outside_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    assert machine.commit() is None
    (tmp_path / "pyproject.toml").touch()
    assert machine.commit() is None, "a folder that git does not know"


def test_the_commit_tells_changed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "pyproject.toml").write_text("a")
    git("init", "--quiet")
    git("add", "pyproject.toml")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    head = git("rev-parse", "HEAD")[:12]
    assert machine.commit() == head
    (tmp_path / "pyproject.toml").write_text("b")
    assert machine.commit() == f"{head}-dirty"


def test_blas_without_a_pool_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    assert machine.blas()["threads"] is None
    assert machine.blas()["name"]
