"""Outside witnesses cosign our growth, refuse all else, and do not forget."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ledger.checkpoint import parse_checkpoint, sign_checkpoint, verify_checkpoint
from ledger.merkle import EMPTY_ROOT
from ledger.note import parse_vkey
from tests.interop import judges
from tests.interop.judges import Witness
from tests.interop.programs import Programs
from tests.interop.publication import Publication, make_key

Run = Callable[[Programs, Path, Publication], AbstractContextManager[Witness]]
WITNESSES: dict[str, Run] = {
    "omniwitness": judges.run_omniwitness,
    "litewitness": judges.run_litewitness,
}


@pytest.fixture(params=WITNESSES)
def witness(
    request: pytest.FixtureRequest,
    programs: Programs,
    published: Publication,
    tmp_path: Path,
) -> Iterator[Witness]:
    """A witness that has seen nothing of the log yet."""
    run = WITNESSES[request.param]
    with run(programs, tmp_path / "witness", published) as running:
        yield running


def test_it_cosigns_growth(
    witness: Witness, programs: Programs, published: Publication
) -> None:
    size = published.size
    for old_size, new_size in [(0, 1), (1, size // 2), (size // 2, size), (size, size)]:
        note = published.sign_prefix(new_size)
        proof = published.prove_growth(old_size, new_size)
        answer = witness.add_checkpoint(old_size, proof, note)
        assert answer["status"] == 200, answer
        verified = verify_checkpoint(
            note + answer["body"].encode(),
            parse_vkey(published.vkey),
            published.origin,
            [witness.key],
        )
        assert [c.key for c in verified.cosignatures] == [witness.key]


def test_its_cosignature_counts_in_a_policy(
    witness: Witness, programs: Programs, published: Publication, tmp_path: Path
) -> None:
    policy, checkpoint = tmp_path / "policy", tmp_path / "checkpoint"
    policy.write_text(
        published.policy_with_quorum(
            "both",
            f"witness outside {witness.key.to_vkey()} https://outside.example/",
            "group both all bft outside",
        )
    )
    note = published.checkpoint.read_bytes()
    checkpoint.write_bytes(note)
    assert not judges.verifier(programs, "checkpoint", policy, checkpoint).accepted

    # The nodes' cosignatures are in the request, too: a witness ignores them.
    answer = witness.add_checkpoint(0, [], note)
    checkpoint.write_bytes(note + answer["body"].encode())
    verdict = judges.verifier(programs, "checkpoint", policy, checkpoint)
    assert verdict.accepted, verdict.output


def test_it_says_what_it_has_to_who_is_stale(
    witness: Witness, published: Publication
) -> None:
    size, half = published.size, published.size // 2
    assert witness.add_checkpoint(0, [], published.sign_prefix(half))["status"] == 200
    for old_size in (0, 1, half + 1):
        proof = published.prove_growth(old_size)
        answer = witness.add_checkpoint(old_size, proof, published.sign_prefix(size))
        assert answer == {
            "status": 409,
            "content_type": "text/x.tlog.size",
            "body": f"{half}\n",
        }


def test_it_refuses_a_fork(witness: Witness, published: Publication) -> None:
    size, half = published.size, published.size // 2
    assert witness.add_checkpoint(0, [], published.sign_prefix(half))["status"] == 200
    proof = published.prove_growth(half)
    wrong = [*proof[:-1], bytes(32)]
    other = published.sign(half, bytes(32))
    for what, answer in {
        "another root": witness.add_checkpoint(half, proof, _lie(published, size)),
        "another root at the size that it has": witness.add_checkpoint(half, [], other),
        "a wrong proof": witness.add_checkpoint(
            half, wrong, published.sign_prefix(size)
        ),
        "no proof": witness.add_checkpoint(half, [], published.sign_prefix(size)),
    }.items():
        assert answer["status"] == 422, f"{what}: {answer}"
    answer = witness.add_checkpoint(half, proof, published.sign_prefix(size))
    assert answer["status"] == 200, "what it refused has changed nothing"


def _lie(published: Publication, size: int) -> bytes:
    return published.sign(size, EMPTY_ROOT)


def test_it_refuses_a_shrinking_log(witness: Witness, published: Publication) -> None:
    half = published.size // 2
    assert witness.add_checkpoint(0, [], published.sign_prefix(half))["status"] == 200
    answer = witness.add_checkpoint(half, [], published.sign_prefix(half - 1))
    assert answer["status"] == 400, answer
    assert (
        witness.add_checkpoint(half, [], published.sign_prefix(half))["status"] == 200
    )


@pytest.mark.parametrize(
    ("witness", "statuses"),
    [
        # The specification's: 404 unknown origin, 403 no signature of the log.
        ("litewitness", (404, 403)),
        ("omniwitness", (500, 500)),
    ],
    indirect=["witness"],
)
def test_it_refuses_strangers(
    witness: Witness, published: Publication, statuses: tuple[int, int]
) -> None:
    unknown, unsigned = statuses
    checkpoint = published.note().text.replace(published.origin, "folkmoot/other", 1)
    stranger = _sign_other(checkpoint, "folkmoot/other")
    assert witness.add_checkpoint(0, [], stranger)["status"] == unknown
    forged = _sign_other(published.note().text, published.origin)
    assert witness.add_checkpoint(0, [], forged)["status"] == unsigned
    assert witness.add_checkpoint(0, [], b"no note")["status"] == unknown


def _sign_other(text: str, name: str) -> bytes:
    """Sign a checkpoint's text with the key of somebody else."""
    return sign_checkpoint(parse_checkpoint(text), make_key("MALLORY"), name)


def test_it_remembers_after_kill_9(witness: Witness, published: Publication) -> None:
    size, half = published.size, published.size // 2
    assert witness.add_checkpoint(0, [], published.sign_prefix(half))["status"] == 200
    witness.kill()
    witness.start()
    answer = witness.add_checkpoint(0, [], published.sign_prefix(size))
    assert (answer["status"], answer["body"]) == (409, f"{half}\n")
    proof = published.prove_growth(half)
    answer = witness.add_checkpoint(half, proof, published.sign_prefix(size))
    assert answer["status"] == 200, answer
