"""What steering needs: units of one SAE at one place of one model, and how they go along with each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError, MissingError

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
Places = NDArray[np.int64]

Selection = Literal["threshold", "top_k", "none"]
Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]


@dataclass(frozen=True, kw_only=True)
class ModelPlace:
    """Where in which model the decoder of the SAE writes.

    Parameters
    ----------
    model_id : str
        The hub id or path that the activations were read from.
    revision : str or None
        The commit of the hub, or the fingerprint of a folder (`saestore.extraction.model.fingerprint`); None where
        that is not known.
    d_model : int
        Width of the hidden states there; of a block that of the residual stream.
    layer : str
        Name of the layer in the lake, such as ``layer_4`` or ``layer_4.mlp_out``.
    hook : str or None
        Path of the module in the model; a language model may hold it one level deeper than its base does. None where
        that is not known: of activations that were imported, and of what a transcoder writes.
    """

    model_id: str
    revision: str | None
    d_model: int
    layer: str
    hook: str | None


@dataclass(frozen=True, kw_only=True)
class SAEPlace:
    """Which SAE the units are of, and what is needed to measure them.

    Parameters
    ----------
    name : str
        Its name in the lake.
    content_hash : str
    hook_name, release, sae_id : str or None
        In SAELens' words.
    architecture : str
        As `saestore.saes.config.SAEConfig` has it.
    normalization : {"none", "layer_norm", "constant_norm_rescale"}
        What is done to each row first; see `saestore.kernels.normalize`.
    selection : {"threshold", "top_k", "none"}
        How a unit becomes active: by its own threshold, among the K largest of all units, or in a way that one row
        and one unit cannot tell.
    """

    name: str
    content_hash: str
    hook_name: str | None
    release: str | None
    sae_id: str | None
    architecture: str
    normalization: Normalization
    selection: Selection


@dataclass(frozen=True, kw_only=True)
class GraphPlace:
    """Which graph the edges are of: its name in the lake, and the hash of what it was made from."""

    name: str
    identity: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Units that can be steered, and their edges.

    Parameters
    ----------
    model : ModelPlace
    sae : SAEPlace
    graph : GraphPlace
    units : (m,) int64
        Original ids, ascending.
    decoder : (m, d_out) float32
        What one of each unit's activation adds to the (normalised) hidden state.
    encoder : (m, d_in) float32 or None
        With `encoder_bias`: the pre-activation of a (normalised) hidden state x is ``encoder @ x + encoder_bias``, in
        units of the activation. Whatever scale and ``b_dec`` the SAE has is in it. None where the encoder does not
        read what the decoder writes (a transcoder), or units are not encoded one by one.
    encoder_bias : (m,) float32 or None
    threshold : (m,) float32 or None
        The unit is active where its pre-activation is above this and above 0; for `selection` ``threshold`` alone.
    mean, deviation, maximum : (m,) float64
        Of the activations over the rows of the graph, zeros included.
    source, target : (e,) int64
        Places among `units` of the ends of each edge; both directions of a pair are there.
    r : (e,) float64
        Pearson correlation of the two units' activations.
    coefficient : (e,) float64
        Least-squares slope of target on source, ``r * deviation[target] / deviation[source]``: how far the target
        moves on average, over the rows of the graph, where the source is higher by 1.

    Raises
    ------
    InputError
        If shapes, types or numbers do not belong together.
    """

    model: ModelPlace
    sae: SAEPlace
    graph: GraphPlace
    units: Places
    decoder: FloatArray
    encoder: FloatArray | None
    encoder_bias: FloatArray | None
    threshold: FloatArray | None
    mean: DoubleArray
    deviation: DoubleArray
    maximum: DoubleArray
    source: Places
    target: Places
    r: DoubleArray
    coefficient: DoubleArray

    def __post_init__(self) -> None:
        m, e = self.units.shape[:1], self.source.shape[:1]
        _check("units", self.units, np.int64, m)
        _check("decoder", self.decoder, np.float32, (*m, None))
        for name in ("mean", "deviation", "maximum"):
            _check(name, getattr(self, name), np.float64, m)
        for name in ("source", "target"):
            _check(name, getattr(self, name), np.int64, e)
        for name in ("r", "coefficient"):
            _check(name, getattr(self, name), np.float64, e)
        self._check_units()
        self._check_encoder()
        self._check_edges()

    def _check_units(self) -> None:
        if not self.units.size:
            raise InputError("a steering bundle has no unit; name at least one")
        if (np.diff(self.units) <= 0).any() or self.units[0] < 0:
            raise InputError("the units of a steering bundle are not ascending ids from 0, each once; sort them")

    def _check_encoder(self) -> None:
        for name, value, known in (
            ("selection", self.sae.selection, get_args(Selection)),
            ("normalization", self.sae.normalization, get_args(Normalization)),
        ):
            if value not in known:
                raise InputError(f"{name} {value!r} of a steering bundle is unknown; known: {', '.join(known)}")
        expected = {"threshold": (True, True), "top_k": (True, False), "none": (False, False)}[self.sae.selection]
        held = (self.encoder is not None, self.threshold is not None)
        if held != expected or (self.encoder is None) != (self.encoder_bias is None):
            raise InputError(
                f"a steering bundle with selection {self.sae.selection!r} does not hold the encoder, encoder_bias and "
                "threshold that belong to it; make it again"
            )
        m = len(self.units)
        if self.encoder is not None and self.encoder_bias is not None:
            _check("encoder", self.encoder, np.float32, (m, self.decoder.shape[1]))
            _check("encoder_bias", self.encoder_bias, np.float32, (m,))
        if self.threshold is not None:
            _check("threshold", self.threshold, np.float32, (m,), finite=False)  # infinite: the unit never fires
            if np.isnan(self.threshold).any():
                raise InputError("threshold of a steering bundle holds NaN; make the bundle again")

    def _check_edges(self) -> None:
        m = len(self.units)
        for ends in (self.source, self.target):
            if ends.size and (ends.min() < 0 or ends.max() >= m):
                raise InputError(f"an edge of a steering bundle ends at place {ends.max()} of {m} units; make it again")
        pairs = self.source * m + self.target
        if (self.source == self.target).any() or len(np.unique(pairs)) != len(pairs):
            raise InputError("an edge of a steering bundle is there twice, or joins a unit to itself; make it again")
        if not np.isin(self.target * m + self.source, pairs).all():
            raise InputError("an edge of a steering bundle is there in one direction only; make it again")
        if (np.abs(self.r) > 1).any():
            raise InputError("an edge of a steering bundle has |r| above 1; make it again")

    def places(self, units: Iterable[int]) -> Places:
        """Return where units are in the bundle, in the given order, (n,) int64.

        Raises
        ------
        MissingError
            If one of them is not in the bundle.
        """
        wanted = np.asarray(list(units), np.int64)
        found = np.searchsorted(self.units, wanted).clip(0, len(self.units) - 1)
        absent = wanted[self.units[found] != wanted]
        if absent.size:
            raise MissingError(
                f"unit {absent[0]} is not in the steering bundle of {self.sae.name}, which holds {len(self.units)} "
                f"units from {self.units[0]} to {self.units[-1]}; make a bundle with it"
            )
        return found.astype(np.int64)

    def neighbours(self, unit: int) -> Places:
        """Return the original ids of the units that have an edge with a unit, ascending (MissingError)."""
        (place,) = self.places([unit])
        return np.sort(self.units[self.target[self.source == place]])


def _check(
    name: str, array: NDArray[Any], dtype: type[Any], shape: tuple[int | None, ...], *, finite: bool = True
) -> None:
    is_shaped = array.ndim == len(shape) and all(
        wanted in (None, found) for wanted, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not is_shaped:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InputError(
            f"{name} of a steering bundle is {array.dtype} of shape {array.shape}; expected {np.dtype(dtype)} of shape "
            f"({wanted}): make the bundle again"
        )
    if finite and not np.isfinite(array).all():
        raise InputError(f"{name} of a steering bundle holds NaN or infinity; make the bundle again")
