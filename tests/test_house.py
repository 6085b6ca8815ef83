"""Rules of the house that no other tool checks: imports without torch, `__all__`, docstrings, version, git tree."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import curate
from curate import plugins

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "curate"
MAX_BYTES = 2 * 2**20  # of one file in the repository, but for the bundled diffusion model, 5 MB in all

# Every other module, and so `curate --help` and every SQL question, answers without the seconds that torch takes.
WITH_TORCH = {
    "channels",
    "checkpoint",
    "curves",
    "cuts",
    "degrade",
    "demo",
    "distillation",
    "drc",
    "dual",
    "evaluation",
    "exporting",
    "jpeg",
    "latency",
    "ldm",
    "ldm_training",
    "loader",
    "losses",
    "macs",
    "means",
    "measurement",
    "metrics",
    "nas",
    "objective",
    "optics",
    "optim",
    "pipeline",
    "plan",
    "pretrained",
    "processes",
    "proxy",
    "resize",
    "resume",
    "sampling",
    "scoring",
    "teacher",
    "tensors",
    "training",
    "writers",
}


def module_names() -> list[str]:
    files = [path.relative_to(ROOT).with_suffix("").parts for path in sorted(PACKAGE.rglob("*.py"))]
    return [".".join(parts).removesuffix(".__init__") for parts in files if parts[-1] != "__main__"]


def source(module: str) -> ast.Module:
    path = ROOT.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text("utf-8"))


def tracked_files() -> list[Path]:
    """The files of the repository: committed, or about to be."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("needs git and a checkout")
    return [path for name in filter(None, listed.split("\0")) if (path := ROOT / name).is_file()]


def test_modules_without_torch() -> None:
    names = [name for name in module_names() if name.count(".") == 1 and name.partition(".")[2] not in WITH_TORCH]
    lines = [f"import {name}; assert 'torch' not in sys.modules, '{name} imports torch'" for name in ["curate", *names]]
    result = subprocess.run([sys.executable, "-c", "\n".join(["import sys", *lines])], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", module_names())
def test_all_is_what_the_module_offers(module: str) -> None:
    """`__all__` names what exists, and every public function and class but a command of the CLI is in it."""
    loaded = importlib.import_module(module)
    tree = source(module)
    if ast.get_docstring(tree) and len(tree.body) == 1:
        return  # a package that only says what its folder holds
    assert len(set(loaded.__all__)) == len(loaded.__all__)
    assert [name for name in loaded.__all__ if not hasattr(loaded, name)] == []
    definitions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    public = {node.name for node in definitions if not node.name.startswith("_") and not is_command(node)}
    assert public - set(loaded.__all__) == set()


def is_command(node: ast.FunctionDef | ast.ClassDef) -> bool:
    return any(re.search(r"\.(command|callback)\b", ast.unparse(decorator)) for decorator in node.decorator_list)


@pytest.mark.parametrize("module", module_names())
def test_module_says_what_it_is(module: str) -> None:
    docstring = ast.get_docstring(source(module))
    assert docstring, f"{module} has no docstring"
    assert docstring.partition("\n")[0].strip()


@pytest.mark.parametrize("kind", ["scorers", "strategies", "archs"])
def test_plugins_are_described(kind: plugins.Kind) -> None:
    described = plugins.describe(kind)
    assert list(described) == plugins.names(kind)
    assert [name for name, line in described.items() if not line.strip()] == []


def test_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert curate.__version__ == project["version"]


def test_no_large_files() -> None:
    large = [path for path in tracked_files() if path.stat().st_size > MAX_BYTES]
    assert [str(path) for path in large if ROOT / "curate" / "weights" / "ldm_f4" not in path.parents] == []


def test_no_home_folders() -> None:
    """No absolute path of anybody's machine in a text file."""
    home = re.compile(rb"(?<![\w.])/(?:home|root|Users)/")
    texts = {path: content for path in tracked_files() if b"\0" not in (content := path.read_bytes())}
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path, content in texts.items()
        for number, line in enumerate(content.splitlines(), 1)
        if home.search(line)
    ]
    assert found == []
