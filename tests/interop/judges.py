"""The programs that judge a publication, each as a function or a context manager."""

import base64
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cli.stack.processes import kill_owned, last_lines, spawn_owned
from ledger.merkle import EMPTY_ROOT
from ledger.note import KeyType, VerifierKey, encode_base64, parse_vkey
from tests.interop.post import post
from tests.interop.programs import Programs
from tests.interop.publication import (
    Publication,
    encode_skey,
    format_hashes,
    make_key,
)

TIMEOUT_S = 60
POST = Path(__file__).with_name("post.py")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a program said of what it was shown."""

    accepted: bool
    output: str


def _judge(argv: Sequence[object]) -> tuple[int, str]:
    run = subprocess.run(
        list(map(str, argv)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
        check=False,
    )
    return run.returncode, run.stdout.decode("utf-8", "replace")


def fsck(programs: Programs, published: Publication) -> Verdict:
    """Re-derive the log's root and every tile from its entries."""
    with tempfile.NamedTemporaryFile("w", suffix=".vkey") as key:
        key.write(published.vkey)  # without a newline: it is not stripped
        key.flush()
        _, output = _judge(
            [
                programs.fsck,
                "--ui=false",
                "--logtostderr",
                # A worker ends at the first bad tile, and with the last one gone the
                # program waits for ever to hand out the next.
                "--N=16",
                f"--public_key={key.name}",
                f"--storage_url={published.log.absolute().as_uri()}",
            ]
        )
    # It exits with 0 either way. Nor does it always say that it failed: it panics on a
    # bundle with too few entries.
    success = "Successfully fsck'd" in output
    assert not (success and "fsck failed" in output), output
    return Verdict(success, output)


def verifier(programs: Programs, what: str, *files: Path) -> Verdict:
    """Verify a checkpoint, a consistency proof or a receipt; see verifier/main.go."""
    code, output = _judge([programs.verifier, what, *files])
    assert code in {0, 1}, output  # a panic is no verdict
    return Verdict(code == 0, output)


def spicy(programs: Programs, published: Publication, receipt: Path) -> Verdict:
    """Verify a receipt and the leaf in it against the log's key."""
    text = receipt.read_bytes()
    found = re.match(rb"c2sp.org/tlog-proof@v1\nextra (.*)\n", text)
    assert found, "a receipt has its leaf in the extra line"
    with tempfile.TemporaryDirectory() as scratch:
        leaf = Path(scratch) / "leaf"
        leaf.write_bytes(base64.b64decode(found[1]))
        # It reads the form of before there was a first line and an extra line.
        leaf.with_suffix(".spicy").write_bytes(text[found.end() :])
        code, output = _judge([programs.spicy, "-verify", published.vkey, leaf])
    return Verdict(code == 0 and "verified!" in output, output)


@dataclass(slots=True)
class Witness:
    """A witness of others that runs: it remembers what it cosigned.

    Attributes:
        key: The key of its cosignatures.
        url: Its submission prefix.
        argv: How to start it.
        log_path: Where its output goes.
        environment: What it gets in addition to ours.
        pid_file: Where it writes its process id, if it has a network of its own.
    """

    key: VerifierKey
    url: str
    argv: Sequence[object]
    log_path: Path
    environment: dict[str, str] = field(default_factory=dict)
    pid_file: Path | None = None
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._process = spawn_owned(
            list(map(str, self.argv)),
            env={**os.environ, **self.environment},
            log_path=self.log_path,
        )
        give_up = time.monotonic() + TIMEOUT_S
        while True:
            try:
                self._post(b"")
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > give_up:
                    message = f"{error}\n{last_lines(self.log_path)}"
                    raise AssertionError(message) from None
                time.sleep(0.05)
            else:
                return

    def kill(self) -> None:
        """SIGKILL it with all it started."""
        if self._process is not None:
            kill_owned(self._process)
            self._process = None

    def add_checkpoint(
        self, old_size: int, proof: Sequence[bytes], note: bytes
    ) -> dict[str, Any]:
        """Ask it to cosign (c2sp.org/tlog-witness); returns what `post` returns."""
        request = f"old {old_size}\n{format_hashes(proof)}\n".encode() + note
        return self._post(request)

    def _post(self, body: bytes) -> dict[str, Any]:
        url = f"{self.url}/add-checkpoint"
        if self.pid_file is None:
            return post(url, body)
        try:
            pid = self.pid_file.read_text().strip()
        except FileNotFoundError as error:
            raise OSError("not started yet") from error
        inside = ["nsenter", f"--target={pid}", "--user", "--net"]
        run = subprocess.run(
            [*inside, "--preserve-credentials", sys.executable, "-I", str(POST), url],
            input=body,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if run.returncode != 0:
            raise OSError(run.stderr.decode())
        answer: dict[str, Any] = json.loads(run.stdout)
        return answer


@contextmanager
def _running(witness: Witness) -> Iterator[Witness]:
    try:
        witness.start()
        yield witness
    finally:
        witness.kill()


def _find_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _can_have_own_network() -> bool:
    if not (shutil.which("unshare") and shutil.which("nsenter")):
        return False
    command = ["unshare", "--map-root-user", "--net", "ip", "link", "set", "lo", "up"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def run_omniwitness(
    programs: Programs, directory: Path, published: Publication
) -> Iterator[Witness]:
    """Run an omniwitness that knows the log.

    It brings a list of public logs and must not call any of them from a test: it runs
    in a network of its own that has nothing but a loopback. Where the system has no
    such thing (macOS, some containers) its proxy is a port where nobody listens; the
    loopback is exempt from that.
    """
    name = "omniwitness.example"
    key = make_key(name)
    directory.mkdir()
    (directory / "key").write_text(encode_skey(name, key))
    (directory / "logs.yaml").write_text(
        "Logs:\n"
        f'  - Origin: "{published.origin}"\n'
        f'    PublicKey: "{published.vkey}"\n'
        '    URL: "http://127.0.0.1:1/"\n'
    )
    port = _find_port()
    argv: list[object] = [
        programs.omniwitness,
        "--logtostderr",
        f"--listen=127.0.0.1:{port}",
        "--metrics_listen=",
        f"--db_file={directory / 'db'}",
        f"--private_key_path={directory / 'key'}",
        f"--additional_logs={directory / 'logs.yaml'}",
    ]
    pid_file = None
    if _can_have_own_network():
        pid_file = directory / "pid"
        script = 'ip link set lo up && echo $$ > "$0" && exec "$@"'
        inside = ["unshare", "--map-root-user", "--net", "sh", "-c", script, pid_file]
        argv = [*inside, *argv]
    nobody = "http://127.0.0.1:1"
    witness = Witness(
        key=VerifierKey(name, KeyType.COSIGNATURE_V1, key.public_key),
        url=f"http://127.0.0.1:{port}",
        argv=argv,
        log_path=directory / "output",
        environment={"HTTP_PROXY": nobody, "HTTPS_PROXY": nobody},
        pid_file=pid_file,
    )
    with _running(witness):
        yield witness


@contextmanager
def run_litewitness(
    programs: Programs, directory: Path, published: Publication
) -> Iterator[Witness]:
    """Run a litewitness that knows the log, its key in an ssh-agent.

    It is without egress by itself: it calls only the bastions that it is given.
    """
    directory.mkdir()
    with _ssh_agent(directory) as (agent, fingerprint):
        port = _find_port()
        argv = [
            programs.litewitness,
            "-name=litewitness.example",
            f"-db={directory / 'db'}",
            f"-ssh-agent={agent}",
            f"-key={fingerprint}",
            f"-listen=127.0.0.1:{port}",
        ]
        output = directory / "output"
        # The key is the agent's; the witness says which it is.
        witness = Witness(
            key=VerifierKey("unknown", KeyType.COSIGNATURE_V1, bytes(32)),
            url=f"http://127.0.0.1:{port}",
            argv=argv,
            log_path=output,
        )
        with _running(witness):  # it makes its tables
            [vkey] = re.findall(r"vkey=(\S+)", output.read_text())
            witness.key = parse_vkey(vkey)
            _add_log(directory / "db", published)
            yield witness


def _add_log(database: Path, published: Publication) -> None:
    with sqlite3.connect(database, timeout=10) as connection:
        connection.execute(
            "INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)",
            (published.origin, encode_base64(EMPTY_ROOT)),
        )
        connection.execute(
            "INSERT INTO key (origin, key) VALUES (?, ?)",
            (published.origin, published.vkey),
        )
    connection.close()


@contextmanager
def _ssh_agent(directory: Path) -> Iterator[tuple[Path, str]]:
    """Run an ssh-agent with a new key; gives its socket and the key's fingerprint."""
    for tool in ("ssh-agent", "ssh-add", "ssh-keygen"):
        assert shutil.which(tool), (
            f"{tool} is missing. Debian/Ubuntu: sudo apt install openssh-client"
        )
    key = directory / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)],
        check=True,
        timeout=TIMEOUT_S,
    )
    listed = subprocess.run(
        ["ssh-keygen", "-l", "-E", "sha256", "-f", str(key)],
        check=True,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    ).stdout
    # A socket's path has about 100 bytes: too few for pytest's folders.
    with tempfile.TemporaryDirectory(prefix="moot-", dir="/tmp") as short:
        agent = Path(short) / "agent"
        process = spawn_owned(
            ["ssh-agent", "-D", "-a", str(agent)],
            env=os.environ,
            log_path=directory / "agent.output",
        )
        try:
            give_up = time.monotonic() + TIMEOUT_S
            while not _listens(agent):
                assert time.monotonic() < give_up, "ssh-agent does not start"
                time.sleep(0.02)
            subprocess.run(
                ["ssh-add", "-q", str(key)],
                env={**os.environ, "SSH_AUTH_SOCK": str(agent)},
                check=True,
                timeout=TIMEOUT_S,
            )
            yield agent, listed.split()[1]
        finally:
            kill_owned(process)


def _listens(path: Path) -> bool:
    # That the file is there is not enough: it is so before anybody listens.
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
