#!/usr/bin/env python
"""
Train an explainer head on a frozen image classifier.

    accelerate launch scripts/train_explainer.py --classifier microsoft/resnet-50 --head lcam \
        --head_option variant=img --dataset ILSVRC/imagenet-1k --streaming --max_steps 20000 \
        --output_dir lcam-resnet-50

Started by `accelerate launch`, `torchrun` or plain `python`; add `--resume_from_checkpoint last` to continue.
"""

import sys

from hf_explain.cli import run_script
from hf_explain.io.processes import leave


def main() -> int:
    return run_script("train", __doc__)


if __name__ == "__main__":
    sys.exit(leave(main()))
