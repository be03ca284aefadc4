#!/usr/bin/env python
"""
Train an explainer head on a frozen image classifier.

    accelerate launch scripts/train_explainer.py --classifier microsoft/resnet-50 --head lcam \
        --head_option variant=img --dataset ILSVRC/imagenet-1k --streaming --max_steps 20000 \
        --output_dir lcam-resnet-50

Started by `accelerate launch`, `torchrun` or plain `python`. Several processes, each with `scripts/train_explainer.py`
behind it (evaluation and export likewise):

    ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2                       # two on the CPU
    accelerate launch --multi_gpu --num_processes 4                           # one machine, four GPUs
    torchrun --nnodes 2 --nproc_per_node 8 --node_rank 0 --master_addr 10.0.0.1 --master_port 29500  # the first of two

`accelerate launch --cpu` starts one process whatever number is asked for; the first line of the output says so.

`--resume_from_checkpoint last` continues a killed run with bit-identical weights, and refuses to go on as another run;
with more `--max_steps` a finished run is made longer, by the schedule of the new length from where it resumes.
`--mixed_precision bf16` is for GPUs and recent CPUs; on a CPU add `--attn_implementation eager` for a small ViT.
Transformers' `Trainer` trains a head, too, on batches of `pixel_values` and `labels`; its resumed runs end with other
weights. The papers' schedules are in scripts/reproduce_*.sh.
"""

import sys

from hf_explain.cli import run_script
from hf_explain.io.processes import leave


def main() -> int:
    return run_script("train", __doc__)


if __name__ == "__main__":
    sys.exit(leave(main()))
