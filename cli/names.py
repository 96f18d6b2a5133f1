"""`moot names`: who is behind a federation's pseudonyms; never on its log."""

from __future__ import annotations

from adapters.keys import KeyFileError
from adapters.names import NameBook, NamesError, list_books
from adapters.settings import Settings
from cli.show import say, say_json
from cli.stack.processes import StackError


def open_book(settings: Settings, federation_id: str) -> NameBook:
    """Return the names in the state directory."""
    return NameBook(settings.state_directory / "names", federation_id)


def find_names(settings: Settings, federation_id: str) -> dict[str, str]:
    """Return names by agent; none without a book or a key.

    Raises:
        StackError: they cannot be read.
    """
    try:
        return dict(open_book(settings, federation_id).read())
    except (NamesError, KeyFileError) as error:
        raise StackError(str(error), "See docs/howto/names.md.") from error


def set_name(settings: Settings, federation_id: str, agent_id: str, name: str) -> None:
    """Remember who is behind an agent's pseudonym.

    Raises:
        StackError: it cannot be written.
    """
    books = list_books(settings.state_directory / "names")
    if books and federation_id not in books:
        known = ", ".join(books)
        say(f"the first name of {federation_id}; names are known of {known}")
    try:
        open_book(settings, federation_id).write(agent_id, name)
    except (NamesError, KeyFileError) as error:
        raise StackError(str(error), "See docs/howto/names.md.") from error


def list_names(settings: Settings, federation_id: str, *, as_json: bool) -> None:
    """Print the names."""
    _demand_book(settings, federation_id)
    names = find_names(settings, federation_id)
    if as_json:
        say_json(names)
        return
    for agent_id, name in sorted(names.items()):
        say(f"{agent_id:<24} {name}")


def _demand_book(settings: Settings, federation_id: str) -> None:
    """Check that this machine knows names of a federation.

    Raises:
        StackError: it does not; says of which it does.
    """
    books = list_books(settings.state_directory / "names")
    if federation_id not in books:
        known = f"Names are known of {', '.join(books)}." if books else "None are."
        msg = f"no names are known here of a federation {federation_id!r}"
        raise StackError(msg, known)


def destroy_key(settings: Settings, federation_id: str) -> None:
    """Make the names unreadable, for good."""
    _demand_book(settings, federation_id)
    if open_book(settings, federation_id).destroy():
        say(f"nobody can read the names of {federation_id} any more")
    else:
        say(f"there is no key to the names of {federation_id}")
