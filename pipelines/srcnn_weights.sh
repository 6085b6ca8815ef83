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
# BSDS500's 302003.jpg is the photograph of Set5's woman.png
"$CURATE" select "$OUT/store" des --by sobel --keep 0.5 --where "name <> '302003.jpg'" -o "$OUT/textured.parquet"
train() { # scale, steps, further options; a finished run is left as it is, a killed one goes on
  scale=$1 steps=$2
  shift 2
  "$CURATE" train "$OUT/textured.parquet" --recipe pipelines/srcnn_x2.toml --arch "srcnn:scale=$scale" --steps "$steps" \
    -o "$OUT/x$scale" "$@"
}
train 2 12000
train 3 16000 --init "$OUT/x2"
train 4 16000 --init "$OUT/x2"
