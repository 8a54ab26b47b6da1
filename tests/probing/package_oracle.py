"""Functions of the installed package `sae_probes`, loaded without its language models."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest


def _folder() -> Path:
    found = importlib.util.find_spec("sae_probes")
    if found is None or not found.submodule_search_locations:
        pytest.skip("sae-probes is absent: pip install 'saestore[probes]'")
    return Path(found.submodule_search_locations[0])


@cache
def training() -> ModuleType:
    """Its module of classifiers."""
    spec = importlib.util.spec_from_file_location("sae_probes_training", _folder() / "utils_training.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def ranking() -> ModuleType:
    """Its two functions that rank latents; the module they are of imports SAELens."""
    import torch

    tree = ast.parse((_folder() / "run_sae_evals.py").read_text())
    wanted = ("get_sorted_indices", "mean_act_normalization")
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    assert len(tree.body) == len(wanted)
    module = ModuleType("sae_probes_ranking")
    module.__dict__.update(torch=torch, Callable=Callable)
    exec(compile(tree, "run_sae_evals.py", "exec"), module.__dict__)
    return module
