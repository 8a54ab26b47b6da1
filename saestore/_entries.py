"""The kinds of catalog entries: what each may say, checked by pydantic.

A field's `description` says what is expected; error messages quote it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, field_validator, model_validator

from saestore._natural_order import natural
from saestore.errors import DependencyError, InputError

Text = Annotated[StrictStr, Field(min_length=1)]
Positive = Annotated[StrictInt, Field(gt=0)]
Natural = Annotated[StrictInt, Field(ge=0)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
Percent = Annotated[float, Field(strict=True, ge=0, le=100)]

SECRET = re.compile(r"key|secret|token|passw|credential|connection_string|signature|\bsig\b", re.IGNORECASE)
HARMLESS = ("anon", "", None, True, False)
VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
PLACEHOLDER = "{name}"


@dataclass(frozen=True)
class Origin:
    """Where an entry was written: file, line (from 1), and the lines of its keys."""

    file: Path
    line: int
    lines: Mapping[str, int] = field(default_factory=dict)

    def at(self, key: str) -> str:
        """`FILE:LINE` of one key of the entry."""
        return f"{self.file}:{self.lines.get(key, self.line)}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Model(BaseModel):
    """Base of everything in a catalog: unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Entry(Model):
    """A named thing in a catalog. `name` and `origin` are set by the loader, not by keys in the file."""

    section: ClassVar[str]
    name: str = Field(default="", exclude=True)
    origin: Origin | None = Field(default=None, exclude=True)

    @property
    def where(self) -> str:
        """`FILE:LINE` of the entry, or '' for one that is in no catalog."""
        return str(self.origin) if self.origin else ""

    def error(self, key: str, message: str) -> InputError:
        """An error about one key of this entry, with file and line where it has one."""
        text = f"{self.section}.{self.name}.{key}: {message}"
        return InputError(f"{self.origin.at(key)}: {text}" if self.origin else text)

    def _local(self, key: str, package: str | None = None) -> Path:
        """The path in the field `key`: in `package` if given, else relative to the catalog's folder."""
        value = getattr(self, key)
        path = Path(os.path.expanduser(self._expand(key, value)))
        if package is not None:
            return package_folder(package) / path
        folder = self.origin.file.resolve().parent if self.origin else Path.cwd()
        return Path(os.path.normpath(folder / path))

    def _expand(self, key: str, value: str) -> str:
        def lookup(match: re.Match[str]) -> str:
            found = os.environ.get(match[1]) or match[2]
            if found is None:
                raise self.error(key, f"the environment variable {match[1]} is not set; set it to a folder ({value})")
            return found

        return VARIABLE.sub(lookup, value)


class DatasetEntry(Entry):
    """Where the samples of one dataset, or of a pattern of datasets, come from.

    A name with `{name}` in it, e.g. `sae-probes/{name}`, stands for every dataset whose table exists.
    Paths may hold `${VARIABLE}` or `${VARIABLE:-default}`; relative ones start at the catalog's folder.
    """

    section: ClassVar[str] = "datasets"
    kind: Literal["text", "image"] = Field(description="text or image")
    table: Text = Field(description="a table (.csv, .tsv, .jsonl, .json, .parquet) or a folder of images")
    package: Text | None = Field(None, description="the import name of an installed package that holds the table")
    text: Text | None = Field(None, description="the column that holds the texts")
    text_path: Text | None = Field(None, description="the column that holds paths of text files")
    image: Text | None = Field(None, description="the column that holds paths of images")
    root: Text | None = Field(None, description="the folder that relative paths in the table start from")
    id: Text | None = Field(None, description="the column of sample ids; row numbers if not given")
    split: Text | None = Field(None, description="the column that holds train, cal, test")
    labels: tuple[Text, ...] = Field((), description="a list of label columns; * and ? match several")
    concepts: tuple[Text, ...] = Field((), description="a list of the concepts that analyses use by default")
    model: Text | None = Field(None, description="the name of an entry in models")
    sae: Text | None = Field(None, description="the name of an entry in saes")
    sample_type: Literal["token", "patch", "cls", "mean", "max", "last"] | None = Field(
        None, description="token, patch, cls, mean, max or last"
    )
    parameters: Text | None = Field(None, description="the name of an entry in parameters")

    @model_validator(mode="after")
    def _columns_fit_kind(self) -> DatasetEntry:
        given = [key for key in ("text", "text_path", "image") if getattr(self, key) is not None]
        allowed = ("image",) if self.kind == "image" else ("text", "text_path")
        wrong = [key for key in given if key not in allowed]
        if wrong:
            raise ValueError(f"{wrong[0]} does not go with kind {self.kind}; expected {' or '.join(allowed)}")
        if len(given) > 1:
            raise ValueError("text and text_path exclude each other; give one")
        if self.is_pattern and (
            self.name.count(PLACEHOLDER) > 1 or os.path.basename(self.table).count(PLACEHOLDER) != 1
        ):
            raise ValueError("a name with {name} needs {name} once in the name and once in the table's file name")
        if not self.is_pattern and PLACEHOLDER in self.table:
            raise ValueError("table has {name} but the entry's name has not; write e.g. 'my-sets/{name}'")
        return self

    @property
    def is_pattern(self) -> bool:
        """True if this entry stands for many datasets."""
        return PLACEHOLDER in self.name

    @property
    def lake_name(self) -> str:
        """The dataset's name in a lake: what follows the last slash, since '/' separates folders there."""
        return self.name.rsplit("/", 1)[-1]

    def table_path(self) -> Path:
        """The table's path on this machine.

        Raises
        ------
        InputError
            An environment variable that it needs is not set.
        DependencyError
            The package that holds it is not installed.
        """
        return self._local("table", self.package)

    def root_path(self) -> Path | None:
        """The folder that relative paths in the table start from; None if the entry names none."""
        return None if self.root is None else self._local("root")

    def concrete(self, part: str) -> DatasetEntry:
        """The entry of one dataset of this pattern, `part` in the place of `{name}`."""
        changes = {"name": self.name.replace(PLACEHOLDER, part), "table": self.table.replace(PLACEHOLDER, part)}
        return self.model_copy(update=changes)

    def match(self, name: str) -> str | None:
        """The part of `name` that stands for `{name}`; None if the pattern does not match."""
        before, _, after = self.name.partition(PLACEHOLDER)
        part = name[len(before) : len(name) - len(after)]
        fits = name.startswith(before) and name.endswith(after) and len(name) > len(before) + len(after)
        return part if fits and not re.search(r"[/\\\0*?\[]", part) else None

    def names(self) -> list[str]:
        """Names of the datasets that this entry stands for and whose tables exist, in natural order."""
        if not self.is_pattern:
            return [self.name]
        folder, file = os.path.split(self.table_path())
        before, _, after = file.partition(PLACEHOLDER)
        try:
            found = os.listdir(folder)
        except OSError:
            return []
        parts = [f[len(before) : len(f) - len(after)] for f in found if f.startswith(before) and f.endswith(after)]
        names = [self.name.replace(PLACEHOLDER, part) for part in sorted(filter(None, parts), key=natural)]
        return [name for name in names if self.match(name)]


class ModelEntry(Entry):
    """A model: a hub id, a local folder, or an archive inside an installed package."""

    section: ClassVar[str] = "models"
    kind: Literal["text", "image"] | None = Field(None, description="text or image")
    hub: Text | None = Field(None, description="a Hugging Face id like google/gemma-2-2b")
    revision: Text | None = Field(None, description="a commit, tag or branch of the hub id")
    path: Text | None = Field(None, description="a local folder with config.json")
    package: Text | None = Field(None, description="the import name of an installed package")
    archive: Text | None = Field(None, description="a zip file inside the package")
    d_model: Positive | None = Field(None, description="a positive integer")
    n_layers: Positive | None = Field(None, description="a positive integer")

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if (self.package is None) != (self.archive is None):
            raise ValueError("package and archive belong together; give both")
        # A hub id may stand beside a package: it says which model the package's archive holds.
        if self.path is not None and (self.hub is not None or self.package is not None):
            raise ValueError("path excludes hub and package; give one source")
        if self.path is None and self.hub is None and self.package is None:
            raise ValueError("no source; give hub, path, or package with archive")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision needs hub")
        return self

    def local_path(self) -> Path | None:
        """The folder of a `path` entry on this machine; None for the other kinds."""
        return None if self.path is None else self._local("path")

    def archive_path(self) -> Path | None:
        """The zip file of a `package` entry on this machine; None for the other kinds."""
        return None if self.archive is None else self._local("archive", self.package)


SAE_SOURCES: dict[str, tuple[tuple[str, ...], ...]] = {
    "saelens": (("release", "sae_id"),),
    "gemma_scope": (("path",), ("repo", "file")),
    "clip_scope": (("path",), ("repo", "file")),
    "folder": (("path",),),
}


class SAEEntry(Entry):
    """An SAE, where its weights come from, and the activations it was trained on."""

    section: ClassVar[str] = "saes"
    source: Literal["saelens", "gemma_scope", "clip_scope", "folder"] = Field(
        description="saelens, gemma_scope, clip_scope or folder"
    )
    release: Text | None = Field(None, description="a SAELens release or hub repository")
    sae_id: Text | None = Field(None, description="the SAE's id in the release")
    repo: Text | None = Field(None, description="a Hugging Face repository")
    file: Text | None = Field(None, description="a file in the repository")
    path: Text | None = Field(None, description="a local file or folder")
    model: Text = Field(description="the name of an entry in models")
    layer: Natural = Field(description="a layer number from 0")
    hook: Text = Field("resid_post", description="a hook point like resid_post")
    d_in: Positive = Field(description="a positive integer")
    d_sae: Positive = Field(description="a positive integer")

    @model_validator(mode="after")
    def _source_is_complete(self) -> SAEEntry:
        given = {key for key in ("release", "sae_id", "repo", "file", "path") if getattr(self, key) is not None}
        ways = SAE_SOURCES[self.source]
        if given not in [set(way) for way in ways]:
            needs = " or ".join(" and ".join(way) for way in ways)
            raise ValueError(f"source {self.source} needs {needs}, got {', '.join(sorted(given)) or 'neither'}")
        return self

    def local_path(self) -> Path | None:
        """The weights on this machine; None if they come from a registry or hub."""
        return None if self.path is None else self._local("path")


class LakeEntry(Entry):
    """A lake: its URL and what the store needs to open it, but never a secret."""

    section: ClassVar[str] = "lakes"
    url: Text = Field(description="a path or URL of a lake")
    storage_options: dict[str, Any] = Field({}, description="a mapping of options for the store")

    @field_validator("url")
    @classmethod
    def _url_holds_no_secret(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.password or any(SECRET.search(key) for key, _ in parse_qsl(parts.query)):
            raise ValueError("holds a secret; " + SECRET_REMEDY)
        return url

    @field_validator("storage_options")
    @classmethod
    def _options_hold_no_secret(cls, options: dict[str, Any]) -> dict[str, Any]:
        todo: list[tuple[str, Any]] = [("", options)]
        while todo:
            prefix, value = todo.pop()
            items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
            for key, item in items:
                nested = isinstance(item, (dict, list))
                if SECRET.search(str(key)) and (nested or item not in HARMLESS):
                    raise ValueError(f"{prefix}{key} looks like a secret; {SECRET_REMEDY}")
                todo.append((f"{prefix}{key}.", item))
        return options

    def resolved_url(self) -> str:
        """The URL; a plain path is made absolute, relative to the catalog's folder."""
        if "://" in self.url or "::" in self.url:
            return self._expand("url", self.url)
        return str(self._local("url"))


SECRET_REMEDY = "secrets never stand in a catalog: set the environment variable that the store reads (for S3 " + (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) or use the cloud's own credential chain"
)


class FixedPruning(Model):
    """Thresholds given as numbers."""

    rule: Literal["fixed"] = Field(description="fixed")
    dead_threshold: Natural = Field(description="a number of active rows from 0")
    ubiquitous_threshold: Fraction = Field(description="a fraction of rows from 0 to 1")
    strength_percentile: Percent = Field(description="a percentile from 0 to 100")


class AdaptivePruning(Model):
    """Thresholds that follow from the concepts: `min_c`, `max_c` = positive rows of the rarest, commonest concept.

    dead = max(dead_floor, int(dead_fraction * min_c)); ubiquitous = ubiquitous_factor * max_c / rows;
    the strength percentile is the first of `strength_steps` [concepts, percentile] with at most that many concepts.
    """

    rule: Literal["adaptive"] = Field(description="adaptive")
    dead_fraction: Fraction = Field(description="a fraction from 0 to 1")
    dead_floor: Natural = Field(0, description="a number of active rows from 0")
    ubiquitous_factor: Annotated[float, Field(strict=True, gt=0)] = Field(description="a positive number")
    strength_steps: tuple[tuple[Positive | None, Percent], ...] = Field(
        min_length=1, description="a list of [most concepts or null, percentile]"
    )

    @field_validator("strength_steps")
    @classmethod
    def _steps_rise(cls, steps: tuple[tuple[int | None, float], ...]) -> tuple[tuple[int | None, float], ...]:
        bounds = [bound for bound, _ in steps[:-1]]
        known = [bound for bound in bounds if bound is not None]
        if steps[-1][0] is not None or len(known) < len(bounds) or known != sorted(set(known)):
            raise ValueError("expected rising numbers of concepts and null in the last step")
        return steps


PRUNING_RULES: dict[str, type[Model]] = {"fixed": FixedPruning, "adaptive": AdaptivePruning}


class ParameterEntry(Entry):
    """A set of analysis parameters under one name."""

    section: ClassVar[str] = "parameters"
    k: Positive | None = Field(None, description="a positive number of slots per row")
    percentiles: tuple[Fraction, ...] = Field((), description="a rising list of fractions from 0 to 1")
    prune: Annotated[FixedPruning | AdaptivePruning, Field(discriminator="rule")] | None = Field(
        None, description="a mapping with rule: fixed or adaptive"
    )

    @field_validator("percentiles")
    @classmethod
    def _percentiles_rise(cls, percentiles: tuple[float, ...]) -> tuple[float, ...]:
        if list(percentiles) != sorted(set(percentiles)):
            raise ValueError("expected a rising list without repeats")
        return percentiles


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises
    ------
    DependencyError
        It is not installed.
    """
    import importlib.util

    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise DependencyError(f"the package {package} is not installed; {INSTALL.get(package, f'install {package}')}")
    return Path(next(iter(spec.submodule_search_locations)))


INSTALL = {
    "sae_probes": "pip install 'saestore[probes]'",
    "all_minilm_l6_v2": "pip install 'saestore[demo]'",
}
