"""The training agent: a data owner's process.

It enrols with its own key, waits for a round that it was drawn for, trains on data that
never leaves it, and publishes its update. It acts only on facts that the federation's
decider signed, in a federation founded by the operator it trusts, and runs only code
that its own settings allow.

It compares its clock with nobody's: a round is over when the decider has said so. What
is away (a service, the base model) is waited for until then. Whatever users' code does,
it answers with a reason, even if that code ends the process each time it is run.

It may be killed at any moment: what it is about to say is on disk first, so after a
restart it says exactly the same. If the log has something under its key that is not on
its disk, the disk is an old copy, or somebody else has the key: then it says nothing
more in that round (`producers.agent.directory`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, cast

from adapters import alive, heartbeats, telemetry
from adapters.attempts import MAX_BEGUN, Attempts
from adapters.blobs import STORE_ERRORS, BlobError, BlobStore
from adapters.durable import PRIVATE, move_file, write_file
from adapters.genesis import remember_genesis
from adapters.imports import (
    EndedItselfError,
    ImportRefusedError,
    load_class,
    running_users_code,
)
from adapters.kafka import PartitionReader, Publisher, Record
from adapters.kafka_log import Genesis, find_genesis, find_partition, read_log
from adapters.keys import load_or_create_key
from adapters.numbers import BadNumberError, read_count, read_micros, read_number
from adapters.outages import describe, is_exhausted, is_outage, passing_over
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from ledger.merkle import leaf_hash
from ledger.signing import InvalidSignatureError, SigningKey
from producers.agent.directory import PAGE, AgentDirectory
from producers.agent.kept_update import KeptUpdate, UpdateKeeper
from producers.agent.receipts import ReceiptKeeper, Said
from producers.agent.terms import Floors, Terms
from producers.arguments import ArgumentError
from producers.modes import make_side
from producers.modes.side import AgentSide, EncodedUpdate, Site
from protocol.cohort import is_drawn
from protocol.encoding import (
    MAX_SHRUNK_TIMES,
    MAX_ZEROED,
    NotFiniteError,
    OutOfRangeError,
)
from protocol.envelope import SIGNATURE_HEADER, TRACEPARENT_HEADER, verify_event
from protocol.exchanged_state import (
    Model,
    RefusedStateError,
    Update,
    model_from_blob,
)
from protocol.log import OpenedLeaf
from protocol.model import compute_max_model_size
from protocol.modes import list_kinds
from protocol.strategies import (
    counts_steps,
    read_max_steps,
    read_proximal_weight,
)
from schemas import codec, topics
from schemas.events import (
    AgentAdmitted,
    AgentEnrolmentRequested,
    AgentRevoked,
    AggregatePublished,
    ContributionRejected,
    Event,
    FederationConfigured,
    Leaf,
    RoundAbandoned,
    RoundStarted,
    UpdateDeclined,
)
from schemas.reasons import Reason

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
WAIT_FOR_FEDERATION_S: Final = 0.5
WAITING: Final = "waiting for a round"
TRY_AGAIN_AFTER_S: Final = 5.0
"""While something is away that an answer needs."""


class NameTakenError(Exception):
    """Another key holds this agent's name in the federation."""


class NoBaseModelError(Exception):
    """The store does not have a round's base model as promised, so far."""


class NeverEndsWellError(Exception):
    """A task ended this process each time that it was run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    """Who an agent is, and what it may do.

    Attributes:
        federation_id: The federation.
        agent_id: The agent's name in it.
        operator_key: Public key of the expected founder, 32 bytes.
        genesis: Hash of the federation's genesis, 32 bytes; None to take the first that
            it finds, and only that one from then on.
        directory: Its private directory: its key and what it has said.
        allowed_prefixes: Prefixes of the modules that a task may use.
        data_config: Its own keyword arguments for the data module; never published.
        floors: What it demands of every configuration.
        task: Digest of the only task that a first start accepts, 32 bytes; None for the
            one that it finds.
    """

    federation_id: str
    agent_id: str
    operator_key: bytes
    directory: Path
    allowed_prefixes: tuple[str, ...]
    data_config: Mapping[str, Any]
    genesis: bytes | None = None
    floors: Floors = field(default_factory=Floors)
    task: bytes | None = None


class Agent:
    """One agent in one federation."""

    def __init__(self, settings: Settings, options: AgentOptions) -> None:
        self._settings = settings
        self._options = options
        self._directory = AgentDirectory(options.directory)
        self._answered_elsewhere: set[int] = set()
        self._key = load_or_create_key(options.directory / "agent.key")
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._publisher = Publisher(settings, self._registry)
        self._store = BlobStore(settings)
        self._genesis: Genesis | None = None
        self._terms: Terms
        self._updates = UpdateKeeper(options.directory)
        self._attempts = Attempts(options.directory)
        self._open: tuple[RoundStarted, Record] | None = None
        self._not_before_s = 0.0

    @property
    def key(self) -> SigningKey:
        """The key that it signs with."""
        return self._key

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Take part until told to stop; called once.

        Raises:
            UntrustedFederationError: the federation is not the trusted operator's.
            NameTakenError: another key holds this name.
            KafkaUnavailableError: Kafka is away; start again later.
        """
        if not self._join(should_stop):
            return
        import producers.agent.training  # noqa: F401, PLC0415  # torch, before the first round waits

        keeper = ReceiptKeeper(
            self._settings,
            self._options.federation_id,
            operator_key=self._options.operator_key,
            genesis=self._founding.hash,
            public_key=self._key.public_key,
            directory=self._options.directory / "receipts",
            on_answer=self._notice,
        )
        alive.start_thread(lambda: keeper.run(should_stop), "receipts")

        federation_id = self._options.federation_id
        group = f"moot-agent-{federation_id}-{self._options.agent_id}"
        # Assigned, not subscribed: the group's only member need not wait until Kafka
        # gives up its killed predecessor.
        partition = find_partition(self._settings, topics.ROUNDS, federation_id)
        reader = PartitionReader(self._settings, topics.ROUNDS, partition, group=group)
        heartbeats.do(WAITING)
        try:
            heard: Record | None = None
            while not should_stop():
                for record in reader.poll(POLL_S):
                    heard = record
                    with passing_over(f"offset {record.offset} of {topics.ROUNDS}"):
                        self._hear(record)
                # What came later may say that a round is over.
                if reader.is_at_end:
                    self._answer_open()
                # After a kill it hears of an open round again.
                if heard is not None and self._open is None:
                    reader.commit(heard)
                    heard = None
        finally:
            reader.close()
            self._directory.close()

    def _join(self, should_stop: Callable[[], bool]) -> bool:
        """Wait for the federation, learn its keys, ask to be admitted."""
        options = self._options
        while not should_stop():
            heartbeats.do("waiting for its federation")
            genesis = find_genesis(
                self._settings,
                self._registry,
                options.federation_id,
                operator_key=options.operator_key,
                genesis=options.genesis,
            )
            if genesis is None:
                time.sleep(WAIT_FOR_FEDERATION_S)
                continue
            remember_genesis(options.directory, options.federation_id, genesis.hash)
            self._genesis = genesis
            self._terms = Terms(
                options.directory, options.floors, genesis, options.agent_id
            )
            self._enrol()
            return True
        return False

    def _enrol(self) -> None:
        """Ask to be admitted, unless that was done; recall everything that was said.

        Raises:
            NameTakenError: another key holds this name.
        """
        mine = self._key.public_key
        is_known = False
        for read in read_log(
            self._settings,
            self._registry,
            self._options.federation_id,
            genesis=self._founding.hash,
        ):
            for leaf in read.leaves:
                event = leaf.sequenced.event
                self._recall(leaf)
                self._terms.learn(leaf)
                if (
                    is_known
                    or not isinstance(event, AgentEnrolmentRequested | AgentAdmitted)
                    or event.agent_id != self._options.agent_id
                ):
                    continue
                if event.public_key == mine:
                    is_known = True
                elif isinstance(event, AgentAdmitted):
                    raise NameTakenError(
                        f"the name {event.agent_id} belongs to the key "
                        f"{event.public_key.hex()}; this agent's is {mine.hex()}"
                    )
        if self._answered_elsewhere:
            self._warn_of_copy()
        self._terms.accept_first(self._options.task)
        if is_known:
            return
        request = AgentEnrolmentRequested(
            federation_id=self._options.federation_id,
            agent_id=self._options.agent_id,
            public_key=mine,
        )
        self._publisher.publish(request, self._key, self._founding.hash)
        log.info("asked to join with key %s", mine.hex())

    def _notice(self, leaf: OpenedLeaf) -> None:
        """Say nothing more once revoked, or in a round answered elsewhere."""
        if isinstance(leaf.sequenced.event, AgentRevoked):
            self._terms.learn(leaf)
        elif self._recall(leaf):
            self._warn_of_copy()

    def _recall(self, leaf: OpenedLeaf) -> bool:
        """Return whether this is the first sign that a round was answered elsewhere."""
        event = leaf.sequenced.event
        if (
            not isinstance(event, Said)
            or event.agent_id != self._options.agent_id
            or event.round in self._answered_elsewhere
        ):
            return False
        try:
            # Whoever writes the log cannot put words into this agent's mouth.
            verify_event(
                self._key.public_key,
                leaf.sequenced.genesis,
                leaf.leaf.event,
                leaf.leaf.signature,
            )
        except InvalidSignatureError:
            return False
        if self._directory.knows(leaf.leaf.event):
            return False
        self._answered_elsewhere.add(event.round)
        return True

    def _warn_of_copy(self) -> None:
        log.critical(
            "ANSWERED_ELSEWHERE: the log has what this agent's key signed in %d "
            "rounds, last in round %d, and %s does not know it: the directory was "
            "restored from a copy, or another process has the key. This one says "
            "nothing more in those rounds; see %s",
            len(self._answered_elsewhere),
            max(self._answered_elsewhere),
            self._options.directory,
            PAGE,
        )

    @property
    def _founding(self) -> Genesis:
        assert self._genesis is not None, "nothing is done before joining"
        return self._genesis

    @property
    def _federation(self) -> FederationConfigured:
        return self._terms.config

    @property
    def _side(self) -> AgentSide:
        return make_side(
            Site(
                config=self._federation,
                genesis=self._founding.hash,
                agent_id=self._options.agent_id,
                store=self._store,
            )
        )

    def _hear(self, record: Record) -> None:
        """Note which round is open, as the decider's word has it so far."""
        if record.key != self._options.federation_id.encode():
            return
        event = self._believe(record)
        if isinstance(event, RoundStarted):
            self._open, self._not_before_s = (event, record), 0.0
        elif self._open is not None and self._ends(event, self._open[0]):
            log.info("round %d is over, not answering", self._open[0].round)
            self._open = None

    def _ends(self, event: Any, started: RoundStarted) -> bool:
        """Return whether a fact means that a round takes no answer of this agent."""
        ends = (RoundAbandoned, AggregatePublished, *list_kinds().begins)
        if isinstance(event, ContributionRejected):
            is_mine = event.agent_id == self._options.agent_id
            return is_mine and event.round == started.round
        return type(event) in ends and event.round == started.round

    def _answer_open(self) -> None:
        """Answer the open round, if there is one; what is away is waited for."""
        if self._open is None or time.monotonic() < self._not_before_s:
            return
        started, record = self._open
        try:
            self._act_on(started, record)
        except Exception as error:
            if isinstance(error, NoBaseModelError) or is_outage(error):
                log.warning("round %d waits: %s", started.round, describe(error))
                self._not_before_s = time.monotonic() + TRY_AGAIN_AFTER_S
                return
            log.exception("round %d: this agent cannot answer", started.round)
        self._open = None

    def _act_on(self, started: RoundStarted, record: Record) -> None:
        self._updates.forget(but=started)
        if not is_drawn(started, self._options.agent_id):
            return
        # Non-members have tickets too, but what they say would be refused.
        if not self._terms.is_member:
            self._read_on()
        if not self._terms.is_member:
            log.info("round %d: not admitted, not taking part", started.round)
            return
        if started.round in self._answered_elsewhere:
            log.error(
                "round %d: ANSWERED_ELSEWHERE, this agent says nothing", started.round
            )
            return
        parent = telemetry.clean(record.header(TRACEPARENT_HEADER))
        with telemetry.span(
            "process", topics.ROUNDS, kind=telemetry.CONSUMER, parent=parent
        ) as current:
            self._answer(started, self._compute_leaf_hash(record), current)

    def _believe(self, record: Record) -> Event | None:
        """Return what a record says, if the decider says it."""
        keys = {p.role: p.public_key for p in self._federation.principals}
        try:
            data = self._registry.unframe(record.value)
            signature = record.header(SIGNATURE_HEADER) or b""
            verify_event(keys["DECIDER"], self._founding.hash, data, signature)
            # Not a type: mypy cannot follow.
            event = codec.decode_as(cast("Any", Event), data)
        except (FramingError, codec.CodecError, InvalidSignatureError) as error:
            log.warning("ignoring offset %d of the rounds: %s", record.offset, error)
            return None
        # One decider serves many federations.
        if event.federation_id != self._federation.federation_id:
            log.warning("ignoring a record of another federation")
            return None
        return cast("Event", event)

    def _compute_leaf_hash(self, record: Record) -> bytes:
        """Return the hash of the leaf that a record becomes, which is all of it."""
        leaf = Leaf(
            event=self._registry.unframe(record.value),
            signature=record.header(SIGNATURE_HEADER) or b"",
            source_topic=record.topic,
            source_partition=record.partition,
            source_offset=record.offset,
        )
        return leaf_hash(codec.encode(leaf))

    def _find_objection(self, started: RoundStarted) -> tuple[Reason, str] | None:
        """Return why this agent sits out a round; None if it takes part."""
        if not self._terms.knows(started):
            self._read_on()
        return self._terms.find_problem(started)

    def _read_on(self) -> None:
        """Read the log up to now: a round's start comes on a topic of its own."""
        for read in read_log(
            self._settings,
            self._registry,
            self._options.federation_id,
            genesis=self._founding.hash,
        ):
            for leaf in read.leaves:
                self._terms.learn(leaf)

    def _answer(
        self, started: RoundStarted, started_leaf_hash: bytes, traceparent: str
    ) -> None:
        """Decide what to say, write it down, say it; once, whatever happens."""
        # Its cause too: a federation founded anew counts from 1 again.
        stem = f"round-{started.round}-{started.cause.hex()[:16]}"
        draft = self._options.directory / f"{stem}.avro"
        sent = draft.with_suffix(".sent")
        if sent.exists():
            return
        if draft.exists():
            # Killed after deciding what to say: say exactly that.
            kept: Any = codec.decode(draft.read_bytes())
            answer: Said = kept
        else:
            heartbeats.do(f"training in round {started.round}")
            problem = self._find_objection(started)
            answer = (
                self._compute_answer(started, started_leaf_hash, traceparent)
                if problem is None
                else self._decline(started, *problem)
            )
            write_file(draft, codec.encode(answer), mode=PRIVATE)
        self._publisher.publish(
            answer, self._key, self._founding.hash, traceparent=traceparent
        )
        move_file(draft, sent)
        log.info("round %d: %s", answer.round, type(answer).__name__)
        heartbeats.do(WAITING)

    def _compute_answer(
        self, started: RoundStarted, started_leaf_hash: bytes, traceparent: str
    ) -> Said:
        try:
            with telemetry.span(
                "train", "round", kind=telemetry.INTERNAL, parent=traceparent
            ):
                update = self._train_once(started)
            with telemetry.span(
                "submit", "update", kind=telemetry.INTERNAL, parent=traceparent
            ):
                return self._side.answer(update, started, started_leaf_hash)
        except ImportRefusedError as error:
            # The message quotes this machine's allow-list: it stays here.
            log.warning("round %d: %s", started.round, error)
            detail = "this agent may not run the task's classes, or does not have them"
            return self._decline(started, Reason.TASK_NOT_ALLOWED, detail)
        except ArgumentError as error:
            log.warning("round %d: %s", started.round, error)
            detail = "an argument of the task's classes is out of bounds"
            return self._decline(started, Reason.TASK_NOT_ALLOWED, detail)
        except NotFiniteError:
            detail = "training diverged: its loss or a parameter is NaN or infinite"
            return self._decline(started, Reason.NOT_FINITE, detail)
        except OutOfRangeError:
            detail = "a parameter moved further than the federation can encode"
            return self._decline(started, Reason.OUT_OF_RANGE, detail)
        except RefusedStateError as error:
            log.warning("round %d: %s", started.round, error)
            detail = "the model's state, or what training made of it, is refused"
            return self._decline(started, error.reason, detail)
        except BadNumberError as error:
            return self._decline(started, Reason.TRAINING_FAILED, str(error))
        except NeverEndsWellError:
            detail = f"the task ended the agent's process {MAX_BEGUN} times"
            return self._decline(started, Reason.TRAINING_FAILED, detail)
        except (NoBaseModelError, *STORE_ERRORS):
            raise  # an outage is no answer
        except Exception as error:
            if is_exhausted(error):
                raise
            # Whatever a user's module raises; its message may quote data, so it stays
            # here.
            log.exception("round %d: training failed", started.round)
            what = error.name if isinstance(error, EndedItselfError) else None
            detail = what or type(error).__name__
            return self._decline(started, Reason.TRAINING_FAILED, detail)

    def _train_once(self, started: RoundStarted) -> KeptUpdate:
        """Return the update for a round's base model, the same every time."""
        side = self._side
        kept = self._updates.find(started, bound=side.bound)
        if kept is not None:
            log.info("round %d: repeating the update for its base model", started.round)
            return kept
        trained, num_examples, loss_micros = self._train(started)
        encoded = side.encode(trained, started)
        _warn_of_losses(started, encoded)
        update = KeptUpdate(
            encoded.values,
            num_examples,
            loss_micros,
            # It tells how long the update was.
            encoded.loss if started.privacy is None else None,
            trained.num_steps,
        )
        self._updates.keep(started, update, bound=side.bound)
        return update

    def _train(self, started: RoundStarted) -> tuple[Update, int, int | None]:
        """Return the update, the number of examples, and the loss in millionths."""
        from producers.agent.training import train  # noqa: PLC0415  # loads torch

        base = self._fetch_base(started)
        item = f"train-{started.round}-{started.cause.hex()[:16]}"
        if not self._attempts.begin(item):
            raise NeverEndsWellError
        options, task = self._options, started.task
        begun = time.monotonic()
        try:
            with running_users_code():
                result = train(
                    module=load_class(task.module, options.allowed_prefixes),
                    module_config=json.loads(task.module_config),
                    data_module=load_class(task.data_module, options.allowed_prefixes),
                    data_config={**json.loads(task.data_config), **options.data_config},
                    base=base.tensors,
                    local_epochs=task.local_epochs,
                    seed=_compute_seed(options.agent_id, started.round),
                    timeout_s=self._federation.round_duration_ms / 1_000,
                    proximal_weight=read_proximal_weight(self._federation),
                    held_back=base.trained,
                )
        finally:
            self._attempts.end(item)
        num_examples = read_count(result.num_examples, "the number of examples")
        loss_micros = None
        if result.loss is not None:
            loss = read_number(result.loss, "the training loss")
            if not math.isfinite(loss):
                raise NotFiniteError("the training loss is NaN or infinite")
            loss_micros = read_micros(loss, "the training loss")
        log.info(
            "round %d: trained on %d examples in %.1f s, loss %s",
            started.round,
            num_examples,
            time.monotonic() - begun,
            "not said" if result.loss is None else f"{loss:.4f}",
        )
        update = base.compute_update(result.tensors)
        if counts_steps(self._federation):
            what = "the number of optimiser steps"
            steps = read_count(result.num_steps, what)
            steps = min(steps, read_max_steps(self._federation))
            update = replace(update, trained=update.trained / steps, num_steps=steps)
        return update, num_examples, loss_micros

    def _fetch_base(self, started: RoundStarted) -> Model:
        """Return a round's base model.

        Raises:
            NoBaseModelError: the store does not have it now: it may have it later.
            RefusedStateError: it is not what the round says, and never will be.
        """
        limit = compute_max_model_size(self._federation.initial_model)
        if started.base_model.size_bytes > limit:
            raise RefusedStateError(f"a model of more than {limit} bytes")
        try:
            blob = self._store.fetch(started.base_model, max_size_bytes=limit)
        except BlobError as error:
            msg = f"the base model, {error.reason}: {error}"
            raise NoBaseModelError(msg) from error
        base = model_from_blob(blob)
        found = base.num_integers
        if found != started.num_parameters:
            msg = f"updates of {found} integers, not {started.num_parameters}"
            raise RefusedStateError(msg)
        if started.privacy is not None and base.averaged:
            msg = "nothing is averaged apart in a round with agent-level privacy"
            raise RefusedStateError(msg)
        return base

    def _decline(
        self, started: RoundStarted, reason: Reason, detail: str
    ) -> UpdateDeclined:
        log.warning("round %d: declining, %s: %s", started.round, reason, detail)
        return UpdateDeclined(
            federation_id=started.federation_id,
            round=started.round,
            agent_id=self._options.agent_id,
            reason=reason,
            detail=detail[:500],
        )


def _warn_of_losses(started: RoundStarted, encoded: EncodedUpdate) -> None:
    """Say what is not sent as training left it."""
    loss = encoded.loss
    if loss is not None and loss.shrunk_times >= MAX_SHRUNK_TIMES:
        log.warning(
            "round %d: clipping made the update %d times shorter: lower the learning "
            "rate or normalise the inputs, or ask for a larger clip norm",
            started.round,
            loss.shrunk_times,
        )
    if loss is not None and loss.zeroed_percent >= 100 * MAX_ZEROED:
        log.warning(
            "round %d: %d %% of the trained values that changed are sent as zero",
            started.round,
            loss.zeroed_percent,
        )
    if encoded.num_held_back:
        log.warning(
            "round %d: %d values that are averaged apart moved further than they may "
            "in one round, and get there later: normalise the inputs",
            started.round,
            encoded.num_held_back,
        )


def _compute_seed(agent_id: str, round_number: int) -> int:
    """Return the seed of local training, public so that a bug can be reproduced."""
    digest = hashlib.sha256(f"{agent_id}/{round_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
