"""Converts an original CAT-Seg checkpoint (Cho et al., CVPR 2024) for transformers, as `catseg-hf convert` does."""

import sys

from catseg_hf.commands.convert import main
from catseg_hf.conversion.original_architecture import infer_config
from catseg_hf.conversion.state_dict_conversion import convert_state_dict


__all__ = ["convert_state_dict", "infer_config", "main"]

if __name__ == "__main__":
    sys.exit(main())
