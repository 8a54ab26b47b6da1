"""The folder list is the architecture: imports point down, and each thing is spelled or opened in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "saestore"
HEAVY = ("torch", "transformers", "sae_lens", "numba", "pandas", "PIL", "pyarrow", "distributed", "matplotlib")


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield str(path.relative_to(PACKAGE)), ast.parse(path.read_text())


def test_imports_point_down() -> None:
    pytest.importorskip("importlinter", reason="import-linter is absent: pip install 'saestore[dev]'")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def code_strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Strings of the code that are not docstrings, parts of f-strings included."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_paths_inside_a_lake_are_spelled_in_layout_alone() -> None:
    spelled = re.compile(r"(^|/)(data|saes|codes|activations|samples|positions)/|/(codes|activations|ledger)\b")
    found = [
        f"{name}:{line}: {text!r}"
        for name, tree in modules()
        if name != "layout.py"
        for line, text in code_strings(tree)
        if spelled.search(text) and " " not in text
    ]
    assert found == []


def test_the_search_for_spelled_paths_finds_them() -> None:
    tree = ast.parse("def f(name):\n    'data/x in a docstring'\n    return f'data/{name}/codes/{name}'")
    assert [text for _, text in code_strings(tree)] == ["data/", "/codes/"]


def test_files_of_a_lake_are_opened_in_storage_alone() -> None:
    """Zarr's own openers would read holes as zeros and write in place."""
    openers = {"open_group", "open_array", "open_zarr", "open_consolidated", "create_group"}
    found = [
        f"{name}:{node.lineno}: {node.func.attr}"
        for name, tree in modules()
        if name != "storage.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in openers
    ]
    assert found == []


def test_importing_saestore_loads_nothing_heavy() -> None:
    names = [
        "saestore",
        "saestore.encoding.writer",
        "saestore.extraction.writer",
        "saestore.formats.importer",
        "saestore.lake",
    ]
    program = f"import sys, {', '.join(names)}; print(*sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_nothing_is_unpickled() -> None:
    found = []
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                imported = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                # The reader of .pt archives catches the error that torch raises for what is not plain data.
                if imported & {"pickle", "cloudpickle", "dill", "joblib"} and "UnpicklingError" not in imported:
                    found.append(f"{name}:{node.lineno}: imports pickle")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                call, options = ast.unparse(node.func), {option.arg: option.value for option in node.keywords}
                if call == "torch.load" and "weights_only" not in options:
                    found.append(f"{name}:{node.lineno}: torch.load without weights_only")
                if call in ("np.load", "numpy.load") and "allow_pickle" not in options:
                    found.append(f"{name}:{node.lineno}: np.load without allow_pickle")
                if call in ("yaml.load", "yaml.unsafe_load"):
                    found.append(f"{name}:{node.lineno}: {call}")
    assert found == []
