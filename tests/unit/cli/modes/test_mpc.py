"""`moot party init`, and what `moot federation create --party` makes of it."""

import pytest
from typer.testing import CliRunner

import cli.main
from adapters.keys import KeyFileError, load_key
from adapters.modes.mpc.identity import dealer_key_path, load_party, party_directory
from cli.modes.mpc import (
    make_dealer_key,
    make_party,
    parse_parties,
    show_party,
    with_parties,
)
from cli.stack.processes import StackError
from producers.control import InvalidConfigurationError
from protocol.modes.mpc.sealing import SealingSecretKey
from schemas import events as e
from tests.mpc_builder import make_party as make_known_party


class Settings:
    def __init__(self, path):
        self.state_directory = path


def test_a_partys_keys_are_made_where_its_service_looks_for_them(tmp_path):
    settings = Settings(tmp_path)
    party = make_party(settings, "p0")
    identity = load_party(party_directory(settings, "p0"))
    assert party == e.Party(
        name="p0",
        public_key=identity.key.public_key,
        sealing_key=identity.sealing_key.public_key.public_key,
    )
    assert make_party(settings, "p0") == party
    assert make_party(settings, "p1").public_key != party.public_key


def test_a_key_that_others_may_read_is_refused(tmp_path):
    make_party(Settings(tmp_path), "p0")
    (tmp_path / "parties" / "p0" / "sealing.key").chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        make_party(Settings(tmp_path), "p0")


def test_parties_are_read_as_they_are_shown_in_ascending_order():
    hybrid = SealingSecretKey(b"\1" * 32, is_hybrid=True).public_key.public_key
    parties = [
        make_known_party("p1"),
        e.Party(
            name="p0",
            public_key=b"\2" * 32,
            sealing_key=hybrid,
            address="p0.example.org:7500",
        ),
    ]
    texts = [show_party(party) for party in parties]
    assert parse_parties(texts) == (parties[1], parties[0])
    assert parse_parties(()) == ()


GOOD = show_party(make_known_party("p0"))
NAME, KEYS = GOOD.split("=")
SIGNING, SEALING = KEYS.split(":")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "p0",
        KEYS,
        f"={KEYS}",
        f"p0={SIGNING}",
        f"p0={SIGNING}:",
        f"p0=:{SEALING}",
        f"p0={SIGNING[2:]}:{SEALING}",
        f"p0={SIGNING}00:{SEALING}",
        f"p0={SIGNING}:{SEALING[2:]}",
        f"p0={SIGNING}:{SEALING}:{SEALING}",
        f"p0={SIGNING}:{'00' * 32}",  # of small order
        f"p0={SIGNING}:{'ff' * 32}",  # not canonical
        f"p0={SIGNING[:-1]}x:{SEALING}",
        f"p0 {SIGNING} {SEALING}",
    ],
)
def test_a_malformed_party_is_refused(text):
    with pytest.raises(StackError, match="is not NAME=HEX:HEX") as caught:
        parse_parties([GOOD, text])
    assert "moot party init" in caught.value.hint


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "a b:1", "h:1:2"])
def test_a_malformed_address_is_refused(address, tmp_path):
    with pytest.raises(StackError, match="is not HOST:PORT"):
        parse_parties([f"{GOOD}@{address}"])
    with pytest.raises(StackError, match="is not HOST:PORT"):
        make_party(Settings(tmp_path), "p0", address)


@pytest.mark.parametrize(
    ("distance", "threshold"),
    [(1.0, 2**36), (1.41, 141**2 * 2**36 // 100**2), (2.0, 2**38)],
)
def test_a_distance_is_squared_in_encoded_units(distance, threshold):
    parties = (make_known_party("p0"), make_known_party("p1"))
    found = with_parties(parties, 1.0, dealer_key=b"d", max_distance=distance)
    mpc = found["sections"]["mpc"]
    assert mpc.norm_bound == 2**18
    assert mpc.comparison == e.Comparison(far_threshold=threshold, dealer_key=b"d")


def test_without_a_dealer_nothing_is_compared():
    parties = (make_known_party("p0"), make_known_party("p1"))
    assert with_parties(parties, 1.0)["sections"]["mpc"].comparison is None
    assert with_parties((), 1.0) == {}


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (2, {"dealer_key": b"d"}),
        (2, {"max_distance": 1.0}),
        (0, {"dealer_key": b"d", "max_distance": 1.0}),
        (0, {"max_distance": 1.0}),
    ],
)
def test_comparing_takes_parties_a_dealer_and_a_distance(number, options):
    parties = tuple(make_known_party(f"p{i}") for i in range(number))
    with pytest.raises(InvalidConfigurationError, match="dealer"):
        with_parties(parties, 1.0, **options)


def test_a_distance_of_next_to_nothing_is_refused():
    parties = (make_known_party("p0"), make_known_party("p1"))
    with pytest.raises(InvalidConfigurationError, match="threshold"):
        with_parties(parties, 1.0, dealer_key=b"d", max_distance=1e-9)


def test_a_long_text_is_quoted_in_part():
    with pytest.raises(StackError) as caught:
        parse_parties(["x" * 10_000])
    assert len(str(caught.value)) < 300


def test_the_command_prints_what_federation_create_takes(tmp_path, monkeypatch):
    monkeypatch.setenv("MOOT_STATE_DIRECTORY", str(tmp_path))
    for name in (
        "BOOTSTRAP_SERVERS",
        "SCHEMA_REGISTRY_URL",
        "MINIO_ENDPOINT",
        "MINIO_ACCESS_KEY",
        "MINIO_SECRET_KEY",
    ):
        monkeypatch.setenv(f"MOOT_{name}", "nowhere")
    runner = CliRunner()
    result = runner.invoke(cli.main.app, ["party", "init", "p0"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("p0=")]
    (party,) = parse_parties(lines)
    assert party == make_party(Settings(tmp_path), "p0")
    again = runner.invoke(cli.main.app, ["party", "init", "p0"])
    assert again.output == result.output
    placed = runner.invoke(
        cli.main.app, ["party", "init", "p0", "--address", "[::1]:7500"]
    )
    assert placed.output.strip() == f"{result.output.strip()}@[::1]:7500"


def test_a_dealers_key_is_made_where_its_service_looks_for_it(tmp_path):
    settings = Settings(tmp_path)
    key = make_dealer_key(settings, "quarry")
    assert make_dealer_key(settings, "quarry") == key
    assert load_key(dealer_key_path(settings, "quarry")).public_key == key
    with pytest.raises(StackError, match="a dealer"):
        make_dealer_key(settings, "../quarry")
