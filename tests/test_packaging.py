"""What an installation consists of, and that the container file and the packaging settings agree with the tree."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fcdense

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
CORE = {"numpy", "rich", "safetensors", "threadpoolctl"}
SHIPPED = ("fcdense", "kernels", "bench")


def distribution(requirement: str) -> str:
    """The name in a requirement such as ``cupy-cuda12x[ctk]>=14``."""
    return re.split(r"[\[<>=~!; ]", requirement, maxsplit=1)[0]


def test_every_folder_with_python_files_is_a_listed_package() -> None:
    folders = {path.parent.relative_to(ROOT) for room in SHIPPED for path in (ROOT / room).rglob("*.py")}
    without_init = [str(folder) for folder in folders if not (ROOT / folder / "__init__.py").is_file()]
    assert without_init == [], "a folder with Python files needs an __init__.py to be installed"
    names = {".".join(folder.parts).removeprefix("fcdense.") for folder in folders} - {"fcdense"}
    assert set(SETUPTOOLS["packages"]) == {"fcdense"} | {f"fcdense.{name}" for name in names}


def test_folders_are_mapped_to_their_packages() -> None:
    for package, folder in SETUPTOOLS["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), f"{package} is mapped to {folder}, which is no package"
    assert "kernels" not in {path.name for path in (ROOT / "fcdense").iterdir()}, (
        "it would hide the kernels/ at the top"
    )


def test_the_core_stays_small() -> None:
    assert {distribution(requirement) for requirement in PROJECT["project"]["dependencies"]} == CORE


def test_extras_add_to_the_core() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    known = "numba cuda12 cuda13 nvrtc numba-cuda12 numba-cuda13 sklearn onnx plot mpi peers test dev"
    assert set(extras) == set(known.split())
    for name, requirements in extras.items():
        added = {distribution(requirement) for requirement in requirements if "<" not in requirement}
        assert not CORE & added, f"{name} repeats the core without a narrower bound"


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT["project"]
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "fcdense.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", fcdense.__version__)
    newest, *_ = re.findall(r"^## \[(.*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest in {"Unreleased", fcdense.__version__}
    # setuptools reads the assignment without importing the package, which it can only do with a literal
    tree = ast.parse(Path(fcdense.__file__).read_text(encoding="utf-8"))
    values = [node.value for node in tree.body if isinstance(node, ast.Assign) and "__version__" in ast.unparse(node)]
    assert [ast.literal_eval(value) for value in values] == [fcdense.__version__]


def test_an_installation_has_the_same_version() -> None:
    try:
        installed = importlib.metadata.version("fcdense")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("fcdense is not installed here: these tests run from a bare checkout")
    assert installed == fcdense.__version__


@pytest.mark.parametrize("package", ["fcdense.kernels", "fcdense.bench"])
def test_packages_from_the_top_of_the_checkout(package: str) -> None:
    """They are importable and readable as resources, installed or not."""
    importlib.import_module(package)
    assert (importlib.resources.files(package) / "__init__.py").is_file()


def test_a_bare_checkout_is_importable(tmp_path: Path) -> None:
    """From a folder that is not the checkout, with nothing installed (-I ignores the environment, -S site-packages)."""
    numpy_home = Path(importlib.import_module("numpy").__file__ or "").parent.parent
    code = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(numpy_home)!r}]\n"
        "import fcdense.kernels, fcdense.bench, importlib.resources\n"
        "print(fcdense.kernels.__file__, importlib.resources.files('fcdense.bench'), sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout.split("\n")[:2] == [str(ROOT / "kernels" / "__init__.py"), str(ROOT / "bench")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a clean copy, so that a build folder left in the checkout cannot add to it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in SHIPPED:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(copy / "dist")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(copy)], check=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_runs_on_any_platform(wheel: Path) -> None:
    assert wheel.name == f"fcdense-{fcdense.__version__}-py3-none-any.whl"


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        "fcdense/__init__.py",
        "fcdense/py.typed",
        "fcdense/cli.py",
        "fcdense/nn/__init__.py",
        "fcdense/data/digits.npz",
        "fcdense/data/*.txt",
        "fcdense/kernels/__init__.py",
        "fcdense/kernels/README.md",
        "fcdense/bench/__init__.py",
        "fcdense/bench/peak.c",
        "fcdense-*.dist-info/licenses/LICENSE",
        "fcdense-*.dist-info/licenses/fcdense/data/*.txt",
        "fcdense-*.dist-info/entry_points.txt",
    ],
)
def test_the_wheel_contains(wheel: Path, pattern: str) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert fnmatch.filter(names, pattern), f"nothing in the wheel matches {pattern}"


@pytest.mark.slow
def test_the_wheel_contains_all_sources_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"fcdense", f"fcdense-{fcdense.__version__}.dist-info"}
    sources = {
        path.relative_to(ROOT).as_posix()
        for room in SHIPPED
        for path in (ROOT / room).rglob("*")
        if path.suffix in {".py", ".cuh"}
    }
    expected = {name if name.startswith("fcdense/") else f"fcdense/{name}" for name in sources}
    assert {name for name in names if name.endswith((".py", ".cuh"))} == expected


@pytest.mark.slow
def test_the_wheel_states_its_licence_and_requirements(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = fnmatch.filter(archive.namelist(), "*.dist-info/METADATA")
    lines = archive.read(name).decode().splitlines()
    assert "License-Expression: MIT" in lines
    assert "Requires-Python: >=3.11" in lines
    required = [
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert {distribution(requirement) for requirement in required} == CORE


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")


def docker_stages() -> dict[str, list[str]]:
    """The lines of each stage of the Dockerfile, by its name."""
    chunks = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    return {chunk.splitlines()[0].split(" AS ")[1]: chunk.splitlines() for chunk in chunks}


def test_docker_images_are_pinned() -> None:
    images = dict(re.findall(r"^ARG (\w*IMAGE)=(\S+)$", DOCKERFILE, flags=re.MULTILINE))
    assert set(re.findall(r"^FROM (\S+) AS", DOCKERFILE, flags=re.MULTILINE)) == {f"${{{name}}}" for name in images}
    for image in images.values():
        _, _, tag = image.partition(":")
        assert re.search(r"\d", tag), f"{image}: pin a version"
        assert "latest" not in tag


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_docker_targets(target: str) -> None:
    lines = docker_stages()[target]
    assert 'ENTRYPOINT ["fcdense"]' in lines
    assert 'CMD ["info"]' in lines
    (user,) = (line.split()[1] for line in lines if line.startswith("USER "))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes can only verify that a numeric user is not root"
    environment = " ".join(line for line in lines if line.startswith("ENV "))
    assert "FCDENSE_CACHE=/cache" in environment
    assert ("NVIDIA_DRIVER_CAPABILITIES=" in environment) == (target == "cuda")
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", " ".join(lines))
    assert set(extras.split(",")) <= set(PROJECT["project"]["optional-dependencies"])


def test_docker_copies_what_is_there() -> None:
    """Each source exists and is let through by .dockerignore; all that a build needs is copied."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE)
    copied = {source for sources in copies for source in sources.split()}
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert copied == allowed
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", *SHIPPED}
