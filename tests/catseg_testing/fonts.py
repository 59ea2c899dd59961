"""Made-up fonts."""

from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen


UNITS_PER_EM = 1000


def write_font(path: Path, letters: str) -> str:
    """A TrueType font that has these letters, as triangles of different heights, and boxes for all others."""
    names = {letter: f"u{ord(letter):04X}" for letter in sorted(set(letters))}
    outlines = {".notdef": [(100, 0), (100, 700), (500, 700), (500, 0)]}
    for place, name in enumerate(names.values()):
        outlines[name] = [(50, 0), (300, 300 + 500 * (place + 1) // len(names)), (550, 0)]
    builder = FontBuilder(UNITS_PER_EM, isTTF=True)
    builder.setupGlyphOrder(list(outlines))
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    builder.setupGlyf({name: _glyph(points) for name, points in outlines.items()})
    builder.setupHorizontalMetrics({name: (600, 50) for name in outlines})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": str(path), "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, sTypoDescender=-200, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    path.parent.mkdir(parents=True, exist_ok=True)
    builder.save(path)
    return str(path)


def _glyph(points: list[tuple[int, int]]):
    pen = TTGlyphPen(None)
    pen.moveTo(points[0])
    for point in points[1:]:
        pen.lineTo(point)
    pen.closePath()
    return pen.glyph()
