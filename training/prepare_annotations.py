"""Prepares labels of annotation tools for training: `catseg-hf prepare`."""

import sys

from catseg_hf.commands.prepare import main


if __name__ == "__main__":
    sys.exit(main())
