"""What two processes do in `test_evaluation.py`; started by torchrun, each writes what it got as JSON."""

import json
import os
import sys
from pathlib import Path

from testing_training import picture_dataset

from hf_explain import SaliencyEvaluator
from hf_explain.data import load_image_dataset
from hf_explain.distributed import leave


def main(directory: Path):
    def run(data, **options):
        return SaliencyEvaluator().compute(
            str(directory / "classifier"), data, ["auc_d"], method="random", progress=False, **options
        )["auc_d"]["auc_d"]

    found = {
        "map": run(picture_dataset(7)),
        "folder": run(picture_dataset(7), output_dir=directory / "out", shard_size=2),
        "stream": run(load_image_dataset(directory / "shards", streaming=True), shard_size=2),
    }
    bad = [dict(row) for row in picture_dataset(5)]
    bad[4]["image"] = "nowhere.png"
    try:
        run(bad, image_column="image")
    except (ValueError, RuntimeError) as error:
        found["bad"] = str(error)
    (directory / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave(0)
