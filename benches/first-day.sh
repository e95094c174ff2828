#!/bin/bash
# What a first machine with an NVIDIA GPU must say, in one run and one page of Markdown: operation
# tests, ceilings, kernels, and images with all weights resident and under 12 and 8 GB.
#
#   benches/first-day.sh pack FOLDER            build, and copy the programs and this script there
#   FOLDER/first-day.sh run FOLDER REPORT.md    on the machine; needs nothing else
#
# The run ends within LIMIT seconds (480): a part that would begin too late is left out and named.
# Variables: MODELS (synthetic:klein synthetic:schnell synthetic:dev), SIZE (1024x1024), STEPS (2),
# BUDGETS (none 12G 8G), COMPUTES (auto int8 fp8), CASES (a regular expression of kernels).
# Synthetic checkpoints of up to 17 GB are written into XDG_CACHE_HOME where they are missing,
# within the time of the run: a second run measures more.
#
# Without a GPU, on the fake driver (times mean nothing there):
#   LD_LIBRARY_PATH=FAKE FLUX_FAKE_CUDA=kernels=skip,poison=0 MODELS=embedded SIZE=256x256 \
#       BUDGETS=none TESTS=off FOLDER/first-day.sh run FOLDER REPORT.md
set -u

pack() {
    local folder=$1 root
    root=$(cd "$(dirname "$0")/.." && pwd)
    mkdir -p "$folder" && folder=$(cd "$folder" && pwd)
    cd "$root" || exit 1
    cargo build --release || exit 1
    cp "$(cargo metadata --format-version 1 --no-deps | grep -o '"target_directory":"[^"]*"' |
        cut -d'"' -f4)/release/flux-fast" "$folder/flux-fast" || exit 1
    local binary
    for kind in test bench; do
        binary=$(cargo "$kind" --no-run "--$kind" ops --message-format json |
            grep -o '"executable":"[^"]*"' | tail -1 | cut -d'"' -f4)
        cp "$binary" "$folder/$kind-ops" || exit 1
    done
    cp "$0" "$folder/first-day.sh"
    ls -l "$folder"
}

LIMIT=${LIMIT:-480}
MODELS=${MODELS:-synthetic:klein synthetic:schnell synthetic:dev}
SIZE=${SIZE:-1024x1024}
STEPS=${STEPS:-2}
BUDGETS=${BUDGETS:-none 12G 8G}
COMPUTES=${COMPUTES:-auto int8 fp8}
TESTS=${TESTS:-linear attention norm conv2d elementwise int8}
CASES=${CASES:-/linear.(4608|512|28)x|/attention|conv2d.1024|group_norm.1048576|layer_norm|qk_norm}

say() { printf '%s\n' "$@" >>"$report"; }
left() { echo $((LIMIT - SECONDS)); }

# title, most seconds, command: runs it, and writes its output, its exit code and its time. Keeps
# the output in $folder/.last.
part() {
    local title=$1 most=$2 code command begun=$SECONDS
    shift 2
    command="$(basename "$1") ${*:2}"
    say "" "## $title" ""
    if [ "$(left)" -lt 15 ]; then
        say "Left out: $(left) s are left of $LIMIT."
        return 1
    fi
    [ "$most" -gt "$(left)" ] && most=$(left)
    echo "$title (at $SECONDS s)" >&2
    timeout -k 5 "$most" "$@" >"$folder/.last" 2>&1
    code=$?
    case $code in
    0) say "Passed in $((SECONDS - begun)) s: \`$command\`" ;;
    124 | 137) say "**Stopped after $most s**: \`$command\`" ;;
    *) say "**Exit code $code** after $((SECONDS - begun)) s: \`$command\`" ;;
    esac
    return $code
}
# The last lines of the output, which match a pattern.
quote() {
    say "" '```'
    # Mesa complains about a missing folder where nobody is logged in.
    grep -E "${2:-.}" "$folder/.last" | grep -v XDG_RUNTIME_DIR | tail -n "$1" | cut -c1-200 \
        >>"$report"
    say '```'
}

# What `bench` measured: seconds a step, of an image, and the peak of the host.
image() {
    local model=$1 compute=$2 budget=$3 vram=() fields
    [ "$budget" = none ] || vram=(--vram "$budget")
    local command=("$folder/flux-fast" bench --device cuda --model "$model" --size "$SIZE"
        --steps "$STEPS" --runs 1 --compute "$compute" "${vram[@]}" --json --quiet)
    if [ "$(left)" -lt 20 ]; then
        say "| $model | $compute | $budget | left out | | | |"
        return
    fi
    echo "$model $compute $budget (at $SECONDS s)" >&2
    timeout -k 5 "$(left)" "${command[@]}" >"$folder/.last" 2>&1
    local code=$?
    if [ $code = 0 ]; then
        fields=$(grep -o '"\(step\|total\|text\|decode\)":{[^}]*}\|"load_seconds":[0-9.]*' \
            "$folder/.last")
        value() { echo "$fields" | grep "\"$1\"" | grep -o "\"$2\":[0-9.e-]*" | cut -d: -f2; }
        local text decode load
        text=$(value text min) decode=$(value decode min) load=$(value load_seconds load_seconds)
        say "| $model | $compute | $budget | $(value step min) | $text | $decode | $load |"
    elif [ $code = 124 ] || [ $code = 137 ]; then
        say "| $model | $compute | $budget | stopped at $LIMIT s | | | |"
    else
        say "| $model | $compute | $budget | failed: $(tail -1 "$folder/.last" | grep -o '"message":"[^"]*' |
            cut -c12-160 | tr '|' '/') | | | |"
    fi
}

run() {
    folder=$(cd "$1" && pwd) || exit 1
    report=$2
    local binary
    for binary in flux-fast bench-ops test-ops; do
        [ -x "$folder/$binary" ] && continue
        echo "$folder/$binary is missing or cannot be executed: copy the whole folder that pack made" >&2
        exit 1
    done
    : >"$report" || exit 1
    report=$(cd "$(dirname "$report")" && pwd)/$(basename "$report")
    say "# First day on a GPU, $(date -u +%Y-%m-%d)" "" \
        "$("$folder/flux-fast" --version), $(uname -sr), $(nproc) threads"

    if command -v nvidia-smi >/dev/null; then
        part "Machine" 20 nvidia-smi \
            --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit \
            --format=csv && quote 8
    fi
    part "Driver and kernels: registers, local memory, blocks a multiprocessor" 60 \
        "$folder/flux-fast" doctor --kernels
    quote 400 "cuda:|kernel |_sm[0-9]|attention_|conv2d_|group_norm_|ceiling_"
    say "" "Expected: local memory 0 everywhere; 2 blocks for 128x128 tiles."

    local json=$folder/.cases
    rm -f "$json"
    export FLUX_FAST_BENCH_JSON=$json
    part "Ceilings and kernels" 80 "$folder/bench-ops" --bench --device cuda "$CASES"
    part "Attention in int8" 30 "$folder/bench-ops" --bench --device cuda --int8 'attention.4'
    part "Kernels in FP8" 40 "$folder/bench-ops" --bench --device cuda --fp8 'w8a8'
    unset FLUX_FAST_BENCH_JSON
    if [ -s "$json" ]; then
        say "" "| case | seconds | TFLOP/s | GB/s |" "|---|---|---|---|"
        sed 's/[{}"]//g' "$json" | awk -F, '{
            delete v; for (i = 1; i <= NF; i++) { n = index($i, ":"); v[substr($i, 1, n - 1)] = substr($i, n + 1) }
            print "| " v["name"] " | " v["seconds"] " | " v["tflops"] " | " v["gbps"] " |" }' >>"$report"
    fi

    say "" "## Images: $SIZE, $STEPS steps" "" \
        "| model | compute | --vram | s a step | text, s | decode, s | load, s |" \
        "|---|---|---|---|---|---|---|"
    local model compute budget
    for model in $MODELS; do
        for budget in $BUDGETS; do
            for compute in $COMPUTES; do image "$model" "$compute" "$budget"; done
        done
    done

    if [ "$TESTS" != off ]; then
        export FLUX_FAST_TEST_GPU=1
        # shellcheck disable=SC2086
        part "Operation tests on the GPU" 200 "$folder/test-ops" $TESTS
        quote 30 "^test |panicked|error|SKIPPED|result"
    fi
    say "" "Finished after $SECONDS of $LIMIT s."
    rm -f "$folder/.last" "$json"
    echo "$report" >&2
}

case ${1:-} in
pack) [ $# = 2 ] && pack "$2" && exit ;;
run) [ $# = 3 ] && run "$2" "$3" && exit ;;
esac
sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
exit 2
