"""From a change of units to what is added to the hidden state, with or without a correction of their neighbours."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from saestore.errors import InputError
from saestore.steer.bundle import Bundle, DoubleArray, FloatArray, Places

Corrective = Literal["none", "follow", "hold"]
"""What becomes of the neighbours of steered units; see `steering_vectors`."""

_MOST_CONDITION = 1e3
"""Beyond this, units can only be moved apart by adding hundreds of times what is asked for."""


def steering_vectors(bundle: Bundle, places: Places, *, corrective: Corrective = "none") -> FloatArray:
    """Return what is added to the (normalised) hidden state where a unit is to change by 1.

    Parameters
    ----------
    bundle : Bundle
    places : (n,) int64
        Places in the bundle of the steered units.
    corrective : {"none", "follow", "hold"}
        ``none``: the decoder row of the unit and nothing else.

        ``follow``: besides, the neighbours are moved so that each goes by what the graph says goes along with the
        change, instead of by what the decoder row happens to do to it.

        ``hold``: the neighbours are moved so that they stay where they were.

    Returns
    -------
    (n, d_out) float32
        One row per steered unit; a change is their sum, each times the change of its unit.

    Raises
    ------
    InputError
        If the bundle has no encoder rows to correct with, or units and neighbours are too alike to be moved apart.

    Notes
    -----
    Let U be the steered units, N the units with an edge to one of them, and S = U and N. With D[u] the change asked
    for, adding ``D[u] * decoder[u]`` alone changes the pre-activation of every unit v by ``D[u] * <encoder[v],
    decoder[u]>``: of u itself by D[u] only where the two rows have product 1, and of a neighbour by a leak that is a
    matter of the weights' angles and not of the data. A correction finds amounts a over S for which

        E @ a = t,    E[v, s] = <encoder[v], decoder[s]>,    t[u] = D[u] for u in U,
        follow: t[v] = sum over u of coefficient(u -> v) * w[u] for v in N;    hold: t[v] = 0,

    and adds ``sum over s of a[s] * decoder[s]``. So the pre-activation of a steered unit changes by exactly D, and the
    leaks of all rows that are added, of the corrections too, are compensated. For one steered unit w = D, and a
    neighbour moves by the slope of its regression on the unit: what is left of it beyond that regression stays as it
    was. For several, w solves ``sum over u' of coefficient(u' -> u) * w[u'] = D[u]``, with 1 from a unit to itself and
    0 where the graph has no edge: this is the regression on all of them at once, which does not count twice what
    two correlated units both explain.

    Pre-activations are changed; of a unit whose activation is 0 before or after, as much shows as its threshold, or
    the K of its SAE, lets through. Units that are not neighbours are not corrected. A row's normalisation is taken as
    it is before the change.

    With n = 1, E of a tied SAE with orthogonal rows is the identity, and ``follow`` adds ``D * (decoder[u] + sum over v
    of coefficient(u -> v) * decoder[v])``.
    """
    if corrective not in get_args(Corrective):
        raise InputError(f"corrective is {corrective!r}; use one of {', '.join(get_args(Corrective))}")
    if corrective == "none":
        return bundle.decoder[places]
    if bundle.encoder is None:
        raise InputError(
            f"neighbours cannot be corrected with SAE {bundle.sae.name} ({bundle.sae.architecture}): its encoder does "
            "not read, unit by unit, what its decoder writes; use corrective 'none'"
        )
    near = np.setdiff1d(bundle.target[np.isin(bundle.source, places)], places)
    moved = np.concatenate([places, near])
    decoder = bundle.decoder[moved].astype(np.float64)
    encoder = bundle.encoder[moved].astype(np.float64)
    effect = encoder @ decoder.T
    _check_condition(bundle, places, len(near), effect, encoder, decoder)
    wanted = np.zeros((len(moved), len(places)))
    wanted[: len(places)] = np.eye(len(places))
    if corrective == "follow":
        wanted[len(places) :] = _slopes(bundle, near, places)
    amounts = np.linalg.solve(effect, wanted)
    vectors: FloatArray = (amounts.T @ decoder).astype(np.float32)
    return vectors


def _slopes(bundle: Bundle, near: Places, places: Places) -> DoubleArray:
    """Regress neighbours on all steered units at once: (len(near), len(places)) slopes."""
    between = _coefficients(bundle, places, places) + np.eye(len(places))
    if np.linalg.cond(between) > _MOST_CONDITION:
        raise InputError(
            f"the steered units {_ids(bundle, places)} are so correlated in the graph that what goes along with each "
            "cannot be told apart; steer fewer of them at once"
        )
    slopes: DoubleArray = _coefficients(bundle, near, places) @ np.linalg.inv(between)
    return slopes


def _coefficients(bundle: Bundle, targets: Places, sources: Places) -> DoubleArray:
    """Return the slopes of targets on sources, (len(targets), len(sources)), 0 where there is no edge."""
    m = len(bundle.units)
    row, column = np.full(m, -1), np.full(m, -1)
    row[targets], column[sources] = np.arange(len(targets)), np.arange(len(sources))
    used = (row[bundle.target] >= 0) & (column[bundle.source] >= 0)
    table = np.zeros((len(targets), len(sources)))
    table[row[bundle.target[used]], column[bundle.source[used]]] = bundle.coefficient[used]
    return table


def _check_condition(
    bundle: Bundle, places: Places, n_near: int, effect: DoubleArray, encoder: DoubleArray, decoder: DoubleArray
) -> None:
    """Refuse units whose rows do not differ enough, whatever the lengths of the rows are."""
    lengths = np.outer(np.linalg.norm(encoder, axis=1), np.linalg.norm(decoder, axis=1))
    if not lengths.all() or np.linalg.cond(effect / lengths) > _MOST_CONDITION:
        raise InputError(
            f"unit {_ids(bundle, places)} and its {n_near} neighbours cannot be moved apart in {decoder.shape[1]} "
            "dimensions, for their rows are too alike or too many; make a bundle of fewer neighbours, or use "
            "corrective 'none'"
        )


def _ids(bundle: Bundle, places: Places) -> str:
    return ", ".join(str(unit) for unit in bundle.units[places])
