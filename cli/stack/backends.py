"""What a local stack runs: how each service is configured, found and probed.

`cli.stack.stack` starts them, watches them and ends them.
"""

import base64
import http.client
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple, Self
from uuid import UUID

from adapters.durable import PRIVATE, write_file
from cli.stack.fetch import DEFINITIONS, Artifacts
from cli.stack.processes import LOOPBACK, StackError, find_free_ports

KAFKA, REGISTRY, MINIO = "kafka", "schema-registry", "minio"
KAFKA_FORMAT = "kafka-format"  # runs before Kafka first starts
READY_TIMEOUT_S = 90.0  # a cold disk and a busy core: ten times what it usually takes
_PROBE_TIMEOUT_S = 2.0

_KAFKA_JVM = ("-Xms512m", "-Xmx512m", "-XX:-UsePerfData", "-Djava.awt.headless=true")
# The registry lives briefly and does little: the first compiler tier and the serial
# collector halve its start (10 s to 5 s on two cores). Kafka keeps the defaults, which
# decide its throughput.
_BRIEF_JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData")


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where a stack's services are, and the credentials for them."""

    bootstrap_servers: str
    schema_registry_url: str
    minio_endpoint: str
    minio_access_key: str
    minio_secret_key: str = field(repr=False)

    def environment(self) -> dict[str, str]:
        """Return the same as the environment variables that our settings read."""
        return {
            "MOOT_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "MOOT_SCHEMA_REGISTRY_URL": self.schema_registry_url,
            "MOOT_MINIO_ENDPOINT": self.minio_endpoint,
            "MOOT_MINIO_ACCESS_KEY": self.minio_access_key,
            "MOOT_MINIO_SECRET_KEY": self.minio_secret_key,
        }


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the services listen, on the loopback."""

    kafka: int
    kafka_controller: int
    registry: int
    registry_management: int
    minio: int

    @classmethod
    def choose(cls) -> Self:
        """Ports that are free now; another process may still take one first."""
        return cls(*find_free_ports(5))

    @classmethod
    def read(cls, files: "Files") -> Self:
        """Return those that a stack chose last."""
        return cls(**json.loads(files.ports.read_text(encoding="utf-8")))

    def free(self) -> bool:
        """Return whether nobody listens on any of them."""
        try:
            for port in asdict(self).values():
                socket.create_server((LOOPBACK, port)).close()
        except OSError:
            return False
        return True


class Files:
    """The layout of a stack's directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state.json"
        self.ports = root / "ports.json"
        self.credentials = root / "minio-credentials.json"
        self.lock = root / "lock"

    def data(self, service: str) -> Path:
        """Return where a service keeps its data."""
        return self.root / service

    def log(self, service: str) -> Path:
        """Return where a service's output goes."""
        return self.root / "logs" / f"{service}.log"


def write_private(path: Path, content: Mapping[str, object]) -> None:
    """Write JSON that its owner alone may read."""
    write_file(path, json.dumps(content, indent=2).encode(), mode=PRIVATE)


def _kafka(
    files: Files, artifacts: Artifacts, ports: Ports
) -> tuple[list[str], dict[str, str]]:
    data = files.data(KAFKA)
    logs = data / "data"
    scratch = data / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    properties = data / "server.properties"
    listeners = f"PLAINTEXT://{LOOPBACK}:{ports.kafka},CONTROLLER://{LOOPBACK}:{ports.kafka_controller}"
    text = (
        (DEFINITIONS / "server.properties").read_text(encoding="utf-8")
        + f"\nlisteners={listeners}\n"
        # A static voter: it may move to another port when the stack starts again.
        + f"controller.quorum.voters=1@{LOOPBACK}:{ports.kafka_controller}\n"
        + f"log.dirs={_escape_property(logs)}\n"
    )
    write_file(properties, text.encode())
    # Sorted: the order of a wildcard is the file system's, and would differ by machine.
    jars = sorted(artifacts.kafka_jars.glob("*.jar"))
    common = [
        f"-Dlog4j2.configurationFile={DEFINITIONS / 'log4j2.properties'}",
        "-cp",
        os.pathsep.join(str(jar) for jar in jars),
        # Its libraries unpack native code there; a broker that is killed leaves it.
        f"-Djava.io.tmpdir={scratch}",
    ]
    if not (logs / "meta.properties").exists():
        # An interrupted format leaves a directory that the broker would not take.
        shutil.rmtree(logs, ignore_errors=True)
        java = artifacts.run_java(KAFKA_FORMAT)
        _format_kafka(files, [*java, *_BRIEF_JVM, *common], properties)
    java = artifacts.run_java(KAFKA)
    return [*java, *_KAFKA_JVM, *common, "kafka.Kafka", str(properties)], {}


def _format_kafka(files: Files, java: list[str], properties: Path) -> None:
    cluster_id = _new_cluster_id()
    run = subprocess.run(
        [
            *java,
            "kafka.tools.StorageTool",
            "format",
            f"--cluster-id={cluster_id}",
            f"--config={properties}",
        ],
        env=inherited_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=READY_TIMEOUT_S,
        check=False,
    )
    if run.returncode != 0:
        raise StackError(
            f"Kafka's storage could not be formatted:\n{run.stdout}{run.stderr}",
            f"Is there space left for {files.data(KAFKA)}?",
        )


def _new_cluster_id() -> str:
    """Make an id in Kafka's form: a UUID in URL-safe base64 without padding."""
    raw = UUID(bytes=secrets.token_bytes(16), version=4).bytes
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _cluster_id(files: Files) -> str:
    meta = files.data(KAFKA) / "data" / "meta.properties"
    for line in meta.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        if name == "cluster.id":
            return value
    raise StackError(
        f"{meta} names no cluster.", f"Remove {files.data(KAFKA)} and start again."
    )


def _escape_property(path: Path) -> str:
    return str(path).replace("\\", "\\\\")


def _registry(
    files: Files, artifacts: Artifacts, ports: Ports
) -> tuple[list[str], dict[str, str]]:
    scratch = files.data(REGISTRY)
    scratch.mkdir(parents=True, exist_ok=True)
    argv = [
        *artifacts.run_java(REGISTRY),
        "-Xmx384m",
        *_BRIEF_JVM,
        f"-Djava.io.tmpdir={scratch}",
        "-jar",
        str(artifacts.registry_home / "quarkus-run.jar"),
    ]
    return argv, {
        "APICURIO_STORAGE_KIND": "kafkasql",
        "APICURIO_KAFKASQL_BOOTSTRAP_SERVERS": f"{LOOPBACK}:{ports.kafka}",
        # It starts beside Kafka, and waits as long as we do.
        "APICURIO_KAFKA_COMMON_DEFAULT_API_TIMEOUT_MS": f"{READY_TIMEOUT_S * 1000:.0f}",
        # At start it polls for snapshots until a poll of this length comes back empty:
        # with the default, 5 s, that is 15 s of waiting for what a local broker has at
        # hand. We make no snapshots; its state is the whole journal.
        "APICURIO_KAFKASQL_CONSUMER_POLL_TIMEOUT": "200",
        "QUARKUS_HTTP_HOST": LOOPBACK,
        "QUARKUS_HTTP_PORT": str(ports.registry),
        "QUARKUS_MANAGEMENT_HOST": LOOPBACK,
        "QUARKUS_MANAGEMENT_PORT": str(ports.registry_management),
        # No web page the user happens to visit may talk to it.
        "QUARKUS_HTTP_CORS_ENABLED": "false",
        "QUARKUS_LOG_CATEGORY__ORG_APACHE_KAFKA__LEVEL": "WARN",
        "QUARKUS_LOG_CATEGORY__IO_QUARKUS_HTTP_ACCESS_LOG__LEVEL": "WARN",
        "QUARKUS_BANNER_ENABLED": "false",
    }


def _minio(
    files: Files, artifacts: Artifacts, ports: Ports
) -> tuple[list[str], dict[str, str]]:
    data = files.data(MINIO)
    data.mkdir(parents=True, exist_ok=True)
    access_key, secret_key = _credentials(files)
    argv = [
        str(artifacts.minio),
        "server",
        "--quiet",
        f"--address={LOOPBACK}:{ports.minio}",
        str(data / "data"),
    ]
    return argv, {
        "MINIO_ROOT_USER": access_key,
        "MINIO_ROOT_PASSWORD": secret_key,
        "MINIO_BROWSER": "off",  # one listener fewer
        "MINIO_UPDATE": "off",  # it is pinned
    }


def _credentials(files: Files) -> tuple[str, str]:
    """MinIO's root user and password: random, made once."""
    path = files.credentials
    if not path.exists():
        write_private(
            path,
            {
                "access_key": f"moot-{secrets.token_hex(6)}",
                "secret_key": secrets.token_urlsafe(30),
            },
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return found["access_key"], found["secret_key"]


def find_endpoints(files: Files, ports: Ports) -> Endpoints:
    """Return where the services are; missing credentials of MinIO's are made."""
    access_key, secret_key = _credentials(files)
    return Endpoints(
        bootstrap_servers=f"{LOOPBACK}:{ports.kafka}",
        schema_registry_url=f"http://{LOOPBACK}:{ports.registry}/apis/ccompat/v7",
        minio_endpoint=f"{LOOPBACK}:{ports.minio}",
        minio_access_key=access_key,
        minio_secret_key=secret_key,
    )


def inherited_environment() -> dict[str, str]:
    """Return our variables that a service needs to run, none that configure it."""
    wanted = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "USER", "LOGNAME")
    return {name: os.environ[name] for name in wanted if name in os.environ}


def _kafka_answers(bootstrap_servers: str, files: Files) -> bool:
    host, _, port = bootstrap_servers.rpartition(":")
    try:
        # librdkafka backs off and complains when nobody listens yet; ask TCP first.
        socket.create_connection((host, int(port)), _PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    quiet = logging.getLogger("cli.stack.stack.probe")
    quiet.setLevel(logging.CRITICAL + 1)
    admin = AdminClient(
        {"bootstrap.servers": bootstrap_servers, "log_level": 0}, logger=quiet
    )
    try:
        metadata = admin.list_topics(timeout=_PROBE_TIMEOUT_S)
    except KafkaException:
        return False
    return bool(metadata.cluster_id == _cluster_id(files) and metadata.brokers)


def _registry_answers(endpoints: Endpoints, files: Files) -> bool:
    # It answers requests, with nothing, before it has read its journal.
    management = Ports.read(files).registry_management
    if not _http_ok(f"{LOOPBACK}:{management}", "/health/ready"):
        return False
    authority = endpoints.schema_registry_url.split("/")[2]
    return _http_ok(authority, "/apis/ccompat/v7/subjects")


def _http_ok(authority: str, path: str) -> bool:
    # http.client, not urllib: a proxy configured for the internet has no say here.
    connection = http.client.HTTPConnection(authority, timeout=_PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


class Backend(NamedTuple):
    """How one of a stack's services is started, found and probed.

    Attributes:
        prepare: Returns its command line and its own environment; makes what it needs.
        find: Returns where it is.
        answers: Returns whether it answers and is ours.
    """

    prepare: Callable[[Files, Artifacts, Ports], tuple[list[str], dict[str, str]]]
    find: Callable[[Endpoints], str]
    answers: Callable[[Endpoints, Files], bool]


BACKENDS: Mapping[str, Backend] = {
    KAFKA: Backend(
        _kafka,
        lambda endpoints: endpoints.bootstrap_servers,
        lambda endpoints, files: _kafka_answers(endpoints.bootstrap_servers, files),
    ),
    REGISTRY: Backend(
        _registry,
        lambda endpoints: endpoints.schema_registry_url,
        _registry_answers,
    ),
    MINIO: Backend(
        _minio,
        lambda endpoints: endpoints.minio_endpoint,
        lambda endpoints, _: _http_ok(endpoints.minio_endpoint, "/minio/health/ready"),
    ),
}
