"""The xarray engine `saestore`: codes and activations as lazily densified variables (imported by xarray, or lazily).

A slice is pushed down to the chunks of rows it needs and densified for the units it names; nothing dense is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, get_args
from urllib.parse import unquote, urlsplit

import numpy as np
import xarray as xr
from numpy.typing import DTypeLike, NDArray
from xarray.backends import BackendEntrypoint

from saestore._lazy_rows import (
    ActiveUnits,
    Column,
    DenseActivations,
    DenseCodes,
    LazyRows,
    PlaceInSample,
    Reader,
    SampleColumn,
    lazy_variable,
    row_numbers,
)
from saestore.activations import Activations
from saestore.axis import RowAxis
from saestore.budget import parse_memory
from saestore.code_rows import Holes
from saestore.codes import Codes
from saestore.context import Place, places_of
from saestore.engine.arrays import dense_chunk_rows
from saestore.errors import InputError, IntegrityError, MissingError, SaestoreError
from saestore.lake import Lake
from saestore.layout import (
    ACTIVATIONS,
    ATTRIBUTE,
    CODES,
    DATA,
    POSITION_TYPES,
    SAMPLES,
    ActivationsKey,
    CodesKey,
    ModelKey,
    samples_path,
)
from saestore.parts import Stored, parts_of
from saestore.selection import SampleChoice, Selection
from saestore.storage import Storage, open_storage, read_document
from saestore.tables import Positions, Samples

Units = Sequence[int] | NDArray[np.integer[Any]]


class SaestoreBackend(BackendEntrypoint):
    """Opens groups of a lake with `xr.open_dataset(url, engine="saestore")`, and what lies below a node as a tree.

    Examples
    --------
    >>> import xarray as xr
    >>> url = "lake/data/d/minilm/layer_3/codes/sae/token"
    >>> xr.open_dataset(url, engine="saestore", units=[7, 12], chunks={})  # doctest: +SKIP
    """

    description: ClassVar[str] = "Codes, activations and samples of a saestore lake, densified lazily"
    supports_groups: ClassVar[bool] = True

    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        units: Units | None = None,
        view: str | None = None,
        memory: str | int | None = None,
        holes: Holes = "error",
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Open one group: codes, activations or samples.

        Parameters
        ----------
        filename_or_obj : str or path
            `<lake>/data/<dataset>/<model>/<layer>/codes/<sae>/<sample_type>`, the same with
            `activations/<sample_type>`, or `<lake>/data/<dataset>/samples`, on any storage.
        drop_variables : str or iterable of str, optional
        units : sequence of int, optional
            Original unit ids to densify, in this order; default all, of a view those it keeps. With `chunks`, name the
            units here: Dask hands a slice or a single unit chosen later down to the reader, but not a list, and would
            densify all units first.
        view : str, optional
            A view of the codes; see `saestore.codes.Codes.view`.
        memory : str or int, optional
            The most that one read may take, such as `4GiB`; default 60 % of the memory that is free then. With
            `chunks` it holds for each Dask chunk.
        holes : {"error", "nan"}
            What rows that were never written become: an error, or NaN (then `l0` is float32).
        storage_options : mapping, optional
            As for `saestore.open`.

        Returns
        -------
        Dataset
            For codes: `codes (row, unit)` float32, `l0 (row)` and the coordinates `unit`, `row_number` (on the row
            axis), `sample` (its id), `split` and, where rows are positions, `position` (the place in the sample),
            `special` and `token_id`. For activations: `activations (row, d_in)` float32 with the coordinates of rows.
            For samples: the columns of the table along `sample`. Everything but `unit` is read when it is used.
            `dataset.saestore` selects rows and says what stands there, see `SaestoreAccessor`. `chunks={}` takes
            chunks of at most 128 MiB that fit the stored ones; Dask cannot size the strings for `chunks="auto"`.

        Raises
        ------
        MissingError
            There is no such lake, group, view or unit.
        InputError
            The URL is not that of a group which this engine opens, or an option is unknown.
        """
        storage, path = _locate(filename_or_obj, storage_options)
        opened = _open_group(_Axes(storage), path, units=units, view=view, memory=memory, holes=holes)
        if opened is None:
            raise InputError(
                f"{path or storage.url} is not codes/<sae>/<sample_type>, activations/<sample_type> or samples; "
                "xr.open_datatree opens all of these below a node, xr.open_zarr any other group"
            )
        return _drop(opened, drop_variables)

    def open_datatree(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        memory: str | int | None = None,
        holes: Holes = "error",
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.DataTree:
        """Open every group below a lake, a dataset, a model or a layer, each at its path below the URL."""
        return xr.DataTree.from_dict(
            self.open_groups_as_dict(
                filename_or_obj,
                drop_variables=drop_variables,
                memory=memory,
                holes=holes,
                storage_options=storage_options,
            )
        )

    def open_groups_as_dict(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
        memory: str | int | None = None,
        holes: Holes = "error",
        storage_options: Mapping[str, Any] | None = None,
    ) -> dict[str, xr.Dataset]:
        """Open every group below a node; the options are those of `open_dataset`.

        Raises
        ------
        MissingError
            There is no lake, or nothing below the node.
        """
        storage, base = _locate(filename_or_obj, storage_options)
        lake, axes = Lake(storage), _Axes(storage)
        parts = base.split("/")
        dataset = parts[1] if len(parts) > 1 and parts[0] == DATA else None
        paths = [samples_path(name) for name in (lake.datasets() if dataset is None else [dataset])]
        paths += [key.path for key in lake.activation_keys(dataset)]
        paths += [key.path for key in lake.code_keys(dataset)]
        groups: dict[str, xr.Dataset] = {}
        for path in paths:
            # A listed folder without a document is a group whose creation was cut short.
            if f"{path}/".startswith(f"{base}/" if base else "") and read_document(storage, path) is not None:
                opened = _open_group(axes, path, units=None, view=None, memory=memory, holes=holes)
                assert opened is not None
                groups["/" + path.removeprefix(base).strip("/")] = _drop(opened, drop_variables)
        if not groups:
            raise MissingError(f"there is nothing below {base or 'the lake'} in {storage.url}")
        return groups

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Whether it is a local folder that saestore wrote."""
        if not isinstance(filename_or_obj, str | os.PathLike) or "://" in os.fspath(filename_or_obj):
            return False
        try:
            document = read_document(open_storage(filename_or_obj), "")
        except SaestoreError:  # some other tool's file
            return False
        return document is not None and ATTRIBUTE in document.get("attributes", {})


def to_xarray(
    codes: Codes, *, units: Units | None = None, memory: str | int | None = None, holes: Holes = "error"
) -> xr.Dataset:
    """Return codes as a dataset with a lazily densified variable, as `xr.open_dataset` opens it.

    Of a selection the rows are those that are selected; the coordinate `row_number` has their numbers on the row axis.

    Parameters
    ----------
    codes : Codes
    units : sequence of int, optional
        Original unit ids, in the order of the columns; default all, of a view those it keeps.
    memory : str or int, optional
        The most that one read may take; default 60 % of the free memory.
    holes : {"error", "nan"}

    Returns
    -------
    Dataset
        `codes (row, unit)` float32, `l0 (row)` and the coordinates of rows and units.

    Raises
    ------
    MissingError
        A unit does not exist.

    Examples
    --------
    >>> dataset = to_xarray(codes, units=[3, 8])  # doctest: +SKIP
    >>> dataset["codes"].isel(row=slice(0, 100)).sum("row").values  # doctest: +SKIP
    """
    dataset = _codes_dataset(codes.all_rows, _Axes(codes.group.storage), units=units, memory=memory, holes=holes)
    return dataset.isel(row=codes.selection.rows()) if codes.is_selection else dataset


@xr.register_dataset_accessor("saestore")  # type: ignore[no-untyped-call]
class SaestoreAccessor:
    """What a dataset of codes or activations can be asked that xarray has no words for: `dataset.saestore`.

    Rows are those that the dataset has left, by its coordinate `row_number`.

    Examples
    --------
    >>> dataset = xr.open_dataset(url, engine="saestore")  # doctest: +SKIP
    >>> dataset.saestore.where("position > 0 and cube", split="test")["codes"].sel(unit=[7])  # doctest: +SKIP
    >>> print(dataset.isel(row=[3]).saestore.places()[0].text)  # doctest: +SKIP
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def where(
        self,
        expression: str | None = None,
        *,
        split: str | Sequence[str] | None = None,
        concept: str | Sequence[str] | None = None,
        samples: SampleChoice | None = None,
        special: bool | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Return the rows that meet conditions, all of them; see `saestore.selection.Selection.where`.

        Raises
        ------
        InputError, MissingError
            As there, and where the dataset did not come from this engine.
        """
        chosen = Selection(self._axis(storage_options)).where(
            expression, split=split, concept=concept, samples=samples, special=special
        )
        numbers = self._dataset["row_number"].values
        if numbers.ndim == 0:
            raise InputError("this dataset has one row and no dimension of rows; keep it with isel(row=[3])")
        kept = np.flatnonzero(chosen.contains(numbers))
        return self._dataset.isel(row=kept)

    def places(self, *, storage_options: Mapping[str, Any] | None = None) -> list[Place]:
        """Return what stands at each row: sample, position, and the text around a token or the box of a patch."""
        axis = self._axis(storage_options)
        return places_of(axis, np.atleast_1d(self._dataset["row_number"].values))

    def _axis(self, storage_options: Mapping[str, Any] | None) -> RowAxis:
        named = self._dataset.attrs
        if "lake" not in named or "row_number" not in self._dataset.coords:
            raise InputError(
                "this dataset does not name its lake and rows; open it with engine='saestore', and keep its attributes "
                "and the coordinate row_number"
            )
        key = ActivationsKey(named["dataset"], named["model"], named["layer"], named["sample_type"])
        return RowAxis.open(open_storage(named["lake"], storage_options=storage_options), key)


# ------------------------------------------------------------------- datasets


def _open_group(
    axes: _Axes, path: str, *, units: Units | None, view: str | None, memory: str | int | None, holes: Holes
) -> xr.Dataset | None:
    """Open the group at a path, or return None where the path is not that of a group this engine knows."""
    parts = path.split("/")
    if len(parts) == 7 and parts[4] == CODES:
        code_key = CodesKey(parts[1], parts[2], parts[3], parts[5], parts[6])
        if code_key.path == path:
            codes = Codes.open(axes.storage, code_key)
            codes = codes if view is None else codes.view(view)
            return _codes_dataset(codes, axes, units=units, memory=memory, holes=holes)
    if units is not None or view is not None:
        option = "view" if units is None else "units"
        raise InputError(
            f"{option}= chooses units of codes; {path or 'a lake'} is not one SAE's codes, open it without"
        )
    if len(parts) == 6 and parts[4] == ACTIVATIONS:
        key = ActivationsKey(parts[1], parts[2], parts[3], parts[5])
        if key.path == path:
            return _activations_dataset(Activations.open(axes.storage, key), axes, memory=memory, holes=holes)
    if len(parts) == 3 and parts[2] == SAMPLES and samples_path(parts[1]) == path:
        return _samples_dataset(Samples.open(axes.storage, parts[1]))
    return None


def _codes_dataset(
    codes: Codes, axes: _Axes, *, units: Units | None, memory: str | int | None, holes: Holes
) -> xr.Dataset:
    _check_options(memory, holes)
    chosen = None if units is None else _check_units(units, codes)
    unit = codes.kept_units if chosen is None else chosen
    width = unit.size
    chunk = dense_chunk_rows(codes.group.grid, width * 4)
    block = LazyRows(DenseCodes(codes, chosen, memory, holes), (codes.n_rows, width), np.float32)
    active: Reader = Column(codes.group, "l0", holes) if codes.view_name is None else ActiveUnits(codes, holes)
    l0 = LazyRows(active, (codes.n_rows,), np.uint32 if holes == "error" else np.float32)
    view = {} if codes.view_name is None else {"view": codes.view_name}
    return xr.Dataset(
        {
            "codes": lazy_variable(("row", "unit"), block, {"row": chunk, "unit": width}, uncached=True),
            "l0": lazy_variable(("row",), l0, {"row": chunk}),
        },
        coords={"unit": ("unit", unit), **_row_coordinates(axes, codes.key, codes.group, chunk)},
        attrs={
            **_attributes(codes.group.storage, codes.key),
            "sae": codes.key.sae,
            "d_sae": codes.d_sae,
            "k": codes.k,
            **view,
        },
    )


def _activations_dataset(
    activations: Activations, axes: _Axes, *, memory: str | int | None, holes: Holes
) -> xr.Dataset:
    _check_options(memory, holes)
    chunk = dense_chunk_rows(activations.group.grid, activations.d_in * 4)
    shape = (activations.n_rows, activations.d_in)
    block = LazyRows(DenseActivations(activations, memory, holes), shape, np.float32)
    return xr.Dataset(
        {"activations": lazy_variable(("row", "d_in"), block, {"row": chunk, "d_in": shape[1]}, uncached=True)},
        coords=_row_coordinates(axes, activations.key, activations.group, chunk),
        attrs={**_attributes(activations.group.storage, activations.key), "stored_dtype": activations.dtype},
    )


def _samples_dataset(samples: Samples) -> xr.Dataset:
    chunk = min(samples.group.grid.shard_rows, len(samples))
    variables = {}
    for name in samples.group.array_names:
        width = len(samples.concept_names) if name == "concepts" else None
        shape = (len(samples),) if width is None else (len(samples), width)
        lazy = LazyRows(Column(samples.group, name), shape, samples.group.read(name, 0, 0).dtype)
        dims = ("sample",) if width is None else ("sample", "concept")
        variables[name] = lazy_variable(dims, lazy, dict(zip(dims, (chunk, width), strict=False)))
    if samples.concept_names:
        variables["concept"] = xr.Variable(("concept",), np.asarray(samples.concept_names, dtype=object))
    attributes = {"dataset": samples.dataset, "content": samples.kind}
    return xr.Dataset(variables, attrs=attributes).set_coords(["id", "split"])


def _row_coordinates(axes: _Axes, key: CodesKey | ActivationsKey, group: Stored, chunk: int) -> dict[str, xr.Variable]:
    n_rows = group.grid.rows
    samples, positions = axes.of(key, len(parts_of(group)))
    on_axis = len(samples) if positions is None else positions.group.grid.rows
    if on_axis != n_rows:
        raise IntegrityError(f"{key.path} has {n_rows} rows and its axis has {on_axis}; make it again from its source")
    readers: dict[str, tuple[Reader, DTypeLike]] = {"row_number": (row_numbers, np.int64)}
    readers |= {
        name: (SampleColumn(samples, positions, column), object)
        for name, column in (("sample", "id"), ("split", "split"))
    }
    if positions is not None:
        readers["position"] = (PlaceInSample(positions), np.int64)
        for name in ("special", "token_id"):
            if positions.has(name):
                readers[name] = (Column(positions.group, name), positions.group.read(name, 0, 0).dtype)
    return {
        name: lazy_variable(("row",), LazyRows(reader, (n_rows,), dtype), {"row": chunk})
        for name, (reader, dtype) in readers.items()
    }


def _attributes(storage: Storage, key: CodesKey | ActivationsKey) -> dict[str, Any]:
    return {
        "lake": storage.url,
        "dataset": key.dataset,
        "model": key.model,
        "layer": key.layer,
        "sample_type": key.sample_type,
    }


class _Axes:
    """The sample tables and position axes of a lake, each opened once for all groups that share it."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._opened: dict[tuple[ModelKey, bool, int], RowAxis] = {}

    def of(self, key: CodesKey | ActivationsKey, parts: int) -> tuple[Samples, Positions | None]:
        """Return what the rows of a group of so many parts are: samples, and the axis where they are positions."""
        source = key.activations if isinstance(key, CodesKey) else key
        known = source.model_key, source.sample_type in POSITION_TYPES, parts
        if known not in self._opened:
            self._opened[known] = RowAxis.open(self.storage, source, parts=parts)
        return self._opened[known].samples, self._opened[known].positions


def _locate(url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None) -> tuple[Storage, str]:
    """Find the lake that a URL lies in, and the path in it."""
    if not isinstance(url, str | os.PathLike):
        raise InputError(f"{type(url).__name__} cannot be opened; give the path or URL of a lake's group")
    text = os.fspath(url)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    parts = text.rstrip("/").split("/")
    cuts = [place for place, part in enumerate(parts) if part == DATA and place > 0]
    for cut in [*reversed(cuts), len(parts)]:
        storage = open_storage("/".join(parts[:cut]) or "/", storage_options=storage_options)
        document = read_document(storage, "")
        own = None if document is None else document.get("attributes", {}).get(ATTRIBUTE)
        if own is not None and "grid" not in own:  # a row group carries the attribute too, with its grid
            return storage, "/".join(parts[cut:])
    raise MissingError(f"{text} lies in no lake; give <lake>/{DATA}/<dataset>/... of a lake that exists")


def _check_options(memory: str | int | None, holes: str) -> None:
    parse_memory(memory)
    if holes not in get_args(Holes):
        raise InputError(f"holes {holes!r} is unknown; choose from {', '.join(get_args(Holes))}")


def _check_units(units: Units, codes: Codes) -> NDArray[np.int64]:
    chosen = np.asarray(units)
    if chosen.ndim != 1 or chosen.size == 0 or chosen.dtype.kind not in "iu":
        raise InputError(f"units {units!r:.60} is not a list of unit numbers; give one such as units=[7, 12]")
    codes.check_units(chosen.astype(np.int64))
    return chosen.astype(np.int64)


def _drop(dataset: xr.Dataset, names: str | Iterable[str] | None) -> xr.Dataset:
    wanted = [names] if isinstance(names, str) else list(names or [])
    return dataset.drop_vars(wanted, errors="ignore")
