"""Commands that write a lake: init, extract, import, encode, index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from saestore import verbs
from saestore.cli.options import (
    Datasets,
    Device,
    DryRun,
    Json,
    LakeArgument,
    Memory,
    Postings,
    Quiet,
    SampleTypes,
    Scheduler,
    StoredModel,
    fractions,
    perform,
    say_on_stderr,
)


def init(lake: LakeArgument, json: Json = False) -> None:
    """Make an empty lake; one that is there is left as it is.

    \b
    Examples:
      saestore init demo/lake
      saestore init s3://bucket/lake
    """
    perform("init", lambda: verbs.init(lake), {}, json=json)


def extract(
    lake: LakeArgument,
    datasets: Annotated[
        list[str], typer.Option(metavar="NAME...", help="Catalog names, tables, .txt files, folders of images, or -.")
    ],
    model: Annotated[str, typer.Option(metavar="MODEL", help="A catalog name, a folder, or a hub id org/name.")],
    layers: Annotated[list[str], typer.Option(metavar="LAYER...", help="Such as 3 5, or layer_3.mlp_out.")],
    sample_type: SampleTypes = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Stored as float16, bfloat16 or float32.")] = "float16",
    limit: Annotated[int | None, typer.Option(help="Only the first samples of each dataset.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Only the first samples with at most so many tokens in all.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The name in the lake, where one dataset is given.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a file: the texts.")] = None,
    image: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a file: paths of images.")] = None,
    text_path: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a file: paths of texts.")] = None,
    id: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a file: sample ids.")] = None,
    split: Annotated[str | None, typer.Option(metavar="COLUMN", help="Of a file: train, cal or test.")] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=PART...", help="For samples without splits, such as train=0.6 cal=0.2 test=0.2."),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN...", help="Of a file: labels; * and ? match several.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="The folder that paths in a file start from.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most tokens of a text.")] = None,
    truncation_side: Annotated[
        str, typer.Option(metavar="SIDE", help="Which end of longer texts is cut off: right or left.")
    ] = "right",
    device: Device = "auto",
    model_dtype: Annotated[str, typer.Option(metavar="DTYPE", help="The model runs in this.")] = "float32",
    scheduler: Scheduler = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a model over texts or images and store activations of several layers from one pass.

    \b
    Examples:
      saestore extract demo/lake --datasets sae-probes/5_hist_fig_ismale --model MiniLM --layers 2 4
      saestore extract demo/lake --datasets reviews.csv --text body --labels stars --model MiniLM \\
          --layers 4 --sample-type token mean --limit 1000
      saestore extract demo/lake --datasets prompts.txt --model DialoGPT-small --layers 2 4 6 8 --sample-type mean
      zcat web.txt.gz | saestore extract demo/lake --datasets - --name web --model gemma-2-2b --layers 12 \\
          --max-tokens 1000000
    """
    perform(
        "extract",
        lambda: verbs.extract(
            lake,
            datasets,
            model=model,
            layers=layers,
            sample_type=sample_type,
            dtype=dtype,
            limit=limit,
            max_tokens=max_tokens,
            name=name,
            text=text,
            image=image,
            text_path=text_path,
            id=id,
            split=split,
            splits=fractions(splits, "--splits"),
            labels=labels or None,
            root=root,
            max_length=max_length,
            truncation_side=truncation_side,  # type: ignore[arg-type]
            device=device,
            model_dtype=model_dtype,
            scheduler=scheduler,
            dry_run=dry_run,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {"dry_run": dry_run},
        json=json,
    )


def import_(
    lake: LakeArgument,
    path: Annotated[str, typer.Argument(metavar="PATH", help="A .pt, .npy, .npz or safetensors file, or a folder.")],
    dataset: Annotated[str, typer.Option(metavar="NAME", help="The dataset that the rows belong to.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="The model that made them.")],
    layer: Annotated[str, typer.Option(metavar="LAYER", help="Such as 22 or layer_22.mlp_out.")],
    sample_type: Annotated[str, typer.Option(metavar="TYPE", help="token, patch, cls, mean, max or last.")],
    sae: Annotated[str | None, typer.Option(metavar="NAME", help="The file holds codes of this SAE.")] = None,
    d_sae: Annotated[int | None, typer.Option(help="Its number of units, if the file does not say.")] = None,
    key: Annotated[str | None, typer.Option(help="Which array of a file that holds several.")] = None,
    per_sample: Annotated[int | None, typer.Option(help="Rows of each sample, if all have as many.")] = None,
    offsets: Annotated[
        str | None, typer.Option(metavar="FILE", help="A .npy with the first row of each sample, and the end.")
    ] = None,
    samples: Annotated[
        str | None, typer.Option(metavar="NAME", help="The samples: a catalog name, a table or a folder.")
    ] = None,
    splits: Annotated[
        list[str] | None,
        typer.Option(metavar="SPLIT=PART...", help="For samples without splits, such as train=0.6 cal=0.2 test=0.2."),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="The rows are of new samples, which follow those of the dataset.")
    ] = False,
    hook_name: Annotated[str | None, typer.Option(help="SAELens' hook; encode compares it with the SAE's.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="DTYPE", help="Stored as this; default the file's.")] = None,
    postings: Postings = True,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Store activations, or codes, that other tools wrote to files.

    \b
    Examples:
      saestore import lake clevr_layer22.pt --dataset CLEVR --model clip --layer 22 \\
          --sample-type patch --per-sample 256
      saestore import lake codes.pt --sae clip-scope-22 --dataset CLEVR --model clip --layer 22 \\
          --sample-type patch --per-sample 256
      saestore import lake more.pt --append --dataset CLEVR --model clip --layer 22 \\
          --sample-type patch --per-sample 256
    """
    perform(
        "import",
        lambda: verbs.import_(
            lake,
            path,
            dataset=dataset,
            model=model,
            layer=layer,
            sample_type=sample_type,
            sae=sae,
            d_sae=d_sae,
            key=key,
            per_sample=per_sample,
            offsets=offsets,
            samples=samples,
            splits=fractions(splits, "--splits"),
            append=append,
            hook_name=hook_name,
            dtype=dtype,
            postings=postings,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )


def encode(
    lake: LakeArgument,
    saes: Annotated[list[str], typer.Option(metavar="NAME...", help="SAEs of the lake.")],
    datasets: Datasets = None,
    layers: Annotated[
        list[str] | None, typer.Option(metavar="LAYER...", help="Default: what the SAE was trained on.")
    ] = None,
    sample_type: SampleTypes = None,
    model: StoredModel = None,
    k: Annotated[int | None, typer.Option(help="Slots per row; default the SAE's K, or all active units.")] = None,
    dtype: Annotated[str, typer.Option(metavar="DTYPE", help="Values as float16, bfloat16 or float32.")] = "float16",
    device: Device = "auto",
    precision: Annotated[
        str, typer.Option(metavar="PRECISION", help="Products in fp32; on GPUs tf32 or bf16 are faster, less exact.")
    ] = "fp32",
    memory: Memory = None,
    scheduler: Scheduler = None,
    postings: Postings = True,
    force: Annotated[bool, typer.Option("--force", help="Go on although hook or quality do not fit.")] = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Turn stored activations into sparse codes.

    \b
    Examples:
      saestore encode demo/lake --saes minilm-topk-4096
      saestore encode lake --saes clip-scope-22 --datasets CLEVR Coco --sample-type patch --layers 22 --k 32
      saestore encode lake --saes gemma-1m --memory 4GiB --dry-run

    \b
    Exit codes: 0 done, 2 nothing could be done, 3 done except for what is listed with its reason.
    """
    perform(
        "encode",
        lambda: verbs.encode(
            lake,
            saes,
            datasets=datasets or None,
            layers=layers or None,
            sample_type=sample_type,
            model=model,
            k=k,
            dtype=dtype,
            device=device,
            precision=precision,
            memory=memory,
            scheduler=scheduler,
            postings=postings,
            force=force,
            dry_run=dry_run,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {"dry_run": dry_run},
        json=json,
    )


def index(
    lake: LakeArgument,
    datasets: Datasets = None,
    saes: Annotated[list[str] | None, typer.Option(metavar="NAME...", help="SAEs of the lake; default all.")] = None,
    layers: Annotated[list[str] | None, typer.Option(metavar="LAYER...", help="Default all.")] = None,
    sample_type: SampleTypes = None,
    model: StoredModel = None,
    memory: Memory = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Build the postings of codes, from which units are read; encode and import do it by themselves.

    \b
    Examples:
      saestore index demo/lake
      saestore index lake --datasets Coco --saes clip-scope-22 --memory 2GiB

    \b
    Exit codes: 0 done, 3 done except for rows of codes that were never written.
    """
    perform(
        "index",
        lambda: verbs.index(
            lake,
            datasets=datasets or None,
            saes=saes or None,
            layers=layers or None,
            sample_type=sample_type,
            model=model,
            memory=memory,
            scheduler=scheduler,
            quiet=quiet,
            say=say_on_stderr(quiet),
        ),
        {},
        json=json,
    )
