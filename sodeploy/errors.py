"""The one exception that a user is meant to see."""


class UserError(Exception):
    """Something the user can mend; the message is one line that names the file, the value and what to do next.

    Every script prints it without a traceback and exits with status 1 (`sodeploy.command_line.run`). Anything else that
    reaches the terminal is a defect of ours and keeps its traceback.
    """
