"""Weights in local files: an SAE whose parameters are arrays inside files; the reader of each layout builds one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, MissingError
from saestore.saes.config import SAEConfig
from saestore.saes.links import Matrix
from saestore.saes.stored import StoredArray
from saestore.saes.weights import (
    FloatArray,
    MatrixName,
    decoder_norms,
    hash_weights,
    matrix_widths,
    other_shapes,
    unit_vectors,
)


@dataclass(frozen=True)
class Factors:
    """Scalars that multiply weights on reading, for weights that are stored unfolded."""

    W_enc: float = 1.0
    W_dec: float = 1.0
    b_dec: float = 1.0

    @classmethod
    def of_norm_scaling(cls, factor: float | None) -> Factors:
        """Return SAELens' ``fold_activation_norm_scaling_factor``: W_enc * s, W_dec / s, b_dec / s (InputError)."""
        if factor is None:
            return cls()
        if not 0 < factor < math.inf:
            raise InputError(f"norm_scaling_factor={factor} is not usable; expected a finite number above 0")
        return cls(W_enc=factor, W_dec=1 / factor, b_dec=1 / factor)


def require_files(folder: Path, names: Collection[str], tool: str) -> None:
    """Refuse a folder that lacks one of the files that a tool writes (MissingError)."""
    for name in names:
        if not (folder / name).is_file():
            raise MissingError(f"{folder} has no {name}; a {tool} folder holds {' and '.join(names)}")


def require_tensors(content: object, names: Collection[str], path: Path, tool: str) -> dict[str, StoredArray]:
    """Return the tensors of a file by their names there, all of them.

    Parameters
    ----------
    content : object
        What the file holds: a dictionary, whose values that are no tensors are left out, or anything that was saved.
    names : collection of str
        Those that must be there.
    path : Path
    tool : str
        Who writes such a file, for the error.

    Raises
    ------
    InputError
        If some are missing, with those that are there.
    """
    held = content if isinstance(content, dict) else {}
    tensors = {str(name): tensor for name, tensor in held.items() if isinstance(tensor, StoredArray)}
    missing = [name for name in names if name not in tensors]
    if missing:
        raise InputError(
            f"{path} lacks {', '.join(missing)}; a {tool} file holds {', '.join(names)}, this one "
            f"{', '.join(sorted(tensors)) or 'no tensors by name'}"
        )
    return tensors


def matrix_shape(name: str, array: StoredArray, axes: str) -> tuple[int, int]:
    """Return the logical shape of an array that must have two axes, called `axes` in the error (InputError)."""
    if len(array.logical_shape) != 2:
        raise InputError(f"{name} in {array.path} has shape {array.logical_shape}; expected {axes}")
    rows, columns = array.logical_shape
    return rows, columns


def parameter_shapes(config: SAEConfig) -> dict[str, tuple[int, ...]]:
    """Return every parameter that an architecture has, with its shape in SAELens' order of axes."""
    widths = matrix_widths(config)
    return {
        **({"W_enc": (config.d_in, config.d_sae)} if "W_enc" in widths else {}),
        "W_dec": (config.d_sae, config.d_out),
        **dict.fromkeys(unit_vectors(config), (config.d_sae,)),
        **other_shapes(config),
    }


class FileWeights:
    """An SAE whose parameters lie in files, none of which stays open between reads; see `SAEWeights`.

    Parameters
    ----------
    config : SAEConfig
        Its dtype is taken from the matrices.
    parameters : mapping of name to StoredArray or array
        ``W_enc`` (d_in, d_sae) and ``W_dec`` (d_sae, d_out) as `StoredArray`, in whichever order of axes they are
        stored; the other parameters of the architecture as either. More than these is left alone, of whatever dtype.
    factors : Factors
        Applied on reading.

    Attributes
    ----------
    matrices : dict
        Where each matrix lies, by name.

    Raises
    ------
    InputError
        If a parameter is missing, is no array of floats or its shape disagrees with the configuration.
    """

    def __init__(
        self,
        config: SAEConfig,
        parameters: Mapping[str, StoredArray | NDArray[Any]],
        *,
        factors: Factors | None = None,
    ) -> None:
        self._factors = factors or Factors()
        for name, shape in parameter_shapes(config).items():
            if name not in parameters:
                raise InputError(
                    f"{config.source} lacks {name}, which a {config.architecture} SAE needs; "
                    f"it holds {', '.join(sorted(parameters)) or 'nothing'}"
                )
            given = parameters[name]
            if isinstance(given, StoredArray) and not given.is_float:
                raise InputError(f"{name} in {given.path} is {given.dtype_name}; expected an array of floats")
            found = given.logical_shape if isinstance(given, StoredArray) else given.shape
            if found != shape:
                raise InputError(
                    f"{name} in {config.source} has shape {found}, but its configuration (d_in={config.d_in}, "
                    f"d_sae={config.d_sae}) needs {shape}; weights and configuration do not belong together"
                )
        self.matrices: dict[MatrixName, Matrix] = {}
        for matrix in matrix_widths(config):
            array = parameters[matrix]
            assert isinstance(array, StoredArray), "matrices stay in their files"
            self.matrices[matrix] = Matrix(matrix, array, getattr(self._factors, matrix))
        self._vectors = {name: parameters[name] for name in (*unit_vectors(config), *other_shapes(config))}
        # what a factor gives does not fit the stored dtype, and whoever copies the weights goes by it
        dtypes = {matrix.array.dtype_name for matrix in self.matrices.values()}
        is_as_stored = self._factors == Factors() and len(dtypes) == 1
        self.config = dataclasses.replace(config, dtype=dtypes.pop() if is_as_stored else "float32")

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of consecutive units, (n_units, width) float32."""
        return self.matrices[name].rows(units)

    def take(self, name: MatrixName, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units, ascending: (n_units, width) float32."""
        return self.matrices[name].take(units)

    def vector(self, name: str) -> FloatArray:
        """Return a parameter that is no matrix of units, or ``decoder_norms``, float32."""
        if name == "decoder_norms":
            return decoder_norms(self)
        if name not in self._vectors:
            raise InputError(
                f"a {self.config.architecture} SAE has no vector {name!r}; "
                f"it has {', '.join(self._vectors)}, decoder_norms"
            )
        given = self._vectors[name]
        values = given.read() if isinstance(given, StoredArray) else np.array(given, np.float32)
        return values * np.float32(self._factors.b_dec) if name == "b_dec" else values

    def content_hash(self) -> str:
        """Return the hexadecimal sha256 of what the codes depend on; see `hash_weights`.

        Reads all weights once, and once more where the file has checksums of them.

        Raises
        ------
        IntegrityError
            If the numbers are not those of the checksums, or not finite.
        """
        arrays = [*(matrix.array for matrix in self.matrices.values()), *self._vectors.values()]
        located = [array for array in arrays if isinstance(array, StoredArray)]
        for array in {(array.path, array.record): array for array in located}.values():
            array.verify()
        return hash_weights(self)
