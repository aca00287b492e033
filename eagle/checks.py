"""Numbers that a user gives, checked for their kind."""

from __future__ import annotations

import numbers

from eagle.errors import InputError


def whole_number(name: str, value: object) -> int:
    """A whole number of a kind that counts things; numpy's integers are.

    Args:
        name: of the argument.
        value: what was given for it.

    Raises:
        InputError: it is something else, 60.0 and true included.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be a whole number, not {value!r}")
    return int(value)


def number(name: str, value: object) -> float:
    """A number.

    Args:
        name: of the argument.
        value: what was given for it.

    Raises:
        InputError: it is something else, or true or false.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"{name} must be a number, not {value!r}")
    return float(value)
