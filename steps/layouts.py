"""The ways raw data may lie: strict models of the section `data` of an experiment in params.yaml."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Discriminator, Field, model_validator

from steps.settings import Settings, suggest

# Data sets that packages ship or that we draw ourselves, with the tasks each is for.
PACKAGED: dict[str, tuple[str, ...]] = {
    "digits": ("image-classification",),
    "bbc-news": ("text-classification",),
    "bbc-news-documents": (
        "masked-language-model",
        "causal-language-model",
        "replaced-token-detection",
        "next-sentence-prediction",
    ),
    "digits-images": ("masked-image-model",),
    "shapes-boxes": ("object-detection",),
    "bbc-news-pairs": ("text-pair-classification",),
    "weather-reports": ("summarisation",),
    "towns-ner": ("token-classification",),
    "facts-qa": ("question-answering",),
    "digit-groups": ("image-multilabel",),
    "bbc-news-mixed": ("text-multilabel",),
    "shapes-masks": ("semantic-segmentation",),
    "drawn-scans": ("image-classification",),
}


def inside(value: str) -> str:
    """A path below a folder.

    Raises:
        ValueError: it is none.
    """
    if not value or PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise ValueError("must be a path below its folder, without '..'")
    return value


def _packaged(name: str) -> str:
    if name not in PACKAGED:
        raise ValueError(f"{name!r} is no data set we know{suggest(name, PACKAGED)}")
    return name


PathInside = Annotated[str, AfterValidator(inside)]
# A path, or one for each split.
Divided = PathInside | dict[Literal["train", "validation", "test"], PathInside]


class PackageData(Settings):
    """A data set that an installed package ships, or that is drawn by seeded chance."""

    source: Literal["package"]
    dataset: Annotated[str, AfterValidator(_packaged)]
    path: Literal["requirements.lock"] = Field(
        description="What DVC watches: the lock file pins the version of the package."
    )


class FolderData(Settings):
    """A folder with one sub-folder per class, or with `train/ val/ test/` folders of such."""

    source: Literal["folder"]
    path: str
    encoding: str = "utf-8"


class ArchiveData(Settings):
    """A zip or tar file that holds what a `folder` source holds."""

    source: Literal["archive"]
    path: str
    encoding: str = "utf-8"
    max_bytes: int = Field(2 * 2**30, gt=0, description="Limit of the unpacked size, in bytes.")
    max_files: int = Field(200_000, gt=0)


class TableData(Settings):
    """A CSV, JSONL or Parquet table: one row a sample.

    Text: `path` is the table, `text` names the column. Images: `path` is a folder, `table` the table
    inside it and `image` the column of image paths, relative to the folder. What is to be predicted stands in
    the column `label` (a class), `labels` (several) or `target` (a text).
    """

    source: Literal["table"]
    path: str
    label: str | None = None
    labels: str | None = Field(None, description="Column of several labels, with `separator` between them.")
    separator: str = Field(";", min_length=1)
    target: str | None = Field(None, description="Column of the text to be written.")
    text: str | None = None
    pair: str | None = Field(None, description="Column of the second text, of tasks that have two.")
    image: str | None = None
    table: PathInside | None = None
    id: str | None = Field(None, description="Column of unique ids; else ids are made from the content.")
    split: str | None = Field(None, description="Column with train, validation or test.")
    group: str | None = Field(None, description="Column of groups that must not be torn apart.")
    encoding: str = "utf-8"

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("name either `text` or `image`, the column the samples are in")
        if self.image is not None and self.table is None:
            raise ValueError("`table` is needed with `image`: the table's name inside the folder `path`")
        if self.text is not None and self.table is not None:
            raise ValueError("`table` goes with `image` only; for texts `path` is the table itself")
        if self.pair is not None and self.text is None:
            raise ValueError("`pair` goes with `text` only: it is a second text")
        if sum(column is not None for column in (self.label, self.labels, self.target)) != 1:
            raise ValueError("name one of `label`, `labels` and `target`, the column to be predicted")
        return self


class CocoData(Settings):
    """Boxes as COCO has them: one JSON file, or one a split, and a folder of images."""

    source: Literal["coco"]
    path: str = Field(description="The folder that holds all of it.")
    annotations: Divided = Field(description="The JSON file below `path`, or one for each split.")
    images: Divided = Field("images", description="The folder of images below `path`, or one for each split.")
    crowd: Literal["drop", "keep"] = Field("drop", description="What is done with boxes of whole crowds.")


class YoloData(Settings):
    """Boxes as YOLO has them: `images/` and `labels/` with the same names, perhaps in `train/ val/ test/`."""

    source: Literal["yolo"]
    path: str
    names: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None, description="The classes in their order; else those of `data.yaml`."
    )


class VocData(Settings):
    """Boxes as Pascal VOC has them: `JPEGImages/`, `Annotations/` and perhaps `ImageSets/Main/`."""

    source: Literal["voc"]
    path: str
    difficult: Literal["drop", "keep"] = "drop"


def colour(value: int | str) -> int:
    """A class number as it is; a colour such as `#ff0000` as one number, its red before green before blue.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int):
        if not 0 <= value < 1 << 16:
            raise ValueError(f"{value} is no class number: they go from 0 to 65535")
        return value
    if not re.fullmatch("#[0-9a-fA-F]{6}", value):
        raise ValueError(f"{value!r} is no colour; write it as '#ff0000'")
    return int(value[1:], 16)


class MasksData(Settings):
    """Images with masks of the same names: PNG of class numbers, or of colours."""

    source: Literal["masks"]
    path: str
    images: PathInside = "images"
    masks: PathInside = "masks"
    classes: dict[str, int | str] = Field(
        min_length=2,
        max_length=250,
        description="Of each class its number in the masks, or its colour such as `#ff0000`.",
    )
    ignore: int | str | None = Field(
        255,
        description="What in a mask belongs to no class and is not judged. Without this key it is 255, "
        "unless that is a class or the classes are colours.",
    )
    table: PathInside | None = Field(
        None, description="A CSV below `path` with the columns `image`, and `group` or `split` or both."
    )

    @model_validator(mode="before")
    @classmethod
    def _default_of_ignore(cls, raw: Any) -> Any:  # noqa: ANN401 - whatever YAML held
        if isinstance(raw, dict) and "ignore" not in raw and isinstance(raw.get("classes"), dict):
            values = list(raw["classes"].values())
            if 255 in values or any(isinstance(value, str) for value in values):
                return {**raw, "ignore": None}
        return raw

    @model_validator(mode="after")
    def _values_differ(self) -> Self:
        values = list(self.classes.values())
        kinds = {type(value) for value in values} | ({type(self.ignore)} - {type(None)})
        if len(kinds) > 1:
            raise ValueError("`classes` and `ignore` must be all numbers or all colours")
        known = [colour(value) for value in values]
        if len(set(known)) < len(known):
            raise ValueError("two `classes` have the same value")
        if self.ignore is not None and colour(self.ignore) in known:
            raise ValueError(f"`ignore: {self.ignore}` is the value of a class; set `ignore: null`")
        return self


class ConllData(Settings):
    """Tokens and their tags, one a line, an empty line between sentences."""

    source: Literal["conll"]
    path: str = Field(description="A file, or a folder with `train`, `dev` and `test` files.")
    token: int = Field(0, description="The column of the token, from 0; from the end where negative.")
    tag: int = Field(-1, description="The column of the tag.")
    separator: str | None = Field(None, min_length=1, description="Between columns; else any blanks.")
    encoding: str = "utf-8"


class JsonlData(Settings):
    """Texts with spans, one JSON object a line: `text`, and a list of `[start, end, label]`."""

    source: Literal["jsonl"]
    path: str
    text: str = "text"
    spans: str = "spans"
    id: str | None = None
    split: str | None = None
    group: str | None = None
    encoding: str = "utf-8"


class SquadData(Settings):
    """Questions on paragraphs as SQuAD has them, version 1.1 or 2.0."""

    source: Literal["squad"]
    path: str = Field(description="The JSON file, or a folder that holds those of `files`.")
    files: dict[Literal["train", "validation", "test"], PathInside] | None = None


class DocumentsData(Settings):
    """A folder of text files, each a document; sub-folders are walked through and mean nothing."""

    source: Literal["documents"]
    path: str
    encoding: str = "utf-8"
    max_bytes: int = Field(16 * 2**20, gt=0, description="Largest file that is read, in bytes.")


class ImagesData(Settings):
    """A folder of images without labels; sub-folders are walked through and mean nothing."""

    source: Literal["images"]
    path: str


Data = Annotated[
    PackageData
    | FolderData
    | ArchiveData
    | TableData
    | CocoData
    | YoloData
    | VocData
    | MasksData
    | ConllData
    | JsonlData
    | SquadData
    | DocumentsData
    | ImagesData,
    Discriminator("source"),
]
MODELS = (
    PackageData, FolderData, ArchiveData, TableData, CocoData, YoloData, VocData, MasksData, ConllData,
    JsonlData, SquadData, DocumentsData, ImagesData,
)  # fmt: skip
TAGS = frozenset(
    {
        "package", "folder", "archive", "table", "coco", "yolo", "voc", "masks", "conll", "jsonl", "squad",
        "documents", "images",
    }
)  # fmt: skip
