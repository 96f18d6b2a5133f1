"""py_ecc, the independent implementation of the curve that ours is compared with.

Importing it raises Python's recursion limit to 100,000, for the whole process: then
what should be a RecursionError is a crash. Here the limit stays what it was.
"""

import sys

_LIMIT = sys.getrecursionlimit()

from py_ecc.bls.hash_to_curve import hash_to_G1  # noqa: E402
from py_ecc.bls.point_compression import compress_G1  # noqa: E402
from py_ecc.optimized_bls12_381 import (  # noqa: E402
    Z1,
    add,
    curve_order,
    double,
)

sys.setrecursionlimit(_LIMIT)

__all__ = ["Z1", "add", "compress_G1", "curve_order", "double", "hash_to_G1"]
