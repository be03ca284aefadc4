"""The quickstart's classifier: a small ResNet, trained from nothing in about half a minute on two CPU cores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm
from transformers import ResNetConfig, ResNetForImageClassification

from hf_explain.io.image_processor import to_pixel_values
from hf_explain.io.images import load_rgb


def image_processor(image_size: int):
    """The classifier's image processor: resize to a square, [0, 1], then [-1, 1]."""
    # The PIL class by its own name: the plain one is made for torchvision and warns where that is missing
    cls = getattr(transformers, "ViTImageProcessorPil", None) or transformers.ViTImageProcessor
    return cls(size={"height": image_size, "width": image_size})


def load_pixels(dataset, processor, column: str = "image") -> torch.Tensor:
    """
    A whole image column as `pixel_values`.

    Returns:
        `torch.FloatTensor` of shape `(num_images, 3, height, width)`; 150 kB an image at 112 px.
    """
    return torch.cat(
        [
            to_pixel_values(processor, [load_rgb(image) for image in rows[column]])
            for rows in dataset.select_columns([column]).iter(batch_size=256)
        ]
    )


def train_classifier(
    dataset,
    output_dir: str | Path,
    *,
    num_epochs: int = 8,
    batch_size: int = 64,
    learning_rate: float = 4e-3,
    width: int = 16,
    seed: int = 0,
    disable_tqdm: bool = False,
) -> dict[str, Any]:
    """
    Train a ResNet with three stages of one basic block each and save it with its image processor.

    The last feature map is one sixteenth of the image's side: 7×7 at 112 px, as that of a ResNet-50 at 224 px.

    Args:
        dataset (`datasets.Dataset`): As from [`make_dataset`], with the columns `image` and `label`.
        output_dir (`str` or `Path`): Where `from_pretrained` finds it afterwards.
        num_epochs (`int`, *optional*, defaults to 8): Passes over the data.
        batch_size (`int`, *optional*, defaults to 64): Images per step.
        learning_rate (`float`, *optional*, defaults to 4e-3): Maximum of a one-cycle schedule, for AdamW.
        width (`int`, *optional*, defaults to 16): Channels of the first stage; each later one has twice as many.
        seed (`int`, *optional*, defaults to 0): Of the weights, the order and the augmentation.
        disable_tqdm (`bool`, *optional*, defaults to `False`): No progress bar.

    Returns:
        `dict[str, Any]`: `num_epochs`, `steps`, `loss` (of the last epoch) and `num_parameters`.
    """
    names = dataset.features["label"].names
    accelerator = Accelerator()
    set_seed(seed)
    processor = image_processor(dataset[0]["image"].size[0])
    model = ResNetForImageClassification(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width, 2 * width, 4 * width],
            depths=[1, 1, 1],
            layer_type="basic",
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
        )
    )
    data = torch.utils.data.TensorDataset(load_pixels(dataset, processor), torch.tensor(dataset["label"][:]))
    loader = torch.utils.data.DataLoader(
        data, batch_size=batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed)
    )
    # Channels last: a third faster on CPUs. The weights are laid out as usual again when saved.
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]  # a decorator hides `self`
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}])
    steps = num_epochs * math.ceil(len(data) / batch_size)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    generator = torch.Generator().manual_seed(seed)

    model.train()
    losses: list[torch.Tensor] = []
    with tqdm(total=steps, desc="classifier", unit="step", disable=disable_tqdm) as progress:
        for _ in range(num_epochs):
            losses.clear()
            for pixel_values, labels in loader:
                pixel_values = _augmented(pixel_values, generator).contiguous(memory_format=torch.channels_last)
                loss = model(pixel_values=pixel_values, labels=labels).loss
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
                losses.append(loss.detach())
                progress.update()
            progress.set_postfix(loss=f"{torch.stack(losses).mean().item():.3f}")
    model = accelerator.unwrap_model(model).to(memory_format=torch.contiguous_format).eval()
    model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    accelerator.free_memory()
    return {
        "num_epochs": num_epochs,
        "steps": steps,
        "loss": torch.stack(losses).mean().item(),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
    }


def _augmented(pixel_values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """
    Half of the images in a mirror, and most with a part of any shape painted over, in a colour or with noise (random
    erasing).

    Without the latter a classifier answers at random where anything is painted over, and then a test that removes
    pixels says more of the paint than of the map.
    """

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(len(pixel_values), *shape, 1, 1, generator=generator)

    pixel_values = torch.where(uniform(1) < 0.5, pixel_values.flip(3), pixel_values)
    cells = torch.rand(len(pixel_values), 1, 6, 6, generator=generator)
    field = F.interpolate(cells, size=pixel_values.shape[-2:], mode="bicubic", align_corners=False)
    colour, noise = (3 * uniform(3) - 1.5).clamp(-1, 1), 2 * torch.rand(pixel_values.shape, generator=generator) - 1
    paint = torch.lerp(colour, noise, (2 * uniform(1) - 1).clamp(min=0))
    return torch.where(field > 0.25 + uniform(1), paint, pixel_values)
