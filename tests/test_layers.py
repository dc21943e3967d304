"""Imports only go down the layers (architecture in the README), and DeepSpeed is known to one file."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmsr_pt"
LAYER_OF_TOP = {
    "config": 0,
    "flags": 0,
    "presets": 0,
    "paper": 0,
    "batch": 0,
    "registry": 0,
    "log": 0,
    "signals": 0,
    "data": 1,
    "models": 1,
    "training": 2,
    "evaluation": 2,
    "cli": 4,
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_modules(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(top: str) -> int:
    return LAYER_OF_TOP.get(top, 3)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path: Path) -> None:
    own = top_of(path)
    for name in imported_modules(path):
        parts = name.split(".")
        if parts[0] != "mmsr_pt" or len(parts) < 2:
            continue
        other = parts[1]
        if not ((PACKAGE / other).is_dir() or (PACKAGE / f"{other}.py").is_file()) or other == own:
            continue
        assert layer(other) <= layer(own), f"{path} (layer {layer(own)}) imports {name} (layer {layer(other)})"
        assert {own, other} != {"data", "models"}, f"{path} imports {name}: data and models meet in batch.py"


def test_only_the_engine_imports_deepspeed() -> None:
    users = [p for p in FILES if any(m.split(".")[0] == "deepspeed" for m in imported_modules(p))]
    assert [str(p.relative_to(PACKAGE)) for p in users] == ["training/engine.py"]


@pytest.mark.parametrize("module", ["pretrain.run", "finetune.run", "mmsr_pt.cli"])
def test_a_start_does_not_wait_for_what_few_need(module: str) -> None:
    """transformers alone is half of the time until a run of other towers begins, on every rank."""
    slow = {"deepspeed", "diffusers", "faiss", "fastapi", "gradio", "peft", "timm", "torchvision", "transformers"}
    command = [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"]
    loaded = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "torch" in loaded
    assert slow.isdisjoint(loaded)


def test_scripts_hold_no_logic() -> None:
    for script in ("pretrain/run.py", "finetune/run.py", "shards/build.py"):
        text = (ROOT / script).read_text()
        assert len(text.splitlines()) <= 130, f"{script} is a story of about 100 lines"
        assert "class " not in text


def test_the_tree_in_the_readme_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = readme.partition("## The house")[2].partition("## ")[0]
    names = {path.name for path in FILES if path.name != "__init__.py"}
    assert sorted(name for name in names if not re.search(rf"(?<![\w]){re.escape(name)}", tree)) == []
