"""The verbs that say what there is: catalog and status."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saestore.errors import MissingError
from saestore.lake import GroupStatus, Lake
from saestore.layout import ATTRIBUTE, POSITION_TYPES, CodesKey, sae_path
from saestore.storage import read_document
from saestore.verbs.names import LakeLike, open_lake
from saestore.verbs.storage_cost import StorageCost, storage_costs

if TYPE_CHECKING:
    from saestore.catalogs import Catalog


@dataclass(frozen=True)
class CatalogRow:
    """One entry of the catalog.

    state : `ok`, or what keeps it from being used on this machine
    """

    section: str
    name: str
    kind: str
    source: str
    where: str
    state: str


@dataclass(frozen=True)
class LakeStatus:
    """The state of everything in a lake.

    groups : one per row group, and one for every pair of SAE and activations that belong together and are not encoded
    storage : measured bytes per row of codes; empty unless asked for
    """

    lake: str
    groups: tuple[GroupStatus, ...]
    storage: tuple[StorageCost, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether no group is partial."""
        return all(group.state != "partial" for group in self.groups)


def catalog(pattern: str | None = None, *, catalog: Catalog | None = None) -> list[CatalogRow]:
    """List the entries of the catalog, and what keeps any of them from being used here.

    Parameters
    ----------
    pattern : str, optional
        Only names that match, with `*` and `?`; the datasets that a pattern entry stands for are then listed too.

    Raises
    ------
    InputError
        A catalog file is wrong; the message has file and line.
    MissingError
        Nothing matches.

    Examples
    --------
    >>> [row.kind for row in catalog("MiniLM")]
    ['text']
    """
    from saestore.catalogs import catalog_table, load_catalog, validate

    known = catalog or load_catalog()
    problems = {(problem.section, problem.name): problem.message for problem in validate(known)}
    rows = [
        CatalogRow(
            section=row["section"],
            name=row["name"],
            kind=row["kind"],
            source=row["from"],
            where=row["where"],
            state=problems.get((row["section"], row["name"]), "ok"),
        )
        for row in catalog_table(known)
    ]
    if pattern is None:
        return rows
    wide = [concrete for row in rows for concrete in (row, *_concrete(row, known))]
    found = [row for row in wide if fnmatch.fnmatchcase(row.name.lower(), pattern.lower())]
    if not found:
        raise MissingError(f"no entry of the catalog matches {pattern!r}; `saestore catalog` lists all of them")
    return found


def _concrete(row: CatalogRow, known: Catalog) -> Iterator[CatalogRow]:
    if row.section != "datasets" or row.state != "ok" or not known.datasets[row.name].is_pattern:
        return
    for name in known.matches(row.name):
        yield CatalogRow(row.section, name, row.kind, known.dataset(name).table_path().name, row.where, "ok")


def status(lake: LakeLike = ".", *, storage: bool = False, catalog: Catalog | None = None) -> LakeStatus:
    """Return the state of everything in a lake: done, partial (some rows), missing (not encoded yet), and bytes.

    Parameters
    ----------
    lake : Lake, str or path
    storage : bool
        Also measure the bytes per row of each codes group against the legacy `.pt` layout and dense float32.

    Examples
    --------
    >>> status("demo/lake").complete  # doctest: +SKIP
    True
    """
    opened = open_lake(lake, catalog=catalog)
    groups = opened.status()
    return LakeStatus(
        lake=opened.url,
        groups=(*groups, *_not_encoded(opened, groups)),
        storage=tuple(storage_costs(opened)) if storage else (),
    )


def _not_encoded(lake: Lake, groups: list[GroupStatus]) -> Iterator[GroupStatus]:
    """Yield the codes that `encode` would make: activations by position at the hook that an SAE was trained on."""
    saes = {group.sae: _attribute(lake, sae_path(group.sae), "config") or {} for group in groups if group.sae}
    there = {group.path for group in groups if group.kind == "codes"}
    for group in groups:
        if group.kind != "activations" or group.sample_type not in POSITION_TYPES:
            continue
        hook = _attribute(lake, group.path, "saelens_hook_name") if saes else None
        d_in = _attribute(lake, group.path, "d_in") if saes else None
        for sae, config in saes.items():
            key = CodesKey(group.dataset, group.model, group.layer, sae, group.sample_type)
            fits = hook is not None and (hook, d_in) == (config.get("hook_name"), config.get("d_in"))
            if not fits or key.path in there:
                continue
            yield GroupStatus(
                kind="codes",
                path=key.path,
                dataset=key.dataset,
                model=key.model,
                layer=key.layer,
                sae=sae,
                sample_type=key.sample_type,
                rows=group.rows,
                written_rows=0,
                state="missing",
                stored_bytes=0,
                note=f"not encoded: saestore encode LAKE --saes {sae} --datasets {key.dataset!r}",
            )


def _attribute(lake: Lake, path: str, *names: str) -> Any:
    document = read_document(lake.storage, path)
    value: Any = (document or {}).get("attributes", {}).get(ATTRIBUTE, {})
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return value
