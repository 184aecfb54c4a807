"""timm's networks: their layers, and how to run them one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from steps.families.layers import Family, Model, Part, on_top


def _efficientnet(model: Model) -> list[Part]:
    """timm's EfficientNet: stem, blocks, and the last convolution with the top block."""
    blocks = _efficientnet_blocks(model)
    top = on_top(
        blocks.pop(), (model.conv_head, model.bn2), (model.forward_head,), _poolers(model, "classifier")
    )
    return [Part("stem", (model.conv_stem, model.bn1)), *blocks, top]


def _mobilenet(model: Model) -> list[Part]:
    """timm's MobileNetV3: as EfficientNet, but pooled before the last convolution."""
    blocks = _efficientnet_blocks(model)
    head = (model.conv_head, model.norm_head, model.act2, model.flatten, *_poolers(model, "classifier"))
    top = on_top(blocks.pop(), (), (model.forward_head,), head)
    return [Part("stem", (model.conv_stem, model.bn1)), *blocks, top]


def _efficientnet_blocks(model: Model) -> list[Part]:
    return [
        Part(f"blocks.{at}.{index}", (block,))
        for at, stage in enumerate(model.blocks)
        for index, block in enumerate(stage)
    ]


def _resnet(model: Model) -> list[Part]:
    """timm's ResNet: stem, residual blocks."""
    blocks = [
        Part(f"layer{at}.{index}", (block,))
        for at in range(1, 5)
        for index, block in enumerate(getattr(model, f"layer{at}"))
    ]
    top = on_top(blocks.pop(), (), (model.forward_head,), _poolers(model, "fc"))
    return [Part("stem", (model.conv1, model.bn1, model.act1, model.maxpool)), *blocks, top]


def _regnet(model: Model) -> list[Part]:
    """timm's RegNet: stem, blocks; the last convolution, where there is one, with the top block."""
    blocks = [
        Part(f"s{at}.{name}", (block,))
        for at in range(1, 5)
        for name, block in getattr(model, f"s{at}").named_children()
    ]
    top = on_top(blocks.pop(), (model.final_conv,), (model.forward_head,), (model.head,))
    return [Part("stem", (model.stem,)), *blocks, top]


def _vit(model: Model) -> list[Part]:
    """timm's VisionTransformer: patches with their positions, then blocks."""
    bottom = Part(
        "patch_embed",
        (model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre),
        (model.pos_drop,),
        (model.cls_token, model.reg_token, model.pos_embed),
    )
    blocks = [Part(f"blocks.{index}", (block,)) for index, block in enumerate(model.blocks)]
    head = (model.attn_pool, model.fc_norm, model.head_drop, model.head)
    return [bottom, *blocks[:-1], on_top(blocks[-1], (model.norm,), (model.forward_head,), head)]


def _convnext(model: Model) -> list[Part]:
    """timm's ConvNeXt: stem, then blocks; what shrinks the image for a stage belongs to its first block."""
    blocks = [
        Part(
            f"stages.{at}.blocks.{index}",
            (stage.downsample, block) if index == 0 else (block,),
        )
        for at, stage in enumerate(model.stages)
        for index, block in enumerate(stage.blocks)
    ]
    top = on_top(blocks.pop(), (model.norm_pre,), (model.forward_head,), (model.head,))
    return [Part("stem", (model.stem,)), *blocks, top]


def _poolers(model: Model, classifier: str) -> tuple[nn.Module, ...]:
    """Pooling, and the empty place where timm's classifier would be."""
    return model.global_pool, getattr(model, classifier)


def _grouped(model: Model) -> list[Part]:
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


def _whole(model: Model, inputs: Tensor) -> Tensor:
    found: Tensor = model(inputs)
    return found


def _groups(model: Model) -> list[set[str]]:
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


KNOWN = {
    "timm.models.efficientnet.EfficientNet": Family(_efficientnet),
    "timm.models.mobilenetv3.MobileNetV3": Family(_mobilenet),
    "timm.models.regnet.RegNet": Family(_regnet),
    "timm.models.resnet.ResNet": Family(_resnet),
    "timm.models.convnext.ConvNeXt": Family(_convnext),
    "timm.models.vision_transformer.VisionTransformer": Family(_vit, channels_last=False),
}
# Any other timm model.
OTHER = Family(_grouped, whole=True)
