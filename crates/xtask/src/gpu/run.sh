#!/usr/bin/env bash
# Checks and measures one NVIDIA GPU with the binary beside this script: no toolchain, no network, no sources.
#
#   ./run.sh STEP...      a b c d e f, one after the other; `all` is all of them
#
# a  tiny models against their references, f32 and bf16          b  every kernel against plain arithmetic
# c  speed of kernels beside measured limits; batches, q8_0      d  latency, memory, energy of four models
# e  transformers on the same shapes, where its packages are     f  b under compute-sanitizer; all results in one archive
#
# A step takes at most 10 minutes; what is cut leaves what it had. Results: $OUT, or ./results. GPU: $DEVICE, or cuda:0.
# A command that fails does not keep the next from running; summary.tsv has the exit code of each: 0 ok, 3 beyond a bound,
# 4 something is not installed, 124 or 130 cut for time. The script itself exits with 1 if one was neither 0 nor 4.
set -u

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${OUT:-$here/results}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
device=${DEVICE:-cuda:0}
gpu=${device#cuda}
gpu=${gpu#:}
gpu=${gpu:-0}
readonly STEP_SECONDS=590
readonly FACTS=name,uuid,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit
bench=$here/ossbench
failed=0

# part SECONDS NAME COMMAND...: runs a command for at most so long, and no longer than its step may take. Its output goes
# to the terminal and to $out/STEP/NAME.txt, its exit code into summary.tsv.
part() {
    local most=$1 name=$2 left code begin=$SECONDS
    shift 2
    left=$((STEP_SECONDS - (SECONDS - step_begin)))
    [ "$most" -gt "$left" ] && most=$left
    echo "== $step/$name: $*"
    if [ "$most" -lt 5 ]; then
        echo "no time left in this step" | tee "$out/$step/$name.txt"
        code=124
    else
        limit "$most" "$@" 2>&1 | tee "$out/$step/$name.txt"
        code=${PIPESTATUS[0]}
    fi
    echo "== $step/$name: exit code $code after $((SECONDS - begin)) s"
    printf '%s\t%s\t%s\t%s\n' "$step" "$name" "$code" "$((SECONDS - begin))" >>"$out/summary.tsv"
    case $code in 0 | 4) ;; *) failed=1 ;; esac
}

# An interrupt first: a study that is interrupted writes what it has.
limit() {
    local seconds=$1
    shift
    if command -v timeout >/dev/null && ! declare -F "$1" >/dev/null; then
        timeout --signal=INT --kill-after=20 "$seconds" "$@"
    else
        "$@"
    fi
}

# What the machine is, at the beginning of each step: results mean nothing without it.
facts() {
    local folder=$out/$step/machine
    mkdir -p "$folder"
    {
        date -u +%Y-%m-%dT%H:%M:%SZ
        uname -a
        "$bench" --version
        sha256sum "$bench" 2>/dev/null
    } >"$folder/host.txt" 2>&1
    limit 30 "$bench" doctor --json >"$folder/doctor.json" 2>&1
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi >"$folder/nvidia-smi.txt" 2>&1
        nvidia-smi -q -i "$gpu" >"$folder/nvidia-smi-q.txt" 2>&1
        nvidia-smi -i "$gpu" --format=csv --query-gpu="$FACTS" >"$folder/gpu.csv" 2>&1
        cat "$folder/gpu.csv"
    else
        echo "nvidia-smi is not here: driver and clocks are only what results say" | tee "$folder/nvidia-smi.txt"
    fi
}

step_a() {
    for dtype in f32 bf16; do
        part 280 "parity-$dtype" "$bench" parity --golden "$here/golden" --device "$device" \
            --activation-dtype "$dtype" --json "$out/a/parity-$dtype.json"
    done
}

step_b() {
    local seed
    for seed in 42 7; do
        part 280 "checks-$seed" "$bench" bench-kernels --device "$device" --check --cases 20 --seed "$seed" \
            --json "$out/b/checks-$seed.json"
    done
}

step_c() {
    for model in gpt-oss-20b qwen3-32b gpt-oss-120b; do
        part 140 "kernels-$model" "$bench" bench-kernels --device "$device" --model "$model" \
            --json "$out/c/kernels-$model.json"
    done
    study 170 gpu-batch
}

step_d() {
    study 90 gpu-gpt-oss-20b
    study 120 gpu-gpt-oss-120b
    study 190 gpu-qwen3-32b
    study 190 gpu-yi-34b
}

# study SECONDS NAME: raw results, rows, tables and figures of it.
study() {
    local seconds=$1 name=$2 config=$here/configs/$2.toml
    if [ "$device" != cuda:0 ]; then
        config=$out/$step/$name.toml
        sed -e "s/^device = .*/device = \"$device\"/" -e "s/^gpus = .*/gpus = [$gpu]/" \
            "$here/configs/$name.toml" >"$config"
    fi
    part "$seconds" "$name" "$bench" run "$config" --ui plain --results "$out/$step/results" --figs "$out/$step/figs" \
        --tables "$out/$step/tables"
}

step_e() {
    local python=${PYTHON:-python3} model
    if ! command -v "$python" >/dev/null; then
        part 10 transformers sh -c "echo '$python is missing: no peer was measured'; exit 4"
        return
    fi
    for model in gpt-oss-20b qwen3-32b yi-34b; do
        part 195 "transformers-$model" "$python" "$here/transformers_gpu.py" "$here/models/$model.json" \
            --device "$gpu" --json "$out/e/transformers-$model.json"
    done
}

step_f() {
    local sanitizer tool
    sanitizer=$(command -v compute-sanitizer || ls "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" 2>/dev/null)
    for tool in memcheck racecheck; do
        if [ -z "$sanitizer" ]; then
            part 10 "$tool" sh -c "echo 'compute-sanitizer is missing: it comes with the CUDA toolkit'; exit 4"
        else
            part 260 "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 "$bench" bench-kernels --device "$device" \
                --check --cases 1
        fi
    done
    part 60 archive archive
}

# Everything under $out as one file, with the sums of what is in it.
archive() {
    local name=ossbench-gpu.tar.gz log=./f/archive.txt
    cd "$out" || return 1
    rm -f "$name" SHA256SUMS
    find . -type f ! -name SHA256SUMS ! -path "$log" -exec sha256sum {} + | sort -k 2 >"$here/SHA256SUMS.part" &&
        mv "$here/SHA256SUMS.part" SHA256SUMS &&
        # Made elsewhere: a folder that changes while it is read is an error.
        tar -czf "$here/$name.part" --exclude="$log" . && mv "$here/$name.part" "$name" && ls -l "$out/$name"
}

usage() {
    sed -n '2,/^set -u/{/^set -u/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    exit 2
}

[ $# -gt 0 ] || usage
[ "$*" = all ] && set -- a b c d e f
for step in "$@"; do
    case $step in [a-f]) ;; *) usage ;; esac
done
chmod +x "$bench" 2>/dev/null
for step in "$@"; do
    step_begin=$SECONDS
    mkdir -p "$out/$step"
    echo "=== step $step on $device, results in $out/$step"
    facts
    "step_$step"
    echo "=== step $step: done after $((SECONDS - step_begin)) s"
done
echo
echo "step	what	exit code	seconds"
cat "$out/summary.tsv"
exit $failed
