"""Which updates of a round are far apart, found by the parties together.

The parties hold shares of all updates, and so of their sketches
(`protocol.modes.mpc.sketches`). On these they compute all squared distances and compare
them with a public threshold, using CrypTen. Only the N (N - 1) / 2 bits are opened, and
nobody learns more, on these terms:

- **Who is trusted.** Parties follow the protocol but try to learn what they can
  (semi-honest). Then any P-1 of them together learn only the bits, and the dealer not
  even those. The dealer must not collude with a party: see
  `streams.mpc.crypten_link.Dealer`. A lying party is not detected. It can make bits
  wrong, and by shifting what is compared, learn other bits instead: as many, in each
  run. So the caller must limit how often a round is computed: it is asked for
  permission when all are there and agree, before anything is revealed.
- **What all agree on.** Before: the context (which round, which agents in which order),
  the number of agents and the threshold. After: the bits. A party that differs is
  named.
- **What is refused.** CrypTen's default provider, TFP, has party 0 make the triples: it
  could open everything that is multiplied. Its protocol "replicated" passes on shares
  of products without masking them afresh, from which a neighbour can compute what it
  must not know. Neither is ever used; see `check_configuration`.
- **Where it runs.** In a process of its own, `run_find_far` and `run_dealer`: CrypTen
  keeps its state in globals, and torch is large. This module loads neither.
- **If a peer dies** or is silent, the others get a `LinkError` that names it. Either
  everything was opened or nothing; in both cases they begin again on a new link, with
  new masks.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from adapters.log_lines import guard_logs
from adapters.modes.mpc.link import LinkError, LinkPlan, PartyLink
from protocol.modes.mpc.configuration import MAX_COMPARED
from protocol.modes.mpc.far_pairs import compute_num_pairs, encode_far, make_symmetric
from protocol.modes.mpc.sketches import NUM_BUCKETS, check_threshold

log = logging.getLogger(__name__)

CONTEXT_DOMAIN: Final = b"folkmoot/robustness/v1\n"
MIN_PEERS: Final = 3
"""Two parties and a dealer."""
PROVIDER: Final = "TTP"
PROTOCOL: Final = "beaver"

T = TypeVar("T")


class RobustnessFailure(StrEnum):
    """Why parties don't learn which updates are far apart."""

    OTHER_CONTEXT = "OTHER_CONTEXT"
    """A party computes about another round, other agents or another threshold."""
    NOT_BITS = "NOT_BITS"
    """What was opened is no bits: a party's arithmetic went wrong."""
    OTHER_BITS = "OTHER_BITS"
    """A party opened other bits than we did."""
    NOT_DEALT = "NOT_DEALT"
    """A dealer was asked for something that this computation never needs."""
    NOT_INSTALLED = "NOT_INSTALLED"
    """CrypTen is missing on this machine."""
    PROCESS_DIED = "PROCESS_DIED"
    """Our own computing process was killed."""


class RobustnessError(Exception):
    """Nothing is known about this round's updates; begin again on a new link.

    Attributes:
        reason: What went wrong.
        detail: What went wrong, as text.
    """

    def __init__(self, reason: RobustnessFailure, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class UnsafeSetting(StrEnum):
    """Why a configuration of CrypTen is refused."""

    PARTY_KNOWS_TRIPLES = "PARTY_KNOWS_TRIPLES"
    SHARES_NOT_MASKED = "SHARES_NOT_MASKED"
    NOT_EXAMINED = "NOT_EXAMINED"


class UnsafeConfigurationError(Exception):
    """CrypTen's configuration leaks, or is one that nobody here has examined; a bug."""

    def __init__(self, reason: UnsafeSetting, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def check_configuration(provider: str, protocol: str) -> None:
    """Refuse every way to compute but one.

    Args:
        provider: CrypTen's ``mpc.provider``: where triples come from.
        protocol: CrypTen's ``mpc.protocol``: how shares are multiplied.

    Raises:
        UnsafeConfigurationError: it is not "TTP" and "beaver".
    """
    if provider == "TFP":
        detail = (
            "provider TFP: party 0 makes the triples, so it can undo every mask and "
            f"open all updates that are compared; set {PROVIDER}"
        )
        raise UnsafeConfigurationError(UnsafeSetting.PARTY_KNOWS_TRIPLES, detail)
    if protocol == "replicated":
        detail = (
            "protocol replicated: shares of products go to a neighbour without a fresh "
            f"mask, so it can compute another party's share; set {PROTOCOL}"
        )
        raise UnsafeConfigurationError(UnsafeSetting.SHARES_NOT_MASKED, detail)
    if (provider, protocol) != (PROVIDER, PROTOCOL):
        detail = f"{provider}, {protocol}: only {PROVIDER}, {PROTOCOL} was examined"
        raise UnsafeConfigurationError(UnsafeSetting.NOT_EXAMINED, detail)


def permit_all() -> None:
    """Permit every comparison: for callers whose parties remember nothing."""


def find_far(
    link: PartyLink,
    sketches: NDArray[np.uint64],
    threshold: int,
    *,
    context: bytes,
    permit: Callable[[], None] = permit_all,
) -> NDArray[np.bool_]:
    """Find out with the other parties which agents' updates are far apart.

    In this process, which loads torch; see `run_find_far`.

    Args:
        link: To all parties in order, then to the dealer.
        sketches: Sketches of our shares, of agents in ascending order of agent_id;
            shape (N, 512), N from 2 to `MAX_COMPARED`. **Secret.**
        threshold: Squared distance above which a pair is far, in squared encoded units;
            1 to 2^62.
        context: What this is about: any bytes that determine round and agents.
        permit: Called once, before shares are used; raises to stop.

    Returns:
        shape (N, N) bool, symmetric, nobody far from themselves. Public.

    Raises:
        LinkError: a peer is gone, silent, or computes something else.
        RobustnessError: a party has another context, or opened other bits.
        UnsafeConfigurationError: CrypTen has a leaky configuration.
        ValueError: an argument is out of range; a bug.
    """
    _check_arguments(link, sketches, threshold)
    num_agents = len(sketches)
    numbers = (num_agents, threshold)
    digest = hashlib.sha256(
        CONTEXT_DOMAIN + b"".join(n.to_bytes(8, "big") for n in numbers) + context
    ).digest()
    _demand_same(link, digest, RobustnessFailure.OTHER_CONTEXT)
    permit()
    from streams.mpc import crypten_link  # noqa: PLC0415  # loads torch

    bits = crypten_link.compute_far_bits(link, sketches, threshold)
    if (
        bits.shape != (compute_num_pairs(num_agents),)
        or not np.isin(bits, (0, 1)).all()
    ):
        detail = "the opened numbers are no bits; a party's arithmetic went wrong"
        raise RobustnessError(RobustnessFailure.NOT_BITS, detail)
    far = make_symmetric(bits.astype(np.bool_), num_agents=num_agents)
    _demand_same(
        link,
        hashlib.sha256(encode_far(far)).digest(),
        RobustnessFailure.OTHER_BITS,
    )
    return far


def serve_dealer(link: PartyLink) -> None:
    """Deal to the parties what one `find_far` takes.

    In this process, which loads torch; see `run_dealer`.

    Args:
        link: To all parties in order; we are the last.

    Raises:
        LinkError: a party is gone or silent.
        RobustnessError: a party asks for what is not dealt.
    """
    from streams.mpc import crypten_link  # noqa: PLC0415  # loads torch

    crypten_link.Dealer(link).serve()


def run_find_far(
    plan: LinkPlan,
    sketches: NDArray[np.uint64],
    threshold: int,
    *,
    context: bytes,
    permit: Callable[[], None] = permit_all,
) -> NDArray[np.bool_]:
    """Make a link and call `find_far`, in its own process; `permit` runs in this one.

    Raises:
        RobustnessError: also if that process was killed.
    """
    arguments = plan, sketches, threshold, context
    return _run_in_process(_find_far, *arguments, permit=permit)


def run_dealer(plan: LinkPlan) -> None:
    """Make a link and call `serve_dealer`, in a process of its own.

    Raises:
        RobustnessError: also if that process was killed.
    """
    _run_in_process(_serve_dealer, plan)


def _find_far(
    ask: Callable[[], None],
    plan: LinkPlan,
    sketches: NDArray[np.uint64],
    threshold: int,
    context: bytes,
) -> NDArray[np.bool_]:
    import streams.mpc.crypten_link  # noqa: F401, PLC0415  # slow: not while others wait

    with PartyLink(plan) as link:
        return find_far(link, sketches, threshold, context=context, permit=ask)


def _serve_dealer(_ask: Callable[[], None], plan: LinkPlan) -> None:
    import streams.mpc.crypten_link  # noqa: F401, PLC0415  # slow: not while others wait

    with PartyLink(plan) as link:
        serve_dealer(link)


def _check_arguments(
    link: PartyLink, sketches: NDArray[np.uint64], threshold: int
) -> None:
    num_agents = len(sketches)
    if sketches.dtype != np.uint64 or sketches.shape != (num_agents, NUM_BUCKETS):
        raise ValueError(f"sketches of shape {sketches.shape}, {sketches.dtype}")
    if not 2 <= num_agents <= MAX_COMPARED:  # noqa: PLR2004  # a pair
        msg = f"{num_agents} agents; from 2 to {MAX_COMPARED} can be compared"
        raise ValueError(msg)
    if link.num_peers < MIN_PEERS or link.rank == link.num_peers - 1:
        msg = "a link has two or more parties and, last, a dealer without shares"
        raise ValueError(msg)
    check_threshold(threshold)


def _demand_same(link: PartyLink, digest: bytes, failure: RobustnessFailure) -> None:
    others = [rank for rank in range(link.num_peers - 1) if rank != link.rank]
    answers = link.exchange(np.frombuffer(digest, dtype=np.uint8), others)
    for party, answer in zip(others, answers, strict=True):
        if answer.tobytes() != digest:
            raise RobustnessError(failure, f"party {party} differs from us")


class _Ask(NamedTuple):
    """A computing process asks for permission."""


def _run_in_process(
    function: Callable[..., T], *args: Any, permit: Callable[[], None] = permit_all
) -> T:
    # Not forked: neither threads nor torch survive a fork.
    start = multiprocessing.get_context("spawn")
    ours, theirs = start.Pipe()
    process = start.Process(target=_answer, args=(theirs, function, args), daemon=True)
    process.start()
    theirs.close()
    try:
        while isinstance(answer := ours.recv(), _Ask):
            permit()
            ours.send(answer)
    except EOFError:
        process.join()
        detail = f"the computing process ended with exit code {process.exitcode}"
        raise RobustnessError(RobustnessFailure.PROCESS_DIED, detail) from None
    finally:
        ours.close()
        process.kill()  # in case it was denied permission; else it has ended
        process.join()
    if isinstance(answer, Exception):
        raise answer
    result: T = answer
    return result


def _answer(
    parent: Connection, function: Callable[..., object], args: tuple[object, ...]
) -> None:
    def ask() -> None:
        parent.send(_Ask())
        parent.recv()

    guard_logs()
    # Before torch is loaded: one thread each, since test parties share a machine.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        answer = function(ask, *args)
    except (LinkError, RobustnessError, UnsafeConfigurationError) as error:
        parent.send(error)
    except ModuleNotFoundError as error:
        detail = f"{error.name} is not installed: folkmoot[party] brings it"
        parent.send(RobustnessError(RobustnessFailure.NOT_INSTALLED, detail))
    except Exception:
        # Other parties' input may have caused it, so it ends this process and no other.
        # It may contain their words, and multiprocessing would print them unescaped.
        log.exception("the computing process cannot go on")
        sys.exit(1)
    else:
        parent.send(answer)
