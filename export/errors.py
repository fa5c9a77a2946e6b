"""The errors that a person at the terminal can mend. Commands turn them into one line and an exit code."""


class InputError(ValueError):
    """Bad input: a file, a value, and what to do. Exit code 2."""


class EngineUnavailable(RuntimeError):
    """An engine that cannot run here: which library, which driver, what to install. Exit code 3."""
