"""Great Expectations: judge tables, and write its Data Docs so that they open without a network."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import great_expectations as gx
import numpy as np
import pandas as pd
from great_expectations.checkpoint import CheckpointResult
from great_expectations.core import RunIdentifier
from great_expectations.data_context.types.base import (
    DataContextConfig,
    InMemoryStoreBackendDefaults,
    ProgressBarsConfig,
)
from great_expectations.execution_engine import pandas_execution_engine

from steps.errors import HeadstartError
from steps.params import Level
from steps.tasks import Expectation

# Great Expectations' words for our levels.
SEVERITY = {"error": "critical", "warning": "warning"}
# Rows from which on a table is large.
LARGE = 100_000
# Of a column of texts, to tell whether they repeat.
LOOKED_AT = 1000


@dataclass(frozen=True)
class Finding:
    """What came of one expectation.

    Attributes:
        expectation: which.
        success: whether it holds.
        rows: places in the table of the rows that break it, from 0; empty when it is about the table.
    """

    expectation: Expectation
    success: bool
    rows: list[int]


class Suite:
    """An ephemeral context of Great Expectations: nothing is configured, kept or sent anywhere.

    Args:
        name: shown in the Data Docs.
        docs: folder for the Data Docs.
        texts: what must hold, in words, by the expectation's name, where it has no words of its own.
    """

    def __init__(self, name: str, docs: Path, texts: Mapping[str, str]) -> None:
        self.name, self.docs, self.texts = name, docs, texts
        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {
                "class_name": "TupleFilesystemStoreBackend",
                "base_directory": str(docs.resolve()),
            },
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            data_docs_sites={"local": site},
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False, metric_calculations=False),
        )
        self.context = gx.get_context(mode="ephemeral", project_config=config)
        self.source = self.context.data_sources.add_pandas(name)

    def judge(
        self,
        table: str,
        frame: pd.DataFrame,
        expectations: list[Expectation],
        levels: Mapping[str, Level],
        shown: list[str],
    ) -> list[Finding]:
        """Check a table.

        Args:
            table: its name in the Data Docs.
            frame: the table.
            expectations: what must hold of it.
            levels: how grave each is, by name.
            shown: columns by which the Data Docs name a row.
        """
        suite = self.context.suites.add(gx.ExpectationSuite(name=f"{self.name}-{table}"))
        for place, expectation in enumerate(expectations):
            kind = getattr(gx.expectations, expectation.kind)
            suite.expectations.append(
                kind(
                    **expectation.arguments,
                    severity=SEVERITY[levels[expectation.name]],
                    description=f"{expectation.name}: {expectation.text or self.texts[expectation.name]}",
                    meta={"place": place},
                )
            )
        suite.save()
        batch = self.source.add_dataframe_asset(table).add_batch_definition_whole_dataframe("all")
        definition = self.context.validation_definitions.add(
            gx.ValidationDefinition(name=table, data=batch, suite=suite)
        )
        checkpoint = gx.Checkpoint(
            name=table,
            validation_definitions=[definition],
            # Its own list of broken rows names the row's place in our table.
            result_format={"result_format": "COMPLETE", "unexpected_index_column_names": ["row", *shown]},
        )
        numbered = _plain(frame, _asked(expectations) | set(shown)).assign(row=np.arange(len(frame)))
        with _no_fingerprint_of_large(numbered):
            result = checkpoint.run(
                batch_parameters={"dataframe": numbered}, run_id=RunIdentifier(run_name="validate")
            )
        return _findings(result, expectations)

    def write_docs(self, summary: str) -> None:
        """Write the Data Docs of all tables judged; `summary` is HTML for the first page."""
        self.context.build_data_docs(build_index=False)
        shutil.rmtree(self.docs / "static")
        pages = sorted(self.docs.glob("validations/**/*.html"))
        for page in [*pages, *self.docs.glob("expectations/*.html")]:
            page.write_text(_offline(page.read_text("utf-8")), "utf-8")
        links = "".join(
            f'<li><a href="{page.relative_to(self.docs).as_posix()}">{html.escape(page.stem)}</a></li>'
            for page in pages
        )
        (self.docs / "index.html").write_text(
            f'<!DOCTYPE html><html lang="en"><head>{POLICY}<meta charset="utf-8">'
            f"<title>Validation of {html.escape(self.name)}</title><style>{STYLE}</style></head>"
            f'<body><div class="page">{summary}<h4>In detail</h4><ul>{links}</ul></div></body></html>\n',
            "utf-8",
        )


def _plain(frame: pd.DataFrame, asked: set[str]) -> pd.DataFrame:
    """The table as Great Expectations takes it.

    It knows no pandas text columns, only columns of objects that are texts, and it copies the table for every
    expectation: columns whose values nobody looks at are there by their names alone.
    """
    unseen = {name: False for name in frame.columns if name not in asked}
    texts = [name for name in frame.columns if isinstance(frame[name].dtype, pd.StringDtype)]
    return frame.assign(**unseen, **{name: _objects(frame[name]) for name in texts if name in asked})


def _objects(column: pd.Series) -> pd.Series:
    """Texts as objects; where they are few, as labels are, equal ones share one object."""
    few = column.head(LOOKED_AT).nunique() < LOOKED_AT / 10
    return (column.astype("category") if few else column).astype(object)


@contextmanager
def _no_fingerprint_of_large(frame: pd.DataFrame) -> Iterator[None]:
    """Spare a large table the hash of all its cells, which nobody reads and which takes as much memory again.

    Great Expectations does so by itself, but only from 1 GB on, not counting what the texts take.
    """
    before = pandas_execution_engine.HASH_THRESHOLD
    if len(frame) > LARGE:
        pandas_execution_engine.HASH_THRESHOLD = 0
    try:
        yield
    finally:
        pandas_execution_engine.HASH_THRESHOLD = before


def _asked(expectations: list[Expectation]) -> set[str]:
    """The columns whose values are looked at."""
    return {str(one.arguments["column"]) for one in expectations if "column" in one.arguments}


def _findings(result: CheckpointResult, expectations: list[Expectation]) -> list[Finding]:
    (validated,) = result.run_results.values()
    findings: dict[int, Finding] = {}
    for one in validated.results:
        config = one.expectation_config
        assert config is not None
        expectation = expectations[config.meta["place"]]
        if "observed_value" not in one.result and "element_count" not in one.result:
            raise HeadstartError(
                f"Great Expectations could not judge {expectation.name}: {str(one.exception_info)[-500:]}"
            )
        broken = [] if one.success else one.result.get("unexpected_index_list") or []
        findings[config.meta["place"]] = Finding(
            expectation, bool(one.success), [index["row"] for index in broken]
        )
    assert len(findings) == len(expectations), "an expectation was not judged"
    return [findings[place] for place in sorted(findings)]


def _offline(page: str) -> str:
    """A page of Data Docs without what it would load from elsewhere, and with a style of ours instead.

    Nothing is lost: its scripts sort tables and fold sections in and out, and unfolded is readable.
    """
    # Values are not escaped everywhere: a label may hold HTML. A page so marked runs and loads nothing.
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    page = re.sub(r"<link\b[^>]*>", "", page)
    page = re.sub(r"<a\b[^>]*>\s*<img\b[^>]*>\s*</a>", "", page)
    page = re.sub(r"<img\b[^>]*>", "", page)
    page = re.sub(r"url\([^)]*\)", "none", page)
    page = re.sub(r"<footer\b.*?</footer>", "", page, flags=re.DOTALL)
    return page.replace("<head>", f"<head>{POLICY}", 1).replace(
        "</head>", f"<style>{STYLE}</style></head>", 1
    )


POLICY = (
    """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
)
# The few classes of Bootstrap that Data Docs are laid out with.
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; margin: 0; }
.page { max-width: 1000px; margin: 2rem auto; padding: 0 1rem; }
a { color: #0b5ed7; text-decoration: none; } h4, h5, h6 { margin: .3rem 0; font-size: 1rem; }
.navbar { padding: .5rem 1rem; } .border-bottom { border-bottom: 1px solid #dee2e6; }
ol.breadcrumb { list-style: none; display: inline-flex; gap: 1rem; padding: 0; margin: 0; }
.row { display: flex; flex-wrap: wrap; } .container-fluid { padding: .5rem 1rem; }
.col-lg-2 { width: 17%; } .col-lg-10 { width: 81%; padding-left: 1rem; box-sizing: border-box; }
.col-12 { width: 100%; } .col-6 { width: 50%; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
th, td { border-bottom: 1px solid #dee2e6; padding: .3rem .6rem; text-align: left; vertical-align: top; }
thead[hidden] { display: none; }
.card { border: 1px solid #dee2e6; border-radius: 4px; margin: .3rem 0; padding: .4rem; }
.card[style] { max-height: none !important; } [data-toggle="collapse"] { display: none; }
.card:has(.btn-group) { display: none; }
.card-text, .lead { color: #6c757d; font-size: .9rem; } ul.nav { list-style: none; padding: 0; }
.alert { background: #f1f3f5; border-radius: 4px; padding: .6rem; } .m-0 { margin: 0; }
.text-success, .holds { color: #198754; } .text-danger, .error { color: #c1121f; }
.text-warning, .warning { color: #a15c00; } .holds, .error, .warning { font-weight: 600; }
.badge { background: #e9ecef; border-radius: 4px; padding: 0 .3rem; font-size: .9em; }
.fa-check-circle::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; }
.fa-exclamation-triangle::before, .fa-exclamation-circle::before { content: "!"; }
code, pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""
