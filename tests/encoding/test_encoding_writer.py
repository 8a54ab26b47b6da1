"""Encoding from lake to lake, against SAELens' own encode and against numpy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.encoding import encoder  # noqa: E402
from saestore.encoding import plan as encode_plan  # noqa: E402
from saestore.encoding import task as encode_task  # noqa: E402
from saestore.encoding.writer import encode  # noqa: E402
from saestore.errors import (  # noqa: E402
    BudgetError,
    ConflictError,
    HoleError,
    InputError,
    MissingError,
    QualityError,
)
from saestore.lake import Lake  # noqa: E402
from saestore.layout import ActivationsKey  # noqa: E402
from saestore.saes import open_sae  # noqa: E402
from saestore.saes.lake import write_sae  # noqa: E402
from tests.encoding.conftest import D_IN, D_SAE  # noqa: E402
from tests.small_lake import HOOK, add_activations, lake_files, mirror_sae, random_sae  # noqa: E402


def top_k(dense: np.ndarray, k: int, dtype: Any = np.float16) -> tuple[np.ndarray, np.ndarray]:
    """The k largest of each row by sorting it whole, ties by unit, before and after rounding."""
    indices, values = np.zeros((len(dense), k), np.int64), np.zeros((len(dense), k), dtype)
    for row, codes in enumerate(dense):
        kept = sorted((-float(codes[unit]), unit) for unit in np.flatnonzero(codes))[:k]
        slots = sorted((-float(dtype(-value)), unit) for value, unit in kept)
        for slot, (value, unit) in enumerate(slots):
            indices[row, slot], values[row, slot] = unit, -value
    return indices, values


class Readable:
    """Stands for weights whose reading is timed."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def content_hash(self) -> str:
        return "of no weights"

    def rows(self, name: str, units: slice) -> np.ndarray:
        return np.empty((units.stop - units.start, self.config.d_out), np.float32)


def planned(config: Any, *, k: int | None, rows: int, budget: int = 2 << 30, held: bool = True) -> Any:
    """The plan of a pass of one SAE."""
    part = encode_plan.Part(
        sae="s",
        config=config,
        grid=encode_plan.plan_grid(rows, k or 1, config, 2),
        rows=rows,
        k=k,
        value_bytes=2,
        state_bytes=0,
        checked=256,
        longest=0,
        is_new=True,
    )
    return encode_plan.plan_encode(
        encode_plan.Source(ActivationsKey("d", "m", "layer_3", "token"), rows, 2 * config.d_in, rows),
        [part],
        encode_plan.Resources("cpu", "fp32", 0, budget, None),
        held_bytes=part.matrix_bytes if held else None,
        weights=Readable(config),
    )


def dense_of(lake: Lake, dataset: str = "d", **where: Any) -> np.ndarray:
    return lake.codes(dataset, **where).dense()


class TestGrowth:
    """A dataset that grows, against the same rows in one part."""

    @pytest.mark.parametrize("k", [6, None])
    def test_only_new_rows_are_encoded(self, lake: Lake, tmp_path: Path, x: np.ndarray, k: int | None) -> None:
        write_sae(lake.storage, "s", random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE))
        add_activations(lake, "whole", x)
        add_activations(lake, "d", x[:203])  # whole samples of seven
        encode(lake, "s", k=k, datasets=["whole", "d"], force=True, quiet=True)
        before = lake_files(tmp_path)
        add_activations(lake, "d", x[203:], part=1)
        with pytest.raises(HoleError, match="rows 203 to 299 of data/d/m/layer_3/codes/s/token"):
            lake.codes("d").rows(slice(None))
        results = encode(lake, "s", k=k, force=True, quiet=True)
        assert [(result.dataset, result.key.part, result.encoded_rows) for result in results] == [
            ("d", 0, 0),
            ("d", 1, 97),
            ("whole", 0, 0),
        ]
        after = lake_files(tmp_path)
        assert {name: after[name] for name in before} == before
        grown, whole = lake.codes("d"), lake.codes("whole")
        assert grown.k == whole.k
        found, expected = grown.rows(slice(None)), whole.rows(slice(None))
        np.testing.assert_array_equal(found.l0, expected.l0)
        np.testing.assert_array_equal(found.indices, expected.indices)
        np.testing.assert_array_equal(found.values, expected.values)

    def test_a_layer_that_was_not_extracted_again(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE))
        add_activations(lake, "d", x[:203])
        add_activations(lake, "d", x[203:], layer="layer_4", part=1)
        results = encode(lake, "s", k=4, force=True, quiet=True)
        assert [(result.state, result.encoded_rows) for result in results] == [("done", 203), ("left out", 0)]
        assert "part 1 of dataset 'd', 97 rows, has no activations at data/d/parts/1/m/layer_3" in results[1].reason
        assert np.isnan(lake.codes("d").dense(holes="nan")[203:]).all()


class TestAgainstSAELens:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize(
        ("architecture", "options"),
        [
            ("standard", {}),
            ("jumprelu", {"normalize_activations": "layer_norm"}),
            ("gated", {"apply_b_dec_to_input": False}),
            ("topk", {}),
            ("topk", {"rescale_acts_by_decoder_norm": True}),
        ],
    )
    @pytest.mark.parametrize("k", [5, 12])
    def test_codes_are_saelens_encode_and_topk(
        self, lake: Lake, tmp_path: Path, x: np.ndarray, architecture: str, options: dict, dtype: str, k: int
    ) -> None:
        pytest.importorskip("sae_lens", reason="sae-lens is absent: codes have no oracle")
        from tests.saes.conftest import make_sae, oracle

        sae = make_sae(architecture, **options)
        sae.save_model(tmp_path / "sae")
        write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
        rows = add_activations(lake, "d", x, dtype=dtype)
        dense, _ = oracle(sae, rows)

        result = encode(lake, "s", k=k, force=True, quiet=True)[0]
        assert (result.rows, result.encoded_rows) == (300, 300)
        slots = min(k, 7) if architecture == "topk" else k  # the SAE's own K is 7
        codes = lake.codes("d").rows(slice(None))
        indices, values = top_k(dense, slots)
        np.testing.assert_array_equal(codes.l0, np.count_nonzero(dense, axis=1))
        assert codes.indices.shape == (300, slots)
        assert codes.indices.dtype == np.uint16
        np.testing.assert_allclose(codes.values, values.astype(np.float32), rtol=2e-3)
        # Products of another order of summing may round a value to the neighbour, and so swap a tie's two units.
        same = np.isclose(codes.values, values.astype(np.float32), rtol=0, atol=0).all(axis=1)
        assert same.mean() > 0.9
        np.testing.assert_array_equal(codes.indices[same], indices[same])
        np.testing.assert_array_equal(np.sort(codes.indices, axis=1), np.sort(indices, axis=1))

    def test_all_active_units_are_kept_by_two_passes(self, lake: Lake, tmp_path: Path, x: np.ndarray) -> None:
        pytest.importorskip("sae_lens", reason="sae-lens is absent: codes have no oracle")
        from tests.saes.conftest import make_sae, oracle

        sae = make_sae("jumprelu")
        sae.save_model(tmp_path / "sae")
        write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
        rows = add_activations(lake, "d", x)
        dense, _ = oracle(sae, rows)
        lines: list[str] = []
        encode(lake, "s", force=True, quiet=True, say=lines.append)
        codes = lake.codes("d")
        assert codes.k == np.count_nonzero(dense, axis=1).max()
        np.testing.assert_allclose(codes.dense(), dense, rtol=1e-3, atol=1e-6)
        assert "count the active units" in lines[0]
        assert f"k {codes.k}" in lines[1]
        assert encode(lake, "s", quiet=True)[0].encoded_rows == 0
        with pytest.raises(ConflictError, match="k"):
            encode(lake, "s", k=3, quiet=True)


def test_slots_are_ordered_and_ties_go_to_the_smaller_unit(lake: Lake) -> None:
    sae = mirror_sae(4)
    write_sae(lake.storage, "s", sae)
    x = add_activations(lake, "d", np.array([[2, -2, 2, 0.5], [0, 0, 0, 0], [-1, 3, -1, -1], [1, 1, 1, 1]], np.float32))
    encode(lake, "s", k=3, quiet=True, force=True)
    codes = lake.codes("d").rows(slice(None))
    np.testing.assert_array_equal(codes.indices, [[0, 2, 5], [0, 0, 0], [1, 4, 6], [0, 1, 2]])
    np.testing.assert_array_equal(codes.values, [[2, 2, 2], [0, 0, 0], [3, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(codes.l0, [4, 0, 4, 4])
    assert "3 rows have more than 3 active units" in next(s.note for s in lake.status() if s.kind == "codes")
    assert (np.count_nonzero(x, axis=1) == codes.l0).all()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 1e-6)])
def test_value_dtypes(lake: Lake, x: np.ndarray, dtype: str, tolerance: float) -> None:
    write_sae(lake.storage, "s", mirror_sae(D_IN))
    add_activations(lake, "d", x)
    encode(lake, "s", dtype=dtype, quiet=True)
    codes = lake.codes("d")
    dense = codes.dense()
    np.testing.assert_allclose(dense[:, :D_IN] - dense[:, D_IN:], x, rtol=tolerance)
    stored = codes.group.read("values")
    assert stored.dtype == {"float16": np.float16, "bfloat16": np.uint16, "float32": np.float32}[dtype]
    with pytest.raises(ConflictError, match="dtype"):
        encode(lake, "s", dtype="float32" if dtype == "float16" else "float16", quiet=True)


def test_a_value_beyond_float16_is_an_error_that_names_the_rows(lake: Lake, x: np.ndarray) -> None:
    x[137] *= 40_000
    write_sae(lake.storage, "s", mirror_sae(D_IN))
    add_activations(lake, "d", x)
    with pytest.raises(
        InputError, match=r"rows 0 to 299 of data/d/m/layer_3/.*does not fit float16.*float32"
    ) as raised:
        encode(lake, "s", quiet=True)
    assert "\n" not in str(raised.value)
    assert not lake.codes("d").group.written().any()


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
@pytest.mark.parametrize("n", [1, 17, 4097, 5000])
def test_blocks_and_streaming_do_not_change_a_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, n: int
) -> None:
    rows = np.random.default_rng(n).normal(size=(n, 32)).astype(np.float32)
    d_sae = 2500  # not a whole number of tiles
    sae = random_sae(architecture, d_in=32, d_sae=d_sae, **({"k": 9} if architecture == "topk" else {}))
    made = []
    monkeypatch.setattr(encoder, "STREAM_BYTES", 1500 * 32 * 4)
    plan_encode = encode_plan.plan_encode

    def refuse_to_hold(*arguments: Any, **options: Any) -> Any:
        if options["held_bytes"] is not None:
            raise BudgetError("too large to hold")
        return plan_encode(*arguments, **options)

    # Blocks that end with one, two or three rows are multiplied by other instructions.
    for block, hold in ((4096, True), (333, True), (4094, True), (4096, False)):
        monkeypatch.setattr(encode_plan, "_BLOCK_ROWS", block)
        monkeypatch.setattr("saestore.encoding.groups.plan_encode", plan_encode if hold else refuse_to_hold)
        lake = Lake.create(tmp_path / f"{block}-{hold}")
        write_sae(lake.storage, "s", sae, quiet=True)
        add_activations(lake, "d", rows)
        plan = encode(lake, "s", k=8, dtype="float32", force=True, quiet=True)[0].plan
        assert plan is not None
        assert (plan.held, plan.block_rows) == (hold, min(block, n) if hold else n)
        made.append(lake_files(tmp_path / f"{block}-{hold}"))
    for other in made[1:]:
        assert made[0].keys() == other.keys()
        assert [key for key, content in made[0].items() if content != other[key]] == []


@pytest.mark.parametrize(
    ("shard_rows", "chunk_rows", "cut"), [(64, 16, (64, 16)), (100, 100, (64, 64)), (8192, 4096, (300, 300))]
)
def test_grids_give_equal_codes(
    lake: Lake,
    x: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    shard_rows: int,
    chunk_rows: int,
    cut: tuple[int, int],
) -> None:
    write_sae(lake.storage, "s", random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6))
    add_activations(lake, "d", x, shard_rows=64)
    monkeypatch.setattr(encode_plan, "_SHARD_ROWS", shard_rows)
    monkeypatch.setattr(encode_plan, "CHUNK_ROWS", chunk_rows)
    encode(lake, "s", force=True, quiet=True)
    codes = lake.codes("d")
    assert (codes.group.grid.shard_rows, codes.group.grid.chunk_rows) == cut
    weights = random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6)
    pre = np.maximum(x.astype(np.float64) @ weights.arrays["W_enc"].T + weights.arrays["b_enc"], 0)
    expected = np.where(pre >= np.sort(pre, axis=1)[:, -6:-5], pre, 0)
    np.testing.assert_allclose(codes.dense(), expected, rtol=1e-3, atol=1e-6)


def test_several_saes_and_datasets_load_each_sae_once(
    lake: Lake, x: np.ndarray, loads: list[str], small_shards: None
) -> None:
    for number in range(2):
        write_sae(lake.storage, f"s{number}", random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6, seed=number))
    for name, rows in (("a", x), ("b", x[:40]), ("c", x[40:])):
        add_activations(lake, name, rows)
    results = encode(lake, ["s0", "s1"], force=True, quiet=True)
    assert loads == ["s0", "s1"]
    assert [(r.sae, r.dataset, r.encoded_rows) for r in results] == [
        (sae, name, n) for sae in ("s0", "s1") for name, n in (("a", 300), ("b", 40), ("c", 260))
    ]
    whole = dense_of(lake, "a", sae="s1")
    np.testing.assert_array_equal(whole[:40], dense_of(lake, "b", sae="s1"))
    np.testing.assert_array_equal(whole[40:], dense_of(lake, "c", sae="s1"))
    assert (dense_of(lake, "a", sae="s0") != whole).any()
    again = encode(lake, ["s0", "s1"], quiet=True)
    assert loads == ["s0", "s1"]
    assert all(result.encoded_rows == 0 and result.plan is None for result in again)


def test_nothing_stays_loaded_after_the_call(lake: Lake, x: np.ndarray, loads: list[str]) -> None:
    from saestore.engine import resources

    write_sae(lake.storage, "s", mirror_sae(D_IN))
    add_activations(lake, "d", x)
    encode(lake, "s", quiet=True)
    assert loads == ["s"]
    assert not [key for key in resources._loaded if key[0] == encode_task.ENCODER]


def test_pooled_rows_are_encoded_when_asked(lake: Lake, x: np.ndarray) -> None:
    write_sae(lake.storage, "s", mirror_sae(D_IN))
    add_activations(lake, "d", x[:20], sample_type="mean")
    with pytest.raises(MissingError, match="no stored activations fit SAE s"):
        encode(lake, "s", quiet=True)
    assert encode(lake, "s", sample_type="mean", quiet=True)[0].key.sample_type == "mean"
    assert len(lake.codes("d")) == 20


class TestQuality:
    def test_a_perfect_sae_explains_all_and_its_numbers_are_stored(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        quality = encode(lake, "s", quiet=True)[0].quality
        plain = x[np.arange(300) % 7 != 0]  # without special tokens
        assert quality["rows"] == len(plain)
        assert quality["explained_variance"] == pytest.approx(1, abs=1e-6)
        assert quality["l0"] == pytest.approx(np.count_nonzero(plain, axis=1).mean())
        assert quality["dead_units"] == 0
        assert lake.codes("d").quality == quality

    def test_explained_variance_is_that_of_numpy(self, lake: Lake, x: np.ndarray) -> None:
        sae = random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6)
        write_sae(lake.storage, "s", sae)
        add_activations(lake, "d", x)
        quality = encode(lake, "s", quiet=True, force=True)[0].quality
        plain = x[np.arange(300) % 7 != 0].astype(np.float64)
        pre = np.maximum(plain @ sae.arrays["W_enc"].T + sae.arrays["b_enc"], 0)
        codes = np.where(pre >= np.sort(pre, axis=1)[:, -6:-5], pre, 0)
        residual = ((plain - codes @ sae.arrays["W_dec"]) ** 2).sum()
        expected = 1 - residual / ((plain - plain.mean(axis=0)) ** 2).sum()
        assert quality["explained_variance"] == pytest.approx(expected, rel=1e-4)
        assert quality["dead_units"] == int((codes == 0).all(axis=0).sum())

    def test_below_zero_is_refused_with_numbers_and_nothing_is_written(self, lake: Lake, x: np.ndarray) -> None:
        wrong = mirror_sae(D_IN)
        wrong.arrays["W_dec"] = -2 * wrong.arrays["W_enc"]
        write_sae(lake.storage, "s", wrong)
        add_activations(lake, "a", x)
        add_activations(lake, "b", x[:100])
        with pytest.raises(QualityError, match=r"explained variance -\d+\.\d+, L0 16\.0 over 257 rows.*--force"):
            encode(lake, "s", quiet=True)
        assert list(lake.code_keys()) == []
        assert encode(lake, "s", force=True, quiet=True)[0].quality["explained_variance"] < 0
        assert len(list(lake.code_keys())) == 2

    def test_one_row_has_no_variance_to_explain(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x[:1])
        assert encode(lake, "s", quiet=True)[0].quality["explained_variance"] is None
        assert len(lake.codes("d")) == 1


class TestWrongInput:
    def test_width(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN + 1))
        add_activations(lake, "d", x)
        for layers in (None, [3]):
            with pytest.raises(InputError, match=r"width 17.*has width 16"):
                encode(lake, "s", layers=layers, quiet=True)

    def test_width_of_another_model_is_passed_over(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        add_activations(lake, "d", np.ones((300, 5), np.float32), model="other")
        assert [result.key.model for result in encode(lake, "s", quiet=True)] == ["m"]

    def test_two_models_of_one_width(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "silent", mirror_sae(D_IN))
        write_sae(lake.storage, "named", mirror_sae(D_IN, model_name="hub/Other"))
        write_sae(lake.storage, "strange", mirror_sae(D_IN, model_name="third"))
        add_activations(lake, "d", x)
        add_activations(lake, "d", x + 1, model="other")
        for sae in ("silent", "strange"):
            with pytest.raises(InputError, match=r"models m, other.*--model"):
                encode(lake, sae, quiet=True)
        assert [result.key.model for result in encode(lake, "named", quiet=True)] == ["other"]
        assert [result.key.model for result in encode(lake, "silent", model="m", quiet=True)] == ["m"]

    def test_an_sae_of_another_model_is_told(self, lake: Lake, x: np.ndarray) -> None:
        add_activations(lake, "d", x)
        for name, model_name in {"same": "hub/M", "another": "n"}.items():
            lines: list[str] = []
            write_sae(lake.storage, name, mirror_sae(D_IN, model_name=model_name))
            encode(lake, name, quiet=True, say=lines.append)
            assert any("trained on n;" in line for line in lines) == (name == "another")

    def test_other_hook(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x, layer="layer_4", hook="blocks.4.hook_resid_post")
        with pytest.raises(MissingError, match=f"trained on {HOOK}"):
            encode(lake, "s", quiet=True)
        with pytest.raises(InputError, match=r"blocks\.3.*blocks\.4.*--force"):
            encode(lake, "s", layers=[4], quiet=True)
        assert encode(lake, "s", layers=[4], force=True, quiet=True)[0].key.layer == "layer_4"

    def test_what_is_named_and_not_there_is_not_left_out_silently(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "a", x)
        add_activations(lake, "b", x, layer="layer_4", hook="blocks.4.hook_resid_post")
        asked: list[tuple[dict[str, Any], str]] = [
            ({"datasets": ["a", "b"]}, "dataset 'b'"),
            ({"datasets": ["a", "c"]}, "no dataset 'c'"),
            ({"layers": [3, 9]}, "layer 'layer_9'"),
            ({"sample_type": ["token", "mean"]}, "sample type 'mean'"),
        ]
        for options, reason in asked:
            done, left_out = encode(lake, "s", quiet=True, **options)
            assert (done.state, done.dataset, left_out.state) == ("done", "a", "left out")
            assert reason in left_out.reason
        with pytest.raises(MissingError, match="no stored activations fit SAE s"):
            encode(lake, "s", datasets=["b"], quiet=True)
        with pytest.raises(MissingError, match="no SAE 't'"):
            encode(lake, "t", quiet=True)

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_rows_that_are_not_finite(self, lake: Lake, x: np.ndarray, value: float) -> None:
        x[250, 3] = value
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        with pytest.raises(InputError, match=r"data/d/m/layer_3/activations/token holds 1 values that are not finite"):
            encode(lake, "s", quiet=True)
        assert list(lake.code_keys()) == []

    def test_activations_with_a_hole(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x, shard_rows=64, holes=(2,))
        with pytest.raises(HoleError, match="rows 128 to 191"):
            encode(lake, "s", quiet=True)

    def test_an_sae_that_was_imported_in_part(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        (Path(lake.storage.url) / "saes/s/ledger/c.0.0.0").unlink()
        with pytest.raises(HoleError, match="saes/s"):
            encode(lake, "s", quiet=True)

    @pytest.mark.parametrize(("options", "message"), [({"dtype": "float32"}, "dtype"), ({"k": 4}, "k: 8 is stored")])
    def test_what_was_appended_is_encoded_as_the_first_part_or_not_at_all(
        self, lake: Lake, x: np.ndarray, options: dict, message: str
    ) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        encode(lake, "s", k=8, quiet=True)
        first = lake.codes("d").dense()
        more = add_activations(lake, "d", 2 * x[:50], part=1)
        with pytest.raises(ConflictError, match=message):
            encode(lake, "s", quiet=True, **{"k": 8, **options})
        assert np.isnan(lake.codes("d").dense(slice(300, 350), holes="nan")).all()
        encode(lake, "s", k=8, quiet=True)
        dense = lake.codes("d").dense()
        np.testing.assert_array_equal(dense[:300], first)
        both = np.maximum(np.concatenate([more, -more], axis=1), 0)
        np.testing.assert_allclose(np.sort(dense[300:])[:, -8:], np.sort(both)[:, -8:], rtol=1e-3)

    def test_nothing_is_encoded_behind_a_first_part_of_poor_quality(self, lake: Lake, x: np.ndarray) -> None:
        """Readers would not find it, and other options for the first part would then not fit it."""
        halves = mirror_sae(D_IN)
        halves.arrays["W_enc"] = np.abs(halves.arrays["W_enc"])  # both units of an axis are of its positive side
        write_sae(lake.storage, "s", halves)
        add_activations(lake, "d", -np.abs(x) - 1)
        add_activations(lake, "d", np.abs(x[:50]), part=1)
        with pytest.raises(QualityError, match=r"^data/d/m/layer_3/activations/token: explained variance -"):
            encode(lake, "s", quiet=True)
        assert not lake.storage.names("data/d/parts/1/m/layer_3/codes")
        results = encode(lake, "s", dtype="float32", force=True, quiet=True)
        assert [(result.state, result.rows) for result in results] == [("done", 300), ("done", 50)]
        assert lake.codes("d").dense().shape == (350, 2 * D_IN)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"k": 33}, "k is 33; it must be 1 to d_sae, which is 32"),
            ({"k": 0}, "k is 0"),
            ({"device": "cuda:99"}, "device 'cuda:99' cannot be used"),
            ({"device": "gpu"}, "device 'gpu' cannot be used"),
            ({"dtype": "int8"}, "dtype 'int8' is unknown"),
            ({"sample_type": "word"}, "sample type 'word'"),
            ({"memory": "much"}, "memory 'much'"),
        ],
    )
    def test_options(self, lake: Lake, x: np.ndarray, options: dict, message: str) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        with pytest.raises(InputError, match=message) as raised:
            encode(lake, "s", quiet=True, **options)
        assert "\n" not in str(raised.value)


class TestPlan:
    def test_too_little_memory_is_refused_before_any_work(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        with pytest.raises(BudgetError, match=r"encoding data/d/.* needs .* the budget is 10\.0 MiB; .*--memory"):
            encode(lake, "s", memory="10MiB", quiet=True)
        assert list(lake.code_keys()) == []

    def test_a_dry_run_says_the_plan_and_writes_nothing(self, lake: Lake, x: np.ndarray, tmp_path: Path) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "d", x)
        before, lines = lake_files(tmp_path), []
        result = encode(lake, "s", k=4, dry_run=True, quiet=True, say=lines.append)[0]
        assert lake_files(tmp_path) == before
        assert result.plan is not None
        assert (result.encoded_rows, result.plan.rows) == (0, 300)
        assert len(lines) == 1
        assert "300 rows to encode with s (k 4)" in lines[0]
        assert "weights in memory" in lines[0]
        encode(lake, "s", dry_run=True, quiet=True, say=lines.append)
        assert "count the active units" in lines[1]
        assert lake_files(tmp_path) == before

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_planned_bytes_are_those_that_are_written(self, lake: Lake, dtype: str) -> None:
        rows = np.random.default_rng(1).normal(size=(20_000, 32)).astype(np.float32)
        write_sae(lake.storage, "s", random_sae("topk", d_in=32, d_sae=4096, k=32))
        add_activations(lake, "d", rows)
        plan = encode(lake, "s", dtype=dtype, force=True, quiet=True)[0].plan
        assert plan is not None
        written = next(group.stored_bytes for group in lake.status() if group.kind == "codes")
        assert 0.8 < plan.write_bytes / written < 1.25

    def test_a_wide_sae_without_k_is_planned_by_what_the_first_pass_needs(self) -> None:
        from saestore.saes.config import SAEConfig

        config = SAEConfig(architecture="jumprelu", d_in=64, d_sae=131_072)
        assert planned(config, k=None, rows=10**6).peak_bytes < 1 << 30
        for k in (1, 64, 3000):
            grid = encode_plan.plan_grid(10**6, k, config, 2)
            assert grid.shard_rows % grid.chunk_rows == 0
            assert grid.shard_rows * k * 4 <= 128 << 20
            assert planned(config, k=k, rows=10**6).peak_bytes < 2 << 30

    def test_held_for_all_datasets_or_for_none(
        self, lake: Lake, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A small dataset that could hold the weights must not make a large one load them a second time."""
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "small", x[:10])
        add_activations(lake, "large", x)
        real = encode_plan.plan_encode

        def tight(source: Any, *arguments: Any, **options: Any) -> Any:
            if options["held_bytes"] is not None and source.key.dataset == "large":
                raise BudgetError("too large to hold")
            return real(source, *arguments, **options)

        monkeypatch.setattr("saestore.encoding.groups.plan_encode", tight)
        results = encode(lake, "s", k=4, force=True, quiet=True)
        assert [result.plan is not None and result.plan.held for result in results] == [False, False]


def test_a_resumed_run_encodes_the_missing_shards_only(
    lake: Lake, x: np.ndarray, small_shards: None, tmp_path: Path
) -> None:
    write_sae(lake.storage, "s", random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE))
    add_activations(lake, "d", x)
    encode(lake, "s", force=True, quiet=True)
    before = lake_files(tmp_path)
    ledger = Path(lake.storage.url) / "data/d/m/layer_3/codes/s/token/ledger"
    assert len(list(ledger.glob("c.*"))) == 5
    for shard in (1, 4):
        (ledger / f"c.{shard}.0.0").unlink()
    assert next(s for s in lake.status() if s.kind == "codes").written_rows == 300 - 64 - 44
    lines: list[str] = []
    result = encode(lake, "s", quiet=True, say=lines.append)[0]  # without force: the quality was accepted
    assert result.encoded_rows == 64 + 44
    assert "108 rows to encode with s" in lines[0]
    assert not any("count" in line for line in lines)
    assert lake_files(tmp_path) == before


@pytest.mark.parametrize(("specials", "prepend_bos", "told"), [(False, True, 1), (True, True, 0), (False, False, 0)])
def test_a_missing_first_token_is_told(tmp_path: Path, specials: bool, prepend_bos: bool, told: int) -> None:
    lake, said = Lake.create(tmp_path), []
    add_activations(lake, "d", np.random.default_rng(0).normal(size=(60, 8)).astype("float32"), specials=specials)
    write_sae(lake.storage, "s", mirror_sae(8, hook_name=HOOK, prepend_bos=prepend_bos), quiet=True)
    encode(lake, "s", quiet=True, say=said.append)
    assert sum("added in front" in line for line in said) == told


@pytest.mark.parametrize("absent", ["torch", "numba"])
def test_an_absent_library_is_named_with_the_extra_that_brings_it(tmp_path: Path, absent: str) -> None:
    lake = Lake.create(tmp_path)
    add_activations(lake, "d", np.random.default_rng(0).normal(size=(60, 8)).astype("float32"))
    write_sae(lake.storage, "s", mirror_sae(8, hook_name=HOOK), quiet=True)
    program = (
        f"import sys; sys.modules[{absent!r}] = None\n"
        "from saestore.cli import main\n"
        f"sys.exit(main(['encode', {str(tmp_path)!r}, '--saes', 's']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: encode needs {absent}; install it with: pip install 'saestore[torch]'\n"


def test_activations_without_a_hook_name_are_held_against_their_layer(tmp_path: Path) -> None:
    lake, x = Lake.create(tmp_path), np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    add_activations(lake, "d", x, layer="layer_3", hook=None)
    add_activations(lake, "d", x, layer="layer_4", hook=None)
    write_sae(lake.storage, "s", mirror_sae(8, hook_name="blocks.4.hook_resid_post"), quiet=True)
    (result,) = encode(lake, "s", quiet=True)
    assert result.key.layer == "layer_4"
    with pytest.raises(InputError, match="holds layer_3"):
        encode(lake, "s", layers=[3], quiet=True)
    assert encode(lake, "s", layers=[3], force=True, quiet=True)[0].encoded_rows == 60
