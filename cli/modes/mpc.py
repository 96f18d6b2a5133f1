"""What aggregation MPC adds to the command line: parties and dealers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from adapters.wording import counted
from cli.environment import find_settings
from cli.extras import demand
from cli.options import parse_key
from cli.show import say
from cli.stack.processes import LOOPBACK, StackError, demand_name, find_free_ports

if TYPE_CHECKING:
    from adapters.settings import Settings
    from cli.stack.services import ServiceOptions, Supervisor
    from schemas.events import LedgerEvent, Party

COMMANDS: Final = {
    "party": typer.Typer(help="Set up parties.", no_args_is_help=True),
    "dealer": typer.Typer(help="Set up dealers.", no_args_is_help=True),
}


@COMMANDS["party"].command("init")
def init_party(
    name: Annotated[str, typer.Argument(help="Its name among the parties.")],
    address: Annotated[
        str,
        typer.Option(
            help="Where other parties reach it to compare updates, HOST:PORT."
        ),
    ] = "",
) -> None:
    """Make a party's keys and memory; print the party for `federation create`."""
    demand_name(name, "a party")
    _demand_address(address)
    say(show_party(make_party(find_settings(), name, address)))


@COMMANDS["dealer"].command("init")
def init_dealer(
    name: Annotated[str, typer.Argument(help="Its name on this machine.")],
) -> None:
    """Make a dealer's key; print its public key for `federation create`."""
    demand_name(name, "a dealer")
    say(make_dealer_key(find_settings(), name).hex())


def make_party(settings: Settings, name: str, address: str = "") -> Party:
    """Return a party of this machine, making its keys and memory if needed.

    Args:
        settings: Where its directory is.
        name: Its name.
        address: Where the other parties and a dealer reach it, host:port; empty if it
            compares no updates.

    Raises:
        StackError: the name or the address is invalid.
        KeyFileError: a key file cannot be used.
    """
    from adapters.modes.mpc.identity import create_party, party_directory
    from schemas.events import Party

    demand_name(name, "a party")
    _demand_address(address)
    identity = create_party(party_directory(settings, name))
    return Party(
        name=name,
        public_key=identity.key.public_key,
        sealing_key=identity.sealing_key.public_key.public_key,
        address=address,
    )


def make_dealer_key(settings: Settings, name: str) -> bytes:
    """Return the public key of a dealer of this machine, made if needed; 32 bytes.

    Raises:
        StackError: the name is invalid.
        KeyFileError: its key file cannot be used.
    """
    from adapters.keys import load_or_create_key
    from adapters.modes.mpc.identity import dealer_key_path

    demand_name(name, "a dealer")
    return load_or_create_key(dealer_key_path(settings, name)).public_key


def _demand_address(address: str) -> None:
    from protocol.fields import ADDRESS

    if address and ADDRESS.fullmatch(address) is None:
        msg = f"{address!r:.200} is not HOST:PORT"
        raise StackError(msg, "For example: --address party.example.org:7500.")


def show_party(party: Party) -> str:
    """Return a party as `parse_parties` reads it."""
    keys = f"{party.name}={party.public_key.hex()}:{party.sealing_key.hex()}"
    return f"{keys}@{party.address}" if party.address else keys


def parse_parties(texts: Iterable[str]) -> tuple[Party, ...]:
    """Return parties, each ``NAME=HEX:HEX[@HOST:PORT]``, in ascending order of name.

    Raises:
        StackError: one is malformed.
    """
    return tuple(sorted(map(_parse_party, texts), key=lambda party: party.name))


def _parse_party(text: str) -> Party:
    from protocol.modes.mpc.sealing import InvalidSealingKeyError, SealingKey
    from schemas.events import Party

    name, _, rest = text.partition("=")
    keys, _, address = rest.partition("@")
    _demand_address(address)
    signing, _, sealing = keys.partition(":")
    try:
        public_key, sealing_key = bytes.fromhex(signing), bytes.fromhex(sealing)
        SealingKey(sealing_key)
    except (ValueError, InvalidSealingKeyError):
        public_key = sealing_key = b""
    if not name or len(public_key) != 32:  # noqa: PLR2004  # Ed25519
        msg = f"{text!r:.200} is not NAME=HEX:HEX, or NAME=HEX:HEX@HOST:PORT"
        raise StackError(msg, "`moot party init NAME` prints one.")
    return Party(
        name=name, public_key=public_key, sealing_key=sealing_key, address=address
    )


def read_parameters(
    *,
    party: Sequence[str] | None,
    clip_norm: float,
    dealer: str | None,
    max_distance: float,
) -> dict[str, Any]:
    """Return the parameters that the options of `federation create` ask for."""
    return with_parties(
        parse_parties(party or ()),
        clip_norm,
        dealer_key=None if dealer is None else parse_key(dealer),
        max_distance=max_distance,
    )


def name_changes(norm_bound: int | None) -> dict[str, Any]:
    """Return what the options of `federation change` change, by full name."""
    return {"mpc.norm_bound": norm_bound}


def with_parties(
    parties: tuple[Party, ...],
    clip_norm: float,
    *,
    dealer_key: bytes | None = None,
    max_distance: float = 0.0,
) -> dict[str, Any]:
    """Return the parameters of aggregation MPC; none without parties.

    Args:
        parties: The parties that add up shares.
        clip_norm: The largest L2 norm of an update, above 0: longer ones are shrunk.
            Encoded as finely as integers below 2^19 allow.
        dealer_key: Public key of the dealer, whose randomness they compare updates
            with, 32 bytes; None if they compare none.
        max_distance: How many clip norms two updates may be apart before they are far
            from each other, 0 to 2; 0 if updates are not compared.

    Raises:
        InvalidConfigurationError: the distance is out of range, or only one of dealer
            and distance is given.
    """
    from producers.control import InvalidConfigurationError
    from protocol.encoding import MAX_FRACTIONAL_BITS
    from protocol.modes.mpc.configuration import MAX_NORM_BOUND
    from protocol.modes.mpc.sketches import compute_threshold
    from schemas.events import Comparison, Mpc

    if not parties:
        if dealer_key is not None or max_distance:
            msg = "only parties compare updates: name them, or leave the dealer out"
            raise InvalidConfigurationError(msg)
        return {}
    bits = MAX_FRACTIONAL_BITS
    while bits and clip_norm * 2**bits > MAX_NORM_BOUND:
        bits -= 1
    norm_bound = min(MAX_NORM_BOUND, max(1, int(clip_norm * 2**bits)))
    if bool(max_distance) != (dealer_key is not None):
        msg = "comparing updates takes both a dealer and a distance above 0"
        raise InvalidConfigurationError(msg)
    comparison = None
    if dealer_key is not None:
        numerator, denominator = Fraction(str(max_distance)).as_integer_ratio()
        try:
            far_threshold = compute_threshold(
                norm_bound, numerator=numerator, denominator=denominator
            )
        except ValueError as error:
            raise InvalidConfigurationError(str(error)) from None
        comparison = Comparison(far_threshold=far_threshold, dealer_key=dealer_key)
    mpc = Mpc(parties=parties, norm_bound=norm_bound, comparison=comparison)
    return {"fractional_bits": bits, "sections": {"mpc": mpc}}


def run_party(options: ServiceOptions) -> None:
    """Run a party in this process until it is told to stop.

    Raises:
        StackError: no name was given, or an extra is missing.
    """
    from adapters.settings import load_settings

    name = options.demand_name("party", "`moot party init` makes its keys")
    demand("services")  # and "party" only to compare updates
    from streams.app import serve
    from streams.mpc.party import make_party

    fewest = max(2, options.min_cohort or load_settings().min_cohort)
    serve(make_party(name, min_cohort=fewest, listen_host=options.host))


def run_dealer(options: ServiceOptions) -> None:
    """Run a dealer in this process until it is told to stop.

    Raises:
        StackError: no name was given, or an extra is missing.
    """
    name = options.demand_name("dealer", "`moot dealer init` makes its key")
    demand("party")
    from streams.app import serve
    from streams.mpc.dealer import make_dealer

    serve(make_dealer(name))


SERVICES: Final = {"party": run_party, "dealer": run_dealer}
IMPORTS: Final = ("streams.mpc.party",)


def start_parties(
    supervisor: Supervisor, settings: Settings, names: Sequence[str]
) -> tuple[Party, ...]:
    """Start parties, making their keys; returns them by name."""
    parties = []
    for name, port in zip(names, find_free_ports(len(names)), strict=True):
        parties.append(make_party(settings, name, f"{LOOPBACK}:{port}"))
        supervisor.start(f"party-{name}", "serve", "party", "--name", name)
    return tuple(parties)


def start_dealer(supervisor: Supervisor, settings: Settings, name: str) -> bytes:
    """Start a dealer, making its key; returns its public key."""
    key = make_dealer_key(settings, name)
    supervisor.start(f"dealer-{name}", "serve", "dealer", "--name", name)
    return key


def start_demo(
    supervisor: Supervisor, settings: Settings, names: Sequence[str], clip_norm: float
) -> list[str]:
    """Start parties; returns the options of `federation create` that name them."""
    parties = start_parties(supervisor, settings, names)
    named = [f"--party={show_party(party)}" for party in parties]
    return [*named, f"--clip-norm={clip_norm}"]


def make_trial(clip_norm: float) -> dict[str, Any]:
    """Return parameters to try out what an agent's answer takes; nobody has the keys.

    Args:
        clip_norm: The largest norm of an update, above 0.
    """
    import secrets

    from protocol.modes.mpc.sealing import SealingSecretKey
    from schemas.events import Party

    parties = tuple(
        Party(
            name=name,
            public_key=bytes(32),
            sealing_key=SealingSecretKey(secrets.token_bytes(32)).public_key.public_key,
            address="",
        )
        for name in ("one", "two", "three")
    )
    return with_parties(parties, clip_norm)


def describe(event: LedgerEvent) -> str:
    """Return an event of this mode as one line of text; empty for any other."""
    from cli.describe import describe_training
    from schemas import events as e

    match event:
        case e.UpdateCommitted():
            said = f"{event.agent_id} commits to an update: {describe_training(event)}"
        case e.CommitmentsClosed():
            said = f"closed with {counted(event.num_commitments, 'commitment')}"
        case e.SharesLinked():
            said = f"party {event.party} links its shares"
        case e.ComparisonStarted():
            said = f"parties compare {counted(len(event.agent_ids), 'update')}"
        case e.UpdatesCompared():
            said = f"party {event.party} says which updates are far apart"
        case e.PartialAggregateSubmitted():
            said = f"party {event.party} gives its part of the sum"
        case e.PartyDeclined():
            said = f"party {event.party} declines: {event.reason}"
        case e.PartialRejected():
            said = f"rejected party {event.party}: {event.reason}, {event.detail}"
        case _:
            return ""
    return f"round {event.round} {said}"
