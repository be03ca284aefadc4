#!/usr/bin/env python
"""
Write the saliency maps of a whole data set as sharded parquet.

    torchrun --nproc_per_node 8 scripts/export_saliency.py --model me/lcam-resnet-50 --dataset ILSVRC/imagenet-1k \
        --split validation --target label -o imagenet-saliency

Started by `accelerate launch`, `torchrun` or plain `python`; started again, it goes on where it was stopped.
"""

import argparse
import sys

from hf_explain.apps.export import add_export_arguments, main_from_args
from hf_explain.io.processes import leave


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_export_arguments(parser)
    args = parser.parse_args()
    try:
        main_from_args(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(leave(main()))
