"""An S3 server on this machine for the query benchmark, and the requests that a query makes of it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "lake-admin", "AWS_SECRET_ACCESS_KEY": "lake-secret"}
BUCKET = "lake"


def server_binary() -> str | None:
    """Return SeaweedFS' program, or None where it is not installed."""
    return shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))


@contextmanager
def bucket_server() -> Iterator[dict[str, Any]]:
    """Run a server with an empty bucket, and yield its storage options."""
    binary = server_binary()
    assert binary is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ports = {name: _free_port() for name in ("s3.port", "filer.port", "master.port", "volume.port")}
        command = [binary, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false"]
        command += ["-webdav=false", "-s3.port.iceberg=0", *(f"-{name}={port}" for name, port in ports.items())]
        environment = {**os.environ, **CREDENTIALS, "S3_BUCKET": BUCKET}
        log = Path(folder) / "log.txt"
        with open(log, "wb") as out:
            server = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        options: dict[str, Any] = {
            "endpoint": f"http://127.0.0.1:{ports['s3.port']}",
            "region": "us-east-1",
            "access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
            "secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            "virtual_hosted_style_request": False,
            "client_options": {"allow_http": True},
        }
        try:
            _wait_for_put(options, log)
            yield options
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def copy_lake(folder: str, url: str, options: dict[str, Any]) -> None:
    """Put every file of a lake into a bucket."""
    from saestore.storage import open_storage

    storage = open_storage(url, storage_options=options)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            storage.put(path.relative_to(folder).as_posix(), path.read_bytes())


@contextmanager
def counted_requests() -> Iterator[list[str]]:
    """Yield a list that gains the key of every object, or range of one, that is asked of a remote storage.

    Ranges count one by one, though the client may join those that lie near each other.
    """
    from saestore.storage import RemoteStorage

    asked: list[str] = []
    get, get_ranges, sizes = RemoteStorage.get, RemoteStorage.get_ranges, RemoteStorage.sizes

    def counted_get(self: RemoteStorage, key: str) -> bytes | None:
        asked.append(key)
        return get(self, key)

    def counted_ranges(self: RemoteStorage, key: str, ranges: Any) -> list[bytes] | None:
        asked.extend(f"{key} {start}:{stop}" for start, stop in ranges)
        return get_ranges(self, key, ranges)

    def counted_sizes(self: RemoteStorage, keys: Any) -> list[int | None]:
        asked.extend(keys)
        return sizes(self, keys)

    RemoteStorage.get, RemoteStorage.get_ranges, RemoteStorage.sizes = (  # type: ignore[method-assign]
        counted_get,
        counted_ranges,
        counted_sizes,
    )
    try:
        yield asked
    finally:
        RemoteStorage.get, RemoteStorage.get_ranges, RemoteStorage.sizes = get, get_ranges, sizes  # type: ignore[method-assign]


def _free_port() -> int:
    """Return a free port whose gRPC twin (port + 10000) is a valid port."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


def _wait_for_put(options: dict[str, Any], log: Path) -> None:
    """Wait until the bucket takes a put, which is later than the port opens."""
    import obstore
    from obstore.store import S3Store

    patient = {**options, "retry_config": {"max_retries": 0}}
    deadline = time.monotonic() + 60
    while True:
        try:
            obstore.put(S3Store(BUCKET, **patient), "probe", b"1")
            return
        except Exception:
            if time.monotonic() > deadline:
                raise SystemExit(f"the S3 server does not start:\n{log.read_text()[-2000:]}") from None
            time.sleep(0.2)
