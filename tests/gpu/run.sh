#!/usr/bin/env bash
# All that only a GPU can show, in less than eight minutes: probes, tests, sanitizers and the bench.
# Usage: tests/gpu/run.sh [FOLDER [COMMIT]]   (for the results, gpu-results unless given; what was checked out)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
folder=${1:-gpu-results}
mkdir -p "$folder"
failed=()

# part NAME SECONDS COMMAND...   A command whose time is over is interrupted, so that it says what it has found.
part() {
    local name=$1 seconds=$2
    shift 2
    printf '\n=== %s (at %d s)\n' "$name" "$SECONDS"
    timeout --foreground -s INT -k 10 "$seconds" "$@" 2>&1 | tee "$folder/$name.log" | tail -n 25
    [[ ${PIPESTATUS[0]} -eq 0 ]] || failed+=("$name")
}

tests=(python3 -m pytest -q -p no:cacheprovider)
workers=()
python3 -c 'import xdist' 2>/dev/null && workers=(-n 8) # most of the time goes into compiling kernels
nvidia-smi || exit 1
command -v compute-sanitizer >/dev/null || echo 'compute-sanitizer is not on the PATH: memory and races are not checked.'
part info 40 python3 -m fcdense info
# OpenBLAS, with which products are compared, has as many threads as cores: eight times too many beside each other.
part driver 80 env OPENBLAS_NUM_THREADS=2 "${tests[@]}" "${workers[@]}" -m 'gpu and not alone' \
    tests/gpu tests/kernels/test_gpu_dense.py
part alone 60 "${tests[@]}" -rP -m 'gpu and alone' tests/bench/test_whole.py tests/gpu
part contract 70 "${tests[@]}" "${workers[@]}" -m gpu tests/backends/test_contract.py
commit=()
[[ -n ${2:-} ]] && commit=(--commit "$2")
sanitizers=0
command -v compute-sanitizer >/dev/null && sanitizers=84
rest=$((474 - sanitizers - SECONDS)) # of eight minutes
part bench "$rest" python3 -m bench --device cuda --time-limit $((rest - 40)) "${commit[@]}" --json "$folder/bench.json"
if ((sanitizers)); then
    # It starts Python by itself, which has to end with it: another timeout, as this one reaches both.
    sanitizer=(timeout -s INT -k 5 35 compute-sanitizer --launch-timeout 0 --error-exitcode 9)
    work=("${tests[@]}" -m gpu tests/gpu/test_products.py -k 'exact and not 2048 and not library')
    # Calls that fail are none of its business: to ask whether an event is over does, as long as it is not.
    part memcheck 42 "${sanitizer[@]}" --tool memcheck --report-api-errors no "${work[@]}"
    part racecheck 42 "${sanitizer[@]}" --tool racecheck "${work[@]}"
fi
printf '\n%d s. ' "$SECONDS"
if ((${#failed[@]})); then
    printf 'FAILED: %s (logs in %s)\n' "${failed[*]}" "$folder"
    exit 1
fi
printf 'Every part passed.\n'
