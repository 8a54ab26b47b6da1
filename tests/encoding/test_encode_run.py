"""Many SAEs over many activations in one call: what is read and loaded, what is left out, and what is kept of it."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")

from saestore.activations import Activations  # noqa: E402
from saestore.encoding import encoder  # noqa: E402
from saestore.encoding import plan as encode_plan  # noqa: E402
from saestore.encoding.writer import encode  # noqa: E402
from saestore.errors import BudgetError, InputError, IntegrityError, MissingError, QualityError  # noqa: E402
from saestore.lake import Lake  # noqa: E402
from saestore.saes.lake import write_sae  # noqa: E402
from tests.encoding.conftest import D_IN, D_SAE  # noqa: E402
from tests.small_lake import HOOK, add_activations, lake_files, mirror_sae, random_sae  # noqa: E402


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, int, int]]:
    """The blocks of activations that are read, and from -1 the numbers of rows of the checks."""
    seen: Counter[tuple[str, int, int]] = Counter()
    real = Activations.read

    def counted(self: Activations, start: int = 0, stop: int | None = None) -> np.ndarray:
        seen[(self.key.dataset, start, self.n_rows if stop is None else stop)] += 1
        return real(self, start, stop)

    def counted_take(self: Activations, rows: np.ndarray) -> np.ndarray:
        seen[(self.key.dataset, -1, len(rows))] += 1
        return real_take(self, rows)

    real_take = Activations.take
    monkeypatch.setattr(Activations, "read", counted)
    monkeypatch.setattr(Activations, "take", counted_take)
    return seen


class TestTogether:
    def test_each_block_is_read_once_for_all_saes_of_its_layer(
        self, lake: Lake, x: np.ndarray, loads: list[str], reads: Counter[Any], small_shards: None
    ) -> None:
        for number, architecture in enumerate(("topk", "jumprelu", "standard")):
            config = {"k": 6} if architecture == "topk" else {}
            write_sae(
                lake.storage, f"s{number}", random_sae(architecture, d_in=D_IN, d_sae=D_SAE, seed=number, **config)
            )
        for dataset, rows in (("a", x), ("b", x[:100])):
            add_activations(lake, dataset, rows)
        results = encode(lake, ["s0", "s1", "s2"], k=6, force=True, quiet=True)
        assert sorted(loads) == ["s0", "s1", "s2"]
        blocks = [(start, min(start + 64, 300)) for start in range(0, 300, 64)]
        plain = {"a": 300 - 43, "b": 100 - 15}  # every seventh row is a special token
        assert reads == Counter(
            [("a", *block) for block in blocks]
            + [("b", start, min(stop, 100)) for start, stop in blocks[:2]]
            + [(dataset, -1, rows) for dataset, rows in plain.items()]
        )
        assert [(r.sae, r.dataset, r.encoded_rows) for r in results] == [
            (f"s{number}", dataset, rows) for number in range(3) for dataset, rows in (("a", 300), ("b", 100))
        ]

    def test_together_and_alone_give_the_same_bytes(
        self, tmp_path: Path, x: np.ndarray, small_shards: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encode_plan, "_SHARD_FLOP", 2.0 * D_IN * D_SAE * 64)  # 32 rows of twice the width
        made = []
        for folder, calls in (("together", [["narrow", "wide"]]), ("alone", [["wide"], ["narrow"]])):
            lake = Lake.create(tmp_path / folder)
            for seed, (name, d_sae) in enumerate({"narrow": D_SAE, "wide": 2 * D_SAE}.items()):
                write_sae(lake.storage, name, random_sae("topk", d_in=D_IN, d_sae=d_sae, k=6, seed=seed))
            add_activations(lake, "a", x)
            passes = [encode(lake, names, force=True, quiet=True)[0].plan for names in calls]
            assert [plan and len(plan.parts) for plan in passes] == [len(names) for names in calls]
            grids = [lake.codes("a", sae=name).group.grid for name in ("narrow", "wide")]
            assert [grid.shard_rows for grid in grids] == [64, 32], "one SAE's shards lie within the other's"
            made.append(lake_files(tmp_path / folder))
        together, alone = made
        assert together.keys() == alone.keys()
        assert [name for name, content in together.items() if content != alone[name]] == []

    def test_shards_of_different_sizes_are_written_in_one_pass(
        self, lake: Lake, x: np.ndarray, reads: Counter[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_sae(lake.storage, "narrow", random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6))
        write_sae(lake.storage, "wide", random_sae("topk", d_in=D_IN, d_sae=8 * D_SAE, k=6))
        add_activations(lake, "a", x)
        monkeypatch.setattr(encode_plan, "CHUNK_ROWS", 32)
        monkeypatch.setattr(encode_plan, "_SHARD_ROWS", 128)
        monkeypatch.setattr(encode_plan, "_SHARD_FLOP", 2.0 * D_IN * 8 * D_SAE * 40)
        encode(lake, ["narrow", "wide"], force=True, quiet=True)
        grids = [lake.codes("a", sae=name).group.grid.shard_rows for name in ("narrow", "wide")]
        assert grids == [128, 32]
        assert sum(stop - start for _, start, stop in reads if start >= 0) == 300
        for name, width in (("narrow", D_SAE), ("wide", 8 * D_SAE)):
            weights = random_sae("topk", d_in=D_IN, d_sae=width, k=6)
            pre = np.maximum(x.astype(np.float64) @ weights.arrays["W_enc"].T + weights.arrays["b_enc"], 0)
            expected = np.where(pre >= np.sort(pre, axis=1)[:, -6:-5], pre, 0)
            np.testing.assert_allclose(lake.codes("a", sae=name).dense(), expected, rtol=1e-3, atol=1e-6)

    def test_what_does_not_fit_together_is_loaded_in_turn(
        self, lake: Lake, x: np.ndarray, loads: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for number in range(3):
            write_sae(lake.storage, f"s{number}", random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6, seed=number))
        add_activations(lake, "a", x)
        add_activations(lake, "b", x)
        real = encode_plan.plan_encode

        def tight(*arguments: Any, **options: Any) -> Any:
            if options["held_bytes"] is not None and options["held_bytes"] > 2 * 4 * D_IN * D_SAE:
                raise BudgetError("two fit, three do not")
            return real(*arguments, **options)

        monkeypatch.setattr("saestore.encoding.groups.plan_encode", tight)
        results = encode(lake, ["s0", "s1", "s2"], force=True, quiet=True)
        assert loads == ["s0", "s1", "s2"]
        together = [[part.sae for part in r.plan.parts] for r in results if r.plan is not None]
        assert together == [["s0", "s1"]] * 4 + [["s2"]] * 2


class TestLeftOut:
    def test_what_cannot_be_done_is_listed_and_the_rest_is_done(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "good", mirror_sae(D_IN))
        wrong = mirror_sae(D_IN)
        wrong.arrays["W_dec"] = -2 * wrong.arrays["W_enc"]
        write_sae(lake.storage, "bad", wrong)
        add_activations(lake, "a", x)
        results = encode(lake, ["bad", "good", "none"], datasets=["a", "b"], sample_type=["token", "mean"], quiet=True)
        done = [r for r in results if r.state == "done"]
        assert [(r.sae, r.dataset, r.encoded_rows) for r in done] == [("good", "a", 300)]
        left_out = {(r.sae, r.dataset, r.sample_type): r.reason for r in results if r.state == "left out"}
        assert "explained variance -" in left_out.pop(("bad", "a", "token"))
        assert "no SAE 'none'" in left_out.pop(("none", "", ""))
        assert "no dataset 'b'" in left_out[("good", "b", "token")]
        assert "sample type 'mean'" in left_out[("good", "a", "mean")]
        assert set(left_out) == {
            (sae, *pair) for sae in ("good", "bad") for pair in (("b", "token"), ("b", "mean"), ("a", "mean"))
        }
        assert [key.sae for key in lake.code_keys()] == ["good"]

    def test_a_failure_while_encoding_is_that_saes_alone(self, lake: Lake, x: np.ndarray, small_shards: None) -> None:
        write_sae(lake.storage, "good", mirror_sae(D_IN))
        large = random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6)
        large.arrays["b_enc"][:] = 0
        large.arrays["b_enc"][3] = 1e6  # does not fit float16
        write_sae(lake.storage, "large", large)
        add_activations(lake, "a", x)
        results = {r.sae: r for r in encode(lake, ["large", "good"], force=True, quiet=True)}
        assert results["large"].state == "left out"
        assert "float16" in results["large"].reason
        assert results["good"].encoded_rows == 300
        np.testing.assert_allclose(
            lake.codes("a", sae="good").dense()[:, :D_IN], np.maximum(x, 0), rtol=1e-3, atol=1e-6
        )

    def test_if_nothing_can_be_done_the_first_reason_is_raised(self, lake: Lake, x: np.ndarray) -> None:
        add_activations(lake, "a", x)
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        with pytest.raises(MissingError, match="no SAE 'none'"):
            encode(lake, ["none"], quiet=True)
        with pytest.raises(InputError, match="k is 99"):
            encode(lake, ["s"], k=99, quiet=True)
        wrong = mirror_sae(D_IN)
        wrong.arrays["W_dec"] = -2 * wrong.arrays["W_enc"]
        write_sae(lake.storage, "bad", wrong)
        with pytest.raises(QualityError):
            encode(lake, ["bad"], quiet=True)

    def test_layers_named_for_several_saes_go_to_each_its_own(self, lake: Lake, x: np.ndarray) -> None:
        hook = HOOK.replace("3", "5")
        write_sae(lake.storage, "three", mirror_sae(D_IN))
        write_sae(lake.storage, "five", mirror_sae(D_IN, hook_name=hook))
        add_activations(lake, "a", x)
        add_activations(lake, "a", x, layer="layer_5", hook=hook)
        results = encode(lake, ["three", "five"], layers=[3, 5], quiet=True)
        assert [(r.sae, r.layer, r.state) for r in results] == [
            ("three", "layer_3", "done"),
            ("five", "layer_5", "done"),
        ]


class TestRecord:
    def test_plan_and_outcome_are_kept_as_json(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "a", x)
        encode(lake, "s", datasets=["a", "b"], memory="2GiB", quiet=True)
        (record,) = lake.runs()
        assert json.loads(json.dumps(record)) == record
        assert (record["verb"], record["state"]) == ("encode", "done except")
        assert record["parameters"]["memory"] == "2GiB"
        (step,) = record["plan"]
        assert step["activations"] == "data/a/m/layer_3/activations/token"
        assert step["saes"][0] == {"sae": "s", "rows": 300, "k": 16}  # by when the run ended k was known
        assert {"peak_bytes", "read_bytes", "write_bytes", "flop", "seconds", "weight_passes"} <= set(step)
        done, absent = record["outcome"]
        assert (done["codes"], done["encoded_rows"], done["state"]) == (
            "data/a/m/layer_3/codes/s/token",
            300,
            "done",
        )
        assert absent["state"] == "left out"
        assert "no dataset 'b'" in absent["reason"]

    def test_a_dry_run_and_a_run_without_work_leave_none(self, lake: Lake, x: np.ndarray) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "a", x)
        assert encode(lake, "s", dry_run=True, quiet=True)[0].state == "planned"
        assert lake.runs() == []
        encode(lake, "s", quiet=True)
        encode(lake, "s", quiet=True)
        assert [record["state"] for record in lake.runs()] == ["done"]

    def test_a_stopped_run_says_what_it_did_not_finish(
        self, lake: Lake, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "a", x)

        def stop(*arguments: Any, **options: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("saestore.encoding.run.run_tasks", stop)
        with pytest.raises(KeyboardInterrupt):
            encode(lake, "s", quiet=True)
        (record,) = lake.runs()
        assert record["state"] == "stopped"
        assert [(pair["state"], pair["encoded_rows"]) for pair in record["outcome"]] == [("not finished", 0)]


class TestDecode:
    @pytest.mark.parametrize("normalization", ["none", "layer_norm", "constant_norm_rescale"])
    def test_stored_codes_decode_as_saelens_decodes_its_own(
        self, lake: Lake, tmp_path: Path, x: np.ndarray, normalization: str
    ) -> None:
        pytest.importorskip("sae_lens", reason="sae-lens is absent: reconstructions have no oracle")
        from saestore.saes import open_sae
        from tests.saes.conftest import make_sae, oracle

        sae = make_sae("topk", normalize_activations=normalization, rescale_acts_by_decoder_norm=True)
        sae.save_model(tmp_path / "sae")
        write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
        add_activations(lake, "a", x)
        encode(lake, "s", dtype="float32", force=True, quiet=True)
        codes = lake.codes("a")
        expected = oracle(sae, x)[1]
        np.testing.assert_allclose(codes.decode(), expected, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(codes.decode([7, 3]), expected[[7, 3]], rtol=1e-4, atol=1e-4)
        assert codes.decode(slice(4, 4)).shape == (0, D_IN)
        with pytest.raises(BudgetError, match="fewer rows"):
            codes.decode(memory="1KiB")

    def test_only_decoder_rows_that_occur_are_read(self, lake: Lake, x: np.ndarray, monkeypatch: Any) -> None:
        from saestore.rows import RowGroup

        write_sae(lake.storage, "s", mirror_sae(D_IN))
        add_activations(lake, "a", x)
        encode(lake, "s", quiet=True)
        asked: list[int] = []
        real = RowGroup.take

        def noted(self: RowGroup, name: str, rows: np.ndarray) -> np.ndarray:
            if name == "W_dec":
                asked.extend(rows.tolist())
            return real(self, name, rows)

        monkeypatch.setattr(RowGroup, "take", noted)
        codes = lake.codes("a")
        np.testing.assert_allclose(codes.decode([0]), x[:1], rtol=1e-3, atol=1e-2)
        assert sorted(asked) == sorted(np.flatnonzero(codes.dense([0])[0]).tolist())


def test_a_transcoder_is_measured_against_what_it_predicts(lake: Lake, x: np.ndarray) -> None:
    out = "blocks.3.hook_mlp_out"
    transcoder = mirror_sae(D_IN)
    arrays = {**transcoder.arrays, "W_dec": (2 * transcoder.arrays["W_dec"]).astype(np.float32)}
    config = {"hook_name": HOOK, "hook_name_out": out, "d_out": D_IN, "apply_b_dec_to_input": False}
    sae = random_sae("transcoder", d_in=D_IN, d_sae=2 * D_IN, **config)
    sae.arrays |= arrays
    write_sae(lake.storage, "t", sae)
    add_activations(lake, "a", x)
    lines: list[str] = []
    unknown = encode(lake, "t", quiet=True, say=lines.append)[0]
    assert unknown.quality["explained_variance"] is None
    assert any("predicts blocks.3.hook_mlp_out; extract" in line for line in lines)
    add_activations(lake, "b", x)
    add_activations(lake, "b", 2 * x, layer="layer_3.mlp_out", hook=out)
    known = encode(lake, "t", datasets=["b"], quiet=True)[0]
    assert known.quality["explained_variance"] == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(lake.codes("b", sae="t").decode(), 2 * x, rtol=2e-3, atol=1e-2)


class TestThroughSAELens:
    """Architectures that SAELens itself encodes, from lake to lake."""

    @pytest.mark.parametrize("k", [8, None])
    @pytest.mark.parametrize("architecture", ["matching_pursuit", "temporal"])
    def test_shards_may_end_within_a_sample(
        self, lake: Lake, tmp_path: Path, x: np.ndarray, small_shards: None, architecture: str, k: int | None
    ) -> None:
        pytest.importorskip("sae_lens", reason="sae-lens is absent: it encodes these SAEs")
        from saestore.saes import open_sae
        from tests.saes.test_dense import TEMPORAL, dense_sae

        options = TEMPORAL if architecture == "temporal" else {"residual_threshold": 1.0}
        sae = dense_sae(architecture, **options)
        sae.save_model(tmp_path / "sae")
        write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
        add_activations(lake, "a", x)
        offsets = lake.positions("a").offsets
        assert any(row not in offsets for row in range(64, 300, 64)), "some shard ends within a sample"
        lines: list[str] = []
        (result,) = encode(lake, "s", k=k, dtype="float32", force=True, quiet=True, say=lines.append)
        assert result.encoded_rows == 300
        assert "densely by SAELens" in lines[0]
        with torch.no_grad():
            rows = torch.from_numpy(x)
            samples = [rows[start:stop] for start, stop in itertools.pairwise(offsets) if stop > start]
            if architecture == "temporal":
                dense = torch.cat([sae.encode(sample[None])[0] for sample in samples]).numpy()
            else:
                dense = sae.encode(rows).numpy()
        expected = dense if k is None else np.where(dense >= -np.sort(-dense, axis=1)[:, k - 1 : k], dense, 0)
        codes = lake.codes("a")
        np.testing.assert_allclose(codes.dense(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(codes.rows(slice(None)).l0, np.count_nonzero(dense, axis=1))

    def test_a_temporal_sae_is_not_given_pooled_rows(self, lake: Lake, tmp_path: Path, x: np.ndarray) -> None:
        pytest.importorskip("sae_lens", reason="sae-lens is absent: it encodes these SAEs")
        from saestore.saes import open_sae
        from tests.saes.test_dense import TEMPORAL, dense_sae

        dense_sae("temporal", **TEMPORAL).save_model(tmp_path / "sae")
        write_sae(lake.storage, "s", open_sae(tmp_path / "sae"))
        add_activations(lake, "a", x[:40], sample_type="mean")
        with pytest.raises(InputError, match=r"temporal.*one row per sample"):
            encode(lake, "s", k=8, layers=[3], sample_type="mean", quiet=True)


class TestOneAmongSeveral:
    """What goes wrong with one SAE of a pass is that SAE's alone."""

    @pytest.fixture
    def pair(self, lake: Lake, x: np.ndarray) -> Lake:
        write_sae(lake.storage, "good", mirror_sae(D_IN))
        write_sae(lake.storage, "odd", random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE))
        add_activations(lake, "a", x)
        return lake

    def test_damaged_weights(self, pair: Lake) -> None:
        (damaged,) = (Path(pair.url) / "saes/odd/W_dec/c/0").iterdir()
        content = bytearray(damaged.read_bytes())
        content[-9] ^= 1
        damaged.write_bytes(content)
        for k in (4, None):
            results = {r.sae: r for r in encode(pair, ["odd", "good"], k=k, force=True, quiet=True)}
            assert results["good"].encoded_rows == 300
            assert results["odd"].state == "left out"
            assert "W_dec" in results["odd"].reason
            shutil.rmtree(Path(pair.url) / "data/a/m/layer_3/codes")

    def test_a_failure_while_counting(self, pair: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        real = encoder.Encoder.encode

        def fails(self: Any, x: np.ndarray, k: int, **options: Any) -> Any:
            if self.config.architecture == "jumprelu":
                raise InputError("no")
            return real(self, x, k, **options)

        monkeypatch.setattr(encoder.Encoder, "encode", fails)
        results = {r.sae: (r.state, r.encoded_rows) for r in encode(pair, ["odd", "good"], force=True, quiet=True)}
        assert results == {"good": ("done", 300), "odd": ("left out", 0)}

    def test_what_fits_together_while_counting_may_be_split_afterwards(
        self, pair: Lake, monkeypatch: pytest.MonkeyPatch, loads: list[str]
    ) -> None:
        real = encode_plan.plan_encode

        def tight(source: Any, parts: Any, *arguments: Any, **options: Any) -> Any:
            if len(parts) > 1 and parts[0].k is not None:
                raise BudgetError("the slots of both do not fit")
            return real(source, parts, *arguments, **options)

        monkeypatch.setattr("saestore.encoding.groups.plan_encode", tight)
        results = encode(pair, ["odd", "good"], force=True, quiet=True)
        assert {(r.sae, r.state, r.encoded_rows) for r in results} == {("odd", "done", 300), ("good", "done", 300)}
        assert [len(r.plan.parts) for r in results if r.plan is not None] == [1, 1]
        assert sorted(loads) == ["good", "good", "odd", "odd"], "each once for counting and once for encoding"

    def test_every_shard_is_written_once_though_one_sae_fails(
        self, pair: Lake, small_shards: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from saestore.rows import RowGroup

        written: Counter[tuple[str, int]] = Counter()
        real = RowGroup.write_shard

        def fails(self: RowGroup, shard: int, *arguments: Any, **options: Any) -> int:
            if "/codes/odd/" in self.path and shard == 3:
                raise IntegrityError("the disk has a hole there")
            written[(self.path, shard)] += 1
            return real(self, shard, *arguments, **options)

        monkeypatch.setattr(RowGroup, "write_shard", fails)
        results = {r.sae: r for r in encode(pair, ["odd", "good"], k=4, force=True, quiet=True)}
        assert set(written.values()) == {1}
        assert (results["good"].encoded_rows, results["odd"].state) == (300, "left out")
        assert results["odd"].reason == "the disk has a hole there"

    def test_holes_of_two_saes_that_differ_are_filled_with_the_bytes_of_before(
        self, pair: Lake, small_shards: None
    ) -> None:
        encode(pair, ["odd", "good"], k=4, force=True, quiet=True)
        codes = Path(pair.url) / "data/a/m/layer_3/codes"
        before = lake_files(codes)
        for sae, shard in (("odd", 0), ("odd", 4), ("good", 2), ("good", 4)):
            for array, chunk in (("indices", f"{shard}/0"), ("values", f"{shard}/0"), ("l0", str(shard))):
                (codes / sae / "token" / array / "c" / chunk).unlink()
            (codes / sae / "token/ledger" / f"c.{shard}.0.0").unlink()
        results = {r.sae: r.encoded_rows for r in encode(pair, ["odd", "good"], k=4, quiet=True)}
        assert results == {"odd": 64 + 44, "good": 64 + 44}
        assert lake_files(codes) == before


def test_a_zero_decoder_row_does_not_spoil_rows_with_empty_slots(lake: Lake, x: np.ndarray) -> None:
    from saestore.saes.decoder import decode

    sae = random_sae("topk", d_in=D_IN, d_sae=D_SAE, k=6, rescale_acts_by_decoder_norm=True)
    sae.arrays["W_dec"] = sae.arrays["W_dec"].copy()
    sae.arrays["W_dec"][0] = 0
    indices, values = np.array([[5, 0, 0]], np.uint16), np.array([[2.0, 0, 0]], np.float32)
    norm = np.linalg.norm(sae.arrays["W_dec"][5])
    np.testing.assert_allclose(decode(sae, indices, values)[0], 2 / norm * sae.arrays["W_dec"][5], rtol=1e-5)
