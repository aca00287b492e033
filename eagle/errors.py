"""The exception that means "the input was wrong, and here is what to do", and what programs tell apart of it."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one line, meant to be shown as it is.

    The command-line programs print it and exit with status 2; the Python API lets it through as a ``ValueError``.
    """


class PromptError(InputError):
    """The model cannot answer this prompt; it can answer others."""


class ContextFullError(PromptError):
    """A prompt that leaves no room for an answer within the model's context, or the length that was asked for."""


class TemplateRefusalError(PromptError):
    """A conversation that the model's chat template does not take."""
