#!/usr/bin/env python
"""
Compare explainers of an image classifier on several processes; the options are those of `hf-explain evaluate`.

    accelerate launch scripts/evaluate_explainers.py --classifier microsoft/resnet-50 --dataset ILSVRC/imagenet-1k \
        --streaming --explainers lcam=lcam-resnet-50,gradcam,layercam --max_examples 2000 -o results
"""

import sys

from hf_explain.cli import run_script
from hf_explain.io.processes import leave


def main() -> int:
    return run_script("evaluate", __doc__)


if __name__ == "__main__":
    sys.exit(leave(main()))
