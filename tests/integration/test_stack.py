"""The local stack: every service does its work, and nothing outlives its owner."""

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
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient  # type: ignore[attr-defined]

from cli.stack import fetch
from cli.stack.backends import KAFKA_FORMAT
from cli.stack.fork_server import ForkServer
from cli.stack.jvm_cache import JvmCache
from cli.stack.processes import process_started, spawn_owned
from cli.stack.stack import (
    KAFKA,
    MINIO,
    REGISTRY,
    Endpoints,
    LocalStack,
    StackError,
    StackState,
    add_jvm_cache,
    ensure_fetched,
    read_status,
)
from tests.integration.harness import World, run_moot, wait_until
from tests.integration.outages import (
    ask_registry,
    consume_one,
    create_topic,
    make_minio,
)
from tests.paths import ROOT

pytestmark = pytest.mark.timeout(900)  # the first run builds MinIO

SERVICES = (KAFKA, REGISTRY, MINIO)


@pytest.fixture(scope="module")
def stack(world: World) -> LocalStack:
    return world.stack


@pytest.fixture(scope="module")
def endpoints(stack: LocalStack) -> Endpoints:
    return stack.endpoints


def test_kafka_carries_transactions(endpoints: Endpoints) -> None:
    create_topic(endpoints, "greetings")
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

    assert consume_one(endpoints, "greetings") == b"committed"


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

    registered = ask_registry(
        endpoints, "POST", "/subjects/greetings-Greeting/versions", {"schema": schema}
    )
    found = ask_registry(endpoints, "GET", f"/schemas/ids/{registered['id']}")

    assert json.loads(str(found["schema"])) == json.loads(schema)


def test_minio_returns_the_object_it_was_given(endpoints: Endpoints) -> None:
    client = make_minio(endpoints)
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
    with pytest.raises(StackError, match="is in use by process"):
        LocalStack(stack.directory).start()
    assert read_status(stack.directory).state is StackState.RUNNING


@pytest.mark.parametrize(
    ("number", "services"),
    [
        pytest.param(
            number,
            services,
            marks=[pytest.mark.nightly] if services == SERVICES else [],
            id=f"{number.name}-{len(services)}",
        )
        for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
        for services in ((MINIO,), SERVICES)
    ],
)
def test_an_owned_stack_dies_with_its_owner(
    tmp_path: Path, number: signal.Signals, services: tuple[str, ...]
) -> None:
    # Started from a thread that ends: services must die with the process, not with it.
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER, str(tmp_path), *services],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    status = read_status(tmp_path)
    assert [service.name for service in status.services if service.healthy] == [
        *services
    ]
    members = _session_pids(_leaders(tmp_path))
    assert len(members) >= 2 * len(services)

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
    from tests.integration.part_of_stack import PartOfStack

    # Also where the tests run in the background, with Ctrl-C ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    stack = PartOfStack(Path(sys.argv[1]), *sys.argv[2:])
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


def test_a_stack_of_ones_own_goes_up_and_down(
    fork_server: ForkServer | None, tmp_path: Path
) -> None:
    """What the README tells a newcomer to type, in its order."""
    mine = tmp_path / "mine"

    def moot(*arguments: str) -> str:
        finished = run_moot(fork_server, *arguments, FOLKMOOT_STATE=str(mine))
        assert finished.returncode == 0, (arguments, finished.stdout, finished.stderr)
        return finished.stdout

    try:
        assert "moot down" in moot("up")
        assert json.loads(moot("status", "--json"))["state"] == "running"
        assert "MOOT_MINIO_SECRET_KEY" in moot("status", "--env")
        assert "moot.ledger" in moot("topics", "create")
        assert "all topics exist" in moot("topics", "create")
        registered = json.loads(moot("schemas", "register", "--json"))
        assert "moot.updates-folkmoot.v1.UpdateSubmitted" in registered
        assert json.loads(moot("schemas", "register", "--json")) == registered
        # The command that started it has ended, and it stays.
        assert read_status(mine).detached
        with pytest.raises(StackError, match="already running"):
            LocalStack(mine).start()
        _kill_a_part(mine)
        assert "moot down" in moot("up")
        assert json.loads(moot("status", "--json"))["state"] == "running"
        assert "all topics exist" in moot("topics", "create")
        assert json.loads(moot("schemas", "register", "--json")) == registered
        leaders = _leaders(mine)
        assert len(leaders) == len(SERVICES)
    finally:
        down = run_moot(fork_server, "down", FOLKMOOT_STATE=str(mine))
    assert down.stdout == "stopped\n"
    _wait_until_gone(leaders)
    assert json.loads(moot("status", "--json"))["state"] == "stopped"
    assert moot("down") == "nothing was running\n"


def _kill_a_part(directory: Path) -> None:
    """Kill all of a detached stack but its schema registry."""
    status = read_status(directory)
    for service in status.services:
        if service.name != REGISTRY:
            os.killpg(service.pid, signal.SIGKILL)
    wait_until(
        lambda: read_status(directory).state is StackState.DEGRADED, "a part is dead"
    )
    [registry] = [s.pid for s in status.services if s.name == REGISTRY]
    assert process_started(registry)


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


def test_a_stack_starts_though_java_cannot_use_what_it_kept(tmp_path: Path) -> None:
    for program in (KAFKA, KAFKA_FORMAT, REGISTRY):
        (tmp_path / f"{program}.aot").write_bytes(os.urandom(4096))
    artifacts = replace(ensure_fetched(_silent), jvm_cache=JvmCache(tmp_path))

    with LocalStack(tmp_path / "stack", artifacts=artifacts) as stack:
        assert read_status(stack.directory).state is StackState.RUNNING


@pytest.mark.nightly
def test_java_keeps_a_start_once(tmp_path: Path) -> None:
    artifacts = ensure_fetched(_silent)
    jars = tmp_path / artifacts.jars.name
    jars.symlink_to(artifacts.jars)
    artifacts = replace(artifacts, jars=jars)
    said: list[str] = []

    first = add_jvm_cache(artifacts, lambda _, message: said.append(message))
    again = add_jvm_cache(artifacts, lambda _, message: pytest.fail(message))

    assert first == again
    assert first.jvm_cache is not None
    assert {path.stem for path in first.jvm_cache.directory.iterdir()} == {
        KAFKA,
        KAFKA_FORMAT,
        REGISTRY,
    }
    assert not list(tmp_path.glob(".partial-*"))
    with LocalStack(tmp_path / "stack", artifacts=first) as stack:
        assert read_status(stack.directory).state is StackState.RUNNING


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
        ensure_fetched(_silent)

    assert name in refusal.value.message
    assert not list(cache.glob("minio-*"))
    assert not list(cache.glob(".partial-*"))
    if tampered != "h1:":
        assert not list(cache.glob("jars-*"))


def _silent(_service: str, _message: str) -> None:
    pass


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
