"""Tiles hold the tree: what they are called, how they grow, what they prove."""

import pytest

from ledger import merkle, tiles
from ledger.merkle import CompactRange, leaf_hash
from ledger.tiles import InvalidTileError, TilePath, parse_path
from tests import trees

LEAVES = [leaf_hash(i.to_bytes(4, "big")) for i in range(66_100)]
ENTRIES = [i.to_bytes(4, "big") for i in range(700)]


class Files(dict):
    """Tiles by path; remembers what was read."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads = []

    def read_tile(self, level, index, width):
        self.reads.append((level, index, width))
        return self[tiles.tile_path(level, index, width)]

    def grow(self, old_size, leaves):
        grown = list(tiles.grow_tiles(self.read_tile, old_size, leaves))
        self.update((str(path), data) for path, data in grown)
        return grown


def all_tiles(size):
    files = Files()
    files.grow(0, LEAVES[:size])
    return files


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("tile/0/000", (0, 0, 256)),
        ("tile/0/x001/067.p/5", (0, 1067, 5)),
        ("tile/1/x001/x234/067", (1, 1_234_067, 256)),
        ("tile/7/000.p/127", (7, 0, 127)),
        ("tile/entries/999", (None, 999, 256)),
        ("tile/entries/x001/000.p/255", (None, 1000, 255)),
        ("tile/0/x036/x028/x797/x018/x963/967.p/255", (0, 2**55 - 1, 255)),
    ],
)
def test_paths_there_and_back(path, named):
    level, index, width = named
    if level is None:
        assert str(tiles.TilePath(None, index, width)) == path
    else:
        assert tiles.tile_path(level, index, width) == path
    assert parse_path(path) == TilePath(*named)
    assert parse_path(path).is_partial == (width < 256)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "tile/0/0",
        "tile/0/00",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/x000/x001/001",
        "tile/0/001/067",
        "tile/0/x001/x067",
        "tile/0/X001/067",
        "tile/00/000",
        "tile/01/000",
        "tile/+1/000",
        "tile/-1/000",
        "tile/64/000",
        "tile/8/000",
        "tile/8/000.p/1",
        "tile/7/000",
        "tile/7/000.p/128",
        "tile/0/000.p/0",
        "tile/0/000.p/05",
        "tile/0/000.p/256",
        "tile/0/000.p/",
        "tile/0/000.p",
        "tile/0/000.p/5.tmp",
        "tile/0/000/",
        "/tile/0/000",
        "tile//0/000",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/0/٠٠٠",
        "tile/entries/x000/000",
        "tile/Entries/000",
        "tile/0/x036/x028/x797/x018/x963/967",
        "tile/0/x036/x028/x797/x018/x963/968.p/1",
        "tile/0/x001/x001/x001/x001/x001/x001/001",
    ],
)
def test_other_spellings_are_refused(path):
    with pytest.raises(InvalidTileError):
        parse_path(path)


@pytest.mark.parametrize(
    "named", [(0, -1, 256), (-1, 0, 256), (0, 0, 0), (0, 0, 257), (8, 0, 1)]
)
def test_tiles_that_no_tree_has(named):
    with pytest.raises(InvalidTileError, match="no tree has"):
        TilePath(*named)


def test_the_specification_s_example():
    paths = [str(path) for path in tiles.paths_between(0, 70_000)]
    level_0 = [path for path in paths if path.startswith("tile/0/")]
    assert len(level_0) == 274
    assert level_0[-1] == "tile/0/273.p/112"
    assert paths[2 * 274 :] == ["tile/1/000", "tile/1/001.p/17", "tile/2/000.p/1"]
    assert list(map(str, tiles.paths_between(0, 256)))[1:] == [
        "tile/0/000",
        "tile/1/000.p/1",
    ]


def test_sizes_out_of_range():
    for old, new in ((0, -1), (3, 2), (-1, 2), (0, 2**63)):
        with pytest.raises(ValueError, match="size"):
            list(tiles.paths_between(old, new))
    for size in (-1, 2**63):
        with pytest.raises(ValueError, match="tree size"):
            tiles.tree_from_tiles(Files().read_tile, size)
    with pytest.raises(ValueError, match="tree size"):
        list(tiles.grow_tiles(Files().read_tile, 2**63 - 1, [bytes(32)]))
    with pytest.raises(ValueError, match="32 bytes"):
        list(tiles.grow_tiles(Files().read_tile, 0, [b"short"]))


def test_tiles_are_the_definition():
    files = all_tiles(66_000)
    for text, data in files.items():
        path = parse_path(text)
        span = 256**path.level
        for place in (0, path.width // 2, path.width - 1):
            first = (256 * path.index + place) * span
            expected = merkle.root(LEAVES[first : first + span])
            assert data[32 * place : 32 * place + 32] == expected


@pytest.mark.parametrize("step", [1, 7, 255, 256, 257, 600])
def test_growth_in_steps_is_growth_at_once(step):
    size, files = 0, Files()
    bundles = {}
    while size < 600:
        new = min(size + step, 600)
        partial = bundles.get(size // 256, b"") if size % 256 else b""
        grown = [
            *tiles.grow_bundles(partial, size, ENTRIES[size:new]),
            *files.grow(size, LEAVES[size:new]),
        ]
        bundles.update((p.index, d) for p, d in grown if p.level is None)
        assert [path for path, _ in grown] == list(tiles.paths_between(size, new))
        size = new
    at_once = all_tiles(600)
    assert at_once.items() <= files.items()
    assert [tiles.parse_entries(bundles[i], w) for i, w in enumerate((256, 256, 88))]
    joined = b"".join(bundles[i] for i in range(3))
    assert joined == tiles.encode_entries(ENTRIES[:600])


def test_growth_costs_what_is_new():
    files = all_tiles(66_000)
    files.reads.clear()
    grown = files.grow(66_000, LEAVES[66_000:66_001])
    assert files.reads == [(0, 257, 208)]
    assert [str(path) for path, _ in grown] == ["tile/0/257.p/209"]
    assert files.grow(66_001, []) == []
    assert list(tiles.grow_bundles(b"", 66_001, [])) == []


def test_small_trees_from_tiles_are_the_trees():
    tree = CompactRange()
    files = Files()
    for size in range(601):
        assert tiles.tree_from_tiles(files.read_tile, size) == tree
        for index in {0, size // 3, size // 2, size - 2, size - 1} & set(range(size)):
            proof = tiles.inclusion_proof(files.read_tile, index, size)
            assert proof == trees.inclusion_proof(index, LEAVES[:size])
        for old in {1, size // 3, size // 2, size - 1, size} & set(range(1, size + 1)):
            proof = tiles.consistency_proof(files.read_tile, old, size)
            assert proof == trees.consistency_proof(old, LEAVES[:size])
        files.grow(size, LEAVES[size : size + 1])
        tree = tree.append(LEAVES[size])


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 65_792, 66_051])
def test_large_trees_are_proved_from_a_few_tiles(size):
    files = all_tiles(size)
    files.reads.clear()
    assert tiles.tree_from_tiles(files.read_tile, size) == CompactRange().extend(
        LEAVES[:size]
    )
    root = merkle.root(LEAVES[:size])
    for index in (0, 255, 256, 40_000, size - 2, size - 1):
        files.reads.clear()
        proof = tiles.inclusion_proof(files.read_tile, index, size)
        assert len(set(files.reads)) == len(files.reads) <= 6
        merkle.verify_inclusion(
            proof,
            leaf_hash=LEAVES[index],
            leaf_index=index,
            tree_size=size,
            root=root,
        )
    assert proof == trees.inclusion_proof(size - 1, LEAVES[:size])
    for old in (1, 256, 40_001, size - 1):
        files.reads.clear()
        proof = tiles.consistency_proof(files.read_tile, old, size)
        assert len(set(files.reads)) == len(files.reads) <= 6
        merkle.verify_consistency(
            proof,
            old_size=old,
            old_root=merkle.root(LEAVES[:old]),
            new_size=size,
            new_root=root,
        )


def test_a_full_tile_stands_in_for_a_partial_one():
    full = all_tiles(512)

    def read_full(level, index, width):
        if level == 0:
            return full[tiles.tile_path(0, index)]
        return all_tiles(300)[tiles.tile_path(level, index, width)]

    proof = tiles.inclusion_proof(read_full, 290, 300)
    assert proof == trees.inclusion_proof(290, LEAVES[:300])


def test_no_proof_of_what_is_not_there():
    files = all_tiles(10)
    for index, size in ((10, 10), (-1, 10), (0, 0)):
        with pytest.raises(ValueError, match="no leaf"):
            tiles.inclusion_proof(files.read_tile, index, size)
    for old, new in ((0, 10), (11, 10), (0, 0), (-1, 10)):
        with pytest.raises(ValueError, match="no tree"):
            tiles.consistency_proof(files.read_tile, old, new)


@pytest.mark.parametrize("length", [0, 31, 32 * 9, 32 * 11, 32 * 255, 32 * 257])
def test_a_tile_of_another_length_is_refused(length):
    for use in (
        lambda read: tiles.tree_from_tiles(read, 10),
        lambda read: tiles.inclusion_proof(read, 0, 10),
        lambda read: list(tiles.grow_tiles(read, 10, LEAVES[10:11])),
    ):
        with pytest.raises(InvalidTileError, match="width 10 is 320 bytes"):
            use(lambda *_: bytes(length))


def test_bundles_there_and_back():
    for entries in ([b""], [b"a", b"", b"c" * 65_535], ENTRIES[:256]):
        data = tiles.encode_entries(entries)
        assert tiles.parse_entries(data, len(entries)) == tuple(entries)
    assert tiles.encode_entries([b"ab"]) == b"\x00\x02ab"


def test_an_entry_that_does_not_fit():
    with pytest.raises(InvalidTileError, match="65536 bytes; at most 65535"):
        tiles.encode_entries([bytes(65_536)])
    with pytest.raises(InvalidTileError, match="65536 bytes"):
        list(tiles.grow_bundles(b"", 0, [bytes(65_536)]))


@pytest.mark.parametrize(
    ("data", "width", "message"),
    [
        (b"", 1, "holds 0 entries, not 1"),
        (b"\x00", 1, "ends within entry 0"),
        (b"\x00\x02a", 1, "ends within entry 0"),
        (b"\x00\x01a\x00", 2, "ends within entry 1"),
        (b"\x00\x01a", 2, "holds 1 entries, not 2"),
        (b"\x00\x01a\x00\x01b", 1, "more than 1"),
        (b"\x00\x01a\x00", 1, "more than 1"),
    ],
)
def test_bytes_that_are_no_bundle(data, width, message):
    with pytest.raises(InvalidTileError, match=message):
        tiles.parse_entries(data, width)
