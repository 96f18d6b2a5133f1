"""Write links.json, partial.json and place.json.

Run it as python -m tests.vectors.parties.generate. Links and sums are computed here a
second time, with long integers, from the formulas of `protocol.modes.mpc.share_link`.
"""

import hmac
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.modes.mpc.checker import SHARE_DOMAIN, make_place
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    combine_rows,
    encode_scalar,
    parse_scalar,
)
from protocol.modes.mpc.norm_proof import (
    NUM_SQUARES,
    compute_challenges,
    expand_projection,
)
from protocol.modes.mpc.norm_prover import commit_update, prove_norm
from protocol.modes.mpc.share_link import (
    NUM_SUM_PROJECTIONS,
    SUM_MASK_DOMAIN,
    expand_sum_projection,
)
from protocol.modes.mpc.shares import ShareShape, parse_share, split_update
from schemas import codec
from schemas import events as e
from tests.vectors.shares.generate import SeededEntropy

FOLDER = Path(__file__).parent
PARTIES = ("cairn", "dolmen", "menhir")
WEIGHTS = {"ann": 3, "bob": 1_000}
NUM_VALUES = 600
ROW_LENGTH = 512
NUM_ROWS = 2
SHAPE = ShareShape(NUM_VALUES, NUM_ROWS)
SEED = bytes(range(32, 64))
#: The parties' secrets, from which they derive the keys of their masks.
MASK_SECRETS = {party: party.encode().ljust(32, b".") for party in PARTIES}
EXCUSE = {"reason": "BAD_SHARE", "detail": "not sealed to this key in this place"}
WORDS = 2**64
ORDER = SCALAR_ORDER.to_bytes(32, "little")
NAMES = ("federation_id", "round", "agent_id")


def to_words(integers):
    """Return integers as little-endian words."""
    return b"".join((value % WORDS).to_bytes(8, "little") for value in integers)


def from_words(data):
    """Return little-endian words as integers."""
    return [int(word) for word in np.frombuffer(data, "<u8")]


def encode_all(scalars):
    """Return scalars, taken modulo r, one after the other."""
    return b"".join(map(encode_scalar, scalars))


def hexed(value):
    """Return a value for the file."""
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {name: hexed(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [hexed(item) for item in value]
    return value


def spell_out(projection):
    """Return the rows of a projection, in full."""
    rows = np.einsum("ti,tj->tij", projection.of_rows, projection.of_columns)
    return rows.reshape(len(rows), -1).astype(object)


class Round:
    """All that the three parties and the agents know."""

    def __init__(self):
        self.sum_rows = spell_out(
            expand_sum_projection(SEED, num_rows=NUM_ROWS, row_length=ROW_LENGTH)
        )[:, :NUM_VALUES]
        self.rows = {}
        self.agents = {name: self._make_agent(name) for name in WEIGHTS}

    def _make_agent(self, name):
        entropy = SeededEntropy(f"parties {name}")
        values = np.random.default_rng(list(name.encode())).integers(
            -1_000, 1_001, NUM_VALUES
        )
        values[:2] = 2**19 - 1, 1 - 2**19
        state = commit_update(values, squared_bound=2**42, entropy=entropy)
        dealt = split_update(state, len(PARTIES), entropy)
        state = state.bind(f"context of {name}".encode())
        proof = prove_norm(state)
        challenges = compute_challenges(state.statement, proof)
        projection = expand_projection(state.statement, challenges.seed)
        self.rows[name] = spell_out(projection)
        return {
            "values": values.tolist(),
            "rows": list(state.statement.rows),
            "projections": proof.projections,
            "z_blinding": proof.z_blinding,
            "seed": challenges.seed,
            "e": encode_scalar(challenges.e),
            "shares": {
                party: {"commitment": share.commitment, "plaintext": share.plaintext}
                for party, share in zip(PARTIES, dealt, strict=True)
            },
        }

    def open(self, agent, party):
        """Return an agent's share for a party."""
        share = self.agents[agent]["shares"][party]
        plaintext, commitment = share["plaintext"], share["commitment"]
        return parse_share(plaintext, shape=SHAPE, commitment=commitment)

    def make_masks(self, agent, party):
        """Return y'_ij."""
        secret = MASK_SECRETS[party]
        key = hmac.digest(secret, b"folkmoot-mask-key/v1\n", "sha256")
        named = SUM_MASK_DOMAIN + SEED + self.agents[agent]["seed"]
        stream = Cipher(
            algorithms.AES256(hmac.digest(key, named, "sha256")), modes.CTR(bytes(16))
        ).encryptor()
        return from_words(stream.update(bytes(8 * NUM_SUM_PROJECTIONS)))

    def link(self, agent, party):
        """Return P_ij, b_ij and P'_ij."""
        share = self.open(agent, party)
        values, squares, masks = (
            words.astype(object) for words in (share.values, share.squares, share.masks)
        )
        rows = self.rows[agent]
        of_squares = rows[:, NUM_ROWS * ROW_LENGTH :][:, :NUM_SQUARES]
        projected = rows[:, :NUM_VALUES] @ values + of_squares @ squares + masks
        summed = self.sum_rows @ values + np.array(
            self.make_masks(agent, party), dtype=object
        )
        challenge = parse_scalar(self.agents[agent]["e"])
        *blindings, last = share.blindings
        blinding = last + sum(
            pow(challenge, k, SCALAR_ORDER) * blinding
            for k, blinding in enumerate(blindings, start=1)
        )
        return to_words(projected), encode_scalar(blinding), to_words(summed)

    def make_links(self, party):
        """Return what a party says of all shares."""
        entries = []
        for agent in WEIGHTS:
            projections, blinding, sum_projections = self.link(agent, party)
            entries.append(
                e.ShareLink(
                    agent_id=agent,
                    reason="",
                    detail="",
                    projections=projections,
                    blinding=blinding,
                    sum_projections=sum_projections,
                )
            )
        excuse = e.ShareLink(
            agent_id="cyd",
            projections=b"",
            blinding=b"",
            sum_projections=b"",
            **EXCUSE,
        )
        return e.ShareLinks(entries=(*entries, excuse))

    def make_partial(self, party, weights=None):
        """Return a party's part of the sum."""
        values, masks = [0] * NUM_VALUES, [0] * NUM_SUM_PROJECTIONS
        blindings, opening = [0] * NUM_ROWS, 0
        for agent, weight in (weights or WEIGHTS).items():
            share = self.open(agent, party)
            values = _add(values, weight, share.values)
            masks = _add(masks, weight, self.make_masks(agent, party))
            blindings = _add(blindings, weight, share.row_blindings)
            opening += weight * share.opening
        return e.PartialSum(
            values=to_words(values),
            masks=to_words(masks),
            row_blindings=encode_all(blindings),
            opening=encode_scalar(opening),
        )


def _add(totals, weight, addends):
    return [total + weight * int(a) for total, a in zip(totals, addends, strict=True)]


def make_bad(operation, reason, why, good, bad, **others):
    """Return a bad vector: where a blob differs from the good one."""
    assert good != bad
    begin = next(
        (i for i, (a, b) in enumerate(zip(good, bad, strict=False)) if a != b),
        min(len(good), len(bad)),
    )
    most = min(len(good), len(bad)) - begin
    end = next((i for i in range(most) if good[-1 - i] != bad[-1 - i]), most)
    return {
        "operation": operation,
        "reason": reason,
        "why": why,
        **others,
        "at": begin,
        "cut": len(good) - end - begin,
        "put": bad[begin : len(bad) - end].hex(),
    }


def make_damaged(good, other):
    """Yield what no blob of any kind may be: description and bytes."""
    yield "nothing", b""
    yield "the header alone", good[: codec.HEADER_SIZE]
    yield "the last byte missing", good[:-1]
    yield "a trailing byte", good + b"\0"
    yield "another marker", b"\xc3\x02" + good[2:]
    yield "a fingerprint that never was", good[:9] + bytes([good[9] ^ 1]) + good[10:]
    yield "another record's fingerprint", other[: codec.HEADER_SIZE] + good[10:]
    yield "another record", other
    widened = bytes([good[10] | 0x80, 0]) if good[10] < 0x80 else None
    if widened is None:  # a length of two bytes
        widened = bytes([good[10], good[11] | 0x80, 0])
    yield (
        "a number that is longer than it need be",
        good[:10] + widened + good[9 + len(widened) :],
    )


def plus(data, index, size, addend, modulus):
    """Return data with one of its little-endian integers increased."""
    begin = index * size
    value = int.from_bytes(data[begin : begin + size], "little") + addend
    changed = (value % modulus).to_bytes(size, "little")
    return data[:begin] + changed + data[begin + size :]


def build_links(state=None):
    """Return the vectors of links."""
    state = state or Round()
    links = {party: state.make_links(party) for party in PARTIES}
    blobs = {party: codec.encode(said) for party, said in links.items()}
    return {
        "sum_seed": SEED.hex(),
        "mask_secrets": hexed(MASK_SECRETS),
        "num_values": NUM_VALUES,
        "num_rows": NUM_ROWS,
        "row_length": ROW_LENGTH,
        "agents": hexed(state.agents),
        "parties": {
            party: {
                "entries": [
                    {
                        "agent_id": entry.agent_id,
                        "reason": entry.reason,
                        "detail": entry.detail,
                        "projections": entry.projections.hex(),
                        "blinding": entry.blinding.hex(),
                        "sum_projections": entry.sum_projections.hex(),
                    }
                    for entry in links[party].entries
                ],
                "blob": blobs[party].hex(),
            }
            for party in PARTIES
        },
        "bad": list(bad_links(links, blobs, codec.encode(state.make_partial("cairn")))),
    }


def bad_links(links, blobs, partial):
    """Yield bad vectors, all of the first party."""
    party = PARTIES[0]
    good, said = blobs[party], links[party]
    ann, bob, cyd = said.entries

    def change(*entries):
        return codec.encode(e.ShareLinks(entries=entries))

    for why, bad in make_damaged(good, partial):
        yield make_bad("parse", "MALFORMED_BLOB", why, good, bad, party=party)
    one = good.index(b"\6ann")
    sized = good[:10] + b"\5" + _zigzag(len(good) - 12) + good[11:]
    two = good.index(b"\6bob")
    for why, bad in (
        ("a block with its size", sized),
        ("two blocks", good[:10] + b"\2" + good[11:two] + b"\4" + good[two:]),
        ("a name that is not UTF-8", good[: one + 1] + b"\xff" + good[one + 2 :]),
        ("two agents swapped", change(bob, ann, cyd)),
        ("the last agent first", change(cyd, ann, bob)),
        ("an agent twice", change(ann, ann, bob, cyd)),
        ("an agent twice, with another word", change(ann, bob, cyd, _as(cyd, bob))),
        ("an upper-case name last", change(ann, bob, replace(cyd, agent_id="Cyd"))),
    ):
        yield make_bad("parse", "MALFORMED_BLOB", why, good, bad, party=party)

    projections, blinding = ann.projections, ann.blinding
    sum_projections = ann.sum_projections
    wrapped = int.from_bytes(blinding, "little") + SCALAR_ORDER
    for why, changes in (
        ("a byte of the projections missing", {"projections": projections[:-1]}),
        ("a projection missing", {"projections": projections[:-8]}),
        ("a projection more", {"projections": projections + bytes(8)}),
        ("no projections", {"projections": b""}),
        ("a byte of the blinding missing", {"blinding": blinding[:-1]}),
        ("a byte more in the blinding", {"blinding": blinding + b"\0"}),
        ("no blinding", {"blinding": b""}),
        ("a sum projection missing", {"sum_projections": sum_projections[:-8]}),
        ("a sum projection more", {"sum_projections": sum_projections + bytes(8)}),
        ("no sum projections", {"sum_projections": b""}),
        ("a blinding of r", {"blinding": ORDER}),
        ("a blinding plus r", {"blinding": wrapped.to_bytes(32, "little")}),
        ("a blinding of all ones", {"blinding": b"\xff" * 32}),
        ("a link and an excuse", {"reason": "BAD_SHARE"}),
        ("a link with a detail", {"detail": "fine"}),
    ):
        bad = change(replace(ann, **changes), bob, cyd)
        yield make_bad("parse_entry", "BAD_SHARE", why, good, bad, party=party)

    negated = to_words(-word for word in from_words(projections))
    other = links[PARTIES[1]].entries[0]
    for why, changes in (
        ("a projection plus one", {"projections": plus(projections, 0, 8, 1, WORDS)}),
        (
            "the highest bit of a projection",
            {"projections": plus(projections, 308, 8, 2**63, WORDS)},
        ),
        ("projections negated", {"projections": negated}),
        ("projections big-endian", {"projections": _turn(projections)}),
        ("a blinding plus one", {"blinding": plus(blinding, 0, 32, 1, SCALAR_ORDER)}),
        ("a blinding of zero", {"blinding": bytes(32)}),
        ("bob's link", {"projections": bob.projections, "blinding": bob.blinding}),
        (
            "another party's",
            {"projections": other.projections, "blinding": other.blinding},
        ),
    ):
        bad = change(replace(ann, **changes), bob, cyd)
        yield make_bad("verify_link", "SHARES_DIFFER", why, good, bad, party=party)


def _as(entry, other):
    return replace(other, agent_id=entry.agent_id)


def _turn(words):
    return b"".join(word.to_bytes(8, "big") for word in from_words(words))


def _zigzag(number):
    """Return a positive number as Avro writes it."""
    number *= 2
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*data, number])


def build_partial(state=None):
    """Return the vectors of parts of the sum."""
    state = state or Round()
    partials = {party: state.make_partial(party) for party in PARTIES}
    total = [
        sum(
            WEIGHTS[name] * agent["values"][index]
            for name, agent in state.agents.items()
        )
        for index in range(NUM_VALUES)
    ]
    rows = combine_rows(
        [agent["rows"] for agent in state.agents.values()], list(WEIGHTS.values())
    )
    return {
        "weights": WEIGHTS,
        "parties": {
            party: {
                "values": partial.values.hex(),
                "masks": partial.masks.hex(),
                "row_blindings": partial.row_blindings.hex(),
                "opening": partial.opening.hex(),
                "blob": codec.encode(partial).hex(),
            }
            for party, partial in partials.items()
        },
        "sum": {"values": total, "rows": hexed(rows)},
        "bad": list(bad_partials(state, partials)),
    }


def bad_partials(state, partials):
    """Yield bad vectors, all of the second party."""
    party = PARTIES[1]
    partial = partials[party]
    good = codec.encode(partial)
    links = codec.encode(state.make_links(party))
    for why, bad in make_damaged(good, links):
        yield make_bad("parse", "WRONG_PARTIAL", why, good, bad, party=party)

    values, masks = partial.values, partial.masks
    blindings, opening = partial.row_blindings, partial.opening
    first = int.from_bytes(blindings[:32], "little") + SCALAR_ORDER
    wrapped = int.from_bytes(opening, "little") + SCALAR_ORDER
    for why, changes in (
        ("a value missing", {"values": values[:-8]}),
        ("a value more", {"values": values + bytes(8)}),
        ("a byte of the values missing", {"values": values[:-1]}),
        ("a byte more in the values", {"values": values + b"\0"}),
        ("a mask missing", {"masks": masks[8:]}),
        ("no masks", {"masks": b""}),
        ("a row missing", {"row_blindings": blindings[32:]}),
        ("a row more", {"row_blindings": blindings + bytes(32)}),
        ("a byte of the blindings missing", {"row_blindings": blindings[:-1]}),
        (
            "a blinding plus r",
            {"row_blindings": first.to_bytes(32, "little") + blindings[32:]},
        ),
        ("a blinding of r", {"row_blindings": blindings[:32] + ORDER}),
        ("a byte of the opening missing", {"opening": opening[:-1]}),
        ("a byte more in the opening", {"opening": opening + b"\0"}),
        ("an opening of r", {"opening": ORDER}),
        ("an opening plus r", {"opening": wrapped.to_bytes(32, "little")}),
    ):
        bad = codec.encode(replace(partial, **changes))
        yield make_bad("parse", "WRONG_PARTIAL", why, good, bad, party=party)

    moved = plus(values, 0, 8, 1, WORDS)
    swapped = blindings[32:] + blindings[:32]
    for reason, why, changes in (
        ("WRONG_PROJECTION", "a value plus one", {"values": moved}),
        (
            "WRONG_PROJECTION",
            "the highest bit of the last value",
            {"values": plus(values, NUM_VALUES - 1, 8, 2**63, WORDS)},
        ),
        ("WRONG_PROJECTION", "values of zero", {"values": bytes(len(values))}),
        (
            "WRONG_PROJECTION",
            "a mask plus one",
            {"masks": plus(masks, 64, 8, 1, WORDS)},
        ),
        (
            "WRONG_BLINDINGS",
            "a blinding plus one",
            {"row_blindings": plus(blindings, 1, 32, 1, SCALAR_ORDER)},
        ),
        ("WRONG_BLINDINGS", "two rows swapped", {"row_blindings": swapped}),
        (
            "WRONG_BLINDINGS",
            "an opening plus one",
            {"opening": plus(opening, 0, 32, 1, SCALAR_ORDER)},
        ),
        ("WRONG_BLINDINGS", "an opening of zero", {"opening": bytes(32)}),
    ):
        bad = codec.encode(replace(partial, **changes))
        yield make_bad("verify_party_sum", reason, why, good, bad, party=party)
    for why, other in (
        ("another party's", partials[PARTIES[0]]),
        ("one agent left out", state.make_partial(party, {"bob": WEIGHTS["bob"]})),
        ("another weight", state.make_partial(party, WEIGHTS | {"ann": 4})),
    ):
        yield make_bad(
            "verify_party_sum",
            "WRONG_BLINDINGS",
            why,
            good,
            codec.encode(other),
            party=party,
        )

    # A value plus one, and masks that make up for it.
    column = [int(bit) for bit in state.sum_rows[:, 0]]
    made_up = to_words(
        word - bit for word, bit in zip(from_words(masks), column, strict=True)
    )
    bad = codec.encode(replace(partial, values=moved, masks=made_up))
    why = "a value plus one, and masks that make up for it"
    yield make_bad("open_aggregate", "WRONG_PARTIAL", why, good, bad, party=party)


def make_update(**changes):
    """Return an update whose places are known."""
    digest = bytes(range(64, 96))
    ref = e.BlobRef(
        uri="", sha256=changes.pop("commitments_sha256", digest), size_bytes=1
    )
    update = e.UpdateCommitted(
        federation_id="fed",
        round=7,
        agent_id="ann",
        base_model_sha256=bytes(range(32)),
        commitments=ref,
        shares=(),
        proof=ref,
        num_examples=1,
        loss_micros=0,
    )
    return replace(update, **changes)


GENESIS = bytes(range(32, 64))
"""Hash of the genesis of the log that the places are of."""


def describe_place(update, party, commitment, key):
    """Return a place as it is in the file."""
    place = make_place(GENESIS, update, party, commitment)
    return {
        "statement_digest": place.statement_digest.hex(),
        "info": place.compute_info(key).hex(),
    }


def build_place():
    """Return the vectors of places."""
    party, commitment, key = "cairn", bytes(range(48)), bytes(range(96, 128))
    update = make_update()
    others = [
        {"federation_id": "feds"},
        {"round": 8},
        {"agent_id": "bob"},
        {"base_model_sha256": bytes(32)},
        {"commitments_sha256": bytes(32)},
        {"party": "dolmen"},
        {"commitment": bytes(48)},
        # What one field loses the next one gains.
        {"federation_id": "feda", "agent_id": "nn"},
    ]
    described = []
    for changes in others:
        kept = {"party": party, "commitment": commitment} | changes
        changed = (kept.pop("party"), kept.pop("commitment"))
        described.append(
            {
                "changes": hexed(changes),
                **describe_place(make_update(**kept), *changed, key),
            }
        )
    return {
        "domain": SHARE_DOMAIN.hex(),
        "update": {
            **{name: getattr(update, name) for name in NAMES},
            "base_model_sha256": update.base_model_sha256.hex(),
            "commitments_sha256": update.commitments.sha256.hex(),
        },
        "party": party,
        "commitment": commitment.hex(),
        "sealing_key": key.hex(),
        **describe_place(update, party, commitment, key),
        "others": described,
    }


def render(vectors):
    """Return a file's text."""
    return json.dumps(vectors, indent=1) + "\n"


def build_all():
    """Return the text of each file, by name."""
    state = Round()
    return {
        "links": render(build_links(state)),
        "partial": render(build_partial(state)),
        "place": render(build_place()),
    }


def main():
    """Write all files."""
    for name, text in build_all().items():
        (FOLDER / f"{name}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
