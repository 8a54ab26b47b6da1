"""Steering bundles on disk: a safetensors file of the arrays, and a JSON file beside it of everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore._whole_files import whole_file
from saestore.errors import DependencyError, InputError, IntegrityError, MissingError
from saestore.steer.bundle import Bundle, GraphPlace, ModelPlace, SAEPlace

FORMAT = 1
KIND = "steering bundle"

_PARTS = {"model": ModelPlace, "sae": SAEPlace, "graph": GraphPlace}
_ENCODER = ("encoder", "encoder_bias", "threshold")
_TENSORS = ("units", "decoder", *_ENCODER, "mean", "deviation", "maximum", "source", "target", "r", "coefficient")

Part = TypeVar("Part")


def write_bundle(path: str | Path, bundle: Bundle) -> tuple[Path, Path]:
    """Write a bundle as ``<path>.safetensors`` and ``<path>.json``, each whole or not at all, the JSON last.

    Parameters
    ----------
    path : str or Path
        What both are called, with or without one of the endings. Files of that name are replaced.
    bundle : Bundle

    Returns
    -------
    tuple of Path
        Of the arrays and of the JSON.

    Raises
    ------
    InputError
        The files cannot be written.
    DependencyError
        safetensors is not installed.
    """
    arrays_path, json_path = bundle_paths(path)
    given = {name: getattr(bundle, name) for name in _TENSORS}
    arrays = {name: np.ascontiguousarray(array) for name, array in given.items() if array is not None}
    content = _safetensors().save(arrays)
    described = {
        "format": FORMAT,
        "kind": KIND,
        **{name: dataclasses.asdict(getattr(bundle, name)) for name in _PARTS},
        "provenance": provenance.stamp(),
        "tensors": {"file": arrays_path.name, "sha256": hashlib.sha256(content).hexdigest()},
    }
    with whole_file(arrays_path) as partial:
        partial.write_bytes(content)
    with whole_file(json_path) as partial:
        partial.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return arrays_path, json_path


def load_bundle(path: str | Path) -> Bundle:
    """Read a bundle that `write_bundle` wrote.

    Parameters
    ----------
    path : str or Path
        Of either of its two files, or their common name without an ending.

    Raises
    ------
    MissingError
        One of the two files is not there.
    InputError
        They are not a steering bundle, or one of a later format.
    IntegrityError
        The arrays are damaged, or not those that the JSON was written for.
    DependencyError
        safetensors is not installed.
    """
    arrays_path, json_path = bundle_paths(path)
    for file in (json_path, arrays_path):
        if not file.is_file():
            raise MissingError(
                f"{file} does not exist; a steering bundle is two files, {json_path.name} and {arrays_path.name}: "
                "copy both, or make them with: saestore steer bundle"
            )
    described = _read_json(json_path)
    arrays = _read_arrays(arrays_path, json_path, described)
    try:
        return Bundle(
            **{name: _part(described, name, kind, json_path) for name, kind in _PARTS.items()},
            **dict.fromkeys(_ENCODER) | arrays,  # type: ignore[arg-type]
        )
    except InputError as error:
        raise IntegrityError(f"{json_path}: {error}") from None


def bundle_paths(path: str | Path) -> tuple[Path, Path]:
    """Return the paths of the arrays and of the JSON of a bundle, from its name or from either path."""
    path = Path(path).expanduser()
    stem = path.name.removesuffix(".safetensors").removesuffix(".json")
    if path.is_dir() or not stem:
        raise InputError(f"{path} is a folder; name the bundle in it, such as {path / 'bundle'}")
    return path.with_name(f"{stem}.safetensors"), path.with_name(f"{stem}.json")


def _safetensors() -> types.ModuleType:
    try:
        from safetensors import numpy as of_numpy
    except ImportError:
        raise DependencyError("steering bundles need safetensors: pip install 'saestore[torch]'") from None
    module: types.ModuleType = of_numpy
    return module


def _read_json(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); expected the JSON of a steering bundle") from None
    if not isinstance(described, dict) or described.get("kind") != KIND:
        raise InputError(f"{path} is not the JSON of a {KIND}; make one with: saestore steer bundle")
    if described.get("format") != FORMAT:
        raise InputError(
            f"{path} is a {KIND} of format {described.get('format')!r}, and this version reads {FORMAT}; "
            "update saestore, or make the bundle again"
        )
    return described


def _read_arrays(path: Path, json_path: Path, described: dict[str, Any]) -> dict[str, NDArray[Any]]:
    content = path.read_bytes()
    tensors = described.get("tensors")
    expected = tensors.get("sha256") if isinstance(tensors, dict) else None
    if hashlib.sha256(content).hexdigest() != expected:
        raise IntegrityError(
            f"{path} is damaged, or not the file that {json_path.name} was written with (its sha256 differs); "
            "copy both files again, or make the bundle again"
        )
    arrays: dict[str, NDArray[Any]] = _safetensors().load(content)
    missing = [name for name in _TENSORS if name not in arrays and name not in _ENCODER]
    unknown = sorted(set(arrays) - set(_TENSORS))
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds {unknown[0]}, which no steering bundle has"
        raise IntegrityError(f"{path} {what}; make the bundle again")
    return arrays


def _part(described: dict[str, Any], name: str, kind: type[Part], path: Path) -> Part:
    fields = described.get(name)
    hints = get_type_hints(kind)
    if not isinstance(fields, dict) or set(fields) != set(hints):
        raise IntegrityError(f"{name!r} in {path} must hold {', '.join(hints)} and nothing else; make the bundle again")
    for field, hint in hints.items():
        # Of texts that must be one of a few, the bundle itself says which
        allowed = (int,) if hint is int else (str, type(None)) if type(None) in get_args(hint) else (str,)
        if type(fields[field]) not in allowed:
            raise IntegrityError(f"{name}.{field} in {path} is {fields[field]!r}; make the bundle again")
    return kind(**fields)
