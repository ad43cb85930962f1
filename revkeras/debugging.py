"""Checks that are too dear for every run."""

_checks = False


def enable_checks() -> None:
    """Stops training where a value goes wrong, and names the block.

    Reversible stacks then raise `tf.errors.InvalidArgumentError` when a rebuilt
    value is not finite, and when an exact coupling gets values beyond its range.
    Counts for functions that are traced from now on, so call it before `fit`.

    Example:

    >>> import revkeras
    >>> revkeras.debugging.enable_checks()
    >>> revkeras.debugging.checks_enabled()
    True
    >>> revkeras.debugging.disable_checks()
    """
    global _checks
    _checks = True


def disable_checks() -> None:
    """Undoes `enable_checks`."""
    global _checks
    _checks = False


def checks_enabled() -> bool:
    """Whether `enable_checks` is in force. Off by default."""
    return _checks
