"""A network: a backbone, then a head, as an ordered list of layers from bottom to top."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from steps.artifacts import read_json
from steps.errors import WeightsError

# What a backbone eats: an image batch, or a text batch as named tensors.
Inputs = Tensor | dict[str, Tensor]


def prepare_device() -> torch.device:
    """Make torch deterministic and choose the device: CUDA, Apple's GPU, or the CPU."""
    # cuBLAS is deterministic only with a fixed workspace, to be set before its first call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class ImageBackbone(nn.Module):
    """A timm model without its classifier; (batch, 3, side, side) float32 to (batch, features)."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import timm

        self.model = timm.create_model(name, pretrained=False, num_classes=0)
        # Two to three times faster on CPU for convolutions, same result to rounding.
        self.model.to(memory_format=torch.channels_last)
        self.features = int(self.model.num_features)

    def forward(self, inputs: Tensor) -> Tensor:
        """Pooled features."""
        return self.model(inputs.contiguous(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Stem, blocks and last convolution, bottom to top."""
        model = self.model
        names = [name for name, _ in model.named_children()]
        layers: list[tuple[str, nn.Module]] = []
        for name in names:
            child = getattr(model, name)
            if name == "blocks":
                layers += [(f"blocks.{index}", block) for index, block in enumerate(child)]
            elif any(True for _ in child.parameters()):
                layers.append((name, child))
        return layers


class TextBackbone(nn.Module):
    """A transformers encoder with mean pooling over the real tokens; to (batch, features)."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        settings = BertConfig(**config)
        # Eager attention: the fused kernels are not deterministic in their backward pass everywhere.
        settings._attn_implementation = "eager"
        self.model = BertModel(settings, add_pooling_layer=False)
        self.features = int(settings.hidden_size)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Mean of the last hidden states, padding left out."""
        hidden: Tensor = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1)

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Embeddings, then the encoder's layers, bottom to top."""
        encoder = self.model.encoder.layer
        return [
            ("embeddings", self.model.embeddings),
            *((f"encoder.{index}", layer) for index, layer in enumerate(encoder)),
        ]


class Network(nn.Module):
    """Backbone and head."""

    def __init__(self, backbone: ImageBackbone | TextBackbone, classes: int, dropout: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = build_head(backbone.features, classes, dropout)

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits, shape (batch, classes)."""
        return self.head(self.backbone(inputs))  # type: ignore[no-any-return]

    def layers(self) -> list[tuple[str, nn.Module]]:
        """All layers, bottom to top; the last is the head."""
        return [*self.backbone.layers(), ("head", self.head)]


def build_head(features: int, classes: int, dropout: float) -> nn.Sequential:
    """The new last layer: dropout and one linear layer; (batch, features) to (batch, classes)."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def build_backbone(folder: Path, *, pretrained: bool) -> ImageBackbone | TextBackbone:
    """Build the architecture `fetch` described in `folder`, with its weights or with random ones.

    Raises:
        WeightsError: the weights do not fit the architecture.
    """
    description = read_json(folder / "architecture.json", "python -m steps.fetch")
    backbone = architecture(description)
    if pretrained:
        load_exactly(backbone.model, load_file(folder / "model.safetensors"), str(folder))
    return backbone


def architecture(description: dict[str, Any]) -> ImageBackbone | TextBackbone:
    """A backbone with random weights, from the `architecture.json` that fetch wrote.

    Raises:
        WeightsError: the library does not know the architecture.
    """
    try:
        if description["library"] == "timm":
            return ImageBackbone(description["name"])
        return TextBackbone(description["config"])
    except (RuntimeError, TypeError, ValueError) as error:
        name = description.get("name", "?")
        raise WeightsError(f"{description['library']} cannot build {name!r}: {error}") from None


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


def state_sha256(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
