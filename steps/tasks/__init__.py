"""What differs between kinds of data. One file per task, all of one shape: `Task`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pandas as pd

from steps.params import ExpectationName, Machine, Model, Validation

if TYPE_CHECKING:
    from steps.data import Samples

# A sample as it is stored or sent: a file, its bytes, or a text.
Content = Path | bytes | str


@dataclass(frozen=True)
class Expectation:
    """One thing that must hold of the table of samples.

    Attributes:
        name: its name in params.yaml.
        kind: the class in `great_expectations.expectations`.
        arguments: the arguments of that class.
        reason: why a row that breaks it is rejected; may use the row's columns as `{column}`.
        one_by_one: whether rows can be rejected one by one; otherwise the table as a whole is wrong.
    """

    name: ExpectationName
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    one_by_one: bool = True


class Task(Protocol):
    """A kind of data and what is done with it. Methods that need torch import it themselves."""

    name: str
    column: Literal["path", "text"]

    def facts(self, manifest: pd.DataFrame, folder: Path, settings: Validation) -> pd.DataFrame:
        """Columns derived from each sample's content, on the manifest's index.

        At least, each None where the content is unreadable:

        * `content`: a hash that equal contents share, and no others;
        * `near_duplicate_of`: id of the first sample before it that it nearly repeats, or None;
        * `near_group`: a key that near duplicates share, and near duplicates of those;
        * `split_key`: what the split draws the sample's side by. It depends on the sample alone, never
          on the others, and is as coarse as that allows: a text's key overlooks case and punctuation.
        """
        ...

    def expectations(self, settings: Validation) -> list[Expectation]:
        """What must hold of the task's own columns."""
        ...

    def samples(
        self,
        contents: Sequence[Content],
        model: Model,
        pretrained: Path,
        augment: Sequence[str] = (),
        machine: Machine | None = None,
    ) -> Samples:
        """Inputs of the backbone, made from contents.

        Args:
            contents: what to read.
            model: the size of images, the most tokens of a text.
            pretrained: the folder fetch made: its tokenizer, or its mean and deviation.
            augment: what makes the views of a sample; images only.
            machine: how much decoded input may be kept in memory and on disk; without it nothing is on disk.

        Raises:
            DataError: a content cannot be read.
            UserError: decoded inputs take more disk than the machine settings allow.
        """
        ...

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The content of a row of the manifest; `folder` is the experiment's data folder."""
        ...


def get(name: str) -> Task:
    """The task of that name."""
    if name == "image-classification":
        from steps.tasks.image_classification import ImageClassification

        return ImageClassification()
    assert name == "text-classification", name
    from steps.tasks.text_classification import TextClassification

    return TextClassification()


def contents(task: Task, rows: pd.DataFrame, folder: Path) -> list[Content]:
    """The contents of rows of the manifest, in their order."""
    return [task.content(row, folder) for row in rows.itertuples()]
