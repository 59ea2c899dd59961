"""What is the user's to mend, and how errors are worded."""

import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from functools import wraps

from safetensors import SafetensorError


# What loading a checkpoint raises for files that are missing, damaged or of something else.
UNREADABLE_CHECKPOINT = (OSError, RuntimeError, KeyError, SafetensorError)
# What terminals obey instead of showing it, ends of lines, what turns the direction of writing, and what no encoding
# has, such as bytes of file names that are not UTF-8.
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


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


def printable(text: str) -> str:
    """Text that a terminal or a legend shows and never obeys: control characters are escaped as in Python."""
    return CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


def is_text(name: str) -> bool:
    """Whether UTF-8 has all characters of a name: not half of a pair of UTF-16, nor a byte of another encoding, which
    Python keeps as such."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def reports_errors(main: Callable[..., int]) -> Callable[..., int]:
    """
    Decorates the `main` of a script, which returns its exit status: that of a [`UserError`], of which only the message
    is printed, is 1, and that of an interrupted run 130.
    """

    @wraps(main)
    def reporting_main(*args, **kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            # One that was raised in a worker of a data loader comes with the worker's traceback before it.
            print(f"error: {str(error).split('UserError: ')[-1].strip()}", file=sys.stderr)
            # It refers to itself, and so would keep workers alive, which end with their loader.
            traceback.clear_frames(error.__traceback__)
            return 1
        except KeyboardInterrupt:
            print("error: interrupted", file=sys.stderr)
            return 130

    return reporting_main


def did_you_mean(name: str, accepted: Collection[str]) -> str:
    """What a message adds, in brackets, if a name is nearly one of those accepted; nothing otherwise."""
    matches = get_close_matches(name.lower(), accepted, n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def refuse_misspelt(names: Iterable[str], accepted: Collection[str]):
    """Raises a TypeError for a name that is nearly one of those accepted: other names may be those of a base class, or
    of another release."""
    for name in names:
        if name not in accepted and (matches := get_close_matches(name, accepted, n=1, cutoff=0.85)):
            raise TypeError(f"There is no argument {name!r}: did you mean {matches[0]!r}?")
