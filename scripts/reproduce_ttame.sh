#!/usr/bin/env bash
# TAME (ISM 2022) and T-TAME (IEEE Access 2024): SGD with Nesterov momentum 0.9, weight decay 5e-4, OneCycle with
# max_lr 1e-3, 8 epochs, batch 32. ResNet-50 and ViT-B/16 as published; the other classifiers with the same settings.
source "$(dirname "${BASH_SOURCE[0]}")/reproduce.sh"

published=(--optimizer sgd --momentum 0.9 --weight_decay 5e-4 --lr_scheduler onecycle --learning_rate 1e-3
  --num_train_epochs 8 --per_device_batch_size 32 --augmentation crop --resize_size 256)

train ttame-resnet-50 resnet "$resnet" "$imagenet" ttame "${published[@]}"
train ttame-vit-base vit "$vit" "$imagenet" ttame "${published[@]}"
train ttame-product-vit-base vit "$vit" "$imagenet" ttame --head_option token_product=true "${published[@]}"
train ttame-deit-base deit "$deit" "$imagenet" ttame "${published[@]}"
train ttame-convnext-small convnext "$convnext" "$imagenet" ttame "${published[@]}"
