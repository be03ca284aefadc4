#!/usr/bin/env bash
# SCAN (2026): Adam 1e-3; ImageNet 5 epochs, CUB-200 50, Food-101 10; G of the ground-truth class while training.
# CUB-200 and Food-101 need classifiers fine-tuned on them: name yours in CUB_CLASSIFIER and FOOD_CLASSIFIER.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

published=(--optimizer adam --learning_rate 1e-3 --lr_scheduler constant --per_device_batch_size 32 --target label
  --augmentation crop --resize_size 256)

train scan-resnet-50 resnet "$resnet" "$imagenet" scan --num_train_epochs 5 "${published[@]}"
train scan-vit-base vit "$vit" "$imagenet" scan --num_train_epochs 5 "${published[@]}"
train scan-deit-base deit "$deit" "$imagenet" scan --num_train_epochs 5 "${published[@]}"
train scan-convnext-small convnext "$convnext" "$imagenet" scan --num_train_epochs 5 "${published[@]}"
if [ -n "${CUB_CLASSIFIER:-}$smoke" ]; then
  train scan-cub-200 vit "${CUB_CLASSIFIER:-}" bentrevett/caltech-ucsd-birds-200-2011 scan --num_train_epochs 50 \
    "${published[@]}"
fi
if [ -n "${FOOD_CLASSIFIER:-}$smoke" ]; then
  train scan-food-101 vit "${FOOD_CLASSIFIER:-}" ethz/food101 scan --num_train_epochs 10 "${published[@]}"
fi
