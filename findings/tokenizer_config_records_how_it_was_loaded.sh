#!/usr/bin/env bash
# transformers 5.24.0 (huggingface_hub 2.4.0, tokenizers 0.23.3): a tokenizer that is loaded and saved again writes into
# its tokenizer_config.json how it was loaded: "is_local" (from a folder or from the Hub) and "local_files_only", which is
# also true where HF_HUB_OFFLINE is set. The same tokenizer, saved on two machines, so gives different files, and an
# upload carries them on. Seen: {"is_local": true, "local_files_only": true, ...} of a folder whose file has neither.
#
# Exits with 0 as long as that is so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 huggingface_hub==2.4.0 tokenizers==0.23.3
cd "$folder"
cat > save.py <<'PYTHON'
import json
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

Path("source").mkdir()
Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).save("source/tokenizer.json")
config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "?"}
Path("source/tokenizer_config.json").write_text(json.dumps(config))
saved = []
for local_files_only in (False, True):
    AutoTokenizer.from_pretrained("source", local_files_only=local_files_only).save_pretrained("saved")
    saved.append(json.loads(Path("saved/tokenizer_config.json").read_text()))
    print(saved[-1])
assert [one["local_files_only"] for one in saved] == [False, True] and all(one["is_local"] for one in saved)
PYTHON
HF_HUB_OFFLINE=0 "$folder/venv/bin/python" save.py
