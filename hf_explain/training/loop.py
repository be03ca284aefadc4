"""
Training of explainer heads with Accelerate. The loop knows nothing of any method: it reads `output.loss`.

How numbers are averaged: a head's loss is the mean over the images of one process's micro-batch, gradients are
averaged over micro-batches (`gradient_accumulation_steps`) and processes, and every optimiser step sees the same
number of images. So `n` processes with `per_device_batch_size=b` take the same steps as one with `n * b`, up to float
rounding. Heads whose loss mixes the images of a batch (`regularize="batch"`, BatchNorm, SCAN's percentiles) see to it
themselves, with `hf_explain.heads.distributed`. A stream is divided between processes by its shards, so there the
images of one step are others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from hf_explain.io.datasets import LabelReader, is_stream, num_stream_examples, resolve_columns
from hf_explain.io.files import RECORD_FILE, lock_directory, write_directory
from hf_explain.io.processes import on_main_process, package_versions
from hf_explain.tensors.checks import Checks, checks_together, gathered_checks
from hf_explain.training.arguments import (
    ExplainerTrainingArguments,
    check_same_path,
    describe_path,
    learning_rate_at,
    lengthened,
    plan_steps,
)
from hf_explain.training.batches import (
    ImageBatches,
    MapBatchSampler,
    StreamBatchSampler,
    eval_samples,
    make_loader,
    prepare_columns,
    prepare_stream,
)
from hf_explain.training.checkpoints import (
    LOG_FILE,
    find_checkpoint,
    load_checkpoint,
    load_info,
    prepare_output_dir,
    read_log,
    remove_old_checkpoints,
    save_checkpoint,
    trim_log,
)
from hf_explain.training.distillation import Distillation
from hf_explain.training.identity import check_same_run, compare_surroundings, describe_data, describe_run
from hf_explain.training.record import TrainingRecord
from hf_explain.training.runtime import (
    derive_seed,
    describe_machine,
    deterministic_kernels,
    make_accelerator,
    make_optimizer,
    summarize_losses,
)
from hf_explain.training.transforms import TrainingTransform


logger = transformers_logging.get_logger(__name__)


def train(
    model: torch.nn.Module,
    train_dataset: Any,
    eval_dataset: Any = None,
    image_processor: Any = None,
    args: ExplainerTrainingArguments | None = None,
    description: dict[str, Any] | None = None,
    method: Callable[..., Any] | None = None,
) -> dict[str, Any]:
    r"""
    Train a head and save it, with its image processor and a record of the run, to `args.output_dir`.

    Args:
        model (`torch.nn.Module`): Anything called as `model(pixel_values=..., target=..., return_loss=True).loss`,
            with `save_pretrained`; usually an `ExplainerPreTrainedModel`. Only parameters that require gradients
            change.
        train_dataset: A `datasets.Dataset` or `IterableDataset` (do not `shuffle` a stream before: a sliding shuffle
            buffer cannot be resumed), or anything with length and index that gives dictionaries.
        eval_dataset (*optional*): The same, for the validation loss; never augmented.
        image_processor (*optional*): Defaults to the classifier's own, `model.backbone.image_processor`.
        args (`ExplainerTrainingArguments`): Settings.
        description (`dict[str, Any]`, *optional*): Facts for the record, for example where the data came from.
        method (`Callable`, *optional*): What `args.distill_method` names: `(classifier, pixel_values, target,
            **options)` to an output with `saliency`, as the functions of `hf_explain.METHODS` are.

    Returns:
        `dict[str, Any]`: What `training_record.json` holds: settings, data, versions, machine, steps, time, losses.

    Raises:
        ValueError: If the data or the settings cannot work, the method is not defined for the classifier, or the
            checkpoint is of a run with other settings.
        OSError: If `output_dir` is not writable or another run is using it, the disk is full or the checkpoint is
            unreadable.
        FloatingPointError: If the loss is not finite; names the step, the samples and the last good checkpoint.
    """
    if not isinstance(args, ExplainerTrainingArguments):
        raise TypeError(f"args must be ExplainerTrainingArguments, got {type(args).__name__}.")
    if image_processor is None:
        image_processor = getattr(getattr(model, "backbone", None), "image_processor", None)
    with contextlib.ExitStack() as held:
        run = _Run(model, train_dataset, eval_dataset, image_processor, args, description or {}, method, held)
        return run.run()


class _Answer:
    """Whether something went wrong in a step, on its way from the device while that goes on."""

    def __init__(self, wrong: torch.Tensor) -> None:
        on_cuda = wrong.device.type == "cuda"
        self._wrong = wrong.to("cpu", non_blocking=on_cuda)
        self._arrived = torch.cuda.Event() if on_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def __bool__(self) -> bool:
        if self._arrived is not None:
            self._arrived.synchronize()
        return bool(self._wrong)


@dataclass
class _Unchecked:
    """A step whose values nobody has looked at yet."""

    step: int
    losses: torch.Tensor
    sample_ids: list[int]
    checks: list[Checks]
    wrong: _Answer


@dataclass(frozen=True)
class _Images:
    """A data set, which of its columns are read, and how."""

    dataset: Any
    image_column: str
    label_column: str | None
    labels: LabelReader
    transform: TrainingTransform

    @property
    def columns(self) -> list[str]:
        return [column for column in (self.image_column, self.label_column) if column is not None]

    def batches(self, rows: Any) -> ImageBatches:
        return ImageBatches(rows, self.image_column, self.transform, self.label_column, self.labels)


class _Run:
    """One call of `train`; `held` gets the lock of its directory."""

    def __init__(self, model, train_dataset, eval_dataset, image_processor, args, description, method, held) -> None:
        self.args, self.output_dir, self.description = args, Path(args.output_dir), description
        self.accelerator = make_accelerator(args)
        self.model, self._had_forward = model, "forward" in model.__dict__
        self.image_processor = image_processor
        self.steps_done, self.elapsed, self.data_wait = 0, 0.0, 0.0
        self.last_checkpoint: Path | None = None
        self.extended: list[list[int]] = []
        self._sums: dict[str, Any] = {}
        self._sum_count = 0

        # What can be wrong with the input comes first: a run that cannot start leaves no directory behind.
        transform = TrainingTransform(
            image_processor, args.augmentation, args.resize_size, args.seed, args.decode_draft
        )
        images = self._images(train_dataset, transform)
        self.eval = None
        if eval_dataset is not None:
            self.eval = self._images(eval_dataset, TrainingTransform(image_processor, "none"))
        self._plan(train_dataset)
        optimizer = make_optimizer(model, args)
        self.distillation = Distillation(args, model, method, self.total_steps)
        self.distillation.try_out(self.accelerator.device)
        self.identity, self.surroundings = on_main_process(self.accelerator, lambda: self._identify(images))
        state = self._claim(held)
        mine = state["processes"][self.accelerator.process_index] if state is not None else {}
        self._open(images, mine.get("data"))
        self._prepare(optimizer, state)
        self._sums, self._sum_count = dict(mine.get("sums", {})), mine.get("sum_count", 0)

    def _images(self, dataset: Any, transform: TrainingTransform) -> _Images:
        need_label = self.args.target == "label"
        image, label = resolve_columns(dataset, self.args.image_column, self.args.label_column, need_label)
        labels = LabelReader(_feature(dataset, label), _classifier_config(self.model))
        return _Images(dataset, image, label, labels, transform)

    def _plan(self, train_dataset: Any) -> None:
        """How many steps make a run and an epoch, and what decides the weights they arrive at."""
        args, num_processes = self.args, self.accelerator.num_processes
        self.stream = is_stream(train_dataset)
        self.num_examples = (
            args.num_examples or self._stream_length(train_dataset) if self.stream else len(train_dataset)
        )
        self.global_batch_size = args.per_device_batch_size * args.gradient_accumulation_steps * num_processes
        self.steps_per_epoch, self.total_steps = plan_steps(args, self.num_examples, self.stream, num_processes)
        precision = str(self.accelerator.mixed_precision)
        self.path = describe_path(args, self.num_examples, self.total_steps, num_processes, precision)
        # Without a known epoch validation comes at the end only.
        self.eval_steps = args.eval_steps or self.steps_per_epoch or self.total_steps

    def _stream_length(self, train_dataset: Any) -> int | None:
        """
        The length a stream's metadata states. `datasets` finds it in its cache, which may be filled or emptied before
        a run resumes: then what the run went by at first still holds.
        """
        stated, resume_from = num_stream_examples(train_dataset), self.args.resume_from_checkpoint
        checkpoint = find_checkpoint(self.output_dir, resume_from) if resume_from is not None else None
        if checkpoint is None:
            return stated
        before = load_info(checkpoint)["path"].get("num_examples")
        if stated and before or not isinstance(before, int | None):
            return stated  # what is wrong with it is said when the checkpoint is loaded
        return before

    def _identify(self, images: _Images) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        What the checkpoints of this run say of its head and data, and of what is around it; a run without checkpoints
        needs neither.
        """
        if self.args.save_steps is None and self.args.resume_from_checkpoint is None:
            return {}, {}
        validation = self.eval and describe_data(self.eval.dataset, self.eval.columns)
        if validation:
            validation["limit"] = self.args.max_eval_samples
        surroundings = {"validation": validation, "versions": package_versions()}
        data = describe_data(images.dataset, images.columns)
        return describe_run(self.model, self.image_processor, data), surroundings

    def _claim(self, held: contextlib.ExitStack) -> dict[str, Any] | None:
        """Lock the directory; the state of the checkpoint to resume from, and the log cut to its step."""
        args = self.args

        def claim() -> Path | None:
            held.enter_context(lock_directory(self.output_dir))
            return prepare_output_dir(self.output_dir, args.resume_from_checkpoint, args.overwrite_output_dir)

        resume_path, state = on_main_process(self.accelerator, claim), None
        if resume_path is not None:
            checkpoint: Path = resume_path
            state, info = load_checkpoint(checkpoint)
            check_same_path(checkpoint, info, self.path, self.total_steps)
            saved, tell_defaults = info.get("run"), getattr(self.model, "training_defaults", None)
            defaults = None if tell_defaults is None else tell_defaults()
            on_main_process(self.accelerator, lambda: check_same_run(checkpoint, saved, self.identity, defaults))
            if self.accelerator.is_main_process:
                compare_surroundings(checkpoint, info, self.surroundings)
            self.steps_done, self.elapsed, self.last_checkpoint = info["step"], info["elapsed"], checkpoint
            self.extended = [*info.get("extended", []), *self._lengthen(info)]
        elif args.resume_from_checkpoint is not None and self.accelerator.is_main_process:
            if (self.output_dir / LOG_FILE).exists():
                logger.warning(
                    f"There is no checkpoint in {str(self.output_dir)!r}: the run that was there before starts again "
                    "from its beginning."
                )

        def trim() -> None:
            trim_log(self.output_dir, self.steps_done, resume_path)
            if args.resume_from_checkpoint == "last":
                # a run that was killed just after it wrote a checkpoint has one too many
                remove_old_checkpoints(self.output_dir, args.save_total_limit)

        on_main_process(self.accelerator, trim)
        return state

    def _lengthen(self, info: dict[str, Any]) -> list[list[int]]:
        """The step from which a checkpoint's run goes on for longer, and how long it was planned; said once."""
        args, step, planned = self.args, info["step"], info["path"].get("total_steps")
        if not lengthened(info, self.path):
            return []
        if self.accelerator.is_main_process and step < self.total_steps:
            before = learning_rate_at(args, max(step - 1, 0), planned, self.steps_per_epoch)[0]
            after = learning_rate_at(args, step, self.total_steps, self.steps_per_epoch)[0]
            logger.warning(
                f"The run of {planned} steps is made longer, to {self.total_steps}: from step {step} on the learning "
                f"rate is that of the {args.lr_scheduler} schedule over {self.total_steps} steps, which goes on at "
                f"{after:.3g} after {before:.3g}; so the weights will not be those of one run of "
                f"{self.total_steps} steps."
            )
        return [[step, planned]]

    def _open(self, images: _Images, position: dict[str, Any] | None) -> None:
        """The training batches from the first step that is not done; `position` is a stream's."""
        args, accelerator = self.args, self.accelerator
        rows = None
        if self.stream:
            share = prepare_stream(
                images.dataset, images.columns, args.seed, accelerator.process_index, accelerator.num_processes
            )
            self.sampler: Any = StreamBatchSampler(
                share,
                args.per_device_batch_size,
                args.seed,
                args.shuffle_buffer_size,
                accelerator.process_index,
                position,
            )
        else:
            rows = prepare_columns(images.dataset, images.columns)
            self.sampler = MapBatchSampler(
                len(images.dataset),
                args.per_device_batch_size,
                args.seed,
                self.steps_done,
                self.total_steps,
                args.gradient_accumulation_steps,
                accelerator.process_index,
                accelerator.num_processes,
            )
        self.loader = self._load(images.batches(rows), self.sampler)

    def _prepare(self, optimizer: torch.optim.Optimizer, state: dict[str, Any] | None) -> None:
        """Model and optimiser on their device, as the checkpoint left them."""
        model, accelerator = self.model, self.accelerator
        model.to(accelerator.device)
        if state is not None:
            try:
                model.load_state_dict(state["model"])
            except RuntimeError as error:
                raise ValueError(
                    f"checkpoint {str(self.last_checkpoint)!r} is of another head than this {type(model).__name__}: "
                    "resume with the head and options it was written with, or start anew in another output_dir."
                ) from error
        model.train()
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        # Buffers of what is not in train mode do not change; they would be sent to all processes in every step
        names = [
            f"{path}.{name}" if path else name
            for path, module in model.named_modules()
            if not module.training
            for name, _ in module.named_buffers(recurse=False)
        ]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
        self.wrapped = accelerator.prepare_model(model)
        del model._ddp_params_and_buffers_to_ignore
        if state is not None:
            self.optimizer.load_state_dict(state["optimizer"])
            if accelerator.scaler is not None and state.get("scaler"):
                accelerator.scaler.load_state_dict(state["scaler"])

    def _load(self, batches: ImageBatches, sampler: Any) -> torch.utils.data.DataLoader:
        return make_loader(
            batches, sampler, self.args.dataloader_num_workers, self.accelerator.device.type == "cuda", self.args.seed
        )

    # ---------------------------------------------------------------------------------------------------- the loop

    def run(self) -> dict[str, Any]:
        args, accelerator = self.args, self.accelerator
        if args.report_to:
            settings = {name: value for name, value in dataclasses.asdict(args).items() if _is_plain(value)}
            accelerator.init_trackers(args.project_name, config=settings)
        deterministic = deterministic_kernels() if args.deterministic else contextlib.nullcontext()
        compiled = self._compiled() if args.torch_compile else contextlib.nullcontext()
        if accelerator.is_main_process and args.progress:
            count = accelerator.num_processes
            where = f"{count} process{'es' * (count > 1)} on {accelerator.device}"
            print(f"Training with {where}: {self.total_steps} steps of {self.global_batch_size} images.")
        bar = tqdm(
            total=self.total_steps,
            initial=self.steps_done,
            unit="step",
            dynamic_ncols=True,
            disable=not args.progress or not accelerator.is_local_main_process,
        )
        self.started = time.perf_counter() - self.elapsed
        self.log_time, self.log_step = time.perf_counter(), self.steps_done
        try:
            with deterministic, compiled:
                self._loop(bar)
            record = self._finish()
        finally:
            bar.close()
            if args.report_to:
                accelerator.end_training()
            self._release()
        return record

    def _compiled(self) -> contextlib.AbstractContextManager:
        compiled = getattr(getattr(self.model, "backbone", None), "compiled", None)
        if compiled is None:
            raise ValueError(
                f"torch_compile compiles a head's classifier, and {type(self.model).__name__} has none: leave it out."
            )
        return compiled(self.args.torch_compile_backend or "inductor")

    def _loop(self, bar: tqdm) -> None:
        args, accelerator = self.args, self.accelerator
        batches = iter(self.loader) if self.steps_done < self.total_steps else None
        on_cpu = accelerator.device.type == "cpu"
        unchecked, first = None, self.steps_done
        for step in range(self.steps_done, self.total_steps):
            rate, momentum = learning_rate_at(args, step, self.total_steps, self.steps_per_epoch)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
                if momentum is not None and "momentum" in group:
                    group["momentum"] = momentum
                elif momentum is not None:
                    group["betas"] = (momentum, group["betas"][1])
            losses, sample_ids, checks = [], [], []
            how = self.distillation.inputs(step)
            for micro in range(args.gradient_accumulation_steps):
                inputs, ids = self._next(batches)
                # A head that draws random numbers draws the same ones when this step is done again after a resume.
                self._seed(derive_seed(args.seed, step, micro, accelerator.process_index))
                last = micro == args.gradient_accumulation_steps - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                    with gathered_checks() as found:
                        output = self.wrapped(**inputs, **how, return_loss=True)
                    accelerator.backward(output.loss / args.gradient_accumulation_steps)
                losses.append(output.loss.detach())
                sample_ids += ids
                checks.append(found)
                self._count(output)
            if args.max_grad_norm is not None:
                accelerator.clip_grad_norm_(self.wrapped.parameters(), args.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.steps_done = step + 1

            last = self.steps_done == self.total_steps
            save = args.save_steps is not None and self.steps_done % args.save_steps == 0
            # a line at the switch, too: a line's means are of one loss
            log = self.steps_done % args.logging_steps == 0 or last or self.steps_done == args.distill_steps
            evaluate = self.eval is not None and (self.steps_done % self.eval_steps == 0 or last)
            # What the GPU answers it answers once it has come so far: ask of this step, and read what it said of the
            # one before, unless something is due.
            before, unchecked = unchecked, self._ask(losses, sample_ids, checks)
            self._check(before)
            if on_cpu or save or log or evaluate:
                self._check(unchecked)
                unchecked = None
            if step == first and not bar.disable:
                bar.set_postfix(loss=f"{float(torch.stack(losses).mean()):.4g}")
            if log:
                self._log_training(rate, bar)
            if evaluate:
                self._evaluate()
            if save:
                self._save_checkpoint()
            bar.update()
        self._check(unchecked)

    def _next(self, batches: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
        start = time.perf_counter()
        batch = next(batches)
        self.data_wait += time.perf_counter() - start
        return self._to_inputs(batch), batch["sample_ids"]

    def _to_inputs(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        if "error" in batch:
            raise ValueError(batch["error"])
        device = self.accelerator.device
        inputs = {"pixel_values": batch["pixel_values"].to(device, non_blocking=True)}
        if "labels" in batch:
            inputs["target"] = batch["labels"].to(device, non_blocking=True)
        return inputs

    def _count(self, output: Any) -> None:
        terms = {"loss": output.loss.detach(), **(getattr(output, "loss_terms", None) or {})}
        for name, value in terms.items():
            value = torch.as_tensor(value).detach().float()
            self._sums[name] = value + self._sums.get(name, 0.0)
        self._sum_count += 1

    def _ask(self, losses: list[torch.Tensor], sample_ids: list[int], checks: list[Checks]) -> _Unchecked:
        together = torch.stack(losses)
        found = [one.any_wrong(together.device) for one in checks]
        wrong = torch.stack([(~torch.isfinite(together)).any(), *found]).any()
        if self.accelerator.num_processes > 1:
            wrong = self.accelerator.reduce(wrong.float(), "sum")
        return _Unchecked(self.steps_done, together, sample_ids, checks, _Answer(wrong))

    def _check(self, pending: _Unchecked | None) -> None:
        if pending is None or not pending.wrong:
            return
        step, refused = pending.step, None
        try:
            for one in pending.checks:
                one.raise_first()
        except Exception as error:
            refused = error
        # The losses as plain numbers; every process arrives here, so gathering cannot hang.
        gathered = gather_object([(pending.losses.tolist(), pending.sample_ids, refused and str(refused))])
        if refused is not None:
            raise refused
        for process, (_, _, message) in enumerate(gathered):
            if message is not None:
                raise RuntimeError(f"Training failed on process {process} at step {step}: {message}")
        guilty = [(values, ids) for values, ids, _ in gathered if not all(map(math.isfinite, values))]
        value = next(value for values, _ in guilty for value in values if not math.isfinite(value))
        ids = ", ".join(str(index) for _, ids in guilty for index in ids)
        raise FloatingPointError(
            f"loss is {value} at step {step}, batch of samples {ids}: lower learning_rate, set max_grad_norm, or "
            f"look at these images; {self._last_good()}"
        )

    def _last_good(self) -> str:
        if self.last_checkpoint is None:
            return "no checkpoint was written before."
        return f"the last good checkpoint is {str(self.last_checkpoint)!r}."

    # ------------------------------------------------------------------------------------------ what leaves the loop

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            with open(self.output_dir / LOG_FILE, "a") as file:
                file.write(json.dumps(entry) + "\n")
        numbers = {name: value for name, value in entry.items() if name != "step"}
        if self.args.report_to:
            self.accelerator.log(numbers, step=entry["step"])

    def _log_training(self, rate: float, bar: tqdm) -> None:
        now = time.perf_counter()
        names = sorted(self._sums)
        device = self.accelerator.device
        means = torch.stack([torch.as_tensor(self._sums[name], device=device).float() for name in names])
        means = means / self._sum_count
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, "mean")
        entry: dict[str, Any] = {"step": self.steps_done, **dict(zip(names, means.tolist(), strict=True))}
        if self.steps_per_epoch:
            entry["epoch"] = round(self.steps_done / self.steps_per_epoch, 4)
        entry["learning_rate"] = rate
        images = (self.steps_done - self.log_step) * self.global_batch_size
        entry["images_per_second"] = round(images / max(now - self.log_time, 1e-9), 2)
        self._write_log(entry)
        bar.set_postfix(loss=f"{entry['loss']:.4g}", refresh=False)
        self._sums, self._sum_count = {}, 0
        self.log_time, self.log_step = now, self.steps_done

    def _evaluate(self) -> None:
        images, accelerator, args = self.eval, self.accelerator, self.args
        assert images is not None  # asked for with an eval_dataset only
        rows, samples = eval_samples(
            images.dataset,
            images.columns,
            args.per_device_batch_size,
            args.max_eval_samples,
            accelerator.process_index,
            accelerator.num_processes,
        )
        loader = self._load(images.batches(rows), samples)
        started = time.perf_counter()
        wide = torch.float64 if accelerator.device.type != "mps" else torch.float32
        total = torch.zeros(2, dtype=wide, device=accelerator.device)  # there, so that no batch is waited for
        # Not through the distributed wrapper: the processes may have different numbers of batches.
        self.model.eval()
        with torch.no_grad(), checks_together():
            for number, batch in enumerate(loader):
                inputs = self._to_inputs(batch)
                self._seed(derive_seed(args.seed, number, 0, accelerator.process_index))
                loss = self.model(**inputs, return_loss=True).loss.detach()
                count = len(batch["sample_ids"])
                total[0] += loss.to(total.dtype) * count
                total[1] += count
        self.model.train()
        if accelerator.num_processes > 1:
            total = accelerator.reduce(total, "sum")
        total = total.cpu()
        if total[1] == 0:
            raise ValueError("the eval_dataset is empty: validation needs at least one image.")
        seconds = time.perf_counter() - started
        self._write_log({"step": self.steps_done, "eval_loss": (total[0] / total[1]).item(), "eval_seconds": seconds})
        self.log_time += seconds

    def _save_model(self, directory: Path) -> None:
        # `save_pretrained` draws a progress bar of its own, through ours, for a file of kilobytes.
        drawn = transformers_logging.is_progress_bar_enabled()
        transformers_logging.disable_progress_bar()
        try:
            self.model.save_pretrained(directory)
            self.image_processor.save_pretrained(directory)
        finally:
            if drawn:
                transformers_logging.enable_progress_bar()

    def _save_checkpoint(self) -> None:
        args, accelerator = self.args, self.accelerator
        broken = [
            name
            for name, value in self.model.named_parameters()
            if value.requires_grad and not torch.isfinite(value).all()
        ]
        if broken:
            raise FloatingPointError(
                f"weights {broken[0]!r} are not finite after step {self.steps_done}: {self._last_good()}"
            )
        mine = {
            "data": self.sampler.state_at(
                self.steps_done * args.gradient_accumulation_steps * args.per_device_batch_size
            ),
            "sums": {name: float(value) for name, value in self._sums.items()},
            "sum_count": self._sum_count,
        }
        processes = gather_object([mine])
        started = time.perf_counter()

        def save() -> Path:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
                "processes": processes,
            }
            info = {
                "path": self.path,
                "run": self.identity,
                "extended": self.extended,
                "elapsed": started - self.started,
                **self.surroundings,
            }
            return save_checkpoint(
                self.output_dir, self.steps_done, state, info, self._save_model, args.save_total_limit
            )

        try:
            self.last_checkpoint = on_main_process(self.accelerator, save)
        except OSError as error:
            raise OSError(f"{error} Training stopped at step {self.steps_done}; {self._last_good()}") from error
        self.log_time += time.perf_counter() - started

    def _finish(self) -> dict[str, Any]:
        self.elapsed = time.perf_counter() - self.started

        def save() -> dict[str, Any]:
            record = self._record(read_log(self.output_dir)).to_json()
            with write_directory(self.output_dir) as new:
                self._save_model(new)
                (new / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n")
            return record

        return on_main_process(self.accelerator, save)

    def _record(self, lines: list[dict[str, Any]]) -> TrainingRecord:
        settings = dataclasses.asdict(self.args)
        for private in ("output_dir", "resume_from_checkpoint", "overwrite_output_dir"):
            settings.pop(private)
        return TrainingRecord(
            description=self.description,
            model=type(self.model).__name__,
            arguments=settings,
            num_examples=self.num_examples,
            streaming=self.stream,
            seed=self.args.seed,
            steps=self.steps_done,
            extended=self.extended,
            epochs=self.steps_done / self.steps_per_epoch if self.steps_per_epoch else None,
            global_batch_size=self.global_batch_size,
            trainable_parameters=sum(p.numel() for p in self.model.parameters() if p.requires_grad),
            seconds=round(self.elapsed, 2),
            seconds_waiting_for_data=round(self.data_wait, 2),
            **summarize_losses(lines),
            machine=describe_machine(self.accelerator),
            versions=package_versions(),
        )

    def _seed(self, seed: int) -> None:
        """Of PyTorch's random numbers; on the CPU without telling absent accelerators, which takes milliseconds."""
        set_seed = torch.default_generator.manual_seed if self.accelerator.device.type == "cpu" else torch.manual_seed
        set_seed(seed)

    def _release(self) -> None:
        """Give the model back as it came: no wrapper, no patched forward, no gradients, ready to explain."""
        self.accelerator.unwrap_model(self.wrapped, keep_fp32_wrapper=False)
        if not self._had_forward:
            self.model.__dict__.pop("forward", None)
        self.model.zero_grad(set_to_none=True)
        self.model.eval()
        self.accelerator.free_memory()


def _is_plain(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _feature(dataset: Any, column: str | None) -> Any:
    features = getattr(dataset, "features", None)
    return features[column] if features is not None and column is not None else None


def _classifier_config(model: torch.nn.Module) -> Any:
    return getattr(getattr(model, "backbone", None), "config", None) or getattr(model, "config", None)
