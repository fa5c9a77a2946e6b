"""Errors that a person at the terminal can fix. Commands print them as one line and exit with a code."""


class InputError(ValueError):
    """Bad input; the message names the file, the value and what to do. Exit code 2."""


class Unreachable(Exception):
    """A picture that could not be read now: storage that fails, a lack of memory. Exit code 5.

    What is bad is the way to the picture, as far as is known, not the picture: the same command goes on once it works.
    """


class EngineUnavailable(RuntimeError):
    """An engine that cannot run here; the message names the library or driver and what to install. Exit code 3."""
