"""One dialect: every option of every command, in both spellings, under its old name, and back to words."""

import argparse
import dataclasses
import functools
import importlib

import pytest

from hf_explain.apps import arguments as commands
from hf_explain.apps.command_line import (
    OLD_NAMES,
    add_options,
    as_words,
    current_words,
    format_value,
    parse_assignments,
    parse_value,
    part_of,
    read_options,
)
from hf_explain.cli import COMMANDS, main
from hf_explain.evaluation.arguments import ComparisonArguments, ErrorStudyArguments
from hf_explain.training.arguments import ExplainerTrainingArguments


# the least that every command has to be told
NEEDED = {
    "quickstart": [],
    "train": ["--classifier", "c", "--dataset", "d", "-o", "out"],
    "explain": ["a.png", "b.png", "--model", "m", "-o", "out"],
    "methods": [],
    "evaluate": ["--classifier", "c", "--dataset", "d", "-o", "out", "--explainers", "lcam=head,gradcam"],
    "errors": ["--model", "m", "--dataset", "d", "-o", "out"],
    "export": ["--model", "m", "--dataset", "d", "-o", "out"],
    "onnx": ["head", "-o", "head.onnx"],
    "push": ["head", "--repo", "me/head"],
    "push-metric": ["auc_d", "--repo", "me/auc_d"],
    "card": ["head", "other", "-o", "out"],
    "demo": ["--model", "m", "--model", "n"],
}


@functools.cache
def parser_of(name):
    parser = argparse.ArgumentParser()
    add_options(parser, COMMANDS[name].options)
    return parser


def read(name, *words):
    kind = COMMANDS[name].options
    return read_options(kind, parser_of(name).parse_args(current_words([*NEEDED[name], *words])[0]))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_in_both_spellings(name):
    told = 0
    for action in parser_of(name)._actions:
        if not action.option_strings or action.dest == "help":
            continue
        field = next(one for one in dataclasses.fields(COMMANDS[name].options) if one.name == action.dest)
        for option in (one for one in action.option_strings if one.startswith("--")):
            assert "-" not in option[2:]
            if action.nargs == 0:
                words, expected = [], not option.startswith("--no_")
            elif field.metadata.get("form"):
                parts = field.metadata["form"].count(".")
                words, expected = [["a=7"], ["a.b=7"]][parts], [{"a": 7}, {"a": {"b": 7}}][parts]
            elif action.choices:  # of a list, too
                words, expected = [action.choices[-1]], action.choices[-1]
            elif action.type in (int, float):
                words, expected = (
                    ["0.4" if action.type is float else "32"],
                    action.type("0.4" if action.type is float else "32"),
                )
            else:
                words, expected = ["all"], "all"  # which is also a tracker
            if action.dest == "target" and name == "export":
                expected = "label"
            found = {getattr(read(name, one, *words), action.dest).__repr__() for one in spellings(option)}
            assert len(found) == 1
            value = getattr(read(name, option, *words), action.dest)
            if isinstance(value, list):
                expected = value[:-1] + [expected]
            assert value == expected or str(value) == expected, option
            told += 1
    assert told >= 3 or name in ("push-metric", "quickstart")


def spellings(option):
    return option, option.replace("_", "-")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_a_function_and_says_all_of_its_options(name):
    module, _, function = COMMANDS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert COMMANDS[name].options.__doc__
    help_text = parser_of(name).format_help()
    for field in dataclasses.fields(COMMANDS[name].options):
        if field.metadata.get("help") and not field.metadata.get("positional"):
            assert f"--{field.metadata.get('flag') or field.name}" in help_text


def test_one_name_for_one_thing():
    options = {
        name: {word for action in parser_of(name)._actions for word in action.option_strings} for name in COMMANDS
    }
    for words in options.values():
        assert not words & {*OLD_NAMES, "--disable_progress", "--cpu", "--config", "--data"}
    for name in ("train", "evaluate", "errors", "export"):
        shared = {"--dataset", "--dataset_config", "--dataset_revision", "--split", "--streaming", "--cache_dir"}
        assert shared | {"--device", "--no_progress", "--image_column", "--label_column"} <= options[name]
    assert all("--device" in options[name] and read(name).device is None for name in ("explain", "demo", "train"))


def test_defaults_are_those_of_python():
    for name, kind, needed in (
        ("train", ExplainerTrainingArguments, {"output_dir": "out"}),
        ("errors", ErrorStudyArguments, {}),
        ("export", commands.ExportArguments, {"model": "m", "dataset": "d", "split": "train"}),
    ):
        assert part_of(read(name), kind) == kind(**needed)
    found = part_of(read("evaluate"), ComparisonArguments)
    info = {"name": "d", "split": "validation", "config": None, "revision": None}
    assert found == ComparisonArguments(output_dir="out", dataset_info=info)


@pytest.mark.parametrize(
    ("name", "old", "new", "value"),
    [
        ("train", ["--disable_tqdm"], "progress", False),
        ("train", ["--disable-tqdm"], "progress", False),
        ("train", ["--no-disable_tqdm"], "progress", True),
        ("train", ["--use_cpu"], "device", "cpu"),
        ("train", ["--no-use_cpu"], "device", None),
        ("train", ["--train-split=half"], "split", "half"),
        ("train", ["--train_split", "half"], "split", "half"),
        ("export", ["--use-cpu"], "device", "cpu"),
        ("export", ["--disable_tqdm"], "progress", False),
        ("errors", ["--no-progress"], "progress", False),
        ("push", ["--self-contained-code"], "code", "self-contained"),
        ("push", ["--stub-code"], "code", "stub"),
    ],
)
def test_old_names_are_read_for_good(name, old, new, value):
    assert getattr(read(name, *old), new) == value
    _, notes = current_words(old)
    assert len(notes) == (old != ["--no-progress"]) and all(old[0].split("=")[0] in note for note in notes)


def test_old_names_of_python():
    old = ExplainerTrainingArguments(output_dir="x", use_cpu=True, disable_tqdm=True)
    assert old == ExplainerTrainingArguments(output_dir="x", device="cpu", progress=False)
    old = commands.ExportArguments(model="m", dataset="d", use_cpu=True, disable_tqdm=True)
    assert old == commands.ExportArguments(model="m", dataset="d", device="cpu", progress=False)


def test_words_that_are_no_options_stay():
    words = ["--limitations=--a-b", "x-y", "a --b-c", "--", "--dry-run"]
    assert current_words(words) == (words, [])


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("evaluate", ["--metrics", "auc_d,road", "--preset", "auc_d=chefer", "--metric_option", "auc_d.steps=20"]),
        ("evaluate", ["--method_option", "a.b=[1]", "--method_option", 'a.c="1"', "--slow", "a,b", "--no_progress"]),
        ("train", ["--report_to", "--head_option", "variant=img", "--no_cycle_momentum", "--learning_rate", "0.5"]),
        ("train", ["--distill_method", "rise", "--distill_steps", "9", "--method_option", "rise.num_masks=10"]),
        ("card", ["--evaluation", "a.json", "b.json"]),
        ("explain", ["--target", "tench", "--target", "3", "--on_error", "skip"]),
        ("explain", ["--method", "a=b", "--method", "rise", "--save_map", "npy", "--method_option", "rise.seed=1"]),
    ],
)
def test_words_of_settings_are_read_as_the_same(name, more):
    found = read(name, *more)
    again = parser_of(name).parse_args(as_words(found))
    assert read_options(type(found), again) == found


def test_values():
    assert [parse_value(text) for text in ("1", "1.5", "true", "True", "None", "null", "[1]", "tench, fish")] == [
        1, 1.5, True, True, None, None, [1], "tench, fish"
    ]  # fmt: skip
    for value in ("1", "true", "None", "a b", 1, 2.5, None, ["x"], {"a": 1}):
        assert parse_value(format_value(value)) == value
    for word in ("variant", "=x", "a.b=1", "9=x"):
        with pytest.raises(ValueError, match=f"head_option '{word}' is not NAME=VALUE: write for example variant=img"):
            parse_assignments([word], "head_option")
    for word in ("a=1", ".b=1", "a.=1"):
        with pytest.raises(ValueError, match="is not A.B=VALUE"):
            parse_assignments([word], "x", "A.B=VALUE")
    assert parse_assignments(["gradcam++.layer=stage4"], "x", "A.B=VALUE") == {"gradcam++": {"layer": "stage4"}}


def test_version(capsys):
    import hf_explain

    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"hf-explain {hf_explain.__version__}\n"


def test_what_an_option_cannot_be_is_said_before_anything_starts(capsys):
    argv = ["export", "--model", "m", "--dataset", "d", "-o", "x", "--use_cpu", "--top-k", "0"]
    assert main(argv) == 1
    assert capsys.readouterr().err.splitlines() == [
        "hf-explain export: --use_cpu is called --device cpu now.",
        "hf-explain export: `top_k` must be a whole number of at least 1, got 0.",
    ]
