"""What every head and method returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class SaliencyOutput(ModelOutput):
    """
    One saliency map per image, with what it explains.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned with `return_loss=True`):
            The head's training loss.
        saliency (`torch.FloatTensor` of shape `(batch_size, height, width)`):
            Where the classifier looked for `target`, in [0, 1], each map scaled by its own minimum and maximum; at
            the head's or method's own resolution.
        logits (`torch.FloatTensor` of shape `(batch_size, num_labels)`):
            The frozen classifier's logits on the unmasked images.
        target (`torch.LongTensor` of shape `(batch_size,)`): The class explained in each image.
        saliency_logits (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            The map before scaling, unbounded.
        contributions (`torch.FloatTensor` of shape `(batch_size, height, width)`, *optional*):
            What speaks for the class, above 0, and against it, below, unbounded; of methods that have a sign.
        reconstruction (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
            SCAN's reconstruction of the image, RGB in [-1, 1].
        explanation (`torch.FloatTensor` of shape `(batch_size, 3, height, width)`, *optional*):
            FGVis' explanation as valid `pixel_values`.
        explanation_score (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            The classifier's softmax of `target` on `explanation`.
        loss_terms (`dict[str, torch.FloatTensor]`, *optional*):
            The weighted terms `loss` is the sum of, detached scalars, for logging.
    """

    # `ModelOutput` wants a default of `None` for every field but the first, also for those that are always given
    loss: torch.Tensor | None = None
    saliency: torch.Tensor = None  # type: ignore[assignment]  # always given
    logits: torch.Tensor = None  # type: ignore[assignment]  # always given
    target: torch.Tensor = None  # type: ignore[assignment]  # always given
    saliency_logits: torch.Tensor | None = None
    contributions: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    explanation: torch.Tensor | None = None
    explanation_score: torch.Tensor | None = None
    loss_terms: dict[str, torch.Tensor] | None = None
