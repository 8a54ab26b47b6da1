"""Views: named selections of units over stored codes, never a copy of them (docs/format.md, section 4.9)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore import provenance
from saestore._nearest import nearest
from saestore.code_rows import CodeRows
from saestore.errors import ConflictError, InputError, IntegrityError, MissingError
from saestore.kernels.densify import UnitLookup, unit_lookup
from saestore.kernels.restrict import restrict
from saestore.layout import ALL_UNITS, CodesKey, check_name, is_name
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.storage import Storage, read_document

SHARD_UNITS = 65_536
CHUNK_UNITS = 8_192

_KIND = "view"
_UNIT = "unit"


@dataclass(frozen=True, eq=False)
class View:
    """Units that were kept, and why.

    units : (U,) int64, ascending
        Original ids.
    figures : by name, (U,)
        What they were chosen by.
    parameters : by name
        How they were chosen; JSON values.
    report : by name
        What the choice came to, such as how many units each criterion removed; JSON values.
    parent : the view they were chosen from; None where it was from all units
    lineage : the views before this one, the first one first; the last is `parent`
    """

    name: str
    units: NDArray[np.int64]
    figures: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    lineage: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.units)

    def __repr__(self) -> str:
        return f"<View {self.name}: {len(self):,} units{f', from {self.parent}' if self.parent else ''}>"

    @property
    def parent(self) -> str | None:
        """The view that these units were chosen from."""
        return self.lineage[-1] if self.lineage else None

    @classmethod
    def open(cls, storage: Storage, key: CodesKey, run: str, name: str) -> View:
        """Open a view of codes.

        Parameters
        ----------
        run : str
            The run of the codes as they are stored now.

        Raises
        ------
        MissingError
            There is none of this name, or only one of older codes; the nearest names are in the message.
        HoleError, IntegrityError
            It was not written to its end, or is damaged.
        """
        document = read_document(storage, key.view_path(run, name))
        if document is None or name == ALL_UNITS:
            raise _missing(storage, key, run, name)
        group = RowGroup.from_document(storage, key.view_path(run, name), document)
        own = group.attributes
        is_view = own["kind"] == _KIND and {"parameters", "report", "lineage"} <= own.keys()
        units = group.read(_UNIT).astype(np.int64) if is_view else np.empty(0, np.int64)
        if not units.size or (np.diff(units) <= 0).any():
            raise IntegrityError(f"{group.path} in {storage.url} is not a view; delete it, and prune again")
        figures = {column: group.read(column) for column in group.array_names if column != _UNIT}
        return cls(name, units, figures, own["parameters"], own["report"], tuple(own["lineage"]))


def view_names(storage: Storage, key: CodesKey, run: str) -> list[str]:
    """Return the names of the views of the codes that a run has written."""
    return sorted(
        name
        for name in storage.names(key.views_path(run))
        if is_name(name) and name != ALL_UNITS and read_document(storage, key.view_path(run, name)) is not None
    )


def write_view(storage: Storage, key: CodesKey, run: str, view: View) -> View:
    """Store a view, or leave it as it is where the same is stored already.

    Parameters
    ----------
    run : str
        The run of the codes.
    view : View
        Its figures are arrays of numbers, (U,) each.

    Raises
    ------
    InputError
        The name cannot be one, or the view keeps no unit.
    ConflictError
        A view of this name is stored that keeps other units or was made with other parameters.
    """
    if check_name(view.name, "view").lower() == ALL_UNITS:
        raise InputError(f"view name {view.name!r} is taken by the format; choose another")
    if not len(view):
        raise InputError(f"view {view.name!r} would keep no unit; widen what keeps units")
    arrays = {_UNIT: view.units.astype(np.uint32), **view.figures}
    path = key.view_path(run, view.name)
    try:
        group = RowGroup.create(
            storage,
            path,
            kind=_KIND,
            axis=_UNIT,
            grid=Grid.plan(len(view), shard_rows=SHARD_UNITS, chunk_rows=CHUNK_UNITS),
            arrays=[ArraySpec(name, str(values.dtype)) for name, values in arrays.items()],
            identity={
                "codes": run,
                "digest": _digest(arrays),
                "lineage": list(view.lineage),
                "parameters": view.parameters,
            },
            attributes={
                "parameters": view.parameters,
                "report": view.report,
                "parent": view.parent,
                "lineage": list(view.lineage),
                "provenance": provenance.stamp(),
            },
        )
    except ConflictError:
        stored = View.open(storage, key, run, view.name)
        raise ConflictError(
            f"{key.path} has a view {view.name!r} already, of {len(stored):,} units, which {_differing(stored, view)}; "
            "give the new one another name"
        ) from None
    for shard in group.missing_shards():
        rows = group.grid.shard(shard)
        group.write_shard(shard, {name: values[rows] for name, values in arrays.items()})
    return view


@dataclass(frozen=True, eq=False)
class UnitChoice:
    """The units that codes are looked at through: those that one view keeps, or several keep in common.

    name : of the view; of several that of the one whose units they are, else all names with `&` between
    units : (U,) int64, ascending
    """

    key: CodesKey
    d_sae: int
    name: str
    units: NDArray[np.int64]

    @classmethod
    def of(cls, storage: Storage, key: CodesKey, run: str, names: Sequence[str], d_sae: int) -> UnitChoice:
        """Open views, and return what they keep in common.

        Raises
        ------
        MissingError
            There is no such view.
        InputError
            They have no unit in common.
        """
        views = [View.open(storage, key, run, name) for name in names]
        units = views[0].units
        for view in views[1:]:
            units = np.intersect1d(units, view.units, assume_unique=True)
        if not units.size:
            raise InputError(f"views {' and '.join(map(repr, names))} of {key.path} have no unit in common; use one")
        whose = [view.name for view in views if len(view) == units.size]
        return cls(key, d_sae, whose[-1] if whose else " & ".join(names), units)

    @cached_property
    def lookup(self) -> UnitLookup:
        """From unit to column."""
        return unit_lookup(self.units, self.d_sae)

    def check(self, units: NDArray[np.int64]) -> None:
        """Refuse units that do not exist or are not kept.

        Raises
        ------
        MissingError
            The first of them is named.
        """
        unit_lookup(units, self.d_sae)
        outside = ~self.lookup.wanted[units]
        if outside.any():
            raise MissingError(
                f"unit {units[outside][0]} is not in view {self.name!r} of {self.key.path}, which keeps "
                f"{self.units.size:,} of {self.d_sae:,} units; ask the codes without the view"
            )

    def restricted(self, block: CodeRows) -> CodeRows:
        """Return codes of rows without the slots of other units; `l0` counts what is left."""
        indices, values, filled = restrict(block.indices, block.values, self.lookup.wanted)
        return replace(block, indices=indices, values=values, l0=filled.astype(np.uint32))


def _digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    content = hashlib.sha256()
    for name, values in arrays.items():
        content.update(json.dumps([name, str(values.dtype)]).encode())
        content.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).tobytes())
    return content.hexdigest()


def _differing(stored: View, view: View) -> str:
    """Say in what a stored view differs."""
    if stored.parent != view.parent:
        return f"was made from {repr(stored.parent) if stored.parent else 'all units'}"
    names = [*stored.parameters, *(name for name in view.parameters if name not in stored.parameters)]
    plain = json.loads(json.dumps(dict(view.parameters)))
    differing = [name for name in names if stored.parameters.get(name) != plain.get(name)]
    if not differing:
        return "keeps other units"
    # What says nothing, such as no criteria, comes after what does, such as the rule that stands for them.
    name = min(differing, key=lambda name: stored.parameters.get(name) in (None, {}, []))
    return f"was made with {name} {json.dumps(stored.parameters.get(name))[:80]}"


def _missing(storage: Storage, key: CodesKey, run: str, name: str) -> MissingError:
    older = [
        other
        for other in storage.names(key.views_root)
        if other != run and read_document(storage, key.view_path(other, name)) is not None
    ]
    if older and name != ALL_UNITS:
        return MissingError(
            f"{key.path} has view {name!r} only of older codes: the codes were re-encoded, or have grown; prune them "
            f"anew: saestore prune LAKE --datasets {key.dataset} --name {name}"
        )
    return MissingError(
        f"{key.path} has no view {name!r}; {nearest(name, view_names(storage, key, run), 'views')}; make one with: "
        f"saestore prune LAKE --datasets {key.dataset} --name NAME"
    )
