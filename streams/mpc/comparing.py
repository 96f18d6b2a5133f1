"""Comparing the updates of MPC rounds, in parallel with following the log.

A comparison takes all parties and the dealer at once, and seconds or, if one of them is
away, for ever. So it has its own thread: the log goes on, for other federations too,
and says when a round no longer waits.

Rules:

- Whoever is needed retries while a round is comparing, even after saying what was
  found: the others can find it only with all parties.
- One comparison at a time: a party has one address. Of several, the one tried longest
  ago comes next, by name of federation if equal; so all parties of the same federations
  meet in the same one sooner or later.
- Nothing is remembered. A new process learns from the next leaf what is still awaited.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple, NoReturn

from adapters import alive, telemetry
from adapters.modes.mpc.link import LinkError, LinkPlan, Peer
from adapters.outages import is_of_the_item, is_outage
from protocol.envelope import TRACEPARENT_HEADER
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.party_memory import PartyRefusesError
from protocol.modes.mpc.round import MpcRound
from protocol.modes.problem import RoundError
from schemas.events import FederationConfigured
from streams.mpc.robustness import RobustnessError

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S: Final = 30.0
RETRY_S: Final = 1.0
AGAIN_S: Final = 10.0
"""After a successful comparison: by then all have usually said what they found."""


class _Waiting(NamedTuple):
    secret: MpcRound
    traceparent: str


class Comparer:
    """Compares while a round waits for it, in a thread of its own.

    Args:
        attempt: Compares once, and says what was found; gets the round and its trace.
    """

    def __init__(self, attempt: Callable[[MpcRound, str], None]) -> None:
        self._attempt = attempt
        self._changed = threading.Condition()
        self._waiting: dict[bytes, _Waiting] = {}
        self._not_before: dict[bytes, float] = {}
        self._refused: set[bytes] = set()
        self._thread: threading.Thread | None = None

    def look(self, secret: MpcRound | None, event: Any) -> None:
        """Note a federation's round, as the log has it now.

        Args:
            secret: The MPC round in progress, if any.
            event: The last record; its key names the federation. A round keeps the
                trace of the first.
        """
        key = event.key or b""
        traceparent = telemetry.clean(event.headers.get(TRACEPARENT_HEADER))
        with self._changed:
            before = self._waiting.pop(key, None)
            if secret is None or not secret.is_comparing:
                return
            if before is not None and _cause(before.secret) == _cause(secret):
                traceparent = before.traceparent
            self._waiting[key] = _Waiting(secret, traceparent)
            self._changed.notify()
            if self._thread is None:
                self._thread = alive.start_thread(self._run, "compare")

    def _run(self) -> NoReturn:
        while True:
            key, waiting = self._wait_for_next()
            pause_s = RETRY_S
            try:
                self._attempt(*waiting)
                pause_s = AGAIN_S
            except (LinkError, RobustnessError) as error:
                log.warning("%s: not compared yet: %s", _name(waiting.secret), error)
            except (PartyRefusesError, RoundError) as error:
                # Callers must do without it.
                log.error("%s: not compared: %s", _name(waiting.secret), error)  # noqa: TRY400
                self._refused.add(_cause(waiting.secret))
            except Exception as error:
                if is_outage(error):
                    log.warning(
                        "%s: not compared yet: %s", _name(waiting.secret), error
                    )
                elif is_of_the_item(error):
                    log.exception("%s: not compared", _name(waiting.secret))
                    self._refused.add(_cause(waiting.secret))
                else:
                    raise
            self._not_before[key] = time.monotonic() + pause_s

    def _wait_for_next(self) -> tuple[bytes, _Waiting]:
        with self._changed:
            while True:
                now = time.monotonic()
                due = {
                    key: self._not_before.get(key, 0.0)
                    for key, waiting in self._waiting.items()
                    if _cause(waiting.secret) not in self._refused
                }
                if due:
                    key = min(due, key=lambda key: (max(due[key], now), due[key], key))
                    if due[key] <= now:
                        return key, self._waiting[key]
                    self._changed.wait(due[key] - now)
                else:
                    self._changed.wait()


def make_link_plan(
    config: FederationConfigured,
    genesis: bytes,
    public_key: bytes,
    seed: bytes,
    listen_host: str | None = None,
) -> LinkPlan | None:
    """Return how a federation's parties and dealer are linked, for one of them.

    Args:
        config: The federation, which compares updates.
        genesis: Hash of its log's genesis, 32 bytes.
        public_key: Whose plan it is.
        seed: Of the same key. **Secret.**
        listen_host: Where to wait for others, if not at its own address.

    Returns:
        Parties in order, and the dealer last; None if the key is none of theirs.
    """
    mpc = get_mpc(config)
    assert mpc.comparison is not None, "its parties compare"
    peers = [Peer(*_split(party.address), party.public_key) for party in mpc.parties]
    peers.append(Peer("", 0, mpc.comparison.dealer_key))  # no party connects to it
    keys = [peer.public_key for peer in peers]
    if public_key not in keys:
        return None
    return LinkPlan(
        rank=keys.index(public_key),
        peers=tuple(peers),
        seed=seed,
        genesis=genesis,
        listen_host=listen_host,
        connect_timeout_s=CONNECT_TIMEOUT_S,
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _cause(secret: MpcRound) -> bytes:
    assert secret.comparison is not None, "it is comparing"
    return secret.comparison.cause


def _name(secret: MpcRound) -> str:
    return f"round {secret.started.round} of {secret.config.federation_id}"
