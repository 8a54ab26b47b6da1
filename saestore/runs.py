"""Run records: what a command planned in a lake and what came of it, kept as attributes of groups under `runs`."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from saestore import provenance
from saestore.layout import ATTRIBUTE, FORMAT_VERSION, RUNS, is_name, run_path
from saestore.storage import Storage, claim_document, group_document, put_document, read_document


class RunRecord:
    """The record of one run, in the lake from its first line on.

    Parameters
    ----------
    storage : Storage
    verb : str
    parameters : mapping
        What the verb was called with; no secrets.
    plan : list
        What it is going to do.
    """

    def __init__(self, storage: Storage, verb: str, parameters: Mapping[str, Any], plan: list[Any]) -> None:
        begun = datetime.now(UTC)
        self._storage = storage
        self.name = f"{begun:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self._content: dict[str, Any] = {
            "format": FORMAT_VERSION,
            "kind": "run",
            "verb": verb,
            "state": "running",
            "begun": begun.isoformat(timespec="seconds"),
            "parameters": dict(parameters),
            "plan": plan,
            "provenance": provenance.stamp(),
        }
        if read_document(storage, RUNS) is None:
            claim_document(storage, RUNS, group_document())
        self._put()

    def end(self, state: str, *, plan: list[Any], outcome: list[Any]) -> None:
        """Write how the run ended (`done`, `done except`, `failed`, `stopped`), and what became of each part.

        `plan` replaces that of the beginning, which may have lacked what only the work itself found out.
        """
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        self._content = {**self._content, "state": state, "ended": ended, "plan": plan, "outcome": outcome}
        self._put()

    def _put(self) -> None:
        put_document(self._storage, run_path(self.name), group_document({ATTRIBUTE: self._content}))


def run_records(storage: Storage) -> Iterator[dict[str, Any]]:
    """Yield the records of all runs in a lake, oldest first, each with its `name`."""
    for name in sorted(filter(is_name, storage.names(RUNS))):
        document = read_document(storage, run_path(name))
        if document is not None:
            yield {"name": name, **document["attributes"][ATTRIBUTE]}
