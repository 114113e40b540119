#!/usr/bin/env bash
# `gdn-dispatch bench --suite h200` from a checkout, beside libraries that were brought along: on a
# machine with a CUDA GPU, Python with torch and Triton, and no package index.
#
#   h200.sh unpack FOLDER...      archives (*.tar.xz) of site-packages, and packages laid out as is
#   h200.sh warm [OPTION...]      compile everything, all head counts at once; times nothing
#   h200.sh run [OPTION...]       the suite; options of `gdn-dispatch bench`, such as --quick
#   h200.sh table REPORT...       from parts `prefill` and `calls` of reports, what `cuda` chooses by
#
# SITE is where the libraries go (default /tmp/site), OUT where results and logs go (default .).
# An archive may come in several pieces in several folders; what is there already is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
SITE=${SITE:-/tmp/site}
OUT=${OUT:-.}
PYTHON=${PYTHON:-python3}

# a checkout is no installation: this is what the installed packages would say of themselves
register() {
    local info="$SITE/gdn_dispatch_cuda-0.1.0.dist-info"
    mkdir -p "$info"
    printf 'Metadata-Version: 2.1\nName: gdn-dispatch-cuda\nVersion: 0.1.0\n' >"$info/METADATA"
    printf '[gdn_dispatch.backends]\ncuda = gdn_dispatch_cuda.plugin\n' >"$info/entry_points.txt"
}

unpack() {
    mkdir -p "$SITE"
    local archive package pids=()
    for archive in $(find "$@" -name '*.tar.xz'); do
        "$PYTHON" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="tar")' \
            "$archive" "$SITE" &
        pids+=($!)
    done
    for package in $(find "$@" -mindepth 1 -maxdepth 1 -type d); do
        cp -r "$package" "$SITE/"
    done
    for pid in "${pids[@]}"; do wait "$pid"; done
    du -sh "$SITE"
}

bench() { # a library's own banner or warning is not a result
    PYTHONPATH=".:backends/cuda:$SITE:$SITE/nvidia_cutlass_dsl/dsl_packages${PYTHONPATH:+:$PYTHONPATH}" \
        PYTHONUNBUFFERED=1 "$PYTHON" -W ignore -m gdn_dispatch bench --suite h200 "$@"
}

warm() {
    local heads pids=() names=() i
    for heads in ${HEADS:-2/8 4/16 8/32 16/32 16/48 16/64 8/24 16/16 32/32}; do
        bench --rounds 0 --part prefill --heads "$heads" "$@" >"$OUT/warm-${heads/\//-}.log" 2>&1 &
        pids+=($!)
        names+=("$heads")
    done
    for i in "${!pids[@]}"; do
        wait "${pids[$i]}" && echo "${names[$i]}: compiled" || {
            echo "${names[$i]}: see the log"
            grep -E '^(failed|not measured|error|Traceback)' "$OUT/warm-${names[$i]/\//-}.log" || true
        }
    done
}

table() { # into the checkout, where the next run reads it
    PYTHONPATH=".:backends/cuda" "$PYTHON" -c '
import json, sys
from gdn_dispatch_cuda.providers.choice import table_from_reports
reports = [json.load(open(path)) for path in sys.argv[1:]]
table = table_from_reports(*reports)
rows = [json.dumps(row) for row in table.pop("rows")]
head = json.dumps(table, indent=1).removesuffix("\n}")
print(head + ",\n \"rows\": [\n  " + ",\n  ".join(rows) + "\n ]\n}")' "$@" >"$OUT/measured.json"
    cp "$OUT/measured.json" backends/cuda/gdn_dispatch_cuda/providers/measured.json
}

command=${1:-}
[ $# -gt 0 ] && shift
mkdir -p "$SITE"
register
case "$command" in
unpack) unpack "$@" ;;
warm) warm "$@" ;;
table) table "$@" ;;
run)
    # progress goes to the log; the table is what is read
    if ! bench --output "$OUT/h200.json" "$@" 2>"$OUT/h200.log"; then
        tail -n 15 "$OUT/h200.log"
        exit 1
    fi
    ;;
*)
    sed -n '2,13s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
