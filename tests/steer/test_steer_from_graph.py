"""Bundles of graphs in a lake: which units and numbers they hold, by numpy from dense codes, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is absent: pip install 'saestore[torch]'")
pytest.importorskip("igraph", reason="igraph is absent: pip install 'saestore[graph]'")

from saestore import verbs
from saestore.cli import main
from saestore.errors import BudgetError, InputError, MissingError
from saestore.lake import Lake
from saestore.saes.lake import write_sae
from saestore.steer import load_bundle
from saestore.steer.from_graph import bundle_from_graph
from saestore.verbs import steer_bundle
from tests.small_lake import HOOK, add_activations, random_sae

D_IN, D_SAE, DEAD, MIN_R = 12, 30, 3, 0.35


def sae(seed=0):
    made = random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE, seed=seed, hook_name=HOOK)
    made.arrays["threshold"][DEAD] = 1e6
    return made


def rows(seed, n=700):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, 4)) @ rng.normal(size=(4, D_IN)) + rng.normal(size=(n, D_IN)) / 3).astype(np.float32)


def encode(lake):
    verbs.encode(lake, "s", layers=[3], force=True, k=D_SAE, dtype="float32", quiet=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A lake with the SAE `s`, its codes over two data sets, and graphs of codes, of activations and across them."""
    lake = Lake.create(tmp_path_factory.mktemp("steer") / "lake")
    write_sae(lake.storage, "s", sae(), quiet=True)
    for number, name in enumerate(("one", "two")):
        add_activations(lake, name, rows(number), specials=False)
        add_activations(lake, name, rows(number + 5), specials=False, layer="layer_4", hook=None)
    encode(lake)
    options = {"sample_type": "token", "min_r": MIN_R, "max_base_rate": 1.0, "quiet": True}
    verbs.graph(lake, saes="s", name="codes", **options)
    verbs.graph(lake, layers=[3, 4], name="dims", **options)
    codes = lake.codes("one", sae="s", layer=3)
    lake.graph(codes, lake.activations("one", layer=4, sample_type="token"), name="across")
    return lake


@pytest.fixture
def lake(source, tmp_path):
    """A copy to damage."""
    return Lake.open(shutil.copytree(folder_of(source), tmp_path / "lake"))


def folder_of(lake):
    return Path(lake.url.removeprefix("file://"))


def dense_of(lake):
    found = [lake.codes(name, sae="s", layer=3).to_scipy().toarray() for name in ("one", "two")]
    return np.concatenate(found).astype(np.float64)


@pytest.fixture(scope="module")
def busiest(source):
    edges = source.open_graph("codes").edges()
    return int(np.bincount(edges[["unit_a", "unit_b"]].to_numpy().ravel()).argmax())


def test_units_and_numbers_are_those_of_the_codes(source, busiest):
    z = dense_of(source)
    varies = np.flatnonzero(z.std(axis=0) > 0)
    r = np.zeros((D_SAE, D_SAE))
    r[np.ix_(varies, varies)] = np.corrcoef(z[:, varies].T)
    joined = (np.abs(r) >= MIN_R) & ~np.eye(D_SAE, dtype=bool)
    bundle = bundle_from_graph(source, "codes", [busiest])
    expected = np.flatnonzero(joined[busiest] | (np.arange(D_SAE) == busiest))
    assert 3 < len(expected) < D_SAE
    np.testing.assert_array_equal(bundle.units, expected)
    for name, values in (("mean", z.mean(axis=0)), ("deviation", z.std(axis=0)), ("maximum", z.max(axis=0))):
        np.testing.assert_allclose(getattr(bundle, name), values[expected], atol=1e-6)
    within = joined[np.ix_(expected, expected)]
    held = np.zeros_like(within)
    held[bundle.source, bundle.target] = True
    np.testing.assert_array_equal(held, within)
    for source_place, target_place, slope in zip(bundle.source, bundle.target, bundle.coefficient, strict=True):
        x, y = z[:, expected[source_place]], z[:, expected[target_place]]
        assert slope == pytest.approx(np.polyfit(x, y, 1)[0], abs=1e-5)
    np.testing.assert_array_equal(bundle.decoder, sae().arrays["W_dec"][expected])


def test_it_says_what_it_was_made_from(source, busiest, tmp_path):
    made = steer_bundle(source, graph="codes", units=[busiest], end="layer_3/s", out=tmp_path / "b")
    bundle = load_bundle(tmp_path / "b")
    identity = json.dumps(dict(source.open_graph("codes").identity), sort_keys=True)
    assert bundle.graph.identity == hashlib.sha256(identity.encode()).hexdigest()
    assert (bundle.graph.name, bundle.sae.name, bundle.sae.content_hash) == ("codes", "s", sae().content_hash())
    model = bundle.model
    assert (model.model_id, model.revision, model.d_model, model.layer, model.hook) == (
        "m",
        None,
        D_IN,
        "layer_3",
        None,
    )
    assert made.files == (tmp_path / "b.safetensors", tmp_path / "b.json")
    assert (made.units, made.edges, made.alone) == (len(bundle.units), len(bundle.source) // 2, 0)
    assert "saestore" in json.loads(made.files[1].read_text())["provenance"]


def test_without_units_every_unit_with_an_edge_is_taken(source):
    edges = source.open_graph("codes").edges()
    bundle = bundle_from_graph(source, "codes")
    np.testing.assert_array_equal(bundle.units, np.unique(edges[["unit_a", "unit_b"]].to_numpy()))
    assert len(bundle.source) == 2 * len(edges)


def test_top_takes_the_strongest_neighbours_in(source, busiest):
    found = source.open_graph("codes").neighbours(busiest)
    bundle = bundle_from_graph(source, "codes", [busiest], top=2)
    assert set(bundle.units.tolist()) == {busiest, *found["unit"][:2].tolist()}
    assert bundle_from_graph(source, "codes", [busiest], depth=0).units.tolist() == [busiest]
    assert len(bundle_from_graph(source, "codes", [busiest], depth=2).units) > len(bundle.units)


def test_a_unit_without_edges_is_a_bundle_of_its_own(source):
    bundle = bundle_from_graph(source, "codes", [DEAD], depth=3)
    assert bundle.units.tolist() == [DEAD]
    assert not bundle.neighbours(DEAD).size
    assert (bundle.mean[0], bundle.deviation[0], bundle.maximum[0]) == (0, 0, 0)


def test_an_end_of_activations_has_no_decoder(source):
    with pytest.raises(InputError, match=r"end layer_4 of graph 'dims' is of activations.*graph --saes"):
        bundle_from_graph(source, "dims", end="layer_4")
    with pytest.raises(InputError, match=r"of activations.*choose an end of codes: layer_3/s$"):
        bundle_from_graph(source, "across", end="layer_4")


def test_a_graph_without_edges_within_the_end_needs_units(source):
    with pytest.raises(InputError, match=r"no edge within layer_3/s; name the units"):
        bundle_from_graph(source, "across", end="layer_3/s")
    assert len(bundle_from_graph(source, "across", [4, 2], end="layer_3/s").units) == 2


@pytest.mark.parametrize("unit", [D_SAE, 10**6, -1])
def test_an_unknown_unit_is_refused(source, unit):
    with pytest.raises(MissingError, match=rf"no unit {unit} of layer_3/s, of which it holds 30 from 0 to 29"):
        bundle_from_graph(source, "codes", [2, unit])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"graph": "cods"}, MissingError, "no graph 'cods'"),
        ({"end": "layer_3/t"}, MissingError, "no end 'layer_3/t'"),
        ({"graph": "dims"}, MissingError, "has 2 ends"),
        ({"depth": -1}, InputError, "depth -1 is out of range; give 0 or more"),
        ({"top": 0}, InputError, "top 0 is out of range; give 1 or more"),
        ({"units": []}, InputError, "no unit was named"),
        ({"memory": "1KiB"}, BudgetError, r"29 units of SAE s needs .*choose fewer units"),
    ],
)
def test_options_that_fit_nothing_are_refused(source, options, error, message):
    with pytest.raises(error, match=message):
        bundle_from_graph(source, **{"graph": "codes", **options})


def test_another_version_of_the_sae_is_refused(lake):
    shutil.rmtree(folder_of(lake) / "saes" / "s")
    write_sae(lake.storage, "s", sae(seed=1), quiet=True)
    with pytest.raises(InputError, match=r"codes of another version of SAE s .*encode again") as caught:
        bundle_from_graph(lake, "codes", [1])
    assert sae(0).content_hash()[:12] in str(caught.value)
    assert sae(1).content_hash()[:12] in str(caught.value)
    for codes in folder_of(lake).glob("data/*/m/layer_3/codes"):
        shutil.rmtree(codes)
    with pytest.raises(MissingError, match=r"was made from data/one/m/layer_3/codes/s/token, which the lake"):
        bundle_from_graph(lake, "codes", [1])
    encode(lake)
    with pytest.raises(InputError, match=r"data/one/m/layer_3/codes/s/token was made again after graph 'codes'"):
        bundle_from_graph(lake, "codes", [1])


def test_a_transcoder_steers_where_it_writes(lake):
    for name, hook in (("tc", "blocks.3.hook_mlp_out"), ("mute", None)):
        weights = random_sae(
            "transcoder", d_in=D_IN, d_sae=D_SAE, d_out=D_IN, apply_b_dec_to_input=False, hook_name_out=hook
        )
        write_sae(lake.storage, name, weights, quiet=True)
        verbs.encode(lake, name, layers=[3], force=True, k=D_SAE, quiet=True)
        verbs.graph(lake, saes=name, name=name, sample_type="token", max_base_rate=1.0, quiet=True)
    bundle = bundle_from_graph(lake, "tc", [1])
    assert (bundle.model.layer, bundle.model.hook, bundle.sae.selection) == ("layer_3.mlp_out", None, "none")
    with pytest.raises(MissingError, match="transcoder mute does not say at which hook it writes"):
        bundle_from_graph(lake, "mute", [1])


def test_imported_codes_do_not_tell_their_version(lake):
    for name in ("one", "two"):
        document = folder_of(lake) / "data" / name / "m" / "layer_3" / "codes" / "s" / "token" / "zarr.json"
        content = json.loads(document.read_text())
        del content["attributes"]["saestore"]["identity"]["sae"]
        document.write_text(json.dumps(content))
    said = []
    assert bundle_from_graph(lake, "codes", [1], say=said.append).units.size
    assert len(said) == 2
    assert "data/one/m/layer_3/codes/s/token was imported and does not say which version of SAE s" in said[0]
    shutil.rmtree(folder_of(lake) / "saes" / "s")
    wider = random_sae("jumprelu", d_in=D_IN, d_sae=D_SAE + 1, hook_name=HOOK)
    write_sae(lake.storage, "s", wider, quiet=True)
    with pytest.raises(InputError, match="is of 30 units and SAE s of the lake has 31"):
        bundle_from_graph(lake, "codes", [1])


def test_an_sae_that_is_gone_is_named(lake):
    shutil.rmtree(folder_of(lake) / "saes" / "s")
    with pytest.raises(MissingError, match=r"no SAE 's'"):
        bundle_from_graph(lake, "codes", [1])


def test_a_data_set_that_grew_changes_nothing(lake, source):
    before = bundle_from_graph(source, "codes", [1])
    for part in (1, 2):
        add_activations(lake, "one", rows(7 + part, 70), specials=False, part=part)
        add_activations(lake, "one", rows(9 + part, 70), specials=False, part=part, layer="layer_4", hook=None)
        encode(lake)
        after = bundle_from_graph(lake, "codes", [1])
        np.testing.assert_array_equal(after.units, before.units)
        np.testing.assert_array_equal(after.r, before.r)
    verbs.graph(lake, saes="s", name="grown", sample_type="token", min_r=MIN_R, max_base_rate=1.0, quiet=True)
    grown = bundle_from_graph(lake, "grown", [1])
    add_activations(lake, "one", rows(20, 70), specials=False, part=3)
    encode(lake)
    np.testing.assert_array_equal(bundle_from_graph(lake, "grown", [1]).r, grown.r)


def test_data_sets_of_two_models_are_refused(lake):
    for name, revision in (("one", "a" * 40), ("two", "b" * 40)):
        document = folder_of(lake) / "data" / name / "m" / "positions" / "zarr.json"
        content = json.loads(document.read_text())
        content["attributes"]["saestore"]["revision"] = revision
        document.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"layer_3/s is of several models: revision a+ in one and b+ in two"):
        bundle_from_graph(lake, "codes", [1])


def test_the_command_says_what_it_wrote(source, busiest, tmp_path, capsys):
    words = ["steer", "bundle", str(folder_of(source)), "--graph", "codes", "--out", str(tmp_path / "new" / "b")]
    assert main([*words, "--units", str(busiest), "2", "--top", "3"]) == 0
    told = capsys.readouterr().out
    bundle = load_bundle(tmp_path / "new" / "b")
    assert {busiest, 2} <= set(bundle.units.tolist())
    assert f"{len(bundle.units)} units of SAE s, {len(bundle.source) // 2} edges of graph codes" in told
    assert "steers layer_3 (module not known) of m (revision not known)" in told
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["selection"] == "threshold"
    assert main([*words, "--units", "99"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*words[:-1], str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
