"""Encode with SAEs of 16 thousand to a million units: rate, memory, cold weights, the plan, and a grid in one call.

Weights and rows are standard normal numbers from a seed, so that every run sees the same. A weights' lake takes
8 bytes per unit and input (W_enc and W_dec in float32): 30 GB at a million units of 3,584. `--keep FOLDER` keeps the
lakes for the next run; without it each is made in a temporary folder and removed when its width is done.

Memory is measured as the peak resident memory of the whole process, which counts anonymous pages and pages of mapped
files; files are read and not mapped, so what the system caches of them belongs to no process. At a million units
RLIMIT_DATA holds the process to 4 GiB of private writable memory besides, touched or not: it would fail beyond.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folders import has_room, kept_folder
from records import Record, arguments, best_round, child, run
from saelens_rate import SAELENS_BLOCK, saelens_rate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from saestore.saes.config import SAEConfig
    from saestore.saes.weights import FloatArray, MatrixName

WIDTHS = {"16k": 16_384, "65k": 65_536, "131k": 131_072, "1M": 1_048_576}
QUICK_WIDTHS = {"4k": 4_096, "16k": 16_384}
INPUTS, QUICK_INPUT = (1_024, 3_584), 256
K = 64
MEMORY, MEMORY_GIB = "4GiB", 4
ROUNDS = 3
PER_SAMPLE = 128
CHECKED_ROWS = 2_048
RELATIVE = 1e-5

PRODUCT_ROWS, PRODUCT_UNITS = 4_096, 65_536
SAELENS_ROWS = 8_192
SAELENS_COPIES = 3  # of a block's dense latents at once: products, what is kept of them, and the sum with the bias
SAELENS_SHARE = 0.6
SAELENS_FLOP = 4e12

GRID_SAES, GRID_DATASETS = 3, 4
RUN_UNITS = 1_024
SAE, DATASET, CHECKED, MODEL, LAYER, HOOK = "bench", "bench", "checked", "model", "layer_0", "blocks.0.hook_resid_post"


class SyntheticWeights:
    """A Top-K SAE of normal numbers, `W_dec` the same as `W_enc`, made again whenever they are read; see `SAEWeights`.

    Each run of 1,024 units has a generator of its own, so that any of them can be made without the others.
    """

    def __init__(self, d_in: int, d_sae: int, seed: int) -> None:
        from saestore.saes.config import SAEConfig

        self._seed = seed
        self._config = SAEConfig(
            architecture="topk", d_in=d_in, d_sae=d_sae, k=K, hook_name=HOOK, source=f"seed {seed}"
        )
        self._norms: FloatArray | None = None
        self._latest: tuple[slice, FloatArray] | None = None

    @property
    def config(self) -> SAEConfig:
        """The configuration of the SAE."""
        return self._config

    def rows(self, name: MatrixName, units: slice) -> FloatArray:
        """Return the rows of consecutive units; of the last ones read a copy, since the two matrices are alike."""
        import numpy as np

        if self._latest is None or self._latest[0] != units:
            start, stop, _ = units.indices(self._config.d_sae)
            made = np.empty((stop - start, self._config.d_in), np.float32)
            for number in range(start // RUN_UNITS, -(-stop // RUN_UNITS)):
                first = number * RUN_UNITS
                low, high = max(first, start), min(first + RUN_UNITS, stop)
                made[low - start : high - start] = self._run(number)[low - first : high - first]
            self._latest = units, made
        return self._latest[1].copy()

    def take(self, name: MatrixName, units: NDArray[np.integer[Any]]) -> FloatArray:
        """Return the rows of chosen units."""
        import numpy as np

        taken = np.empty((len(units), self._config.d_in), np.float32)
        runs = np.asarray(units) // RUN_UNITS
        for number in np.unique(runs):
            taken[runs == number] = self._run(int(number))[np.asarray(units)[runs == number] % RUN_UNITS]
        return taken

    def vector(self, name: str) -> FloatArray:
        """Return zeros for the biases, or the norms of the decoder's rows."""
        import numpy as np

        from saestore.saes.weights import decoder_norms

        if name != "decoder_norms":
            return np.zeros(self._config.d_in if name == "b_dec" else self._config.d_sae, np.float32)
        if self._norms is None:
            self._norms = decoder_norms(self)
        return self._norms

    def content_hash(self) -> str:
        """Return a hash of what the numbers are made from."""
        made_from = ["normal", RUN_UNITS, self._seed, self._config.arithmetic()]
        return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()

    def _run(self, number: int) -> FloatArray:
        import numpy as np

        generator = np.random.Generator(np.random.SFC64([self._seed, number]))
        made = generator.standard_normal((RUN_UNITS, self._config.d_in), dtype=np.float32)
        made /= np.float32(np.sqrt(self._config.d_in))
        return made


def prepare(folder: str, d_in: int, d_sae: int, saes: list[str], datasets: dict[str, int]) -> dict[str, Any]:
    """Write SAEs, and rows for each dataset, into a lake."""
    import saestore
    from saestore.saes.lake import write_sae

    lake = saestore.init(f"{folder}/lake")
    for seed, name in enumerate(saes):
        write_sae(lake.storage, name, SyntheticWeights(d_in, d_sae, seed), quiet=True)
    for seed, (dataset, rows) in enumerate(datasets.items()):
        file = Path(folder) / f"{dataset}.npy"
        write_rows(file, rows, d_in, seed)
        saestore.import_(
            lake,
            file,
            dataset=dataset,
            model=MODEL,
            layer=LAYER,
            sample_type="token",
            per_sample=PER_SAMPLE,
            hook_name=HOOK,
            quiet=True,
        )
        file.unlink()
    return {}


def write_rows(file: Path, rows: int, d_in: int, seed: int) -> None:
    """Write normal float16 rows to a .npy file."""
    import numpy as np

    generator = np.random.Generator(np.random.SFC64([seed, d_in]))
    out = np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(rows, d_in))
    for start in range(0, rows, RUN_UNITS):
        out[start : start + RUN_UNITS] = generator.standard_normal(out[start : start + RUN_UNITS].shape, np.float32)
    out.flush()


def plan(folder: str) -> dict[str, Any]:
    """Take down what a dry run says that the work will cost."""
    import saestore

    [result] = saestore.encode(
        f"{folder}/lake", SAE, datasets=[DATASET], memory=MEMORY, force=True, dry_run=True, quiet=True
    )
    assert result.plan is not None, "the codes of an earlier round are still there"
    told = result.plan
    return {
        "peak_bytes_planned": told.peak_bytes,
        "seconds_planned": told.seconds,
        "block_rows": min(told.block_rows, result.rows),
    }


def ours(folder: str, rows: int, held_to: int | None) -> dict[str, Any]:
    """Time `encode` from lake to lake: plan, check of the SAE, reading, encoding, writing."""
    if held_to is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (held_to, held_to))
    import saestore
    import saestore.encoding.encoder  # what is compiled is loaded before the clock starts

    begun = time.perf_counter()
    saestore.encode(f"{folder}/lake", SAE, datasets=[DATASET], memory=MEMORY, force=True, quiet=True)
    seconds = time.perf_counter() - begun
    return {"rows_per_s": rows / seconds, "seconds": seconds}


def product(d_in: int, d_sae: int, seconds: float) -> dict[str, Any]:
    """Time the bare fp32 matrix product in memory, of some rows and some units again and again."""
    import torch

    units = min(d_sae, PRODUCT_UNITS)
    x, weights = torch.randn(PRODUCT_ROWS, d_in), torch.randn(units, d_in)
    out = torch.empty(PRODUCT_ROWS, units)
    torch.mm(x, weights.T, out=out)
    times, begun = 0, time.perf_counter()
    while times < 2 or time.perf_counter() - begun < seconds:
        torch.mm(x, weights.T, out=out)
        times += 1
    return {"rows_per_s": times * PRODUCT_ROWS * units / d_sae / (time.perf_counter() - begun)}


def saelens(d_in: int, d_sae: int, rows: int, architecture: str) -> dict[str, Any]:
    """Time SAELens' encode and torch.topk in memory, on rows of normal numbers."""
    import torch

    sae = saelens_sae(d_in, d_sae, architecture)
    return {"rows_per_s": saelens_rate(sae, torch.randn(rows, d_in), K)}


def saelens_sae(d_in: int, d_sae: int, architecture: str) -> Any:
    """Return SAELens' own SAE with the same weights as that of the lake."""
    import torch
    from sae_lens import StandardSAE, StandardSAEConfig, TopKSAE, TopKSAEConfig

    if architecture == "topk":
        sae = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=K, device="cpu", rescale_acts_by_decoder_norm=False))
    else:
        sae = StandardSAE(StandardSAEConfig(d_in=d_in, d_sae=d_sae, device="cpu"))
    weights = SyntheticWeights(d_in, d_sae, 0)
    with torch.no_grad():
        for start in range(0, d_sae, RUN_UNITS):
            units = slice(start, min(start + RUN_UNITS, d_sae))
            made = torch.from_numpy(weights.rows("W_dec", units))
            sae.W_dec[units] = made
            sae.W_enc[:, units] = made.T
        sae.b_enc.zero_()
        sae.b_dec.zero_()
    return sae


def check(folder: str, d_in: int, d_sae: int) -> dict[str, Any]:
    """Count where codes in float32 differ from those of SAELens.

    The two may swap units whose exact pre-activations differ by less than 1e-5 of them. `support`: rows that differ in
    more than that; `values`: activations of the same unit that differ by more than 1e-5 of them; `swapped`: rows with
    swapped units.
    """
    import numpy as np
    import torch

    import saestore

    lake = saestore.open(f"{folder}/lake")
    saestore.encode(lake, SAE, datasets=[CHECKED], memory=MEMORY, dtype="float32", force=True, quiet=True)
    codes = lake.codes(CHECKED).rows(slice(None))
    x = lake.activations(CHECKED).read()
    with torch.inference_mode():
        found = torch.topk(saelens_sae(d_in, d_sae, "topk").encode(torch.from_numpy(x)), K, dim=-1)
    weights = SyntheticWeights(d_in, d_sae, 0)
    support = values = swapped = 0
    for row, ours_units, ours_values, their_units, their_values in zip(
        x, codes.indices, codes.values, found.indices.numpy(), found.values.numpy(), strict=True
    ):
        ours = dict(zip(ours_units[ours_values != 0].tolist(), ours_values[ours_values != 0].tolist(), strict=True))
        theirs = dict(
            zip(their_units[their_values != 0].tolist(), their_values[their_values != 0].tolist(), strict=True)
        )
        both = sorted(ours.keys() & theirs.keys())
        mine, other = np.array([ours[unit] for unit in both]), np.array([theirs[unit] for unit in both])
        values += int(np.count_nonzero(np.abs(mine - other) > RELATIVE * np.abs(other)))
        differing = np.array(sorted(ours.keys() ^ theirs.keys()), np.int64)
        if len(differing):
            exact = weights.take("W_enc", differing).astype(np.float64) @ row.astype(np.float64)
            is_tie = len(ours) == len(theirs) and np.ptp(exact) < RELATIVE * np.abs(exact).min()
            swapped += is_tie
            support += not is_tie
    return {"support": support, "values": values, "swapped": int(swapped), "rows": len(x)}


def grid(folder: str, saes: list[str], datasets: list[str]) -> dict[str, Any]:
    """Encode several datasets with several SAEs in one call, counting loads and the bytes of each kind read."""
    import threading

    import saestore
    from saestore.activations import Activations
    from saestore.encoding.encoder import Encoder
    from saestore.storage import LocalStorage

    lock = threading.Lock()
    counts = {"loads": 0, "rows": 0, "activation_bytes": 0, "matrix_bytes": 0}

    def count(what: str, amount: int) -> None:
        with lock:
            counts[what] += amount

    init, read, get, get_ranges = Encoder.__init__, Activations.read, LocalStorage.get, LocalStorage.get_ranges

    def counted_init(self: Encoder, *given: Any, **named: Any) -> None:
        count("loads", 1)
        init(self, *given, **named)

    def counted_read(self: Activations, start: int = 0, stop: int | None = None) -> Any:
        rows = read(self, start, stop)
        count("rows", len(rows))
        return rows

    def counted_bytes(key: str, parts: list[bytes]) -> None:
        amount = sum(map(len, parts))
        if "/activations/" in key:
            count("activation_bytes", amount)
        elif key.startswith("saes/") and "/W_enc" in key:
            count("matrix_bytes", amount)

    def counted_get(self: LocalStorage, key: str) -> bytes | None:
        content = get(self, key)
        counted_bytes(key, [content or b""])
        return content

    def counted_ranges(self: LocalStorage, key: str, ranges: Any) -> list[bytes] | None:
        parts = get_ranges(self, key, ranges)
        counted_bytes(key, parts or [])
        return parts

    lake = saestore.open(f"{folder}/lake")
    stored = [lake.activations(dataset) for dataset in datasets]
    result: dict[str, Any] = {
        "rows_stored": sum(activations.n_rows for activations in stored),
        "activation_bytes_stored": sum(activations.group.stored_bytes() for activations in stored),
    }
    Encoder.__init__, Activations.read = counted_init, counted_read  # type: ignore[method-assign]
    LocalStorage.get, LocalStorage.get_ranges = counted_get, counted_ranges  # type: ignore[method-assign]
    before, begun = bytes_read(), time.perf_counter()
    saestore.encode(lake, saes, datasets=datasets, memory=MEMORY, force=True, quiet=True)
    return {**result, **counts, "seconds": time.perf_counter() - begun, "process_bytes": bytes_read() - before}


def bytes_read() -> int:
    """Return the bytes that this process has read from files, by the system's count; 0 where it keeps none."""
    try:
        text = Path("/proc/self/io").read_text()
    except FileNotFoundError:
        return 0
    return int(next(line for line in text.splitlines() if line.startswith("rchar:")).split()[1])


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure each width and input, then the grid."""
    inputs = [QUICK_INPUT] if given.quick else [d_in for d_in in INPUTS if d_in in given.d_in]
    widths = QUICK_WIDTHS if given.quick else {name: WIDTHS[name] for name in WIDTHS if name in given.widths}
    cases = [Case(d_in, name, d_sae, quick=given.quick) for d_in in inputs for name, d_sae in widths.items()]
    records: list[Record] = []
    with kept_folder(given.keep) as keep:
        for case in cases:
            if not is_affordable(keep, case):
                continue
            folder = prepared(keep, case)
            records += measured(case, str(folder), cold=given.cold)
            if given.keep is None:
                shutil.rmtree(folder)
    if "16k" in widths:
        records += grid_records(inputs[0], WIDTHS["16k"], quick=given.quick)
    return records


@dataclass(frozen=True)
class Case:
    """One width of rows and SAE, and how much is measured of it."""

    d_in: int
    width: str
    d_sae: int
    quick: bool

    @property
    def name(self) -> str:
        """Rows' width by units."""
        return f"{self.d_in} x {self.width}"

    @property
    def is_largest(self) -> bool:
        """Whether a round takes many minutes."""
        return self.width == "1M"

    @property
    def is_checked(self) -> bool:
        """Whether codes are held against those of SAELens."""
        return self.width == "16k" and self.d_in in (QUICK_INPUT, INPUTS[0])

    @property
    def rows(self) -> int:
        """Rows that are encoded."""
        if self.quick:
            return 4_096
        if self.d_sae >= WIDTHS["131k"]:
            return 16_384
        return 65_536 if self.d_in == INPUTS[0] else 32_768

    @property
    def rounds(self) -> int:
        """How often each contender runs."""
        return 1 if self.quick or self.is_largest else ROUNDS

    @property
    def matrix_bytes(self) -> int:
        """Bytes of the encoder's or the decoder's matrix."""
        return 4 * self.d_in * self.d_sae

    @property
    def datasets(self) -> dict[str, int]:
        """The datasets that are encoded, and their rows."""
        return {DATASET: self.rows} | ({CHECKED: CHECKED_ROWS} if self.is_checked else {})

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: both matrices, the rows as a file and in the lake, and codes."""
        return 2 * self.matrix_bytes + sum(self.datasets.values()) * (2 * 2 * self.d_in + 8 * K)

    @property
    def saelens_classes(self) -> tuple[str, ...]:
        """SAELens' classes to measure: none where both matrices and the dense latents of a batch are too large."""
        import psutil

        if self.quick:
            return ("topk",) if self.is_checked else ()
        needed = 2 * self.matrix_bytes + SAELENS_COPIES * 4 * SAELENS_BLOCK * self.d_sae
        return ("topk", "standard") if needed <= SAELENS_SHARE * psutil.virtual_memory().total else ()

    @property
    def saelens_rows(self) -> int:
        """Rows that SAELens encodes: whole batches, as many as take some seconds."""
        affordable = int(SAELENS_FLOP / (2 * self.d_in * self.d_sae)) // SAELENS_BLOCK
        return SAELENS_BLOCK * max(2, min(affordable, SAELENS_ROWS // SAELENS_BLOCK))

    def goal(self, bound: str, *, applies: bool = True) -> str:
        """Return a goal where it applies; a quick run has none."""
        return bound if applies and not self.quick else ""


def is_affordable(keep: Path, case: Case) -> bool:
    """Whether the lake of a case is there already, or the disk has room for it."""
    return ready_file(keep, case).exists() or has_room(keep, case.name, case.disk_bytes + (2 << 30))


def ready_file(keep: Path, case: Case) -> Path:
    """Return the file that says that a lake was written to its end."""
    return keep / f"{case.d_in}x{case.width}" / "ready.json"


def prepared(keep: Path, case: Case) -> Path:
    """Return the folder of a lake with the SAE and the rows, making it unless it is kept from an earlier run."""
    ready = ready_file(keep, case)
    made_from = {"d_in": case.d_in, "d_sae": case.d_sae, "saes": [SAE], "datasets": case.datasets}
    if not ready.exists() or json.loads(ready.read_text()) != made_from:
        shutil.rmtree(ready.parent, ignore_errors=True)
        ready.parent.mkdir(parents=True)
        child(__file__, "prepare", {"folder": str(ready.parent), **made_from})
        ready.write_text(json.dumps(made_from))
    return ready.parent


def measured(case: Case, folder: str, *, cold: bool) -> list[Record]:
    """Run the contenders in turn, several rounds; the best round of each counts, and of memory the worst."""
    shape = {"d_in": case.d_in, "d_sae": case.d_sae}
    held_to = MEMORY_GIB << 30 if case.is_largest else None
    encode = partial(child, __file__, "ours", {"folder": folder, "rows": case.rows, "held_to": held_to})
    forget_codes(folder)
    planned = child(__file__, "plan", {"folder": folder})
    rounds: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    if case.width == "131k" or (cold and case.is_largest):
        forget_codes(folder)
        forget_pages(sae_files(folder))
        rounds["cold"].append(encode())
    for _ in range(case.rounds):
        rounds["product"].append(child(__file__, "product", {**shape, "seconds": 0.5 if case.quick else 5.0}))
        forget_codes(folder)
        read_files(sae_files(folder, "W_enc"))
        rounds["ours"].append(encode())
        for architecture in case.saelens_classes:
            given = {**shape, "rows": case.saelens_rows, "architecture": architecture}
            rounds[architecture].append(child(__file__, "saelens", given))
    best = {task: best_round(found, rate="rows_per_s") for task, found in rounds.items()}
    records = records_of(case, best, planned)
    if case.is_checked:
        forget_codes(folder)
        records += equality_records(case, child(__file__, "check", {"folder": folder, **shape}))
    forget_codes(folder)
    return records


def records_of(case: Case, best: dict[str, dict[str, Any]], planned: dict[str, Any]) -> list[Record]:
    """Turn the best rounds of one case into records."""
    ours = best["ours"]
    what = f"encode lake to lake, {case.name}, {case.rows:,} rows, {planned['block_rows']:,} at a time"

    def against(task: str, versus: str, goal: str = "") -> Record:
        return Record.of(what, ours["rows_per_s"], "rows/s", versus=versus, other=best[task]["rows_per_s"], goal=goal)

    shape = (case.d_in, case.width)
    bound = {(3_584, "1M"): ">= 0.85", (1_024, "65k"): ">= 0.90"}.get(shape, "")
    records = [against("product", "bare fp32 matrix product", case.goal(bound))]
    if "topk" in best:
        goal = case.goal(">= 1.5", applies=case.width == "65k")
        records.append(against("topk", "SAELens TopKSAE.encode + torch.topk in memory", goal))
    if "standard" in best:
        records.append(against("standard", "SAELens StandardSAE.encode + torch.topk in memory"))
    if "cold" in best:
        cold = f"{what}, weights not in the page cache"
        rate = best["cold"]["rows_per_s"]
        records.append(Record.of(cold, rate, "rows/s", versus="weights in the page cache", other=ours["rows_per_s"]))
    peaks = [best[task]["peak_bytes"] for task in ("ours", "cold") if task in best]
    measured_as = "resident, anonymous + file pages" + (", under RLIMIT_DATA 4 GiB" if case.is_largest else "")
    peak = max(peaks) / 2**30
    records.append(
        Record.of(f"peak memory, {case.name}, {measured_as}", peak, "GiB", goal=case.goal(f"<= {MEMORY_GIB}"))
    )
    for task in ("topk", "standard"):
        if task in best:
            peak_of = best[task]["peak_bytes"] / 2**30
            records.append(Record.of(f"peak memory, {case.name}: SAELens in memory, {task}", peak_of, "GiB"))
    for quantity, unit, told, found in (
        ("peak memory", "GiB", planned["peak_bytes_planned"] / 2**30, ours["peak_bytes"] / 2**30),
        ("time", "s", planned["seconds_planned"], ours["seconds"]),
    ):
        goal = case.goal("0.8 to 1.2")
        records.append(
            Record.of(f"planned {quantity}, {case.name}", told, unit, versus="measured", other=found, goal=goal)
        )
    return records


def equality_records(case: Case, found: dict[str, Any]) -> list[Record]:
    """Turn the comparison with SAELens into records."""
    rows = f"of {found['rows']:,} rows, {case.name}, float32, against SAELens"
    return [
        Record.of(f"other units than ties within 1e-5, {rows}", found["support"], "rows", goal=case.goal("<= 0")),
        Record.of(f"activations beyond 1e-5, {rows}", found["values"], "values", goal=case.goal("<= 0")),
        Record.of(f"ties that went the other way, {rows}", found["swapped"], "rows"),
    ]


def grid_records(d_in: int, d_sae: int, *, quick: bool) -> list[Record]:
    """Encode a grid of SAEs and datasets in one call, and turn its counts into records."""
    saes = [f"sae{number}" for number in range(GRID_SAES)]
    datasets = {f"set{number}": 1_024 if quick else 8_192 for number in range(GRID_DATASETS)}
    with tempfile.TemporaryDirectory() as folder:
        made_of = {"d_in": d_in, "d_sae": d_sae, "saes": saes, "datasets": datasets}
        child(__file__, "prepare", {"folder": folder, **made_of})
        found = child(__file__, "grid", {"folder": folder, "saes": saes, "datasets": list(datasets)})
    name = f"grid of {GRID_SAES} SAEs x {GRID_DATASETS} datasets, {d_in} x 16k"
    matrices = GRID_SAES * 4 * d_in * d_sae

    def held(what: str, value: float, unit: str, versus: str, other: float, goal: str = "") -> Record:
        bound = "" if quick else goal
        return Record.of(f"{name}: {what}", value, unit, versus=versus, other=other, goal=bound)

    stored = found["activation_bytes_stored"]
    return [
        held("loads", found["loads"], "SAEs", "SAEs", GRID_SAES, "<= 1"),
        held("W_enc read", found["matrix_bytes"] / 2**20, "MiB", "stored", matrices / 2**20, "<= 1.01"),
        held("rows read to encode", found["rows"], "rows", "stored", found["rows_stored"], "<= 1.1"),
        held(
            "activations read, with the check's sample",
            found["activation_bytes"] / 2**20,
            "MiB",
            "stored",
            stored / 2**20,
        ),
        Record.of(f"{name}: read from all files", found["process_bytes"] / 2**20, "MiB"),
        Record.of(f"{name}: time", found["seconds"], "s"),
        Record.of(f"{name}: peak memory", found["peak_bytes"] / 2**30, "GiB"),
    ]


def forget_codes(folder: str) -> None:
    """Remove the codes of the last round."""
    for dataset in (DATASET, CHECKED):
        shutil.rmtree(f"{folder}/lake/data/{dataset}/{MODEL}/{LAYER}/codes", ignore_errors=True)


def sae_files(folder: str, below: str = "") -> Iterator[Path]:
    """Yield the files of the SAE, or those of one of its arrays."""
    return (path for path in sorted(Path(folder, "lake", "saes", SAE, below).rglob("*")) if path.is_file())


def read_files(paths: Iterator[Path]) -> None:
    """Read files, so that the system has them in its page cache as far as they fit."""
    buffer = bytearray(8 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def forget_pages(paths: Iterator[Path]) -> None:
    """Drop files from the system's page cache; they were synced when they were written."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--widths", nargs="+", choices=list(WIDTHS), default=list(WIDTHS), help="default: all")
    parser.add_argument("--d-in", nargs="+", type=int, choices=INPUTS, default=list(INPUTS), help="default: both")
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        help="keep the lakes there for the next run; all of them take 46 GB, the largest 30 GB",
    )
    parser.add_argument("--cold", action="store_true", help="a million units also with weights not in the page cache")
    run(parser, measure, prepare, plan, ours, product, saelens, check, grid)
