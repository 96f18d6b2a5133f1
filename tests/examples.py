"""How many examples a property is shown."""

from hypothesis import settings


def examples(number: int) -> int:
    """Return the number itself in a nightly run, and a fifth of it in others."""
    is_nightly = settings.get_current_profile_name() == "nightly"
    return number if is_nightly else -(-number // 5)
