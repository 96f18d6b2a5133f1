"""The local stack: every service does its work, and nothing outlives its owner."""

import http.client
import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from minio import Minio

from cli.stack import fetch
from cli.stack.processes import process_started, spawn_owned
from cli.stack.stack import (
    KAFKA,
    MINIO,
    REGISTRY,
    Endpoints,
    LocalStack,
    StackError,
    StackState,
    ensure_fetched,
    read_status,
    stop_detached,
)

pytestmark = pytest.mark.timeout(900)  # the first run builds MinIO


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def endpoints(stack: LocalStack) -> Endpoints:
    return stack.endpoints


def test_kafka_carries_transactions(endpoints: Endpoints) -> None:
    _create_topic(endpoints, "greetings")
    producer = Producer(
        {
            "bootstrap.servers": endpoints.bootstrap_servers,
            "transactional.id": "test-stack",
        }
    )
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce("greetings", b"aborted")
    producer.abort_transaction(30)
    producer.begin_transaction()
    producer.produce("greetings", b"committed")
    producer.commit_transaction(30)

    assert _consume_one(endpoints, "greetings") == b"committed"


def test_kafka_creates_no_topic_by_accident(endpoints: Endpoints) -> None:
    producer = Producer(
        {"bootstrap.servers": endpoints.bootstrap_servers, "message.timeout.ms": 2000}
    )
    refused: list[bool] = []
    producer.produce(
        "never-created",
        b"x",
        on_delivery=lambda error, _: refused.append(error is not None),
    )
    producer.flush(10)

    assert refused == [True]
    topics = AdminClient(
        {"bootstrap.servers": endpoints.bootstrap_servers}
    ).list_topics(timeout=10)
    assert "never-created" not in topics.topics


def test_registry_returns_the_schema_it_was_given(endpoints: Endpoints) -> None:
    schema = json.dumps({"type": "record", "name": "Greeting", "fields": []})

    registered = _registry(
        endpoints, "POST", "/subjects/greetings-Greeting/versions", {"schema": schema}
    )
    found = _registry(endpoints, "GET", f"/schemas/ids/{registered['id']}")

    assert json.loads(str(found["schema"])) == json.loads(schema)


def test_minio_returns_the_object_it_was_given(endpoints: Endpoints) -> None:
    client = _minio(endpoints)
    client.make_bucket("greetings")
    client.put_object("greetings", "hello", io.BytesIO(b"bytes"), 5)

    response = client.get_object("greetings", "hello")
    try:
        assert response.read() == b"bytes"
    finally:
        response.close()
        response.release_conn()


def test_everything_listens_on_loopback_only(stack: LocalStack) -> None:
    if not Path("/proc/net/tcp").exists():
        pytest.skip("reads /proc")
    sockets = _socket_inodes(_session_members(stack))
    listening = {
        row[1].rpartition(":")[0]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if (row := line.split())[3] == "0A" and row[9] in sockets
    }
    loopback = {
        "0100007F",  # 127.0.0.1
        "0000000000000000FFFF00000100007F",  # the same, as an IPv6 socket
        "00000000000000000000000001000000",  # ::1
    }
    assert listening
    assert listening <= loopback


def test_secrets_are_private_and_not_printed(stack: LocalStack) -> None:
    endpoints = stack.endpoints

    assert endpoints.minio_secret_key not in repr(endpoints)
    for name in ("state.json", "minio-credentials.json"):
        assert stat.S_IMODE((stack.directory / name).stat().st_mode) == 0o600
    assert (
        endpoints.minio_secret_key not in (stack.directory / "state.json").read_text()
    )


def test_a_directory_holds_one_stack(stack: LocalStack) -> None:
    with pytest.raises(StackError, match="Another process"):
        LocalStack(stack.directory).start()
    assert read_status(stack.directory).state is StackState.RUNNING


@pytest.mark.parametrize("service", [MINIO, REGISTRY, KAFKA])
def test_a_killed_service_comes_back_with_its_data(
    stack: LocalStack, endpoints: Endpoints, service: str
) -> None:
    topic = f"before-{service}"
    _create_topic(endpoints, topic)
    producer = Producer({"bootstrap.servers": endpoints.bootstrap_servers})
    producer.produce(topic, b"kept")
    producer.flush(10)
    schema = {"schema": json.dumps({"type": "fixed", "name": "F", "size": 4})}
    registered = _registry(endpoints, "POST", f"/subjects/{topic}/versions", schema)
    _minio(endpoints).make_bucket(topic)

    stack.kill(service)
    assert read_status(stack.directory).state is StackState.DEGRADED
    stack.start_service(service)

    assert stack.endpoints == endpoints
    assert _consume_one(endpoints, topic) == b"kept"
    assert _registry(endpoints, "GET", f"/schemas/ids/{registered['id']}")
    assert _minio(endpoints).bucket_exists(topic)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_an_owned_stack_dies_with_its_owner(
    tmp_path: Path, number: signal.Signals
) -> None:
    # Started from a thread that ends: services must die with the process, not with it.
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    assert read_status(tmp_path).state is StackState.RUNNING
    members = _session_pids(_leaders(tmp_path))
    assert len(members) >= 3

    owner.send_signal(number)
    owner.wait(30)
    owner.stdout.close()

    _wait_until_gone(members)
    # After Ctrl-C the owner tidied up itself; otherwise the file is known to be stale.
    expected = StackState.STOPPED if number is signal.SIGINT else StackState.STALE
    assert read_status(tmp_path).state is expected


_OWNER = textwrap.dedent(
    """
    import signal, sys, threading, time
    from pathlib import Path
    from cli.stack.stack import LocalStack

    # Also where the tests run in the background, with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stack = LocalStack(Path(sys.argv[1]))
    starter = threading.Thread(target=stack.start)
    starter.start()
    starter.join()
    try:
        time.sleep(1)  # long enough for a signal at the thread's end to have struck
        print("up", flush=True)
        time.sleep(600)
    finally:
        stack.stop()
    """
)


def test_a_detached_stack_stays_until_stopped(tmp_path: Path) -> None:
    start = (
        "import sys; from pathlib import Path; from cli.stack.stack import LocalStack;"
        "LocalStack(Path(sys.argv[1]), detached=True).start()"
    )
    subprocess.run([sys.executable, "-c", start, str(tmp_path)], check=True)
    try:
        status = read_status(tmp_path)
        assert status.state is StackState.RUNNING
        assert status.detached
        with pytest.raises(StackError, match="already running"):
            LocalStack(tmp_path).start()
        leaders = _leaders(tmp_path)
    finally:
        assert stop_detached(tmp_path)

    _wait_until_gone(leaders)
    assert read_status(tmp_path).state is StackState.STOPPED
    assert not stop_detached(tmp_path)


def test_an_owned_process_ends_with_everything_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    process = spawn_owned(
        [
            "sh",
            "-c",
            f"sleep 600 & echo $$ $! > {pids}.new; mv {pids}.new {pids}; wait",
        ],
        env=dict(os.environ),
        log_path=tmp_path / "log",
    )
    while not pids.exists():
        time.sleep(0.01)
    started = [int(pid) for pid in pids.read_text().split()]

    assert process.stdin is not None
    process.stdin.close()
    process.wait(30)

    _wait_until_gone(started)


def test_an_owned_process_passes_signals_and_its_exit_code(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    process = spawn_owned(
        ["sh", "-c", f"trap 'exit 7' TERM; touch {ready}; while :; do sleep 0.1; done"],
        env=dict(os.environ),
        log_path=tmp_path / "log",
    )
    while not ready.exists():
        time.sleep(0.01)

    process.terminate()

    assert process.wait(30) == 7
    assert process.stdin is not None
    process.stdin.close()


@pytest.mark.parametrize("tampered", ["kafka-clients", "apicurio", "h1:"])
def test_what_the_checksums_do_not_confirm_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tampered: str
) -> None:
    definitions = tmp_path / "definitions"
    shutil.copytree(fetch.DEFINITIONS, definitions)
    checksums = definitions / "checksums.txt"
    lines = checksums.read_text().splitlines()
    [index] = [i for i, line in enumerate(lines) if tampered in line and line[0] != "#"]
    digest, name = lines[index].split()
    lines[index] = f"{digest[:3]}{digest[3:][::-1]}  {name}"
    checksums.write_text("\n".join(lines) + "\n")
    cache = tmp_path / "cache"
    monkeypatch.setattr(fetch, "DEFINITIONS", definitions)
    monkeypatch.setenv("FOLKMOOT_CACHE", str(cache))

    with pytest.raises(StackError, match="Refusing") as refusal:
        ensure_fetched(lambda _service, _message: None)

    assert name in refusal.value.message
    assert not list(cache.glob("minio-*"))
    assert not list(cache.glob(".partial-*"))
    if tampered != "h1:":
        assert not list(cache.glob("jars-*"))


def _create_topic(endpoints: Endpoints, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": endpoints.bootstrap_servers})
    admin.create_topics([NewTopic(name, 1, 1)])[name].result(30)


def _consume_one(endpoints: Endpoints, topic: str) -> bytes:
    consumer = Consumer(
        {
            "bootstrap.servers": endpoints.bootstrap_servers,
            "group.id": f"test-{time.monotonic_ns()}",
            "auto.offset.reset": "earliest",
        }
    )
    try:
        consumer.subscribe([topic])
        message = consumer.poll(30)
        assert message is not None
        assert message.error() is None
        value = message.value()
        assert value is not None
        return value
    finally:
        consumer.close()


def _registry(
    endpoints: Endpoints, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, object]:
    url = urlsplit(endpoints.schema_registry_url)
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    try:
        connection.request(
            method,
            url.path + path,
            body=None if body is None else json.dumps(body),
            headers={"Content-Type": "application/vnd.schemaregistry.v1+json"},
        )
        response = connection.getresponse()
        content: dict[str, object] = json.load(response)
        assert response.status == http.HTTPStatus.OK, content
        return content
    finally:
        connection.close()


def _minio(endpoints: Endpoints) -> Minio:
    return Minio(
        endpoints.minio_endpoint,
        access_key=endpoints.minio_access_key,
        secret_key=endpoints.minio_secret_key,
        secure=False,
    )


def _leaders(directory: Path) -> list[int]:
    return [service.pid for service in read_status(directory).services]


def _session_members(stack: LocalStack) -> list[int]:
    return _session_pids(_leaders(stack.directory))


def _session_pids(leaders: list[int]) -> list[int]:
    """List the guards and the services behind them."""
    rows = subprocess.run(
        ["ps", "-A", "-o", "pid=,pgid="], capture_output=True, text=True, check=True
    ).stdout.split()
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return [int(pid) for pid, group in pairs if int(group) in leaders]


def _socket_inodes(pids: list[int]) -> set[str]:
    links = [
        str(descriptor.readlink())
        for pid in pids
        for descriptor in Path(f"/proc/{pid}/fd").iterdir()
    ]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def _wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while alive := [pid for pid in pids if process_started(pid) is not None]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.05)
