"""Find the files of an array that was saved in chunks: by its ``*_chunks_info.json``, or by the numbers in file names.

The JSON is that of the SuperActivators scripts: ``{"chunks": [{"file", "start_idx", "end_idx", "shape" | "n_samples"}],
"total_samples", "num_chunks", "embedding_dim" | "feature_dim" | "n_features", "topk", "format"}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saestore.errors import InputError, IntegrityError, MissingError

INFO_SUFFIX = "_chunks_info.json"
ARRAY_SUFFIXES = (".pt", ".pth", ".npy", ".npz", ".safetensors")
_NUMBERED = re.compile(r"(?P<base>.*?)(?P<number>\d+)(?P<of>-of-\d+)?(?P<suffix>\.\w+)")
_CHUNK_WORD = re.compile(r"(chunk|shard|part|batch)[-_. ]?$", re.IGNORECASE)


@dataclass(frozen=True)
class Chunk:
    """One file of a set; ``n_rows`` and ``start`` (its first row) as the info JSON says, None where it does not."""

    path: Path
    n_rows: int | None = None
    start: int | None = None


@dataclass(frozen=True)
class ChunkSet:
    """Files in the order of their rows.

    origin : the info JSON, or the folder that was listed
    n_rows : rows in all, as the info JSON says
    declared : the other fields of the info JSON
    """

    origin: Path
    chunks: tuple[Chunk, ...]
    n_rows: int | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)

    def declared_int(self, name: str) -> int | None:
        """Return a whole number of the info JSON, or None where it has no such field."""
        return _whole(self.declared.get(name), name, self.origin)

    def check_rows(self, counts: list[int], *, starts: bool) -> None:
        """Compare the rows found in each file with what the info JSON says of them, of their starts and in all.

        Raises
        ------
        IntegrityError
            They differ; names the first file that does.
        """
        first = 0
        for chunk, found in zip(self.chunks, counts, strict=True):
            if chunk.n_rows is not None and chunk.n_rows != found:
                raise IntegrityError(
                    f"{chunk.path} holds {found} rows, {self.origin.name} says {chunk.n_rows}; copy or make it again"
                )
            if starts and chunk.start is not None and chunk.start != first:
                raise IntegrityError(
                    f"{self.origin}: {chunk.path.name} starts at row {chunk.start}, expected {first}; "
                    "a chunk is missing from the list"
                )
            first += found
        if self.n_rows is not None and self.n_rows != first:
            raise IntegrityError(
                f"the {len(counts)} chunks of {self.origin} hold {first} rows, total_samples says {self.n_rows}; "
                "a chunk is missing from the list or a file is from another run"
            )


def find_chunks(path: Path) -> ChunkSet | None:
    """Find the chunks that a path stands for; None when it is one file of its own.

    Parameters
    ----------
    path : Path
        A ``*_chunks_info.json``; a folder that holds one, or only numbered files; or the name that the file would have
        had without chunks (``acts.pt`` for ``acts_chunk_0.pt``, ``acts_chunks_info.json``).

    Raises
    ------
    MissingError
        There is no such file, or a chunk of the set is not there (it is named).
    InputError
        The folder holds several sets, or the JSON is not of the shape above.
    """
    if path.is_dir():
        infos = sorted(path.glob(f"*{INFO_SUFFIX}"))
        if len(infos) > 1:
            raise InputError(f"{path} holds {len(infos)} chunked arrays; give one of: {_listing(infos)}")
        return _from_info(infos[0]) if infos else _from_names(path, _array_files(path))
    if path.is_file():
        if path.suffix != ".json":
            return None
        if not path.name.endswith(INFO_SUFFIX):
            raise InputError(f"{path} is not a list of chunks; expected a name that ends with {INFO_SUFFIX}")
        return _from_info(path)
    stem = path.name.removesuffix(path.suffix) if path.suffix in ARRAY_SUFFIXES else path.name
    info = path.with_name(stem + INFO_SUFFIX)
    if info.is_file():
        return _from_info(info)
    prefix = f"{stem}_chunk_"
    siblings = path.parent.iterdir() if path.parent.is_dir() else ()
    chunks = [file for file in siblings if file.name.startswith(prefix) and file.suffix in ARRAY_SUFFIXES]
    if chunks:
        return _from_names(path.parent, sorted(chunks))
    raise MissingError(f"{path} does not exist (nor {info.name} beside it); check the path")


def _from_info(info: Path) -> ChunkSet:
    try:
        content = json.loads(info.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{info} is not valid JSON ({error}); copy it again") from None
    entries = content.get("chunks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f'{info}: expected a field "chunks" with a list of files, as {{"file": ..., "start_idx": ...}}'
        )
    chunks = [_declared_chunk(entry, place, info) for place, entry in enumerate(entries)]
    count = _whole(content.get("num_chunks"), "num_chunks", info)
    if count is not None and count != len(chunks):
        raise IntegrityError(f"{info}: num_chunks is {count} but {len(chunks)} files are listed; copy or make it again")
    names = [chunk.path.name for chunk in chunks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise IntegrityError(f"{info}: {twice} is listed twice; correct the list")
    parsed = [_NUMBERED.fullmatch(name) for name in names]
    if len({match and (match["base"], match["suffix"]) for match in parsed}) == 1:
        # Lists made by sorting names have chunk_10 before chunk_2; the number is the order of the rows.
        chunks = [chunk for _, chunk in sorted(zip(map(_number, names), chunks, strict=True), key=lambda pair: pair[0])]
    for chunk in chunks:
        if not chunk.path.is_file():
            raise MissingError(f"{chunk.path} is missing: {info.name} lists it; copy it there")
    declared = {name: value for name, value in content.items() if name != "chunks"}
    total = _whole(content.get("total_samples"), "total_samples", info)
    return ChunkSet(origin=info, chunks=tuple(chunks), n_rows=total, declared=declared)


def _declared_chunk(entry: dict[str, Any], place: int, info: Path) -> Chunk:
    name = entry.get("file")
    if not isinstance(name, str) or not name or Path(name).name != name or name == "..":
        raise InputError(f"{info}: chunks[{place}].file is {name!r}; expected the name of a file in the same folder")
    start = _whole(entry.get("start_idx"), f"chunks[{place}].start_idx", info)
    end = _whole(entry.get("end_idx"), f"chunks[{place}].end_idx", info)
    rows = _whole(entry.get("n_samples"), f"chunks[{place}].n_samples", info)
    shape = entry.get("shape")
    if rows is None and isinstance(shape, list) and shape:
        rows = _whole(shape[0], f"chunks[{place}].shape", info)
    if rows is None and start is not None and end is not None:
        rows = end - start
    return Chunk(path=info.with_name(name), n_rows=rows, start=start)


def _whole(value: object, name: str, info: Path) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{info}: {name} is {value!r}; expected a whole number, 0 or more")
    return value


def _array_files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix in ARRAY_SUFFIXES and not file.name.startswith("."))
    if not files:
        raise MissingError(f"{folder} holds no {', '.join(ARRAY_SUFFIXES)} file; check the path")
    return files


def _from_names(folder: Path, files: list[Path]) -> ChunkSet:
    """Order numbered files of one name by their numbers; every number from the first to the last must be there."""
    parsed = [_NUMBERED.fullmatch(file.name) for file in files]
    if len(files) == 1 and not _says_chunk(parsed[0]):
        return ChunkSet(origin=folder, chunks=(Chunk(files[0]),))
    kinds = {match and (match["base"], match["of"], match["suffix"]) for match in parsed}
    # Files such as layer_0.pt, layer_1.pt are numbered too, and joining their rows would be silently wrong.
    if len(kinds) > 1 or not all(map(_says_chunk, parsed)):
        raise InputError(
            f"{folder} holds files whose names do not say that they are chunks of one array (NAME_chunk_0.pt, ...); "
            f"give one file, or rename them: {_listing(files)}"
        )
    by_number: dict[int, Path] = {}
    for file in files:
        other = by_number.setdefault(_number(file.name), file)
        if other is not file:
            raise InputError(f"{other} and {file.name} have the same number; keep one of them")
    of = parsed[0]["of"] if parsed[0] else None
    first = 0 if 0 in by_number else 1
    stop = first + int(of.removeprefix("-of-")) if of else max(by_number) + 1
    missing = next((number for number in range(first, stop) if number not in by_number), None)
    if missing is not None or max(by_number) >= stop:
        raise MissingError(
            f"{folder}: chunk {missing} is missing; the others are {_listing(files)}; copy it there"
            if missing is not None
            else f"{by_number[max(by_number)]} has a number beyond the count in its name; is it of another set?"
        )
    return ChunkSet(origin=folder, chunks=tuple(Chunk(by_number[number]) for number in sorted(by_number)))


def _says_chunk(match: re.Match[str] | None) -> bool:
    return match is not None and (match["of"] is not None or _CHUNK_WORD.search(match["base"]) is not None)


def _number(name: str) -> int:
    match = _NUMBERED.fullmatch(name)
    return int(match["number"]) if match else -1


def _listing(files: list[Path]) -> str:
    shown = ", ".join(file.name for file in files[:8])
    return shown if len(files) <= 8 else f"{shown} and {len(files) - 8} more"
