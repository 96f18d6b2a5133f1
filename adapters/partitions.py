"""Which partition a federation's records are in, as Kafka's Java client decides it.

Source: MurmurHash2 by Austin Appleby (32 bits, 4 bytes at a time, little-endian), with
Kafka's seed: `org.apache.kafka.common.utils.Utils.murmur2`.
"""

from __future__ import annotations

from typing import Final

_SEED: Final = 0x9747B28C
_MULTIPLIER: Final = 0x5BD1E995
_MASK: Final = 2**32 - 1
_WORD_SIZE: Final = 4


def murmur2(data: bytes) -> int:
    """Return Kafka's hash of a key, 0 ≤ h < 2^32."""
    whole = len(data) - len(data) % _WORD_SIZE
    digest = _SEED ^ len(data)
    for begin in range(0, whole, _WORD_SIZE):
        word = int.from_bytes(data[begin : begin + _WORD_SIZE], "little")
        mixed = word * _MULTIPLIER & _MASK
        mixed = (mixed ^ mixed >> 24) * _MULTIPLIER & _MASK
        digest = digest * _MULTIPLIER & _MASK ^ mixed
    if rest := data[whole:]:
        digest = (digest ^ int.from_bytes(rest, "little")) * _MULTIPLIER & _MASK
    digest = (digest ^ digest >> 13) * _MULTIPLIER & _MASK
    return digest ^ digest >> 15


def compute_partition(federation_id: str, num_partitions: int) -> int:
    """Return a federation's partition: the hash, its sign bit cleared, modulo."""
    return (murmur2(federation_id.encode()) & 0x7FFFFFFF) % num_partitions
