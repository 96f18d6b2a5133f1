"""What is bound to what in an MPC round, and how its blobs are read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapters.round_blobs import make_fetch
from protocol.modes.mpc.checker import (
    MAX_DETAIL_LENGTH,
    MpcShape,
    RoundVerifier,
    compute_context,
    encode_links,
    encode_partial,
    encode_proof,
    make_place,
    open_shares,
    parse_links,
    parse_partial,
    parse_proof,
    parse_statement,
    read_proof,
    read_seed,
)
from protocol.modes.mpc.commitments import SCALAR_ORDER, encode_scalar
from protocol.modes.mpc.configuration import list_parties
from protocol.modes.mpc.norm_proof import (
    NormProof,
    compute_challenges,
    expand_projection,
)
from protocol.modes.mpc.norm_prover import ProverState, commit_update, prove_norm
from protocol.modes.mpc.projections import NUM_PROJECTIONS
from protocol.modes.mpc.round import Committed, MpcRound
from protocol.modes.mpc.sealing import SealingSecretKey, seal_share
from protocol.modes.mpc.share_link import (
    NUM_SUM_PROJECTIONS,
    Link,
    PartySum,
    SumMasks,
    compute_link,
    compute_party_sum,
    expand_sum_projection,
)
from protocol.modes.mpc.shares import parse_share, split_update
from protocol.modes.problem import BadBlob, RoundError
from protocol.persistent import PersistentMap
from protocol.rounds import DECIDER
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict
from tests.mpc_rounds import change_mpc_round, make_mpc_round
from tests.simulation.federation import (
    GENESIS,
    MPC_CONFIG,
    PARTIES,
    admitted,
    committed,
    edit,
    make_blob,
    request,
    start,
)

SEED = b"\3" * 32
STARTED = b"\4" * 32
"""Hash of the leaf that opened the round."""
NORM_BOUND = 2**17
SIZES = (1, 300, 5_000)
Refused = pytest.raises(RoundError)


def configured(num_values: int = 300) -> e.FederationConfigured:
    return edit(MPC_CONFIG, num_parameters=num_values, norm_bound=NORM_BOUND)


def entropy_of(number: int) -> Callable[[int], bytes]:
    return np.random.default_rng(number).bytes


def make_state(num_values: int = 300, *, seed: int = 1) -> ProverState:
    values = np.random.default_rng(seed).integers(-100, 101, num_values)
    return commit_update(values, squared_bound=NORM_BOUND**2, entropy=entropy_of(seed))


def reason_of(call: Callable[[], Any]) -> Reason:
    with Refused as caught:
        call()
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value.reason


# Sizes


@pytest.mark.parametrize("num_values", SIZES)
def test_what_is_honest_is_not_too_large(num_values: int) -> None:
    shape = MpcShape.of(configured(num_values))
    state = make_state(num_values)
    assert (shape.num_values, shape.row_length, shape.num_rows) == (
        num_values,
        state.statement.row_length,
        state.statement.num_rows,
    )
    assert shape.commitments_size == len(state.statement.to_blob())
    proof = encode_proof(prove_norm(state))
    # And what is much too large is refused before it is fetched.
    assert len(proof) <= shape.max_proof_size < len(proof) + 4_096
    dealt = split_update(state, 3, entropy_of(2))
    for share, is_hybrid in itertools.product(dealt, (False, True)):
        key = SealingSecretKey(bytes(32), is_hybrid=is_hybrid)
        place = make_place(GENESIS, committed("ana"), "p0", share.commitment)
        sealed = seal_share(share.plaintext, key.public_key, place)
        assert len(sealed) <= shape.max_sealed_size
    shares = [
        parse_share(d.plaintext, shape=shape.shares, commitment=None) for d in dealt
    ]
    masks = SumMasks(bytes(32), SEED).expand(SEED)
    party_sum = compute_party_sum(
        [(shares[0], masks, 2**22), (shares[2], masks, 1)], shape=shape.shares
    )
    partial = encode_partial(party_sum)
    assert len(partial) <= shape.max_partial_size < len(partial) + 512


def test_links_for_the_largest_cohort_are_not_too_large() -> None:
    words = np.full(NUM_PROJECTIONS, 2**64 - 1, dtype=np.uint64)
    link = Link(words, SCALAR_ORDER - 1, words[:NUM_SUM_PROJECTIONS])
    excuse = RoundError(Reason.BAD_SHARE, "\N{PILE OF POO}" * 10_000)
    names = [f"{number:064}" for number in range(256)]
    limit = MpcShape.of(configured()).max_links_size
    for entry in (link, excuse):
        assert len(encode_links(dict.fromkeys(names, entry))) <= limit


# What is bound to what


UPDATE = committed("ana", num_examples=7)
FIRST, SECOND, THIRD = UPDATE.shares


def context_of(
    update: e.UpdateCommitted = UPDATE, config: e.FederationConfigured | None = None
) -> bytes:
    return compute_context(GENESIS, config or configured(), update, STARTED)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation_id": "banks"},
        {"round": 2},
        {"agent_id": "bea"},
        {"base_model_sha256": bytes(32)},
        {"commitments": make_blob("others")},
        {"num_examples": 8},
        {
            "shares": (
                replace(UPDATE.shares[0], sealed=make_blob("x")),
                *UPDATE.shares[1:],
            )
        },
        {
            "shares": (
                *UPDATE.shares[:2],
                replace(UPDATE.shares[2], commitment=b"c" * 48),
            )
        },
        {"shares": UPDATE.shares[::-1]},
        # What one field loses the next one gains.
        {"federation_id": "clinic", "agent_id": "sana"},
    ],
    ids=str,
)
def test_a_proof_fits_no_other_update(changes: dict[str, Any]) -> None:
    assert context_of(replace(UPDATE, **changes)) != context_of()


@pytest.mark.parametrize("name", ["name", "public_key", "sealing_key"])
def test_a_proof_fits_no_other_parties(name: str) -> None:
    config = configured()
    value = "p9" if name == "name" else b"k" * 32
    first, second, third = list_parties(config)
    parties = (first, second, replace(third, **{name: value}))
    assert context_of(config=edit(config, parties=parties)) != context_of()
    bits = replace(config, fractional_bits=config.fractional_bits + 1)
    assert context_of(config=bits) != context_of()


def test_a_proof_fits_no_other_round_of_the_same_number() -> None:
    other = compute_context(GENESIS, configured(), UPDATE, b"\5" * 32)
    assert other != context_of()


def test_the_loss_is_only_said() -> None:
    assert context_of(replace(UPDATE, loss_micros=1)) == context_of()


def test_the_proof_is_no_part_of_what_it_is_about() -> None:
    assert context_of(replace(UPDATE, proof=make_blob("another"))) == context_of()


def test_a_share_counts_in_one_place() -> None:
    place = make_place(GENESIS, UPDATE, "p0", b"c" * 48)
    others = [
        make_place(GENESIS, UPDATE, "p1", b"c" * 48),
        make_place(GENESIS, UPDATE, "p0", b"d" * 48),
        *(
            make_place(GENESIS, replace(UPDATE, **change), "p0", b"c" * 48)
            for change in (
                {"federation_id": "banks"},
                {"round": 2},
                {"agent_id": "bea"},
                {"base_model_sha256": bytes(32)},
                {"commitments": make_blob("others")},
            )
        ),
    ]
    infos = {item.compute_info(b"key") for item in (place, *others)}
    assert len(infos) == len(others) + 1
    # Shares are made for a place that does not know them yet.
    assert make_place(GENESIS, replace(UPDATE, shares=()), "p0", b"c" * 48) == place


# Commitments and proofs


def opened_round() -> MpcRound:
    run = start(DECIDER).given(configured(), admitted("ana"), admitted("bea"))
    run.given(request(1))
    assert run.state.current is not None
    return make_mpc_round(
        configured(), run.state.current.started, started_leaf_hash=STARTED
    )


def test_a_statement_is_what_was_committed_to() -> None:
    state = make_state()
    found = parse_statement(opened_round(), UPDATE, state.statement.to_blob())
    assert found == replace(state.statement, context=context_of())
    assert found.squared_bound == NORM_BOUND**2


@pytest.mark.parametrize("change", [-1, 1, 48, -48])
def test_commitments_of_another_size_are_refused(change: int) -> None:
    blob = make_state().statement.to_blob()
    wrong = blob[:change] if change < 0 else blob + bytes(change)
    reason = reason_of(lambda: parse_statement(opened_round(), UPDATE, wrong))
    assert reason is Reason.WRONG_SHAPE


def test_a_proof_is_read_as_it_was_written() -> None:
    state = make_state()
    proof = prove_norm(state)
    blob = encode_proof(proof)
    assert parse_proof(blob) == proof
    assert encode_proof(parse_proof(blob)) == blob


def other_records() -> list[bytes]:
    return [
        b"",
        b"garbage",
        codec.encode(UPDATE),
        codec.encode(e.ShareLinks(entries=())) + b"\0",
    ]


@pytest.mark.parametrize(
    ("parse", "reason"),
    [
        (parse_proof, Reason.INVALID_PROOF),
        (parse_links, Reason.MALFORMED_BLOB),
        (
            lambda blob: parse_partial(blob, MpcShape.of(configured())),
            Reason.WRONG_PARTIAL,
        ),
    ],
    ids=["proof", "links", "partial"],
)
def test_what_is_another_record_is_refused(
    parse: Callable[[bytes], Any], reason: Reason
) -> None:
    for blob in other_records():
        assert reason_of(lambda blob=blob: parse(blob)) is reason


# Shares


def test_a_party_opens_its_own_share_and_nothing_else() -> None:
    key, other = SealingSecretKey(b"\1" * 32), SealingSecretKey(b"\2" * 32)
    state, shape = make_state(), MpcShape.of(configured())
    dealt = split_update(state, 3, entropy_of(3))
    sealed = [
        seal_share(
            d.plaintext, key.public_key, make_place(GENESIS, UPDATE, name, d.commitment)
        )
        for d, name in zip(dealt, PARTIES, strict=True)
    ]
    shares = tuple(
        replace(share, commitment=d.commitment)
        for share, d in zip(UPDATE.shares, dealt, strict=True)
    )
    update = replace(UPDATE, shares=shares)
    opened = [
        open_shares(GENESIS, update, name, data, key, shape)
        for name, data in zip(PARTIES, sealed, strict=True)
    ]
    total = sum(share.values for share in opened)
    assert np.array_equal(np.asarray(total).view(np.int64), state.values)
    for party, data, secret in (
        ("p0", sealed[0], other),
        ("p0", sealed[1], key),
        ("p0", sealed[0][:-1], key),
        ("p0", b"", key),
    ):
        reason = reason_of(
            lambda party=party, data=data, secret=secret: open_shares(
                GENESIS, update, party, data, secret, shape
            )
        )
        assert reason is Reason.BAD_SHARE


def test_a_share_of_another_commitment_is_bad_unless_it_was_checked() -> None:
    key, shape = SealingSecretKey(b"\1" * 32), MpcShape.of(configured())
    dealt, other = (split_update(make_state(), 3, entropy_of(n)) for n in (3, 4))
    # The agent seals another share for the very place of this commitment.
    place = make_place(GENESIS, UPDATE, "p0", dealt[0].commitment)
    sealed = seal_share(other[0].plaintext, key.public_key, place)
    shares = (
        replace(UPDATE.shares[0], commitment=dealt[0].commitment),
        *UPDATE.shares[1:],
    )
    update = replace(UPDATE, shares=shares)
    with Refused as caught:
        open_shares(GENESIS, update, "p0", sealed, key, shape)
    assert caught.value.reason is Reason.BAD_SHARE
    assert "WRONG_COMMITMENT" in caught.value.detail
    share = open_shares(GENESIS, update, "p0", sealed, key, shape, was_linked=True)
    assert len(share.values) == 300


# Links


def make_link(number: int) -> Link:
    count = NUM_PROJECTIONS + NUM_SUM_PROJECTIONS
    words = np.random.default_rng(number).integers(0, 2**64, count, dtype=np.uint64)
    blinding = number**50 % SCALAR_ORDER
    return Link(words[:NUM_PROJECTIONS], blinding, words[NUM_PROJECTIONS:])


def test_links_are_read_as_they_were_written() -> None:
    links: dict[str, Link | RoundError] = {
        "bea": make_link(77),
        "ana": make_link(88),
        "cem": RoundError(Reason.BAD_SHARE, "x" * 1_000),
    }
    blob = encode_links(links)
    assert blob == encode_links(dict(reversed(links.items())))
    found = parse_links(blob)
    assert list(found) == ["ana", "bea", "cem"]
    for name in ("ana", "bea"):
        link, expected = found[name], links[name]
        assert isinstance(link, Link)
        assert isinstance(expected, Link)
        assert np.array_equal(link.projections, expected.projections)
        assert np.array_equal(link.sum_projections, expected.sum_projections)
        assert link.blinding == expected.blinding
    excuse = found["cem"]
    assert isinstance(excuse, RoundError)
    assert excuse.reason is Reason.BAD_SHARE
    assert excuse.detail == "BAD_SHARE: " + "x" * MAX_DETAIL_LENGTH
    assert parse_links(encode_links({})) == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"projections": bytes(8 * NUM_PROJECTIONS - 1)},
        {"projections": bytes(8 * NUM_PROJECTIONS + 8)},
        {"projections": b""},
        {"sum_projections": bytes(8 * NUM_SUM_PROJECTIONS - 1)},
        {"sum_projections": bytes(8 * NUM_SUM_PROJECTIONS + 8)},
        {"sum_projections": b""},
        {"blinding": bytes(31)},
        {"blinding": bytes(33)},
        {"blinding": SCALAR_ORDER.to_bytes(32, "little")},
        {"reason": "whatever"},
        {"detail": "whatever"},
    ],
    ids=str,
)
def test_a_bad_link_concerns_one_agent(changes: dict[str, Any]) -> None:
    links = codec.decode_as(
        e.ShareLinks, encode_links({"ana": make_link(1), "bea": make_link(2)})
    )
    entries = (replace(links.entries[0], **changes), links.entries[1])
    found = parse_links(codec.encode(replace(links, entries=entries)))
    assert isinstance(found["bea"], Link)
    bad = found["ana"]
    assert isinstance(bad, RoundError)
    # Nobody pays for it, whatever a party calls it.
    assert bad.reason is Reason.BAD_SHARE


@pytest.mark.parametrize("names", ["ba", "aa", "aba", "abb", "acb"])
def test_links_have_one_order_and_no_agent_appears_twice(names: str) -> None:
    links = codec.decode_as(
        e.ShareLinks,
        encode_links({name: make_link(number) for number, name in enumerate("abc")}),
    )
    entries = {entry.agent_id: entry for entry in links.entries}
    blob = codec.encode(e.ShareLinks(entries=tuple(entries[name] for name in names)))
    with Refused as caught:
        parse_links(blob)
    assert caught.value.reason is Reason.MALFORMED_BLOB
    assert "ascending order" in caught.value.detail


# Parts of the sum


def make_part() -> PartySum:
    state, shape = make_state(), MpcShape.of(configured())
    dealt = split_update(state, 3, entropy_of(5))
    shares = [
        parse_share(d.plaintext, shape=shape.shares, commitment=None) for d in dealt
    ]
    masks = SumMasks(bytes(32), SEED).expand(SEED)
    return compute_party_sum(
        [(shares[1], masks, 3), (shares[2], masks, 4)], shape=shape.shares
    )


def test_a_part_is_read_as_it_was_written() -> None:
    part = make_part()
    blob = encode_partial(part)
    found = parse_partial(blob, MpcShape.of(configured()))
    assert np.array_equal(found.values, part.values)
    assert np.array_equal(found.masks, part.masks)
    assert (found.row_blindings, found.opening) == (part.row_blindings, part.opening)
    assert encode_partial(found) == blob


@pytest.mark.parametrize(
    "change",
    [
        lambda p: {"values": p.values[8:]},
        lambda p: {"values": p.values + bytes(8)},
        lambda p: {"values": p.values + b"\0"},
        lambda p: {"masks": p.masks[8:]},
        lambda p: {"masks": b""},
        lambda p: {"row_blindings": p.row_blindings[32:]},
        lambda p: {"row_blindings": p.row_blindings + bytes(32)},
        lambda p: {"row_blindings": p.row_blindings[1:]},
        lambda p: {"row_blindings": b"\xff" * len(p.row_blindings)},
        lambda p: {"opening": p.opening[1:]},
        lambda p: {"opening": SCALAR_ORDER.to_bytes(32, "little")},
    ],
)
def test_a_part_of_another_shape_is_wrong(change: Callable[[Any], Any]) -> None:
    record = codec.decode_as(e.PartialSum, encode_partial(make_part()))
    blob = codec.encode(replace(record, **change(record)))
    reason = reason_of(lambda: parse_partial(blob, MpcShape.of(configured())))
    assert reason is Reason.WRONG_PARTIAL


# Blobs


def test_a_blob_that_is_not_as_promised_is_named() -> None:
    blobs = BlobDict()
    ref = blobs.store(b"content")
    fetch = make_fetch(blobs.fetch)
    assert fetch(ref, 7) == b"content"
    for reason, change in (
        (Reason.OVERSIZED_BLOB, None),
        (Reason.CORRUPT_BLOB, b"another"),
        (Reason.MISSING_BLOB, b""),
    ):
        if change:
            blobs[ref.sha256] = change
        elif change is not None:
            del blobs[ref.sha256]
        with Refused as caught:
            fetch(ref, 6 if change is None else 7)
        assert caught.value.reason is reason
        assert caught.value.blob == BadBlob(reason, ref)
    assert RoundError(Reason.BAD_SHARE, "").blob is None


def closed_round(
    *agents: str, blobs: BlobDict
) -> tuple[MpcRound, dict[str, ProverState]]:
    """Return a round in which these agents have proved; shares are left out."""
    config = configured()
    run = start(DECIDER).given(config)
    run.given(*map(admitted, agents), request(1))
    assert run.state.current is not None
    closed = e.CommitmentsClosed(
        federation_id="clinics",
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=0,
        num_commitments=len(agents),
        sum_seed=SEED,
    )
    commitments, states = {}, {}
    for number, agent_id in enumerate(agents):
        state = make_state(seed=number + 1)
        dealt = split_update(state, 3, entropy_of(number))
        update = committed(
            agent_id,
            commitments=blobs.store(state.statement.to_blob()),
            shares=tuple(
                replace(share, commitment=d.commitment)
                for share, d in zip(UPDATE.shares, dealt, strict=True)
            ),
        )
        blob = encode_proof(prove_norm(state.bind(context_of(update))))
        update = replace(update, proof=blobs.store(blob))
        commitments[agent_id] = Committed(leaf_index=number, event=update)
        states[agent_id] = state
    secret = make_mpc_round(
        config,
        run.state.current.started,
        started_leaf_hash=STARTED,
        commitments=commitments,
        closed=closed,
        waiting=PersistentMap((name, 0) for name in agents),
    )
    return secret, states


def with_proof(secret: MpcRound, agent_id: str, proof: e.BlobRef) -> MpcRound:
    """Return the round in which an agent gives another proof."""
    found = secret.get_committed(agent_id)
    changed = found._replace(event=replace(found.event, proof=proof))
    return change_mpc_round(
        secret, commitments={**secret.commitments, agent_id: changed}
    )


def test_proofs_are_verified_together_and_each_for_itself() -> None:
    blobs = BlobDict()
    secret, _ = closed_round("ana", "bea", "cem", "dan", blobs=blobs)
    others = secret.get_committed("ana").event.proof
    secret = with_proof(secret, "bea", others)
    secret = with_proof(secret, "dan", blobs.store(b"no proof"))
    together = RoundVerifier(secret, make_fetch(blobs.fetch))
    together.verify_proofs(secret, sorted(secret.waiting))
    for agent_id in sorted(secret.waiting):
        alone = RoundVerifier(secret, make_fetch(blobs.fetch))
        alone.verify_proofs(secret, [agent_id])
        for verifier in (together, alone):
            found = verifier.get_proven(secret, agent_id)
            if agent_id in {"ana", "cem"}:
                assert not isinstance(found, RoundError)
                assert found.committed == secret.get_committed(agent_id)
                assert found.challenges == compute_challenges(
                    found.statement, found.proof
                )
                fetch = make_fetch(blobs.fetch)
                assert read_seed(secret, agent_id, fetch) == found.challenges.seed
            else:
                assert isinstance(found, RoundError)
                assert found.reason is Reason.INVALID_PROOF
                assert found.blob is None


def test_what_was_verified_is_not_fetched_again() -> None:
    blobs = BlobDict()
    secret, _ = closed_round("ana", "bea", blobs=blobs)
    verifier = RoundVerifier(secret, make_fetch(blobs.fetch))
    verifier.verify_proofs(secret, ["ana", "bea"])
    blobs.clear()
    verifier.verify_proofs(secret, ["ana", "bea"])
    assert not isinstance(verifier.get_proven(secret, "bea"), RoundError)


@pytest.mark.parametrize("what", ["commitments", "proof"])
def test_a_proof_whose_blobs_are_gone_proves_nothing(what: str) -> None:
    blobs = BlobDict()
    secret, _ = closed_round("ana", "bea", blobs=blobs)
    update = secret.get_committed("ana").event
    ref = update.proof if what == "proof" else update.commitments
    del blobs[ref.sha256]
    verifier = RoundVerifier(secret, make_fetch(blobs.fetch))
    verifier.verify_proofs(secret, ["ana", "bea"])
    found = verifier.get_proven(secret, "ana")
    assert isinstance(found, RoundError)
    assert found.blob == BadBlob(Reason.MISSING_BLOB, ref)
    assert not isinstance(verifier.get_proven(secret, "bea"), RoundError)
    with Refused:
        read_proof(secret, "ana", make_fetch(blobs.fetch))


def test_a_round_that_is_not_closed_has_no_sum() -> None:
    secret, _ = closed_round("ana", "bea", blobs=BlobDict())
    verifier = RoundVerifier(secret, make_fetch(BlobDict().fetch))
    known = verifier.get_sum_projection(secret)
    assert verifier.get_sum_projection(secret) is known
    with pytest.raises(AssertionError, match="none before"):
        verifier.get_sum_projection(change_mpc_round(secret, closed=None))


# What is published shows nothing


MAX_CHI_SQUARE = 255 + 6 * (2 * 255) ** 0.5  # = 390.5
"""Of 255 degrees of freedom: exceeded by chance in less than one of 10^6. There are 150
here, and the seeds are fixed: so by chance always or, much more likely, never."""
NUM_SHARINGS = 120


def chi_square(data: bytes) -> float:
    counts = np.bincount(np.frombuffer(data, dtype=np.uint8), minlength=256)
    expected = len(data) / 256
    assert expected >= 20
    return float(((counts - expected) ** 2).sum() / expected)


def bytes_of(words: list[Any], place: int) -> bytes:
    """Return one byte of each word: the lowest, or the highest."""
    stacked = np.concatenate(words).astype("<u8")
    return stacked.view(np.uint8).reshape(-1, 8)[:, place].tobytes()


@pytest.fixture(scope="module", params=["nothing", "everything"])
def published(request: pytest.FixtureRequest) -> dict[str, list[list[Any]]]:
    """What three parties publish of one update that is shared again and again.

    The update is zero, or as large as can be: what is published must not tell.
    """
    largest = 2**13 if request.param == "everything" else 0
    values = np.full(300, largest, dtype=np.int64)
    state = commit_update(values, squared_bound=2**62, entropy=entropy_of(6))
    # Masks that hide nothing: only the sharing hides here.
    state = replace(state, masks=(0,) * NUM_PROJECTIONS)
    projection = expand_projection(state.statement, SEED)
    rows = MpcShape.of(configured())
    sum_projection = expand_sum_projection(
        SEED, num_rows=rows.num_rows, row_length=rows.row_length
    )
    challenges = tuple(range(5, 5 + len(state.blindings) - 1))
    shape = MpcShape.of(configured()).shares
    entropy = entropy_of(7)
    found: dict[str, list[list[Any]]] = {}
    for number in range(NUM_SHARINGS):
        seed = number.to_bytes(32, "little")
        dealt = split_update(state, 3, entropy)
        again = split_update(state, 3, entropy)
        for party in range(3):
            share, other = (
                parse_share(d[party].plaintext, shape=shape, commitment=None)
                for d in (dealt, again)
            )
            masks = SumMasks(bytes([party]) * 32, SEED).expand(seed)
            link = compute_link(
                share,
                projection=projection,
                challenges=challenges,
                sum_projection=sum_projection,
                masks=masks,
            )
            part = compute_party_sum(
                [(share, masks, 3), (other, masks[::-1], 11)], shape=shape
            )
            scalars = (link.blinding, part.opening, *part.row_blindings)
            low = b"".join(encode_scalar(scalar)[:16] for scalar in scalars)
            for name, words in (
                ("projections", link.projections),
                ("values", part.values),
                ("sum_projections", link.sum_projections),
                ("masks", part.masks),
                ("scalars", np.frombuffer(low, "<u8")),
            ):
                found.setdefault(name, [[], [], []])[party].append(words)
    return found


@pytest.mark.parametrize("name", ["projections", "sum_projections", "values", "masks"])
@pytest.mark.parametrize("place", [0, 7])
def test_what_any_two_of_three_parties_publish_is_uniform(
    published: dict[str, list[list[Any]]], name: str, place: int
) -> None:
    parties = published[name]
    for first, second in itertools.combinations(range(3), 2):
        one, other = parties[first], parties[second]
        for words in (
            one,
            other,
            [a + b for a, b in zip(one, other, strict=True)],
            [a - b for a, b in zip(one, other, strict=True)],
        ):
            assert chi_square(bytes_of(words, place)) < MAX_CHI_SQUARE


def test_scalars_that_a_party_publishes_are_uniform(
    published: dict[str, list[list[Any]]],
) -> None:
    for one in published["scalars"]:
        assert chi_square(np.concatenate(one).tobytes()) < MAX_CHI_SQUARE


@pytest.mark.parametrize("name", ["projections", "values"])
def test_all_three_together_show_what_they_are_for(
    published: dict[str, list[list[Any]]], name: str
) -> None:
    """So the tests above could fail."""
    total = [sum(words) for words in zip(*published[name], strict=True)]
    assert chi_square(bytes_of(total, 7)) > 10 * MAX_CHI_SQUARE


def test_a_proof_is_a_proof() -> None:
    """`NormProof` and its record have the same fields."""
    assert (
        NormProof.__dataclass_fields__.keys() == e.NormProof.__dataclass_fields__.keys()
    )
