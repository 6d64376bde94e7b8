"""The conventions of the source tree: floors, sizes, docstrings, a light import, and what is not allowed in at all."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("fcdense", "kernels", "bench", "examples", "tests")
MAX_LINES = 400
ENVIRONMENT = {"FCDENSE_DEVICE", "FCDENSE_CACHE", "FCDENSE_LOG"}

# A file imports from its own floor and the floors below, never from above. Names of folders end with a slash.
FLOORS = (
    (
        "words",
        "_checkout errors arguments log scope symbol algebra expression program lowering codegen loops emit math "
        "activation activations kernels/",
    ),
    ("memory", "layout arena random conversion precision"),
    ("backends", "backends/ cuda/"),
    ("gradients", "changes tape operations indexing activate variable tensor shadow parameter dense ops gradients"),
    ("models", "nn/ targets losses optim/ init regularizers constraints"),
    (
        "running",
        "fixed_inputs fixed_results recorded_step captured_methods capture data/ array_targets metrics history "
        "accumulation captured_rounds captured_training inference diagnosis callbacks checkpoint train explain",
    ),
    ("doors", "__init__ __main__ cli tune sklearn onnx interop distributed bench/"),
)
FLOOR_OF = {name: number for number, (_, names) in enumerate(FLOORS) for name in names.split()}


def sources(*rooms: str, suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """All source files of the named top-level folders."""
    return sorted(path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in suffixes)


def texts() -> list[Path]:
    """Every file a person reads: sources, and what lies at the top of the checkout."""
    inside = sources(*ROOMS, suffixes=(".py", ".cuh", ".cu", ".h", ".cpp", ".md", ".toml", ".txt"))
    top = [path for path in ROOT.iterdir() if path.suffix in {".md", ".toml", ".yaml", ".in"}]
    return [*inside, *top, ROOT / "Dockerfile", ROOT / ".ci" / "run"]


def shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=shown)


def module_of(path: Path) -> str:
    """The dotted name under which an installation knows a file: kernels/ and bench/ are inside of fcdense."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in {"kernels", "bench"}:
        parts.insert(0, "fcdense")
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    """The number of the floor that a module of fcdense is on."""
    head, _, _ = module.removeprefix("fcdense").removeprefix(".").partition(".")
    name = f"{head}/" if f"fcdense.{head}" in PACKAGES else head or "__init__"
    assert name in FLOOR_OF, f"{module}: place {name!r} on a floor, in the table at the top of {Path(__file__).name}"
    return FLOOR_OF[name]


MODULES = {module_of(path) for path in sources("fcdense", "kernels", "bench")}
PACKAGES = {module_of(path.parent / "__init__.py") for path in sources("fcdense", "kernels", "bench")}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module for every import in a file, those inside of functions as well; relative ones made absolute."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                anchor = parts[: len(parts) - node.level + 1]
                base = ".".join([*anchor, base] if base else anchor)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield node.lineno, inner if inner in MODULES else base


def is_ours(module: str) -> bool:
    return module == "fcdense" or module.startswith("fcdense.")


@each(sources("fcdense", "bench"))
def test_imports_go_down(path: Path) -> None:
    here = floor_of(module_of(path))
    ours = [(line, module, floor_of(module)) for line, module in imports(path) if is_ours(module)]
    up = [f"line {line}: {module} is on floor {floor}" for line, module, floor in ours if floor > here]
    assert not up, f"{shown(path)} is on floor {here} ({FLOORS[here][0]}) and imports from above: {up}"


@each(sources("kernels"))
def test_kernels_import_nothing_of_fcdense(path: Path) -> None:
    ours = [
        (line, module) for line, module in imports(path) if is_ours(module) and not module.startswith("fcdense.kernels")
    ]
    assert not ours, f"{shown(path)} imports {ours}: a kernel can be read and compiled on its own"


def test_the_table_of_floors_sees_hidden_and_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "fcdense" / "backends" / "sample.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "import numpy\ndef f():\n    from ..errors import ShapeError\n    from .. import cli\n    from . import base\n"
    )
    monkeypatch.setitem(globals(), "MODULES", {"fcdense.cli", "fcdense.errors", "fcdense.backends.base"})
    found = sorted(imports(path))
    assert found == [(1, "numpy"), (3, "fcdense.errors"), (4, "fcdense.cli"), (5, "fcdense.backends.base")]


@each(sources(*ROOMS, suffixes=(".py", ".cuh", ".cu", ".h", ".cpp")))
def test_files_stay_short(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{shown(path)} has {lines} lines, at most {MAX_LINES}: which two things has it become?"


# The brackets keep these patterns from finding themselves.
MARKS = re.compile(r"\b(T[O]DO|FIX[M]E|X[X]X|raise NotImplemented[E]rror)\b")
MACHINE_PATHS = re.compile(r"(?<![\w.])(/(home|root|Users|work|tmp|mnt|opt/wheels)/|[A-Z]:\\Users)")


@each(texts())
def test_no_marks_of_unfinished_work(path: Path) -> None:
    assert not MARKS.findall(path.read_text(encoding="utf-8")), f"{shown(path)}: finish it or take it out"


@each(texts())
def test_no_paths_of_one_machine(path: Path) -> None:
    found = [match.group() for match in MACHINE_PATHS.finditer(path.read_text(encoding="utf-8"))]
    assert not found, f"{shown(path)} names {found}: these exist on one machine only"


def classes() -> dict[str, ast.ClassDef]:
    """Every class of the installed package, by name."""
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in sources("fcdense", "kernels", "bench"))
    return {node.name: node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


CLASSES = classes()


def inherits_docstring(owner: ast.ClassDef, method: str) -> bool:
    """Whether a base class of this package documents the method."""
    for base in owner.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        ancestor = CLASSES.get(name)
        if ancestor is None or ancestor is owner:
            continue
        own = (node for node in ancestor.body if isinstance(node, ast.FunctionDef) and node.name == method)
        if any(ast.get_docstring(node) for node in own) or inherits_docstring(ancestor, method):
            return True
    return False


def needs_docstring(node: ast.stmt) -> bool:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
        return False
    if ast.unparse(node.body) == "...":
        return False  # a protocol's method: the class says what it is for
    decorators = {ast.unparse(decorator).rpartition(".")[2] for decorator in node.decorator_list}
    return not decorators & {"property", "cached_property", "setter", "overload"}  # a property's name says what it is


@each(sources("fcdense", "kernels", "bench"))
def test_what_is_public_is_documented(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = [] if ast.get_docstring(tree) else ["the module itself"]
    for node in filter(needs_docstring, tree.body):
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if not ast.get_docstring(node):
            missing.append(node.name)
        if isinstance(node, ast.ClassDef):
            missing += [
                f"{node.name}.{method.name}"
                for method in filter(needs_docstring, node.body)
                if isinstance(method, ast.FunctionDef)
                and not ast.get_docstring(method)
                and not inherits_docstring(node, method.name)
            ]
    assert not missing, f"{shown(path)}: without a docstring: {', '.join(missing)}"


def environment_reads(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name for every variable that code takes from the environment; a name that is not a literal is shown."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] == "getenv" or re.search(r"\benviron\.(get|pop|setdefault)$", called):
                key: ast.expr | None = node.args[0] if node.args else None
            else:
                continue
        elif isinstance(node, ast.Subscript) and re.search(r"\benviron$", ast.unparse(node.value)):
            key = node.slice
        elif isinstance(node, ast.Compare) and re.search(r"\benviron$", ast.unparse(node.comparators[-1])):
            key = node.left
        else:
            continue
        yield node.lineno, key.value if isinstance(key, ast.Constant) else ast.unparse(key) if key else "nothing"


@each(sources("fcdense", "kernels", "bench", "examples"))
def test_environment_variables(path: Path) -> None:
    reads = environment_reads(ast.parse(path.read_text(encoding="utf-8")))
    others = [(line, name) for line, name in reads if name not in ENVIRONMENT]
    assert not others, f"{shown(path)} reads {others} from the environment; allowed are {sorted(ENVIRONMENT)}"


def test_environment_reads_are_seen() -> None:
    code = 'import os\nos.getenv("A")\nos.environ["B"]\nenviron.get(NAME)\n"C" in os.environ\ndict(os.environ)\n'
    assert list(environment_reads(ast.parse(code))) == [(2, "A"), (3, "B"), (4, "NAME"), (5, "C")]


IMPORT_PROBE = """
import json, sys, time
import numpy.random  # compiled by Cython, it leaves modules of Cython's names behind
before = set(sys.modules)
start = time.process_time()
import fcdense
seconds = time.process_time() - start
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({"seconds": seconds, "foreign": sorted(new - set(sys.stdlib_module_names) - {"numpy", "fcdense"})}))
"""


def test_import_is_light(tmp_path: Path) -> None:
    """Nothing but NumPy is loaded, and the processor needs less than 0.15 s beyond NumPy (best of several)."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)
    best = float("inf")
    for _ in range(8):
        command = [sys.executable, "-c", IMPORT_PROBE]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        report = json.loads(done.stdout)
        assert report["foreign"] == [], "import fcdense loads more than NumPy"
        best = min(best, report["seconds"])
        if best < 0.075:
            break
    assert best < 0.15, f"import fcdense takes {best:.3f} s beyond NumPy"
