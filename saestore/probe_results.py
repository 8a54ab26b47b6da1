"""Results of probing in a lake: of each task, setting and method one document, which is written at once and whole.

Like a record of a run it is a Zarr group without arrays, whose attributes are the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from saestore import provenance
from saestore.errors import ConflictError, IntegrityError
from saestore.layout import ATTRIBUTE, FORMAT_VERSION, CodesKey, RowsKey, is_name, parents, probe_names_path, probe_path
from saestore.rows import shortened
from saestore.storage import Storage, claim_document, group_document, put_document, read_document

KIND = "probes"
_STORED = ("name", "view", "setting", "method", "label", "identity", "truncated")


@dataclass(frozen=True)
class Probe:
    """One probe that was fitted and measured.

    k : units of an SAE probe, else None
    test_f1, test_acc, test_auc : on the test rows: F1 of both classes weighted by their rows, accuracy, and ROC-AUC
    val_auc : of the chosen candidate on held-out training rows, which choosing between methods goes by; None where
        they are of one class
    chosen : hyper-parameters that validation chose
    fits, unconverged : models fitted, and those that stopped at their limit of iterations
    """

    k: int | None
    test_f1: float
    test_acc: float
    test_auc: float
    val_auc: float | None
    chosen: Mapping[str, Any]
    fits: int
    unconverged: int


@dataclass(frozen=True)
class ProbedCell:
    """What became of one training and test set of a setting.

    num_train, num_test : rows
    fraction : of positive rows in imbalance, of flipped labels in label noise, else None
    shared : test rows whose text is that of a training row too; they are counted and not left out
    reason : why nothing was fitted, or why units are fewer than asked for; else empty
    units : original ids of the units of SAE probes, the best first; a probe on k units has the first k
    probes : what was fitted
    """

    num_train: int
    num_test: int
    fraction: float | None
    shared: int
    reason: str
    units: tuple[int, ...]
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class ProbeResult:
    """The result of one method in one setting of one task.

    path : of its document
    key : of the activations or codes that were probed
    view : of the codes, whose units alone were ranked; None for all units and for activations
    name : of the result
    setting, method : `method` is `logreg`, `pca`, `knn`, `xgboost`, `mlp`, `attention` or `concat` of activations, or
        how rows of codes were used: `sae-l1`, `sae-l2`, `sae-mean`, `sae-max`
    label : column or concept of the sample table that was asked for
    classes : the values that 0 and 1 stand for
    identity : what determines the numbers
    truncated : rows of the codes that have more active units than are stored, those that are not probed too; the other
        units are zeros to a probe
    cells : in the order of the setting's grid
    """

    path: str
    key: RowsKey
    view: str | None
    name: str
    setting: str
    method: str
    label: str
    classes: tuple[str, str]
    identity: Mapping[str, Any]
    truncated: int
    cells: tuple[ProbedCell, ...]

    @property
    def sae(self) -> str | None:
        """The SAE of codes; None for activations."""
        return self.key.sae if isinstance(self.key, CodesKey) else None


TABLE_COLUMNS = (
    "dataset", "model", "layer", "sample_type", "sae", "view", "name", "label", "setting", "method", "k", "num_train",
    "num_test", "fraction", "seed", "test_f1", "test_acc", "test_auc", "val_auc", "shared", "fits", "unconverged",
    "truncated", "reason",
)  # fmt: skip
"""Columns of the tidy table: one row for each probe, and one for each cell without any."""


def table_rows(result: ProbeResult) -> Iterator[dict[str, Any]]:
    """Yield the rows of the tidy table, with the keys of `TABLE_COLUMNS`; what does not apply is None."""
    key = result.key
    of = {
        "dataset": key.dataset,
        "model": key.model,
        "layer": key.layer,
        "sample_type": key.sample_type,
        "sae": result.sae,
        "view": result.view,
        "name": result.name,
        "label": result.label,
        "setting": result.setting,
        "method": result.method,
        "seed": result.identity.get("seed"),
        "truncated": result.truncated,
    }
    for cell in result.cells:
        about = {name: getattr(cell, name) for name in ("num_train", "num_test", "fraction", "shared", "reason")}
        for probe in cell.probes or (None,):
            found = {} if probe is None else vars(probe)
            yield {name: {**of, **about, **found}.get(name) for name in TABLE_COLUMNS}


def write_result(storage: Storage, result: ProbeResult) -> None:
    """Write a result in one piece, over one that has the same identity.

    Raises
    ------
    ConflictError
        Another one is there; see `check_free`.
    """
    check_free(storage, result.path, result.identity)
    for parent in parents(result.path):
        if read_document(storage, parent) is None:
            claim_document(storage, parent, group_document())
    content = {
        "format": FORMAT_VERSION,
        "kind": KIND,
        **{name: getattr(result, name) for name in _STORED},
        "classes": list(result.classes),
        "cells": [_plain(asdict(cell)) for cell in result.cells],
        "provenance": provenance.stamp(),
    }
    put_document(storage, result.path, group_document({ATTRIBUTE: content}))


def check_free(storage: Storage, path: str, identity: Mapping[str, Any]) -> bool:
    """Whether a result of this identity is stored already.

    Parameters
    ----------
    storage : Storage
    path : str
        Of the result.
    identity : mapping
        JSON values that determine its numbers.

    Raises
    ------
    ConflictError
        A result of another identity is there.
    """
    document = read_document(storage, path)
    if document is None:
        return False
    stored = _attributes(path, document)["identity"]
    differing = [name for name in identity if _plain(stored.get(name)) != _plain(identity[name])]
    if differing:
        changes = "; ".join(
            f"{name}: {shortened(repr(stored.get(name)))} is stored, {shortened(repr(identity[name]))} was asked"
            for name in differing[:3]
        )
        raise ConflictError(f"{path} in {storage.url} was probed differently ({changes}); give another --name")
    return True


def read_result(storage: Storage, path: str, key: RowsKey) -> ProbeResult | None:
    """Read one result; None where there is none.

    Parameters
    ----------
    storage : Storage
    path : str
        Of the result.
    key : ActivationsKey or CodesKey
        What was probed.

    Raises
    ------
    IntegrityError
        The document is not one of a probe's result.
    """
    document = read_document(storage, path)
    if document is None:
        return None
    content = _attributes(path, document)
    try:
        return ProbeResult(
            path=path,
            key=key,
            classes=(content["classes"][0], content["classes"][1]),
            cells=tuple(_cell(cell) for cell in content["cells"]),
            **{name: content[name] for name in _STORED},
        )
    except (KeyError, IndexError, TypeError) as error:
        raise IntegrityError(f"{path} in {storage.url} is damaged ({error!r}); delete it and probe again") from None


def read_results(storage: Storage, root: str, key: RowsKey) -> list[ProbeResult]:
    """Read all results below a path, by name, setting and method.

    Parameters
    ----------
    storage : Storage
    root : str
        As for `saestore.layout.probe_path`.
    key : ActivationsKey or CodesKey
        What was probed.

    Raises
    ------
    IntegrityError
        A document is not one of a probe's result.
    """
    found = []
    for name in filter(is_name, storage.names(root)):
        for method in filter(is_name, storage.names(probe_names_path(root, name))):
            result = read_result(storage, probe_path(root, name, method), key)
            if result is not None:
                found.append(result)
    return found


def _attributes(path: str, document: Mapping[str, Any]) -> Mapping[str, Any]:
    content: Mapping[str, Any] = document.get("attributes", {}).get(ATTRIBUTE, {})
    if content.get("kind") != KIND:
        raise IntegrityError(f"{path} is not the result of a probe; delete it and probe again")
    return content


def _cell(content: Mapping[str, Any]) -> ProbedCell:
    named = {one.name: content[one.name] for one in fields(ProbedCell)}
    probes = tuple(Probe(**{one.name: probe[one.name] for one in fields(Probe)}) for probe in content["probes"])
    return ProbedCell(**{**named, "units": tuple(content["units"]), "probes": probes})


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: lists for tuples, null for NaN."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
