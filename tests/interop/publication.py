"""What a federation publishes, as a directory that others can check and we can forge.

    log/          C2SP tiles: checkpoint (cosigned), tile/<L>/<N>, tile/entries/<N>
    policy        keys of the log and of its cosigners, quorum (c2sp.org/tlog-policy)
    log.skey      the log's secret key: the worst forger is the log itself
    receipts/     <leaf index>.tlog-proof, the leaf in its extra line

`write_demo` makes one of what a real demo left behind, `write_synthetic` one with our
own code and without a stack: larger, with entries of every size. What reads and forges
here is written straight from the formats' pages and shares no code with our tiles and
receipts: a mistake there must not hide itself.
"""

import base64
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.keys import key_path, load_key
from adapters.tile_store import TileStore
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import leaf_hash, root
from ledger.note import (
    KeyType,
    Note,
    NoteSignature,
    VerifierKey,
    encode_base64,
    parse_base64,
    parse_note,
)
from ledger.policy import make_bft_policy
from ledger.proof_file import make_receipt
from ledger.signing import SigningKey
from tests.trees import consistency_proof, inclusion_proof

TILE = 256  # entries or hashes in a full tile: c2sp.org/tlog-tiles
ORIGIN = "folkmoot/clinics"
BLOCK = 97  # entries; divides no tile
MAX_LEAF_IN_GO_RECEIPT = 49_146
"""Bytes. Go's `formats/proof` reads lines below 64 KiB; the leaf is one, in base64."""


@dataclass(frozen=True, slots=True)
class Publication:
    """A directory as described above."""

    directory: Path

    @property
    def log(self) -> Path:
        return self.directory / "log"

    @property
    def checkpoint(self) -> Path:
        return self.log / "checkpoint"

    @property
    def policy(self) -> Path:
        return self.directory / "policy"

    @property
    def vkey(self) -> str:
        [line] = re.findall(r"^log (\S+)", self.policy.read_text(), re.MULTILINE)
        return str(line)

    @property
    def origin(self) -> str:
        return self.vkey.partition("+")[0]

    @property
    def threshold(self) -> int:
        [k] = re.findall(r"^group bft (\d+) ", self.policy.read_text(), re.MULTILINE)
        return int(k)

    def policy_with_quorum(self, quorum: str, *lines: str) -> str:
        """Return the policy with another quorum, defined by these lines if new."""
        text, count = re.subn(
            r"^quorum .*$",
            "\n".join((*lines, f"quorum {quorum}")),
            self.policy.read_text(),
            flags=re.MULTILINE,
        )
        assert count == 1, "a policy has one quorum"
        return text

    def receipts(self) -> list[Path]:
        return sorted((self.directory / "receipts").iterdir())

    def note(self) -> Note:
        return parse_note(self.checkpoint.read_bytes())

    def cosignatures(self) -> list[NoteSignature]:
        return [s for s in self.note().signatures if s.name != self.origin]

    def write_cosignatures(self, cosignatures: Sequence[NoteSignature]) -> None:
        """Leave the log's own signature and put these beside it."""
        note = self.note()
        own = [s for s in note.signatures if s.name == self.origin]
        self.checkpoint.write_bytes(Note(note.text, (*own, *cosignatures)).to_bytes())

    @property
    def size(self) -> int:
        return int(self.note().text.split("\n")[1])

    def entries(self) -> list[bytes]:
        found: list[bytes] = []
        for first in range(0, self.size, TILE):
            width = min(TILE, self.size - first)
            data = (self.log / tile_path("entries", first // TILE, width)).read_bytes()
            while data:
                end = 2 + int.from_bytes(data[:2], "big")
                found.append(data[2:end])
                data = data[end:]
        return found

    def sign(self, size: int, tree_root: bytes, origin: str | None = None) -> bytes:
        """Return a checkpoint that the log signs, whether it is true or not."""
        skey = (self.directory / "log.skey").read_text().removeprefix("PRIVATE+KEY+")
        name, _, material = skey.split("+", maxsplit=2)
        key = SigningKey(parse_base64(material)[1:])
        return sign_checkpoint(Checkpoint(origin or name, size, tree_root), key, name)

    def sign_prefix(self, size: int) -> bytes:
        """Return the checkpoint that the log had at an earlier size."""
        return self.sign(size, root(map(leaf_hash, self.entries()[:size])))

    def prove_growth(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Return the consistency proof between two sizes."""
        hashes = list(map(leaf_hash, self.entries()[:size]))
        return list(consistency_proof(old_size, hashes)) if old_size else []

    def write_tiles(self, entries: Sequence[bytes]) -> None:
        """Write all tiles and bundles of a log, partial ones of this size only."""
        for first in range(0, len(entries), TILE):
            chunk = entries[first : first + TILE]
            self._write_tile(
                tile_path("entries", first // TILE, len(chunk)),
                b"".join(len(e).to_bytes(2, "big") + e for e in chunk),
            )
        level, row = 0, list(map(leaf_hash, entries))
        while row:
            tiles = [row[first : first + TILE] for first in range(0, len(row), TILE)]
            for index, tile in enumerate(tiles):
                path = tile_path(str(level), index, len(tile))
                self._write_tile(path, b"".join(tile))
            # Only full tiles are hashed into the level above.
            row = [root(tile) for tile in tiles if len(tile) == TILE]
            level += 1

    def _write_tile(self, path: str, data: bytes) -> None:
        file = self.log / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def receipt(self, leaf_index: int) -> Path:
        return self.directory / "receipts" / f"{leaf_index}.tlog-proof"

    def write_receipt(self, leaf_index: int) -> None:
        """Write the receipt of a leaf under the published checkpoint."""
        entries = self.entries()
        proof = inclusion_proof(leaf_index, list(map(leaf_hash, entries)))
        receipt = (
            "c2sp.org/tlog-proof@v1\n"
            f"extra {base64.b64encode(entries[leaf_index]).decode()}\n"
            f"index {leaf_index}\n{format_hashes(proof)}\n"
        ).encode() + self.checkpoint.read_bytes()
        self.receipt(leaf_index).write_bytes(receipt)


def make_key(name: str) -> SigningKey:
    """Return the key that a name always has."""
    return SigningKey(hashlib.sha256(b"key of " + name.encode()).digest())


def tile_path(level: str, index: int, width: int) -> str:
    """Return the path of a tile, or of an entry bundle if the level is "entries"."""
    groups = [f"{index % 1000:03}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03}")
    partial = f".p/{width}" if width < TILE else ""
    return f"tile/{level}/{'/'.join(groups)}{partial}"


def encode_skey(name: str, key: SigningKey) -> str:
    """Return a private key as one line, as Go's sumdb/note writes it."""
    key_id = VerifierKey(name, KeyType.ED25519, key.public_key).key_id
    material = encode_base64(bytes([KeyType.ED25519]) + key.seed)
    return f"PRIVATE+KEY+{name}+{key_id.hex()}+{material}"


def format_hashes(hashes: Sequence[bytes]) -> str:
    """Return hashes as the lines of a proof."""
    return "".join(f"{base64.b64encode(value).decode()}\n" for value in hashes)


def write_synthetic(directory: Path, num_entries: int) -> Publication:
    """Publish a log of made-up entries, in blocks, that four nodes cosigned."""
    published = Publication(directory)
    key = make_key("SEQUENCER")
    directory.mkdir()
    (directory / "log.skey").write_text(encode_skey(ORIGIN, key))
    nodes = {f"node{n}": make_key(f"node{n}") for n in range(4)}
    published.policy.write_text(
        make_bft_policy(
            VerifierKey(ORIGIN, KeyType.ED25519, key.public_key).to_vkey(),
            # Each a URL of its own: Go's policy parser wants one and tells by it.
            [
                (node, _make_cosigner(node, node_key), f"https://{node}.example/")
                for node, node_key in nodes.items()
            ],
        ).to_text()
    )
    store = TileStore(published.log, sync=False)
    entries = make_entries(num_entries)
    for first in range(0, num_entries, BLOCK):
        block = entries[first : first + BLOCK]
        store.append(block, list(map(leaf_hash, block)))
        note = published.sign(store.size, store.tree().root())
        for node, node_key in nodes.items():
            note = cosign_checkpoint(note, f"{node}.example", node_key, 1_760_000_000)
        store.publish(note)
    (directory / "receipts").mkdir()
    for leaf_index in {2, 3, 255, 256, 511, 512, num_entries - 1}:
        if 2 <= leaf_index < num_entries:
            proof = store.inclusion_proof(leaf_index)
            published.receipt(leaf_index).write_bytes(
                make_receipt(entries[leaf_index], leaf_index, proof, note)
            )
    return published


def write_demo(demo: Path, directory: Path) -> Publication:
    """Publish the log of a demo that was run with ``--directory``.

    Tiles and checkpoint are the log server's own, the policy is what `moot node policy`
    printed, and the log's key is the sequencer's.
    """
    published = Publication(directory)
    directory.mkdir()
    served = demo / "services" / "log" / "demo" / "tiles"
    shutil.copytree(served, published.log)
    shutil.copy(demo / "policy", published.policy)
    key = load_key(key_path(demo / "services" / "keys", "SEQUENCER"))
    (directory / "log.skey").write_text(encode_skey(published.origin, key))
    store = TileStore(published.log, sync=False)
    (directory / "receipts").mkdir()
    size = store.published_size
    for leaf_index in {2, size // 2, size - 1}:
        published.receipt(leaf_index).write_bytes(
            make_receipt(
                store.read_entries(leaf_index // TILE)[leaf_index % TILE],
                leaf_index,
                store.inclusion_proof(leaf_index, size),
                store.checkpoint() or b"",
            )
        )
    return published


def make_entries(num_entries: int) -> list[bytes]:
    """Return entries from nothing to the largest that a bundle can hold."""
    entries = [b"", b"\xff" * 65_535, b"\xfe" * MAX_LEAF_IN_GO_RECEIPT]
    entries += [f"entry {number}".encode() for number in range(3, num_entries)]
    return entries[:num_entries]


def _make_cosigner(node: str, key: SigningKey) -> str:
    return VerifierKey(
        f"{node}.example", KeyType.COSIGNATURE_V1, key.public_key
    ).to_vkey()
