"""Writes scenes of the emoji world, with label maps and captions, as a dataset that train.py reads.

  python training/emoji_world.py --output scenes --num_scenes 4000 --seed 1 --hide_unseen
  python training/emoji_world.py --output scenes --num_scenes 200 --seed 2 --split validation

Needs the font Noto Color Emoji (Debian package fonts-noto-color-emoji).
"""

import argparse
import sys
from pathlib import Path

from catseg_hf.errors import reports_errors
from catseg_training.arguments import positive
from catseg_training.world.folders import write_scenes
from catseg_training.world.glyphs import FONT_FILE, EmojiFont, FluentIcons, GlyphCache


@reports_errors
def main(arguments: list[str] | None = None) -> int:
    """The command line; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument("--num_scenes", type=positive(int), required=True, metavar="N")
    parser.add_argument("--seed", type=positive(int, or_zero=True), required=True, metavar="N")
    parser.add_argument("--split", default="train", metavar="NAME", help="(default: %(default)s)")
    parser.add_argument("--size", type=positive(int), default=128, metavar="PIXELS", help="(default: %(default)s)")
    parser.add_argument("--font", type=Path, default=FONT_FILE, metavar="FILE", help="(default: %(default)s)")
    parser.add_argument(
        "--icons",
        type=Path,
        metavar="DIR",
        help="draw the things in another style: the npm package @iconify-json/fluent-emoji-flat, unpacked",
    )
    parser.add_argument("--hide_unseen", action="store_true", help="label the words without masks 255")
    options = parser.parse_args(arguments)
    glyphs = GlyphCache(FluentIcons(options.icons) if options.icons else EmojiFont(options.font))
    write_scenes(
        options.output,
        glyphs,
        options.num_scenes,
        options.seed,
        options.split,
        options.size,
        options.hide_unseen,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
