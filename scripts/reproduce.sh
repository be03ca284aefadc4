# Sourced by reproduce_lcam.sh, reproduce_ttame.sh and reproduce_scan.sh: how one training is started.
#
#   bash scripts/reproduce_<paper>.sh [NAME ...]      train these settings; all of the paper's when none is named
#   bash scripts/reproduce_<paper>.sh --smoke [...]   the same commands, a few steps on tiny data and classifiers made here
#   OUTPUT=DIR (default: results)   where the heads go
#   ACCELERATE="--num_processes 8 --mixed_precision bf16"   further options of `accelerate launch`
#   DATASET=...   instead of the paper's, for example a local folder
#
# ImageNet is ILSVRC/imagenet-1k: accept its terms on the Hub and set HF_TOKEN. Global batch sizes are the papers' on one
# process; divide --per_device_batch_size by the number of processes you use.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
output=${OUTPUT:-results}
smoke=""
if [ "${1:-}" = --smoke ]; then
  shift
  smoke=$(mktemp -d)
  trap 'rm -rf "$smoke"' EXIT
  output=${OUTPUT:-$smoke/results}
  "$python" scripts/make_smoke_data.py "$smoke"
fi
wanted=("$@")

# train NAME FAMILY CLASSIFIER DATASET HEAD [option ...]
train() {
  local name=$1 family=$2 classifier=$3 dataset=${DATASET:-$4} head=$5
  shift 5
  if [ ${#wanted[@]} -gt 0 ] && [[ " ${wanted[*]} " != *" $name "* ]]; then return; fi
  local last=(--resume_from_checkpoint last)
  [ -d "$output/$name" ] || last=()
  if [ -n "$smoke" ]; then
    classifier=$smoke/$family
    dataset=$smoke/images.parquet
    set -- "$@" --max_steps 2 --per_device_batch_size 2 --save_steps 1 --logging_steps 1 --dataloader_num_workers 0 \
      --device cpu --no_progress --resize_size 40
  fi
  echo "== $name: $head on $classifier, $dataset"
  # shellcheck disable=SC2086
  "$python" -m accelerate.commands.launch ${ACCELERATE:-} scripts/train_explainer.py --classifier "$classifier" \
    --dataset "$dataset" --head "$head" --output_dir "$output/$name" "${last[@]}" "$@"
}

resnet="microsoft/resnet-50"
vit="google/vit-base-patch16-224"
deit="facebook/deit-base-distilled-patch16-224"
convnext="facebook/convnext-small-224"
imagenet="ILSVRC/imagenet-1k"
