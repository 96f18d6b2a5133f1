"""A log served by anybody: what a client accepts from a server, and what it refuses."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

import adapters.log_client
from adapters.log_client import (
    MAX_TILE_SIZE_BYTES,
    LogClient,
    LogUnavailableError,
    NotFinalYetError,
    fetch_receipt,
)
from adapters.tile_store import TileStore
from ledger import merkle
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import leaf_hash
from ledger.note import MAX_NOTE_SIZE_BYTES, KeyType, VerifierKey
from ledger.policy import make_bft_policy
from ledger.proof_file import verify_receipt
from ledger.signing import SigningKey
from ledger.tiles import InvalidTileError
from tests.serving import serving

ORIGIN = "folkmoot/clinics"
LOG = SigningKey(b"l" * 32)
NODES = {f"node{i}": SigningKey(bytes([i + 1]) * 32) for i in range(4)}
POLICY = make_bft_policy(
    VerifierKey(ORIGIN, KeyType.ED25519, LOG.public_key).to_vkey(),
    [
        (
            name,
            VerifierKey(name, KeyType.COSIGNATURE_V1, key.public_key).to_vkey(),
            "",
        )
        for name, key in NODES.items()
    ],
)
ENTRIES = [b"entry %d" % i for i in range(600)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
FORGED = [b"forged %d" % i for i in range(600)]

Answer = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def make_note(
    leaves: list[bytes], *, cosigners: int = 3, origin: str = ORIGIN
) -> bytes:
    note = sign_checkpoint(Checkpoint(origin, len(leaves), merkle.root(leaves)), LOG)
    for name in list(NODES)[:cosigners]:
        note = cosign_checkpoint(note, name, NODES[name], 1_700_000_000)
    return note


def fill(directory: Path, entries: list[bytes] = ENTRIES, **options: object) -> Path:
    """Fill a store with a log, as a ledger node does."""
    leaves = [leaf_hash(entry) for entry in entries]
    store = TileStore(directory, sync=False)
    store.append(entries, leaves)
    store.publish(make_note(leaves, **options))  # type: ignore[arg-type]  # for brevity
    return directory


def files(directory: Path) -> Answer:
    """Answer with the files of a directory, as any web server would."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        path = directory / request.path.lstrip("/")
        if not path.is_file():
            request.send_error(404)
            return
        send(request, path.read_bytes())

    return answer


def send(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(data)))
    request.end_headers()
    request.wfile.write(data)


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """Serve HTTP on a port of this machine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client may be gone
                answer(self)

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as url:
        yield url


@pytest.fixture
def dead() -> str:
    """Where nobody answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def fetch(*urls: str, leaf_index: int = 5, leaf: bytes | None = None) -> bytes:
    leaf = ENTRIES[leaf_index] if leaf is None else leaf
    return fetch_receipt(urls, POLICY, ORIGIN, leaf_index, leaf)


# A good server


@pytest.mark.parametrize("leaf_index", [0, 5, 255, 256, 511, 512, 599])
def test_a_good_server_gives_a_receipt(tmp_path: Path, leaf_index: int) -> None:
    with serve(files(fill(tmp_path))) as url:
        receipt = fetch(url, leaf_index=leaf_index)
    verified = verify_receipt(receipt, POLICY, ORIGIN)
    assert verified.leaf == ENTRIES[leaf_index]
    assert verified.leaf_index == leaf_index
    assert verified.verified.checkpoint.size == len(ENTRIES)
    assert len(verified.verified.cosignatures) == 3


def test_a_client_reads_what_the_store_has(tmp_path: Path) -> None:
    fill(tmp_path)
    with serve(files(tmp_path)) as url:
        # With and without the slash that people put there.
        for client in (LogClient(url), LogClient(url + "/")):
            assert client.fetch_checkpoint() == make_note(LEAVES)
            assert client.read_tile(0, 0, 256) == b"".join(LEAVES[:256])
            assert client.read_tile(0, 2, 88) == b"".join(LEAVES[512:])


def test_a_log_may_live_under_a_prefix(tmp_path: Path) -> None:
    fill(tmp_path / "logs" / "clinics")
    with serve(files(tmp_path)) as url:
        assert fetch(f"{url}/logs/clinics")


# Servers that are not


@pytest.mark.parametrize("url", ["", "ftp://a", "file:///etc/passwd", "/tmp", "a:80"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(LogUnavailableError, match="not an http"):
        LogClient(url)
    with pytest.raises(LogUnavailableError, match="not an http"):
        fetch(url)


@pytest.mark.parametrize(
    "url", ["http://a:b", "http://[", "http://a b", "http://a..b", "http://\n"]
)
def test_a_url_that_leads_nowhere_is_an_unavailable_log(url: str) -> None:
    """A ledger node may call itself what it likes; who reads it must survive."""
    with pytest.raises(LogUnavailableError):
        LogClient(url).fetch_checkpoint()


def test_nobody_to_ask() -> None:
    with pytest.raises(LogUnavailableError, match="no server of the log is known"):
        fetch()


def test_a_dead_server(dead: str) -> None:
    with pytest.raises(LogUnavailableError, match=dead):
        LogClient(dead).fetch_checkpoint()
    with pytest.raises(LogUnavailableError, match=dead):
        fetch(dead)


@pytest.mark.parametrize("code", [403, 404, 500])
def test_an_error_is_no_answer(code: int) -> None:
    with (
        serve(lambda request: request.send_error(code)) as url,
        pytest.raises(LogUnavailableError, match=str(code)),
    ):
        LogClient(url).fetch_checkpoint()


def test_a_missing_tile(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "tile" / "0" / "000").unlink()
    with (
        serve(files(tmp_path)) as url,
        pytest.raises(LogUnavailableError, match=r"tile/0/000: .*404"),
    ):
        fetch(url)


@pytest.mark.parametrize("garbage", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 x\r\n\r\n"])
def test_what_is_not_http_is_no_answer(garbage: bytes) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(garbage)

    with (
        serve(answer) as url,
        pytest.raises(LogUnavailableError),
    ):
        LogClient(url).fetch_checkpoint()


def test_a_chunk_that_breaks_off_is_no_answer() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"ff\r\nonly this")
        request.close_connection = True

    with serve(answer) as url, pytest.raises(LogUnavailableError):
        LogClient(url).fetch_checkpoint()


@pytest.mark.parametrize(
    ("limit", "read"),
    [
        (MAX_NOTE_SIZE_BYTES, lambda client: client.fetch_checkpoint()),
        (MAX_TILE_SIZE_BYTES, lambda client: client.read_tile(0, 0, 256)),
    ],
)
def test_an_answer_has_a_size(limit: int, read: Callable[[LogClient], bytes]) -> None:
    size = limit

    def answer(request: BaseHTTPRequestHandler) -> None:
        send(request, bytes(size))

    with serve(answer) as url:
        assert read(LogClient(url)) == bytes(limit)
        size = limit + 1
        with pytest.raises(LogUnavailableError, match=f"more than {limit} bytes"):
            read(LogClient(url))


def test_an_answer_without_end_is_cut_off() -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while True:
            request.wfile.write(bytes(2**16))

    with (
        serve(answer) as url,
        pytest.raises(LogUnavailableError, match="more than"),
    ):
        LogClient(url).fetch_checkpoint()


@pytest.mark.parametrize("size", ["9" * 13, "9" * 19, "9" * 25, "9" * 5000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_answer_that_says_it_is_enormous_is_left(
    *, size: str, is_chunked: bool, tmp_path: Path
) -> None:
    """Nothing is set aside for what was only announced; others are asked."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        request.protocol_version = "HTTP/1.1"
        request.send_response(200)
        if is_chunked:
            request.send_header("Transfer-Encoding", "chunked")
        else:
            request.send_header("Content-Length", size)
        request.end_headers()
        if is_chunked:
            request.wfile.write(f"{size}\r\n".encode())
        time.sleep(0.1)  # so that the body comes on its own
        request.wfile.write(b"only this")
        request.close_connection = True

    with serve(answer) as liar, serve(files(fill(tmp_path))) as good:
        with pytest.raises(LogUnavailableError):
            LogClient(liar).fetch_checkpoint()
        assert fetch(liar, good)


def test_a_tile_is_as_wide_as_was_asked(tmp_path: Path) -> None:
    fill(tmp_path)
    tile = tmp_path / "tile" / "0" / "000"
    for data in (b"", tile.read_bytes()[:-1], tile.read_bytes()[:-32]):
        tile.write_bytes(data)
        with serve(files(tmp_path)) as url:
            with pytest.raises(InvalidTileError):
                LogClient(url).read_tile(0, 0, 256)
            with pytest.raises(LogUnavailableError):
                fetch(url)


# Slow servers


def _silent(request: BaseHTTPRequestHandler) -> None:
    time.sleep(2)


def _stuck(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    request.wfile.write(b"a beginning")
    time.sleep(2)


def _trickling(request: BaseHTTPRequestHandler) -> None:
    """Never silent for long, and never done."""
    request.send_response(200)
    request.end_headers()
    for _ in range(100):
        request.wfile.write(b"x")
        time.sleep(0.05)


def _trickling_head(request: BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(100):
        request.wfile.write(b"x")
        time.sleep(0.05)


def _always_about_to(request: BaseHTTPRequestHandler) -> None:
    """Says for ever that an answer will follow."""
    for _ in range(100):
        request.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)


@pytest.mark.parametrize(
    "answer", [_silent, _stuck, _trickling, _trickling_head, _always_about_to]
)
def test_a_slow_server_is_left(
    answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.log_client, "TIMEOUT_S", 0.3)
    begun = time.monotonic()
    with serve(answer) as slow:
        with pytest.raises(LogUnavailableError):
            LogClient(slow).fetch_checkpoint()
        assert time.monotonic() - begun < 1.5
        with serve(files(fill(tmp_path))) as good:
            assert fetch(slow, good)


# Liars


def test_a_log_of_its_own_is_not_ours(tmp_path: Path) -> None:
    """It signs with other keys, or not enough of ours have cosigned."""
    for cosigners in (0, 2):
        directory = fill(tmp_path / str(cosigners), cosigners=cosigners)
        with (
            serve(files(directory)) as url,
            pytest.raises(LogUnavailableError, match="quorum"),
        ):
            fetch(url)


def test_another_logs_checkpoint_is_not_ours(tmp_path: Path) -> None:
    directory = fill(tmp_path, origin="folkmoot/banks")
    with (
        serve(files(directory)) as url,
        pytest.raises(LogUnavailableError, match="folkmoot/banks"),
    ):
        fetch(url)


def test_a_bad_checkpoint(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "checkpoint").write_bytes(b"<html>\xff not a log at all")
    with serve(files(tmp_path)) as url, pytest.raises(LogUnavailableError):
        fetch(url)


def test_tiles_that_lead_elsewhere_make_no_receipt(tmp_path: Path) -> None:
    """Our checkpoint over the tiles of another log."""
    liar = fill(tmp_path, FORGED)
    (liar / "checkpoint").write_bytes(make_note(LEAVES))
    with serve(files(liar)) as url, pytest.raises(LogUnavailableError):
        fetch(url)


@pytest.mark.parametrize("place", [0, 100, 32 * 255])
def test_one_wrong_hash_in_a_tile_makes_no_receipt(tmp_path: Path, place: int) -> None:
    fill(tmp_path)
    tile = tmp_path / "tile" / "0" / "000"
    data = bytearray(tile.read_bytes())
    data[place] ^= 1
    tile.write_bytes(data)
    with serve(files(tmp_path)) as url, pytest.raises(LogUnavailableError):
        fetch(url)


def test_a_leaf_that_is_not_there_has_no_receipt(tmp_path: Path) -> None:
    with serve(files(fill(tmp_path))) as url:
        for leaf_index, leaf in ((5, ENTRIES[6]), (6, ENTRIES[5]), (5, b"another")):
            with pytest.raises(LogUnavailableError):
                fetch(url, leaf_index=leaf_index, leaf=leaf)


# Several servers


def test_the_next_server_is_asked(tmp_path: Path, dead: str) -> None:
    liar = fill(tmp_path / "liar", FORGED)
    (liar / "checkpoint").write_bytes(make_note(LEAVES))
    short = fill(tmp_path / "short", ENTRIES[:3])
    missing = tmp_path / "missing"
    good = fill(tmp_path / "good")
    asked: list[str] = []

    def note(request: BaseHTTPRequestHandler) -> None:
        asked.append(request.path)
        files(good)(request)

    def garble(request: BaseHTTPRequestHandler) -> None:
        request.wfile.write(b"nonsense\r\n\r\n")

    with (
        serve(files(liar)) as first,
        serve(files(short)) as second,
        serve(files(missing)) as third,
        serve(garble) as fourth,
        serve(note) as last,
    ):
        bad = ("ftp://x", "http://x:y", dead, first, second, third, fourth)
        receipt = fetch(*bad, last)
        assert verify_receipt(receipt, POLICY, ORIGIN).leaf == ENTRIES[5]
        assert asked
        asked.clear()
        with serve(files(good)) as better:
            assert fetch(better, last) == receipt
        assert asked == []  # the first honest answer is enough
        with pytest.raises(NotFinalYetError) as caught:
            fetch(*bad)
    # One line for each, so that people see what is wrong with which.
    assert all(f"{url}: " in str(caught.value) for url in bad)


def test_a_leaf_beyond_the_checkpoint_is_not_final_yet(tmp_path: Path) -> None:
    with serve(files(fill(tmp_path, ENTRIES[:5]))) as url:
        assert fetch(url, leaf_index=4)
        with pytest.raises(NotFinalYetError, match="has size 5, the leaf is 5"):
            fetch(url, leaf_index=5)


def test_a_checkpoint_that_too_few_cosigned_is_no_reason_to_wait(
    tmp_path: Path,
) -> None:
    """Such a server shows nothing; it may be anybody."""
    with (
        serve(files(fill(tmp_path, ENTRIES[:5], cosigners=2))) as url,
        pytest.raises(LogUnavailableError),
    ):
        fetch(url, leaf_index=5)
