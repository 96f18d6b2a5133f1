"""`moot demo`: five organisations, one model, four ledger nodes, and an audit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from adapters import alive
from adapters.durable import write_file
from adapters.log_lines import printable
from adapters.wording import counted
from cli.baselines import CENTRALISED, list_baselines
from cli.baselines import read as read_baselines
from cli.examples import EXAMPLES, ORGANISATIONS, Example
from cli.extras import demand
from cli.interrupts import EXIT_INTERRUPTED, Interrupts
from cli.modes import forge_update, start_demo
from cli.stack import fork_server
from cli.stack.fork_server import ForkServer
from cli.stack.processes import (
    LOOPBACK,
    Child,
    StackError,
    end_children,
    find_free_ports,
    last_lines,
)
from cli.stack.services import IMPORTS, TRAINING_IMPORTS, Supervisor
from cli.stack.stack import LocalStack

if TYPE_CHECKING:
    from adapters.settings import Settings
    from schemas.events import LedgerEvent, LedgerNode

FEDERATION: Final = "demo"
LEDGER_NODES: Final = ORGANISATIONS[:4]
"""Organisations that also run a ledger node: one of four may lie or be down."""
PARTIES: Final = ORGANISATIONS[:3]
"""Organisations that also add up shares: only all three could see an update."""
CLIP_NORM: Final = 8.0
ROUND_TIMEOUT_S: Final = 180.0
PROGRESS_EVERY_S: Final = 5.0
FINAL_WITHIN_S: Final = 30.0
POLL_S: Final = 0.05
FOUNDED_WITHIN_S: Final = 120.0
AUDITED_WITHIN_S: Final = 600.0
BAR_WIDTH: Final = 40


def run_demo(*, rounds: int, task: str, directory: Path | None) -> int:
    """Run the demo; returns an exit code.

    Raises:
        StackError: something failed; says what to do.
    """
    demand("agent", "examples", "exporter", "services")
    if task not in EXAMPLES:
        msg = f"there is no example {task!r}"
        raise StackError(msg, f"Choose one of {', '.join(EXAMPLES)}.")
    console = Console()
    try:
        with Interrupts() as interrupts, _working_directory(directory) as work:
            demo = _Demo(console, work, task, rounds)
            try:
                with interrupts.allowed():
                    return demo.run()
            finally:
                demo.stop()
                # What an interrupt kept from being known uses our folder as well.
                end_children()
    except KeyboardInterrupt:
        console.print("[yellow]stopped; nothing is left running[/]")
        return EXIT_INTERRUPTED


@contextmanager
def _working_directory(directory: Path | None) -> Iterator[Path]:
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        yield directory.absolute()
        return
    temporary = Path(tempfile.mkdtemp(prefix="moot-demo-"))
    try:
        yield temporary
    finally:
        while temporary.exists():  # threads of ours may still write to it
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class _Demo:
    console: Console
    work: Path
    task: str
    rounds: int
    begun: float = field(default_factory=time.monotonic)
    accuracies: list[float] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    log_url: str = ""
    _stack: LocalStack | None = None
    _fork_server: ForkServer | None = None
    _supervisor: Supervisor | None = None

    @property
    def example(self) -> Example:
        """What is trained."""
        return EXAMPLES[self.task]

    def run(self) -> int:
        # torch leaves caches there, which go with our folder.
        temporary = self.work / "tmp"
        temporary.mkdir(exist_ok=True)
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        if fork_server.IS_SUPPORTED:
            self._fork_server = ForkServer(self.work / "logs" / "fork-server.log")
            # Meanwhile: the stack takes longer.
            self._fork_server.preload(*IMPORTS, *TRAINING_IMPORTS)
        loader = alive.start_thread(_load_clients, "load clients")
        self._stack = LocalStack(self.work / "stack")
        with self.console.status("starting Kafka, schema registry and MinIO") as status:
            endpoints = self._stack.start(self._make_progress(status))
        self.say(f"Kafka {endpoints.bootstrap_servers}, schema registry, MinIO are up")
        environment = {
            **endpoints.environment(),
            "MOOT_STATE_DIRECTORY": str(self.work / "services"),
            # Their output goes to files, and some of it from there to here.
            "COLUMNS": str(self.console.width),
        }
        loader.join()
        os.environ.update(environment)
        from adapters import telemetry
        from adapters.settings import load_settings

        settings = load_settings()
        telemetry.configure("moot-demo", settings.otlp_endpoint)
        self._prepare(settings)
        self._supervisor = Supervisor(
            environment, self.work / "logs", self._fork_server
        )
        operator_key = self._start_processes(settings)
        baselines = self._start_baselines()
        size = self._watch_rounds(settings)
        self._await_final(size)
        audit = self._supervisor.run(
            "audit", "cli.main", "audit", "--federation", FEDERATION,
            "--operator-key", operator_key.hex(),
        )  # fmt: skip
        self._show_receipt(settings)
        self._show_rewards(settings)
        self._compare(baselines)
        return self._show_audit(audit)

    def _make_progress(self, status: Status) -> Callable[[str, str], None]:
        """Return how to show long work: one line that moves, or a line at times."""
        shown: dict[str, float] = {}

        def show(service: str, message: str) -> None:
            status.update(f"{service}: {message}")
            now = time.monotonic()
            if (
                not self.console.is_terminal
                and now - shown.get(service, -PROGRESS_EVERY_S) >= PROGRESS_EVERY_S
            ):
                shown[service] = now
                self.say(f"{service}: {message}")

        return show

    def stop(self) -> None:
        """Stop everything that was started."""
        if self._supervisor is not None:
            self._supervisor.stop_all()
        if self._fork_server is not None:
            self._fork_server.close()
        if self._stack is not None:
            self._stack.stop()

    def _elapsed(self) -> float:
        return time.monotonic() - self.begun

    def say(self, message: str, *, style: str = "", place: str = "") -> None:
        """Print a line; a message is not parsed for markup."""
        line = Text().append(f"{self._elapsed():6.1f} s  {place}", style="dim")
        line.append(printable(message), style=style)
        self.console.print(line, highlight=False, soft_wrap=True)

    def _prepare(self, settings: Settings) -> None:
        from adapters.blobs import BlobStore
        from adapters.kafka import create_topics
        from adapters.schema_registry import SchemaRegistry

        created = create_topics(settings)
        schemas = SchemaRegistry(settings.schema_registry_url).register_all()
        BlobStore(settings).ensure_bucket()
        self.say(
            f"{counted(len(created), 'topic')} made, "
            f"{counted(len(schemas), 'schema')} registered"
        )

    def _start_processes(self, settings: Settings) -> bytes:
        """Start whatever takes part, found the federation; returns whom to trust."""
        from adapters.keys import key_path, load_or_create_key
        from cli.node import show_node
        from producers.control import load_principals

        keys = settings.state_directory / "keys"
        load_principals(keys)
        operator_key = load_or_create_key(key_path(keys, "OPERATOR")).public_key
        assert self._supervisor is not None
        self._supervisor.start_services(FEDERATION)
        nodes = self._start_nodes(settings, operator_key)
        parties = start_demo(self._supervisor, settings, PARTIES, CLIP_NORM)
        founding = self._supervisor.run(
            "founding", "cli.main", "federation", "create", "--federation", FEDERATION,
            "--module", self.example.module, "--data-module", self.example.data_module,
            "--data-config", json.dumps(self.example.data_config),
            "--local-epochs", str(self.example.local_epochs),
            "--cohort-size", str(len(ORGANISATIONS)), "--min-cohort", "3",
            "--no-check",  # it is known to work
            *(f"--ledger-node={show_node(node)}" for node in nodes), *parties,
        )  # fmt: skip
        for index, name in enumerate(ORGANISATIONS):
            self._supervisor.start(
                name, "agent", "run", name, "--federation", FEDERATION,
                "--operator-key", operator_key.hex(),
                "--data-config", json.dumps({"organisation": index}),
            )  # fmt: skip
        self.say(
            f"services, {counted(len(LEDGER_NODES), 'ledger node')}, "
            f"{counted(len(PARTIES), 'party', 'parties')} and "
            f"{counted(len(ORGANISATIONS), 'agent')} are starting"
        )
        with self.console.status("founding the federation"):
            code = self._finish(founding, "founding", FOUNDED_WITHIN_S)
        if code:
            log = self._supervisor.log_path("founding")
            raise StackError(last_lines(log), f"The logs are in {log.parent}.")
        self.say(f"federation {FEDERATION!r} founded")
        return operator_key

    def _finish(self, child: Child, name: str, within_s: float) -> int:
        """Return a program's exit code; looks after the services meanwhile."""
        assert self._supervisor is not None
        deadline = time.monotonic() + within_s
        while (code := child.poll()) is None:
            self._watch_services()
            if time.monotonic() > deadline:
                log = self._supervisor.log_path(name)
                msg = f"{name} did not end within {within_s:.0f} s:\n{last_lines(log)}"
                raise StackError(msg, f"The logs are in {log.parent}.")
            time.sleep(POLL_S)
        return code

    def _watch_services(self) -> None:
        assert self._supervisor is not None
        for name in self._supervisor.watch():
            self.say(f"{name} had ended and was started again", style="yellow")

    def _start_nodes(
        self, settings: Settings, operator_key: bytes
    ) -> tuple[LedgerNode, ...]:
        assert self._supervisor is not None
        trusted = "--operator-key", operator_key.hex()
        nodes = self._supervisor.start_nodes(
            settings, FEDERATION, LEDGER_NODES, *trusted
        )
        (log_port,) = find_free_ports(1)
        self._supervisor.start(
            "log", "serve", "log", "--port", str(log_port), "--federation", FEDERATION,
            *trusted,
        )  # fmt: skip
        self.log_url = f"http://{LOOPBACK}:{log_port}"
        return nodes

    def _start_baselines(self) -> Child:
        assert self._supervisor is not None
        # As many passes over the data as the federation makes.
        epochs = self.rounds * self.example.local_epochs
        return self._supervisor.run(
            "baselines", "cli.baselines",
            self.task, str(epochs), str(self.work / "baselines"),
        )  # fmt: skip

    def _watch_rounds(self, settings: Settings) -> int:
        """Admit who asks, ask for rounds, print what the log says; returns its size."""
        from adapters.kafka_log import ReadBlock, follow_log
        from cli.operate import DRAWABLE_WITHIN_S, make_operator, make_registry
        from protocol.decider import step
        from protocol.rewards import find_accuracy
        from protocol.round_state import is_drawable
        from protocol.rounds import DECIDER
        from schemas import events as e

        operator = make_operator(settings, FEDERATION)
        admitted: set[str] = set()
        state = DECIDER.initial
        wanted, wanted_at = 0, 0.0
        deadline = time.monotonic() + ROUND_TIMEOUT_S
        for read in follow_log(settings, make_registry(settings), FEDERATION):
            assert self._supervisor is not None
            self._watch_services()
            if time.monotonic() > deadline:
                msg = f"nothing was registered for {ROUND_TIMEOUT_S:.0f} s"
                raise StackError(msg, f"The logs are in {self._supervisor.logs}.")
            if wanted and (
                is_drawable(state) or time.monotonic() - wanted_at > DRAWABLE_WITHIN_S
            ):
                operator.request_round(FEDERATION, wanted)
                if wanted == 1:
                    self._intrude(settings)
                wanted = 0
            if not isinstance(read, ReadBlock):
                continue
            for leaf in read.leaves:
                state, _ = step(DECIDER, state, leaf.sequenced)
                event = leaf.sequenced.event
                self._print(event, read.block.height, leaf.sequenced.leaf_index)
                match event:
                    case e.AgentEnrolmentRequested(agent_id=name) if (
                        name in ORGANISATIONS
                    ):
                        operator.admit(FEDERATION, {name: event.public_key})
                    case e.AgentAdmitted():
                        admitted.add(event.agent_id)
                        if admitted == set(ORGANISATIONS):
                            wanted, wanted_at = 1, time.monotonic()
                    case e.ModelVersionRegistered():
                        deadline = time.monotonic() + ROUND_TIMEOUT_S
                        self.accuracies.append(find_accuracy(event) / 1e6)
                        if event.round == self.rounds:
                            chain = read.state.chain
                            self.say(
                                f"{counted(chain.height, 'block')}, "
                                f"{counted(chain.size, 'leaf', 'leaves')}, "
                                f"tree {chain.tree.root().hex()[:16]}"
                            )
                            return chain.size
                        wanted, wanted_at = event.round + 1, time.monotonic()
                    case e.RoundAbandoned() | e.RoundRefused():
                        msg = f"round {event.round}: {event.reason}, {event.detail}"
                        raise StackError(msg, f"Logs: {self._supervisor.logs}")
                    case _:
                        pass
        raise StackError("the log cannot be followed any more", "Is Kafka still there?")

    def _await_final(self, size: int) -> None:
        """Wait until a quorum of ledger nodes has cosigned all of this."""
        from adapters.log_client import LogClient, LogUnavailableError
        from ledger.checkpoint import parse_checkpoint
        from ledger.note import InvalidNoteError, parse_note

        begun = time.monotonic()
        problem = ""
        while time.monotonic() - begun < FINAL_WITHIN_S:
            try:
                note = LogClient(self.log_url).fetch_checkpoint()
                final = parse_checkpoint(parse_note(note).text).size
            except (LogUnavailableError, InvalidNoteError) as error:
                problem = str(error)
            else:
                if final >= size:
                    waited = time.monotonic() - begun
                    self.say(f"final {waited:.1f} s later; cosigned checkpoint:")
                    for line in note.decode(errors="replace").splitlines():
                        self.say(line, style="dim")
                    return
                problem = f"final up to size {final} of {size}"
            time.sleep(0.1)
        assert self._supervisor is not None
        raise StackError(problem, f"The nodes' logs are in {self._supervisor.logs}.")

    def _show_receipt(self, settings: Settings) -> None:
        """Verify, with no service's help, the receipt that an agent kept."""
        from cli.receipts import check_receipt, show_policy
        from ledger.proof_file import FILE_EXTENSION

        policy = self.work / "policy"
        write_file(policy, show_policy(settings, FEDERATION).encode())
        agents = settings.state_directory / "agents" / FEDERATION
        begun = time.monotonic()
        while time.monotonic() - begun < FINAL_WITHIN_S:
            kept = sorted(
                agents.glob(f"*/receipts/round-{self.rounds}-*{FILE_EXTENSION}")
            )
            if kept:
                size = kept[0].stat().st_size
                self.say(f"a receipt that an agent kept, {size} bytes, verified:")
                if check_receipt(kept[0], policy, as_json=False):
                    raise StackError("the receipt is not valid", f"It is {kept[0]}.")
                return
            time.sleep(0.1)
        msg = "no agent kept a receipt"
        raise StackError(msg, f"Their logs say why: {self.work / 'logs'}")

    def _show_rewards(self, settings: Settings) -> None:
        from cli.rewards import show_rewards

        self.say("rewards:")
        show_rewards(settings, FEDERATION, as_json=False, history=False)

    def _print(self, event: LedgerEvent, height: int, leaf_index: int) -> None:
        from cli.describe import describe
        from schemas import events as e

        style = {
            e.RoundStarted: "bold",
            e.ContributionAccepted: "green",
            e.ContributionRejected: "red",
            e.EventRejected: "red",
            e.ModelVersionRegistered: "bold cyan",
        }.get(type(event))
        quiet = (
            e.UpdatesChecked,
            e.AggregateSubmitted,
            e.ModelExported,
            e.RoundRequested,
            e.FinalityRequested,
            e.BalanceChanged,
        )
        if isinstance(event, quiet):
            return
        if isinstance(event, e.RoundStarted):
            self.times.setdefault("first round started", self._elapsed())
        elif isinstance(event, e.ModelVersionRegistered):
            self.times.setdefault("published", self._elapsed())
        place = f"block {height:>3} leaf {leaf_index:>3}  "
        self.say(describe(event), style=style or "", place=place)

    def _intrude(self, settings: Settings) -> None:
        """Submit an update that nobody admitted signed: the log shows the refusal."""
        import secrets

        from adapters.kafka import Publisher
        from adapters.kafka_log import find_genesis
        from cli.operate import make_registry
        from ledger.signing import SigningKey

        publisher = Publisher(settings, make_registry(settings))
        found = find_genesis(settings, make_registry(settings), FEDERATION)
        assert found is not None, "rounds are asked for"
        forged = forge_update(FEDERATION, ORGANISATIONS[0])
        publisher.publish(forged, SigningKey(secrets.token_bytes(32)), found.hash)

    def _compare(self, baselines: Child) -> None:
        """Print a table of accuracies, when each organisation has trained alone."""
        assert self._supervisor is not None
        path = self.work / "baselines"
        wanted = len(list(list_baselines(self.example)))
        with self.console.status("training alone, for comparison") as status:
            progress = self._make_progress(status)
            while len(found := read_baselines(path)) < wanted:
                progress("training alone, for comparison", f"{len(found)} of {wanted}")
                if baselines.poll():
                    log = self._supervisor.log_path("baselines")
                    raise StackError(last_lines(log), f"Its log is {log}.")
                time.sleep(0.1)
        table = Table(title="accuracy on held-out data", title_justify="left")
        table.add_column("")
        table.add_column("accuracy", justify="right")
        table.add_column("")
        for number, accuracy in enumerate(self.accuracies, 1):
            table.add_row(f"round {number}", f"{accuracy:.3f}", _bar(accuracy, "cyan"))
        for name, accuracy in found.items():
            colour = "green" if name == CENTRALISED else "red"
            table.add_row(name, f"{accuracy:.3f}", _bar(accuracy, colour))
        self.console.print(table)

    def _show_audit(self, audit: Child) -> int:
        """Print what an audit says that a process of its own made; its exit code."""
        assert self._supervisor is not None
        self.say("moot audit: replaying the log from its beginning")
        with self.console.status("moot audit"):
            code = self._finish(audit, "audit", AUDITED_WITHIN_S)
        said = self._supervisor.log_path("audit").read_text(encoding="utf-8")
        for line in said.splitlines():
            text = Text(printable(line))
            self.console.print(text, highlight=False, soft_wrap=True)
        times = [f"{what} after {at_s:.1f} s" for what, at_s in self.times.items()]
        self.say(f"done; {', '.join(times)}")
        return code


def _bar(accuracy: float, colour: str) -> str:
    return f"[{colour}]{'█' * round(accuracy * BAR_WIDTH)}[/]"


def _load_clients() -> None:
    import cli.node  # noqa: F401
