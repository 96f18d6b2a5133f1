"""How people read what programs count."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: ``1 block``, ``2,000 blocks``.

    Args:
        number: How many there are, 0 or more.
        noun: What is counted, for one.
        plural: Likewise for more; by default with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"
