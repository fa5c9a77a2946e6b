"""Errors that a person at the terminal can fix. Commands print them as one line and exit with a code."""


class InputError(ValueError):
    """Bad input; the message names the file, the value and what to do. Exit code 2."""


class EngineUnavailable(RuntimeError):
    """An engine that cannot run here; the message names the library or driver and what to install. Exit code 3."""
