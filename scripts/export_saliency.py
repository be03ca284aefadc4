#!/usr/bin/env python
"""
Write the saliency maps of a whole data set as sharded parquet.

    torchrun --nproc_per_node 8 scripts/export_saliency.py --model me/lcam-resnet-50 --dataset ILSVRC/imagenet-1k \
        --split validation --target label -o imagenet-saliency

Started by `accelerate launch`, `torchrun` or plain `python`; started again, it goes on where it was stopped.
"""

import sys

from hf_explain.cli import run_script
from hf_explain.io.processes import leave


def main() -> int:
    return run_script("export", __doc__)


if __name__ == "__main__":
    sys.exit(leave(main()))
