"""The README is executed: its Python blocks speak, its commands exist and explain themselves; links lead somewhere."""

import importlib.util
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from e2e_tts.trainers.recipe import load_recipe

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "trainers" / "README.md").read_text(encoding="utf-8")
FOLDERS = (".", "trainers", "pipelines", "space", "tests", "model_cards")
DOCUMENTS = sorted({path for name in FOLDERS for path in (ROOT / name).glob("*.md" if name == "." else "**/*.md")})
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
HELP = re.findall(r"^python -m (\S+) --help$", TEXT, re.MULTILINE)
RECIPES = re.findall(r"--recipe (\w+)", TEXT + TRAINING)
MODULES = sorted(set(re.findall(r"(?:-m |`)(e2e_tts\.[a-z_.]+)", TEXT + TRAINING)))


@pytest.mark.parametrize("block", PYTHON, ids=range(len(PYTHON)))
def test_python_blocks_speak(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    found = names.get("speech", names.get("audio", names.get("chunks")))
    parts = found if isinstance(found, list) else [found]
    for part in parts:
        samples = np.asarray(part["audio"] if isinstance(part, dict) else part)
        assert samples.size and np.isfinite(samples).all() and np.abs(samples).max() > 0.01


@pytest.mark.parametrize("module", HELP)
def test_commands_explain_themselves(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    assert end.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


def test_recipes_that_are_named_exist():
    assert RECIPES
    for name in RECIPES:
        assert (ROOT / "trainers" / "recipes" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("module", MODULES)
def test_modules_that_are_named_exist(module):
    assert importlib.util.find_spec(module) is not None


def test_a_new_voice_is_learned_from_what_the_commands_before_have_written():
    commands = re.search(r"```text\n([^`]*--recipe small_finetune_voice.*?)```", TRAINING, re.DOTALL).group(1)
    prepared, annotated = re.findall(r"--output (runs/data/\S+)", commands)
    data = load_recipe("small_finetune_voice").data
    assert f"--data {prepared} " in commands and data.folders == [annotated]
    assert data.eval_rows == 0, "prepare has held nothing out"


def anchors(document: Path) -> set[str]:
    """Of the headings of a page, as GitHub and the Hub make them."""
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document):
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = (document.parent / file).resolve() if file else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target
