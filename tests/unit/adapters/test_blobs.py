"""The blob store as its clients see it: its word on a blob, and its absence."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from adapters.blobs import STORE_ERRORS, BlobError, BlobStore
from adapters.settings import Settings
from schemas.events import BlobRef
from schemas.reasons import Reason

DATA = bytes(range(256)) * 1_000
REF = BlobRef(
    uri="s3://moot/x", sha256=hashlib.sha256(DATA).digest(), size_bytes=len(DATA)
)
REGION = (
    b'<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
    b"us-east-1</LocationConstraint>"
)


class Server(ThreadingHTTPServer):
    """Says how long a blob is, and sends other bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.size, self.sent = len(DATA), DATA


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # the base class's name
        is_region = "location=" in self.path
        body = REGION if is_region else self.server.sent
        self.send_response(200)
        self.send_header(
            "Content-Length", str(len(body) if is_region else self.server.size)
        )
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def store(server, monkeypatch):
    settings = Settings(
        bootstrap_servers="localhost:1",
        schema_registry_url="http://localhost:1",
        minio_endpoint=f"127.0.0.1:{server.server_port}",
        minio_access_key="key",
        minio_secret_key="secret-key",
    )
    return BlobStore(settings)


def fetch(store, ref=REF):
    return store.fetch(ref, max_size_bytes=2 * len(DATA))


def test_a_blob_comes_back(store):
    assert fetch(store) == DATA


@pytest.mark.parametrize("size", [0, 1, 1_000, len(DATA) - 1])
def test_a_transfer_that_is_cut_says_nothing_about_a_blob(server, store, size):
    """Nobody's update is rejected, and no log is wrong, because MinIO was restarted."""
    server.sent = DATA[:size]
    with pytest.raises(STORE_ERRORS):
        fetch(store)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", Reason.CORRUPT_BLOB),
        (DATA[:-1], Reason.CORRUPT_BLOB),
        (b"x" + DATA[1:], Reason.CORRUPT_BLOB),
        (DATA + b"x", Reason.OVERSIZED_BLOB),
        (DATA * 10, Reason.OVERSIZED_BLOB),
    ],
)
def test_other_bytes_than_promised_are(server, store, data, reason):
    server.size, server.sent = len(data), data
    with pytest.raises(BlobError) as error:
        fetch(store)
    assert error.value.reason == reason
