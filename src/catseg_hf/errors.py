"""What is the user's to mend, and how errors are worded."""

from safetensors import SafetensorError


# What loading a checkpoint raises for files that are missing, damaged or of something else.
UNREADABLE_CHECKPOINT = (OSError, RuntimeError, KeyError, SafetensorError)


class UserError(ValueError):
    """
    Something that the user can mend: an argument, a file, a setting. The message names the value, what is accepted and
    what to do, so that programs print it alone. Every other exception is a fault of the program and keeps its
    traceback.
    """


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop, or the error's type if it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
