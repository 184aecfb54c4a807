from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from steps.arms import PRESETS, Choices, Lora, Machine

DOCS = Path(__file__).resolve().parent.parent / "docs"


def make_params() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_params", DOCS / "make_params.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_keys_is_what_the_models_say() -> None:
    assert (DOCS / "params.md").read_text("utf-8") == make_params().page(), "run `make docs`"


def test_the_page_names_every_key_and_preset_of_an_arm() -> None:
    page = make_params().page()
    for name in (*Choices.model_fields, *Machine.model_fields, *Lora.model_fields, *PRESETS):
        assert f"| `{name}` |" in page, name


def test_readme_links_lead_somewhere() -> None:
    root = DOCS.parent
    for page in (root / "README.md", root / "CONTRIBUTING.md", *DOCS.glob("*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
