"""Exports a CAT-Seg model to other runtimes: `catseg-hf export`."""

import sys

from catseg_hf.commands.export import main


if __name__ == "__main__":
    sys.exit(main())
