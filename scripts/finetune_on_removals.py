#!/usr/bin/env python
"""
Fine-tune an image classifier on images of which one patch is missing, so that removal is in its domain.

    python scripts/finetune_on_removals.py --classifier microsoft/resnet-50 --dataset imagefolder-or-parquet \
        --eval_split validation --epochs 3 --output_dir resnet-50-removals
    hf-explain evaluate --classifier resnet-50-removals --explainers gradcam --metrics single_deletion ...

Half of the images of every step lose one patch of a grid, drawn at random, as in IDSDS (Hesse et al. 2024). The
classifier's configuration says afterwards which removals it was trained on, and `single_deletion` with the same
patches and the same fill then says `in-domain`. Heads have to be trained on the new classifier anew.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers import AutoModelForImageClassification

from hf_explain.io.datasets import LabelReader, load_image_dataset, resolve_columns
from hf_explain.io.image_processor import load_image_processor, normalisation, to_pixel_values
from hf_explain.io.images import load_rgb
from hf_explain.io.processes import choose_device
from hf_explain.metrics.single_removals import TRAINED_ON
from hf_explain.tensors.perturbation import FILLS, fill_values


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classifier", required=True, help="directory or Hub id")
    parser.add_argument("--dataset", required=True, help="what load_image_dataset reads")
    parser.add_argument("--split", default="train", help="split to train on")
    parser.add_argument("--eval_dataset", help="data set of eval_split; the training one unless given")
    parser.add_argument("--eval_split", help="split for the accuracies before and after; none unless given")
    parser.add_argument("--output_dir", required=True, type=Path)
    parser.add_argument("--patches", type=int, default=4, help="patches along each side")
    parser.add_argument("--fill", default="mean", choices=(*FILLS, "white"), help="what a removed patch becomes")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of AdamW, decayed to 0 along a cosine")
    parser.add_argument("--max_examples", type=int, help="use only this many images of each split, the first ones")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


class Pictures(torch.utils.data.Dataset):
    """Images as the classifier sees them, and their labels."""

    def __init__(self, data, model, processor, most: int | None):
        image, label = resolve_columns(data, None, None, True)
        self.data, self.image, self.label, self.processor = data, image, label, processor
        self.read_label = LabelReader(data.features[label], model.config)
        self.length = min(len(data), most or len(data))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.data[index]
        return to_pixel_values(self.processor, [load_rgb(row[self.image])])[0], self.read_label(row[self.label])


def remove_patches(
    images: torch.Tensor, filled: torch.Tensor, patches: int, generator: torch.Generator, share: float = 0.5
) -> torch.Tensor:
    """`images` with one patch of a `share` of them replaced by `filled`, which and where drawn by the generator."""
    size = len(images)
    for side in images.shape[-2:]:
        if side % patches:
            raise ValueError(f"`patches` {patches} does not divide the {side} pixels of the images.")
    places = torch.randint(patches * patches, (size,), generator=generator)
    chosen = torch.rand(size, generator=generator) < share
    cells = torch.nn.functional.one_hot(places, patches * patches) * chosen[:, None]
    height, width = (side // patches for side in images.shape[-2:])
    removed = cells.view(size, 1, patches, patches).repeat_interleave(height, 2).repeat_interleave(width, 3)
    return torch.where(removed.to(images.device) > 0, filled, images)


@torch.no_grad()
def accuracies(model, loader, fill, patches: int, device) -> dict[str, float]:
    """Top-1 in percent on the images, and with one patch of each removed."""
    model.eval()
    generator, hits, count = torch.Generator().manual_seed(0), torch.zeros(2), 0
    for images, labels in loader:
        images = images.to(device)
        seen = (images, remove_patches(images, fill(images), patches, generator, share=1.0))
        hits += torch.tensor([(model(one).logits.argmax(-1).cpu() == labels).sum().item() for one in seen])
        count += len(labels)
    return {name: round(100 * hit.item() / count, 2) for name, hit in zip(("intact", "one patch removed"), hits)}


def main(argv=None) -> int:
    args = parse(argv)
    torch.manual_seed(args.seed)
    device = choose_device(None)
    model = AutoModelForImageClassification.from_pretrained(args.classifier).to(device)
    processor = load_image_processor(args.classifier)
    if processor is None:
        raise SystemExit(f"error: the classifier {args.classifier!r} has no image processor beside it.")
    mean, std = normalisation(processor)

    def fill(images):
        return fill_values(images, args.fill, mean, std)

    def loader(source, split, **options):
        pictures = Pictures(load_image_dataset(source, split), model, processor, args.max_examples)
        return torch.utils.data.DataLoader(pictures, batch_size=args.batch_size, **options)

    order, generator = torch.Generator().manual_seed(args.seed), torch.Generator().manual_seed(args.seed + 1)
    training = loader(args.dataset, args.split, shuffle=True, generator=order)
    evaluation = None if args.eval_split is None else loader(args.eval_dataset or args.dataset, args.eval_split)
    if evaluation is not None:
        print("before:", accuracies(model, evaluation, fill, args.patches, device), flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), args.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, args.epochs * len(training)))
    for epoch in range(args.epochs):
        model.train()
        total = 0.0
        for images, labels in training:
            images = images.to(device)
            images = remove_patches(images, fill(images), args.patches, generator)
            loss = torch.nn.functional.cross_entropy(model(images).logits, labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() / len(training)
        print(f"epoch {epoch + 1}: loss {total:.4f}", flush=True)
    if evaluation is not None:
        print("after:", accuracies(model, evaluation, fill, args.patches, device), flush=True)
    setattr(model.config, TRAINED_ON, {"patches": args.patches, "fill": args.fill})
    model.save_pretrained(args.output_dir)
    processor.save_pretrained(args.output_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
