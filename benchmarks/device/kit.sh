#!/usr/bin/env bash
# The conformance kit on backend cuda, and what only a GPU shows, from a checkout: nothing is
# installed. Arguments go to pytest. BACKEND is a provider to hold to the kit instead, but for what its
# library is known to fail; SITE has that library, if it needs one (h200.sh unpack). CHECKER goes
# before Python.
#
#   OUT=results bash benchmarks/device/kit.sh [-n 8]
#   BACKEND=cuda/triton_invariant bash benchmarks/device/kit.sh
#   CHECKER="compute-sanitizer --tool memcheck" bash benchmarks/device/kit.sh -k random_serving
set -euo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-.}
info=$(mktemp -d)
mkdir "$info/gdn_dispatch_cuda-0.1.0.dist-info"
printf 'Metadata-Version: 2.1\nName: gdn-dispatch-cuda\nVersion: 0.1.0\n' \
    > "$info/gdn_dispatch_cuda-0.1.0.dist-info/METADATA"
printf '[gdn_dispatch.backends]\ncuda = gdn_dispatch_cuda.plugin\n' \
    > "$info/gdn_dispatch_cuda-0.1.0.dist-info/entry_points.txt"
export PYTHONPATH="$PWD:$PWD/backends/cuda:$info${PYTHONPATH:+:$PYTHONPATH}"
what=(backends/cuda/tests/test_conformance.py tests/triton/test_device.py)
if [ -n "${BACKEND:-}" ]; then
    what=(--pyargs gdn_dispatch.testing --gdn-backend "$BACKEND")
    known=backends/cuda/tests/xfails_${BACKEND#*/}.txt
    [ -f "$known" ] && what+=(--gdn-xfails "$known")
    PYTHONPATH="$PYTHONPATH${SITE:+:$SITE:$SITE/nvidia_cutlass_dsl/dsl_packages}"
else
    python3 -m gdn_dispatch doctor || true
fi
${CHECKER:-} python3 -m pytest -p gdn_dispatch_pytest -o filterwarnings=ignore -q \
    -p no:cacheprovider --gdn-require --gdn-report "$OUT/kit.json" "${what[@]}" "$@"
