"""A network: a backbone, then a head, as an ordered list of layers from bottom to top."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from steps import families
from steps.artifacts import read_json, sha256_json
from steps.errors import UserError, WeightsError
from steps.families import Layer, Part

__all__ = [
    "Backbone",
    "ImageBackbone",
    "Inputs",
    "Layer",
    "Network",
    "Probe",
    "TextBackbone",
    "architecture",
    "build_backbone",
    "build_head",
    "load_exactly",
    "prepare_device",
    "reinitialise",
    "save_tensors",
    "state_sha256",
]

# Of glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# What a backbone eats: an image batch, or a text batch as named tensors.
Inputs = Tensor | dict[str, Tensor]
Kind = Literal["linear", "mlp"]


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
    # It would also fill every fresh tensor with NaN, to find code that reads memory nobody has written: a
    # sixth of a step's time on images.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return torch.device(next(name for name, usable in there.items() if usable))
    if not there[wanted]:
        raise UserError(
            f"machine.device is {wanted}, but torch finds no such device here: "
            "set `machine.device: auto` or `cpu`"
        )
    return torch.device(wanted)


def _keep_freed_memory() -> None:
    """Tell glibc to keep what is freed for the next step, not to hand it back and have it zeroed again.

    A step frees and asks for the same blocks of megabytes; each then costs a page fault every 4 KiB.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc than glibc
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


class Backbone(nn.Module):
    """A pretrained model without its classifier, which can be run from any layer to any other.

    A cut is a number of layers counted from the bottom: 0 is the raw inputs, `len(layers)` the pooled
    features, and between them lie activations, of images (batch, channels, height, width) or (batch, tokens,
    features), of texts `{"hidden": (batch, tokens, features), "attention_mask": (batch, tokens)}`.

    Attributes:
        name: tells the architecture apart from others.
        model: the library's own.
        features: how many it gives.
        checkpointing: in training, keep only what passes from layer to layer and compute the rest anew in the
            backward pass (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016).
    """

    def __init__(self, name: str, model: nn.Module, features: int) -> None:
        super().__init__()
        self.name, self.model, self.features = name, model, features
        self.family = families.of(model)
        self.checkpointing = False

    @property
    def layers(self) -> list[Layer]:
        """All layers, bottom to top."""
        return [part.layer() for part in self.family.parts(self.model)]

    @property
    def cuts(self) -> tuple[int, ...]:
        """Where `forward` may start and stop."""
        return self._cuts(len(self.family.parts(self.model)))

    def _cuts(self, layers: int) -> tuple[int, ...]:
        return (0, layers) if self.family.whole else tuple(range(layers + 1))

    def forward(self, inputs: Inputs, start: int = 0, stop: int | None = None) -> Inputs:
        """Run the layers `start` to `stop`.

        Args:
            inputs: as they are at the cut `start`.
            start: a cut.
            stop: a cut, the pooled features when not given.

        Returns:
            The activations at the cut `stop`; pooled features have shape (batch, features).
        """
        parts = self.family.parts(self.model)
        stop = len(parts) if stop is None else stop
        assert {start, stop} <= set(self._cuts(len(parts))), (start, stop, self.cuts)
        flow: Any = inputs
        if self.family.channels_last and start < stop:
            flow = flow.contiguous(memory_format=torch.channels_last)
        again = self.checkpointing and self.training and torch.is_grad_enabled()
        for part in parts[start:stop]:
            flow = _computed_again(part, flow) if again else part(flow)
        return flow if stop == len(parts) else families.cut_text(flow)  # type: ignore[no-any-return]


class ImageBackbone(Backbone):
    """A timm model without its classifier; (batch, 3, side, side) float32 to (batch, features)."""

    def __init__(self, name: str, drop_path: float = 0.0, img_size: int | None = None) -> None:
        import timm

        # Many architectures know neither setting, so that one which is not asked for is not passed.
        asked: dict[str, Any] = {"drop_path_rate": drop_path or None, "img_size": img_size}
        asked = {key: value for key, value in asked.items() if value is not None}
        model = timm.create_model(name, pretrained=False, num_classes=0, **asked)
        super().__init__(name, model, int(getattr(model, "head_hidden_size", None) or model.num_features))
        if self.family.channels_last:
            # Two to three times faster on CPU for convolutions, same result to rounding.
            self.model.to(memory_format=torch.channels_last)


class TextBackbone(Backbone):
    """A transformers encoder with mean pooling over the real tokens; to (batch, features)."""

    def __init__(self, config: dict[str, Any], drop_path: float = 0.0) -> None:
        from transformers import BertConfig, BertModel

        settings = BertConfig(**config)
        # Eager attention: the fused kernels are not deterministic in their backward pass everywhere.
        settings._attn_implementation = "eager"
        model = BertModel(settings, add_pooling_layer=False)
        if drop_path > 0:
            families.add_stochastic_depth(model, drop_path)
        super().__init__(f"bert-{sha256_json(config)[:12]}", model, int(settings.hidden_size))


def _computed_again(part: Part, flow: Any) -> Any:  # noqa: ANN401 - what flows from layer to layer
    """Run a layer so that the backward pass runs it again; random numbers are the same then."""
    if not part.run:
        return flow
    if torch.compiler.is_compiling():
        # The compiler decides itself what it computes again, and updates statistics once.
        return checkpoint(families.through, part.run, flow, use_reentrant=False)
    contexts = partial(_contexts, part.layer().modules)
    return checkpoint(families.through, part.run, flow, use_reentrant=False, context_fn=contexts)


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
    """Backbone and head."""

    def __init__(self, backbone: Backbone, classes: int, dropout: float, kind: Kind = "linear") -> None:
        super().__init__()
        self.backbone = backbone
        self.head = build_head(backbone.features, classes, dropout, kind)

    def forward(self, inputs: Inputs, start: int = 0) -> Tensor:
        """Logits, shape (batch, classes), of inputs as they are at the backbone's cut `start`."""
        return self.head(self.backbone(inputs, start))  # type: ignore[no-any-return]

    def layers(self) -> list[Layer]:
        """All layers, bottom to top; the last is the head."""
        return [*self.backbone.layers, Layer("head", (self.head,))]


class Probe(nn.Module):
    """A head alone, for features computed before."""

    def __init__(self, features: int, classes: int, dropout: float, kind: Kind = "linear") -> None:
        super().__init__()
        self.head = build_head(features, classes, dropout, kind)

    def forward(self, inputs: Tensor, start: int = 0) -> Tensor:
        """Logits, shape (batch, classes), of features (batch, features), wherever a network would start."""
        return self.head(inputs)  # type: ignore[no-any-return]

    def layers(self) -> list[Layer]:
        """The head."""
        return [Layer("head", (self.head,))]


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


def build_backbone(folder: Path, *, pretrained: bool, drop_path: float = 0.0) -> Backbone:
    """Build the architecture `fetch` described in `folder`, with its weights or with random ones.

    Args:
        folder: of one pretrained reference.
        pretrained: with its weights.
        drop_path: how often the top layer is left out in training; lower ones less often.

    Raises:
        WeightsError: the weights do not fit the architecture.
        UserError: stochastic depth is asked of an architecture that has none.
    """
    description = read_json(folder / "architecture.json", "python -m steps.fetch")
    backbone = architecture(description, drop_path)
    if pretrained:
        load_exactly(backbone.model, load_file(folder / "model.safetensors"), str(folder))
    return backbone


def architecture(description: dict[str, Any], drop_path: float = 0.0) -> Backbone:
    """A backbone with random weights, from the `architecture.json` that fetch wrote.

    Raises:
        WeightsError: the library does not know the architecture.
        UserError: stochastic depth is asked of an architecture that has none.
    """
    name = description.get("name", "?")
    try:
        if description["library"] == "timm":
            return ImageBackbone(description["name"], drop_path, description.get("img_size"))
        return TextBackbone(description["config"], drop_path)
    except (RuntimeError, TypeError, ValueError) as error:
        if "drop_path_rate" in str(error):
            raise UserError(f"{name!r} has no stochastic depth: leave the arm's `drop_path` out") from None
        raise WeightsError(f"{description['library']} cannot build {name!r}: {error}") from None


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
    fresh = _random(told, seed).layers
    for layer, new in list(zip(layers, fresh, strict=True))[len(layers) - top :]:
        for module, source in zip(layer.modules, new.modules, strict=True):
            module.load_state_dict(source.state_dict())
        with torch.no_grad():
            for parameter, loose in zip(layer.loose, new.loose, strict=True):
                parameter.copy_(loose)


def _random(description: dict[str, Any], seed: int) -> Backbone:
    before = torch.get_rng_state()
    try:
        # Of the CPU alone: there the weights are drawn.
        torch.default_generator.manual_seed(seed)
        return architecture(description)
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
