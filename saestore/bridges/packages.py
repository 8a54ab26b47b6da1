"""Packages that only bridges to them need."""

from __future__ import annotations

import importlib
from typing import Any

from saestore.errors import DependencyError

_INSTALL = {
    "anndata": "'saestore[bridges]'",
    "igraph": "'saestore[graph]'",
    "pyarrow": "'saestore[bridges]'",
    "sklearn": "'saestore[probes]'",
    "torch": "'saestore[torch]'",
    "xgboost": "'saestore[probes]'",
}


def imported(package: str, what: str) -> Any:
    """Import a package, or a module of it.

    Raises
    ------
    DependencyError
        It is not installed; `what` needs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.split(".")[0]
        install = _INSTALL.get(name, name)
        raise DependencyError(f"{what} needs {name}; install it with: pip install {install}") from None
