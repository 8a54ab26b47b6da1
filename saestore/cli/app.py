"""The commands of saestore, put together: every verb with its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import typer

from saestore.cli import (
    concepts,
    graphing,
    labelling,
    making,
    neighbouring,
    probe_files,
    probing,
    pruning,
    reading,
    reporting,
    running,
    saes,
    steering,
)

app = typer.Typer(
    name="saestore",
    help="A lake of model activations and sparse-autoencoder codes.",
    epilog="Options that may stand anywhere: --debug (show tracebacks), --catalog FILE (one more catalog). "
    "Example: saestore run pipelines/quickstart.yaml",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
report_app = typer.Typer(name="report", help="Write results as web pages.", rich_markup_mode=None)
probes_app = typer.Typer(name="probes", help="Files of the probing benchmark, in and out.", rich_markup_mode=None)
steer_app = typer.Typer(name="steer", help="Bundles to steer a model with.", rich_markup_mode=None)
sae_app = typer.Typer(name="sae", help="Import, list and train SAEs.", rich_markup_mode=None)
COMMANDS: Mapping[str, Callable[..., None]] = {
    "init": making.init,
    "catalog": reading.catalog,
    "extract": making.extract,
    "import": making.import_,
    "encode": making.encode,
    "index": making.index,
    "label": labelling.label,
    "status": reading.status,
    "show": reading.show,
    "top": reading.top,
    "stats": reading.stats,
    "prune": pruning.prune,
    "thresholds": concepts.thresholds,
    "detect": concepts.detect,
    "localise": concepts.localise,
    "compare": concepts.compare,
    "graph": graphing.graph,
    "neighbours": neighbouring.neighbours,
    "probe": probing.probe,
    "dense": reading.dense,
    "run": running.run,
}
SAE_COMMANDS: Mapping[str, Callable[..., None]] = {
    "import": saes.sae_import,
    "list": saes.sae_list,
    "train": saes.sae_train,
}
STEER_COMMANDS: Mapping[str, Callable[..., None]] = {"bundle": steering.steer_bundle}
PROBES_COMMANDS: Mapping[str, Callable[..., None]] = {
    "import": probe_files.probes_import,
    "export": probe_files.probes_export,
}
REPORT_COMMANDS: Mapping[str, Callable[..., None]] = {
    "concepts": reporting.report_concepts,
    "probes": reporting.report_probes,
    "graph": reporting.report_graph,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
for name, command in SAE_COMMANDS.items():
    sae_app.command(name)(command)
for name, command in STEER_COMMANDS.items():
    steer_app.command(name)(command)
for name, command in PROBES_COMMANDS.items():
    probes_app.command(name)(command)
for name, command in REPORT_COMMANDS.items():
    report_app.command(name)(command)
app.add_typer(sae_app)
app.add_typer(steer_app)
app.add_typer(probes_app)
app.add_typer(report_app)


def _version(wanted: bool) -> None:
    if wanted:
        import saestore

        typer.echo(f"saestore {saestore.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A lake of model activations and sparse-autoencoder codes."""
