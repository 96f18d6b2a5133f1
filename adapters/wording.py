"""Counts as people read them."""


def counted(number: int, noun: str, plural: str = "") -> str:
    """Return a number and its noun: ``1 block``, ``2,000 blocks``.

    Args:
        number: How many there are, 0 or more.
        noun: The noun, singular.
        plural: Its plural; by default with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def describe_away(service: str, address: str, setting: str, reason: object) -> str:
    """Say that a service does not answer, where it was looked for and by which setting.

    Args:
        service: As a sentence begins with it.
        address: Where.
        setting: The setting's name, in capitals.
        reason: What its client says; only its first line is shown.
    """
    said = str(reason).partition("\n")[0].rstrip(".")
    return f"{service} does not answer at {address} ({setting}): {said}"
