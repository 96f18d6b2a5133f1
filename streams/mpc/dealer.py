"""The dealer: gives the parties the randomness that they compare updates with.

Random numbers that fit together, from which it learns nothing, whatever the parties do
with them. It must not collude with a party: see `streams.mpc.crypten_link`. It follows
the log only to know when it is needed, and says nothing on it.
"""

from __future__ import annotations

from typing import Any

from adapters import telemetry
from adapters.keys import load_key
from adapters.modes.mpc.identity import dealer_key_path
from adapters.settings import load_settings
from protocol.modes.mpc.round import MpcRound, see
from protocol.round_view import WatchedRounds, watch
from streams.app import Service, make_service_with_key
from streams.following import Follower, follow_ledger
from streams.mpc.comparing import Comparer, make_link_plan
from streams.mpc.robustness import run_dealer


def make_dealer(name: str) -> Service:
    """Return a dealer's Faust app.

    Raises:
        KeyFileError: it has no key.
    """
    settings = load_settings()
    key = load_key(dealer_key_path(settings, name))
    service = make_service_with_key(f"dealer-{name}", settings, key)
    follower: Follower[WatchedRounds, None] = Follower(
        service,
        WatchedRounds,
        WatchedRounds(),
        lambda state, leaf: (watch(state, leaf.sequenced), []),
    )

    def deal(secret: MpcRound, traceparent: str) -> None:
        plan = make_link_plan(secret.config, secret.genesis, key.public_key, key.seed)
        # The holder of a party's key may not deal as well: it would see everything.
        if plan is None or plan.rank < len(secret.mpc.parties):
            return
        with telemetry.span(
            "deal", "round", kind=telemetry.INTERNAL, parent=traceparent
        ):
            run_dealer(plan)

    comparer = Comparer(deal)

    def look(event: Any) -> None:
        comparer.look(see(follower.get_state(event.key).view), event)

    follow_ledger(service, follower, lambda _: [], look)
    return service
