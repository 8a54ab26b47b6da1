"""Variables of recipes: what takes their place, what is left out, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from saestore.catalogs import Catalog, load_catalog
from saestore.errors import InputError
from saestore.recipes import VERBS, Recipe, _parameters, load_recipe

TOP = "name: x\nlake: l\n"
CATALOG = """
models:
  m: {path: m}
saes:
  s: {source: folder, path: s, model: m, layer: 7, d_in: 4, d_sae: 8}
datasets:
  birds: {kind: text, table: birds.csv, model: m, sae: s, concepts: [song, flight], sample_type: token}
"""


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    return load_catalog([tmp_path / "catalog.yaml"])


def load(tmp_path: Path, text: str, catalog: Catalog | None = None, **given: Any) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(TOP + text)
    return load_recipe(path, set=given, catalog=catalog)


def test_a_whole_value_keeps_its_type_and_a_part_of_a_text_is_written_out(tmp_path: Path) -> None:
    text = (
        "variables: {n: 3, name: a}\nsteps:\n  - encode: {saes: ['${name}-${n}'], k: '${n}', datasets: ['${name}']}\n"
    )
    [step] = load(tmp_path, text).steps
    assert step.parameters == {"saes": ["a-3"], "k": 3, "datasets": ["a"]}
    [step] = load(tmp_path, text, n="12", name="12").steps
    assert step.parameters == {"saes": ["12-12"], "k": 12, "datasets": ["12"]}, "texts stay texts, numbers numbers"


def test_lists_and_mappings_are_given_as_in_yaml(tmp_path: Path) -> None:
    text = (
        "variables:\n  datasets: ''\n  splits:\nsteps:\n  - extract:\n      datasets: ${datasets}\n      model: m\n"
        "      layers: [1]\n      splits: ${splits}\n"
    )
    [step] = load(tmp_path, text, datasets="[a, b]", splits="{train: 0.5, test: 0.5}").steps
    assert step.parameters["datasets"] == ["a", "b"]
    assert step.parameters["splits"] == {"train": 0.5, "test": 0.5}
    assert step.command("l").endswith("--datasets a b --model m --layers 1 --splits train=0.5 test=0.5")


def test_what_is_empty_is_left_out(tmp_path: Path) -> None:
    parameters = "{saes: [s, '${a}'], datasets: ['${a}'], k: '${k}', model: '${a}${k}'}"
    text = f"variables:\n  k:\n  a: ''\nsteps:\n  - encode: {parameters}\n"
    [step] = load(tmp_path, text).steps
    assert step.parameters == {"saes": ["s"]}


def test_the_lake_is_a_variable(tmp_path: Path) -> None:
    text = (
        "variables: {out: '${lake}/tables'}\nsteps:\n  - detect: {out: '${out}'}\nnext: ['saestore status ${lake}']\n"
    )
    assert load(tmp_path, text).steps[0].parameters == {"out": "l/tables"}
    other = load(tmp_path, text, lake="there")
    assert (other.lake, other.steps[0].parameters, other.next) == (
        "there",
        {"out": "there/tables"},
        ("saestore status there",),
    )


LOOKED_UP = (
    "variables: {dataset: birds, sae: '${dataset.sae}', layer: '${sae.layer}', concepts: '${dataset.concepts}'}\n"
    "steps:\n  - thresholds: {datasets: ['${dataset}'], sae: '${sae}', layer: '${layer}', concepts: '${concepts}'}\n"
)


def test_the_catalog_gives_what_it_knows(tmp_path: Path, catalog: Catalog) -> None:
    known = {"datasets": ["birds"], "sae": "s", "layer": 7, "concepts": ["song", "flight"]}
    assert load(tmp_path, LOOKED_UP, catalog).steps[0].parameters == known
    other = load(tmp_path, LOOKED_UP, catalog, concepts="[song]", layer="3").steps[0].parameters
    assert other == known | {"concepts": ["song"], "layer": "3"}
    assert load(tmp_path, LOOKED_UP, catalog, dataset="fish").steps[0].parameters == {"datasets": ["fish"]}


def test_a_parameter_that_is_needed_says_how_to_give_it(tmp_path: Path, catalog: Catalog) -> None:
    text = "variables: {dataset: bird, sae: '${dataset.sae}'}\nsteps:\n  - encode: {saes: ['${sae}']}\n"
    told = r":5: steps.0.encode.saes: sae is empty; give --set sae=... \(no dataset 'bird' in the catalog; nearest: bi"
    with pytest.raises(InputError, match=told):
        load(tmp_path, text, catalog)


def test_conditions_skip_steps_and_say_why(tmp_path: Path) -> None:
    text = (
        "variables: {files: '', more: ''}\nsteps:\n  - unless: ${files}\n    status: {}\n"
        "  - when: ${files}${more}\n    encode: {saes: ['${files}']}\n"
    )
    status, encode = load(tmp_path, text).steps
    assert (status.skipped, encode.skipped) == ("", "files, more are all empty; give --set files=... to run it")
    status, encode = load(tmp_path, text, files="a").steps
    assert (status.skipped, encode.skipped) == ("files is given (a)", "")


@pytest.mark.parametrize(
    ("text", "given", "told"),
    [
        ("steps: [status: {}]\n", {"datset": 1}, "no variable 'datset'.*--set NAME=VALUE"),
        ("variables: {dataset: a}\nsteps: [status: {}]\n", {"datset": 1}, "nearest of 2 variables: 'dataset'"),
        ("variables: {a: '${b}', b: c}\nsteps: [status: {}]\n", {}, ":3: variables.a: no variable 'b' here"),
        ("steps:\n  - encode: {saes: ['${sae}']}\n", {}, ":4: steps.0.encode.saes.0: no variable 'sae'"),
        ("variables: {a: b}\nsteps:\n  - encode: {saes: ['${a.b}']}\n", {}, "only dataset, model, sae, parameters"),
        ("variables: {dataset: birds}\nsteps:\n  - show: {dataset: '${dataset.tabel}'}\n", {}, "nearest.*'table'"),
        ("variables: {A b: c}\nsteps: [status: {}]\n", {}, "cannot name a variable"),
        ("variables: {api_key: c}\nsteps: [status: {}]\n", {}, "looks like a secret"),
        ("variables: {lake: c}\nsteps: [status: {}]\n", {}, "the key lake at the top"),
        ("steps: [status: {}]\n", {"lake": "s3://me:mine@bucket/lake"}, "holds a secret"),
        ("steps: [status: {}]\n", {"lake": "https://host/lake?signature=x"}, "holds a secret"),
        ("variables: {k: 1}\nsteps: [status: {}]\n", {"k": "[1"}, r"k=\[1 cannot be read"),
        ("variables: {k: 1}\nsteps:\n  - encode: {saes: [s], k: '${k}'}\n", {"k": "many"}, "steps.0.encode.k.*'many'"),
        ("steps:\n  - when: always\n    status: {}\n", {}, ":4: steps.0.when: expected variables"),
        ("variables: {a: ''}\nsteps:\n  - when: ${a}\n    encode: {saess: [s]}\n", {}, "did you mean 'saes'"),
        ("steps:\n  - encode: all\n", {}, "expected parameters and their values, got 'all'"),
        ("variables: {a: ''}\nsteps:\n  - when: ${a}\n", {}, "expected one verb with its parameters, got nothing"),
    ],
)
def test_what_cannot_be_is_refused(
    text: str, given: dict[str, Any], told: str, tmp_path: Path, catalog: Catalog
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load(tmp_path, text, catalog, **given)
    assert "\n" not in str(caught.value)
    assert "mine" not in str(caught.value)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_what_its_parameters_may_be(verb: str) -> None:
    """Their types are read when a recipe is: none may be known to type checkers alone."""
    assert _parameters(verb).model_fields is not None
