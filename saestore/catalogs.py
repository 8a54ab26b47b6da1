"""The catalog: named datasets, models, SAEs, lakes and parameter sets, layered from several YAML files.

Layers, later ones win by name: the package's own, the user's, those in `SAESTORE_CATALOG`, those given.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from saestore._entries import (
    PRUNING_RULES,
    DatasetEntry,
    Entry,
    LakeEntry,
    ModelEntry,
    Origin,
    ParameterEntry,
    SAEEntry,
    package_folder,
)
from saestore._yaml_lines import YamlFile, read_yaml
from saestore.errors import DependencyError, InputError, MissingError, SaestoreError

__all__ = [
    "Catalog",
    "DatasetEntry",
    "LakeEntry",
    "ModelEntry",
    "ParameterEntry",
    "Problem",
    "SAEEntry",
    "catalog_table",
    "load_catalog",
    "user_catalog_path",
    "validate",
]

SECTIONS: dict[str, type[Entry]] = {
    "datasets": DatasetEntry,
    "models": ModelEntry,
    "saes": SAEEntry,
    "lakes": LakeEntry,
    "parameters": ParameterEntry,
}
SET_BY_LOADER = ("name", "origin")

E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class Catalog:
    """All entries of all layers, by section and name, in the order in which they were first written."""

    datasets: Mapping[str, DatasetEntry]
    models: Mapping[str, ModelEntry]
    saes: Mapping[str, SAEEntry]
    lakes: Mapping[str, LakeEntry]
    parameters: Mapping[str, ParameterEntry]

    def dataset(self, name: str) -> DatasetEntry:
        """The dataset `name`; for a name that a pattern entry matches, its concrete entry.

        Raises
        ------
        MissingError
            No entry has this name; the nearest names are in the message.

        Examples
        --------
        >>> load_catalog().dataset("sae-probes/5_hist_fig_ismale").lake_name
        '5_hist_fig_ismale'
        """
        entry = self.datasets.get(name)
        if entry is not None and not entry.is_pattern:
            return entry
        if entry is not None:
            raise InputError(f"{name} stands for many datasets; name one, e.g. {(self.matches(name) or [name])[0]}")
        for entry in self.datasets.values():
            part = entry.match(name) if entry.is_pattern else None
            if part is not None:
                known = _names(entry)
                if known and name not in known:
                    raise _missing("dataset", name, known)
                return entry.concrete(part)
        raise _missing("dataset", name, [n for e in self.datasets.values() for n in (_names(e) or [e.name])])

    def matches(self, pattern: str) -> list[str]:
        """Names of the datasets that a pattern entry (`sae-probes/{name}`) stands for on this machine."""
        return _get(self.datasets, "dataset", pattern).names()

    def fitting(self, pattern: str) -> list[str]:
        """Names of all datasets on this machine that a pattern with * and ? fits, in the catalog's order.

        Examples
        --------
        >>> load_catalog().fitting("sae-probes/9?_*")[:2]
        ['sae-probes/90_glue_qnli', 'sae-probes/91_glue_qqp']
        """
        return [name for entry in self.datasets.values() for name in _names(entry) if fnmatchcase(name, pattern)]

    def concepts_of(self, lake_name: str) -> tuple[str, ...]:
        """Names and patterns of the concepts that analyses of a dataset use by default, by its name in a lake."""
        for entry in self.datasets.values():
            named = entry.concrete(lake_name) if entry.is_pattern else entry
            if entry.concepts and named.lake_name == lake_name:
                return entry.concepts
        return ()

    def model(self, name: str) -> ModelEntry:
        """The model `name`. Raises MissingError with the nearest names."""
        return _get(self.models, "model", name)

    def model_entry(self, name_or_path: str | Path) -> ModelEntry:
        """The model of this name; else an entry for a local folder or a hub id written as `org/name`.

        Raises
        ------
        MissingError
            Neither an entry nor a folder nor of the form `org/name`.
        """
        name = os.fspath(name_or_path)
        if name in self.models:
            return self.models[name]
        folder = Path(name).expanduser()
        if folder.is_dir():
            folder = folder.resolve()
            kind = "image" if (folder / "preprocessor_config.json").is_file() else "text"
            return ModelEntry.model_validate({"name": folder.name, "kind": kind, "path": str(folder)})
        org, slash, rest = name.partition("/")
        if slash and org.strip(".~") and rest and "/" not in rest and not isinstance(name_or_path, Path):
            return ModelEntry.model_validate({"name": rest, "hub": name})
        raise MissingError(f"{_missing('model', name, self.models)}; or give a folder or a hub id as org/name")

    def sae(self, name: str) -> SAEEntry:
        """The SAE `name`. Raises MissingError with the nearest names."""
        return _get(self.saes, "SAE", name)

    def lake(self, name: str) -> LakeEntry:
        """The lake `name`. Raises MissingError with the nearest names."""
        return _get(self.lakes, "lake", name)

    def parameter_set(self, name: str) -> ParameterEntry:
        """The parameter set `name`. Raises MissingError with the nearest names."""
        return _get(self.parameters, "parameter set", name)

    def sections(self) -> dict[str, Mapping[str, Entry]]:
        """Section name to its entries."""
        return {section: getattr(self, section) for section in SECTIONS}


@dataclass(frozen=True)
class Problem:
    """Something that keeps an entry from being used on this machine.

    section, name : the entry
    where : `FILE:LINE`
    message : what is not there and what to do
    """

    section: str
    name: str
    where: str
    message: str


def user_catalog_path() -> Path:
    """`saestore/catalog.yaml` in the user's configuration folder (XDG_CONFIG_HOME, else ~/.config)."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "saestore" / "catalog.yaml"


def load_catalog(paths: Sequence[str | Path] | None = None) -> Catalog:
    """Read and check the catalog in all its layers.

    Parameters
    ----------
    paths
        Catalog files on top of the package's own, the user's and those in the environment variable
        `SAESTORE_CATALOG` (separated as in PATH). Later files win by entry name.

    Raises
    ------
    InputError
        A file is wrong; one line, `FILE:LINE: saes.foo.d_sae: expected a positive integer, got 'abc'`.
    MissingError
        A file named in `SAESTORE_CATALOG` or `paths` does not exist.
    """
    if isinstance(paths, (str, Path)):
        paths = [paths]
    layers = [Path(__file__).parent / "catalog.yaml"]
    if user_catalog_path().is_file():
        layers.append(user_catalog_path())
    layers += [Path(p).expanduser() for p in os.environ.get("SAESTORE_CATALOG", "").split(os.pathsep) if p]
    layers += [Path(p).expanduser() for p in paths or ()]
    merged: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for path in layers:
        for section, entries in _read_layer(path).items():
            merged[section].update(entries)
    catalog = Catalog(**merged)
    _check_references(catalog)
    return catalog


def catalog_table(catalog: Catalog) -> list[dict[str, str]]:
    """One row per entry for listing: section, name, kind, where it comes from, and `FILE:LINE` of the entry."""
    rows = []
    for section, entries in catalog.sections().items():
        for entry in entries.values():
            kind, source = _describe(entry)
            rows.append({"section": section, "name": entry.name, "kind": kind, "from": source, "where": entry.where})
    return rows


def validate(catalog: Catalog) -> list[Problem]:
    """What keeps entries from being used here, as far as that shows without a network.

    Checked: packages, tables, roots, model and SAE files, environment variables. Hub ids and buckets are not.
    """
    problems = []
    for section, entries in catalog.sections().items():
        for entry in entries.values():
            try:
                for message in _local_problems(entry):
                    problems.append(Problem(section, entry.name, entry.where, message))
            except SaestoreError as error:
                # The row has the place already.
                message = re.sub(rf"^{re.escape(str(entry.origin.file))}:\d+: ", "", str(error)) if entry.origin else ""
                problems.append(Problem(section, entry.name, entry.where, message))
    return problems


def _local_problems(entry: Entry) -> Iterable[str]:
    if isinstance(entry, DatasetEntry):
        path = entry.table_path()
        if entry.is_pattern:
            if not entry.names():
                yield f"no file matches {path}; reinstall {entry.package or 'the data'} or correct table"
        elif not path.exists():
            yield f"table {path} does not exist; put it there or set the variables in {entry.table!r}"
        root = entry.root_path()
        if root is not None and not root.is_dir():
            yield f"root {root} does not exist; put the data there or set the variables in {entry.root!r}"
    elif isinstance(entry, ModelEntry):
        for source in (entry.local_path(), entry.archive_path()):
            if source is not None and not source.exists():
                yield f"{source} does not exist; correct the entry"
    elif isinstance(entry, SAEEntry):
        if entry.source == "saelens":
            _need_package("sae_lens", "pip install 'saestore[sae]'")
        source = entry.local_path()
        if source is not None and not source.exists():
            yield f"{source} does not exist; make or download it, or correct path"
    elif isinstance(entry, LakeEntry):
        entry.resolved_url()


def _need_package(package: str, remedy: str) -> None:
    try:
        package_folder(package)
    except DependencyError:
        raise DependencyError(f"the package {package} is not installed; {remedy}") from None


def _describe(entry: Entry) -> tuple[str, str]:
    """Kind of an entry and where its content comes from, in words."""
    if isinstance(entry, DatasetEntry):
        return entry.kind, f"{entry.package}: {entry.table}" if entry.package else entry.table
    if isinstance(entry, ModelEntry):
        hub = f"{entry.hub}@{entry.revision}" if entry.revision else entry.hub
        archive = f"{entry.package}: {entry.archive}" if entry.package else None
        return entry.kind or "", archive or entry.path or hub or ""
    if isinstance(entry, SAEEntry):
        pair = (entry.release, entry.sae_id) if entry.release else (entry.repo, entry.file)
        return entry.source, entry.path or ":".join(filter(None, pair))
    if isinstance(entry, LakeEntry):
        return entry.url.split("://")[0] if "://" in entry.url else "local", entry.url
    assert isinstance(entry, ParameterEntry)
    parts = [f"k={entry.k}"] if entry.k else []
    parts += [f"{len(entry.percentiles)} percentiles"] if entry.percentiles else []
    return (entry.prune.rule if entry.prune else ""), ", ".join(parts)


def _read_layer(path: Path) -> dict[str, dict[str, Entry]]:
    """All entries of one file, by section."""
    file = read_yaml(path)
    layer: dict[str, dict[str, Entry]] = {}
    for section, entries in file.content.items():
        if section not in SECTIONS:
            raise file.error([section], _unknown(str(section), list(SECTIONS)))
        if entries is None:  # a section whose entries are all commented out
            continue
        if not isinstance(entries, dict):
            raise file.error([section], f"expected a mapping of names to entries, got {_show(entries)}")
        layer[section] = {name: _read_entry(file, section, name, entry) for name, entry in entries.items()}
    return layer


def _read_entry(file: YamlFile, section: str, name: Any, content: Any) -> Entry:
    keys = [section, name]
    model = SECTIONS[section]
    if not isinstance(name, str) or not name.strip():
        raise file.error(keys, f"expected a text as name, got {_show(name)}; put it in quotes")
    if "/" in name and section != "datasets":
        raise file.error(keys, "a name must not hold '/'; use '-' instead")
    if not isinstance(content, dict):
        raise file.error(keys, f"expected a mapping of {', '.join(_allowed(model))}, got {_show(content)}")
    for key in content:
        if key not in _allowed(model):
            raise file.error([*keys, key], _unknown(str(key), _allowed(model)))
    lines = {key: file.line([*keys, key]) for key in content}
    origin = Origin(file.path, file.line(keys), lines)
    try:
        return model.model_validate({**content, "name": name, "origin": origin})
    except ValidationError as error:
        # Line order reads naturally; the first problem is told, as a fixed file is checked again anyway.
        problems = [_explain(file, keys, model, problem) for problem in error.errors(include_url=False)]
        line, text = min(problems, key=lambda problem: problem[0])
        more = f" (and {len(problems) - 1} more in this entry)" if len(problems) > 1 else ""
        raise InputError(f"{file.path}:{line}: {text}{more}") from None


def _explain(file: YamlFile, keys: list[str | int], model: type[BaseModel], problem: Any) -> tuple[int, str]:
    """Line and message of one pydantic problem, in the catalog's words."""
    value: Any = file.content
    for key in keys:
        value = value[key]
    path, expected = list(keys), "a valid value"
    fields: type[BaseModel] | None = model
    for part in problem["loc"]:
        here = (isinstance(value, dict) and part in value) or (isinstance(value, list) and isinstance(part, int))
        if fields is not None and part in fields.model_fields:
            expected = fields.model_fields[part].description or expected
            fields = None
        elif not here and part in PRUNING_RULES:  # the tag of a union is in pydantic's path, not in the file
            fields = PRUNING_RULES[part]
            continue
        if here:
            value = value[part]
        elif problem["type"] not in ("missing", "extra_forbidden"):
            continue
        path.append(part)
    where = ".".join(map(str, path))
    line = file.line(path)
    if problem["type"] == "missing":
        return line, f"{where}: is missing; expected {expected}"
    if problem["type"] == "extra_forbidden":
        return line, f"{where}: {_unknown(str(path[-1]), _allowed(fields) if fields else [])}"
    if problem["type"] == "value_error":
        return line, f"{where}: {problem['ctx']['error']}"
    return line, f"{where}: expected {expected}, got {_show(value)}"


def _allowed(model: type[BaseModel]) -> list[str]:
    return [key for key in model.model_fields if key not in SET_BY_LOADER]


def _unknown(key: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown key; {hint}expected one of {', '.join(allowed)}"


def _show(value: Any) -> str:
    """A value in an error message: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_references(catalog: Catalog) -> None:
    users: list[DatasetEntry | SAEEntry] = [*catalog.datasets.values(), *catalog.saes.values()]
    for entry in users:
        if entry.model is not None and entry.model not in catalog.models:
            raise entry.error("model", str(_missing("model", entry.model, catalog.models)))
    for dataset in catalog.datasets.values():
        if dataset.sae is not None and dataset.sae not in catalog.saes:
            raise dataset.error("sae", str(_missing("SAE", dataset.sae, catalog.saes)))
        if dataset.parameters is not None and dataset.parameters not in catalog.parameters:
            raise dataset.error("parameters", str(_missing("parameter set", dataset.parameters, catalog.parameters)))
    for sae in catalog.saes.values():
        width = catalog.models[sae.model].d_model
        if width is not None and sae.hook == "resid_post" and sae.d_in != width:
            raise sae.error("d_in", f"expected {width}, the width of {sae.model}, got {sae.d_in}")


def _names(entry: DatasetEntry) -> list[str]:
    """Names of a dataset entry; of a pattern whose package or variables are not there, none."""
    try:
        return entry.names()
    except SaestoreError:
        return []


def _get(entries: Mapping[str, E], kind: str, name: str) -> E:
    if name not in entries:
        raise _missing(kind, name, entries)
    return entries[name]


def _missing(kind: str, name: str, known: Iterable[str]) -> MissingError:
    known = list(known)
    lower = {k.lower(): k for k in known}
    near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
    if near:
        hint = f"nearest: {', '.join(near)}"
    elif known:
        hint = f"there are: {', '.join(known[:8])}" + (", ..." if len(known) > 8 else "")
    else:
        hint = f"the catalog has no {kind}s; add one to {user_catalog_path()}"
    return MissingError(f"no {kind} {name!r} in the catalog; {hint}")
