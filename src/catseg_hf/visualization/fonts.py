"""Fonts that have the letters of a text: Pillow's own, DejaVu, which comes with matplotlib, and the system's."""

import os
import re
import sys
import unicodedata
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont, features


FONT_SUFFIXES = (".ttf", ".otf", ".ttc", ".otc")
# Sans serif comes first, and of a family the plain font. The last resort draws every letter as the name of its script.
SANS_SERIF = re.compile("sans", re.IGNORECASE)
STYLED = re.compile("bold|black|heavy|light|thin|italic|oblique|condensed|mono|serif", re.IGNORECASE)
LAST_RESORT = re.compile("last ?resort", re.IGNORECASE)

CHECKED_SIZE = 16
NO_CHARACTER = "\U0010ffff"


def fitting_font(text: str, size: float) -> ImageFont.FreeTypeFont | None:
    """The first font, at a size in pixels, that has all letters of a text, Pillow's own before all others; `None` if
    there is none, or if the text's letters have to be joined and Pillow cannot do that here."""
    if needs_shaping(text) and not features.check("raqm"):
        return None
    if has_letters(None, text):
        return ImageFont.load_default(size)
    file = font_file(text)
    return None if file is None else ImageFont.truetype(file, size)


@lru_cache(maxsize=2**16)
def font_file(text: str) -> str | None:
    """The first of the `font_files` that has all letters of a text, if any."""
    return next((file for file in font_files() if has_letters(file, text)), None)


@cache
def font_files() -> tuple[str, ...]:
    """The fonts that are here as files: DejaVu, then those of the system, the most legible first."""
    found = {
        Path(folder, name)
        for top in _system_folders()
        for folder, _, names in os.walk(top)
        for name in names
        if name.lower().endswith(FONT_SUFFIXES) and not LAST_RESORT.search(name)
    }

    def rank(path: Path) -> tuple:
        return bool(STYLED.search(path.stem)), not SANS_SERIF.search(path.stem), path.name, path

    return tuple(map(str, [*_matplotlib_fonts(), *sorted(found, key=rank)]))


def font_family(file: str) -> str:
    """The name of the family of a font."""
    family, _ = ImageFont.truetype(file).getname()
    return family


def needs_shaping(text: str) -> bool:
    """Whether letters have other places or shapes beside others, as in Arabic and Devanagari, so that it is not enough
    to draw one after another."""
    return not text.isascii() and any(
        unicodedata.bidirectional(character) in ("R", "AL", "AN")
        or unicodedata.category(character) in ("Mn", "Mc", "Me", "Cf")
        for character in text
    )


def has_letters(file: str | None, text: str) -> bool:
    """Whether a font file, or Pillow's own font, has all letters of a text. It may be without what is not seen."""
    if file is None and text.isascii():
        return True
    checked = _checked_font(file)
    letters = {letter for letter in text if not letter.isspace() and unicodedata.category(letter) != "Cf"}
    return checked is not None and all(_drawn(checked[0], letter) not in (None, checked[1]) for letter in letters)


@cache
def _checked_font(file: str | None) -> tuple[ImageFont.FreeTypeFont, tuple | None] | None:
    """A font without any shaping, and what it draws for a letter that it has not; `None` if it cannot be read."""
    try:
        font = ImageFont.load_default(CHECKED_SIZE) if file is None else ImageFont.truetype(file, CHECKED_SIZE)
        font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    except OSError:  # it is damaged, or has pictures of some sizes only
        return None
    return font, _drawn(font, NO_CHARACTER)


def _drawn(font: ImageFont.FreeTypeFont, letter: str) -> tuple[tuple[int, int], bytes] | None:
    """The drawing of a letter, if there is anything to see."""
    try:
        mask = font.getmask(letter)
    except OSError:
        return None
    return None if mask.getbbox() is None else (mask.size, bytes(mask))


def _matplotlib_fonts() -> list[Path]:
    spec = find_spec("matplotlib")  # it takes long to import
    folders = [] if spec is None else spec.submodule_search_locations or []
    files = [Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf") for folder in folders]
    return [file for file in files if file.is_file()]


def _system_folders() -> list[Path]:
    home, environment = Path(os.path.expanduser("~")), os.environ
    if sys.platform == "win32":
        local = environment.get("LOCALAPPDATA", home / "AppData" / "Local")
        return [Path(environment.get("WINDIR", r"C:\Windows"), "Fonts"), Path(local, "Microsoft", "Windows", "Fonts")]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library" / "Fonts"]
    shared = environment.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    own = environment.get("XDG_DATA_HOME") or home / ".local" / "share"
    return [Path(folder, "fonts") for folder in (*shared.split(":"), own)] + [home / ".fonts"]
