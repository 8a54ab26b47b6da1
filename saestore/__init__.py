"""A lake of model activations and sparse-autoencoder codes.

Everything here is imported when it is first used: `import saestore` loads nothing heavy and touches no network.

Examples
--------
>>> import saestore
>>> lake = saestore.init("memory://tour")
>>> lake.datasets()
[]
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saestore import errors as errors
    from saestore import steer as steer
    from saestore.codes import Codes as Codes
    from saestore.formats.importer import import_activations as import_activations
    from saestore.formats.importer import import_codes as import_codes
    from saestore.lake import Lake as Lake
    from saestore.recipes import run as run
    from saestore.samples import SampleTable as SampleTable
    from saestore.samples import read_samples as read_samples
    from saestore.verbs import catalog as catalog
    from saestore.verbs import compare as compare
    from saestore.verbs import dense as dense
    from saestore.verbs import detect as detect
    from saestore.verbs import encode as encode
    from saestore.verbs import extract as extract
    from saestore.verbs import graph as graph
    from saestore.verbs import import_ as import_
    from saestore.verbs import index as index
    from saestore.verbs import init as init
    from saestore.verbs import label as label
    from saestore.verbs import localise as localise
    from saestore.verbs import neighbours as neighbours
    from saestore.verbs import probe as probe
    from saestore.verbs import probes_export as probes_export
    from saestore.verbs import probes_import as probes_import
    from saestore.verbs import prune as prune
    from saestore.verbs import report_concepts as report_concepts
    from saestore.verbs import report_graph as report_graph
    from saestore.verbs import report_probes as report_probes
    from saestore.verbs import sae_import as sae_import
    from saestore.verbs import sae_list as sae_list
    from saestore.verbs import sae_train as sae_train
    from saestore.verbs import show as show
    from saestore.verbs import stats as stats
    from saestore.verbs import status as status
    from saestore.verbs import steer_bundle as steer_bundle
    from saestore.verbs import thresholds as thresholds
    from saestore.verbs import top as top
    from saestore.verbs.names import open_lake as open

    __version__: str

_HOMES = {
    "Codes": "saestore.codes",
    "Lake": "saestore.lake",
    "SampleTable": "saestore.samples",
    "catalog": "saestore.verbs",
    "compare": "saestore.verbs",
    "detect": "saestore.verbs",
    "graph": "saestore.verbs",
    "localise": "saestore.verbs",
    "thresholds": "saestore.verbs",
    "dense": "saestore.verbs",
    "encode": "saestore.verbs",
    "extract": "saestore.verbs",
    "import_": "saestore.verbs",
    "import_activations": "saestore.formats.importer",
    "import_codes": "saestore.formats.importer",
    "index": "saestore.verbs",
    "init": "saestore.verbs",
    "label": "saestore.verbs",
    "neighbours": "saestore.verbs",
    "open": "saestore.verbs.names",
    "probe": "saestore.verbs",
    "probes_export": "saestore.verbs",
    "probes_import": "saestore.verbs",
    "prune": "saestore.verbs",
    "read_samples": "saestore.samples",
    "report_concepts": "saestore.verbs",
    "report_graph": "saestore.verbs",
    "report_probes": "saestore.verbs",
    "run": "saestore.recipes",
    "sae_import": "saestore.verbs",
    "sae_list": "saestore.verbs",
    "sae_train": "saestore.verbs",
    "show": "saestore.verbs",
    "stats": "saestore.verbs",
    "status": "saestore.verbs",
    "steer_bundle": "saestore.verbs",
    "top": "saestore.verbs",
}
_MODULES = {"errors", "steer"}
_OWN_NAMES = {"open": "open_lake"}

__all__ = [
    "Codes",
    "Lake",
    "SampleTable",
    "__version__",
    "catalog",
    "compare",
    "dense",
    "detect",
    "encode",
    "errors",
    "extract",
    "graph",
    "import_",
    "import_activations",
    "import_codes",
    "index",
    "init",
    "label",
    "localise",
    "neighbours",
    "open",
    "probe",
    "probes_export",
    "probes_import",
    "prune",
    "read_samples",
    "report_concepts",
    "report_graph",
    "report_probes",
    "run",
    "sae_import",
    "sae_list",
    "sae_train",
    "show",
    "stats",
    "status",
    "steer_bundle",
    "thresholds",
    "top",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), _OWN_NAMES.get(name, name))
    if name in _MODULES:
        return importlib.import_module(f"saestore.{name}")
    if name == "__version__":
        from importlib.metadata import version

        return version("saestore")
    raise AttributeError(f"module 'saestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
