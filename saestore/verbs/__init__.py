"""The verbs of saestore as functions: what each command of the CLI does, with the same names and parameters.

Each takes the lake first (a `Lake`, a path, a URL, or a name in the catalog), returns plain data and prints nothing.
"""

from saestore.formats.dense_export import DenseFile
from saestore.verbs.concepts import compare, detect, localise, thresholds
from saestore.verbs.graphing import MadeGraph, graph
from saestore.verbs.indexing import index
from saestore.verbs.labelling import label
from saestore.verbs.listing import CatalogRow, LakeStatus, catalog, status
from saestore.verbs.making import encode, extract, import_, init
from saestore.verbs.neighbouring import GraphUnit, Neighbours, UnitEdge, neighbours
from saestore.verbs.probe_files import probes_export, probes_import
from saestore.verbs.probing import ProbedTask, Probes, probe
from saestore.verbs.pruning import Pruned, prune
from saestore.verbs.reporting import (
    WrittenGraphReport,
    WrittenProbeReport,
    WrittenReport,
    report_concepts,
    report_graph,
    report_probes,
)
from saestore.verbs.showing import ShownRow, ShownRows, ShownUnit, TopUnits, show, top
from saestore.verbs.slicing import dense
from saestore.verbs.statistics import UnitTable, stats
from saestore.verbs.steering import WrittenBundle, steer_bundle
from saestore.verbs.storage_cost import StorageCost
from saestore.verbs.training import SAESummary, Training, sae_import, sae_list, sae_train

__all__ = [
    "CatalogRow",
    "DenseFile",
    "GraphUnit",
    "LakeStatus",
    "MadeGraph",
    "Neighbours",
    "ProbedTask",
    "Probes",
    "Pruned",
    "SAESummary",
    "ShownRow",
    "ShownRows",
    "ShownUnit",
    "StorageCost",
    "TopUnits",
    "Training",
    "UnitEdge",
    "UnitTable",
    "WrittenBundle",
    "WrittenGraphReport",
    "WrittenProbeReport",
    "WrittenReport",
    "catalog",
    "compare",
    "dense",
    "detect",
    "encode",
    "extract",
    "graph",
    "import_",
    "index",
    "init",
    "label",
    "localise",
    "neighbours",
    "probe",
    "probes_export",
    "probes_import",
    "prune",
    "report_concepts",
    "report_graph",
    "report_probes",
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
