#!/usr/bin/env python
"""
Train an explainer head on a frozen image classifier.

    accelerate launch scripts/train_explainer.py --classifier microsoft/resnet-50 --head lcam \
        --head_option variant=img --dataset ILSVRC/imagenet-1k --streaming --max_steps 20000 \
        --output_dir lcam-resnet-50

Started by `accelerate launch`, `torchrun` or plain `python`; add `--resume_from_checkpoint last` to continue.
"""

import argparse
import sys

from hf_explain.apps.train import add_training_arguments, main_from_args
from hf_explain.io.processes import leave


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_arguments(parser)
    args = parser.parse_args()
    try:
        main_from_args(args)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(leave(main()))
