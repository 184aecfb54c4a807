"""Models of one entry under `pretrained:`: which weights, where they come from, and what pins them.

An entry is a mapping with a `source`, or one line of text that stands for it: `hf:owner/name@revision`.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    StringConstraints,
    model_validator,
)

from steps.settings import Settings, suggest

# Lower case, digits and dashes: safe as a folder, a DVC stage name and a model name alike.
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]
Networks = Literal["timm", "transformers"]


def _inside(value: str) -> str:
    if not value or PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise ValueError("must be a path below its folder, without '..'")
    return value


def _commit(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(r"[0-9a-f]{40}", value):
        raise ValueError(
            f"must be a commit of 40 hexadecimal digits, is {value!r}; a branch or tag moves: leave it out "
            "and run `headstart pin`, which fills in the newest commit"
        )
    return value


def _repository(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", value) or ".." in value:
        raise ValueError(f"must be `owner/name`, as the hub spells it, is {value!r}")
    return value


def _timm_name(value: str) -> str:
    if not re.fullmatch(r"[\w-]+(\.[\w-]+)?", value):
        raise ValueError(f"must be timm's name such as `resnet50.a1_in1k`, is {value!r}")
    return value


def _handle(value: str) -> str:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+){3}", value) or ".." in value:
        raise ValueError(f"must be `owner/model/framework/variation`, as the hub spells it, is {value!r}")
    return value


def _some_path(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError("must be a path")
    return value


PathInside = Annotated[str, AfterValidator(_inside)]
Commit = Annotated[str, BeforeValidator(_commit)]
AnyPath = Annotated[str, AfterValidator(_some_path)]


class PackageWeights(Settings):
    """Weights that an installed Python package ships."""

    source: Literal["package"]
    package: str = Field(description="Name of the installed Python package, as imported.")
    file: PathInside = Field(description="The weights, below the package's folder.")
    sha256: Sha256
    library: Networks
    architecture: str = Field(description="timm's name of the model; for transformers the model type.")
    names: Literal["by_name", "by_order"] = Field(
        "by_name", description="How tensors are matched; by order every shape must fit."
    )
    licence: str
    mean: Triple = (0.5, 0.5, 0.5)
    std: Triple = (0.5, 0.5, 0.5)


class TimmWeights(Settings):
    """Weights of timm's own models, from the hub that timm takes them from."""

    source: Literal["timm"]
    model: Annotated[str, AfterValidator(_timm_name)] = Field(
        description="timm's name with its tag: `resnet50.a1_in1k`."
    )
    revision: Commit | None = Field(None, description="Commit on the hub; `headstart pin` fills it in.")
    sha256: Sha256 | None = Field(None, description="Of the weights; `headstart pin` fills it in.")
    licence: str | None = Field(None, description="As the hub states it; `headstart pin` fills it in.")
    library: Literal["timm"] = "timm"
    mean: Triple | None = Field(None, description="Else what the model was trained with.")
    std: Triple | None = Field(None, description="Else what the model was trained with.")


class HfWeights(Settings):
    """Weights in a repository of the Hugging Face hub."""

    source: Literal["hf"]
    model: Annotated[str, AfterValidator(_repository)] = Field(
        description="The repository: `owner/name`, e.g. `google-bert/bert-base-uncased`."
    )
    revision: Commit | None = Field(None, description="Commit on the hub; `headstart pin` fills it in.")
    sha256: Sha256 | None = Field(None, description="Of the weights; `headstart pin` fills it in.")
    licence: str | None = Field(None, description="As the hub states it; `headstart pin` fills it in.")
    library: Networks = Field("transformers", description="Whose layout the repository has.")


class TfhubWeights(Settings):
    """A SavedModel of TensorFlow, from Kaggle's model hub or in a folder; only the head upon it trains."""

    source: Literal["tfhub"]
    handle: Annotated[str, AfterValidator(_handle)] | None = Field(
        None, description="On the hub: `owner/model/framework/variation`."
    )
    path: AnyPath | None = Field(None, description="In its place: a folder with `saved_model.pb`.")
    version: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Of the handle; `headstart pin` fills it in."
    )
    sha256: Sha256 | None = Field(None, description="Of the whole folder; `headstart pin` fills it in.")
    licence: str | None = None
    image_size: int = Field(224, ge=16, le=1024, description="Side of the square image it takes, in pixels.")
    library: Literal["savedmodel"] = "savedmodel"

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.handle is None) == (self.path is None):
            raise ValueError("name either `handle`, a model on the hub, or `path`, a folder")
        if self.path is not None and self.version is not None:
            raise ValueError("`version` goes with `handle` only; a folder is pinned by its `sha256`")
        return self


class FolderWeights(Settings):
    """A folder that holds a whole model: config.json, weights, and a tokenizer for texts."""

    source: Literal["folder"]
    path: AnyPath = Field(description="The folder, in the layout of transformers or of timm.")
    library: Networks = Field("transformers", description="Whose layout the folder has.")
    sha256: Sha256 | None = Field(None, description="Of the whole folder; `headstart pin` fills it in.")
    licence: str = ""


class FileWeights(Settings):
    """A file of tensors alone; the entry says what network they belong to."""

    source: Literal["file"]
    path: AnyPath = Field(description="A .safetensors, .pth, .pt or .bin file.")
    library: Networks
    architecture: str | None = Field(
        None,
        description="timm's name of the model; for transformers the model type, without a `config`.",
    )
    config: AnyPath | None = Field(None, description="transformers: the model's config.json.")
    tokenizer: AnyPath | None = Field(None, description="transformers: a folder with the tokenizer's files.")
    rename: dict[str, str] = Field(
        default_factory=dict, description="Beginnings of names in the file, and what they become."
    )
    allow_missing: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="Globs of the network's tensors that may be missing; they are drawn at random."
    )
    mean: Triple | None = Field(None, description="Else what the architecture's own weights want.")
    std: Triple | None = Field(None, description="Else what the architecture's own weights want.")
    sha256: Sha256 | None = Field(None, description="Of the file; `headstart pin` fills it in.")
    licence: str = ""

    @model_validator(mode="after")
    def _says_what_it_is(self) -> Self:
        if self.library == "timm":
            if self.architecture is None:
                raise ValueError("`architecture` is missing: timm's name of the network the tensors are of")
            for name in ("config", "tokenizer"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` goes with `library: transformers` only")
        elif self.architecture is None and self.config is None:
            raise ValueError("`config` is missing: the config.json of the network the tensors are of")
        return self


class RegistryWeights(Settings):
    """The backbone of a model that Headstart registered: what was learnt there is the start here."""

    source: Literal["registry"]
    model: Annotated[str, StringConstraints(pattern=r"^headstart-[a-z0-9]+(-[a-z0-9]+)*$")] = Field(
        description="Its name in the registry: `headstart-` and the experiment."
    )
    alias: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][\w-]*$")] | None = Field(
        None, description="Where `headstart pin` looks for the version, e.g. `champion`."
    )
    version: Annotated[int, Field(ge=1)] | None = Field(
        None, description="What is taken; `headstart pin` fills it in from the alias."
    )
    sha256: Sha256 | None = Field(None, description="Of the backbone's weights; `headstart pin` fills it in.")
    library: Networks = Field("timm", description="That of the registered model.")
    licence: str = ""

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.alias is None and self.version is None:
            raise ValueError("name a `version`, or the `alias` of one, e.g. `champion`")
        return self


class VectorsWeights(Settings):
    """Word vectors, and the small encoder upon them."""

    source: Literal["vectors"]
    path: AnyPath = Field(description="A file of GloVe, word2vec or fastText, or a folder of Model2Vec.")
    format: Literal["auto", "glove", "word2vec", "fasttext", "model2vec"] = "auto"
    encoder: Literal["mean", "cnn", "lstm"] = Field(
        "mean", description="The mean of the vectors, a convolution or an LSTM over them."
    )
    max_words: int = Field(100_000, ge=1, description="So many of the file's words, the frequent first.")
    lower_case: bool = Field(True, description="Texts are read in lower case.")
    sha256: Sha256 | None = Field(None, description="Of the file or folder; `headstart pin` fills it in.")
    licence: str = ""
    library: Literal["vectors"] = "vectors"


class NewWeights(Settings):
    """A network with random weights, to be pretrained here on data without labels."""

    source: Literal["new"]
    library: Networks
    architecture: str = Field(description="timm's name of the model; for transformers the model type.")
    config: dict[str, Any] = Field(
        default_factory=dict, description="Its sizes, by the library's own names: `hidden_size: 128`."
    )
    tokenizer: Slug | None = Field(
        None, description="Another entry under `pretrained:` whose tokenizer it uses; for transformers."
    )
    seed: int = Field(0, ge=0, description="Of the random weights.")
    borrowed: dict[str, Any] | None = Field(
        None, description="The entry that `tokenizer` names; filled in by `resolve`, leave it out."
    )
    licence: Literal[""] = ""

    @model_validator(mode="after")
    def _has_words(self) -> Self:
        if (self.tokenizer is not None) != (self.library == "transformers"):
            raise ValueError(
                "`tokenizer` is missing: the entry under `pretrained:` whose tokenizer it uses"
                if self.tokenizer is None
                else "`tokenizer` goes with `library: transformers` only"
            )
        return self


MODELS: dict[str, type[Settings]] = {
    "package": PackageWeights,
    "timm": TimmWeights,
    "hf": HfWeights,
    "tfhub": TfhubWeights,
    "folder": FolderWeights,
    "file": FileWeights,
    "registry": RegistryWeights,
    "vectors": VectorsWeights,
    "new": NewWeights,
}
# The key that the middle of one line of text stands for, and the one behind `@`.
SHORT: dict[str, tuple[str, str | None]] = {
    "timm": ("model", "revision"),
    "hf": ("model", "revision"),
    "tfhub": ("handle", "version"),
    "folder": ("path", None),
    "file": ("path", None),
    "registry": ("model", "alias"),
    "vectors": ("path", None),
}


def expand(raw: object) -> object:
    """One line of text as the mapping it stands for; anything else as it is.

    Raises:
        ValueError: the line is no reference.
    """
    if not isinstance(raw, str):
        return raw
    source, colon, rest = raw.strip().partition(":")
    if not colon or source not in SHORT:
        forms = " or ".join(f"`{name}:...`" for name in SHORT)
        known = suggest(source, SHORT) if colon else ""
        raise ValueError(f"must be a mapping with a `source`, or {forms}, is {raw!r}{known}")
    key, pin = SHORT[source]
    if pin is None:  # a path may have an @ of its own
        return {"source": source, key: rest}
    name, at, pinned = rest.partition("@")
    long: dict[str, object] = {"source": source, key: name}
    if at and not pinned:
        raise ValueError(f"nothing stands behind the `@` of {raw!r}: leave it out, or give a {pin}")
    if pinned.isdecimal() and source in ("tfhub", "registry"):
        long["version"] = int(pinned)
    elif pinned:
        long[pin] = pinned
    return long


Pretrained = Annotated[
    PackageWeights
    | TimmWeights
    | HfWeights
    | TfhubWeights
    | FolderWeights
    | FileWeights
    | RegistryWeights
    | VectorsWeights
    | NewWeights,
    Discriminator("source"),
    BeforeValidator(expand),
]


class PretrainedSettings(Settings):
    """Read by fetch: the whole of the file is one reference."""

    reference: Pretrained

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, raw: object) -> dict[str, object]:
        return {"reference": raw}


def unpinned(reference: Pretrained) -> list[str]:
    """The keys that have to be filled in before the bytes are certain; none when everything is pinned."""
    wanted: tuple[str, ...]
    match reference:
        case TimmWeights() | HfWeights():
            wanted = ("revision", "sha256")
        case TfhubWeights():
            wanted = ("sha256",) if reference.path is not None else ("version", "sha256")
        case RegistryWeights():
            wanted = ("version", "sha256")
        case FolderWeights() | FileWeights() | VectorsWeights():
            wanted = ("sha256",)
        case _:
            wanted = ()
    return [name for name in wanted if getattr(reference, name) is None]
