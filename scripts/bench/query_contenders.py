"""Readers of codes that the query benchmark holds ours against, each on files of its own made from the same codes.

Every reader answers what its users would ask of it, by the calls that its users make: the entries of a unit, a run of
rows, rows at random. What it does not answer at all is left out. Answers are checked against ours before any is timed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folders import new_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saestore.codes import Codes

Reader = Mapping[str, Callable[[Any], Any]]
"""Calls by kind: `unit` takes a unit and returns its rows, in any order, and values; `slice` takes (start, stop) and
`take` row numbers, and both return the values of the rows in any shape. Of ours also `context`, `examples`, `dense`."""

SPLITS = 5
"""Files that delphi cuts a cache into by default."""

_WRITE_ROWS = 1 << 18


@dataclass(frozen=True)
class Contender:
    """A reader and what it needs.

    folder : name of the folder of its files; empty where it reads none of its own
    packages : names of the modules that it imports, which pip knows by the same names
    write : makes its files from codes
    open : opens them
    """

    name: str
    open: Callable[[Codes, Path], Reader]
    folder: str = ""
    packages: tuple[str, ...] = ()
    write: Callable[[Codes, Path], None] | None = None

    @property
    def missing(self) -> tuple[str, ...]:
        """Packages that are not installed."""
        return tuple(name for name in self.packages if importlib.util.find_spec(name) is None)

    def prepare(self, codes: Codes, keep: Path) -> None:
        """Write its files unless they are there; a folder that has its name is whole."""
        if self.write is None or (keep / self.folder).exists():
            return
        with new_folder(keep / self.folder) as made:
            self.write(codes, made)


def open_ours(codes: Codes, folder: Path) -> Reader:
    """Our own reader."""

    def unit(number: int) -> tuple[Any, Any]:
        found = codes.unit(number)
        return found.rows, found.values

    def context(number: int) -> tuple[Any, ...]:
        found = codes.unit(number)
        return found.rows, found.values, found.samples, found.positions

    def dense(asked: tuple[int, int, list[int]]) -> NDArray[np.float32]:
        start, stop, units = asked
        return codes.dense(slice(start, stop), units=units)

    return {
        "unit": unit,
        "context": context,
        "examples": lambda number: [example.place.text for example in codes.unit(number).examples(20)],
        "slice": lambda rows: codes.rows(slice(*rows)).values,
        "take": lambda rows: codes.rows(rows).values,
        "dense": dense,
    }


def open_scan(codes: Codes, folder: Path) -> Reader:
    """Every row of ours, for want of a copy by unit."""
    import numpy as np

    def unit(number: int) -> tuple[Any, Any]:
        rows, values = [], []
        for block in codes.scan():
            row, slot = np.nonzero((block.indices == number) & (block.values != 0))
            rows.append(block.rows[row])
            values.append(block.values[row, slot])
        return np.concatenate(rows), np.concatenate(values)

    return {"unit": unit}


def open_tensorstore(codes: Codes, folder: Path) -> Reader:
    """Our own Zarr arrays by TensorStore, whose readers are C++: arrays only, no ledger and no row axis."""
    import numpy as np
    import tensorstore

    root = Path(codes.group.storage.url)

    def array(path: str) -> Any:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(root / path)}}
        return tensorstore.open(spec, read=True, open=True).result()

    names = ("indices", "values")
    by_row = [array(f"{codes.group.path}/{name}") for name in names]
    segments = [
        (segment, [array(f"{segment.group.path}/{name}") for name in ("row_gaps", "values")], segment.indptr)
        for segment in codes.postings.segments
    ]

    def unit(number: int) -> tuple[Any, Any]:
        asked = [
            (segment, [one[indptr[number] : indptr[number + 1]].read() for one in arrays])
            for segment, arrays, indptr in segments
        ]
        parts = [(segment, [one.result() for one in reads]) for segment, reads in asked]
        rows = [segment.first_row + np.cumsum(gaps, dtype=np.int64) for segment, (gaps, _) in parts]
        return np.concatenate(rows), np.concatenate([values for _, (_, values) in parts])

    def read(rows: Any) -> Any:
        asked = [one[rows].read() for one in by_row]
        return [one.result() for one in asked][1]

    return {"unit": unit, "slice": lambda rows: read(slice(*rows)), "take": read}


def open_scipy(codes: Codes, folder: Path) -> Reader:
    """Both orientations in memory: no reader of files can be faster."""
    by_row = _csr(codes)
    by_unit = by_row.tocsc()

    def unit(number: int) -> tuple[Any, Any]:
        column = by_unit[:, [number]]
        return column.indices, column.data

    return {
        "unit": unit,
        "slice": lambda rows: by_row[slice(*rows)].data,
        "take": lambda rows: by_row[rows].data,
    }


def write_anndata(codes: Codes, folder: Path) -> None:
    """Write both orientations as elements of AnnData, with its own chunks and codecs."""
    import anndata
    import zarr

    group = zarr.open_group(folder, mode="w")
    by_row = _csr(codes)
    anndata.io.write_elem(group, "csr", by_row)
    anndata.io.write_elem(group, "csc", by_row.tocsc())


def open_anndata(codes: Codes, folder: Path) -> Reader:
    """Backed sparse arrays of AnnData."""
    import anndata
    import numpy as np
    import zarr

    group = zarr.open_group(folder, mode="r")
    by_row, by_unit = (anndata.io.sparse_dataset(group[name]) for name in ("csr", "csc"))

    def unit(number: int) -> tuple[Any, Any]:
        column = by_unit[:, number]
        return column.indices, column.data

    # Ascending rows are what it reads fastest.
    return {
        "unit": unit,
        "slice": lambda rows: by_row[slice(*rows)].data,
        "take": lambda rows: by_row[np.sort(rows)].data,
    }


def write_soma(codes: Codes, folder: Path) -> None:
    """Write a sparse array of TileDB-SOMA with its default tiles, some rows at a time."""
    import numpy as np
    import pyarrow
    import tiledbsoma

    shape = (codes.n_rows, codes.d_sae)
    folder.rmdir()
    with tiledbsoma.SparseNDArray.create(str(folder), type=pyarrow.float32(), shape=shape) as array:
        for start in range(0, codes.n_rows, _WRITE_ROWS):
            part = codes.to_scipy(slice(start, start + _WRITE_ROWS)).tocoo()
            places = np.stack([part.row.astype(np.int64) + start, part.col.astype(np.int64)], axis=1)
            array.write(pyarrow.SparseCOOTensor.from_numpy(part.data.reshape(-1, 1), places, shape=shape))


def open_soma(codes: Codes, folder: Path) -> Reader:
    """One array for both directions, as TileDB means it."""
    import tiledbsoma

    array = tiledbsoma.open(str(folder))

    def unit(number: int) -> tuple[Any, Any]:
        table = array.read((slice(None), number)).tables().concat()
        return table["soma_dim_0"].to_numpy(), table["soma_data"].to_numpy()

    def values(rows: Any) -> Any:
        return array.read((rows,)).tables().concat()["soma_data"].to_numpy()

    return {"unit": unit, "slice": lambda rows: values(slice(rows[0], rows[1] - 1)), "take": values}


def write_splits(codes: Codes, folder: Path) -> None:
    """Write delphi's layout: ranges of latents, in each the (sample, position, latent) of entries, and all tokens."""
    import numpy as np
    from safetensors.numpy import save_file

    positions = codes.positions
    assert positions is not None
    tokens = np.zeros((len(positions.offsets) - 1, int(np.diff(positions.offsets).max())), dtype=np.int64)
    everywhere = np.arange(codes.n_rows)
    tokens[codes.axis.sample_of(everywhere), codes.axis.place_in_sample(everywhere)] = positions.group.read("token_id")
    edges = np.linspace(0, codes.d_sae, SPLITS + 1).astype(np.int64)
    for first, last in zip(edges[:-1].tolist(), (edges[1:] - 1).tolist(), strict=True):
        places, activations = [], []
        for block in codes.scan():
            row, slot = np.nonzero((block.values != 0) & (block.indices >= first) & (block.indices <= last))
            rows, latents = block.rows[row], block.indices[row, slot].astype(np.int64)
            # The latents of a token stand in ascending order there.
            order = np.lexsort((latents, rows))
            rows, latents = rows[order], latents[order]
            places.append(np.stack([codes.axis.sample_of(rows), codes.axis.place_in_sample(rows), latents - first], 1))
            activations.append(block.values[row, slot][order].astype(np.float16))
        locations = np.concatenate(places)
        small = locations[:, [0, 2]].max() < 2**16
        split = {
            "locations": locations.astype(np.uint16 if small else np.uint32),
            "activations": np.concatenate(activations),
            "tokens": tokens,
        }
        save_file(split, folder / f"{first}_{last}.safetensors")


def open_splits(codes: Codes, folder: Path) -> Reader:
    """Load the split that has a latent, widen it, and keep the latent's entries, as delphi's loader does.

    That loader does it twice, once for the tokens, and takes half as long again to widen; here it is done once.
    """
    import numpy as np
    import torch
    from safetensors.numpy import load_file

    files = sorted((int(file.stem.split("_")[0]), file) for file in folder.glob("*.safetensors"))
    starts = np.array([start for start, _ in files])
    positions = codes.positions
    assert positions is not None
    offsets = positions.offsets

    def unit(number: int) -> tuple[Any, Any]:
        first, file = files[int(np.searchsorted(starts, number, side="right")) - 1]
        content = load_file(file)
        activations = torch.tensor(content["activations"])
        locations = torch.from_numpy(content["locations"].astype(np.int64))
        torch.tensor(content["tokens"])
        locations[:, 2] += first
        wanted = torch.isin(locations[:, 2], torch.tensor([number]))
        locations, activations = locations[wanted], activations[wanted]
        return offsets[locations[:, 0].numpy()] + locations[:, 1].numpy(), activations.numpy()

    return {"unit": unit}


def _csr(codes: Codes) -> Any:
    """Return all codes as scipy's CSR matrix with 32-bit indices, the smaller and faster."""
    import numpy as np
    from scipy.sparse import csr_matrix

    found = codes.to_scipy()
    arrays = (found.data, found.indices.astype(np.int32), found.indptr.astype(np.int32))
    return csr_matrix(arrays, shape=found.shape)


OURS = Contender("saestore", open_ours)

CONTENDERS = (
    Contender("scan of all our rows", open_scan),
    Contender("TensorStore on our Zarr arrays", open_tensorstore, packages=("tensorstore",)),
    Contender("scipy CSR and CSC in memory", open_scipy, packages=("scipy",)),
    Contender("AnnData, CSR and CSC on Zarr", open_anndata, "anndata", ("anndata", "scipy"), write_anndata),
    Contender("TileDB-SOMA sparse array", open_soma, "soma", ("tiledbsoma", "scipy"), write_soma),
    Contender("delphi's safetensors splits", open_splits, "delphi", ("torch", "safetensors"), write_splits),
)
