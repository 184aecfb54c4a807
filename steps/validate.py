"""validate: judge the samples before anything is trained on them, and say of each rejected one why.

Great Expectations judges two tables: the samples, with columns derived from their contents, and the
classes, counted over the samples that are left.
"""

from __future__ import annotations

import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_integer_dtype

from steps import artifacts, data, entry, params, tasks
from steps.errors import DataError, ValidationFailedError
from steps.kinds import KINDS
from steps.params import DEFAULT_LEVELS, Level, ValidateSettings, Validation
from steps.suite import Finding, Suite
from steps.tasks import Expectation, Task

# What is kept of a task's facts, beside the manifest.
KEPT_FACTS = ["content", "near_duplicate_of", "near_group", "split_key"]
EXAMPLES = 5

# What the expectations that all tasks share say; those of a task have words of their own.
TEXTS = {
    "columns_present": "the manifest has its columns, of the right types",
    "ids_unique": "every id is there once",
    "labels_not_null": "every sample has a label",
    "labels_consistent": "no label is spelt in two ways (case, blanks)",
    "labels_known": "every label is one of those allowed",
    "samples_per_class": "there are at least two classes, each with min_per_class samples",
    "files_decode": "every image can be decoded",
    "pixels_within_limits": "no image is smaller than min_pixels or larger than max_pixels",
    "text_not_empty": "no text is empty",
    "text_within_limits": "no text is longer than max_characters",
    "no_exact_duplicates": "no content comes twice",
    "no_near_duplicates": "no content nearly repeats another",
    "no_duplicates_across_splits": "no content, nor nearly the same, is on two sides of the given splits",
    "classes_balanced": "the largest class is at most max_imbalance times the smallest",
}


@dataclass(frozen=True)
class Result:
    """What came of one name in `params.EXPECTATIONS`.

    Attributes:
        name: the name.
        level: how grave a failure is.
        success: whether it holds.
        rows: one row for each sample that breaks it: row (its place), id, source, reason.
        about: what else is to say of a failure, e.g. which classes are too small.
        one_by_one: whether rows can be dropped to make it hold.
        text: what must hold, in words.
    """

    name: str
    level: Level
    success: bool
    rows: pd.DataFrame
    about: str
    one_by_one: bool
    text: str

    @property
    def stops(self) -> bool:
        """Whether training must not go on as it is."""
        return not self.success and self.level == "error"

    def line(self) -> str:
        """What is wrong, in a few words."""
        ids = list(dict.fromkeys(self.rows["id"]))
        more = ", ..." if len(ids) > EXAMPLES else ""
        named = f" ({', '.join(ids[:EXAMPLES])}{more})" if ids else ""
        count = f" {len(self.rows):,} row{'s' * (len(self.rows) != 1)}" if len(self.rows) else ""
        return f"{self.name}:{count}{named}{' ' * bool(self.about)}{self.about}"


def validate(experiment: str) -> None:
    """Write `work/<experiment>/validation/`; it is written whether or not the data pass.

    Raises:
        ValidationFailedError: an expectation of level `error` does not hold, and rows are not dropped
            or dropping does not help.
        DataError: the manifest names a file outside of the data folder.
    """
    settings = params.read_settings(ValidateSettings, artifacts.settings_file(experiment, "validate"))
    task = tasks.get(settings.task)
    target = artifacts.validation_dir(experiment)
    folder = artifacts.data_dir(experiment)
    manifest = data.read_manifest(folder)
    with artifacts.new_folder(target) as out:
        suite = Suite(experiment, out / "docs", TEXTS)
        samples, results = _judge_samples(suite, task, manifest, folder, settings.validation)
        kept = _without(samples, results)
        if KINDS[settings.task].classified:
            results += _judge_classes(suite, kept, settings.validation)
        stopping = _stopping(results, settings.validation)
        summary = _summary(experiment, settings, samples, kept, results, success=not stopping)
        _write(out, suite, summary, results)
        if not stopping:
            facts = [name for name in KEPT_FACTS if name in kept]
            data.write_table(kept[[*data.COLUMNS, *facts]], out / "accepted.parquet")
    if stopping:
        raise ValidationFailedError(_message(experiment, stopping, target))
    _say(summary, results, target)


def _judge_samples(
    suite: Suite, task: Task, manifest: pd.DataFrame, folder: Path, settings: Validation
) -> tuple[pd.DataFrame, list[Result]]:
    """Judge each sample; the table of samples with its derived columns is given back too."""
    samples = manifest.reset_index(drop=True)
    expectations = _of_columns(samples)
    if _well_formed(samples):
        _check_inside(samples["path"])
        facts = task.facts(samples, folder, settings)
        samples = _described(samples.join(facts))
        labels = _of_labels(settings) if KINDS[task.name].classified else [UNIQUE]
        expectations += [*labels, *task.expectations(settings), *_of_duplicates(samples)]
    findings = suite.judge("samples", samples, expectations, _levels(settings), ["id", "source"])
    return samples, _results(findings, samples, settings)


def _judge_classes(suite: Suite, kept: pd.DataFrame, settings: Validation) -> list[Result]:
    """Judge the classes, counted over the samples that are not rejected."""
    if "label" not in kept:
        return []
    counts = _class_counts(kept, settings)
    biggest = max(counts.values(), default=0)
    classes = pd.DataFrame({"label": list(counts), "samples": list(counts.values())})
    classes["times_smaller"] = [biggest / count if count else float(biggest + 1) for count in counts.values()]
    findings = suite.judge("classes", classes, _of_classes(settings), _levels(settings), ["label"])
    results = []
    for finding in findings:
        of_class = classes.iloc[finding.rows]
        broken = kept[kept["label"].isin(of_class["label"])]
        said = {row["label"]: _reason(finding.expectation.reason, row) for row in of_class.to_dict("records")}
        about = "; ".join([*said.values()][:EXAMPLES])
        if not finding.success and not finding.rows:
            about = f"there are {len(counts)} classes, which leaves nothing to tell apart"
        elif finding.expectation.name == "classes_balanced":
            # What is wrong is that these are too few, not that they are there.
            broken = broken.head(0)
        results.append(_result(finding, broken, settings, [said[label] for label in broken["label"]], about))
    return _merged(results)


def _levels(settings: Validation) -> dict[str, Level]:
    return {**DEFAULT_LEVELS, **settings.levels}


# ------------------------------------------------------------------------------------------- expectations


def _of_columns(samples: pd.DataFrame) -> list[Expectation]:
    wanted = {"column_set": list(data.COLUMNS), "exact_match": False}
    return [Expectation("columns_present", "ExpectTableColumnsToMatchSet", wanted, one_by_one=False)] + [
        Expectation(
            "columns_present",
            "ExpectColumnValuesToBeInTypeList",
            {"column": name, "type_list": ["int64"] if name == "size" else ["str"]},
            one_by_one=False,
        )
        for name in data.COLUMNS
        # Of a column that is not there, or is empty, there is no type to look at.
        if name in samples and samples[name].notna().any()
    ]


UNIQUE = Expectation(
    "ids_unique", "ExpectColumnValuesToBeUnique", {"column": "id"}, "id {id} is there more than once"
)


def _of_labels(settings: Validation) -> list[Expectation]:
    expectations = [
        UNIQUE,
        Expectation(
            "labels_not_null", "ExpectColumnValuesToNotBeNull", {"column": "label_text"}, "has no label"
        ),
        Expectation(
            "labels_consistent",
            "ExpectColumnValuesToBeNull",
            {"column": "usual_label"},
            "label {label!r} is mostly spelt {usual_label!r}",
        ),
    ]
    if settings.labels is not None:
        known = {"column": "label", "value_set": list(settings.labels)}
        expectations.append(
            Expectation(
                "labels_known", "ExpectColumnValuesToBeInSet", known, "label {label!r} is not allowed"
            )
        )
    return expectations


def _of_duplicates(samples: pd.DataFrame) -> list[Expectation]:
    expectations = [
        Expectation(
            "no_exact_duplicates",
            "ExpectColumnValuesToBeNull",
            {"column": "duplicate_of"},
            "same content as {duplicate_of}{otherwise}",
        ),
        Expectation(
            "no_near_duplicates",
            "ExpectColumnValuesToBeNull",
            {"column": "near_duplicate_of"},
            "nearly the same as {near_duplicate_of}",
        ),
    ]
    if samples["split"].notna().any():
        expectations.append(
            Expectation(
                "no_duplicates_across_splits",
                "ExpectColumnValuesToBeNull",
                {"column": "also_in"},
                "is in {split}, but the same or nearly the same is in {also_in}",
            )
        )
    return expectations


def _of_classes(settings: Validation) -> list[Expectation]:
    least = settings.min_per_class
    return [
        Expectation(
            "samples_per_class", "ExpectTableRowCountToBeBetween", {"min_value": 2}, one_by_one=False
        ),
        Expectation(
            "samples_per_class",
            "ExpectColumnValuesToBeBetween",
            {"column": "samples", "min_value": least},
            f"class {{label!r}} has {{samples}} of at least {least}",
            one_by_one=False,
        ),
        Expectation(
            "classes_balanced",
            "ExpectColumnValuesToBeBetween",
            {"column": "times_smaller", "max_value": settings.max_imbalance},
            f"class {{label!r}} is {{times_smaller:.1f}} times smaller than the largest, above "
            f"{settings.max_imbalance:g}",
            one_by_one=False,
        ),
    ]


# ---------------------------------------------------------------------------------------- derived columns


def _well_formed(samples: pd.DataFrame) -> bool:
    """Whether the manifest has its columns, so that more can be told about the samples."""
    return set(data.COLUMNS) <= set(samples.columns) and all(
        is_integer_dtype(samples[name]) if name == "size" else isinstance(samples[name].dtype, pd.StringDtype)
        for name in data.COLUMNS
    )


def _check_inside(paths: pd.Series) -> None:
    for path in paths.dropna():
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise DataError(f"the manifest names {path!r}, which leaves the data folder; run ingest again")


def _described(samples: pd.DataFrame) -> pd.DataFrame:
    """The table with what can only be told by looking at all samples together."""
    blank = samples["label"].isna() | (samples["label"].fillna("").str.strip() == "")
    samples["label_text"] = samples["label"].mask(blank)
    samples["usual_label"] = _usual_labels(samples["label_text"])
    samples["duplicate_of"], samples["otherwise"] = _exact_duplicates(samples)
    samples["also_in"] = _across_splits(samples)
    return samples


def _usual_labels(labels: pd.Series) -> pd.Series:
    """For a label whose like, but for case and blanks, is more frequent: that one; else None."""
    # A few labels, of many samples: each is folded once.
    folded = labels.map({label: " ".join(label.split()).casefold() for label in labels.dropna().unique()})
    counts = pd.DataFrame({"label": labels, "folded": folded}).value_counts().reset_index()
    ordered = counts.sort_values(["count", "label"], ascending=[False, True])
    usual = folded.map(ordered.drop_duplicates("folded").set_index("folded")["label"])
    return usual.where(usual.notna() & (usual != labels), None)


def _exact_duplicates(samples: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Id of the first sample of the same content, None for the first itself; and whether labels differ."""
    readable = samples["content"].notna()
    repeats = readable & samples["content"].duplicated()
    of = pd.Series(None, index=samples.index, dtype=samples["id"].dtype)
    otherwise = pd.Series("", index=samples.index, dtype=samples["id"].dtype)
    repeated = samples.loc[repeats, ["content", "label"]]
    # Most samples repeat nothing; what is made of all of them takes memory.
    known = samples["content"].isin(repeated["content"])
    first = samples.loc[known, ["content", "id", "label"]].drop_duplicates("content").set_index("content")
    first_label = repeated["content"].map(first["label"])
    differs = first_label.fillna("") != repeated["label"].fillna("")
    of[repeats] = repeated["content"].map(first["id"])
    otherwise[repeats] = (", which is labelled " + first_label.fillna("nothing").map(repr)).where(differs, "")
    return of, otherwise


def _across_splits(samples: pd.DataFrame) -> pd.Series:
    """For a sample whose like is in a later split of train, validation, test: that split and sample.

    So it is always the sample to train on that is at fault, and a test split keeps its samples.
    """
    rank = samples["split"].map({name: place for place, name in enumerate(data.SPLITS)})
    given = samples.assign(rank=rank).dropna(subset=["rank", "near_group"])
    last = given.sort_values("rank", kind="stable", ascending=False).drop_duplicates("near_group")
    last = last.set_index("near_group")
    where = samples["near_group"].map(last["split"].str.cat(last["id"], sep=": "))
    return where.where(rank < samples["near_group"].map(last["rank"]), None)


def _class_counts(samples: pd.DataFrame, settings: Validation) -> dict[str, int]:
    """Samples of each class, sorted; a class that is allowed but has no sample is counted too."""
    counts = samples["label"].value_counts()
    names = sorted({*counts.index, *(settings.labels or ())})
    return {name: int(counts.get(name, 0)) for name in names}


# -------------------------------------------------------------------------------------------------- results


def _results(findings: list[Finding], samples: pd.DataFrame, settings: Validation) -> list[Result]:
    results = []
    for finding in findings:
        broken = samples.iloc[finding.rows if finding.expectation.one_by_one else []]
        reasons = [_reason(finding.expectation.reason, row) for row in broken.to_dict("records")]
        about = ""
        if not finding.success and not finding.expectation.one_by_one:
            missing = [name for name in data.COLUMNS if name not in samples]
            column = finding.expectation.arguments.get("column")
            about = (
                f"column {column} has a wrong type" if column else f"column {', '.join(missing)} is missing"
            )
        results.append(_result(finding, broken, settings, reasons, about))
    return _merged(results)


def _reason(template: str, row: dict[Any, Any]) -> str:
    return template.format(**{str(name): value for name, value in row.items()})


def _result(
    finding: Finding, broken: pd.DataFrame, settings: Validation, reasons: list[str], about: str
) -> Result:
    name = finding.expectation.name
    columns = {"row": broken.index, "reason": reasons}
    columns |= {name: broken.get(name, "") for name in ("id", "source")}
    return Result(
        name,
        _levels(settings)[name],
        finding.success,
        pd.DataFrame(columns, index=broken.index),
        about,
        finding.expectation.one_by_one,
        finding.expectation.text or TEXTS[name],
    )


def _merged(results: list[Result]) -> list[Result]:
    """One result a name: a row that breaks two expectations of one name is told once."""
    merged: dict[str, Result] = {}
    for result in results:
        before = merged.get(result.name)
        if before is not None:
            rows = pd.concat([before.rows, result.rows]).drop_duplicates("row")
            about = "; ".join(filter(None, (before.about, result.about)))
            success = before.success and result.success
            text = result.text if result.text == before.text else f"{before.text}; {result.text}"
            result = Result(result.name, result.level, success, rows, about, result.one_by_one, text)
        merged[result.name] = result
    return list(merged.values())


def _without(samples: pd.DataFrame, results: list[Result]) -> pd.DataFrame:
    """The samples that no expectation of level `error` rejects."""
    dropped = {row for result in results if result.stops and result.one_by_one for row in result.rows["row"]}
    return samples[~samples.index.isin(dropped)]


def _stopping(results: list[Result], settings: Validation) -> list[Result]:
    """The results that stop the pipeline: all errors, but for those that dropping rows has settled."""
    dropping = settings.on_reject == "drop"
    return [result for result in results if result.stops and not (dropping and result.one_by_one)]


def _summary(
    experiment: str,
    settings: ValidateSettings,
    samples: pd.DataFrame,
    kept: pd.DataFrame,
    results: list[Result],
    success: bool,
) -> dict[str, Any]:
    """What `validation.json` holds."""
    labelled = "label" in kept and kept["label"].notna().any()
    counts = _class_counts(kept, settings.validation) if labelled else {}
    rejected = {row for result in results if result.stops for row in result.rows["row"]}
    smallest = min(counts.values(), default=0)
    return {
        "experiment": experiment,
        "task": settings.task,
        "rows": len(samples),
        "accepted": len(kept) if success else 0,
        "rejected": len(rejected),
        "on_reject": settings.validation.on_reject,
        "success": success,
        "expectations": [
            {
                "name": result.name,
                "level": result.level,
                "success": result.success,
                "unexpected": len(result.rows),
                "examples": list(dict.fromkeys(result.rows["id"]))[:EXAMPLES],
                "text": result.text + (f": {result.about}" if result.about else ""),
            }
            for result in results
        ],
        "classes": counts,
        "imbalance": max(counts.values()) / smallest if smallest else None,
    }


def _write(out: Path, suite: Suite, summary: dict[str, Any], results: list[Result]) -> None:
    artifacts.write_json(out / "validation.json", summary)
    for name, level in (("rejected.csv", "error"), ("warnings.csv", "warning")):
        tables = [
            result.rows.assign(expectation=result.name)
            for result in results
            if not result.success and result.level == level
        ]
        columns = ["id", "source", "expectation", "reason"]
        table = pd.concat(tables)[columns] if tables else pd.DataFrame(columns=columns)
        table.to_csv(out / name, index=False, lineterminator="\n")
    suite.write_docs(_page(summary))


def _page(summary: dict[str, Any]) -> str:
    """The first page of the Data Docs: every expectation at a glance."""
    rows = []
    for one in summary["expectations"]:
        verdict = "holds" if one["success"] else one["level"]
        cells = (one["name"], verdict, one["unexpected"], one["text"], ", ".join(one["examples"]))
        escaped = [html.escape(str(cell)) for cell in cells]
        escaped[1] = f'<span class="{verdict}">{verdict}</span>'
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in escaped)}</tr>")
    verdict = "passed" if summary["success"] else "stopped"
    return (
        f"<h4>{html.escape(summary['experiment'])}: validation {verdict}</h4>"
        f"<p>{summary['rows']:,} samples, {summary['accepted']:,} accepted, "
        f"{summary['rejected']:,} rejected</p>"
        "<table><tr><th>Expectation</th><th>Outcome</th><th>Samples</th><th>What must hold</th>"
        f"<th>For example</th></tr>{''.join(rows)}</table>"
    )


def _message(experiment: str, stopping: list[Result], target: Path) -> str:
    told = "; ".join(result.line() for result in stopping)
    helps = all(result.one_by_one for result in stopping)
    hint = ", or set `validation.on_reject: drop` to go on without these rows" if helps else ""
    return (
        f"{experiment}: the data do not pass: {told}; every row with its reason is in {target}/rejected.csv, "
        f"the Data Docs are {target}/docs/index.html; correct the data{hint}"
    )


def _say(summary: dict[str, Any], results: list[Result], target: Path) -> None:
    experiment = summary["experiment"]
    for result in results:
        if not result.success:
            kind = "dropped" if result.level == "error" else "warning"
            entry.say(f"{experiment}: {kind}: {result.line()}")
    told = f"{experiment}: {summary['accepted']:,} of {summary['rows']:,} samples accepted"
    if KINDS[summary["task"]].classified:
        told += (
            f", {len(summary['classes'])} classes, the largest {summary['imbalance'] or float('nan'):.2f} "
            "times the smallest"
        )
    entry.say(f"{told}; {target}/docs/index.html")


def main() -> int:
    """Run `python -m steps.validate <experiment>`."""
    return entry.run(validate, "experiment")


if __name__ == "__main__":
    sys.exit(main())
