"""Commands for SAEs: import, list, train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import (
    Datasets,
    Json,
    LakeArgument,
    Quiet,
    StoredModel,
    perform,
    say_on_stderr,
)


def sae_import(
    lake: LakeArgument,
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A catalog name, a folder, a file, or release:sae_id of SAELens.")
    ],
    name: Annotated[str | None, typer.Option(help="Its name in the lake.")] = None,
    hook_name: Annotated[str | None, typer.Option(help="Where it belongs, if it does not say.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Its model, if it does not say.")] = None,
    norm_scaling_factor: Annotated[float | None, typer.Option(help="Folds a missing normalisation in.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Leave the matrices in their files; they must stay.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Copy an SAE into the lake.

    \b
    Examples:
      saestore sae import demo/lake demo/sae/minilm --name minilm-topk-4096
      saestore sae import lake gemma-scope-9b-res-34-16k
      saestore sae import lake /weights/params.npz --name gemma-1m --link
      saestore sae import lake gemma-scope-9b-pt-res-canonical:layer_34/width_16k/canonical --name g34
    """
    perform(
        "sae import",
        lambda: verbs.sae_import(
            lake,
            source,
            name=name,
            hook_name=hook_name,
            model_name=model_name,
            norm_scaling_factor=norm_scaling_factor,
            link=link,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )


def sae_list(lake: LakeArgument, json: Json = False) -> None:
    """List the SAEs of a lake.

    \b
    Example:
      saestore sae list demo/lake
    """
    perform("sae list", lambda: verbs.sae_list(lake), {}, json=json)


def sae_train(
    lake: LakeArgument,
    out: Annotated[Path, typer.Option(help="The folder to make, in SAELens' layout.")],
    layer: Annotated[str, typer.Option(metavar="LAYER", help="Whose activations, such as 4 or layer_4.mlp_out.")],
    datasets: Datasets = None,
    sample_type: Annotated[str, typer.Option(metavar="TYPE", help="token, patch, cls, mean, max or last.")] = "token",
    model: StoredModel = None,
    d_sae: Annotated[int, typer.Option(help="Units.")] = 4096,
    k: Annotated[int, typer.Option(help="Active units per row.")] = 32,
    samples: Annotated[int, typer.Option(help="Rows seen in all.")] = 200_000,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 3e-3,
    batch_size: Annotated[int, typer.Option(help="Rows per step.")] = 1024,
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a Top-K SAE with SAELens on stored activations.

    \b
    Example:
      saestore sae train demo/lake --layer 4 --out demo/sae/minilm --d-sae 4096 --k 32
    """
    perform(
        "sae train",
        lambda: verbs.sae_train(
            lake,
            out=out,
            layer=layer,
            datasets=datasets or None,
            sample_type=sample_type,
            model=model,
            d_sae=d_sae,
            k=k,
            samples=samples,
            lr=lr,
            batch_size=batch_size,
            seed=seed,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
