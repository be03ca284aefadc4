#!/usr/bin/env bash
# The tables and cards of README.md and model_cards/, from frozen classifiers and photographs of yours:
#
#   CLASSIFIERS="resnet=DIR convnext=DIR vit=DIR deit=DIR" DATASET=DIR bash scripts/reproduce_evidence.sh
#
# OUTPUT=DIR (default: evidence)     where every run goes; killed, the same command goes on
# TRAINING="mixed_precision=bf16"    settings of `hf-explain train` for all heads; SEEDS="0 1 2" for three of each
# On two CPU cores this takes hours; on a GPU raise the epochs: TRAINING="mixed_precision=bf16 num_train_epochs=8".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
read -ra classifiers <<< "${CLASSIFIERS:?name the classifiers, for example CLASSIFIERS=\"resnet=DIR vit=DIR\"}"
read -ra seeds <<< "${SEEDS:-0}"
read -ra training <<< "${TRAINING:-mixed_precision=bf16 augmentation=flip num_train_epochs=2}"
output=${OUTPUT:-evidence}
common=(--classifiers "${classifiers[@]}" --dataset "${DATASET:?name the data set}" --output_dir "$output" --seeds "${seeds[@]}")

# what depends on the classifier: the layer, and how far the decoder goes beyond its grid; on a ConvNeXt a normalisation
# follows every stage but the last, and contributions cancel: it gets its last stage here, and no row in README.md
for classifier in "${classifiers[@]}"; do
  case ${classifier%%=*} in
    vit | deit) options=(levels=0 percentile=50) ;;
    *) options=(levels=1) ;;
  esac
  one=(--classifiers "$classifier" --dataset "$DATASET" --output_dir "$output" --seeds "${seeds[@]}" --heads scan-contribution)
  "$python" scripts/run_evidence.py train "${one[@]}" --training "${training[@]}" --head_option "${options[@]}"
done
"$python" scripts/run_evidence.py train "${common[@]}" --training "${training[@]}"
"$python" scripts/run_evidence.py evaluate "${common[@]}" --examples 500 --batch_size 32 \
  --methods gradcam gradcam++ xgradcam layercam hirescam eigencam raw_attention rollout transformer_attribution partial_lrp \
  attention_guided_cam integrated_gradients smoothgrad input_x_gradient scorecam rise lime fgvis \
  --method_option rise.num_masks=500 lime.num_samples=300
# insertion, deletion and ROAD, and the sanity checks: more passes an image, so fewer images and explainers
"$python" scripts/run_evidence.py evaluate "${common[@]}" --examples 100 --batch_size 32 --comparison comparison-curves \
  --heads ttame-ranking ttame-removal ttame --methods gradcam transformer_attribution \
  --metrics auc_d,average_drop,insertion_deletion,road --sanity
# most heads learn and are measured by what black pixels do: the same with two other fills
for classifier in "${classifiers[@]}"; do
  case ${classifier%%=*} in vit | deit) layer=layer1 ;; *) layer=stage4 ;; esac
  for fill in black mean blur; do
    "$python" scripts/run_evidence.py evaluate --classifiers "$classifier" --dataset "$DATASET" --output_dir "$output" \
      --heads ttame-ranking ttame-removal ttame lcam-img scan scan-contribution --examples 100 --batch_size 32 \
      --comparison "comparison-$fill" --metrics auc_d --metric_option auc_d.fill=$fill \
      --methods gradcam hirescam transformer_attribution --method_option hirescam.layer=$layer
  done
done
# RISE with as many masks as its authors use: minutes an image on a CPU
"$python" scripts/run_evidence.py evaluate "${common[@]}" --examples 100 --batch_size 32 --comparison comparison-passes \
  --heads ttame-ranking ttame-removal --methods rise --method_option rise.num_masks=2000
"$python" scripts/run_evidence.py table --output_dir "$output" --comparison "comparison*"
