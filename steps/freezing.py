"""Which tensors train, at which rate and decay; and the proof that the others stayed as they were."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from steps import families
from steps.arms import Arm, Lora
from steps.errors import HeadstartError, UserError
from steps.network import Layer, Network, Probe

BACKBONE = "backbone.model."


def freeze(network: Network, arm: Arm) -> None:
    """Set `requires_grad` of every parameter as the arm wants it at the start of a training.

    The head always trains. With `tune: lora` low-rank adapters are put into the backbone (Hu et al., LoRA,
    2022); with `tune: gradual` the backbone starts frozen and `thaw` frees it layer by layer.

    Raises:
        UserError: more layers are frozen than there are, a pattern matches nothing, LoRA has no module to
            work on, or the backbone has nothing of what is to be tuned, or no blocks with weights of their
            own.
    """
    _refuse_shared(network, arm)
    layers = network.backbone.layers
    bottom = bottom_layers(arm, len(layers))
    network.requires_grad_(False)
    network.head.requires_grad_(True)
    for parameter in _chosen(network, arm, layers[bottom:]):
        parameter.requires_grad_(True)
    if arm.tune != "gradual" and not any(one.requires_grad for one in network.parameters()):
        raise UserError(
            f"nothing would train: the head upon {network.backbone.name!r} has no weights of its own (they "
            "are the embeddings'), and the arm freezes the backbone; take `tune: lora` or `tune: all`"
        )


def _refuse_shared(network: Network, arm: Arm) -> None:
    """Refuse what treats layers apart where they have their weights in common.

    Raises:
        UserError: the arm asks for it.
    """
    asked = {
        "freeze_bottom": arm.freeze_bottom != 0,
        "reinit_top": arm.reinit_top > 0,
        "layer_decay": arm.layer_decay < 1,
        "tune: gradual": arm.tune == "gradual",
    }
    if network.backbone.family.shared and any(asked.values()):
        choice = next(name for name, wanted in asked.items() if wanted)
        raise UserError(
            f"{choice} does not work with {network.backbone.name!r}: all its blocks share one set of "
            "weights, so that the bottom cannot be treated apart from the top: take another arm, such as "
            "`tune: all`, `head` or `lora`"
        )


def bottom_layers(arm: Arm, layers: int) -> int:
    """How many layers at the bottom stay frozen, of so many; a share is rounded to whole layers.

    Raises:
        UserError: there are not so many, or they overlap with those drawn anew.
    """
    wanted = arm.freeze_bottom
    bottom = round(wanted * layers) if isinstance(wanted, float) else wanted
    if bottom > layers:
        raise UserError(f"freeze_bottom: {bottom} is more than the {layers} layers of the backbone")
    if bottom + arm.reinit_top > layers:
        raise UserError(
            f"freeze_bottom: {wanted} and reinit_top: {arm.reinit_top} overlap: the backbone has {layers} "
            "layers, and what is drawn anew has to be trained"
        )
    return bottom


def _chosen(network: Network, arm: Arm, layers: list[Layer]) -> list[nn.Parameter]:
    """The backbone's parameters, of these layers, that train from the first epoch on."""
    candidates = [parameter for layer in layers for parameter in layer.parameters()]
    if arm.tune == "all":
        return candidates
    if arm.tune in ("head", "gradual"):
        return []
    if arm.tune == "lora":
        return _inject_lora(network, arm.lora or Lora(), layers)
    among = {id(parameter) for parameter in candidates}
    if arm.tune == "norms":
        norms = [module for module in network.backbone.modules() if families.is_norm(module)]
        of_norms = [one for norm in norms for one in norm.parameters(recurse=False) if id(one) in among]
        _check_any(of_norms, network, "normalisation layers with weights")
        return of_norms
    named = [
        (name.removeprefix(BACKBONE), parameter)
        for name, parameter in network.named_parameters()
        if id(parameter) in among
    ]
    if arm.tune == "biases":  # Ben Zaken et al., BitFit, 2022
        # An LSTM's are called bias_ih_l0 and the like.
        biases = [parameter for name, parameter in named if name.split(".")[-1].startswith("bias")]
        _check_any(biases, network, "biases")
        return biases
    assert arm.tune == "pattern", arm.tune
    return _matching(named, arm.patterns)


def _check_any(chosen: Sequence[object], network: Network, what: str) -> None:
    """Without them the head alone would train, and the arm be another than it says.

    Raises:
        UserError: nothing was chosen.
    """
    if not chosen:
        raise UserError(
            f"{network.backbone.name!r} has no {what} that could be tuned: choose another `tune`, "
            "such as `head`"
        )


def _matching(named: list[tuple[str, nn.Parameter]], patterns: tuple[str, ...]) -> list[nn.Parameter]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            near = difflib.get_close_matches(pattern, [name for name, _ in named], n=3, cutoff=0.3)
            said = ", ".join(near or [name for name, _ in named[:3]])
            raise UserError(
                f"pattern {pattern!r} matches no parameter that may train; near it: {said} "
                "(`headstart show` lists the layers; `*` stands for anything)"
            )
    return [parameter for name, parameter in named if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _inject_lora(network: Network, lora: Lora, layers: list[Layer]) -> list[nn.Parameter]:
    from peft import LoraConfig, inject_adapter_in_model

    model = network.backbone.model
    inside = {id(module) for layer in layers for one in layer.modules for module in one.modules()}
    names = [
        name
        for name, module in model.named_modules()
        if id(module) in inside and _is_matrix(module) and _is_target(name, module, lora)
    ]
    if lora.targets is None:
        _check_any(names, network, "linear layers or convolutions of images")
    if not names:
        linear = [name for name, module in model.named_modules() if _is_matrix(module)]
        wanted = ", ".join(lora.targets or ())
        last = sorted({name.split(".")[-1] for name in linear})
        near = difflib.get_close_matches(wanted, last, n=3, cutoff=0.4) or last[:5]
        raise UserError(
            f"LoRA finds no module {wanted!r} among the layers that train; near it: {', '.join(near)}"
        )
    before = {id(parameter) for parameter in model.parameters()}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=names,
        bias="none",
        fan_in_fan_out=any(families.is_transposed(model.get_submodule(name)) for name in names),
    )
    inject_adapter_in_model(config, model)
    return [parameter for parameter in model.parameters() if id(parameter) not in before]


def _is_matrix(module: nn.Module) -> bool:
    return families.is_linear(module) or isinstance(module, nn.Conv2d)


def _is_target(name: str, module: nn.Module, lora: Lora) -> bool:
    """Named by the arm; else every linear layer, and every convolution that is not one channel by channel."""
    if lora.targets is not None:
        return any(fnmatchcase(name, one) or name.split(".")[-1] == one for one in lora.targets)
    if isinstance(module, nn.Conv2d):
        return module.groups == 1
    return True


def merge_lora(network: Network | Probe) -> None:
    """Add the low-rank products to the weights they adapt, so that the network is an ordinary one again."""
    from peft.tuners.lora import LoraLayer

    adapted = [(name, module) for name, module in network.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge()
        parent, _, last = name.rpartition(".")
        setattr(network.get_submodule(parent), last, module.get_base_layer())


# --------------------------------------------------------------------------------------------- thawing


def thaw_epochs(network: Network, arm: Arm, epochs: int) -> dict[str, int]:
    """The first epoch, from 1, in which each backbone layer trains under gradual unfreezing, top to bottom.

    The head alone trains first; then a layer more every `thaw_every` epochs. Layers that are never reached
    within the epochs are left out. Source: Howard and Ruder, ULMFiT, 2018.
    """
    layers = network.backbone.layers
    free = layers[bottom_layers(arm, len(layers)) :]
    when = {layer.name: 1 + arm.thaw_every * place for place, layer in enumerate(reversed(free), start=1)}
    return {name: epoch for name, epoch in when.items() if epoch <= epochs}


def thaw(network: Network, name: str) -> Layer:
    """Free the layer of that name."""
    layer = next(layer for layer in network.backbone.layers if layer.name == name)
    for parameter in layer.parameters():
        parameter.requires_grad_(True)
    return layer


# ---------------------------------------------------------------------------------------- what is frozen


def is_frozen(layer: Layer) -> bool:
    """No parameter of the layer trains."""
    return not any(parameter.requires_grad for parameter in layer.parameters())


def boundary(network: Network, drawn_anew: int = 0) -> int:
    """The deepest cut that can be kept below which nothing trains, and all is as it was pretrained.

    Args:
        network: with its layers frozen.
        drawn_anew: so many top layers are not the pretrained ones, frozen for now or not.
    """
    frozen, layers = 0, network.backbone.layers
    for layer in layers[: len(layers) - drawn_anew]:
        if not is_frozen(layer):
            break
        frozen += 1
    return max(cut for cut in network.backbone.storable if cut <= frozen)


def train_mode(network: nn.Module) -> None:
    """Train mode for what trains; frozen layers stay in eval mode.

    So their dropout is off. A batch normalisation whose scale does not train keeps its statistics, in a
    layer that trains in part too: they belong to the weights that were learnt with them.
    """
    network.train()
    if isinstance(network, Network):
        for layer in network.backbone.layers:
            if is_frozen(layer):
                for module in layer.modules:
                    module.eval()
    learning = set(learning_norms(network).values())
    for module in network.modules():
        if isinstance(module, _BatchNorm) and module not in learning:
            module.eval()


def learning_norms(network: nn.Module) -> dict[str, _BatchNorm]:
    """The batch normalisations that learn statistics, by name: their scale trains.

    One without a scale goes with its layer.
    """
    still = set()
    if isinstance(network, Network):
        frozen = [layer for layer in network.backbone.layers if is_frozen(layer)]
        still = {module for layer in frozen for one in layer.modules for module in one.modules()}
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm)
        and (module.weight.requires_grad if module.affine else module not in still)
    }


def moving(network: nn.Module) -> dict[str, Tensor]:
    """The tensors that training changes, by name: trained parameters, and statistics that are learnt.

    They are the network's own tensors, not copies.
    """
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for name, norm in learning_norms(network).items():
        names |= {f"{name}.{buffer}" for buffer, _ in norm.named_buffers(recurse=False)}
    return {name: tensor for name, tensor in network.state_dict().items() if name in names}


class Proof:
    """Remembers the digest of every frozen tensor, to show after the training that they are bit-identical.

    What counts as frozen is settled here: whatever frees a tensor afterwards, other than a thawing that is
    told of, is found out.

    Args:
        network: as it is before the first step, already frozen.
    """

    def __init__(self, network: nn.Module) -> None:
        trained = moving(network)
        self.digests = {name: _digest(one) for name, one in _tensors(network) if name not in trained}

    def check(self, network: nn.Module, thawed: Iterable[Layer] = ()) -> dict[str, Any]:
        """What run.json says of the frozen tensors: how many there are, and that none changed.

        Args:
            network: as it is after the last step, adapters not yet merged.
            thawed: layers that were freed on the way.

        Raises:
            HeadstartError: names a tensor that had to stay as it was and did not.
        """
        freed = {
            id(tensor)
            for layer in thawed
            for module in layer.modules
            for tensor in (*module.parameters(), *module.buffers())
        } | {id(parameter) for layer in thawed for parameter in layer.loose}
        now = dict(_tensors(network))
        frozen = {name: one for name, one in now.items() if name in self.digests and id(one) not in freed}
        changed = [name for name, one in frozen.items() if _digest(one) != self.digests[name]]
        changed += [name for name in self.digests if name not in now]
        if changed:
            raise HeadstartError(
                f"frozen tensor {changed[0]!r} changed in the training ({len(changed)} of {len(frozen)}): "
                "the freezing is broken, do not trust this run"
            )
        parameters = {name for name, _ in network.named_parameters()}
        return {
            "tensors": len(frozen),
            "parameters": sum(tensor.numel() for name, tensor in frozen.items() if name in parameters),
            "unchanged": True,
        }


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _digest(tensor: Tensor) -> bytes:
    content = tensor.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(content.view(torch.uint8).numpy().data if content.numel() else b"").digest()


# ------------------------------------------------------------------------------------- rates and decay


def parameter_groups(
    network: Network | Probe, arm: Arm, layers: list[Layer] | None = None
) -> list[dict[str, Any]]:
    """Groups for an optimizer: every layer's trained parameters, with and without weight decay.

    Decay is for matrices and convolutions; biases and norms, whose tensors have one dimension, are left
    alone (He et al., Bag of Tricks, 2019, section 3.1). What does not require a gradient is in no group:
    an optimizer would decay it all the same. Under L2-SP the pretrained parameters are drawn to where they
    started, not to zero, so they have no decay of their own.

    With `layer_decay: d` a backbone of L layers trains layer i (the bottom one is 0) at
    `backbone_learning_rate * d ** (L - 1 - i)` (Howard and Ruder, ULMFiT, 2018; the form of ELECTRA, 2020).

    Args:
        network: a network, or a head alone.
        arm: its rates; the backbone's is the head's where none is given.
        layers: only these; all when not given.

    Returns:
        Groups with `name`, `params`, `lr` and `weight_decay`, the head's first, then top to bottom.
    """
    backbone = network.backbone.layers if isinstance(network, Network) else []
    assert arm.learning_rate is not None
    rates = {"head": arm.learning_rate}
    for place, layer in enumerate(reversed(backbone)):
        rates[layer.name] = (arm.backbone_learning_rate or arm.learning_rate) * arm.layer_decay**place
    anchored = {layer.name for layer in backbone[: len(backbone) - arm.reinit_top]} if arm.l2_sp else set()
    # Layers alike in rate and decay share a group: the fused optimizer is faster on few long lists.
    found: dict[tuple[str, float, float], list[nn.Parameter]] = {}
    for layer in reversed(layers if layers is not None else network.layers()):
        name = layer.name if arm.layer_decay < 1 or layer.name == "head" else "backbone"
        for parameter in layer.parameters():
            if parameter.requires_grad:
                decay = arm.weight_decay if parameter.ndim > 1 and layer.name not in anchored else 0.0
                found.setdefault((name, rates[layer.name], decay), []).append(parameter)
    return [
        {"name": name, "params": parameters, "lr": rate, "weight_decay": decay}
        for (name, rate, decay), parameters in found.items()
    ]


class Anchor:
    """L2-SP: adds the gradient of `strength / 2 * |w - w0|^2` over the pretrained parameters that train.

    Source: Li, Grandvalet and Davoine, Explicit Inductive Bias for Transfer Learning, 2018, equation 2; the
    new head has its ordinary weight decay instead of their second term.

    Args:
        network: as it is before the first step.
        arm: `l2_sp` is the strength.
    """

    def __init__(self, network: Network | Probe, arm: Arm) -> None:
        backbone = network.backbone.layers if isinstance(network, Network) else []
        pretrained = backbone[: len(backbone) - arm.reinit_top] if arm.l2_sp else []
        self.strength = arm.l2_sp
        self.pairs = [
            (parameter, parameter.detach().clone())
            for layer in pretrained
            for parameter in layer.parameters()
        ]

    def pull(self) -> None:
        """Add to the gradients, after backward and before the optimizer's step."""
        for parameter, start in self.pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - start, alpha=self.strength)
