"""An agent's receipts: proof, in its own hands, that what it said is on the ledger.

For each of its updates the agent keeps a file with the leaf, its inclusion proof and a
checkpoint that a quorum of ledger nodes cosigned. It verifies offline, whatever becomes
of the federation's Kafka, its nodes and its operator.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from adapters.durable import write_file
from adapters.kafka_log import ReadBlock, follow_log
from adapters.log_client import LogUnavailableError, NotFinalYetError, fetch_receipt
from adapters.outages import passing_over
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from ledger.checkpoint import compute_origin
from ledger.proof_file import FILE_EXTENSION
from protocol.admission import AdmissionState, make_policy
from protocol.log import OpenedLeaf, fold_admission
from protocol.modes.mode import Answer
from schemas import codec
from schemas.events import AgentRevoked, UpdateDeclined

log = logging.getLogger(__name__)

Said: TypeAlias = Answer | UpdateDeclined
"""What an agent says in a round and wants a receipt for."""
ASK_EVERY_S: Final = 1.0
START_AGAIN_AFTER_S: Final = 5.0


class ReceiptKeeper:
    """Fetches and keeps the receipts of one agent.

    Args:
        settings: Where Kafka is.
        federation_id: The federation.
        operator_key: Public key of its expected founder, 32 bytes.
        genesis: Hash of its genesis, 32 bytes.
        public_key: The agent's key, which signed the leaves.
        directory: Where receipts are kept, one file per leaf.
        on_answer: Called with every leaf signed by the agent's key, and with the one
            that revokes it.
    """

    def __init__(
        self,
        settings: Settings,
        federation_id: str,
        *,
        operator_key: bytes,
        genesis: bytes,
        public_key: bytes,
        directory: Path,
        on_answer: Callable[[OpenedLeaf], None] = lambda _: None,
    ) -> None:
        self._on_answer = on_answer
        self._settings = settings
        self._federation_id = federation_id
        self._operator_key = operator_key
        self._genesis = genesis
        self._public_key = public_key
        self._directory = directory
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._admission = AdmissionState()
        self._waiting: dict[Path, tuple[int, bytes]] = {}
        self._asked_at_s = 0.0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Keep receipts until told to stop; failures here never stop the agent."""
        self._directory.mkdir(parents=True, exist_ok=True)
        while not should_stop():
            try:
                self._follow(should_stop)
            except Exception as error:  # noqa: BLE001  # a thread that ends, ends unseen
                log.warning("receipts wait: %r", error)
                time.sleep(START_AGAIN_AFTER_S)

    def _follow(self, should_stop: Callable[[], bool]) -> None:
        self._admission = AdmissionState()
        for read in follow_log(
            self._settings,
            self._registry,
            self._federation_id,
            operator_key=self._operator_key,
            genesis=self._genesis,
        ):
            if should_stop():
                return
            if isinstance(read, ReadBlock):
                self._learn(read)
            else:
                self._fetch()

    def _learn(self, read: ReadBlock) -> None:
        self._admission = fold_admission(self._admission, read.leaves)
        for item in read.leaves:
            event = item.sequenced.event
            if not isinstance(event, Said | AgentRevoked):
                continue
            agent = self._admission.agents.get(event.agent_id)
            if agent is None or agent.public_key != self._public_key:
                continue
            with passing_over(f"leaf {item.sequenced.leaf_index}"):
                self._on_answer(item)
            if isinstance(event, AgentRevoked):
                continue
            leaf_index = item.sequenced.leaf_index
            path = (
                self._directory
                / f"round-{event.round}-leaf-{leaf_index}{FILE_EXTENSION}"
            )
            if not path.exists():
                self._waiting[path] = leaf_index, codec.encode(item.leaf)

    def _fetch(self) -> None:
        """Fetch what is missing, the oldest first, as long as answers come."""
        now_s = time.monotonic()
        if not self._admission.node_sets or now_s - self._asked_at_s < ASK_EVERY_S:
            return
        self._asked_at_s = now_s
        nodes = self._admission.node_sets[-1].nodes
        urls = [node.url for node in nodes if node.url]
        policy = make_policy(self._admission)
        origin = compute_origin(self._federation_id, self._genesis)
        for path, (leaf_index, leaf) in list(self._waiting.items()):
            try:
                receipt = fetch_receipt(urls, policy, origin, leaf_index, leaf)
            except NotFinalYetError:
                return
            except LogUnavailableError as error:
                log.warning("no receipt for leaf %d yet: %s", leaf_index, error)
                return
            write_file(path, receipt)
            del self._waiting[path]
            log.info("receipt for leaf %d kept", leaf_index)
