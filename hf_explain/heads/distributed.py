"""What a head needs so that several processes train it exactly as one process with the whole batch would."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce


def num_processes() -> int:
    """Processes that train together; 1 outside of `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather_targets(target: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    The targets of the whole batch, of all processes in order of rank.

    Args:
        target (`torch.LongTensor` of shape `(batch_size,)`): This process's; as many on every process.

    Returns:
        `tuple[torch.LongTensor, int]`: all targets, and the place of this process's first among them.
    """
    if num_processes() == 1:
        return target, 0
    parts = [torch.empty_like(target) for _ in range(num_processes())]
    dist.all_gather(parts, target.contiguous())
    return torch.cat(parts), dist.get_rank() * len(target)


def batch_uniform(batch_size: int, device: torch.device) -> torch.Tensor:
    """
    One uniform number in [0, 1) per image, from torch's global CPU generator: those of the whole batch are drawn on
    the first process, so that each image gets the number it would get in one process.

    Args:
        batch_size (`int`): Images of this process; as many on every process.
        device (`torch.device`): Where the collective communication runs, and where the numbers go.

    Returns:
        `torch.DoubleTensor` of shape `(batch_size,)`.
    """
    numbers = torch.rand(batch_size * num_processes(), dtype=torch.float64).to(device, non_blocking=True)
    if num_processes() == 1:
        return numbers
    dist.broadcast(numbers, src=0)
    first = dist.get_rank() * batch_size
    return numbers[first : first + batch_size]


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """
    BatchNorm whose training statistics are those of the batch of all processes, with exact gradients.

    `torch.nn.SyncBatchNorm` does the same on GPUs alone; this is two small reductions on any backend. The state is
    that of `BatchNorm2d`.
    """

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        if not self.training or num_processes() == 1:
            return super().forward(state)
        dims = (0, 2, 3)
        values = state.float()
        count = values.numel() / values.shape[1] * num_processes()  # training batches are equally long everywhere
        mean = all_reduce(values.sum(dims)) / count
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().sum(dims)) / count
        batches, running_mean, running_var = self.num_batches_tracked, self.running_mean, self.running_var
        assert batches is not None and running_mean is not None and running_var is not None  # they are always tracked
        with torch.no_grad():
            batches += 1
            momentum = 1 / float(batches) if self.momentum is None else self.momentum
            running_mean.lerp_(mean.to(running_mean), momentum)
            running_var.lerp_((variance * (count / (count - 1))).to(running_var), momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(state.dtype)
