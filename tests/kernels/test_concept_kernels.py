"""Kernels of thresholds and detection against numpy over dense arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saestore.kernels.detection import confusion
from saestore.kernels.thresholds import NEVER, thresholds

PERCENTILES = np.array([0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95])


def entries_of(dense: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [np.flatnonzero(column) for column in dense.T]
    edges = np.append(0, np.cumsum([len(part) for part in parts])).astype(np.int64)
    rows = np.concatenate(parts).astype(np.int64)
    return edges, rows, np.concatenate([dense[part, unit] for unit, part in enumerate(parts)]).astype(np.float32)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[np.random.Generator, int, int, int, int]:
    seed, rows = draw(st.integers(0, 1 << 30)), draw(st.integers(1, 60))
    return np.random.default_rng(seed), rows, draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(1, 9))


def sparse(rng: np.random.Generator, rows: int, units: int) -> np.ndarray:
    """Some negative values and ties among them."""
    dense = rng.choice([0, 0, 0, 0.5, 1.25, 2, -1], (rows, units)) + 0.0
    free = rng.random((rows, units)) < 0.2
    dense[free] = rng.gamma(2, 1, int(free.sum()))
    return dense.astype(np.float32)


@settings(max_examples=80, deadline=None)
@given(data_sets(), st.booleans())
def test_thresholds_are_numpys_quantiles(made: tuple, by_row: bool) -> None:
    rng, n, units, concepts, samples = made
    dense = sparse(rng, n, units)
    counted = rng.random(n) < 0.7
    sample_of_row = np.sort(rng.integers(0, samples, n)).astype(np.uint32)
    lists = n if by_row else samples
    labels = rng.random((lists, concepts)) < 0.4
    indptr = np.append(0, np.cumsum(labels.sum(axis=1))).astype(np.int64)
    members = np.nonzero(labels)[1].astype(np.uint32)
    found, n_pos = thresholds(
        *entries_of(dense), counted, None if by_row else sample_of_row, indptr, members, concepts, PERCENTILES
    )
    of_rows = labels if by_row else labels[sample_of_row]
    for unit in range(units):
        for concept in range(concepts + 1):
            held = counted & (dense[:, unit] > 0)
            held &= True if concept == concepts else of_rows[:, concept]
            values = dense[held, unit]
            assert n_pos[unit, concept] == len(values)
            if len(values):
                expected = np.quantile(values.astype(np.float64), 1 - PERCENTILES).astype(np.float32)
                np.testing.assert_array_equal(found[unit, concept], expected)
                assert (np.diff(found[unit, concept]) <= 0).all()
            else:
                assert (found[unit, concept] == NEVER).all()


@settings(max_examples=80, deadline=None)
@given(data_sets())
def test_counts_are_those_of_the_dense_matrix(made: tuple) -> None:
    rng, n, units, concepts, samples = made
    dense = sparse(rng, n, units)
    counted = rng.random(n) < 0.7
    sample_of_row = np.sort(rng.integers(0, samples, n)).astype(np.uint32)
    labels = rng.choice([0, 1, 255], (concepts, samples)).astype(np.uint8)
    cuts = -np.sort(-rng.choice([0.4, 0.5, 1.25, 1.5, 2, 7, NEVER], (units, concepts, 5)), axis=2).astype(np.float32)
    tp, fp = confusion(*entries_of(dense), counted, sample_of_row, labels, cuts)
    for unit in range(units):
        most = np.array(
            [dense[counted & (sample_of_row == sample), unit].max(initial=0) for sample in range(samples)], np.float32
        )
        for concept in range(concepts):
            for level in range(5):
                fires = most >= cuts[unit, concept, level]
                assert tp[unit, concept, level] == (fires & (labels[concept] == 1)).sum()
                assert fp[unit, concept, level] == (fires & (labels[concept] == 0)).sum()


def test_units_without_entries_never_fire() -> None:
    nothing = np.zeros(2, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    counted, samples = np.ones(3, bool), np.arange(3, dtype=np.uint32)
    found, n_pos = thresholds(*nothing, counted, None, np.zeros(4, np.int64), np.empty(0, np.uint32), 2, PERCENTILES)
    assert n_pos.tolist() == [[0, 0, 0]]
    assert (found == NEVER).all()
    tp, fp = confusion(*nothing, counted, samples, np.ones((3, 3), np.uint8), found)
    assert not tp.any()
    assert not fp.any()


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_quantiles_of_equal_and_of_single_values(n: int) -> None:
    values = np.full(n, 0.1, np.float32)
    edges = np.array([0, n])
    found, _ = thresholds(
        edges, np.arange(n), values, np.ones(n, bool), None, np.arange(n + 1), np.zeros(n, np.uint32), 1, PERCENTILES
    )
    assert (found == np.float32(0.1)).all()
