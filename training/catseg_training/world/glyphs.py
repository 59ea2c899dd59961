"""Images of the things, from Noto Color Emoji or from anything else that draws a word."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from catseg_hf.errors import UserError

from .words import things


FONT_FILE = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
BITMAP_SIZE = 109  # the only size that Noto's bitmaps come in
COLOURED = 16  # the least that red, green and blue of a colour differ by
LEVELS = (32, 48, 72, 108, 160)


def _is_coloured(image: Image.Image) -> bool:
    return np.ptp(np.asarray(image.convert("RGB"), dtype=int), axis=-1).max() >= COLOURED


class EmojiFont:
    """
    Draws words as their emoji.

    Args:
        path (`Path`): The font's file.

    Raises:
        UserError: If there is no such file, or it is not a font of colour bitmaps that has all the emoji.
    """

    def __init__(self, path: Path = FONT_FILE):
        remedy = (
            "Install the Debian package `fonts-noto-color-emoji`, or name the file NotoColorEmoji.ttf with `--font`."
        )
        if not Path(path).is_file():
            raise UserError(f"There is no font {path}. {remedy}")
        try:
            self._font = ImageFont.truetype(path, BITMAP_SIZE)
        except OSError as error:
            raise UserError(f"{path} is not a font with bitmaps of size {BITMAP_SIZE} ({error}). {remedy}") from error
        drawn = {word: self._draw(emoji) for word, emoji in things().items()}
        if missing := [word for word, image in drawn.items() if image.getbbox() is None]:
            raise UserError(f"The font {path} draws nothing for {missing[:5]}. {remedy}")
        if sum(map(_is_coloured, drawn.values())) < len(drawn) / 2:  # a few things are grey
            raise UserError(f"The font {path} has no coloured emoji. {remedy}")

    def _draw(self, text: str) -> Image.Image:
        image = Image.new("RGBA", (2 * BITMAP_SIZE, 2 * BITMAP_SIZE))
        ImageDraw.Draw(image).text((BITMAP_SIZE // 4, BITMAP_SIZE // 4), text, font=self._font, embedded_color=True)
        return image

    def __call__(self, word: str) -> Image.Image:
        """The word's emoji, RGBA, cut to what is drawn."""
        image = self._draw(things()[word])
        return image.crop(image.getbbox())


class FluentIcons:
    """
    Draws words as Microsoft's Fluent emoji, a style that no model of this world is trained on.

    Args:
        folder (`Path`): The npm package `@iconify-json/fluent-emoji-flat`, unpacked.

    Raises:
        UserError: If there is no such package, it lacks an emoji, or nothing that draws SVG is installed.
    """

    def __init__(self, folder: Path):
        try:
            from resvg_py import svg_to_bytes
        except ImportError as error:
            raise UserError("Drawing icons needs resvg_py: `pip install resvg_py`.") from error
        remedy = "Unpack the npm package `@iconify-json/fluent-emoji-flat` and name its folder with `--icons`."
        try:
            names = json.loads((folder / "chars.json").read_text(encoding="utf-8"))
            icons = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} holds no icons ({error}). {remedy}") from None
        self._svg_to_bytes = svg_to_bytes
        self._size = f"{icons.get('width', 16)} {icons.get('height', 16)}"
        self._bodies = {}
        for word, emoji in things().items():
            name = names.get("-".join(f"{ord(character):x}" for character in emoji))
            if name not in icons["icons"]:
                raise UserError(f"{folder} has no icon for {word!r} ({emoji}). {remedy}")
            self._bodies[word] = icons["icons"][name]["body"]

    def __call__(self, word: str) -> Image.Image:
        """The word's icon, RGBA, cut to what is drawn."""
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self._size}">{self._bodies[word]}</svg>'
        png = self._svg_to_bytes(svg_string=svg, width=LEVELS[-1], height=LEVELS[-1], skip_system_fonts=True)
        image = Image.open(io.BytesIO(png)).convert("RGBA")
        return image.crop(image.getbbox())


class GlyphCache:
    """
    Things at a few sizes, ready to be scaled down by less than a half.

    Args:
        source (`Callable[[str], Image.Image]`): Draws a word as an RGBA image.
    """

    def __init__(self, source: Callable[[str], Image.Image]):
        self._source = source
        self._levels: dict[str, list[Image.Image]] = {}

    def __call__(self, word: str, size: float) -> Image.Image:
        """The smallest kept image with a side of at least `size`, or the largest: square, of premultiplied RGBA."""
        if word not in self._levels:
            self._levels[word] = [self._square(self._source(word), level) for level in LEVELS]
        index = sum(level < size for level in LEVELS[:-1])
        return self._levels[word][index]

    @staticmethod
    def _square(image: Image.Image, side: int) -> Image.Image:
        scale = (side - 2) / max(image.size)  # a transparent pixel all around keeps turned edges smooth
        size = [max(1, round(length * scale)) for length in image.size]
        square = Image.new("RGBa", (side, side))
        corner = tuple((side - length) // 2 for length in size)
        square.paste(image.convert("RGBA").resize(size, Image.Resampling.LANCZOS).convert("RGBa"), corner)
        return square
