#!/bin/sh
# Makes the bundled latent diffusion model again: sh pipelines/ldm_weights.sh OUT SET5 PHOTOS...
#
# Photographs that overlap Set5 are flagged, and so left out. OUT/ldm_f4 is then curate/weights/ldm_f4, but for the
# curves; a killed run goes on.
set -eu
CURATE=${CURATE:-.venv/bin/curate}
OUT=$1
SET5=$2
shift 2
mkdir -p "$OUT"
"$CURATE" ingest "$@" "$OUT/store" --patch 96 --step 48
"$CURATE" leaks "$OUT/store" "$SET5"
"$CURATE" ldm train "$OUT/store" -o "$OUT/ldm_f4" --width 16 --latents 8 --denoiser-width 32 --half \
  --autoencoder-steps 5000 --denoiser-steps 4000 --crop 48 --optimizer soap --rate 0.003
