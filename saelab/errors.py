"""Errors that say what to do; every error that SAELab raises for a user's mistake derives from `SAELabError`."""


class SAELabError(Exception):
    """A mistake of the user's that SAELab foresaw; its message says what to do.

    The command line shows the message alone. It leaves any other error its traceback, since that is a bug.
    """


class InputError(SAELabError, ValueError):
    """An argument has a value that SAELab cannot use."""


class InputTypeError(SAELabError, TypeError):
    """An argument has a type that SAELab cannot use."""
