"""Making a steering bundle: the chosen units' part of an SAE, with what the graph says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from saestore.errors import InputError
from saestore.saes.config import DENSE, TOPK
from saestore.saes.decoder import decoder_rule
from saestore.saes.weights import SAEWeights, unit_rule
from saestore.steer.bundle import Bundle, DoubleArray, FloatArray, GraphPlace, ModelPlace, Places, SAEPlace, Selection


@dataclass(frozen=True)
class UnitRows:
    """The part of an SAE that belongs to m units; see `Bundle` for the arrays."""

    decoder: FloatArray
    encoder: FloatArray | None
    encoder_bias: FloatArray | None
    threshold: FloatArray | None
    selection: Selection


def make_bundle(
    weights: SAEWeights,
    units: NDArray[np.integer],
    *,
    mean: NDArray[np.floating],
    deviation: NDArray[np.floating],
    maximum: NDArray[np.floating],
    a: NDArray[np.integer],
    b: NDArray[np.integer],
    r: NDArray[np.floating],
    model: ModelPlace,
    sae_name: str,
    graph: GraphPlace,
) -> Bundle:
    """Put units of an SAE and their edges in the graph together.

    Parameters
    ----------
    weights : SAEWeights
    units : (m,) int
        Original ids, ascending.
    mean, deviation, maximum : (m,) float
        Of the units' activations over the rows of the graph, zeros included.
    a, b : (e,) int
        Places among `units` of the ends of each edge; a pair is given once, in either order.
    r : (e,) float
        Pearson correlation.
    model : ModelPlace
        Where the decoder writes: of a transcoder, its output.
    sae_name : str
        Its name in the lake.
    graph : GraphPlace

    Raises
    ------
    InputError
        If the SAE has no such unit, a unit with an edge never changes, or the arrays do not belong together.
    """
    config = weights.config
    ids = np.asarray(units, np.int64)
    wrong = ids[(ids < 0) | (ids >= config.d_sae)]
    if wrong.size:
        raise InputError(f"unit {wrong[0]} was asked for, but SAE {sae_name} has {config.d_sae}, counted from 0")
    rows = unit_rows(weights, ids)
    deviations = np.asarray(deviation, np.float64)
    source, target = np.concatenate([a, b]).astype(np.int64), np.concatenate([b, a]).astype(np.int64)
    both = np.concatenate([r, r]).astype(np.float64)
    if source.size and (source.min() < 0 or source.max() >= len(deviations)):
        raise InputError(
            f"an edge ends at place {source.max()} of {len(deviations)} units; give places among the units"
        )
    if not (deviations[source] > 0).all():
        still = ids[source[deviations[source] <= 0][0]]
        raise InputError(f"unit {still} has an edge but never changes in the graph's rows; leave constant units out")
    return Bundle(
        model=model,
        sae=SAEPlace(
            name=sae_name,
            content_hash=weights.content_hash(),
            hook_name=config.hook_name,
            release=config.release,
            sae_id=config.sae_id,
            architecture=config.architecture,
            normalization="none" if config.is_transcoder else config.normalization,
            selection=rows.selection,
        ),
        graph=graph,
        units=ids,
        decoder=rows.decoder,
        encoder=rows.encoder,
        encoder_bias=rows.encoder_bias,
        threshold=rows.threshold,
        mean=np.asarray(mean, np.float64),
        deviation=deviations,
        maximum=np.asarray(maximum, np.float64),
        source=source,
        target=target,
        r=both,
        coefficient=both * deviations[target] / deviations[source],
    )


def unit_rows(weights: SAEWeights, units: Places) -> UnitRows:
    """Return the part of an SAE that belongs to units, with every scale and offset folded in.

    Parameters
    ----------
    weights : SAEWeights
    units : (m,) int64
        Original ids, ascending.

    Notes
    -----
    The rule of a unit (`saestore.saes.weights.unit_rule`) is ``v = s * (w @ (x - b_dec)) + b``, active where ``v >
    max(threshold, 0)`` and, in a gated SAE, ``w @ (x - b_dec) > cut``. As s is above 0, this is ``v = (s w) @ x + (b -
    s w @ b_dec)`` with the threshold ``max(threshold, s * cut + b)``. It is folded in float64 and rounded once, so that
    a unit may come out otherwise than encoded where it is as near to its threshold as that rounding. Decoder rows are
    those of `saestore.saes.decoder.decode`: divided by their norms or by the factor where it divides by them.
    """
    config = weights.config
    decoder = weights.take("W_dec", units).astype(np.float64) / decoder_rule(config).factor
    if config.rescale_acts_by_decoder_norm:
        decoder /= weights.vector("decoder_norms")[units, None].astype(np.float64)
    if config.architecture in DENSE or config.is_transcoder:
        return UnitRows(decoder.astype(np.float32), None, None, None, "none")
    rule = unit_rule(weights)

    def of_rule(vector: FloatArray | None, otherwise: float) -> DoubleArray:
        return np.full(len(units), otherwise) if vector is None else vector[units].astype(np.float64)

    scale, bias = of_rule(rule.scale, 1.0), of_rule(rule.bias, 0.0)
    encoder = weights.take("W_enc", units).astype(np.float64) * scale[:, None]
    threshold = np.maximum(of_rule(rule.threshold, 0.0), of_rule(rule.cut, -np.inf) * scale + bias)
    if config.apply_b_dec_to_input:
        bias = bias - encoder @ weights.vector("b_dec").astype(np.float64)
    is_ranked = config.architecture in TOPK
    return UnitRows(
        decoder.astype(np.float32),
        encoder.astype(np.float32),
        bias.astype(np.float32),
        None if is_ranked else threshold.astype(np.float32),
        "top_k" if is_ranked else "threshold",
    )
