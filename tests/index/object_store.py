"""An S3 (moto's server) and a bucket on it, as any process would find them by its environment."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from moto.server import ThreadedMotoServer

from gritrag.index.storage import remote_states


@contextmanager
def object_server() -> Iterator[str]:
    """Its URL."""
    running = ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def empty_bucket(server: str, cache: Path, patch: pytest.MonkeyPatch) -> Any:
    """The file system of `s3://bucket`, with nothing in it; what is fetched from there is kept in `cache`."""
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_ENDPOINT_URL", server),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("GRITRAG_STATE_CACHE", str(cache)),
    ):
        patch.setenv(name, value)
    fsspec.filesystem("s3").clear_instance_cache()
    remote, _ = fsspec.core.url_to_fs("s3://bucket", **remote_states.OPTIONS["s3"])
    if remote.exists("bucket"):
        remote.rm("bucket", recursive=True)
    remote.mkdir("bucket")
    return remote
