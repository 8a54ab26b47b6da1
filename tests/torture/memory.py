"""Encode one lake in a process of its own and print what was promised and what was used, as JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from saestore.encoding.writer import encode
from saestore.lake import Lake


def main(url: str, memory: str, dtype: str) -> None:
    result = encode(Lake.open(url), "s", k=64, memory=memory, dtype=dtype, force=True, quiet=True)[0]
    assert result.plan is not None
    # Not ru_maxrss: it begins with what the parent used when it forked.
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    peak = int(found[1]) * 1024
    print(json.dumps({"plan": result.plan.peak_bytes, "peak": peak, "held": result.plan.held}))


if __name__ == "__main__":
    main(*sys.argv[1:])
