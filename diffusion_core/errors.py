"""The one exception that a user should see: what was got, what was expected, what to do."""

from __future__ import annotations

from collections.abc import Mapping


class WorkbenchError(Exception):
    """A mistake or a fault that the user can mend.

    The message is one line that says what was got, what was expected and what to do. Entry points
    print it as ``error: ...`` and exit with status 2; anything else that escapes is a bug and keeps its
    traceback.
    """


def require_at_least(low: int, values: Mapping[str, int | float]) -> None:
    """Refuse the first of the named ``values`` that is below ``low``.

    Raises:
        WorkbenchError: names it as the user would override it.
    """
    for name, value in values.items():
        if not value >= low:
            raise WorkbenchError(f"{name}: got {value}; expected at least {low}: raise it.")
