from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from saestore.errors import InputError, IntegrityError, MissingError
from saestore.steer import Bundle, load_bundle
from saestore.steer.bundle import ModelPlace
from saestore.steer.files import write_bundle
from saestore.steer.making import make_bundle
from tests.small_lake import random_sae
from tests.steer.conftest import GRAPH

PLACE = ModelPlace(model_id="m", revision="r1", d_model=8, layer="layer_3", hook="h.3")
UNITS = [2, 5, 11]


def made(architecture="jumprelu", **changes):
    config = {"k": 4} if architecture == "topk" else {}
    numbers = {
        "mean": np.array([0.5, 1, 2]),
        "deviation": np.array([1.0, 2, 4]),
        "maximum": np.array([3.0, 6, 9]),
        "a": [0, 2],
        "b": [1, 0],
        "r": np.array([0.5, -0.25]),
    }
    return make_bundle(
        random_sae(architecture, d_in=8, d_sae=16, **config),
        np.array(changes.pop("units", UNITS)),
        **numbers | changes,
        model=PLACE,
        sae_name="s",
        graph=GRAPH,
    )


def assert_equal(one: Bundle, other: Bundle):
    for field in dataclasses.fields(Bundle):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, np.ndarray):
            assert first.dtype == second.dtype, field.name
            np.testing.assert_array_equal(first, second, err_msg=field.name)
        else:
            assert first == second, field.name


@pytest.mark.parametrize("architecture", ["jumprelu", "topk"])
@pytest.mark.parametrize("name", ["b", "b.json", "b.safetensors", "gemma-2.2b"])
def test_what_is_written_is_read(tmp_path, architecture, name):
    bundle = made(architecture)
    files = write_bundle(tmp_path / "new" / name, bundle)
    stem = name.split(".json")[0].split(".safetensors")[0]
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == [f"{stem}.json", f"{stem}.safetensors"]
    assert (bundle.threshold is None) == (architecture == "topk")
    for given in (*files, tmp_path / "new" / name):
        assert_equal(load_bundle(given), bundle)


def test_the_json_says_where_everything_is_from(tmp_path):
    bundle = made()
    _, path = write_bundle(tmp_path / "b", bundle)
    described = json.loads(path.read_text())
    assert described["format"] == 1
    assert described["kind"] == "steering bundle"
    assert described["model"] == dataclasses.asdict(PLACE)
    assert described["sae"]["content_hash"] == random_sae("jumprelu", d_in=8, d_sae=16).content_hash()
    assert described["graph"] == {"name": "test", "identity": "0" * 64}
    assert "saestore" in described["provenance"]


def test_both_directions_of_an_edge_have_their_slope():
    bundle = made()
    edges = {
        (int(a), int(b)): (float(r), float(slope))
        for a, b, r, slope in zip(bundle.source, bundle.target, bundle.r, bundle.coefficient, strict=True)
    }
    assert edges == {(0, 1): (0.5, 1), (1, 0): (0.5, 0.25), (2, 0): (-0.25, -0.0625), (0, 2): (-0.25, -1)}
    assert bundle.neighbours(2).tolist() == [5, 11]
    assert bundle.neighbours(11).tolist() == [2]


def test_a_unit_that_is_not_there_is_named():
    bundle = made()
    for unit in (3, 99, 0):
        with pytest.raises(MissingError, match=rf"unit {unit} is not in the steering bundle of s, which holds 3 units"):
            bundle.places([2, unit])
    assert bundle.places([11, 2]).tolist() == [2, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": [5, 2, 11]}, "not ascending"),
        ({"units": [2, 2, 11]}, "not ascending"),
        ({"units": [2, 5, 16]}, "unit 16 was asked for, but SAE s has 16"),
        ({"units": [-1, 5, 11]}, "unit -1 was asked for"),
        ({"units": [2, 5]}, r"mean of a steering bundle is float64 of shape \(3,\); expected float64 of shape \(2\)"),
        ({"deviation": np.array([1.0, 0, 4])}, "unit 5 has an edge but never changes"),
        ({"mean": np.array([np.nan, 0, 4])}, "mean of a steering bundle holds NaN"),
        ({"a": [0, 1], "b": [1, 0]}, "there twice"),
        ({"a": [0, 1], "b": [1, 1]}, "itself"),
        ({"a": [0, 3], "b": [1, 1]}, "ends at place 3 of 3 units"),
        ({"r": np.array([1.5, 0])}, r"\|r\| above 1"),
        ({"r": np.array([np.nan, 0])}, "r of a steering bundle holds NaN"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        made(**changes)


def test_a_bundle_without_units_is_refused():
    none = {name: np.zeros(0) for name in ("mean", "deviation", "maximum", "r")}
    with pytest.raises(InputError, match="has no unit"):
        made(units=np.zeros(0, int), a=np.zeros(0, int), b=np.zeros(0, int), **none)


def test_files_that_are_not_there_are_named(tmp_path):
    arrays, described = write_bundle(tmp_path / "b", made())
    with pytest.raises(MissingError, match=r"other.json does not exist; a steering bundle is two files"):
        load_bundle(tmp_path / "other")
    arrays.unlink()
    with pytest.raises(MissingError, match=r"b.safetensors does not exist; a steering bundle is two files"):
        load_bundle(described)
    with pytest.raises(InputError, match="is a folder; name the bundle in it"):
        load_bundle(tmp_path)


def test_damaged_arrays_are_refused(tmp_path):
    arrays, _ = write_bundle(tmp_path / "b", made())
    content = bytearray(arrays.read_bytes())
    content[-5] ^= 1
    arrays.write_bytes(content)
    with pytest.raises(IntegrityError, match=r"b.safetensors is damaged, or not the file that b.json"):
        load_bundle(tmp_path / "b")


def test_arrays_of_another_bundle_are_refused(tmp_path):
    arrays, _ = write_bundle(tmp_path / "b", made())
    other, _ = write_bundle(tmp_path / "c", made(mean=np.array([0.5, 1, 3])))
    arrays.write_bytes(other.read_bytes())
    with pytest.raises(IntegrityError, match=r"not the file that b\.json was written with"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda d: d.update(format=2), InputError, "of format 2, and this version reads 1"),
        (lambda d: d.update(kind="graph"), InputError, "is not the JSON of a steering bundle"),
        (lambda d: d["model"].update(d_model="8"), IntegrityError, "model.d_model .* is '8'"),
        (lambda d: d["model"].update(d_model=True), IntegrityError, "model.d_model .* is True"),
        (lambda d: d["model"].pop("layer"), IntegrityError, "'model' in .* must hold model_id"),
        (lambda d: d["sae"].update(selection="magic"), IntegrityError, "selection 'magic' .* is unknown"),
        (lambda d: d["sae"].update(normalization="odd"), IntegrityError, "normalization 'odd' .* is unknown"),
        (lambda d: d["sae"].update(selection="top_k"), IntegrityError, "does not hold the encoder"),
        (lambda d: d.pop("graph"), IntegrityError, "'graph' in .* must hold"),
        (lambda d: d.pop("tensors"), IntegrityError, "its sha256 differs"),
    ],
)
def test_a_json_that_was_changed_is_refused_in_one_line(tmp_path, change, error, message):
    _, path = write_bundle(tmp_path / "b", made())
    described = json.loads(path.read_text())
    change(described)
    path.write_text(json.dumps(described))
    with pytest.raises(error, match=message) as raised:
        load_bundle(path)
    assert str(path.with_suffix("")) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_what_is_no_json_is_refused(tmp_path):
    _, path = write_bundle(tmp_path / "b", made())
    for text in ("{", "[1]", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"b.json is not"):
            load_bundle(path)


def test_a_write_that_fails_leaves_the_old_bundle(tmp_path, monkeypatch):
    old = made()
    write_bundle(tmp_path / "b", old)

    def full(_self, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*b.safetensors: the disk is full"):
        write_bundle(tmp_path / "b", made(mean=np.array([0.5, 1, 3])))
    monkeypatch.undo()
    assert_equal(load_bundle(tmp_path / "b"), old)
    assert len(list(tmp_path.iterdir())) == 2
