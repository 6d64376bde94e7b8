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
from fcdense.bench.candidates import Candidate, CandidateError
from fcdense.bench.cli import DONE, MISSING, REGRESSION, USAGE, main
from fcdense.bench.results import Results

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["--min-time", "0.001", "--warmup", "0", "--rounds", "3", "--max-others", "99"]
TINY = ["--sizes", "1x4x3,2x4x3", "--networks", "4-3-2", "--batches", "1,2", *QUICK]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are folded where the figures beside them leave no room, which depends on what was measured."""
    monkeypatch.setenv("COLUMNS", "200")


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
        assert row["start_s"] > 0
        assert len(row["samples"]) == row["rounds"] == 3
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
    assert {"cpu", "cores", "ram_bytes", "os", "peak_gflops", "load_average", "blas", "gpu"} == set(data["machine"])
    assert data["machine"]["cores"] >= 1
    assert data["machine"]["blas"]["name"]
    assert {"python", "numpy", "fcdense"} <= set(data["versions"])
    assert data["date"].endswith("+00:00")
    assert data["plan"] == {"min_time": 0.001, "warmup": 0.0, "rounds": 3, "max_others": 99.0}
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
    data = measured(tmp_path / "a.json", "--device", "cpu", "--peers", "numpy", "--op", "forward", "--sizes", "2x3x4")
    assert [row["candidate"] for row in data["rows"]] == ["cpu", "numpy"]


def test_the_table_of_libraries(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--device", "cpu,cpu eager", "--peers", "numpy,limit_numpy", "--optimizer", "adam,sgd", "--op"]
    data = measured(tmp_path / "a.json", *options, "train,predict", "--batches", "2")
    found = [(row["question"], row["setting"], row["candidate"]) for row in data["rows"]]
    candidates = ["cpu", "cpu eager", "numpy", "limit_numpy"]
    settings = [("train", "relu, float32, adam"), ("train", "relu, float32, sgd"), ("predict", "relu, float32")]
    assert found == [(*setting, candidate) for setting in settings for candidate in candidates]
    assert all(row["error"] < 1e-6 for row in data["rows"] if row["candidate"] != "limit_numpy")
    assert data["machine"]["peak_gflops"] or "share of the FMA peak" in data["missing"]
    shown = capsys.readouterr().out
    for part in ("products", "time of a step", "max error", "cpu eager"):
        assert part in shown
    assert main(["report", str(tmp_path / "a.json"), "--peers", "--op", "train"]) == DONE
    assert "**train (relu, float32, sgd): time of a step**" in capsys.readouterr().out


def test_a_grid_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    common = ["--op", "predict", "--networks", "4-3", "--append"]
    measured(path, *common, "--device", "cpu", "--batches", "1")
    measured(path, *common, "--device", "cpu", "--batches", "2", "--peers", "numpy")
    data = measured(path, *common, "--device", "reference", "--batches", "1")
    found = [(row["label"], row["candidate"]) for row in data["rows"]]
    assert found == [
        ("4-3, batch 1", "cpu"),
        ("4-3, batch 2", "cpu"),
        ("4-3, batch 2", "numpy"),
        ("4-3, batch 1", "reference"),
    ]


def test_parts_that_do_not_fit_are_refused_before_there_is_work_to_lose(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    measured(path, "--op", "forward", "--device", "cpu")
    monkeypatch.setattr(cli.runner, "run", lambda *_: pytest.fail("nothing is measured"))
    again = [*TINY, "--device", "cpu", "--json", str(path), "--append"]
    assert main([*again, "--rounds", "4"]) == USAGE
    assert "these differ: plan" in capsys.readouterr().err


def test_what_was_measured_is_kept_when_the_rest_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure_one = cli.runner.run

    def fails_later(about: Results, case: Any, *rest: Any) -> Results:
        if case.batch == 2:
            raise KeyboardInterrupt
        return measure_one(about, case, *rest)

    monkeypatch.setattr(cli.runner, "run", fails_later)
    path = tmp_path / "a.json"
    with pytest.raises(KeyboardInterrupt):
        main([*TINY, "--op", "forward", "--device", "cpu", "--json", str(path)])
    assert [row.label for row in Results.read(path).rows] == ["1x4x3"]


def test_a_candidate_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = Candidate.prepare

    def fails(candidate: Candidate, case: Any) -> bool:
        if candidate.name == "reference":
            raise CandidateError("no more memory")
        return prepare(candidate, case)

    monkeypatch.setattr(Candidate, "prepare", fails)
    data = measured(tmp_path / "a.json", "--op", "forward", "--sizes", "1x2x3", "--device", "cpu,reference")
    assert [row["candidate"] for row in data["rows"]] == ["cpu"]
    assert data["missing"] == {"reference, forward 1x2x3 (relu, float32)": "no more memory"}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc, which only Linux has")
def test_memory_is_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--op", "predict", "--batches", "2", "--device", "cpu", "--peers", "numpy", "--memory"]
    data = measured(tmp_path / "a.json", *options)
    assert all(0 <= row["peak_bytes"] < 64 * 2**20 for row in data["rows"])
    assert "peak memory" in " ".join(capsys.readouterr().out.split())


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
        (["--rounds", "0"], "expected positive numbers"),
        (["--networks", "784"], "expected widths such as 784-512-10"),
        (["--batches", "1,,2"], "expected positive numbers"),
        (["--device", "gpu"], "expected cpu, cuda, cuda:N"),
        (["--dtype", "int8"], "invalid choice"),
        (["--min-time", "-1"], "--min-time"),
        (["--fail-above", "much"], "expected a percentage"),
        (["--fail-above", "10%"], "needs --compare"),
        (["--append"], "--append needs --json"),
        (["--op", "train", "--max-gflop", "0"], "No case is left"),
        (["--op", "forwards"], "Unknown question 'forwards'"),
        (["--activation", "rely"], "Did you mean 'relu'"),
        (["--activation", "softmax"], "works on rows"),
        (["--optimizer", "adm"], "Unknown optimizer 'adm'"),
        (["--peers", "tourch"], "Unknown peer 'tourch'"),
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
    measured(path, "--op", "train", "--device", "cpu", "--curves", str(tmp_path / "b.png"))
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert main([*TINY, "--op", "forward", "--curves", str(tmp_path / "c.png")]) == USAGE


@pytest.mark.parametrize("module", ["bench", "fcdense.bench"])
def test_it_is_a_program(module: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    command = [sys.executable, "-m", module, *TINY, "--op", "forward", "--device", "cpu", "--peers", "numpy"]
    done = subprocess.run([*command, "--json", str(path)], cwd=ROOT, capture_output=True, text=True, env=os.environ)
    assert done.returncode == DONE, done.stderr
    assert len(Results.read(path).rows) == 4


def test_help_lists_the_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"], prog="fcdense bench")
    shown = capsys.readouterr().out
    for part in ("usage: fcdense bench", "forward", "backward", "train", "compare with other libraries: jax"):
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
    kept = tmp_path / "bench" / "results" / "a.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    monkeypatch.setattr(machine, "CHECKOUT", tmp_path)
    head = git("rev-parse", "HEAD")[:12]
    assert machine.commit() == head
    kept.write_text("[]")
    assert machine.commit() == head
    (tmp_path / "pyproject.toml").write_text("b")
    assert machine.commit() == f"{head}-dirty"


def test_blas_without_a_pool_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    assert machine.blas()["threads"] is None
    assert machine.blas()["name"]
