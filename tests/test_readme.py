"""README.md: what it shows runs, with tiny models under the names that it uses, and its links lead somewhere."""

import argparse
import re
import shlex
from pathlib import Path

import pytest
from hub_clients import tiny_classifier, tiny_image, tiny_processor
from testing_zero_shot import save_zero_shot

from hf_explain.apps.command_line import add_options, read_options
from hf_explain.cli import COMMANDS, main
from hf_explain.registry import METHOD_ENTRIES


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What only its options are tried of: it needs minutes, a server or an extra; each has tests of its own
PARSED = ("quickstart", "demo", "onnx")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every line of every shell block, as words."""
    joined = "".join(blocks("bash")).replace("\\\n", " ")
    for line in joined.splitlines():
        yield from (shlex.split(part, comments=True) for part in line.split("&&"))


def ours():
    """Those of the program, from its command on."""
    return [words for program, *words in commands() if Path(program).name == "hf-explain"]


@pytest.fixture
def stranger(hub, tmp_path, monkeypatch):
    """A folder with a photograph and a folder of them, and a Hub with the models that README.md names."""
    for name, save in (("microsoft/resnet-50", None), ("openai/clip-vit-base-patch32", save_zero_shot)):
        saved = tmp_path / name.replace("/", "-")
        if save is None:
            tiny_classifier().save_pretrained(saved)
            tiny_processor().save_pretrained(saved)
        else:
            save("clip", saved)
        hub.add_repo(name, {file.name: file.read_bytes() for file in saved.iterdir()})
    home = tmp_path / "home"
    for label in tiny_classifier().config.label2id:
        for split, count in (("train", 11), ("validation", 1)):
            folder = home / "photographs" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                tiny_image().rotate(90 * index).save(folder / f"{index}.png")
    tiny_image().save(home / "photograph.jpg")
    monkeypatch.chdir(home)
    return home


def execute(codes):
    names: dict = {}
    for code in codes:
        exec(compile(code, "README.md", "exec"), names)
    return names


def test_python_runs_and_commands_have_these_options(stranger):
    names = execute(blocks("python")[:-1])
    assert (stranger / "explained.png").is_file() and names["found"]["label"] == "church"
    assert names["found"]["saliency_map"].shape == (40, 60)
    for name, *words in ours():
        parser = argparse.ArgumentParser()
        add_options(parser, COMMANDS[name].options)
        read_options(COMMANDS[name].options, parser.parse_args(words))


@pytest.mark.slow
def test_commands_run_one_after_the_other(stranger, capfd):
    ran = [words for words in ours() if words[0] not in PARSED]
    for words in ran:
        assert main(words) == 0, (words, capfd.readouterr().err)
    assert {name for name, *_ in ran} == {"explain", "train", "evaluate", "errors", "push"}
    for made in ("explained.png", "compared.png", "both.png", "results/results.json", "errors/errors.json"):
        assert (stranger / made).is_file(), made
    names = execute([blocks("python")[0], blocks("python")[-1]])
    assert names["explain"]("photograph.jpg")[0]["method"] == "ttame"


def test_the_other_commands_are_those_known():
    """Of a fresh machine: a pip of a new environment, and the check, which tests/apps/test_scripts.py reads."""
    others = [" ".join(words) for words in commands() if Path(words[0]).name not in ("hf-explain", "pip", "python3")]
    assert others == ["bash scripts/check.sh --fresh"] and (ROOT / "scripts" / "check.sh").is_file()
    assert "--fresh" in (ROOT / "scripts" / "check.sh").read_text()


def test_length_links_and_counts():
    assert 700 <= len(README.split()) <= 900
    free = sum(not method.control for method in METHOD_ENTRIES.values())
    assert f"{free} *training-free\nmethods*" in README or f"{free} *training-free methods*" in README
    anchors = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)", README, re.M)
    }
    for link in re.findall(r"\]\((.*?)\)", README):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif "://" not in link:
            assert (ROOT / link.partition("#")[0]).is_file(), link
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / picture).stat().st_size < 300_000, picture
