"""What each of two processes does in `test_training.py`, and what it finds."""

import contextlib
from pathlib import Path

import torch
from testing_training import DISTILLED, HEADS, TinyHead, picture_dataset, processor, train_head
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_explain.io.datasets import load_image_dataset
from hf_explain.io.files import lock_directory
from hf_explain.training.arguments import ExplainerTrainingArguments
from hf_explain.training.loop import train


class LosesItself(TinyHead):
    """On one of the processes, the loss of the third step is not a number."""

    def forward(self, pixel_values, target=None, return_loss=False):
        output = super().forward(pixel_values, target)
        if torch.distributed.get_rank() == 1 and len(self.seen) == 3:
            output.loss = output.loss * float("nan")
        return output


class Traffic(TorchDispatchMode):
    """Counts the bytes that are handed to `torch.distributed`."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d":
            leaves = tree_leaves((args, kwargs))
            tensors = {id(leaf): leaf for leaf in leaves if isinstance(leaf, torch.Tensor)}
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        return function(*args, **(kwargs or {}))


def weights(head):
    return torch.cat([head.head.weight.data.flatten(), head.head.bias.data]).tolist()


def main(rank: int, directory: Path) -> dict:
    shards = directory / "shards"

    def run(name, dataset, noise=0.1, kind=TinyHead, **options):
        options = {
            "max_steps": 9, "save_steps": 4, "save_total_limit": None, "dataloader_num_workers": 0, "logging_steps": 2,
            **options,
        }  # fmt: skip
        head = kind(noise)
        args = ExplainerTrainingArguments(
            output_dir=str(directory / name), per_device_batch_size=2, disable_tqdm=True, **options
        )
        record = train(head, dataset, picture_dataset(5), processor(), args)
        return weights(head), record

    def stream():
        return load_image_dataset(shards, streaming=True)

    found = {}
    found["map"], record = run("map", picture_dataset())
    found["num_processes"] = record["machine"]["num_processes"]
    found["eval_loss"] = record["final_eval_loss"]
    found["map_resumed"], _ = run("map", picture_dataset(), resume_from_checkpoint=str(directory / "map/checkpoint-4"))
    found["quiet"], _ = run("quiet", picture_dataset(), noise=0.0)
    found["stream"], _ = run("stream", stream(), shuffle_buffer_size=5)
    found["stream_resumed"], _ = run(
        "stream", stream(), shuffle_buffer_size=5, resume_from_checkpoint=str(directory / "stream/checkpoint-4")
    )
    for name in HEADS:
        found[name] = train_head(name, directory / name, per_device_batch_size=2)
    distilled = {"per_device_batch_size": 2, "save_steps": 1, "save_total_limit": 0, **DISTILLED}
    found["distilled"] = train_head("ttame", directory / "distilled", **distilled)
    for step in (1, 3):  # before the switch and after it
        last = str(directory / f"distilled/checkpoint-{step}")
        found[f"distilled_from_{step}"] = train_head(
            "ttame", directory / "distilled", **distilled, resume_from_checkpoint=last
        )
    found["traffic"] = []
    for steps in (2, 5):
        with Traffic() as traffic:
            run(f"traffic{steps}", picture_dataset(), max_steps=steps, save_steps=0, logging_steps=10)
        found["traffic"].append(traffic.bytes)
    try:
        run("nan", picture_dataset(), kind=LosesItself, save_steps=2)
    except FloatingPointError as error:
        found["nan"] = str(error)
    # the first process alone asks for the lock; the other one learns what it was told
    with lock_directory(directory / "busy") if rank == 0 else contextlib.nullcontext():
        try:
            run("busy", picture_dataset())
        except OSError as error:
            found["busy"] = str(error)
    return found
