"""Legends: the classes' colours, names and shares of the area."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..errors import printable
from .colors import class_color
from .fonts import fitting_font


MIN_FONT_SIZE = 14
MIN_LEGEND_ROWS = 12
MAX_NAME_LENGTH = 32
WHITE = (255, 255, 255)

# A text in pieces, each in one font.
Line = list[tuple[str, ImageFont.FreeTypeFont]]


def draw_legend(
    shares: Mapping[int, float], labels: Sequence[str] | Mapping[int, str], image_size: tuple[int, int]
) -> Image.Image:
    """
    The legend of `draw_segmentation` alone.

    Each name is in the first font that has its letters: Pillow's own, which has ASCII and little more, DejaVu, which
    comes with matplotlib, or one of the system's. A class whose name none of them can write is shown as "#" and its
    index, such as "#3": [`numbered_labels`] tells which classes these are.

    Args:
        shares (`Mapping[int, float]`): Class indices and their shares of the area, largest first, as `area_shares`
            gives them.
        labels (`Sequence[str]` or `Mapping[int, str]`): Name of every class index.
        image_size (`tuple[int, int]`): Width and height of the image that it stands beside.

    Returns:
        `PIL.Image.Image` in RGB.

    Raises:
        ValueError: If a class has no name.
    """
    names, (image_width, image_height) = names_in_legend(shares, labels), image_size
    font_size = max(MIN_FONT_SIZE, round(0.035 * (image_width * image_height) ** 0.5))
    font, row_height, margin = ImageFont.load_default(font_size), round(1.5 * font_size), font_size // 2
    entries = [(class_color(index), _line(index, name, shares[index], font)) for index, name in names.items()]
    text_width = max((round(sum(font.getlength(text) for text, font in line)) for _, line in entries), default=0)
    column_width = text_width + 2 * font_size + margin
    rows = max(MIN_LEGEND_ROWS, (image_height - 2 * margin) // row_height)
    columns = max(1, max(image_width, 30 * font_size) // column_width)
    entries = cut_entries(entries, rows * columns, lambda text: [(text, font)])
    columns = -(-len(entries) // rows)
    size = (columns * column_width + 2 * margin, min(rows, len(entries)) * row_height + 2 * margin)
    legend = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(legend)
    for place, (color, line) in enumerate(entries):
        left, middle = margin + place // rows * column_width, margin + place % rows * row_height + row_height // 2
        half = font_size // 2
        draw.rectangle((left, middle - half, left + 2 * half, middle + half), fill=color)
        _write(draw, left + round(1.5 * font_size), middle, line)
    return legend


def legend_entries(
    shares: Mapping[int, float], labels: Sequence[str] | Mapping[int, str]
) -> list[tuple[tuple[int, int, int], str]]:
    """
    What a legend says where every letter can be written: RGB colour and text of every class of `shares`, as
    `draw_legend` takes them.

    Raises:
        ValueError: If a class has no name.
    """
    names = names_in_legend(shares, labels)
    return [(class_color(index), legend_text(name, shares[index])) for index, name in names.items()]


def legend_text(name: str, share: float) -> str:
    """What a legend says of a class: its name in one line, cut if it is long, and its share of the area, in 0..1."""
    return short_name(name) + share_text(share)


def short_name(name: str) -> str:
    """A name in one line, cut if it is long."""
    name = printable(" ".join(name.split()))
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3].rstrip()}..."


def share_text(share: float) -> str:
    """What a legend says behind a name of its share of the area, in 0..1."""
    return f"  {share:.1%}" if share >= 0.001 else "  < 0.1%"


def numbered_labels(labels: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """
    The classes that legends show as "#" and their index, since no font here can write their names.

    Args:
        labels (`Sequence[str]` or `Mapping[int, str]`): Name of every class index.

    Returns:
        `dict[int, str]`: Their indices and names.
    """
    return {
        index: name
        for index, name in _to_names(labels).items()
        if fitting_font(composed_name(name), MIN_FONT_SIZE) is None
    }


def describe_numbers(labels: Sequence[str] | Mapping[int, str]) -> str | None:
    """Lines that say what the numbers of [`numbered_labels`] stand for, if there are any."""
    numbered = numbered_labels(labels)
    lines = [f"  #{index} {printable(name)}" for index, name in numbered.items()]
    return "\n".join(["The legend has numbers for labels that no font here can write:", *lines]) if numbered else None


def names_in_legend(shares: Mapping[int, float], labels: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    """
    The names of the classes of a legend, in its order.

    Raises:
        ValueError: If a class has no name.
    """
    names = _to_names(labels)
    indices = [index for index in shares if index >= 0]
    if unnamed := sorted(set(indices) - set(names)):
        raise ValueError(f"The classes {unnamed[:10]} of the segmentation have no name among the {len(names)} labels.")
    return {index: names[index] for index in indices}


def cut_entries(entries: list, room: int, to_line: Callable[[str], Any]) -> list:
    """At most `room` entries, colours and lines, of which the last one counts those that were left out."""
    if len(entries) <= room:
        return entries
    return [*entries[: room - 1], (WHITE, to_line(f"and {len(entries) - room + 1} more"))]


def composed_name(name: str) -> str:
    """A short name whose letters and accents are one character where there is one, which more fonts have."""
    return unicodedata.normalize("NFC", short_name(name))


def _line(index: int, name: str, share: float, font: ImageFont.FreeTypeFont) -> Line:
    name = composed_name(name)
    if name.isascii():
        return [(name + share_text(share), font)]
    own_font = fitting_font(name, font.size)
    if own_font is None:
        return [(f"#{index}{share_text(share)}", font)]
    return [(name, own_font), (share_text(share), font)]  # fonts of a script may have no digits


def _write(draw: ImageDraw.ImageDraw, left: int, middle: int, line: Line):
    if len(line) == 1:
        ((text, font),) = line
        draw.text((left, middle), text, fill="black", font=font, anchor="lm")
        return
    ascent, descent = line[-1][1].getmetrics()
    baseline = middle + (ascent - descent) / 2
    for text, font in line:
        draw.text((left, baseline), text, fill="black", font=font, anchor="ls")
        left += font.getlength(text)


def _to_names(labels: Sequence[str] | Mapping[int, str]) -> dict[int, str]:
    return dict(labels) if isinstance(labels, Mapping) else dict(enumerate(labels))
