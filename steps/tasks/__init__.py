"""What differs between kinds of tasks. One module per task, all of one shape: `Task`.

What a model says of a sample (`Said`) is for a classifier a row of probabilities, for every other task a
dictionary with the columns that `kinds.KINDS[name].outputs` lists, made of nothing that JSON does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steps.params import Arm, Machine, Model, Validation

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from steps.data import Samples, Targets
    from steps.network import Backbone, Inputs

# A sample as it is stored or sent: a file, its bytes, a text, or two texts.
Content: TypeAlias = Path | bytes | str | tuple[str, str]
# Of a classifier shape (samples, classes), float32; else one dictionary a sample.
Said: TypeAlias = "NDArray[np.float32] | list[dict[str, Any]]"


@dataclass(frozen=True)
class Expectation:
    """One thing that must hold of the table of samples.

    Attributes:
        name: its name in params.yaml.
        kind: the class in `great_expectations.expectations`.
        arguments: the arguments of that class.
        reason: why a row that breaks it is rejected; may use the row's columns as `{column}`.
        one_by_one: whether rows can be rejected one by one; otherwise the table as a whole is wrong.
        text: what must hold, in words; the ones that every task shares have theirs in validate.
    """

    name: str
    kind: str
    arguments: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    one_by_one: bool = True
    text: str = ""


@dataclass(frozen=True)
class Case:
    """A sample beside what a model said of it, for readers of the report.

    Attributes:
        truth: in a few words.
        predicted: in a few words.
        pictures: captions with WebP pictures, e.g. boxes drawn, true and predicted.
        marks: a text in pieces, each with what it is: "" plain, "right", "missed" or "wrong".
    """

    truth: str
    predicted: str
    pictures: tuple[tuple[str, bytes], ...] = ()
    marks: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Ask:
    """How samples are predicted.

    Attributes:
        classes: in the order of the network's outputs.
        model: the experiment's settings of the model.
        device: where to compute.
        cut: the samples are activations after so many layers.
        precision: as in `machine.precision`.
        pretrained: the folder that fetch made; its tokenizer writes texts.
    """

    classes: list[str]
    model: Model
    device: torch.device
    cut: int = 0
    precision: str = "float32"
    pretrained: Path | None = None


class Criterion(Protocol):
    """The loss of a batch."""

    def to(self, device: torch.device) -> None:
        """Compute there from now on."""
        ...

    def mixed(self, inputs: Inputs, targets: Any) -> tuple[Inputs, Any]:  # noqa: ANN401 - the task's affair
        """Inputs and targets after they were mixed, where the task mixes."""
        ...

    def forced(self, inputs: Inputs, targets: Any) -> Inputs:  # noqa: ANN401 - the task's affair
        """The inputs, with what the network is told of the targets while it learns: where it writes texts,
        the true tokens before each (teacher forcing; Williams and Zipser, 1989).
        """
        ...

    def share(self, outputs: Any, targets: Any, whole: Any) -> Tensor:  # noqa: ANN401 - the task's affair
        """This part's share of the mean loss over its whole batch; the shares add up to it.

        Args:
            outputs: of the network, for this part.
            targets: of this part: a tensor, or a dictionary of tensors, the samples first.
            whole: the targets of the whole batch that the part is of.
        """
        ...


@dataclass(frozen=True)
class Simple:
    """What a method without any training of a network says of the test split.

    Attributes:
        about: the method in words.
        said: of each test item.
    """

    about: str
    said: list[dict[str, Any]]


class Task(Protocol):
    """A kind of data and what is done with it. Methods that need torch import it themselves."""

    name: str
    column: Literal["path", "text"]

    # ------------------------------------------------------------------------------- of the data

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

    def classes(self, rows: pd.DataFrame) -> list[str]:
        """The classes, categories or tags of an experiment, in the order of a network's outputs."""
        ...

    def content(self, row: Any, folder: Path) -> Content:  # noqa: ANN401 - a row of a data frame
        """The content of a row of the manifest; `folder` is the experiment's data folder."""
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

    # --------------------------------------------------------------------------- of the training

    def targets(
        self, rows: pd.DataFrame, classes: list[str], samples: Samples, folder: Path, model: Model
    ) -> Tensor | Targets:
        """What is to be learnt of each sample: class indices, or targets that are collated by themselves.

        Args:
            rows: of the manifest, those that `samples` were made of.
            classes: as `classes` gives them.
            samples: the inputs; a task that makes its labels itself asks them.
            folder: the experiment's data folder.
            model: the experiment's settings of the model.
        """
        ...

    def head(self, backbone: Backbone, classes: list[str], model: Model, arm: Arm) -> nn.Module:
        """The new top, with weights drawn from torch's global generator."""
        ...

    def objective(self, arm: Arm, targets: Any, classes: list[str]) -> Criterion:  # noqa: ANN401 - see targets
        """The loss; `targets` are those of the train split."""
        ...

    # ------------------------------------------------------------------------- of what came of it

    def predict(self, network: nn.Module, samples: Samples, ask: Ask) -> Said:
        """What a network says of all samples, in their order and in eval mode."""
        ...

    def truths(self, rows: pd.DataFrame) -> list[Any]:
        """What would have been right, of each row, in the form that `scores` takes."""
        ...

    def scores(self, truths: list[Any], said: Said, classes: list[str]) -> dict[str, NDArray[np.float64]]:
        """Each item's share in every metric of the task, shape (items,); the mean of shares is the metric."""
        ...

    def baselines(
        self,
        rows: pd.DataFrame,
        classes: list[str],
        folder: Path,
        model: Model | None = None,
        pretrained: Path | None = None,
    ) -> Mapping[str, Simple]:
        """What simple methods say of the rows of the test split, by name; of classifiers baseline knows more.

        Args:
            rows: of the manifest, with the column `split`.
            classes: as `classes` gives them.
            folder: the experiment's data folder.
            model: the experiment's settings of the model, for tasks that make their labels themselves.
            pretrained: the folder that fetch made, for the same: its tokenizer says what a token is.
        """
        ...

    def case(self, row: Any, said: dict[str, Any], folder: Path) -> Case:  # noqa: ANN401 - a row of a data frame
        """A row of the manifest beside what a model said of it; of classifiers the report knows itself."""
        ...


def get(name: str) -> Task:
    """The task of that name.

    The imports are written out: what a stage depends on, and what a training's key hashes, is read off them.
    """
    # A task of your own: its two lines go here.
    found = _of_images(name) or _of_texts(name) or _of_own_labels(name)
    assert found is not None, name
    return found


def _of_images(name: str) -> Task | None:
    if name == "image-classification":
        from steps.tasks.image_classification import ImageClassification

        return ImageClassification()
    if name == "image-multilabel":
        from steps.tasks.image_multilabel import ImageMultilabel

        return ImageMultilabel()
    if name == "object-detection":
        from steps.tasks.object_detection import ObjectDetection

        return ObjectDetection()
    if name == "semantic-segmentation":
        from steps.tasks.semantic_segmentation import SemanticSegmentation

        return SemanticSegmentation()
    return None


def _of_texts(name: str) -> Task | None:
    if name == "text-classification":
        from steps.tasks.text_classification import TextClassification

        return TextClassification()
    if name == "text-pair-classification":
        from steps.tasks.text_pair_classification import TextPairClassification

        return TextPairClassification()
    if name == "text-multilabel":
        from steps.tasks.text_multilabel import TextMultilabel

        return TextMultilabel()
    if name == "token-classification":
        from steps.tasks.token_classification import TokenClassification

        return TokenClassification()
    if name == "question-answering":
        from steps.tasks.question_answering import QuestionAnswering

        return QuestionAnswering()
    if name == "summarisation":
        from steps.tasks.summarisation import Summarisation

        return Summarisation()
    return None


def _of_own_labels(name: str) -> Task | None:
    if name == "masked-language-model":
        from steps.tasks.masked_language_model import MaskedLanguageModel

        return MaskedLanguageModel()
    if name == "causal-language-model":
        from steps.tasks.causal_language_model import CausalLanguageModel

        return CausalLanguageModel()
    if name == "replaced-token-detection":
        from steps.tasks.replaced_token_detection import ReplacedTokenDetection

        return ReplacedTokenDetection()
    if name == "next-sentence-prediction":
        from steps.tasks.next_sentence_prediction import NextSentencePrediction

        return NextSentencePrediction()
    if name == "masked-image-model":
        from steps.tasks.masked_image_model import MaskedImageModel

        return MaskedImageModel()
    return None


def contents(task: Task, rows: pd.DataFrame, folder: Path) -> list[Content]:
    """The contents of rows of the manifest, in their order."""
    return [task.content(row, folder) for row in rows.itertuples()]


def target_of(row: Any) -> Any:  # noqa: ANN401 - a row of a data frame; any JSON value
    """What is to be predicted of a row, as the reader of the raw data wrote it."""
    return json.loads(row.target)
