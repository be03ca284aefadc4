#!/usr/bin/env bash
# The tables and cards of README.md and model_cards/, from public data and public weights:
#
#   pip install -e ".[evidence]"
#   bash scripts/reproduce_evidence.sh
#
# CLASSIFIERS="resnet=DIR vit=DIR"   classifiers of yours instead of those that scripts/make_classifiers.py makes
# DATASET=DIR      photographs with the splits train, validation and test instead of Imagenette's; `train` is trained on,
#                  `validation` is chosen on, `test` stands in the tables
# OUTPUT=DIR       (default: evidence) where every run goes; killed, the same command goes on
# STEPS=592        optimiser steps of every head alike, with 32 photographs each; SEEDS="0 1 2" for three of each
# TRAINING="mixed_precision=bf16 augmentation=flip"   settings of `hf-explain train` for all heads
# TUNED_STEPS=148  steps of each of seven learning rates of every head; CHOSEN_BY=100 photographs that choose
# EXAMPLES=1000    photographs of a table; SLOW=100 for methods of many passes
# DTYPE=auto       bfloat16 for the passes that were measured to keep their numbers in it (default: float32)
# MINUTES=20       end every stage that takes longer; the same command goes on
# `scripts/run_evidence.py cost` says how long it takes, from a run on a few photographs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
output=${OUTPUT:-evidence}
dataset=${DATASET:-frgfm/imagenette}
read -ra seeds <<< "${SEEDS:-0}"
read -ra training <<< "${TRAINING:-mixed_precision=bf16 augmentation=flip}"
minutes=()
[ -z "${MINUTES:-}" ] || minutes=(--minutes "$MINUTES")
if [ -z "${CLASSIFIERS:-}" ]; then
  made=$output/classifiers
  [ -f "$made/efficientnet-lite0/config.json" ] ||
    "$python" scripts/make_classifiers.py teacher --output_dir "$made/efficientnet-lite0"
  "$python" scripts/make_classifiers.py train --teacher "$made/efficientnet-lite0" --dataset "$dataset" --output_dir "$made"
  CLASSIFIERS="efficientnet=$made/efficientnet-lite0"
  for family in resnet convnext vit deit; do CLASSIFIERS+=" $family=$made/$family-imagenette128"; done
fi
read -ra classifiers <<< "$CLASSIFIERS"

# run STAGE [option ...]
run() {
  local stage=$1
  shift
  "$python" scripts/run_evidence.py "$stage" --classifiers "${classifiers[@]}" --dataset "$dataset" \
    --output_dir "$output" --batch_size 32 --dtype "${DTYPE:-float32}" "${minutes[@]}" "$@"
}

cams=(gradcam gradcam++ xgradcam layercam hirescam eigencam)
attention=(raw_attention rollout transformer_attribution partial_lrp attention_guided_cam legrad)
gradients=(integrated_gradients smoothgrad input_x_gradient)
slow=(scorecam rise lime fgvis)
choosing=(--split validation --examples "${CHOSEN_BY:-100}")
reporting=(--split "${SPLIT:-test}" --tuned --slow_examples "${SLOW:-100}" --method_option lime.num_samples=300)

# every choice, on validation: a rate for each head with the same effort, a layer for each method by the same rule
run tune "${choosing[@]}" --metrics auc_d --training "${training[@]}" "max_steps=${TUNED_STEPS:-148}"
run layers "${choosing[@]}" --metrics auc_d_fills --methods "${cams[@]}"
run train --tuned --seeds "${seeds[@]}" --training "${training[@]}" "max_steps=${STEPS:-592}"

# the tables, on test: nothing above has seen its photographs
all=(--seeds "${seeds[@]}" --methods "${cams[@]}" "${attention[@]}" "${gradients[@]}" "${slow[@]}")
run evaluate "${reporting[@]}" "${all[@]}" --examples "${EXAMPLES:-1000}" --metrics auc_d,auc_d@patch,average_drop
# what removed pixels become decides much of which map wins; so do the units that are removed
run evaluate "${reporting[@]}" "${all[@]}" --examples "${EXAMPLES:-1000}" \
  --comparison comparison-fills --metrics auc_d_fills@all,auc_d_fills@all-patch
# RISE filled with the mean where the mean is what removed pixels become
run evaluate "${reporting[@]}" --heads --methods rise --examples "${SLOW:-100}" \
  --comparison comparison-mean --metrics auc_d --metric_option auc_d.fill=mean
# SCAN's maps reduced to the grid first, as its paper measures them
run evaluate "${reporting[@]}" --heads scan --methods --examples "${EXAMPLES:-1000}" \
  --comparison comparison-grid --metrics auc_d --metric_option 'auc_d.grid_size=[7,7]'
# more passes an image, so fewer images
run evaluate "${reporting[@]}" "${all[@]}" --examples "${SLOW:-100}" \
  --comparison comparison-road --metrics insertion_deletion,road
run evaluate "${reporting[@]}" "${all[@]}" --examples "${SLOW:-100}" --comparison comparison-sanity --metrics auc_d --sanity

"$python" scripts/run_evidence.py table --output_dir "$output" --comparison "comparison*"
"$python" scripts/run_evidence.py keep --output_dir "$output" --comparison "comparison*"
# the main rows, classifiers side by side
"$python" scripts/run_evidence.py summary --output_dir "$output" \
  --numbers comparison-fills/auc_d_fills comparison/average_drop_100 comparison/increase_in_confidence_100 \
  --explainers ttame-ranking-soft ttame-ranking-products ttame-ranking-contrast-fills ttame lcam-img scan \
  transformer_attribution hirescam gradcam rise lime integrated_gradients centre random
