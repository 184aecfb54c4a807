"""What every backbone is made of: its layers from bottom to top, and how to run them one by one.

A layer here is one residual block (of a transformer: one encoder layer). What comes before the blocks is the
bottom layer; what comes after them up to the pooled features (a last convolution, norms, pooling) belongs to
the last block's layer. This is timm's own grouping for layer-wise rates, with the parts that timm leaves
ungrouped counted as parts of the top.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

# A network of another library: its attributes are that library's affair.
_Model = Any
# What flows from layer to layer: an image batch, or a text batch as named tensors.
_Flow = Any
Step = Callable[[_Flow], _Flow]


@dataclass(frozen=True)
class Layer:
    """One layer of a network.

    Attributes:
        name: as in the library's names of parameters, shortened.
        modules: all its modules, those without parameters too: their mode (train, eval) matters.
        loose: its parameters that are in none of the modules, e.g. a class token.
    """

    name: str
    modules: tuple[nn.Module, ...]
    loose: tuple[nn.Parameter, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """Of all modules, asked anew each time (an adapter may have joined them), then the loose ones."""
        return [parameter for module in self.modules for parameter in module.parameters()] + list(self.loose)


@dataclass(frozen=True)
class Part:
    """A layer and how it is run.

    Attributes:
        name: of the layer.
        run: called one after the other on what the layer below gave; modules among them are the layer's.
        also: modules that are called from within `run`; None where the model has none.
        loose: the layer's loose parameters; None where the model has none.
    """

    name: str
    run: tuple[Step, ...]
    also: tuple[nn.Module | None, ...] = ()
    loose: tuple[nn.Parameter | None, ...] = ()

    def layer(self) -> Layer:
        """Without the way to run it."""
        modules = tuple(module for module in (*self.run, *self.also) if isinstance(module, nn.Module))
        return Layer(self.name, modules, tuple(one for one in self.loose if one is not None))

    def __call__(self, flow: _Flow) -> _Flow:
        """The activations after this layer."""
        return through(self.run, flow)


def through(steps: tuple[Step, ...], flow: _Flow) -> _Flow:
    """Take one step after the other."""
    for step in steps:
        flow = step(flow)
    return flow


@dataclass(frozen=True)
class Family:
    """Networks of one make.

    Attributes:
        parts: the layers of such a network, bottom to top. They are made anew from the model each time, so
            that a copied or altered model (LoRA puts modules in the place of others) is never out of step.
        channels_last: convolutions, two to three times faster on CPU in this memory format.
        whole: it can run only as a whole; the bottom layer's `run` is all of it.
    """

    parts: Callable[[_Model], list[Part]]
    channels_last: bool = True
    whole: bool = False


def of(model: nn.Module) -> Family:
    """The family of a model without classifier.

    Only the very classes known here are cut: a class derived from one may run its layers another way.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    return _KNOWN.get(kind, Family(_grouped, whole=True))


def _efficientnet(model: _Model) -> list[Part]:
    """timm's EfficientNet: stem, blocks, and the last convolution with the top block."""
    blocks = _efficientnet_blocks(model)
    top = _on_top(
        blocks.pop(), (model.conv_head, model.bn2, model.forward_head), _poolers(model, "classifier")
    )
    return [Part("stem", (model.conv_stem, model.bn1)), *blocks, top]


def _mobilenet(model: _Model) -> list[Part]:
    """timm's MobileNetV3: as EfficientNet, but pooled before the last convolution."""
    blocks = _efficientnet_blocks(model)
    head = (model.conv_head, model.norm_head, model.act2, model.flatten, *_poolers(model, "classifier"))
    top = _on_top(blocks.pop(), (model.forward_head,), head)
    return [Part("stem", (model.conv_stem, model.bn1)), *blocks, top]


def _efficientnet_blocks(model: _Model) -> list[Part]:
    return [
        Part(f"blocks.{at}.{index}", (block,))
        for at, stage in enumerate(model.blocks)
        for index, block in enumerate(stage)
    ]


def _resnet(model: _Model) -> list[Part]:
    """timm's ResNet: stem, residual blocks."""
    blocks = [
        Part(f"layer{at}.{index}", (block,))
        for at in range(1, 5)
        for index, block in enumerate(getattr(model, f"layer{at}"))
    ]
    top = _on_top(blocks.pop(), (model.forward_head,), _poolers(model, "fc"))
    return [Part("stem", (model.conv1, model.bn1, model.act1, model.maxpool)), *blocks, top]


def _vit(model: _Model) -> list[Part]:
    """timm's VisionTransformer: patches with their positions, then blocks."""
    bottom = Part(
        "patch_embed",
        (model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre),
        (model.pos_drop,),
        (model.cls_token, model.reg_token, model.pos_embed),
    )
    blocks = [Part(f"blocks.{index}", (block,)) for index, block in enumerate(model.blocks)]
    head = (model.attn_pool, model.fc_norm, model.head_drop, model.head)
    return [bottom, *blocks[:-1], _on_top(blocks[-1], (model.norm, model.forward_head), head)]


def _convnext(model: _Model) -> list[Part]:
    """timm's ConvNeXt: stem, then blocks; what shrinks the image for a stage belongs to its first block."""
    blocks = [
        Part(
            f"stages.{at}.blocks.{index}",
            (stage.downsample, block) if index == 0 else (block,),
        )
        for at, stage in enumerate(model.stages)
        for index, block in enumerate(stage.blocks)
    ]
    top = _on_top(blocks.pop(), (model.norm_pre, model.forward_head), (model.head,))
    return [Part("stem", (model.stem,)), *blocks, top]


def _on_top(last: Part, run: tuple[Step, ...], also: tuple[nn.Module | None, ...]) -> Part:
    return Part(last.name, (*last.run, *run), also)


def _poolers(model: _Model, classifier: str) -> tuple[nn.Module, ...]:
    """Pooling, and the empty place where timm's classifier would be."""
    return model.global_pool, getattr(model, classifier)


def _bert(model: _Model) -> list[Part]:
    """transformers' BertModel: embeddings, encoder layers; the mean over the real tokens on top."""
    blocks = [
        Part(f"encoder.{index}", (partial(_bert_layer, model, layer),), (layer,))
        for index, layer in enumerate(model.encoder.layer)
    ]
    bottom = Part("embeddings", (partial(_bert_embeddings, model),), (model.embeddings,))
    return [bottom, *blocks[:-1], _on_top(blocks[-1], (_mean_of_tokens,), blocks[-1].also)]


def _bert_embeddings(model: _Model, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Token ids to `hidden`, shape (batch, tokens, features)."""
    ids = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    return {"hidden": model.embeddings(**ids), "attention_mask": inputs["attention_mask"]}


def _bert_layer(model: _Model, layer: _Model, flow: dict[str, Any]) -> dict[str, Any]:
    """One encoder layer; the lowest that runs leaves the mask over pairs of tokens for those above.

    With stochastic depth the layer as a whole is left out for some samples (Huang et al., Deep Networks with
    Stochastic Depth, 2016); what it adds is scaled up for the others, so that the mean stays.
    """
    if "pairs" not in flow:
        flow = {**flow, "pairs": _pairs(model, flow["hidden"], flow["attention_mask"])}
    below = flow["hidden"]
    hidden = layer(below, flow["pairs"])
    drop = getattr(layer, "drop_path", None)
    if drop is not None and drop.training and drop.p > 0:
        hidden = below + drop(hidden - below)
    return {**flow, "hidden": hidden}


def _pairs(model: _Model, hidden: Tensor, mask: Tensor) -> Tensor | None:
    """What BertModel adds to attention scores: (batch, 1, tokens, tokens), None where nothing is padded."""
    from transformers.masking_utils import create_bidirectional_mask

    found: Tensor | None = create_bidirectional_mask(
        config=model.config, inputs_embeds=hidden, attention_mask=mask
    )
    return found


def _mean_of_tokens(flow: dict[str, Tensor]) -> Tensor:
    """Mean of the last hidden states, padding left out; shape (batch, features)."""
    hidden = flow["hidden"]
    mask = flow["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def cut_text(flow: _Flow) -> _Flow:
    """Between two layers, without what the next layer can make again."""
    if isinstance(flow, dict):
        return {name: tensor for name, tensor in flow.items() if name != "pairs"}
    return flow


def add_stochastic_depth(model: _Model, rate: float) -> None:
    """Let a BertModel leave out encoder layers in training: layer l of L with probability rate * l / L.

    Huang et al., 2016, equation 4. timm's models have the like already. It adds no tensor, so that weights
    with and without it are the same.
    """
    from torchvision.ops import StochasticDepth  # type: ignore[import-untyped, unused-ignore]

    layers = model.encoder.layer
    for index, layer in enumerate(layers):
        layer.drop_path = StochasticDepth(rate * (index + 1) / len(layers), "row")


def _grouped(model: _Model) -> list[Part]:
    """Any other timm model: its layers as timm groups parameters, run as a whole."""
    groups = _groups(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = []
    for index, group in enumerate(groups):
        modules = _maximal(model, group, names)
        inside = {id(parameter) for module in modules for parameter in module.parameters()}
        loose = tuple(
            parameter
            for name, parameter in model.named_parameters()
            if name in group and id(parameter) not in inside
        )
        # The bottom layer's run is the whole model, those above pass on what it gave.
        parts.append(Part(f"group.{index}", (partial(_whole, model),) if index == 0 else (), modules, loose))
    return parts


def _whole(model: _Model, inputs: Tensor) -> Tensor:
    found: Tensor = model(inputs)
    return found


def _groups(model: _Model) -> list[set[str]]:
    """Names of parameters, layer by layer; what no pattern of timm's matches belongs to the last."""
    from timm.models import group_parameters

    if not hasattr(model, "group_matcher"):
        return [{name for name, _ in model.named_parameters()}]
    matcher = model.group_matcher()
    groups = [set(names) for _, names in sorted(group_parameters(model, matcher).items())]
    if len(groups) > 1 and isinstance(matcher, dict) and not any(map(_matched_by(matcher), groups[-1])):
        groups[-2:] = [groups[-2] | groups[-1]]
    return groups


def _matched_by(matcher: dict[str, Any]) -> Callable[[str], bool]:
    patterns: list[str] = []
    for found in matcher.values():
        patterns += [found] if isinstance(found, str) else [pattern for pattern, _ in found or ()]
    return lambda name: any(re.match(pattern, name) for pattern in patterns)


def _maximal(model: nn.Module, group: set[str], names: dict[int, str]) -> tuple[nn.Module, ...]:
    """The largest modules that have parameters, all of them in the group."""
    found: list[nn.Module] = []

    def look(module: nn.Module) -> None:
        mine = {names[id(parameter)] for parameter in module.parameters()}
        if mine and mine <= group:
            found.append(module)
        elif mine & group:
            for child in module.children():
                look(child)

    look(model)
    return tuple(found)


_KNOWN = {
    "timm.models.efficientnet.EfficientNet": Family(_efficientnet),
    "timm.models.mobilenetv3.MobileNetV3": Family(_mobilenet),
    "timm.models.resnet.ResNet": Family(_resnet),
    "timm.models.convnext.ConvNeXt": Family(_convnext),
    "timm.models.vision_transformer.VisionTransformer": Family(_vit, channels_last=False),
    "transformers.models.bert.modeling_bert.BertModel": Family(_bert, channels_last=False),
}
