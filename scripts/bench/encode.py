"""Encode from lake to lake, against the bare matrix product, SAELens in memory, and the legacy way."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from records import Record, arguments, child, run
from saelens_rate import saelens_rate

SHAPES = {"1024 x 65536, k 32": (1024, 65_536, 32), "3584 x 16384, k 64": (3584, 16_384, 64)}
BLOCK = 4_096
LEGACY_BLOCK = 1_024


def prepare(folder: str, d_in: int, d_sae: int, k: int, rows: int) -> dict[str, Any]:
    """Make activations with structure and a Top-K SAE that fits them, in a lake and as a SAELens folder."""
    import numpy as np
    import torch
    from sae_lens import TopKSAE, TopKSAEConfig

    from saestore.activations import ARRAY, create_activations
    from saestore.lake import Lake
    from saestore.layout import ActivationsKey, ModelKey
    from saestore.saes.lake import write_sae
    from saestore.saes.sources import open_sae
    from saestore.samples import SampleTable
    from saestore.tables import write_positions, write_samples

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    # Unit directions that are used with very different frequency, as the features of a language model are.
    decoder = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=1)
    frequency = 1.0 / np.arange(1, d_sae + 1) ** 0.8
    sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, device="cpu", rescale_acts_by_decoder_norm=False))
    with torch.no_grad():
        sae.W_dec.copy_(decoder)
        sae.W_enc.copy_(decoder.T)
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    sae.save_model(f"{folder}/sae")

    lake = Lake.create(f"{folder}/lake")
    per_sample = 128
    samples = rows // per_sample
    texts = tuple("" for _ in range(samples))
    table = SampleTable(ids=tuple(str(i) for i in range(samples)), kind="text", contents=texts)
    write_samples(lake.storage, "bench", table)
    offsets = np.arange(samples + 1, dtype=np.int64) * per_sample
    write_positions(
        lake.storage,
        ModelKey("bench", "model"),
        offsets=offsets,
        arrays={"special": np.zeros(rows, dtype=bool)},
        digest="bench",
        attributes={"samples": table.digest(), "content": "text"},
    )
    key = ActivationsKey("bench", "model", "layer_0", "token")
    group = create_activations(lake.storage, key, rows=rows, d_in=d_in, dtype="float16", identity={"made": "bench"})
    chance = frequency / frequency.sum()
    for shard in range(group.grid.n_shards):
        span = group.grid.shard(shard)
        n = span.stop - span.start
        units = torch.from_numpy(rng.choice(d_sae, size=(n, 24), p=chance))
        strength = torch.from_numpy(rng.gamma(4.0, 1.0, size=(n, 24)).astype("float32"))
        x = torch.nn.functional.embedding_bag(units, decoder, per_sample_weights=strength, mode="sum")
        x += 0.1 * torch.randn(n, d_in)
        group.write_shard(shard, {ARRAY: x.numpy().astype("float16")})
    write_sae(lake.storage, "bench", open_sae(f"{folder}/sae"), quiet=True)
    return {}


def ours(folder: str, rows: int) -> dict[str, Any]:
    """Time `encode` from lake to lake: plan, check of the SAE, reading, encoding, writing."""
    import saestore.encoding.encoder  # noqa: F401 - what is compiled is loaded before the clock starts
    from saestore.encoding.writer import encode
    from saestore.lake import Lake

    lake = Lake.open(f"{folder}/lake")
    begun = time.perf_counter()
    encode(lake, "bench", layers=["layer_0"], force=True, quiet=True)
    seconds = time.perf_counter() - begun
    codes = lake.codes("bench")
    return {"rows_per_s": rows / seconds, "bytes_per_row": codes.group.stored_bytes() / rows}


def limit(folder: str, rows: int, d_sae: int) -> dict[str, Any]:
    """Time the bare fp32 matrix product of the same shapes, everything in memory."""
    import torch

    from saestore.lake import Lake

    x = torch.from_numpy(Lake.open(f"{folder}/lake").activations("bench").read(0, BLOCK))
    weights = torch.randn(d_sae, x.shape[1])
    out = torch.empty(BLOCK, d_sae)
    torch.mm(x, weights.T, out=out)
    blocks = max(2, rows // BLOCK)
    begun = time.perf_counter()
    for _ in range(blocks):
        torch.mm(x, weights.T, out=out)
    return {"rows_per_s": blocks * BLOCK / (time.perf_counter() - begun)}


def saelens(folder: str, rows: int, k: int) -> dict[str, Any]:
    """Time SAELens' encode and torch.topk in memory, on rows of the lake."""
    import torch
    from sae_lens import SAE

    from saestore.lake import Lake

    sae = SAE.load_from_disk(f"{folder}/sae", device="cpu")
    x = torch.from_numpy(Lake.open(f"{folder}/lake").activations("bench").read(0, rows))
    return {"rows_per_s": saelens_rate(sae, x, k)}


def legacy(folder: str, rows: int, k: int) -> dict[str, Any]:
    """Time the legacy scripts' way: full latent, top-k, scatter, decode, top-k again, torch.save."""
    import torch
    from sae_lens import SAE

    from saestore.lake import Lake

    sae = SAE.load_from_disk(f"{folder}/sae", device="cpu")
    x = torch.from_numpy(Lake.open(f"{folder}/lake").activations("bench").read(0, rows))
    kept_indices, kept_values = [], []
    begun = time.perf_counter()
    with torch.inference_mode():
        for start in range(0, rows, LEGACY_BLOCK):
            block = x[start : start + LEGACY_BLOCK]
            latent = torch.relu((block - sae.b_dec) @ sae.W_enc + sae.b_enc)
            values, indices = torch.topk(latent, k, dim=-1)
            sparse = torch.zeros_like(latent).scatter_(-1, indices, values)
            _ = sparse @ sae.W_dec + sae.b_dec
            values, indices = torch.topk(sparse, k, dim=-1)
            kept_indices.append(indices)
            kept_values.append(values)
    content = {"indices": torch.cat(kept_indices), "values": torch.cat(kept_values), "format": "sparse_topk", "topk": k}
    file = Path(folder) / "legacy.pt"
    torch.save(content, file)
    seconds = time.perf_counter() - begun
    from safetensors.torch import save_file

    tensors = {"indices": content["indices"].to(torch.int32), "values": content["values"].half()}
    save_file(tensors, f"{folder}/codes.safetensors")
    return {
        "rows_per_s": rows / seconds,
        "bytes_per_row": file.stat().st_size / rows,
        "safetensors_bytes_per_row": Path(f"{folder}/codes.safetensors").stat().st_size / rows,
    }


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure both shapes, the contenders in turn, several rounds; the best round of each counts."""
    records: list[Record] = []
    rows = 8_192 if given.quick else 65_536
    few = 1_024 if given.quick else 8_192
    shapes = {"384 x 16384, k 32": (384, 16_384, 32)} if given.quick else SHAPES
    for name, (d_in, d_sae, k) in shapes.items():
        with tempfile.TemporaryDirectory() as folder:
            child(__file__, "prepare", {"folder": folder, "d_in": d_in, "d_sae": d_sae, "k": k, "rows": rows})
            best: dict[str, dict[str, Any]] = {}
            for _ in range(1 if given.quick else 3):
                for task, extra in (
                    ("limit", {"rows": few, "d_sae": d_sae}),
                    ("ours", {"rows": rows}),
                    ("saelens", {"rows": few, "k": k}),
                    ("legacy", {"rows": few, "k": k}),
                ):
                    forget_codes(folder)
                    result = child(__file__, task, {"folder": folder, **extra})
                    if result["rows_per_s"] > best.get(task, {"rows_per_s": 0.0})["rows_per_s"]:
                        best[task] = result
            records += records_of(name, d_sae, best, binding=not given.quick)
    return records


def forget_codes(folder: str) -> None:
    """Remove the codes of the last round."""
    import shutil

    shutil.rmtree(f"{folder}/lake/data/bench/model/layer_0/codes", ignore_errors=True)


def records_of(name: str, d_sae: int, best: dict[str, dict[str, Any]], *, binding: bool) -> list[Record]:
    """Turn the best rounds into records."""
    rate = best["ours"]["rows_per_s"]

    def against(task: str, versus: str, goal: str = "") -> Record:
        other = best[task]["rows_per_s"]
        what = f"encode lake to lake, {name}"
        return Record.of(what, rate, "rows/s", versus=versus, other=other, goal=goal if binding else "")

    size = best["ours"]["bytes_per_row"]
    small = "<= 100" if binding and name.endswith("k 32") else ""
    records = [
        against("limit", "bare fp32 matrix product", ">= 0.80"),
        against("saelens", "SAELens encode + torch.topk in memory", ">= 1.3"),
        against("legacy", "full latent, top-k, scatter, decode, top-k, torch.save"),
        Record.of(f"codes on disk, {name} (synthetic rows)", size, "B/row", goal=small),
    ]
    for versus, other in (
        ("legacy .pt", best["legacy"]["bytes_per_row"]),
        (".safetensors, int32 and float16", best["legacy"]["safetensors_bytes_per_row"]),
        ("dense float32", d_sae * 4.0),
    ):
        records.append(Record.of(f"codes on disk, {name}", size, "B/row", versus=versus, other=other))
    for task, versus in (("ours", "lake to lake"), ("saelens", "SAELens in memory"), ("legacy", "legacy way")):
        bound = "<= 2.5" if binding and task == "ours" else ""
        records.append(Record.of(f"peak memory, {name}: {versus}", best[task]["peak_bytes"] / 2**30, "GiB", goal=bound))
    return records


if __name__ == "__main__":
    run(arguments(__doc__), measure, prepare, ours, limit, saelens, legacy)
