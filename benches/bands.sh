#!/bin/bash
# Draws the same image under three memory bounds at each size, and compares the bytes: the budget
# never changes pixels. `-i` with strength 0 only encodes and decodes.
#
#   benches/bands.sh target/release/flux-fast 528x1424 1280x1536 2048x2048
set -eu
program=$1
shift
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
start=$(dirname "$0")/../tests/data/vae/wide.png
common=(a -i "$start" --strength 0 --seed 1 --device cpu --compute f32 --no-cache --quiet)
# The last number behind this text. The one of the whole plan comes after those of its phases.
number() { grep -o -e "$1[0-9.]*" | grep -o '[0-9.]*$' | tail -1; }

echo "| size | --ram | bands of the decoder | seconds | MB resident at most | pixels |"
echo "|---|---|---|---|---|---|"
for size in "$@"; do
    least=$("$program" plan "${common[@]}" --size "$size" --ram 1M 2>&1 | number "--ram " || true)
    peak=$("$program" plan "${common[@]}" --size "$size" --json | number '"peak_bytes":')
    middle=$(((least + peak / 1000000) / 2))
    for ram in auto "${middle}M" "${least}M"; do
        plan=$("$program" plan "${common[@]}" --size "$size" --ram "$ram" --json)
        bands=$(echo "$plan" | grep -o '"phase":"decode"[^}]*' | number '"bands":' || true)
        out=$folder/$ram.bmp
        run=$("$program" "${common[@]}" --size "$size" --ram "$ram" --json -o "$out")
        seconds=$(echo "$run" | number '"seconds":')
        resident=$(echo "$run" | number '"peak_memory_bytes":')
        same=equal
        cmp -s "$folder/auto.bmp" "$out" || same=DIFFERENT
        printf '| %s | %s | %s | %.1f | %d | %s |\n' "$size" "$ram" "${bands:-?}" "$seconds" \
            $((resident / 1000000)) $same
        [ $same = equal ]
    done
done
