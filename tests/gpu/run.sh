#!/usr/bin/env bash
# All that only a GPU can show, in less than eight minutes: probes, tests, sanitizers and the bench.
# Usage: tests/gpu/run.sh [FOLDER]   (for the results; gpu-results unless given)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-gpu-results}
mkdir -p "$folder"
failed=()

# part NAME SECONDS COMMAND...
part() {
    local name=$1 seconds=$2
    shift 2
    printf '\n=== %s (at %d s)\n' "$name" "$SECONDS"
    timeout "$seconds" "$@" 2>&1 | tee "$folder/$name.log" | tail -n 25
    [[ ${PIPESTATUS[0]} -eq 0 ]] || failed+=("$name")
}

nvidia-smi
part info 20 python3 -m fcdense info
part driver 60 python3 -m pytest -q -p no:cacheprovider tests/gpu
workers=()
python3 -c 'import xdist' 2>/dev/null && workers=(-n 8) # most of the time goes into compiling kernels
part contract 90 python3 -m pytest -q -p no:cacheprovider "${workers[@]}" -m gpu tests/backends/test_contract.py
part bench 240 python3 -m bench --device cuda --time-limit 190 --json "$folder/bench.json" # --append goes on with it
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck; do
        part "$tool" 30 compute-sanitizer --tool "$tool" --error-exitcode 9 \
            python3 -m pytest -q -p no:cacheprovider tests/gpu/test_products.py -k 'exact and not 2048'
    done
fi
printf '\n%d s. ' "$SECONDS"
if ((${#failed[@]})); then
    printf 'FAILED: %s (logs in %s)\n' "${failed[*]}" "$folder"
    exit 1
fi
printf 'Every part passed.\n'
