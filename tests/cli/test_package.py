"""The names of `import saestore`: the verbs, also those that share their name with a module."""

from __future__ import annotations

import importlib.util

import pytest

import saestore
from saestore import verbs


def test_every_public_name_resolves() -> None:
    assert set(saestore.__all__) <= set(dir(saestore))
    for name in saestore.__all__:
        assert getattr(saestore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = saestore.nothing  # type: ignore[attr-defined]


def test_no_submodule_hides_a_public_name() -> None:
    """Python binds a submodule to its package when it is imported, over a function of the same name."""
    names = set(saestore.__all__) - {"errors"}
    assert not [name for name in names if importlib.util.find_spec(f"saestore.{name}") is not None]
    assert saestore.encode is verbs.encode
