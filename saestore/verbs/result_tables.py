"""Tables of results for the user: a folder holds those of one run, and `run.json` beside them says which it is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saestore import provenance
from saestore._whole_files import explained, whole_file
from saestore.errors import ConflictError

if TYPE_CHECKING:
    import pandas as pd

RUN = "run.json"
_ENDINGS = (".parquet", ".csv")


class TableFolder:
    """A folder that one verb writes tables of a run into, beside those that other verbs write of the same run.

    Parameters
    ----------
    path : Path
    verb : str
        Whose tables these are.
    run : mapping
        JSON values that tell what all tables of the folder are of.
    settings : mapping
        JSON values that tell what the tables of this verb are of besides; `name` and `result`, the name and the run of
        its own result, must stay the same.

    Raises
    ------
    ConflictError
        The folder holds tables of something else, or tables of which nothing says what they are of.
    """

    def __init__(self, path: Path, verb: str, run: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        self.path = path
        self._verb = verb
        self._run, self._settings = json.loads(json.dumps([run, settings], allow_nan=False))
        self._before = self._checked()

    def write(self, tables: Mapping[str, pd.DataFrame]) -> list[Path]:
        """Write tables as Parquet and CSV, each whole or not at all, and remove those that this verb wrote before."""
        from saestore.formats.tables import write_table

        here = {**self._settings, "tables": list(tables), "saestore": provenance.stamp().get("saestore")}
        verbs = {**self._before, self._verb: here}
        # First, so that whatever stops this leaves no table of which nothing says what it is of.
        with whole_file(self.path / RUN) as partial:
            partial.write_text(json.dumps({**self._run, "verbs": verbs}, indent=1, ensure_ascii=False) + "\n")
        for name in self._before.get(self._verb, {}).get("tables", ()):
            if name not in tables:
                for ending in _ENDINGS:
                    with explained(self.path):
                        (self.path / f"{name}{ending}").unlink(missing_ok=True)
        return [
            write_table(self.path / f"{name}{ending}", frame) for name, frame in tables.items() for ending in _ENDINGS
        ]

    def _checked(self) -> dict[str, Any]:
        """Return what the verbs before wrote."""
        file = self.path / RUN
        if not file.is_file():
            there = sorted(each.name for each in self.path.glob("*") if each.suffix in _ENDINGS)
            if there:
                raise ConflictError(
                    f"{self.path} holds {there[0]} and no {RUN} that says what it is of; give another --out, or delete "
                    "its tables first"
                )
            return {}
        try:
            stored = json.loads(file.read_text())
            verbs: dict[str, Any] = {name: dict(of) for name, of in stored.pop("verbs").items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConflictError(
                f"{file} cannot be read, so that nothing says what the tables beside it are of; give another --out, or "
                f"delete {self.path} first"
            ) from None
        same = {name: verbs.get(self._verb, self._settings).get(name) for name in ("name", "result")}
        old, new = {**stored, **same}, {**self._run, **{name: self._settings.get(name) for name in same}}
        for name in new:
            if old.get(name) != new[name]:
                raise ConflictError(
                    f"{self.path} holds tables of another run ({name} {_words(old.get(name))}, and of this "
                    f"{_words(new[name])}); give another --out, or delete {self.path} first"
                )
        return verbs


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
