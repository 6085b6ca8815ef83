#!/bin/sh
# Makes the bundled SRCNN weights again: sh pipelines/srcnn_weights.sh OUT PHOTOS...
#
# Trains SRCNN 9-5-5 for x2 on the more textured half of the patches (flat ones teach little), then x3 and x4 from the
# x2 weights. Each run's checkpoint is then curate/weights/srcnn_955_x{2,3,4}.safetensors.
set -eu
CURATE=${CURATE:-.venv/bin/curate}
OUT=$1
shift
mkdir -p "$OUT"
"$CURATE" ingest "$@" "$OUT/store" --patch 96 --step 48
"$CURATE" score "$OUT/store" sobel
"$CURATE" select "$OUT/store" des --by sobel --keep 0.5 -o "$OUT/textured.parquet"
train() { # scale, steps, rate, further options
  scale=$1 steps=$2 rate=$3
  shift 3
  [ -e "$OUT/x$scale/model.safetensors" ] ||
    "$CURATE" train "$OUT/textured.parquet" --arch "srcnn:scale=$scale" --steps "$steps" --rate "$rate" \
      --batch-size 8 --crop 72 --loss mse --precision bf16 -o "$OUT/x$scale" "$@"
}
train 2 16000 5e-4
train 3 6000 3e-4 --init "$OUT/x2"
train 4 6000 3e-4 --init "$OUT/x2"
