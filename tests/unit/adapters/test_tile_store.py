"""A directory of tiles survives everything that can happen to it."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from adapters.tile_store import TileStore, TileStoreError, mirror
from ledger import merkle, tiles
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import CompactRange, leaf_hash
from ledger.signing import SigningKey
from ledger.tiles import TilePath
from tests import trees

LOG = SigningKey(b"l" * 32)
ENTRIES = [b"entry %d" % i for i in range(66_000)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
OTHER_ENTRIES = [b"other %d" % i for i in range(1_000)]
OTHER_LEAVES = [leaf_hash(entry) for entry in OTHER_ENTRIES]


def note(leaves):
    return sign_checkpoint(Checkpoint("log", len(leaves), merkle.root(leaves)), LOG)


def grow(store, size, *, publish=True):
    store.append(ENTRIES[store.size : size], LEAVES[store.size : size])
    if publish:
        store.publish(note(LEAVES[:size]))


def filled(directory, *sizes):
    store = TileStore(directory, sync=False)
    for size in sizes:
        grow(store, size)
    return store


def check(store, entries, leaves):
    """Check everything that a store says against the log that it should hold."""
    size = len(leaves)
    assert store.size == size
    assert store.tree() == CompactRange().extend(leaves)
    for index in {0, size // 2, 255, 256, size - 1} & set(range(size)):
        assert store.read_entries(index // 256)[index % 256] == entries[index]
        proof = store.inclusion_proof(index)
        assert proof == trees.inclusion_proof(index, leaves)
        proof = store.consistency_proof(index + 1)
        assert proof == trees.consistency_proof(index + 1, leaves)
    found = [e for i in range(-(-size // 256)) for e in store.read_entries(i)]
    assert found == entries[:size]


def files_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "sizes", [(0,), (1,), (5, 9), (255, 256, 257), (300, 600), (1, 2, 3, 512, 513)]
)
def test_what_was_published_is_found_again(tmp_path, sizes):
    store = filled(tmp_path / "a" / "b", *sizes)
    size = sizes[-1]
    for opened in (store, TileStore(tmp_path / "a" / "b")):
        check(opened, ENTRIES, LEAVES[:size])
        assert opened.published_size == size
        assert opened.checkpoint() == note(LEAVES[:size])


def test_a_new_store_is_empty(tmp_path):
    store = TileStore(tmp_path / "new")
    assert (store.size, store.published_size, store.checkpoint()) == (0, 0, None)
    assert store.tree() == CompactRange()


def test_the_directory_is_a_tiled_log(tmp_path):
    filled(tmp_path, 300, 600)
    expected = {str(path) for path in tiles.paths_between(0, 600)} | {"checkpoint"}
    files = files_of(tmp_path)
    assert set(files) >= expected
    # What else is there are partial tiles of the earlier checkpoint that still grow.
    assert set(files) - expected == {"tile/1/000.p/1"}
    hashes = dict(tiles.grow_tiles(lambda *_: b"", 0, LEAVES[:600]))
    assert all(files[str(path)] == data for path, data in hashes.items())
    bundles = dict(tiles.grow_bundles(b"", 0, ENTRIES[:600]))
    assert all(files[str(path)] == data for path, data in bundles.items())


def test_a_large_store(tmp_path):
    store = filled(tmp_path, 65_600)
    grow(store, 66_000)
    check(TileStore(tmp_path), ENTRIES, LEAVES)


def test_what_was_not_published_is_forgotten(tmp_path):
    store = filled(tmp_path, 250)
    grow(store, 600, publish=False)
    check(store, ENTRIES, LEAVES[:600])
    assert store.published_size == 250
    check(TileStore(tmp_path), ENTRIES, LEAVES[:250])


def test_an_earlier_tree_can_be_published(tmp_path):
    store = filled(tmp_path, 250)
    grow(store, 700, publish=False)
    for size in (251, 300, 300, 512):
        store.publish(note(LEAVES[:size]))
        assert store.published_size == size
        check(TileStore(tmp_path), ENTRIES, LEAVES[:size])
    check(store, ENTRIES, LEAVES[:700])


def test_cosignatures_can_be_added(tmp_path):
    store = filled(tmp_path, 5)
    grow(store, 7, publish=False)
    cosigned = cosign_checkpoint(note(LEAVES[:5]), "w", SigningKey(bytes(32)), 1)
    store.publish(cosigned)
    assert TileStore(tmp_path).checkpoint() == cosigned


def test_only_checkpoints_of_this_tree_are_published(tmp_path):
    store = filled(tmp_path, 5)
    grow(store, 9, publish=False)
    before = files_of(tmp_path)
    for signed, message in (
        (note(LEAVES[:4]), "size 4; what can be published has 5 to 9"),
        (note(LEAVES[:10]), "size 10; what can be published has 5 to 9"),
        (note(OTHER_LEAVES[:9]), "a checkpoint of root"),
        (note(OTHER_LEAVES[:7]), "a checkpoint of root"),
        (b"hello", "not a checkpoint"),
    ):
        with pytest.raises(TileStoreError, match=message):
            store.publish(signed)
    assert files_of(tmp_path) == before
    store.publish(note(LEAVES[:9]))


def test_a_refused_append_changes_nothing(tmp_path):
    store = filled(tmp_path, 5)
    with pytest.raises(TileStoreError, match="2 entries with 1 leaf hashes"):
        store.append([b"a", b"b"], [bytes(32)])
    with pytest.raises(ValueError, match="65536 bytes"):
        store.append([bytes(65_536)], [bytes(32)])
    with pytest.raises(ValueError, match="32 bytes"):
        store.append([b"a"], [b"short"])
    check(store, ENTRIES, LEAVES[:5])
    store.append([], [])
    grow(store, 6)
    check(TileStore(tmp_path), ENTRIES, LEAVES[:6])


def test_an_abandoned_growth_leaves_no_trace_in_what_is_read(tmp_path):
    filled(tmp_path, 250)
    abandoned = TileStore(tmp_path, sync=False)
    entries = [*ENTRIES[:250], *OTHER_ENTRIES]
    leaves = [*LEAVES[:250], *OTHER_LEAVES]
    abandoned.append(entries[250:600], leaves[250:600])
    # As if it had crashed half-way: partial tiles of sizes that are never published.
    for size in (252, 300, 520):
        for path in tiles.paths_between(250, size):
            target = tmp_path / str(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(abandoned.read(path))
    store = TileStore(tmp_path, sync=False)
    check(store, ENTRIES, LEAVES[:250])
    for size in (251, 253, 300, 600):
        grow(store, size)
        for opened in (store, TileStore(tmp_path)):
            check(opened, ENTRIES, LEAVES[:size])
    for size in (252, 300, 520):
        assert store.inclusion_proof(251, size) == trees.inclusion_proof(
            251, LEAVES[:size]
        )


def test_what_is_not_there_is_said(tmp_path):
    store = filled(tmp_path, 300)
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"size 300 has no bundle {index}"):
            store.read_entries(index)
    for path in (TilePath(0, 1, 45), TilePath(0, 2, 1), TilePath(None, 1)):
        with pytest.raises(IndexError, match=f"size 300 has no {path}"):
            store.read(path)
    for size in (-1, 301):
        with pytest.raises(ValueError, match=f"never had a tree of size {size}"):
            store.inclusion_proof(0, size)
        with pytest.raises(ValueError, match="tree of size"):
            store.consistency_proof(1, size)
    with pytest.raises(ValueError, match="no leaf 300"):
        store.inclusion_proof(300)
    with pytest.raises(ValueError, match="no tree"):
        store.consistency_proof(0)


def test_narrower_tiles_are_cut_from_wider_ones(tmp_path):
    store = filled(tmp_path, 300)
    assert store.read(TilePath(0, 1, 3)) == b"".join(LEAVES[256:259])
    assert store.read(TilePath(0, 0, 3)) == b"".join(LEAVES[:3])
    assert store.read(TilePath(None, 0, 3)) == tiles.encode_entries(ENTRIES[:3])
    # A full tile stands in for a partial one when the store is opened, too.
    other = filled(tmp_path / "other", 512)
    for path in ("tile/0/001", "tile/entries/001"):
        shutil.rmtree(tmp_path / f"{path}.p")
        (tmp_path / path).write_bytes(other.read(tiles.parse_path(path)))
    check(TileStore(tmp_path), ENTRIES, LEAVES[:300])


@pytest.mark.parametrize(
    "path",
    ["tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44", "checkpoint"],
)
def test_a_damaged_edge_is_found_when_opening(tmp_path, path):
    filled(tmp_path, 300)
    good = (tmp_path / path).read_bytes()
    bad = [good[:-1], good + b"\0", b"", good[:20] + b"!" + good[21:]]
    for data in bad:
        (tmp_path / path).write_bytes(data)
        with pytest.raises(TileStoreError, match="is damaged"):
            TileStore(tmp_path)
    (tmp_path / path).unlink()
    if path == "checkpoint":
        assert TileStore(tmp_path).size == 0
    else:
        with pytest.raises(TileStoreError, match="is missing; delete it"):
            TileStore(tmp_path)


def test_damage_elsewhere_is_found_when_reading(tmp_path):
    store = filled(tmp_path, 300)
    bundle, tile = tmp_path / "tile/entries/000", tmp_path / "tile/0/000"
    good = bundle.read_bytes()
    bundle.write_bytes(good.replace(b"entry 9", b"entry 8", 1))
    with pytest.raises(TileStoreError, match="entry 9 does not have its leaf's hash"):
        store.read_entries(0)
    bundle.write_bytes(good[:-1])
    with pytest.raises(TileStoreError, match="a bundle ends within"):
        store.read_entries(0)
    bundle.unlink()
    with pytest.raises(TileStoreError, match="tile/entries/000 is missing"):
        store.read_entries(0)
    good = tile.read_bytes()
    for place in (9 * 32, 8 * 32, 200 * 32):
        tile.write_bytes(good[:place] + b"!" + good[place + 1 :])
        with pytest.raises(TileStoreError, match="contradict each other"):
            store.inclusion_proof(9)
    with pytest.raises(TileStoreError, match="contradict each other"):
        store.consistency_proof(100)
    tile.write_bytes(good[:-1])
    with pytest.raises(TileStoreError, match="a tile of width 256"):
        store.inclusion_proof(9)
    tile.unlink()
    with pytest.raises(TileStoreError, match="tile/0/000 is missing"):
        store.inclusion_proof(9)


class CrashError(Exception):
    """The machine stops here."""


def as_method(replacement):
    """Return a function that becomes a method: bound methods would lose the path."""

    def method(path, *args, **kwargs):
        return replacement(path, *args, **kwargs)

    return method


class Machine:
    """Counts what a store does to the disk, and stops at one of these steps.

    With ``lose`` everything goes that was not synced: bytes of files, and the names in
    directories.
    """

    def __init__(self, root, monkeypatch, stop_at=None):
        self.root, self.stop_at = root, stop_at
        self.steps, self.num_syncs = 0, 0
        self.synced = set()
        self.renamed = {}  # target: what was there before; until its directory syncs
        self.made = set()
        self._fsync, self._replace = os.fsync, Path.replace
        self._mkdir = Path.mkdir
        monkeypatch.setattr(os, "fsync", self.fsync)
        monkeypatch.setattr(Path, "replace", as_method(self.replace))
        monkeypatch.setattr(Path, "mkdir", as_method(self.mkdir))

    def step(self):
        if self.steps == self.stop_at:
            raise CrashError
        self.steps += 1

    def fsync(self, descriptor):
        self.step()
        self.num_syncs += 1
        self._fsync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            for target in [t for t in self.renamed if t.parent == path]:
                del self.renamed[target]
            self.made -= {made for made in self.made if made.parent == path}
        else:
            self.synced.add(path.stat().st_ino)

    def replace(self, source, target):
        self.step()
        before = target.read_bytes() if target.exists() else None
        self.renamed.setdefault(target, before)
        return self._replace(source, target)

    def mkdir(self, path, *args, **kwargs):
        self.step()
        missing = [p for p in (path, *path.parents) if not p.exists()]
        self._mkdir(path, *args, **kwargs)
        self.made.update(missing)

    def lose(self, known):
        for path in self.root.rglob("*"):
            if path.is_file() and path.stat().st_ino not in self.synced | known:
                path.write_bytes(b"")
        for target, before in self.renamed.items():
            if before is None:
                target.unlink(missing_ok=True)
            else:
                target.write_bytes(before)
        for made in self.made:
            shutil.rmtree(made, ignore_errors=True)


def run_until(root, monkeypatch, stop_at, *, lose):
    """Publish 250 leaves, then 600 on a machine that stops; return what is there."""
    filled(root, 250)
    known = {path.stat().st_ino for path in root.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        machine = Machine(root, patch, stop_at)
        finished = False
        with suppress(CrashError):
            store = TileStore(root)
            grow(store, 400, publish=False)
            grow(store, 600)
            finished = True
    if lose:
        machine.lose(known)
    return finished, machine


@pytest.mark.parametrize("lose", [False, True])
def test_a_crash_at_any_step_loses_nothing_published(tmp_path, monkeypatch, lose):
    sizes = []
    for stop_at in range(1_000):
        root = tmp_path / str(stop_at)
        finished, _ = run_until(root, monkeypatch, stop_at, lose=lose)
        store = TileStore(root, sync=False)
        assert store.size in {250, 600}
        sizes.append(store.size)
        check(store, ENTRIES, LEAVES[: store.size])
        # Whatever was left, the log grows again, even into another one.
        if store.size == 250:
            store.append(OTHER_ENTRIES[:270], OTHER_LEAVES[:270])
            leaves = [*LEAVES[:250], *OTHER_LEAVES[:270]]
            store.publish(note(leaves))
            entries = [*ENTRIES[:250], *OTHER_ENTRIES[:270]]
            check(TileStore(root, sync=False), entries, leaves)
        if finished:
            break
    assert len(sizes) > 10
    assert sizes == sorted(sizes)
    assert sizes[-1] == 600


def test_what_is_published_is_durable_when_publish_returns(tmp_path, monkeypatch):
    finished, machine = run_until(tmp_path / "log", monkeypatch, None, lose=True)
    assert finished
    assert machine.renamed == {}
    check(TileStore(tmp_path / "log"), ENTRIES, LEAVES[:600])


def test_a_block_costs_few_syncs(tmp_path, monkeypatch):
    store = TileStore(tmp_path)
    grow(store, 10)
    machine = Machine(tmp_path, monkeypatch)
    grow(store, 20)
    # A tile, a bundle and the checkpoint, and the directory of each.
    assert machine.num_syncs == 6
    assert len(machine.synced) == 3


def test_without_sync_nothing_is_synced(tmp_path, monkeypatch):
    machine = Machine(tmp_path, monkeypatch)
    filled(tmp_path / "log", 10, 300)
    assert machine.num_syncs == 0


def test_after_an_error_the_same_store_goes_on(tmp_path, monkeypatch):
    for stop_at in range(1_000):
        root = tmp_path / str(stop_at)
        store = filled(root, 250)
        with monkeypatch.context() as patch:
            machine = Machine(root, patch, stop_at)
            with suppress(CrashError):
                grow(store, 600)
        if store.size == 250:
            store.append(ENTRIES[250:600], LEAVES[250:600])
        store.publish(note(LEAVES[:600]))
        check(TileStore(root), ENTRIES, LEAVES[:600])
        if machine.steps < stop_at:
            break


class Bucket(dict):
    """An object store that can stop; remembers the order."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.order, self.types = stop_at, [], {}

    def put(self, path, data, content_type):
        if len(self.order) == self.stop_at:
            raise CrashError
        self.order.append(path)
        self.types[path] = content_type
        self[path] = data


def test_a_mirror_is_the_directory(tmp_path):
    store = filled(tmp_path, 300, 600)
    grow(store, 700, publish=False)
    bucket = Bucket()
    assert mirror(store, bucket.put) == 600
    expected = {str(path) for path in tiles.paths_between(0, 600)} | {"checkpoint"}
    assert set(bucket) == expected
    assert bucket.items() <= files_of(tmp_path).items()
    assert bucket.order[-1] == "checkpoint"
    assert bucket.types.pop("checkpoint") == "text/plain; charset=utf-8"
    assert set(bucket.types.values()) == {"application/octet-stream"}


def test_a_mirror_grows_with_the_store(tmp_path):
    store, bucket, size = TileStore(tmp_path, sync=False), Bucket(), 0
    assert mirror(store, bucket.put) == 0
    assert bucket == {}
    for target in (5, 255, 256, 300, 300, 700):
        grow(store, target)
        bucket.order.clear()
        size = mirror(store, bucket.put, old_size=size)
        assert size == target
        assert {str(path) for path in tiles.paths_between(0, size)} <= set(bucket)
        assert bucket.items() >= {"checkpoint": store.checkpoint()}.items()
    assert bucket.order[0] == "tile/entries/001"
    assert mirror(store, bucket.put, old_size=700) == 700
    assert bucket.order[-2:] == ["checkpoint", "checkpoint"]
    with pytest.raises(ValueError, match="no tree of size 700 grew"):
        mirror(store, bucket.put, old_size=701)


def test_a_mirror_that_stops_is_consistent_and_goes_on(tmp_path):
    store = filled(tmp_path, 600)
    total = len(list(tiles.paths_between(0, 600))) + 1
    for stop_at in range(total):
        bucket = Bucket(stop_at)
        with pytest.raises(CrashError):
            mirror(store, bucket.put)
        assert "checkpoint" not in bucket
        bucket.stop_at = None
        assert mirror(store, bucket.put) == 600
        assert len(bucket) == total
