"""Run every benchmark in this folder and print one table; what falls short of its goal is marked."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from records import Record, print_table

NOT_BENCHMARKS = {
    "run.py",
    "records.py",
    "folders.py",
    "saelens_rate.py",
    "synthetic_codes.py",
    "query_bucket.py",
    "query_contenders.py",
}


def main() -> int:
    """Return 1 if a goal was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="each benchmark in under 60 seconds, goals not binding")
    parser.add_argument("--json", metavar="FILE", help="also write all records as a JSON list")
    given = parser.parse_args()
    records: list[Record] = []
    for script in sorted(Path(__file__).parent.glob("*.py")):
        if script.name in NOT_BENCHMARKS:
            continue
        print(f"{script.name} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "records.json"
            command = [sys.executable, str(script), "--json", str(out), *(["--quick"] if given.quick else [])]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            records += [Record(**record) for record in json.loads(out.read_text())]
    print_table(records)
    if given.json:
        Path(given.json).write_text(json.dumps([vars(record) for record in records], indent=1))
    return int(any(record.met is False for record in records))


if __name__ == "__main__":
    raise SystemExit(main())
