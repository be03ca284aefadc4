#!/usr/bin/env python
"""
Compare explainers of an image classifier on several processes; the options are those of `hf-explain evaluate`.

    accelerate launch scripts/evaluate_explainers.py --classifier microsoft/resnet-50 --dataset ILSVRC/imagenet-1k \
        --streaming --explainers lcam=lcam-resnet-50,gradcam,layercam --max_examples 2000 -o results
"""

import sys

from hf_explain.apps.evaluate import main
from hf_explain.io.processes import leave


if __name__ == "__main__":
    sys.exit(leave(main()))
