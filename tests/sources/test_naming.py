from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from steps import network
from steps.errors import WeightsError
from steps.sources.naming import translate

SIZES: dict[str, Any] = {
    "vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 40,
}  # fmt: skip
TWO: dict[str, Any] = {"vocab_size": 60, "n_layer": 2, "n_head": 2, "n_embd": 32}
T5: dict[str, Any] = {
    "vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
}  # fmt: skip
# What was pretrained, how it is configured, and what of it stands on top.
PRETRAINED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "BertForPreTraining": ("BertConfig", SIZES, ["cls", "pooler"]),
    "RobertaForMaskedLM": ("RobertaConfig", SIZES, ["lm_head"]),
    "ElectraForPreTraining": (
        "ElectraConfig", SIZES | {"embedding_size": 16}, ["discriminator_predictions"],
    ),
    "ElectraForMaskedLM": (
        "ElectraConfig", SIZES | {"embedding_size": 16}, ["generator_lm_head", "generator_predictions"],
    ),
    "DebertaV2ForMaskedLM": ("DebertaV2Config", SIZES | {"relative_attention": True}, ["cls"]),
    "DistilBertForMaskedLM": (
        "DistilBertConfig", {"vocab_size": 60, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
        ["vocab_layer_norm", "vocab_projector", "vocab_transform"],
    ),
    "AlbertForPreTraining": (
        "AlbertConfig", SIZES | {"embedding_size": 16}, ["pooler", "predictions", "sop_classifier"],
    ),
    "GPT2LMHeadModel": ("GPT2Config", TWO | {"bos_token_id": 1, "eos_token_id": 1}, ["lm_head"]),
    "T5ForConditionalGeneration": ("T5Config", T5, ["lm_head"]),
}  # fmt: skip


def drawn(module: nn.Module) -> dict[str, Tensor]:
    """Other values for every tensor of a module, so that none is equal to another by chance."""
    generator = torch.Generator().manual_seed(5)
    return {
        name: torch.randn(one.shape, generator=generator) if one.is_floating_point() else one.clone()
        for name, one in module.state_dict().items()
    }


def firsts(names: list[str]) -> list[str]:
    return sorted({name.split(".")[0] for name in names})


@pytest.mark.parametrize("name", PRETRAINED)
def test_a_base_model_is_found_below_what_it_was_pretrained_with(name: str) -> None:
    kind, sizes, tops = PRETRAINED[name]
    config = getattr(transformers, kind)(**sizes)
    whole = getattr(transformers, name)(config)
    given = drawn(whole)
    told = {"library": "transformers", "name": config.model_type, "config": config.to_dict()}
    module = network.stored(told)
    named = translate(given, module, "here")
    assert (named.missing, named.strange) == ([], [])
    assert firsts(named.tops) == tops
    network.load_exactly(module, named.tensors, "here")
    prefix = f"{whole.base_model_prefix}."
    for place, tensor in named.tensors.items():
        assert torch.equal(tensor, given.get(place, given.get(prefix + place))), place  # type: ignore[arg-type]


def test_an_output_layer_of_its_own_is_kept_where_the_network_writes_texts() -> None:
    config = transformers.T5Config(**T5 | {"tie_word_embeddings": False})
    given = drawn(transformers.T5ForConditionalGeneration(config))
    told = {"library": "transformers", "name": "t5", "config": config.to_dict()}
    named = translate(given, network.stored(told), "here")
    assert torch.equal(named.tensors["lm_head.weight"], given["lm_head.weight"])
    assert named.tops == []


# How the authors of ConvNeXt name what timm names otherwise.
CONVNEXT = {
    r"^stem\.": "downsample_layers.0.",
    r"^stages\.(\d+)\.downsample\.": r"downsample_layers.\1.",
    r"^stages\.(\d+)\.blocks\.": r"stages.\1.",
    "conv_dw": "dwconv",
    r"mlp\.fc": "pwconv",
    r"^head\.norm\.": "norm.",
}


def test_a_checkpoint_of_an_architectures_authors_is_read_as_timm_reads_it() -> None:
    model = timm.create_model("test_convnext", pretrained=False, num_classes=0)
    wanted = drawn(model)
    given = {}
    for name, tensor in wanted.items():
        for ours, theirs in CONVNEXT.items():
            name = re.sub(ours, theirs, name)
        given[name] = tensor
    assert not any(name.startswith(("stem", "head")) for name in given)
    named = translate(given, model, "here")
    assert (named.missing, named.tops, named.strange) == ([], [], [])
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in named.tensors.items())


def test_a_head_of_several_parts_is_a_top_and_a_stranger_is_not() -> None:
    name = "deit_tiny_distilled_patch16_224"
    given = timm.create_model(name, pretrained=False).state_dict() | {"other.weight": torch.zeros(1)}
    named = translate(given, timm.create_model(name, pretrained=False, num_classes=0), "here")
    assert firsts(named.tops) == ["head", "head_dist"]
    assert named.strange == ["other.weight"]


def test_a_module_of_ours_is_matched_by_its_names_alone() -> None:
    module = nn.Linear(2, 3)
    named = translate({"weight": torch.zeros(3, 2), "head.weight": torch.zeros(1)}, module, "here")
    assert (named.missing, named.tops, named.strange) == (["bias"], [], ["head.weight"])
    with pytest.raises(WeightsError, match=r"^here: tensor 'weight' has shape \(1,\), the"):
        translate({"weight": torch.zeros(1)}, module, "here")
