"""The exceptions that mean "the input was wrong, and here is what to do"."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line, meant to be shown as it is.

    The command-line programs print it and exit with status 2; the Python API lets it through as a ``ValueError``.
    """


class PromptError(InputError):
    """The model cannot answer this prompt; it can answer others."""
