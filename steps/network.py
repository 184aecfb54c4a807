"""A network: a backbone, then a head, as an ordered list of layers from bottom to top."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from steps import entry, families
from steps.artifacts import read_json, sha256_json
from steps.errors import UserError, WeightsError
from steps.families import Layer, Part, language
from steps.kinds import Gives

__all__ = [
    "Backbone",
    "Gives",
    "ImageBackbone",
    "Inputs",
    "LanguageHead",
    "Layer",
    "Network",
    "Outputs",
    "Probe",
    "TextBackbone",
    "VectorBackbone",
    "architecture",
    "build_backbone",
    "build_head",
    "classifier",
    "generation_model",
    "language_head",
    "load_exactly",
    "prepare_device",
    "probe",
    "reinitialise",
    "save_tensors",
    "state_sha256",
    "stored",
]

# What a backbone eats: an image batch, or a text batch as named tensors; what it gives may be maps as well.
Inputs = Tensor | dict[str, Tensor]
Outputs = Tensor | dict[str, Tensor] | list[Tensor]
Kind = Literal["linear", "mlp"]
# What hubs call the output layer of a model that writes texts.
LM_HEAD = "lm_head.weight"
# The side of the square that the sizes of maps are found out with, in pixels.
PROBED_SIDE = 64
# Of the images that backbones were pretrained on: red, green and blue.
CHANNELS = 3


def prepare_device(wanted: str = "auto") -> torch.device:
    """Make torch deterministic and choose the device.

    Args:
        wanted: "cuda", "mps" (Apple's GPU) or "cpu"; "auto" takes the first of them that is there.

    Raises:
        UserError: a GPU is wanted where none is.
    """
    # cuBLAS is deterministic only with a fixed workspace, to be set before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # float32 is to be float32: cuDNN would round what convolutions read to ten bits, for a tenth of the time.
    torch.backends.cudnn.allow_tf32 = False
    # It would also fill every fresh tensor with NaN, to find code that reads memory nobody has written: a
    # sixth of a step's time on images.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    entry.keep_freed_memory()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, usable in there.items() if usable))
    if not there[wanted]:
        raise UserError(
            f"machine.device is {wanted}, but torch finds no such device here: "
            "set `machine.device: auto` or `cpu`"
        )
    return torch.device(wanted)


class Backbone(nn.Module):
    """A pretrained model without its classifier, which can be run from any layer to any other.

    A cut is a number of layers counted from the bottom: 0 is the raw inputs, `len(layers)` the pooled
    features, and between them lie activations, of images (batch, channels, height, width) or (batch, tokens,
    features), of texts `{"hidden": (batch, tokens, features), "attention_mask": (batch, tokens)}`.

    Attributes:
        name: tells the architecture apart from others.
        model: the library's own.
        features: how many it gives.
        gives: what `forward` ends with. "pooled": (batch, features). "tokens": what there is before pooling,
            of texts `{"hidden": (batch, tokens, features), "attention_mask": ...}`, of images (batch, tokens,
            features) or (batch, channels, height, width). "maps": of images the last activations of every
            size, the largest first, each (batch, channels, height, width).
        checkpointing: in training, keep only what passes from layer to layer and compute the rest anew in the
            backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
    """

    def __init__(self, name: str, model: nn.Module, features: int) -> None:
        super().__init__()
        self.name, self.model, self.features = name, model, features
        self.family = families.of(model)
        self.gives: Gives = "pooled"
        self.checkpointing = False

    @property
    def layers(self) -> list[Layer]:
        """All layers, bottom to top."""
        return [part.layer() for part in self.family.parts(self.model)]

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where `forward` may start and stop."""
        return self._cuts(self.family.parts(self.model))

    @property
    def storable(self) -> tuple[int, ...]:
        """The cuts whose activations can be kept, to go on from them later.

        Not the top where that is made of more than what stands there: maps of several layers, or a text that
        a decoder has read.
        """
        if self.gives == "maps":
            return (0,)
        return self.cuts[:-1] if self.family.decoder else self.cuts

    def _cuts(self, parts: list[Part]) -> tuple[int, ...]:
        inner = [] if self.family.whole else [at for at, part in enumerate(parts[:-1], start=1) if part.cut]
        return (0, *inner, len(parts))

    def forward(self, inputs: Inputs, start: int = 0, stop: int | None = None) -> Outputs:
        """Run the layers `start` to `stop`.

        Args:
            inputs: as they are at the cut `start`.
            start: a cut.
            stop: a cut, the pooled features when not given.

        Returns:
            The activations at the cut `stop`; at the top what the backbone `gives`.
        """
        parts = self.family.parts(self.model)
        stop = len(parts) if stop is None else stop
        assert {start, stop} <= set(self._cuts(parts)), (start, stop, self.cuts)
        if self.gives == "maps" and stop == len(parts):
            assert start == 0, "maps need all layers"
            return list(self._maps(parts, inputs))
        flow: Any = self._laid_out(inputs) if start < stop else inputs
        for part in parts[start:stop]:
            flow = self._run(part, flow)
        # What is handed to a head, or stored, is without what the next layer can make again.
        return flow if isinstance(flow, Tensor) else families.cut_text(flow)

    def _laid_out(self, inputs: Inputs) -> Inputs:
        if self.family.channels_last and isinstance(inputs, Tensor):
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _run(self, part: Part, flow: Any) -> Any:  # noqa: ANN401 - what flows from layer to layer
        steps = part.steps(self.gives == "pooled")
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return _computed_again(part, steps, flow)
        return families.through(steps, flow)

    def _maps(self, parts: list[Part], inputs: Inputs) -> Iterator[Tensor]:
        """The last activations of every size, largest first."""
        flow, last = self._laid_out(inputs), None
        for part in parts:
            flow = self._run(part, flow)
            assert isinstance(flow, Tensor), "maps are of images"
            if flow.ndim != 4:
                raise UserError(
                    f"{self.name!r} gives no maps of several sizes: take a backbone of the families "
                    "EfficientNet, MobileNetV3, RegNet, ResNet or ConvNeXt"
                )
            if last is not None and last.shape[2:] != flow.shape[2:]:
                yield last
            last = flow
        assert last is not None
        yield last

    def map_shapes(self) -> list[tuple[int, int]]:
        """Channels and stride (pixels of the input to one of the map) of every map, the largest first.

        Raises:
            UserError: the network cannot be cut into layers, or gives no maps.
        """
        if self.family.whole or self.gives != "maps":
            raise UserError(
                f"{self.name!r} gives no maps of several sizes: take a backbone of the families "
                "EfficientNet, MobileNetV3, RegNet, ResNet or ConvNeXt"
            )
        weight = next(self.parameters())
        first = first_convolution(self)
        assert first is not None, "of images"
        image = torch.zeros(1, first.in_channels, PROBED_SIDE, PROBED_SIDE, device=weight.device)
        training = self.training
        self.eval()
        with torch.no_grad():
            found = [
                (int(one.shape[1]), PROBED_SIDE // int(one.shape[2]))
                for one in self._maps(self.family.parts(self.model), image)
            ]
        self.train(training)
        return found


class ImageBackbone(Backbone):
    """A timm model without its classifier; (batch, 3, side, side) float32 to (batch, features)."""

    def __init__(
        self,
        name: str,
        drop_path: float = 0.0,
        img_size: int | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        import timm

        # Many architectures know neither setting, so that one which is not asked for is not passed.
        asked: dict[str, Any] = {"drop_path_rate": drop_path or None, "img_size": img_size}
        asked = {key: value for key, value in asked.items() if value is not None}
        model = timm.create_model(name, pretrained=False, num_classes=0, **asked, **(config or {}))
        super().__init__(name, model, int(getattr(model, "head_hidden_size", None) or model.num_features))
        if self.family.channels_last:
            # Two to three times faster on CPU for convolutions, same result to rounding.
            self.model.to(memory_format=torch.channels_last)


class TextBackbone(Backbone):
    """A base model of transformers; texts as named tensors to (batch, features), or to what it `gives`.

    Of an encoder with a decoder, pooled features are the encoder's, and the decoder is left out.

    Args:
        config: what is in its config.json, `model_type` above all.
        drop_path: how often the top block is left out in training; lower ones less often.
        gives: decides whether there is a decoder.

    Raises:
        WeightsError: the layers of such a model are not known.
    """

    def __init__(self, config: dict[str, Any], drop_path: float = 0.0, gives: Gives = "pooled") -> None:
        model = language.build(config, tokens=gives == "tokens")
        if drop_path > 0:
            families.add_stochastic_depth(model, drop_path)
        super().__init__(
            f"{config['model_type']}-{sha256_json(config)[:12]}", model, int(model.config.hidden_size)
        )


class VectorBackbone(Backbone):
    """Vectors of words with what stands above them; texts as named tensors to (batch, features)."""

    def __init__(self, description: dict[str, Any]) -> None:
        from steps.wordvectors import WordVectors

        model = WordVectors(description)
        super().__init__(f"vectors-{sha256_json(description)[:12]}", model, model.features)


def _computed_again(part: Part, steps: tuple[families.Step, ...], flow: Any) -> Any:  # noqa: ANN401 - what flows
    """Run a layer so that the backward pass runs it again; random numbers are the same then."""
    if not steps:
        return flow
    if torch.compiler.is_compiling():
        # The compiler decides itself what it computes again, and updates statistics once.
        return checkpoint(families.through, steps, flow, use_reentrant=False)
    contexts = partial(_contexts, part.layer().modules)
    return checkpoint(families.through, steps, flow, use_reentrant=False, context_fn=contexts)


def _contexts(
    modules: tuple[nn.Module, ...],
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _statistics_kept(modules)


@contextmanager
def _statistics_kept(modules: tuple[nn.Module, ...]) -> Iterator[None]:
    """Let batch normalisation normalise as in training, but learn nothing: it has seen this batch before."""
    norms = [
        norm
        for module in modules
        for norm in module.modules()
        if isinstance(norm, _BatchNorm) and norm.training and norm.num_batches_tracked is not None
    ]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # With no momentum the statistics stay what they are to the bit; the counter is a stand-in.
        norm.momentum, norm.num_batches_tracked = 0.0, norm.num_batches_tracked.clone()  # type: ignore[union-attr]
    try:
        yield
    finally:
        for norm, (momentum, counter) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, counter


class Network(nn.Module):
    """Backbone and head.

    Args:
        backbone: gives what the head takes.
        head: its output is the network's: of a classifier logits, shape (batch, classes).
    """

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, inputs: Inputs, start: int = 0) -> Any:  # noqa: ANN401 - the head's affair
        """What the head makes of inputs as they are at the backbone's cut `start`."""
        return self.head(self.backbone(inputs, start))

    def layers(self) -> list[Layer]:
        """All layers, bottom to top; the last is the head."""
        return [*self.backbone.layers, Layer("head", (self.head,))]


@dataclass(frozen=True)
class Width:
    """What a head stands on where features were computed before: how many there are of a sample."""

    features: int


class Probe(nn.Module):
    """A head alone, for features computed before."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: Tensor, start: int = 0) -> Tensor:
        """Logits, shape (batch, classes), of features (batch, features), wherever a network would start."""
        return self.head(inputs)  # type: ignore[no-any-return]

    def layers(self) -> list[Layer]:
        """The head."""
        return [Layer("head", (self.head,))]


def classifier(backbone: Backbone, classes: int, dropout: float, kind: Kind = "linear") -> Network:
    """A backbone with a new head on its pooled features."""
    return Network(backbone, build_head(backbone.features, classes, dropout, kind))


def probe(features: int, classes: int, dropout: float, kind: Kind = "linear") -> Probe:
    """The head of a classifier alone."""
    return Probe(build_head(features, classes, dropout, kind))


def build_head(features: int, classes: int, dropout: float, kind: Kind = "linear") -> nn.Sequential:
    """The new top of a network; (batch, features) to (batch, classes).

    Args:
        features: how many the backbone gives.
        classes: how many there are to tell apart.
        dropout: before each linear layer.
        kind: "linear": one linear layer; "mlp": a hidden layer as wide as the features before it.
    """
    hidden: list[nn.Module] = []
    if kind == "mlp":
        hidden = [nn.Dropout(dropout), nn.Linear(features, features), nn.GELU()]
    return nn.Sequential(*hidden, nn.Dropout(dropout), nn.Linear(features, classes))


def build_backbone(
    folder: Path,
    *,
    pretrained: bool,
    drop_path: float = 0.0,
    gives: Gives = "pooled",
    channels: int = 3,
) -> Backbone:
    """Build the architecture `fetch` described in `folder`, with its weights or with random ones.

    Args:
        folder: of one pretrained reference.
        pretrained: with its weights.
        drop_path: how often the top layer is left out in training; lower ones less often.
        gives: what the backbone hands to the head.
        channels: of the images it takes.

    Raises:
        WeightsError: the weights do not fit the architecture.
        UserError: stochastic depth is asked of an architecture that has none, or other channels of one that
            begins with no convolution.
    """
    description = read_json(folder / "architecture.json", "python -m steps.fetch")
    backbone = architecture(description, drop_path, gives)
    if pretrained:
        tensors = load_file(folder / "model.safetensors")
        load_exactly(backbone.model, _of_backbone(tensors, backbone, description), str(folder))
    if channels != CHANNELS:
        take_channels(backbone, channels)
    return backbone


def take_channels(backbone: Backbone, channels: int) -> None:
    """Let a backbone of images take another number of channels than red, green and blue, as timm does.

    For one channel the weights of its first convolution are summed; for more they are repeated and scaled, so
    that what comes out of it stays as large. Random weights go the same way.

    Raises:
        UserError: it begins with no convolution of three channels.
    """
    from timm.models import adapt_input_conv

    first = first_convolution(backbone)
    if first is None or first.in_channels != CHANNELS or first.groups != 1:
        raise UserError(
            f"{backbone.name!r} cannot be made to take {channels} channels: name three `model.bands`, or "
            "take another `model.pretrained`"
        )
    weight = adapt_input_conv(channels, first.weight.detach())
    layout = torch.channels_last if backbone.family.channels_last else torch.contiguous_format
    first.weight = nn.Parameter(weight.contiguous(memory_format=layout))
    first.in_channels = channels


def first_convolution(backbone: Backbone) -> nn.Conv2d | None:
    """What an image meets first, which tells how many channels it has; None where there is no convolution."""
    return next((one for one in backbone.model.modules() if isinstance(one, nn.Conv2d)), None)


def architecture(description: dict[str, Any], drop_path: float = 0.0, gives: Gives = "pooled") -> Backbone:
    """A backbone with random weights, from the `architecture.json` that fetch wrote.

    Raises:
        WeightsError: the library does not know the architecture, or we do not know its layers.
        UserError: stochastic depth is asked of an architecture that has none, or the backbone cannot be built
            at all.
    """
    name = description.get("name", "?")
    try:
        backbone = _built(description, drop_path, gives)
        backbone.gives = gives
        return backbone
    except (RuntimeError, TypeError, ValueError) as error:
        if "drop_path_rate" in str(error):
            raise UserError(f"{name!r} has no stochastic depth: leave the arm's `drop_path` out") from None
        raise WeightsError(f"{description['library']} cannot build {name!r}: {error}") from None


def _built(description: dict[str, Any], drop_path: float, gives: Gives) -> Backbone:
    name, library = description.get("name", "?"), description["library"]
    if library == "timm":
        size, config = description.get("img_size"), description.get("config")
        return ImageBackbone(description["name"], drop_path, size, config)
    if library == "transformers":
        return TextBackbone({"model_type": description["name"], **description["config"]}, drop_path, gives)
    if library == "savedmodel":
        raise UserError(
            f"{name!r} is a SavedModel, which torch cannot run: only arms with `tune: head`, on the features "
            "that embed computed, work with it"
        )
    assert library == "vectors", library
    if drop_path > 0:
        raise UserError(f"{name!r} has no stochastic depth: leave the arm's `drop_path` out")
    return VectorBackbone(description)


# ------------------------------------------------------------------------------------ models that write texts


def stored(description: dict[str, Any]) -> nn.Module:
    """A module with all tensors that a weights folder holds, at random: what fetch matches weights with.

    Of most backbones that is the model itself. Of an encoder with a decoder it is both, whatever is used of
    them; and of a model that writes texts `lm_head` too, where it has weights of its own.

    Raises:
        WeightsError: as for `architecture`.
        UserError: as for `architecture`.
    """
    if description["library"] != "transformers":
        return architecture(description).model
    model: Any = architecture(description, gives="tokens").model
    if _own_head(model):
        model.lm_head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False)
    found: nn.Module = model
    return found


def _own_head(model: nn.Module) -> bool:
    """It writes texts, with an output layer that is not the embeddings' matrix."""
    config: Any = model.config
    # Of T5 transformers says always that it is tied, and keeps what config.json says under another name.
    tied = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    return language.writes(model) and not tied


def _of_backbone(
    tensors: dict[str, Tensor], backbone: Backbone, description: dict[str, Any]
) -> dict[str, Tensor]:
    """Without what the folder holds for other uses of the model: a decoder, an output layer."""
    mine = set(backbone.model.state_dict())
    if set(tensors) == mine or description["library"] != "transformers":
        return tensors
    with torch.device("meta"):
        others = set(stored(description).state_dict()) - mine
    return {name: tensor for name, tensor in tensors.items() if name not in others}


class LanguageHead(nn.Module):
    """The output layer of a model that writes texts: hidden states to logits over the vocabulary.

    Where the config ties it to the embeddings, as T5's and GPT-2's do at first, it has no tensor of its own:
    it is trained, and frozen, with the bottom layer. Press and Wolf, Using the Output Embedding, 2017.

    Args:
        backbone: one that gives tokens.

    Raises:
        UserError: the backbone writes no texts.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        model: Any = backbone.model
        if backbone.gives != "tokens" or not language.writes(model):
            raise UserError(
                f"{backbone.name!r} writes no texts: take a backbone of the families T5 (with its decoder) "
                "or GPT-2"
            )
        # Raffel et al., 2020: a matrix that is the embeddings' too wants smaller hidden states.
        scaled = getattr(model.config, "scale_decoder_outputs", False)
        self.scale = backbone.features**-0.5 if scaled else 1.0
        if _own_head(model):
            self.linear = nn.Linear(backbone.features, model.config.vocab_size, bias=False)
        # In a tuple: a module that is named here would be a part of the head.
        self._embeddings = (model.get_input_embeddings(),)

    @property
    def weight(self) -> nn.Parameter:
        """Shape (vocabulary, features)."""
        holder: Any = self.linear if hasattr(self, "linear") else self._embeddings[0]
        found: nn.Parameter = holder.weight
        return found

    def forward(self, flow: dict[str, Tensor]) -> Tensor:
        """Logits, shape (batch, tokens, vocabulary), of what the backbone gives."""
        return functional.linear(flow["hidden"] * self.scale, self.weight)


def language_head(backbone: Backbone, folder: Path | None = None) -> LanguageHead:
    """The output layer for a backbone; with the pretrained weights of a folder, or with random ones.

    Raises:
        UserError: the backbone writes no texts.
        WeightsError: the folder holds no such weights.
    """
    head = LanguageHead(backbone)
    if folder is not None and _own_head(backbone.model):
        tensors = load_file(folder / "model.safetensors")
        found = {"weight": tensors[LM_HEAD]} if LM_HEAD in tensors else {}
        load_exactly(head.linear, found, f"{folder}: lm_head")
    return head


def generation_model(backbone: Backbone, head: LanguageHead) -> Any:  # noqa: ANN401 - a PreTrainedModel
    """transformers' model around a backbone and its head, for `generate` (greedy or beams).

    It has the very tensors and modules of both, no copies: it writes as they are at the moment, in the mode
    (train, eval) that they are in, and nothing need be kept in step. A text that has ended is filled up with
    the token for padding; GPT-2, which has none, goes on with its end of text.
    """
    from transformers import GPT2LMHeadModel, T5ForConditionalGeneration

    inner: Any = backbone.model
    config = copy.deepcopy(inner.config)
    # Of its own tensors none is ever made.
    with torch.device("meta"):
        model: Any
        if config.model_type == "t5":
            if getattr(config, "decoder_start_token_id", None) is None:
                config.decoder_start_token_id = config.pad_token_id  # Raffel et al., 2020
            model = T5ForConditionalGeneration(config)
        else:
            model = GPT2LMHeadModel(config)
    if config.model_type == "t5":
        model.shared, model.encoder, model.decoder = inner.shared, inner.encoder, inner.decoder
    else:
        model.transformer = inner
    model.lm_head.weight = head.weight
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = config.eos_token_id
    model.training = backbone.training
    return model


def reinitialise(backbone: Backbone, description: Path | dict[str, Any], top: int, seed: int) -> None:
    """Give the top layers the tensors of a new random backbone (Zhang et al., Few-sample BERT, 2021).

    Args:
        backbone: is changed in place.
        description: of its architecture, or the folder where fetch put it.
        top: how many layers, counted from the top; their norms and pooling are theirs.
        seed: of the new backbone; torch's own random state is left as it was.

    Raises:
        UserError: there are not so many layers.
    """
    layers = backbone.layers
    if top > len(layers):
        raise UserError(
            f"reinit_top is {top}, but the backbone has {len(layers)} layers: give at most {len(layers)}"
        )
    if isinstance(description, Path):
        told: dict[str, Any] = read_json(description / "architecture.json", "python -m steps.fetch")
    else:
        told = description
    random = _random(told, seed, backbone.gives)
    first = first_convolution(backbone)
    if first is not None and first.in_channels != CHANNELS:
        take_channels(random, first.in_channels)
    for layer, new in list(zip(layers, random.layers, strict=True))[len(layers) - top :]:
        for module, source in zip(layer.modules, new.modules, strict=True):
            module.load_state_dict(source.state_dict())
        with torch.no_grad():
            for parameter, loose in zip(layer.loose, new.loose, strict=True):
                parameter.copy_(loose)


def _random(description: dict[str, Any], seed: int, gives: Gives) -> Backbone:
    before = torch.get_rng_state()
    try:
        # Of the CPU alone: there the weights are drawn.
        torch.default_generator.manual_seed(seed)
        return architecture(description, gives=gives)
    finally:
        torch.set_rng_state(before)


def load_exactly(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Load tensors whose names and shapes are exactly the module's.

    Raises:
        WeightsError: names a tensor that is missing, left over, or of another shape.
    """
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise WeightsError(f"{where}: tensor {name!r} is missing from the weights")
        if tensors[name].shape != tensor.shape:
            raise WeightsError(
                f"{where}: tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"the architecture needs {tuple(tensor.shape)}"
            )
    left = sorted(set(tensors) - set(wanted))
    if left:
        raise WeightsError(f"{where}: the architecture has no tensor {left[0]!r} ({len(left)} left over)")
    module.load_state_dict(tensors)


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file that others may read; the same tensors give the same bytes.

    Raises:
        OSError: as any other write does, where safetensors has an error of its own.
    """
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(found[1]), str(error)) from error
        raise
    path.chmod(0o644)  # safetensors lets nobody but the owner read


def state_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
