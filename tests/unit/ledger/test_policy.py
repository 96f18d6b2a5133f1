"""Who must have signed: policies that are read, kept and refused."""

import json
from itertools import combinations

import pytest

from ledger import policy as p
from ledger.checkpoint import (
    Checkpoint,
    InvalidCheckpointError,
    cosign_checkpoint,
    sign_checkpoint,
)
from ledger.note import InvalidNoteError, KeyType, VerifierKey, parse_vkey
from ledger.policy import InvalidPolicyError, QuorumError, make_bft_policy, parse_policy
from ledger.signing import SigningKey
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
VECTOR = json.loads((FOLDER / "three_leaves.json").read_text(encoding="utf-8"))

ORIGIN = "log.example/a"
LOG = SigningKey(b"l" * 32)
OTHER_LOG = SigningKey(b"m" * 32)
KEYS = [SigningKey(bytes([i]) * 32) for i in range(10)]


def vkey(name, key, key_type=KeyType.COSIGNATURE_V1):
    return VerifierKey(name, key_type, key.public_key).to_vkey()


LOG_VKEY = vkey(ORIGIN, LOG, KeyType.ED25519)
VKEYS = [vkey(f"n{i}.example", key) for i, key in enumerate(KEYS)]
VERIFIERS = [parse_vkey(line) for line in VKEYS]
W = [f"witness w{i} {line}\n" for i, line in enumerate(VKEYS)]
HEAD = f"log {LOG_VKEY}\n"
CHECKPOINT = Checkpoint(ORIGIN, 7, bytes(range(32)))
SIGNED = sign_checkpoint(CHECKPOINT, LOG)


def cosigned(*witnesses):
    note = SIGNED
    for i in witnesses:
        note = cosign_checkpoint(note, f"n{i}.example", KEYS[i], 1_700_000_000 + i)
    return note


def parse(text):
    return parse_policy(text.encode("utf-8", "surrogateescape"))


def bft(n, url="https://n.example/"):
    nodes = [(f"w{i}", VKEYS[i], url) for i in range(n)]
    return make_bft_policy(LOG_VKEY, nodes)


NESTED = (
    HEAD
    + "".join(W[:6])
    + "group X 2 w0 w1 w2\n"
    + "group Y any w3 w4 w5\n"
    + "group both all X Y\n"
    + "quorum both\n"
)


def test_the_specification_s_example():
    policy = parse(NESTED)
    assert [log.key.to_vkey() for log in policy.logs] == [LOG_VKEY]
    assert [witness.name for witness in policy.witnesses] == [f"w{i}" for i in range(6)]
    assert policy.groups == (
        p.Group("X", 2, ("w0", "w1", "w2")),
        p.Group("Y", 1, ("w3", "w4", "w5")),
        p.Group("both", 2, ("X", "Y")),
    )
    for n in range(7):
        for signers in combinations(range(6), n):
            enough = sum(i < 3 for i in signers) >= 2 and any(i >= 3 for i in signers)
            assert policy.is_satisfied(VERIFIERS[i] for i in signers) == enough


def test_spaces_comments_and_urls():
    text = (
        "# a comment: é\n\n \t \n"
        f" \tlog\t {LOG_VKEY}  https://log.example/ \n"
        f"\t# another\n{W[0].rstrip()} https://n0.example/\t\n"
        "quorum  w0"
        "\n"
    )
    policy = parse(text)
    assert policy.logs[0].url == "https://log.example/"
    assert policy.witnesses[0].url == "https://n0.example/"
    assert policy.to_text() == (
        f"log {LOG_VKEY} https://log.example/\n"
        f"witness w0 {VKEYS[0]} https://n0.example/\nquorum w0\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "quorum none\n",
        HEAD + "quorum none\n",
        HEAD + W[0] + "quorum w0\ngroup late any w0\n",
        HEAD + W[0].replace("w0", "group") + "quorum group\n",
        HEAD + W[0].replace("w0", "\udcff") + "quorum \udcff\n",
        HEAD + W[0].replace("w0", "\u2028") + "quorum \u2028\n",
        HEAD + "".join(W) + "group g 10 " + " ".join(f"w{i}" for i in range(10)) + "\n"
        "quorum g\n",
        NESTED,
        bft(4).to_text(),
    ],
)
def test_text_round_trip(text):
    policy = parse(text)
    assert parse(policy.to_text()) == policy


def test_names_are_octets():
    kelvin = HEAD + W[0].replace("w0", "\N{KELVIN SIGN}") + "quorum K\n"
    with pytest.raises(InvalidPolicyError, match="no line before defines 'K'"):
        parse(kelvin)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the quorum is missing"),
        (HEAD + W[0], "line 3: the quorum is missing"),
        ("quorum none", "line 1: does not end in a newline"),
        ("quorum none\n#", "line 2: does not end in a newline"),
        ("quorum none\r\n", "line 1: a control character"),
        ("# \x00\nquorum none\n", "line 1: a control character"),
        ("# \x7f\nquorum none\n", "line 1: a control character"),
        ("Quorum none\n", "line 1: no keyword 'Quorum'"),
        ("quorum\u00a0none\n", "no keyword"),
        ("quorum\n", "line 1: a quorum line has other words"),
        ("quorum none # comment\n", "line 1: a quorum line has other words"),
        ("log\n", "line 1: a log line has other words"),
        (f"log {LOG_VKEY} u v\n", "line 1: a log line has other words"),
        ("witness w\n", "a witness line has other words"),
        (f"witness w {VKEYS[0]} u v\n", "a witness line has other words"),
        ("group g any\n", "a group line has other words"),
        ("log x\n", "line 1: a vkey is name"),
        (f"log {VKEYS[0]}\n", "line 1: .* is not of type ED25519"),
        (f"witness w {LOG_VKEY}\n", "line 1: .* is not of type COSIGNATURE_V1"),
        (HEAD + HEAD, "line 2: the key of .* is there already"),
        (
            HEAD + f"log {vkey('b', LOG, KeyType.ED25519)}\n",
            "line 2: the key of .* is there already",
        ),
        (W[0] + f"witness v {vkey('b', KEYS[0])}\n", "line 2: the key of .* is there"),
        (W[0] + f"witness w0 {VKEYS[1]}\n", "line 2: the name 'w0' is taken"),
        (W[0] + "group w0 any w0\n", "line 2: the name 'w0' is taken"),
        (f"witness none {VKEYS[0]}\n", "line 1: the name 'none' is taken"),
        (W[0] + "group none any w0\n", "line 2: the name 'none' is taken"),
        (W[0] + "group g any none\n", "line 2: no line before defines 'none'"),
        (W[0] + "group g any w1\n" + W[1], "line 2: no line before defines 'w1'"),
        ("group g any g\n", "line 1: no line before defines 'g'"),
        (W[0] + "group g all w0 w0\n", "line 2: 'w0' is a member already"),
        (
            W[0] + W[1] + "group g any w0\ngroup h any w1 w0\n",
            "line 4: 'w0' is a member already",
        ),
        (W[0] + "group g 0 w0\n", "line 2: a threshold is any, all or 1 to 1"),
        (W[0] + "group g 2 w0\n", "line 2: a threshold is any, all or 1 to 1"),
        (W[0] + "group g 01 w0\n", "line 2: a threshold is"),
        (W[0] + "group g +1 w0\n", "line 2: a threshold is"),
        (W[0] + "group g ١ w0\n", "line 2: a threshold is"),
        (W[0] + f"group g {'9' * 5000} w0\n", "line 2: a threshold is"),
        (W[0] + "group g some w0\n", "line 2: a threshold is"),
        ("quorum w0\n" + W[0], "line 1: no line before defines 'w0'"),
        ("quorum none\nquorum none\n", "line 2: a second quorum"),
    ],
)
def test_texts_that_are_no_policy(text, message):
    with pytest.raises(InvalidPolicyError, match=message):
        parse(text)


def test_two_keys_that_a_signature_line_cannot_tell_apart(monkeypatch):
    monkeypatch.setattr("ledger.note.compute_key_id", lambda *_: b"same")
    twins = [f"witness w{i} {vkey('twin', KEYS[i])}\n" for i in range(2)]
    with pytest.raises(InvalidPolicyError, match="line 2: another key is called like"):
        parse("".join(twins))


def test_the_largest_policy():
    line = b"quorum none\n"
    padding = b"#" * (p.MAX_POLICY_SIZE_BYTES - len(line) - 1) + b"\n"
    assert parse_policy(padding + line) == parse_policy(line)
    with pytest.raises(InvalidPolicyError, match="1000001 bytes; at most 1000000"):
        parse_policy(b"#" + padding + line)


def test_a_quorum_of_one_witness_and_of_none():
    one = parse(HEAD + W[0] + W[1] + "quorum w1\n")
    assert one.is_satisfied([VERIFIERS[1]])
    assert not one.is_satisfied([VERIFIERS[0]])
    none = parse(HEAD + W[0] + "quorum none\n")
    assert none.is_satisfied([])
    assert none.verify(SIGNED).cosignatures == ()


@pytest.mark.parametrize(
    ("n", "quorum"),
    [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (7, 5), (8, 6), (10, 7)],
)
def test_a_bft_quorum_is_two_thirds_and_more(n, quorum):
    policy = bft(n)
    assert policy.groups == (p.Group("bft", quorum, tuple(f"w{i}" for i in range(n))),)
    assert policy.quorum == "bft"
    assert not policy.is_satisfied(VERIFIERS[: quorum - 1])
    assert policy.is_satisfied(VERIFIERS[n - quorum : n])
    # Any two quorums share more nodes than may lie; the honest alone are one.
    assert 2 * quorum - n > (n - 1) // 3
    assert n - (n - 1) // 3 >= quorum


def test_a_bft_policy_as_written():
    nodes = [("w0", VKEYS[0], "https://n0/"), ("w1", VKEYS[1], "")]
    assert make_bft_policy(LOG_VKEY, nodes).to_text() == (
        f"log {LOG_VKEY}\nwitness w0 {VKEYS[0]} https://n0/\n"
        f"witness w1 {VKEYS[1]}\ngroup bft 2 w0 w1\nquorum bft\n"
    )


@pytest.mark.parametrize(
    ("log_vkey", "nodes", "message"),
    [
        (LOG_VKEY, [], "a group line has other words"),
        (LOG_VKEY, [("", VKEYS[0], "")], "not one word"),
        (LOG_VKEY, [("a b", VKEYS[0], "")], "not one word"),
        (LOG_VKEY, [("a\nquorum", VKEYS[0], "")], "not one word"),
        (LOG_VKEY, [("a", VKEYS[0], "u\nquorum none")], "not one word"),
        (LOG_VKEY, [("bft", VKEYS[0], "")], "the name 'bft' is taken"),
        (LOG_VKEY, [("a", VKEYS[0], ""), ("a", VKEYS[1], "")], "'a' is taken"),
        (LOG_VKEY, [("a", VKEYS[0], ""), ("b", VKEYS[0], "")], "there already"),
        (VKEYS[0], [("a", VKEYS[1], "")], "not of type ED25519"),
    ],
)
def test_no_bft_policy_of_these(log_vkey, nodes, message):
    with pytest.raises(InvalidPolicyError, match=message):
        make_bft_policy(log_vkey, nodes)


def test_a_quorum_is_verified():
    verified = bft(4).verify(cosigned(3, 0, 2), ORIGIN)
    assert verified.checkpoint == CHECKPOINT
    assert [s.key for s in verified.cosignatures] == [VERIFIERS[i] for i in (3, 0, 2)]
    assert [s.timestamp_s % 10 for s in verified.cosignatures] == [3, 0, 2]


def test_missing_witnesses_are_named():
    with pytest.raises(QuorumError) as caught:
        bft(4).verify(cosigned(2, 5, 0))
    assert caught.value.signed == ("w0", "w2")
    assert caught.value.missing == ("w1", "w3")
    assert str(caught.value) == (
        "quorum bft is not reached: cosigned by w0, w2; not by w1, w3"
    )
    with pytest.raises(QuorumError, match="cosigned by nobody; not by w0, w1, w2, w3"):
        bft(4).verify(SIGNED)


def test_only_the_quorum_s_witnesses_are_missed():
    policy = parse(NESTED.replace("quorum both", "quorum Y"))
    with pytest.raises(QuorumError) as caught:
        policy.verify(cosigned(0, 1))
    assert (caught.value.signed, caught.value.missing) == ((), ("w3", "w4", "w5"))
    with pytest.raises(QuorumError) as caught:
        parse(NESTED).verify(cosigned(0, 1))
    assert caught.value.signed == ("w0", "w1")
    assert caught.value.missing == ("w2", "w3", "w4", "w5")


def test_one_node_twice_is_one():
    with pytest.raises(QuorumError):
        bft(4).verify(cosigned(0, 0, 1, 1, 0))


def test_other_logs_and_keys_are_refused():
    policy = bft(1)
    full = cosigned(0)
    with pytest.raises(InvalidCheckpointError, match="not of 'other'"):
        policy.verify(full, "other")
    foreign = parse(f"log {vkey('other', LOG, KeyType.ED25519)}\nquorum none\n")
    with pytest.raises(InvalidCheckpointError, match="the policy has no log"):
        foreign.verify(full)
    with pytest.raises(InvalidCheckpointError, match="the policy has no log"):
        parse("quorum none\n").verify(full, ORIGIN)
    forged = sign_checkpoint(CHECKPOINT, OTHER_LOG)
    with pytest.raises(InvalidNoteError, match="no known key"):
        policy.verify(forged)
    forged = cosign_checkpoint(forged, "n0.example", KEYS[0], 1)
    with pytest.raises(InvalidNoteError, match="no key of log"):
        policy.verify(forged)


def test_a_log_of_the_policy_cannot_speak_for_another():
    other = vkey("log.example/b", OTHER_LOG, KeyType.ED25519)
    policy = parse(HEAD + f"log {other}\nquorum none\n")
    assert policy.verify(SIGNED).checkpoint == CHECKPOINT
    with pytest.raises(InvalidNoteError, match="no known key"):
        policy.verify(sign_checkpoint(CHECKPOINT, OTHER_LOG, "log.example/b"))


def test_either_key_of_a_log_will_do():
    second = vkey(ORIGIN, OTHER_LOG, KeyType.ED25519)
    policy = parse(HEAD + f"log {second}\nquorum none\n")
    for key in (LOG, OTHER_LOG):
        assert policy.verify(sign_checkpoint(CHECKPOINT, key)).checkpoint == CHECKPOINT


def test_the_ledger_s_vector():
    policy = make_bft_policy(
        VECTOR["log_vkey"], [("node0", VECTOR["witness_vkey"], "https://node0.example")]
    )
    note = VECTOR["cosigned_checkpoint"].encode()
    verified = policy.verify(note, VECTOR["log_name"])
    assert verified.checkpoint.root.hex() == VECTOR["root_3"]
    with pytest.raises(QuorumError):
        policy.verify(VECTOR["checkpoint"].encode())


ENOUGH = cosigned(0, 1, 2)


@pytest.mark.parametrize("place", range(len(ENOUGH)))
def test_any_altered_byte_of_a_note_is_refused(place):
    for bit in (0x01, 0x20):
        altered = bytearray(ENOUGH)
        altered[place] ^= bit
        with pytest.raises(InvalidNoteError):
            bft(4).verify(bytes(altered))


def test_altered_lines_of_a_note_are_refused():
    lines = ENOUGH.decode().splitlines(keepends=True)
    for place, line in enumerate(lines):
        before, after = lines[:place], lines[place + 1 :]
        with pytest.raises(InvalidNoteError):
            bft(4).verify("".join([*before, *after]).encode())
        if not line.startswith("—"):
            with pytest.raises(InvalidNoteError):
                bft(4).verify("".join([*before, line, *lines[place:]]).encode())
        if after and not (line.startswith("—") and after[0].startswith("—")):
            swapped = "".join([*before, after[0], line, *after[1:]]).encode()
            with pytest.raises(InvalidNoteError):
                bft(4).verify(swapped)


def test_an_altered_policy_is_another_one():
    policy = bft(4)
    text = policy.to_text().encode()
    too_few = cosigned(0, 1)
    for place in range(len(text)):
        for bit in (0x01, 0x04, 0x10, 0x20, 0x80):
            altered = bytearray(text)
            altered[place] ^= bit
            try:
                other = parse_policy(bytes(altered))
            except InvalidPolicyError:
                continue
            assert other != policy
            if other.groups == policy.groups:
                with pytest.raises(InvalidNoteError):
                    other.verify(too_few)


def test_altered_lines_make_another_policy():
    policy = bft(4)
    lines = policy.to_text().splitlines(keepends=True)
    for place, line in enumerate(lines):
        before, after = lines[:place], lines[place + 1 :]
        for altered in (
            [*before, *after],
            [*before, line, line, *after],
            [*before, *after[:1], line, *after[1:]] if after else [],
        ):
            try:
                other = parse("".join(altered))
            except InvalidPolicyError:
                continue
            # Only the order of logs and witnesses can change without an error.
            same = sorted("".join(altered)) == sorted(policy.to_text())
            assert same or other != policy
            with pytest.raises(InvalidNoteError):
                other.verify(cosigned(0, 1))
