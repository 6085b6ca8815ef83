#!/bin/sh
# Does half of the patches train as well as all? TEST="Set5/HR bsds-test" sh pipelines/coreset_study.sh OUT PHOTOS...
#
# Scores PHOTOS, selects des, refined and asc at 50 % and everything, trains FSRCNN x2 on each for the same number of
# steps, and measures each on the folders of TEST. STEPS, CROP and PATCH (px; the step is half of it) can be set.
set -eu
CURATE=${CURATE:-.venv/bin/curate}
OUT=$1
shift
mkdir -p "$OUT"
PATCH=${PATCH:-192}
"$CURATE" ingest "$@" "$OUT/store" --patch "$PATCH" --step "$((PATCH / 2))"
"$CURATE" score "$OUT/store" srcnn sobel
for name in des refined asc; do
  "$CURATE" select "$OUT/store" "$name" --by srcnn -o "$OUT/$name.parquet"
done
"$CURATE" select "$OUT/store" random --keep 1 -o "$OUT/all.parquet"
for name in all des refined asc; do
  [ -e "$OUT/$name/model.safetensors" ] ||
    "$CURATE" train "$OUT/$name.parquet" --arch fsrcnn:scale=2 --steps "${STEPS:-6000}" --crop "${CROP:-48}" -o "$OUT/$name"
  for test in $TEST; do
    echo "$name $test $("$CURATE" eval "$OUT/$name" "$test" | tail -n 1)"
  done
done
