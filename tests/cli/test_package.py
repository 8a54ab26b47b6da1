"""The names of `import saestore`: the verbs, also those that share their name with a module."""

from __future__ import annotations

import importlib

import pytest

import saestore
from saestore import verbs


def test_every_public_name_resolves() -> None:
    assert set(saestore.__all__) <= set(dir(saestore))
    for name in saestore.__all__:
        assert getattr(saestore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = saestore.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["catalog", "dense", "encode", "extract"])
def test_a_verb_that_is_a_module_too_is_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"saestore.{name}")
    assert getattr(saestore, name) is module
    monkeypatch.setattr(verbs, name, lambda *arguments, **options: (name, arguments, options))
    assert module(1, two=2) == (name, (1,), {"two": 2})
