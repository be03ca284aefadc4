#!/usr/bin/env bash
# The tables and cards of README.md and model_cards/, from frozen classifiers and photographs of yours:
#
#   CLASSIFIERS="resnet=DIR convnext=DIR vit=DIR deit=DIR" DATASET=DIR bash scripts/reproduce_evidence.sh
#
# OUTPUT=DIR (default: evidence)     where every run goes; killed, the same command goes on
# TRAINING="mixed_precision=bf16"    settings of `hf-explain train` for all heads; SEEDS="0 1 2" for three of each
# LONG=8                             epochs of the heads with drawn fills or a contrast of their own
# On two CPU cores this takes hours (less with attn_implementation=eager among the settings); on a GPU raise the epochs:
# TRAINING="mixed_precision=bf16 num_train_epochs=8".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
read -ra classifiers <<< "${CLASSIFIERS:?name the classifiers, for example CLASSIFIERS=\"resnet=DIR vit=DIR\"}"
read -ra seeds <<< "${SEEDS:-0}"
read -ra training <<< "${TRAINING:-mixed_precision=bf16 augmentation=flip num_train_epochs=2}"
# these heads gain from more epochs than the published losses do
long=("num_train_epochs=${LONG:-8}")
for setting in "${training[@]}"; do [[ $setting == num_train_epochs=* ]] || long+=("$setting"); done
output=${OUTPUT:-evidence}
common=(--classifiers "${classifiers[@]}" --dataset "${DATASET:?name the data set}" --output_dir "$output" --seeds "${seeds[@]}")

"$python" scripts/run_evidence.py train "${common[@]}" --training "${long[@]}" \
  --heads ttame-ranking-contrast-fills ttame-ranking-contrast ttame-ranking-fills
"$python" scripts/run_evidence.py train "${common[@]}" --training "${training[@]}"  # all others: what is trained stays
"$python" scripts/run_evidence.py evaluate "${common[@]}" --examples 500 --batch_size 32 \
  --methods gradcam gradcam++ xgradcam layercam hirescam eigencam raw_attention rollout transformer_attribution partial_lrp \
  attention_guided_cam integrated_gradients smoothgrad input_x_gradient scorecam rise lime fgvis \
  --method_option rise.num_masks=500 lime.num_samples=300
for classifier in "${classifiers[@]}"; do
  case ${classifier%%=*} in vit | deit) layer=layer1 ;; convnext) layer=stage2 ;; *) layer=stage4 ;; esac
  one=(--classifiers "$classifier" --dataset "$DATASET" --output_dir "$output" --batch_size 32)
  heads=(ttame-ranking-contrast-fills ttame-ranking-contrast ttame-ranking-fills ttame-ranking ttame-removal)
  options=(hirescam.layer=$layer rise.num_masks=500 lime.num_samples=300)
  # what removed pixels become decides much of which map wins: black, the mean colour, a blur
  "$python" scripts/run_evidence.py evaluate "${one[@]}" --seeds "${seeds[@]}" --examples 100 \
    --comparison comparison-fills --metrics auc_d_fills --heads "${heads[@]}" ttame lcam-img scan scan-contribution \
    --methods gradcam hirescam transformer_attribution integrated_gradients rise lime --method_option "${options[@]}"
  # more passes an image, so fewer images
  "$python" scripts/run_evidence.py evaluate "${one[@]}" --examples 100 \
    --comparison comparison-road --metrics insertion_deletion,road --heads "${heads[@]}" \
    --methods gradcam gradcam++ layercam hirescam rollout transformer_attribution integrated_gradients scorecam rise \
    lime fgvis --method_option "${options[@]}"
  "$python" scripts/run_evidence.py evaluate "${one[@]}" --examples 32 \
    --comparison comparison-sanity --metrics auc_d --sanity \
    --heads "${heads[@]}" ttame lcam-img lcam-img-removal lcam-fm scan scan-contribution \
    --methods gradcam gradcam++ layercam hirescam eigencam rollout transformer_attribution attention_guided_cam \
    input_x_gradient integrated_gradients --method_option hirescam.layer=$layer
done
# RISE with as many masks as its authors use: minutes an image on a CPU
"$python" scripts/run_evidence.py evaluate "${common[@]}" --examples 100 --batch_size 32 --comparison comparison-passes \
  --heads ttame-ranking-contrast-fills ttame-ranking-contrast ttame-ranking-fills ttame-ranking ttame-removal \
  --methods rise transformer_attribution gradcam --method_option rise.num_masks=2000
"$python" scripts/run_evidence.py table --output_dir "$output" --comparison "comparison*"
# the README's table
"$python" scripts/run_evidence.py summary --output_dir "$output" --classifiers "${classifiers[@]}" \
  --numbers comparison-fills/auc_d_fills comparison/average_drop_100 comparison/increase_in_confidence_100 \
  --explainers ttame-ranking-contrast-fills ttame-ranking-contrast ttame lcam-img scan transformer_attribution hirescam \
  gradcam rise lime integrated_gradients centre random
