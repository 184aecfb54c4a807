"""Language models: their layers, and how to run them one by one.

Between two layers of a text flows `{"hidden": (batch, tokens, features), "attention_mask": (batch, tokens)}`,
the mask 1 for real tokens and 0 for padding. What blocks need besides, masks over pairs of tokens, biases or
rotations by position, is made by the lowest block that runs, handed upwards as `context`, and never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from steps.errors import UserError, WeightsError
from steps.families.layers import Family, Model, Part, Step, on_top

# A batch of texts on its way through the layers.
Texts = dict[str, Any]
# What blocks need besides the hidden states, made of these and of the mask.
Context = Callable[[Texts], Any]
# One block: the hidden states below it, and the context, to those above it.
Block = Callable[[Tensor, Any], Tensor]


@dataclass(frozen=True)
class ModelType:
    """How transformers' base model of one `model_type` is built.

    Attributes:
        arguments: of the model's class: a pooler is left out where there may be one.
        encoder: it has a decoder too, which is left out where nothing is to be generated.
    """

    arguments: dict[str, Any]
    encoder: bool = False


_NO_POOLER = {"add_pooling_layer": False}
# By `model_type` of config.json.
MODEL_TYPES = {
    "albert": ModelType(_NO_POOLER),
    "bert": ModelType(_NO_POOLER),
    "deberta-v2": ModelType({}),
    "distilbert": ModelType({}),
    "electra": ModelType({}),
    "gpt2": ModelType({}),
    "modernbert": ModelType({}),
    "roberta": ModelType(_NO_POOLER),
    "t5": ModelType({}, encoder=True),
    "xlm-roberta": ModelType(_NO_POOLER),
}


def build(config: dict[str, Any], *, tokens: bool) -> Model:
    """transformers' base model with random weights, in float32 and with eager attention.

    Args:
        config: what is in its config.json.
        tokens: with the decoder, where there is one.

    Raises:
        WeightsError: it is no model whose layers are known here, or its config is no such config.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding

    kind = _checked(config)
    try:
        settings = AutoConfig.for_model(**config)
        # The fused kernels of attention are not deterministic in their backward pass everywhere. A config
        # may name half precision, which is for the file and not for training.
        asked = {"attn_implementation": "eager", "dtype": torch.float32, **kind.arguments}
        if kind.encoder and not (tokens and has_decoder(config)):
            return _one_name(AutoModelForTextEncoding.from_config(settings, **asked))  # type: ignore[no-untyped-call]
        return _one_name(AutoModel.from_config(settings, **asked))  # type: ignore[no-untyped-call]
    except StrictDataclassError as error:
        raise WeightsError(
            f"transformers cannot build {config['model_type']!r}: {' '.join(str(error).split())}"
        ) from None


def has_decoder(config: dict[str, Any]) -> bool:
    """The weights are of an encoder and a decoder; some publish the encoder of one alone."""
    encoders = [name for name in config.get("architectures") or () if name.endswith("EncoderModel")]
    return MODEL_TYPES[config["model_type"]].encoder and not encoders


def writes(model: Model) -> bool:
    """The model is one that writes texts."""
    return type(model).__name__ in ("GPT2Model", "T5Model")


def _checked(config: dict[str, Any]) -> ModelType:
    model_type = config.get("model_type")
    if "auto_map" in config:
        raise WeightsError(
            f"config.json of {model_type!r} names code of its own (`auto_map`), which is never run here: "
            "take a model that transformers knows itself"
        )
    if model_type not in MODEL_TYPES:
        raise WeightsError(
            f"{model_type!r} is a model whose architecture we cannot order into layers; known are "
            f"{', '.join(MODEL_TYPES)}"
        )
    for key in ("is_decoder", "add_cross_attention"):
        if config.get(key):
            raise WeightsError(
                f"config.json of {model_type!r} says `{key}: true`: its layers run another way than those of "
                "a language model by itself"
            )
    return MODEL_TYPES[model_type]


def _one_name(model: Model) -> Model:
    """T5 with one name for its embeddings: `shared`.

    transformers registers them in each stack once more. So one tensor would have three names, in weights that
    are stored, and stand in the way of safetensors, which knows no such thing.
    """
    if hasattr(model, "shared"):
        for stack in (model.encoder, getattr(model, "decoder", None)):
            if stack is not None:
                del stack.embed_tokens
                # Found as before, but no part of the stack any more.
                object.__setattr__(stack, "embed_tokens", model.shared)
    return model


# ------------------------------------------------------------------------------------ what all have in common


def cut_text(flow: Any) -> Any:  # noqa: ANN401 - images come along as well
    """Between two layers, without what the next layer can make again."""
    if isinstance(flow, dict):
        return {name: tensor for name, tensor in flow.items() if name != "context"}
    return flow


def add_stochastic_depth(model: Model, rate: float) -> None:
    """Let a language model leave out blocks in training: block l of L with probability rate * l / L.

    Huang et al., Deep Networks with Stochastic Depth, 2016, equation 4. timm's models have the like already.
    It adds no tensor, so that weights with and without it are the same.
    """
    model.stochastic_depth = rate


def _shares(model: Model, blocks: int) -> Iterator[float]:
    """How often each block is left out, bottom to top."""
    rate = getattr(model, "stochastic_depth", 0.0)
    return (rate * (index + 1) / blocks for index in range(blocks))


def _block(run: Block, context: Context, module: nn.Module, share: float, flow: Texts) -> Texts:
    """One block; the lowest that runs leaves the context for those above.

    With stochastic depth the block as a whole is left out for some samples; what it adds is scaled up for the
    others, so that the mean stays.
    """
    if "context" not in flow:
        flow = {**flow, "context": context(flow)}
    below = flow["hidden"]
    hidden = run(below, flow["context"])
    if share > 0 and module.training:
        from torchvision.ops import stochastic_depth  # type: ignore[import-untyped, unused-ignore]

        hidden = below + stochastic_depth(hidden - below, share, "row", training=True)
    return {**flow, "hidden": hidden}


def _stack(
    model: Model, name: str, modules: Sequence[nn.Module], runs: Sequence[Block], context: Context
) -> list[Part]:
    """A part for each block."""
    shares = _shares(model, len(modules))
    return [
        Part(f"{name}.{index}", (partial(_block, run, context, module, share),), (module,))
        for index, (module, run, share) in enumerate(zip(modules, runs, shares, strict=True))
    ]


def _topped(parts: list[Part], run: tuple[Step, ...], pool: Step, *modules: nn.Module) -> list[Part]:
    """With what stands above the blocks."""
    return [*parts[:-1], on_top(parts[-1], run, (pool,), (*parts[-1].also, *modules))]


def _flow(hidden: Tensor, inputs: Texts) -> Texts:
    return {"hidden": hidden, "attention_mask": inputs["attention_mask"]}


def _normed(norm: nn.Module, flow: Texts) -> Texts:
    return {**flow, "hidden": norm(flow["hidden"])}


def _both_ways(model: Model, flow: Texts) -> Tensor | None:
    """What is added to attention scores: (batch, 1, tokens, tokens), None where nothing is padded."""
    from transformers.masking_utils import create_bidirectional_mask

    found: Tensor | None = create_bidirectional_mask(
        config=model.config, inputs_embeds=flow["hidden"], attention_mask=flow["attention_mask"]
    )
    return found


def _backwards(model: Model, flow: Texts) -> Tensor:
    """The same where a token sees only itself and those before it."""
    from transformers.masking_utils import create_causal_mask

    found: Tensor = create_causal_mask(
        config=model.config, inputs_embeds=flow["hidden"], attention_mask=flow["attention_mask"], cache=None
    )
    return found


def mean_of_tokens(flow: Texts) -> Tensor:
    """Mean of the last hidden states, padding left out; shape (batch, features)."""
    hidden = flow["hidden"]
    mask = flow["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)  # type: ignore[no-any-return]


def last_token(flow: Texts) -> Tensor:
    """The last real token's hidden state: the only one that has seen the whole text; (batch, features).

    It is found by the mask: GPT-2 has no token that stands for padding.
    """
    hidden, mask = flow["hidden"], flow["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (mask * places).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]  # type: ignore[no-any-return]


# --------------------------------------------------------------------------------------------------- encoders


def _bert(model: Model) -> list[Part]:
    """BertModel and those built like it: embeddings, encoder layers; the mean over the real tokens on top.

    ELECTRA may have narrower embeddings, and then a matrix that makes them as wide as the blocks.
    """
    bottom = Part(
        "embeddings",
        (partial(_bert_embeddings, model),),
        (model.embeddings, getattr(model, "embeddings_project", None)),
    )
    layers = model.encoder.layer
    blocks = _stack(model, "encoder", layers, layers, partial(_both_ways, model))
    return [bottom, *_topped(blocks, (), mean_of_tokens)]


def _bert_embeddings(model: Model, inputs: Texts) -> Texts:
    """Token ids to `hidden`, shape (batch, tokens, features)."""
    ids = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    hidden = model.embeddings(**ids)
    project = getattr(model, "embeddings_project", None)
    return _flow(hidden if project is None else project(hidden), inputs)


def _distilbert(model: Model) -> list[Part]:
    """DistilBertModel: as BERT, but without kinds of tokens."""
    bottom = Part("embeddings", (partial(_bert_embeddings, model),), (model.embeddings,))
    layers = model.transformer.layer
    blocks = _stack(model, "transformer", layers, layers, partial(_both_ways, model))
    return [bottom, *_topped(blocks, (), mean_of_tokens)]


def _albert(model: Model) -> list[Part]:
    """AlbertModel: layers that share one set of weights (all, in what is published) are one layer here."""
    encoder = model.encoder
    mapped = encoder.embedding_hidden_mapping_in
    bottom = Part(
        "embeddings", (partial(_bert_embeddings, model), partial(_normed, mapped)), (model.embeddings, mapped)
    )
    count, groups = model.config.num_hidden_layers, model.config.num_hidden_groups
    # transformers' own way to tell which layer is of which group.
    places = [int(index / (count / groups)) for index in range(count)]
    steps: list[list[Step]] = [[] for _ in range(groups)]
    for place, share in zip(places, _shares(model, count), strict=True):
        group = encoder.albert_layer_groups[place]
        steps[place].append(partial(_block, group, partial(_both_ways, model), group, share))
    parts = [
        Part(f"encoder.{place}", tuple(run), (group,))
        for place, (run, group) in enumerate(zip(steps, encoder.albert_layer_groups, strict=True))
    ]
    return [bottom, *_topped(parts, (), mean_of_tokens)]


def _deberta(model: Model) -> list[Part]:
    """DebertaV2Model (v2 and v3): the embeddings of distances that all blocks use belong to the bottom.

    A convolution beside the first block, where there is one, belongs to that block.
    """
    encoder = model.encoder
    of_distances = (getattr(encoder, "rel_embeddings", None), getattr(encoder, "LayerNorm", None))
    bottom = Part("embeddings", (partial(_deberta_embeddings, model),), (model.embeddings, *of_distances))
    beside = [encoder.conv, *[None] * (len(encoder.layer) - 1)]
    runs = [partial(_deberta_layer, *one) for one in zip(encoder.layer, beside, strict=True)]
    parts = _stack(model, "encoder", encoder.layer, runs, partial(_deberta_context, model))
    parts[0] = replace(parts[0], also=(*parts[0].also, encoder.conv))
    return [bottom, *_topped(parts, (), mean_of_tokens)]


def _deberta_embeddings(model: Model, inputs: Texts) -> Texts:
    ids = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    return _flow(model.embeddings(**ids, mask=inputs["attention_mask"]), inputs)


def _deberta_context(model: Model, flow: Texts) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Mask of tokens, mask of pairs, distances of pairs and the embeddings of distances."""
    encoder, mask = model.encoder, flow["attention_mask"]
    return (
        mask,
        encoder.get_attention_mask(mask),
        encoder.get_rel_pos(flow["hidden"]),
        encoder.get_rel_embedding(),
    )


def _deberta_layer(layer: Model, beside: Model | None, below: Tensor, context: Any) -> Tensor:  # noqa: ANN401
    mask, pairs, distances, embeddings = context
    hidden: Tensor = layer(below, pairs, relative_pos=distances, rel_embeddings=embeddings)[0]
    return hidden if beside is None else beside(below, hidden, mask)


def _modernbert(model: Model) -> list[Part]:
    """ModernBertModel: positions are rotations, and most blocks see only the neighbourhood of a token."""
    embed = partial(_modernbert_embeddings, model)
    bottom = Part("embeddings", (embed,), (model.embeddings, model.rotary_emb))
    runs = [partial(_modernbert_layer, layer) for layer in model.layers]
    blocks = _stack(model, "layers", model.layers, runs, partial(_modernbert_context, model))
    norm = model.final_norm
    return [bottom, *_topped(blocks, (partial(_normed, norm),), mean_of_tokens, norm)]


def _modernbert_embeddings(model: Model, inputs: Texts) -> Texts:
    return _flow(model.embeddings(input_ids=inputs["input_ids"]), inputs)


def _modernbert_context(model: Model, flow: Texts) -> dict[str, tuple[Tensor | None, Any]]:
    """For each kind of attention the mask and the rotations."""
    from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask

    hidden = flow["hidden"]
    masks = {
        "full_attention": create_bidirectional_mask,
        "sliding_attention": create_bidirectional_sliding_window_mask,
    }
    places = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
    return {
        kind: (
            masks[kind](config=model.config, inputs_embeds=hidden, attention_mask=flow["attention_mask"]),
            model.rotary_emb(hidden, places, kind),
        )
        for kind in dict.fromkeys(model.config.layer_types)
    }


def _modernbert_layer(layer: Model, below: Tensor, context: Any) -> Tensor:  # noqa: ANN401
    mask, rotations = context[layer.attention_type]
    found: Tensor = layer(below, attention_mask=mask, position_embeddings=rotations)
    return found


# ------------------------------------------------------------------------------------- those that write texts


def _gpt2(model: Model) -> list[Part]:
    """GPT2Model: tokens see only what is before them; the last real token on top."""
    bottom = Part("embeddings", (partial(_gpt2_embeddings, model),), (model.wte, model.wpe, model.drop))
    runs = [partial(_gpt2_layer, block) for block in model.h]
    blocks = _stack(model, "h", model.h, runs, partial(_backwards, model))
    return [bottom, *_topped(blocks, (partial(_normed, model.ln_f),), last_token, model.ln_f)]


def _gpt2_embeddings(model: Model, inputs: Texts) -> Texts:
    places = torch.arange(inputs["input_ids"].shape[1], device=inputs["input_ids"].device).unsqueeze(0)
    hidden = model.wte(inputs["input_ids"]) + model.wpe(places)
    if "token_type_ids" in inputs:
        hidden = hidden + model.wte(inputs["token_type_ids"])
    return _flow(model.drop(hidden), inputs)


def _gpt2_layer(block: Model, below: Tensor, mask: Tensor | None) -> Tensor:
    found: Tensor = block(below, None, mask)
    return found


def _t5_encoder(model: Model) -> list[Part]:
    """T5EncoderModel: embeddings, encoder blocks; the mean over the real tokens on top.

    The biases by distance that all blocks use belong to the lowest block, as they do in the library.
    """
    bottom, blocks = _t5_lower(model, _t5_embeddings)
    encoder = model.encoder
    norm = partial(_t5_normed, encoder)
    return [bottom, *_topped(blocks, (norm,), mean_of_tokens, encoder.final_layer_norm)]


def _t5(model: Model) -> list[Part]:
    """T5Model: embeddings, encoder blocks, decoder blocks; the decoder's hidden states on top.

    It can be cut below the decoder only: further up two texts of different lengths would have to be stored.
    """
    encoder, decoder = model.encoder, model.decoder
    bottom, lower = _t5_lower(model, _t5_both_embeddings)
    lower[-1] = _with(lower[-1], (), (partial(_t5_normed, encoder),), encoder.final_layer_norm)
    runs = [partial(_t5_decoder_block, block) for block in decoder.block]
    upper = _stack(model, "decoder", decoder.block, runs, partial(_t5_decoder_context, decoder))
    upper[0] = _with(upper[0], (partial(_t5_turn, model),), (), decoder.dropout)
    upper[-1] = _with(upper[-1], (), (partial(_t5_normed, decoder), _t5_given), decoder.final_layer_norm)
    return [bottom, *lower, *(replace(part, cut=False) for part in upper)]


def _with(part: Part, before: tuple[Step, ...], after: tuple[Step, ...], module: nn.Module) -> Part:
    return replace(part, run=(*before, *part.run, *after), also=(*part.also, module))


def _t5_lower(model: Model, embed: Callable[[Model, Texts], Texts]) -> tuple[Part, list[Part]]:
    """The bottom and the encoder's blocks."""
    encoder = model.encoder
    bottom = Part("embeddings", (partial(embed, model),), (model.shared, encoder.dropout))
    runs = [partial(_t5_encoder_block, block) for block in encoder.block]
    return bottom, _stack(model, "encoder", encoder.block, runs, partial(_t5_context, encoder))


def _t5_embeddings(model: Model, inputs: Texts) -> Texts:
    return _flow(model.encoder.dropout(model.shared(inputs["input_ids"])), inputs)


def _t5_both_embeddings(model: Model, inputs: Texts) -> Texts:
    """What the decoder is to read goes along as it is."""
    if "decoder_input_ids" not in inputs:
        raise UserError(
            "T5 gives tokens of the text that it writes, and here it has none to write: for labels of an "
            "input's own tokens take an encoder, e.g. a BERT"
        )
    beside = {name: tensor for name, tensor in inputs.items() if name.startswith("decoder_")}
    return {**_t5_embeddings(model, inputs), **beside}


def _t5_context(stack: Model, flow: Texts) -> tuple[Tensor | None, Tensor]:
    """Mask and biases of pairs of tokens."""
    return _both_ways(stack, flow), _t5_biases(stack, flow["hidden"])


def _t5_biases(stack: Model, hidden: Tensor) -> Tensor:
    length = hidden.shape[1]
    found: Tensor = stack.block[0].layer[0].SelfAttention.compute_bias(length, length, device=hidden.device)
    return found


def _t5_encoder_block(block: Model, below: Tensor, context: Any) -> Tensor:  # noqa: ANN401
    mask, biases = context
    found: Tensor = block(below, mask, biases)[0]
    return found


def _t5_turn(model: Model, flow: Texts) -> Texts:
    """From the encoder's text to the decoder's, which looks back at what the encoder made."""
    ids = flow["decoder_input_ids"]
    return {
        "hidden": model.decoder.dropout(model.shared(ids)),
        "attention_mask": flow.get("decoder_attention_mask", torch.ones_like(ids)),
        "encoded": flow["hidden"],
        "encoded_mask": flow["attention_mask"],
    }


def _t5_decoder_context(stack: Model, flow: Texts) -> tuple[Any, ...]:
    """Mask and biases of pairs of its own tokens, what the encoder made, and the mask of that."""
    from transformers.masking_utils import create_bidirectional_mask

    hidden, encoded = flow["hidden"], flow["encoded"]
    across = create_bidirectional_mask(
        config=stack.config,
        inputs_embeds=hidden,
        attention_mask=flow["encoded_mask"],
        encoder_hidden_states=encoded,
    )
    return _backwards(stack, flow), _t5_biases(stack, hidden), encoded, across


def _t5_decoder_block(block: Model, below: Tensor, context: Any) -> Tensor:  # noqa: ANN401
    mask, biases, encoded, across = context
    found: Tensor = block(below, mask, biases, encoded, across)[0]
    return found


def _t5_normed(stack: Model, flow: Texts) -> Texts:
    """The norm above a stack's blocks, and dropout.

    The library has one module for dropout below and above the blocks. Here that is the one below; the one
    above is in training when the norm beside it is.
    """
    norm = stack.final_layer_norm
    hidden = functional.dropout(norm(flow["hidden"]), stack.dropout.p, training=norm.training)
    return {**flow, "hidden": hidden}


def _t5_given(flow: Texts) -> Texts:
    """What the decoder gives, without what only its blocks need."""
    return {"hidden": flow["hidden"], "attention_mask": flow["attention_mask"]}


def _vectors(model: Model) -> list[Part]:
    """Vectors of words and what stands above them, as the model tells itself; a mean over the real tokens."""
    parts = [Part(name, tuple(steps)) for name, steps in model.bottom_up()]
    pool = model.pool() if hasattr(model, "pool") else (mean_of_tokens,)
    return [*parts[:-1], replace(parts[-1], pool=tuple(pool))]


def _transformers(name: str) -> str:
    return f"transformers.models.{name}"


_ENCODER = Family(_bert, channels_last=False)
KNOWN = {
    _transformers("albert.modeling_albert.AlbertModel"): Family(_albert, channels_last=False, shared=True),
    _transformers("bert.modeling_bert.BertModel"): _ENCODER,
    _transformers("deberta_v2.modeling_deberta_v2.DebertaV2Model"): Family(_deberta, channels_last=False),
    _transformers("distilbert.modeling_distilbert.DistilBertModel"): Family(_distilbert, channels_last=False),
    _transformers("electra.modeling_electra.ElectraModel"): _ENCODER,
    _transformers("gpt2.modeling_gpt2.GPT2Model"): Family(_gpt2, channels_last=False),
    _transformers("modernbert.modeling_modernbert.ModernBertModel"): Family(_modernbert, channels_last=False),
    _transformers("roberta.modeling_roberta.RobertaModel"): _ENCODER,
    _transformers("t5.modeling_t5.T5EncoderModel"): Family(_t5_encoder, channels_last=False),
    _transformers("t5.modeling_t5.T5Model"): Family(_t5, channels_last=False, decoder=True),
    _transformers("xlm_roberta.modeling_xlm_roberta.XLMRobertaModel"): _ENCODER,
    "steps.wordvectors.WordVectors": Family(_vectors, channels_last=False),
}
