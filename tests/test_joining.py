"""Reductions from positions to samples against a loop over the dense rows, and which parts may be joined."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
from built_lake import CUTS, BuiltLake, build, top_k

from saestore import joining
from saestore.codes import Codes
from saestore.errors import BudgetError, InputError, MissingError
from saestore.joining import per_sample, same_rows
from saestore.kernels.reduce import Reduction
from saestore.layout import CodesKey

KINDS = get_args(Reduction)


@pytest.fixture(scope="module", params=CUTS, ids=["one part", "three parts"])
def built(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> BuiltLake:
    built = build(str(tmp_path_factory.mktemp("joining") / "lake"), cuts=request.param)
    rng = np.random.default_rng(5)
    signed = rng.choice([0, 0, -1.5, -0.25, 2.0], (len(built.tokens.dense), 4)).astype(np.float32)
    built.write_codes(CodesKey("d", "m", "layer_3", "signed", "token"), top_k(signed, 4))
    return built


def reduced(column: np.ndarray, how: str) -> float:
    """By the definition, with the rows of one sample."""
    if how == "count":
        return float(np.count_nonzero(column))
    return {"max": column.max(), "sum": column.sum(), "mean": column.mean(), "last": column[-1]}[how]


@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("slots", [1, 1 << 20])
@pytest.mark.parametrize("sae", ["s", "signed"])
def test_samples_are_reduced_from_their_rows(
    built: BuiltLake, monkeypatch: pytest.MonkeyPatch, how: Reduction, slots: int, sae: str
) -> None:
    monkeypatch.setattr(joining, "_BLOCK_SLOTS", slots)
    codes = Codes.open(built.storage, CodesKey("d", "m", "layer_3", sae, "token"))
    dense = codes.dense()
    for special, selection in ((True, codes), (False, codes), (False, codes.where("position < 4"))):
        counted = np.ones(len(dense), bool) if special else ~built.special
        if selection is not codes:
            counted &= np.arange(len(dense)) - built.offsets[built.sample_of_row] < 4
        held = [sample for sample in range(7) if counted[built.sample_of_row == sample].any()]
        found = per_sample(selection, how, special=special)
        assert found.samples.tolist() == held
        assert found.units.tolist() == list(range(codes.d_sae))
        expected = [
            [reduced(dense[counted & (built.sample_of_row == sample), unit], how) for unit in range(codes.d_sae)]
            for sample in held
        ]
        np.testing.assert_allclose(found.values.toarray(), expected, rtol=1e-6)
        for worth in (1 << 60, 0):  # by row, and by unit where there are postings
            monkeypatch.setattr("saestore.codes._WORTH_POSTINGS", worth)
            monkeypatch.setattr("saestore.codes._UNIT_SLOTS", -1_000)
            some = per_sample(selection, how, units=[3, 0], special=special)
            assert some.samples.tolist() == held
            np.testing.assert_array_equal(some.values.toarray(), found.values.toarray()[:, [3, 0]])


def test_pooled_rows_are_their_own_reduction(built: BuiltLake) -> None:
    found = per_sample(built.codes("mean"), "max")
    np.testing.assert_array_equal(found.values.toarray(), built.means.dense)


def test_what_lies_on_one_axis_needs_no_join(built: BuiltLake) -> None:
    tokens, signed = (Codes.open(built.storage, CodesKey("d", "m", "layer_3", sae, "token")) for sae in ("s", "signed"))
    same_rows(tokens, signed, built.lake.activations("d", sample_type="token"))
    same_rows(tokens.where(split="test"), signed.where(split="test"))
    with pytest.raises(InputError, match="select different rows"):
        same_rows(tokens.where(split="test"), signed.where(split="train"))
    with pytest.raises(InputError, match="select different rows"):
        same_rows(tokens.where(split="test"), signed)
    with pytest.raises(
        InputError, match=r"rows of positions and rows of samples; reduce .* max, mean, sum, count, last"
    ):
        same_rows(tokens, built.codes("mean"))


def test_other_texts_are_another_axis(built: BuiltLake, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = build(str(tmp_path_factory.mktemp("other") / "lake"), cuts=built.cuts).codes("mean")
    same_rows(built.codes("mean"), other)  # the same table, in another lake
    object.__setattr__(other.axis.samples.group, "attributes", {"identity": {"digest": "else"}})
    with pytest.raises(InputError, match="different axes"):
        same_rows(built.codes("mean"), other)


def test_wrong_requests_are_refused(built: BuiltLake) -> None:
    codes = built.codes()
    with pytest.raises(InputError, match="how='median' is unknown; choose from max"):
        per_sample(codes, "median")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="named twice"):
        per_sample(codes, "max", units=[1, 1])
    with pytest.raises(InputError, match="names no unit"):
        per_sample(codes, "max", units=[])
    with pytest.raises(MissingError, match="unit 50"):
        per_sample(codes, "max", units=[50])
    with pytest.raises(BudgetError, match="name fewer units"):
        per_sample(codes, "max", memory="1KiB")
