"""Golden vectors of links, parts of the sum, and where shares count."""

import hashlib
import json
from collections import Counter
from functools import cache

import numpy as np
import pytest

from protocol.modes.mpc.checker import (
    MpcShape,
    encode_links,
    encode_partial,
    make_place,
    parse_links,
    parse_partial,
)
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    combine_rows,
    parse_scalar,
    verify_opening,
)
from protocol.modes.mpc.norm_proof import PROJECTION_SIZE
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection
from protocol.modes.mpc.sealing import (
    SealError,
    SealingSecretKey,
    open_share,
    seal_share,
)
from protocol.modes.mpc.share_link import (
    Link,
    PartySum,
    SharesDifferError,
    SumMasks,
    WrongPartialError,
    WrongSumError,
    compute_link,
    compute_party_sum,
    expand_sum_projection,
    open_aggregate,
    verify_link,
    verify_party_sum,
)
from protocol.modes.mpc.shares import parse_share
from protocol.modes.problem import RoundError
from schemas import codec
from schemas.reasons import Reason
from tests.vectors.parties.generate import FOLDER, GENESIS, build_all, make_update

FILES = {name: FOLDER / f"{name}.json" for name in ("links", "partial", "place")}
LINKS, PARTIAL, PLACE = (
    json.loads(path.read_text(encoding="utf-8")) for path in FILES.values()
)
PARTIES = list(LINKS["parties"])
AGENTS = list(PARTIAL["weights"])
WEIGHTS = list(PARTIAL["weights"].values())
SHAPE = MpcShape(LINKS["num_values"], LINKS["row_length"], LINKS["num_rows"])
EXCUSED = "cyd"


SUM_SEED = bytes.fromhex(LINKS["sum_seed"])


@cache
def expand_sum():
    return expand_sum_projection(
        SUM_SEED, num_rows=SHAPE.num_rows, row_length=SHAPE.row_length
    )


def expand_masks(agent, party):
    secret = bytes.fromhex(LINKS["mask_secrets"][party])
    key = SealingSecretKey(secret).derive_mask_key()
    return SumMasks(key, SUM_SEED).expand(bytes.fromhex(LINKS["agents"][agent]["seed"]))


def read_links(party, blob=None):
    """Return a party's links, from the good blob unless told."""
    return parse_links(blob or bytes.fromhex(LINKS["parties"][party]["blob"]))


def read_partial(party, blob=None):
    good = bytes.fromhex(PARTIAL["parties"][party]["blob"])
    return parse_partial(blob or good, SHAPE)


def read_share(agent, party):
    share = LINKS["agents"][agent]["shares"][party]
    return parse_share(
        bytes.fromhex(share["plaintext"]),
        shape=SHAPE.shares,
        commitment=bytes.fromhex(share["commitment"]),
    )


def verify_links(agent, changed=None):
    """Verify the links of all parties for an agent; some are other blobs'."""
    said = LINKS["agents"][agent]
    projections = bytes.fromhex(said["projections"])
    verify_link(
        [
            read_links(party, blob)[agent]
            for party, blob in (dict.fromkeys(PARTIES) | (changed or {})).items()
        ],
        projections=[
            int.from_bytes(projections[i : i + PROJECTION_SIZE], "little", signed=True)
            for i in range(0, len(projections), PROJECTION_SIZE)
        ],
        blinding=parse_scalar(bytes.fromhex(said["z_blinding"])),
    )


def verify_sum(party, party_sum):
    links = read_links(party)
    verify_party_sum(
        party_sum,
        commitments=[
            bytes.fromhex(LINKS["agents"][agent]["shares"][party]["commitment"])
            for agent in AGENTS
        ],
        links=[links[agent] for agent in AGENTS],
        weights=WEIGHTS,
        shape=SHAPE.shares,
        sum_projection=expand_sum(),
    )


def open_sums(changed=None):
    sums = [
        read_partial(party, blob)
        for party, blob in (dict.fromkeys(PARTIES) | (changed or {})).items()
    ]
    rows = [tuple(map(bytes.fromhex, LINKS["agents"][a]["rows"])) for a in AGENTS]
    return open_aggregate(sums, combine_rows(rows, WEIGHTS))


def change(bad, vectors):
    """Return the blob that a bad vector stands for."""
    good = bytes.fromhex(vectors["parties"][bad["party"]]["blob"])
    begin, end = bad["at"], bad["at"] + bad["cut"]
    assert end <= len(good)
    return good[:begin] + bytes.fromhex(bad["put"]) + good[end:]


def name_of(bad):
    return f"{bad['operation']}: {bad['why']}"


@cache
def generate():
    return build_all()


@pytest.mark.parametrize("name", FILES)
def test_the_generator_gives_the_vectors(name):
    assert generate()[name] == FILES[name].read_text(encoding="utf-8")


# Good


@pytest.mark.parametrize("party", PARTIES)
def test_good_links_say_what_is_beside_them(party):
    vector = LINKS["parties"][party]
    found = read_links(party)
    assert list(found) == [*AGENTS, EXCUSED]
    for entry in vector["entries"]:
        link = found[entry["agent_id"]]
        if entry["reason"]:
            assert isinstance(link, RoundError)
            assert link.reason is Reason.BAD_SHARE
            assert link.detail == f"{entry['reason']}: {entry['detail']}"
            names = ("projections", "blinding", "sum_projections")
            assert {entry[name] for name in names} == {""}
        else:
            for name in ("projections", "sum_projections"):
                words = getattr(link, name).astype("<u8")
                assert words.tobytes().hex() == entry[name]
            assert link.blinding.to_bytes(32, "little").hex() == entry["blinding"]


@pytest.mark.parametrize("party", PARTIES)
def test_good_links_are_what_a_party_says_of_its_shares(party):
    links = []
    for agent in AGENTS:
        challenge = parse_scalar(bytes.fromhex(LINKS["agents"][agent]["e"]))
        exponents = range(1, SHAPE.num_rows + 3)
        link = compute_link(
            read_share(agent, party),
            projection=Projection.expand(
                bytes.fromhex(LINKS["agents"][agent]["seed"]),
                num_projections=NUM_PROJECTIONS,
                num_rows=SHAPE.num_rows + 1,
                row_length=SHAPE.row_length,
            ),
            challenges=[pow(challenge, k, SCALAR_ORDER) for k in exponents],
            sum_projection=expand_sum(),
            masks=expand_masks(agent, party),
        )
        links.append(link)
    excuse = LINKS["parties"][party]["entries"][-1]
    said = dict(zip(AGENTS, links, strict=True)) | {
        EXCUSED: RoundError(Reason(excuse["reason"]), excuse["detail"])
    }
    assert encode_links(said).hex() == LINKS["parties"][party]["blob"]


def test_good_links_add_up():
    for agent in AGENTS:
        verify_links(agent)


@pytest.mark.parametrize("party", PARTIES)
def test_a_good_part_is_what_a_party_sums(party):
    shares = (
        (read_share(agent, party), expand_masks(agent, party), weight)
        for agent, weight in zip(AGENTS, WEIGHTS, strict=True)
    )
    party_sum = compute_party_sum(shares, shape=SHAPE.shares)
    vector = PARTIAL["parties"][party]
    assert encode_partial(party_sum).hex() == vector["blob"]
    found = read_partial(party)
    verify_sum(party, found)
    assert found.values.astype("<u8").tobytes().hex() == vector["values"]
    assert found.masks.astype("<u8").tobytes().hex() == vector["masks"]
    scalars = b"".join(s.to_bytes(32, "little") for s in found.row_blindings)
    assert scalars.hex() == vector["row_blindings"]
    assert found.opening.to_bytes(32, "little").hex() == vector["opening"]


def test_good_parts_open_the_sum():
    expected = PARTIAL["sum"]["values"]
    assert open_sums().tolist() == expected
    by_hand = [
        sum(v * x for v, x in zip(WEIGHTS, column, strict=True))
        for column in zip(*(LINKS["agents"][a]["values"] for a in AGENTS), strict=True)
    ]
    assert by_hand == expected
    sums = [read_partial(party) for party in PARTIES]
    blindings = [
        sum(column) for column in zip(*(s.row_blindings for s in sums), strict=True)
    ]
    rows = tuple(map(bytes.fromhex, PARTIAL["sum"]["rows"]))
    assert verify_opening(rows, np.array(expected), blindings)


def write_long(number):
    """Return a number of at least 0 as Avro writes it."""
    data, number = bytearray(), 2 * number
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def write_bytes(data):
    return write_long(len(data)) + data


@pytest.mark.parametrize("party", PARTIES)
def test_blobs_are_what_the_readme_says(party):
    """Written without fastavro, as a program in another language might."""
    entries = LINKS["parties"][party]["entries"]
    body = write_long(len(entries))
    for entry in entries:
        texts = [entry[name].encode() for name in ("agent_id", "reason", "detail")]
        names = ("projections", "blinding", "sum_projections")
        said = [bytes.fromhex(entry[name]) for name in names]
        body += b"".join(map(write_bytes, (*texts, *said)))
    header = b"\xc3\x01" + bytes.fromhex(codec.lock()["ShareLinks"][-1])
    assert (header + body + b"\0").hex() == LINKS["parties"][party]["blob"]

    vector = PARTIAL["parties"][party]
    names = ("values", "masks", "row_blindings", "opening")
    body = b"".join(write_bytes(bytes.fromhex(vector[name])) for name in names)
    header = b"\xc3\x01" + bytes.fromhex(codec.lock()["PartialSum"][-1])
    assert (header + body).hex() == vector["blob"]


# Bad


def refuse_links(bad, blob):
    """Do what must refuse a blob of links; returns the reason."""
    if bad["operation"] == "parse":
        with pytest.raises(RoundError) as caught:
            parse_links(blob)
        return caught.value.reason
    found, good = read_links(bad["party"], blob), read_links(bad["party"])
    assert list(found) == list(good)
    assert said_of(found["bob"]) == said_of(good["bob"])
    if bad["operation"] == "parse_entry":
        return found["ann"].reason
    assert bad["operation"] == "verify_link"
    verify_links("bob", {bad["party"]: blob})
    with pytest.raises(SharesDifferError):
        verify_links("ann", {bad["party"]: blob})
    return Reason.SHARES_DIFFER


def said_of(link):
    assert isinstance(link, Link)
    return (
        link.projections.tolist(),
        link.blinding,
        link.sum_projections.tolist(),
    )


@pytest.mark.parametrize("bad", LINKS["bad"], ids=name_of)
def test_bad_links_are_refused(bad):
    assert refuse_links(bad, change(bad, LINKS)) == bad["reason"]


def refuse_partial(bad, blob):
    """Do what must refuse a party's part; returns the reason."""
    party = bad["party"]
    if bad["operation"] == "parse":
        with pytest.raises(RoundError) as caught:
            parse_partial(blob, SHAPE)
        return caught.value.reason
    party_sum = parse_partial(blob, SHAPE)
    assert isinstance(party_sum, PartySum)
    if bad["operation"] == "verify_party_sum":
        with pytest.raises(WrongPartialError) as wrong:
            verify_sum(party, party_sum)
        return wrong.value.reason
    assert bad["operation"] == "open_aggregate"
    verify_sum(party, party_sum)
    with pytest.raises(WrongSumError):
        open_sums({party: blob})
    return Reason.WRONG_PARTIAL


@pytest.mark.parametrize("bad", PARTIAL["bad"], ids=name_of)
def test_bad_parts_are_refused(bad):
    assert refuse_partial(bad, change(bad, PARTIAL)) == bad["reason"]


def test_the_vectors_have_every_operation_and_no_blob_twice():
    for vectors, operations in (
        (LINKS, {"parse", "parse_entry", "verify_link"}),
        (PARTIAL, {"parse", "verify_party_sum", "open_aggregate"}),
    ):
        assert {bad["operation"] for bad in vectors["bad"]} == operations
        blobs = Counter(change(bad, vectors) for bad in vectors["bad"])
        assert set(blobs.values()) == {1}
        assert all(bad["why"] for bad in vectors["bad"])


@pytest.mark.parametrize("name", ["links", "partial"])
def test_a_part_of_a_blob_is_refused(name):
    vectors, read = {
        "links": (LINKS, read_links),
        "partial": (PARTIAL, read_partial),
    }[name]
    blob = bytes.fromhex(vectors["parties"][PARTIES[0]]["blob"])
    for size in range(1, len(blob), 7):
        with pytest.raises(RoundError):
            read(PARTIES[0], blob[:size])


# Places


def read_place(changes=None):
    update = PLACE["update"] | {name: PLACE[name] for name in ("party", "commitment")}
    update |= changes or {}
    for name in ("base_model_sha256", "commitments_sha256", "commitment"):
        update[name] = bytes.fromhex(update[name])
    party, commitment = update.pop("party"), update.pop("commitment")
    return make_place(GENESIS, make_update(**update), party, commitment)


PLACES = [PLACE | {"changes": {}}, *PLACE["others"]]


@pytest.mark.parametrize("vector", PLACES, ids=lambda vector: str(vector["changes"]))
def test_a_place_is_stated_as_the_vectors_say(vector):
    place = read_place(vector["changes"])
    assert place.statement_digest.hex() == vector["statement_digest"]
    key = bytes.fromhex(PLACE["sealing_key"])
    assert place.compute_info(key).hex() == vector["info"]


def test_no_place_of_the_vectors_is_another():
    assert len({vector["info"] for vector in PLACES}) == len(PLACES)
    key = SealingSecretKey(bytes(range(32)))
    sealed = seal_share(b"share", key.public_key, read_place())
    assert open_share(sealed, key, read_place()) == b"share"
    for vector in PLACE["others"]:
        with pytest.raises(SealError):
            open_share(sealed, key, read_place(vector["changes"]))


def test_a_statement_is_hashed_by_hand():
    stated = b"folkmoot/share-statement/v1\n" + b"".join(
        bytes.fromhex(PLACE["update"][name])
        for name in ("base_model_sha256", "commitments_sha256")
    )
    digest = hashlib.sha256(stated + bytes.fromhex(PLACE["commitment"]))
    assert digest.hexdigest() == PLACE["statement_digest"]
