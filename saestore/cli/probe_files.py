"""Commands for the files of the sparse-probing benchmark: probes import, probes export."""

from __future__ import annotations

from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import Json, LakeArgument, Postings, Quiet, StoredModel, perform, say_on_stderr


def probes_import(
    lake: LakeArgument,
    folder: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The benchmark's data, or a folder of activations or codes.")
    ],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model's name in the lake.")],
    sae: Annotated[str | None, typer.Option(metavar="NAME", help="Store the codes of this SAE too.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="LAYER", help="Only this one, such as 20 or hook_embed.")] = None,
    datasets: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Data sets, with * and ?; default all of --samples.")
    ] = None,
    samples: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME...", help="The texts: catalog names, with {name}, * or ?; default sae-probes."),
    ] = None,
    files: Annotated[
        str | None, typer.Option(metavar="NAME", help="The SAE in file names, such as 20_width_16k_average_l0_408.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split of codes.")] = 42,
    postings: Postings = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Store activations, and codes, from files of the sparse-probing benchmark.

    \b
    Examples:
      saestore probes import lake data --model gemma-2-9b --layer 20
      saestore probes import lake data --model gemma-2-9b --layer 20 --sae g20-16k \\
          --files 20_width_16k_average_l0_408

    \b
    Exit codes: 0 done, 3 done except for what is listed with its reason.
    """
    perform(
        "probes import",
        lambda: verbs.probes_import(
            lake,
            folder,
            model=model,
            sae=sae,
            layer=layer,
            datasets=datasets or None,
            samples=samples or None,
            files=files,
            seed=seed,
            postings=postings,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )


def probes_export(
    lake: LakeArgument,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Where the benchmark has its data.")],
    datasets: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="Datasets of the lake, with * and ?; default all.")
    ] = None,
    what: Annotated[
        list[str] | None, typer.Option(metavar="KIND...", help="activations, codes, tables; default all.")
    ] = None,
    model: StoredModel = None,
    layers: Annotated[list[str] | None, typer.Option(metavar="LAYER...", help="Such as 20 31; default all.")] = None,
    saes: Annotated[
        list[str] | None, typer.Option(metavar="NAME...", help="SAEs with codes, with * and ?; default all.")
    ] = None,
    name: Annotated[str, typer.Option(metavar="NAME", help="Of the results in tables.")] = "default",
    seed: Annotated[int, typer.Option(help="Of the split of codes.")] = 42,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write activations, codes and results as files of the sparse-probing benchmark.

    \b
    Examples:
      saestore probes export lake data --what activations
      saestore probes export lake data --datasets '9?_glue_*' --layers 20

    \b
    Exit codes: 0 done, 3 done except for what is listed with its reason.
    """
    perform(
        "probes export",
        lambda: verbs.probes_export(
            lake,
            folder,
            datasets=datasets or None,
            what=what or None,
            model=model,
            layers=layers or None,
            saes=saes or None,
            name=name,
            seed=seed,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
