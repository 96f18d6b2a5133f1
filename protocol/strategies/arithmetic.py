"""Whether this process computes as IEEE 754 says: all results depend on it.

Some shared libraries, once loaded, make the processor treat the smallest numbers as
zero or round in another direction, for the whole thread and all that it starts. Then a
step would have other bits here than anywhere else.
"""

from __future__ import annotations

from typing import Final

import numpy as np

_SMALLEST_NORMAL: Final = 2.0**-1022
_SMALLEST: Final = 2.0**-1074
_LENGTH: Final = 16
"""Long enough for vector instructions, and a remainder."""


class ArithmeticModeError(RuntimeError):
    """This thread does not compute as IEEE 754 says: a fault of this process."""


def verify_arithmetic() -> None:
    """Check that the smallest numbers are kept, and results rounded to nearest.

    Raises:
        ArithmeticModeError: they are not.
    """
    normal = np.full(_LENGTH, _SMALLEST_NORMAL)
    tiny = np.full(_LENGTH, _SMALLEST)
    halved = np.divide(normal, 2.0)
    doubled = np.add(tiny, tiny)
    # Compared as bits: a processor that reads them as zero finds them equal to it.
    is_kept = (halved.view(np.int64) == 2**51).all() and (
        doubled.view(np.int64) == 2  # noqa: PLR2004  # twice the smallest
    ).all()
    if not is_kept:
        msg = (
            "the smallest numbers are treated as zero here (flush to zero), so results "
            "would differ from everybody else's: some shared library of this process "
            "was built with -ffast-math, or a library was asked for it"
        )
        raise ArithmeticModeError(msg)
    one = np.ones(_LENGTH)
    up, down = np.add(one, 2.0**-53), np.subtract(np.negative(one), 2.0**-53)
    if (up != 1.0).any() or (down != -1.0).any() or (np.add(one, 2.0**-52) == 1).any():
        msg = (
            "results are not rounded to nearest here: some library of this process has "
            "changed the rounding mode"
        )
        raise ArithmeticModeError(msg)
