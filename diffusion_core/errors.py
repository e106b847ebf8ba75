"""The one exception that a user should see: what was got, what was expected, what to do."""


class WorkbenchError(Exception):
    """A mistake or a fault that the user can mend.

    The message is one line that says what was got, what was expected and what to do. Entry points
    print it as ``error: ...`` and exit with status 2; anything else that escapes is a bug and keeps its
    traceback.
    """
