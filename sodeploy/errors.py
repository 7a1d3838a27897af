"""The exceptions that a user is meant to see: bad input, and work that a signal stopped."""

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can mend; the message is one line that names the file, the value and what to do next.

    Every script prints it without a traceback and exits with status 1 (`sodeploy.command_line.run`). Anything else that
    reaches the terminal is a defect of ours and keeps its traceback. Control characters in the message are escaped.
    """

    def __init__(self, message: str) -> None:
        # Names from foreign files stand in messages; their control characters must not reach a terminal.
        words = " ".join(message.split()) if not message.isprintable() else message
        super().__init__("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in words))


class Stopped(KeyboardInterrupt):
    """Long work that a signal stopped, after the work was saved. The text is one line that says how to go on.

    Attributes:
        status: the exit status of a command that ends here: 128 + the number of the signal.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def first_few(texts: Sequence[str], separator: str = ", ", most: int = 3) -> str:
    """The first of many names or reasons, and the number of the others, for a message of one line."""
    rest = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + rest
