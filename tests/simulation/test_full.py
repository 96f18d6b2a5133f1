"""A change to any source of the consensus has the full simulation played again."""

import hashlib

from tests.simulation import full


def test_a_source_that_is_changed_added_or_removed_is_noticed(tmp_path, monkeypatch):
    record = tmp_path / "full.sha256"
    monkeypatch.setattr(full, "RECORD", record)
    monkeypatch.setattr(full, "ROOT", tmp_path)
    votes, world = tmp_path / "ledger/votes.py", tmp_path / "tests/simulation/world.py"
    for path in (votes, world):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"pass\n")
    assert not full.has_passed()
    record.write_text(full.list_sources())
    assert full.has_passed()

    votes.write_bytes(b"pass \n")
    assert not full.has_passed()
    votes.write_bytes(b"pass\n")
    assert full.has_passed()
    (votes.parent / "new.py").touch()
    assert not full.has_passed()
    (votes.parent / "new.py").unlink()
    world.unlink()
    assert not full.has_passed()


def test_the_record_is_what_sha256sum_writes():
    for line in full.list_sources().splitlines():
        digest, _, name = line.partition("  ")
        content = (full.ROOT / name).read_bytes()
        assert digest == hashlib.sha256(content).hexdigest()
