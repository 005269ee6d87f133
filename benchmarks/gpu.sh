#!/usr/bin/env bash
# All that needs a GPU, in one command: the tests under the marker cuda, the kernels of flash-linear-attention, and the
# benchmarks, whose tables it writes to benchmarks/results. Needs a Python with torch for the device, given as $PYTHON.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python}

kernels=$(mktemp -d)
trap 'rm -rf "$kernels"' EXIT

"$python" -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "there is no GPU here")'
"$python" -m pip install --quiet -e '.[test,evaluation,zoo]'
"$python" -m pytest -m cuda

# In a place of its own: where it is installed, transformers runs its kernels.
"$python" -m pip install --quiet --no-deps --target "$kernels" fla-core flash-linear-attention
PYTHONPATH=$kernels "$python" -m pytest -m cuda tests/canonizers/test_flash_linear_attention.py

"$python" benchmarks/all.py --device cuda --output benchmarks/results/speed-gpu.md
"$python" benchmarks/causal.py --device cuda
"$python" benchmarks/recurrences.py --device cuda --output benchmarks/results/recurrences-gpu.md
