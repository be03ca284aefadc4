#!/usr/bin/env bash
# L-CAM (ECCV Workshops 2022): SGD, batch 64, learning rate 1e-4 times 0.95 per epoch, 25 epochs; shorter side 256,
# random crop 224. ResNet-50 as published; the other classifiers with the same settings. "-star" is the ablation "*".
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

published=(--optimizer sgd --learning_rate 1e-4 --lr_scheduler exponential --lr_decay 0.95 --num_train_epochs 25
  --per_device_batch_size 64 --augmentation crop --resize_size 256)

for variant in img fm; do
  train "lcam-$variant-resnet-50" resnet "$resnet" "$imagenet" lcam --head_option "variant=$variant" "${published[@]}"
  train "lcam-$variant-star-resnet-50" resnet "$resnet" "$imagenet" lcam --head_option "variant=$variant" \
    --head_option area_weight=0 --head_option variation_weight=0 "${published[@]}"
  train "lcam-$variant-vit-base" vit "$vit" "$imagenet" lcam --head_option "variant=$variant" "${published[@]}"
  train "lcam-$variant-deit-base" deit "$deit" "$imagenet" lcam --head_option "variant=$variant" "${published[@]}"
  train "lcam-$variant-convnext-small" convnext "$convnext" "$imagenet" lcam --head_option "variant=$variant" \
    "${published[@]}"
done
