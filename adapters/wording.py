"""Counts as people read them."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: ``1 block``, ``2,000 blocks``.

    Args:
        number: How many there are, 0 or more.
        noun: The noun, singular.
        plural: Its plural; by default with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
