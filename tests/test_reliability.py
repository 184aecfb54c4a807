"""docs/reliability.md says what the tests that break something say."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from tests.twin import ROOT


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_reliability", ROOT / "docs/make_reliability.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_reliability"] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_tests_say(maker: ModuleType) -> None:
    assert maker.PAGE.read_text("utf-8") == maker.page(), "run `python docs/make_reliability.py`"


def test_there_are_at_least_forty_each_said_in_full(maker: ModuleType) -> None:
    found = list(maker.faults())
    assert len(found) >= 40
    assert len({one.fault for one in found}) == len(found), "two rows for one fault"
    assert {one.area for one in found} == set(maker.AREAS)
    for one in found:
        assert all(len(words) > 10 for words in (one.fault, one.how, one.held)), one.test
