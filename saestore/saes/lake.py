"""SAEs inside a lake: imported once, tiled by units, read like any other source."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.activations import to_float32
from saestore.errors import ConflictError, InputError, MissingError
from saestore.layout import sae_path
from saestore.mirror import is_far, mirrored, weights_cache
from saestore.progress import Progress
from saestore.rows import ArraySpec, Grid, RowGroup
from saestore.saes.config import SAEConfig
from saestore.saes.files import FileWeights
from saestore.saes.links import follow
from saestore.saes.weights import FloatArray, MatrixName, SAEWeights, matrix_widths, other_axes, unit_vectors
from saestore.storage import Storage

_SHARD_BYTES = 64 << 20
_CHUNK_BYTES = 128 << 10  # reconstructing reads single units of W_dec; runs of chunks are fetched together
_AXES: dict[MatrixName, str] = {"W_enc": "d_in", "W_dec": "d_out"}


class LakeWeights:
    """The weights of an imported SAE; see `SAEWeights`. Matrices that were linked are read from their files.

    Parameters
    ----------
    group : RowGroup
        What `write_sae` made.

    Raises
    ------
    MissingError, IntegrityError
        If the file of a linked matrix is not there, or is not the one that was linked.
    """

    def __init__(self, group: RowGroup) -> None:
        self._group = group
        self.config = SAEConfig.from_dict(group.attributes["config"])
        links: Mapping[MatrixName, dict[str, Any]] = group.attributes.get("links", {})
        widths = matrix_widths(self.config)
        self._linked = {
            name: follow(name, link, shape=(self.config.d_sae, widths.get(name, 0)), sae=self.name)
            for name, link in links.items()
        }

    @property
    def name(self) -> str:
        """The SAE's name in the lake."""
        return self._group.path.rsplit("/", 1)[1]

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of consecutive units: (n_units, width) float32."""
        if name in self._linked:
            return self._linked[name].rows(units)
        start, stop, _ = units.indices(self.config.d_sae)
        return _widened(self._group.read(name, start, stop))

    def take(self, name: MatrixName, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units, ascending: (n_units, width) float32."""
        if name in self._linked:
            return self._linked[name].take(units)
        return _widened(self._group.take(name, units))

    def vector(self, name: str) -> FloatArray:
        """Return a parameter that is no matrix of units, or ``decoder_norms``, float32 (MissingError: no such name)."""
        if name in self._group.attributes["whole"]:
            return np.array(self._group.whole(name))  # the caller's to keep and to change, as a tile is
        return self._group.read(name)

    def content_hash(self) -> str:
        """Return the content hash that was taken of the source."""
        return str(self._group.attributes["identity"]["hash"])


def open_lake_sae(storage: Storage, name: str) -> LakeWeights:
    """Open an imported SAE.

    Where the lake is far, ``W_enc``, which encoding reads once per block of rows, is read through copies in the cache
    folder; see `saestore.mirror`.

    Raises
    ------
    MissingError
        The lake has no SAE of that name, or the file of a linked matrix is not there.
    HoleError
        Its import did not finish.
    IntegrityError
        What is stored of it is damaged, or the file of a linked matrix is not the one that was linked.
    """
    try:
        group = RowGroup.open(storage, sae_path(name))
    except MissingError:
        raise MissingError(
            f"the lake {storage.url} has no SAE {name!r}; "
            f"import it with: saestore sae import LAKE SOURCE --name '{name}'"
        ) from None
    if is_far(storage) and "W_enc" in group.array_names:
        folder = weights_cache(storage.url, group.path, group.attributes["run"])
        group = RowGroup.open(mirrored(storage, folder, array=f"{group.path}/W_enc"), group.path)
    group.check_present(0, group.grid.rows)
    return LakeWeights(group)


def write_sae(
    storage: Storage,
    name: str,
    weights: SAEWeights,
    *,
    link: bool = False,
    provenance: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> LakeWeights:
    """Copy an SAE into the lake tile by tile, or open it if the same weights are there already.

    The matrices are stored uncompressed in the precision of the source, so that tiles are read at the speed of the
    disk; ``decoder_norms`` are kept so that encoding never reads ``W_dec``. An import that was stopped goes on where it
    was.

    Parameters
    ----------
    storage : Storage
        Of the lake.
    name : str
        What the SAE is called there.
    weights : SAEWeights
        Read for the norms of the decoder, for the content hash and, without `link`, to be copied.
    link : bool
        Leave the matrices in the files where they are and keep only where they lie.
    provenance : mapping, optional
        JSON values that say how and from what the SAE was imported.
    quiet : bool
        Show no progress.

    Returns
    -------
    LakeWeights
        The SAE in the lake.

    Raises
    ------
    ConflictError
        An SAE with other weights, or of another hook or model, has that name.
    InputError
        A link was asked for, and the weights are not in local files, or in the cache folder.
    IntegrityError
        A weight is NaN or infinite, or a file is damaged.
    """
    config = weights.config
    widths = {} if link else matrix_widths(config)
    links = _links(name, weights) if link else {}
    vectors: dict[str, NDArray[Any]] = {vector: weights.vector(vector) for vector in unit_vectors(config)}
    vectors["decoder_norms"] = weights.vector("decoder_norms")
    stored = {"float16": "float16", "bfloat16": "uint16"}.get(config.dtype, "float32")
    row_bytes = max(widths.values(), default=1) * np.dtype(stored).itemsize
    attributes = {"saestore_dtype": "bfloat16"} if stored == "uint16" else {}
    group = RowGroup.create(
        storage,
        sae_path(name),
        kind="sae",
        axis="unit",
        grid=Grid.plan(
            config.d_sae,
            shard_rows=max(1, _SHARD_BYTES // row_bytes),
            chunk_rows=max(1, _CHUNK_BYTES // row_bytes),
        ),
        arrays=[
            *(
                ArraySpec(matrix, stored, width, width_axis=_AXES[matrix], codec="none", attributes=attributes)
                for matrix, width in widths.items()
            ),
            *(ArraySpec(vector, "float32", codec="none") for vector in vectors),
        ],
        identity={"hash": weights.content_hash(), **({"linked": True} if link else {})},
        whole={name: (weights.vector(name), tuple(axes)) for name, axes in other_axes(config).items()},
        attributes={"config": dataclasses.asdict(config), "links": links, "provenance": dict(provenance or {})},
    )
    _check_place(name, SAEConfig.from_dict(group.attributes["config"]), config)
    missing = group.missing_shards()
    with Progress(f"import SAE {name}", total=len(missing) * group.grid.shard_rows, unit="units", quiet=quiet) as bar:
        for shard in missing:
            units = group.grid.shard(shard)
            tile: dict[str, NDArray[Any]] = {matrix: _stored(weights.rows(matrix, units), stored) for matrix in widths}
            group.write_shard(shard, {**tile, **{vector: values[units] for vector, values in vectors.items()}})
            bar.advance(group.grid.shard_rows)
    return LakeWeights(group)


def _links(name: str, weights: SAEWeights) -> dict[str, dict[str, Any]]:
    if not isinstance(weights, FileWeights):
        raise InputError(f"the weights of SAE {name} are not in local files that could be linked; import them without")
    return {matrix: place.link() for matrix, place in weights.matrices.items()}


def _check_place(name: str, stored: SAEConfig, given: SAEConfig) -> None:
    """Refuse to take equal weights for the same SAE where they are said to belong elsewhere."""
    for place in ("hook_name", "hook_head_index", "model_name"):
        old, new = getattr(stored, place), getattr(given, place)
        if old != new:
            raise ConflictError(
                f"SAE {name!r} is stored with {place} {old!r} and was given with {new!r}; "
                "import it under another name, or as it was"
            )


def _widened(stored: NDArray[Any]) -> FloatArray:
    return to_float32(stored, "bfloat16" if stored.dtype == np.uint16 else str(stored.dtype))


def _stored(rows: FloatArray, dtype: str) -> NDArray[Any]:
    """Undo the widening of the source: its float32 values are exact in the source's own dtype."""
    if dtype == "uint16":
        return (rows.view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(dtype, copy=False)
