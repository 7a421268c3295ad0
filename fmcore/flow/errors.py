"""What an error says, in one line: messages of other libraries may have many."""


def one_line(error: Exception) -> str:
    """All that an error says, spaces and line breaks as single spaces; its type if it says nothing.

    >>> one_line(ValueError("expected 1,\\n  got 2"))
    'expected 1, got 2'
    """
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: Exception) -> str:
    """The first line of what an error says that is not empty; its type if there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
