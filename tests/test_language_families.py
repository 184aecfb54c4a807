"""Language models of every family, small and at random, beside transformers' own; what works with what."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from steps import artifacts, freezing, loop, network, wordvectors
from steps.data import Batches, FeatureSamples, Samples
from steps.errors import UserError, WeightsError
from steps.features import PrefixCache, PrefixSamples
from steps.loop import Fed, Recipe, Stage
from steps.network import Backbone, Gives, Inputs, LanguageHead, Network
from steps.objective import Objective
from steps.params import Arm, Lora, Machine, Training
from steps.resume import Checkpoints

CPU = torch.device("cpu")
SIZES = {"vocab_size": 60, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
         "intermediate_size": 48, "max_position_embeddings": 24}  # fmt: skip
DEBERTA = {**SIZES, "relative_attention": True, "position_buckets": 4, "norm_rel_ebd": "layer_norm",
           "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
           "type_vocab_size": 0}  # fmt: skip
T5 = {"vocab_size": 60, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 12, "pad_token_id": 0,
      "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip
GPT2 = {"vocab_size": 60, "n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 24,
        "bos_token_id": 1, "eos_token_id": 1}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "albert": {**SIZES, "embedding_size": 16},
    "bert": SIZES,
    "deberta-v2": {**DEBERTA, "conv_kernel_size": 3, "conv_act": "gelu"},
    "deberta-v3": DEBERTA,
    "distilbert": {"vocab_size": 60, "dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 48,
                   "max_position_embeddings": 24},
    "electra": {**SIZES, "embedding_size": 16},
    "gpt2": GPT2,
    "modernbert": {**SIZES, "local_attention": 4, "global_attn_every_n_layers": 2, "pad_token_id": 0,
                   "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "roberta": {**SIZES, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    "t5": T5,
    "xlm-roberta": {**SIZES, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}  # fmt: skip
# The layers of each, counted by hand: embeddings and blocks.
LAYERS = dict.fromkeys(CONFIGS, 4) | {"albert": 2, "t5": 3}
# Those whose tokens may be of two kinds.
KINDS = ("albert", "bert", "deberta-v2", "electra", "gpt2", "roberta", "xlm-roberta")
LENGTHS = (7, 2, 5, 1)
# What dropout is called in one config or another.
DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
            "dropout_rate", "attn_pdrop", "embd_pdrop", "resid_pdrop", "embedding_dropout",
            "mlp_dropout")  # fmt: skip


def described(name: str, **changes: Any) -> dict[str, Any]:
    model_type = "deberta-v2" if name == "deberta-v3" else name
    kinds = {"type_vocab_size": 2} if name in KINDS and name != "gpt2" else {}
    config = {"model_type": model_type, **CONFIGS[name], **kinds, **changes}
    return {"library": "transformers", "name": model_type, "config": config}


def made(name: str, gives: Gives = "pooled", **changes: Any) -> Backbone:
    """A backbone in eval mode, none of whose tensors is zero or one by its initialiser."""
    torch.manual_seed(4)
    return stirred(network.architecture(described(name, **changes), gives=gives)).eval()


def stirred(backbone: Backbone, strength: float = 0.1) -> Backbone:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * strength)
    return backbone


def library(backbone: Backbone) -> Any:
    """transformers' own model, made another way, with the backbone's tensors."""
    config = copy.deepcopy(backbone.model.config)
    model = type(backbone.model)(config, **({"add_pooling_layer": False} if pooler(backbone) else {}))
    missing, unexpected = model.load_state_dict(backbone.model.state_dict(), strict=False)
    assert not unexpected
    # Further names of `shared`, whose tensor is the same.
    assert all(name.endswith("embed_tokens.weight") for name in missing)
    return model.eval()


def pooler(backbone: Backbone) -> bool:
    model: Any = backbone.model
    return model.config.model_type in ("albert", "bert", "roberta", "xlm-roberta")


class Texts:
    """Texts of these lengths, padded to the longest of a batch; for a decoder with texts to write."""

    def __init__(self, name: str, lengths: Sequence[int] = LENGTHS, *, decoder: bool = False) -> None:
        generator = torch.Generator().manual_seed(1)
        self.lengths: Sequence[int] | None = list(lengths)
        self.padding = CONFIGS.get(name, {}).get("pad_token_id", 0)
        self.kinds = name in KINDS
        self.tokens = [torch.randint(5, 60, (length,), generator=generator) for length in lengths]
        self.written = [torch.randint(5, 60, (length % 3 + 2,), generator=generator) for length in lengths]
        self.decoder = decoder

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, indices: list[int], view: int | None = None) -> dict[str, Tensor]:
        ids, mask = self._padded([self.tokens[index] for index in indices])
        found = {"input_ids": ids, "attention_mask": mask}
        if self.kinds and not self.decoder:
            found["token_type_ids"] = torch.arange(ids.shape[1]).div(3, rounding_mode="floor").clamp(max=1)
            found["token_type_ids"] = found["token_type_ids"].expand_as(ids).contiguous()
        if self.decoder:
            ids, mask = self._padded([self.written[index] for index in indices])
            found |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        return found

    def _padded(self, rows: list[Tensor]) -> tuple[Tensor, Tensor]:
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.padding)
        lengths = torch.tensor([len(row) for row in rows])[:, None]
        return ids, (torch.arange(ids.shape[1]) < lengths).long()


def inputs(name: str, *, decoder: bool = False, count: int = 4) -> dict[str, Tensor]:
    return Texts(name, decoder=decoder).batch(list(range(count)))


def pooled(name: str, hidden: Tensor, lengths: Sequence[int] = LENGTHS) -> Tensor:
    """What is expected of the top, text by text."""
    if name == "gpt2":
        return torch.stack([row[length - 1] for row, length in zip(hidden, lengths, strict=True)])
    return torch.stack([row[:length].mean(dim=0) for row, length in zip(hidden, lengths, strict=True)])


@pytest.fixture(scope="module", params=CONFIGS)
def family(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    return request.param, made(request.param)


# ------------------------------------------------------------------------------------- as the library has it


def test_every_cut_gives_what_the_library_gives(family: tuple[str, Backbone]) -> None:
    name, backbone = family
    given = inputs(name)
    assert backbone.layers[0].name == "embeddings"
    assert backbone.cuts == tuple(range(LAYERS[name] + 1))
    with torch.inference_mode():
        hidden = library(backbone)(**given).last_hidden_state
        expected = pooled(name, hidden)
        whole = backbone(given)
        torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
        assert whole.shape == (4, 32)
        assert (whole[0] - whole[1]).abs().max() > 1e-3, "a constant network proves nothing"
        for cut in backbone.cuts:
            below = backbone(given, 0, cut)
            assert isinstance(below, Tensor) or cut == 0 or set(below) == {"hidden", "attention_mask"}
            torch.testing.assert_close(backbone(below, cut), expected, atol=1e-5, rtol=1e-5)
        flow: Inputs = given
        for start, stop in zip(backbone.cuts, backbone.cuts[1:], strict=False):
            flow = backbone(flow, start, stop)
        torch.testing.assert_close(flow, expected, atol=1e-5, rtol=1e-5)


def test_tokens_are_the_librarys_last_hidden_states(family: tuple[str, Backbone]) -> None:
    name, _ = family
    if name == "t5":
        return  # below, with its decoder
    backbone = made(name, "tokens")
    given = inputs(name)
    with torch.inference_mode():
        expected = library(backbone)(**given).last_hidden_state
        found = backbone(given)
    real = given["attention_mask"].bool()
    assert set(found) == {"hidden", "attention_mask"}
    torch.testing.assert_close(found["hidden"][real], expected[real], atol=1e-5, rtol=1e-5)


def test_texts_without_padding_give_the_same(family: tuple[str, Backbone]) -> None:
    name, backbone = family
    texts = Texts(name)
    with torch.inference_mode():
        together = backbone(texts.batch([0, 1, 2, 3]))
        alone = torch.cat([backbone(texts.batch([index])) for index in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_gpt2_finds_the_last_token_by_the_mask_alone() -> None:
    """Whatever fills up a text, on the right or on the left, and be it a word of the text."""
    backbone = made("gpt2")
    ids = torch.tensor([[7, 8, 9, 9, 9], [7, 8, 9, 5, 9]])
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 0, 0]])
    with torch.inference_mode():
        right = backbone({"input_ids": ids, "attention_mask": mask})
        tokens = backbone.model(input_ids=ids[:, :3]).last_hidden_state
    torch.testing.assert_close(right[0], right[1])
    torch.testing.assert_close(right[0], tokens[0, 2], atol=1e-5, rtol=1e-5)
    left = made("gpt2", "tokens")({"input_ids": ids.flip(1), "attention_mask": mask.flip(1)})
    with torch.inference_mode():
        found = backbone({"input_ids": ids.flip(1), "attention_mask": mask.flip(1)})
    torch.testing.assert_close(found, left["hidden"][:, -1])


def test_names_of_tensors_are_those_of_published_weights(
    family: tuple[str, Backbone], tmp_path: Path
) -> None:
    name, backbone = family
    library(backbone).save_pretrained(tmp_path)
    published = load_file(tmp_path / "model.safetensors")
    mine = backbone.model.state_dict()
    assert set(published) == set(mine)
    network.load_exactly(backbone.model, published, name)


def test_each_tensor_and_module_is_in_one_layer(family: tuple[str, Backbone]) -> None:
    check_layers(family[1])


def check_layers(backbone: Backbone) -> None:
    found = [id(parameter) for layer in backbone.layers for parameter in layer.parameters()]
    assert sorted(found) == sorted(id(parameter) for parameter in backbone.parameters())
    modules = [id(one) for layer in backbone.layers for module in layer.modules for one in module.modules()]
    assert len(modules) == len(set(modules))
    assert {id(one) for one in backbone.modules() if not list(one.children())} <= set(modules)


def test_a_layer_changes_only_what_lies_above(family: tuple[str, Backbone]) -> None:
    name, backbone = family
    check_order(backbone, inputs(name))


def check_order(backbone: Backbone, given: Inputs) -> None:
    backbone = copy.deepcopy(backbone)
    with torch.inference_mode():
        before = {cut: backbone(given, 0, cut) for cut in backbone.cuts}
    for at, layer in enumerate(backbone.layers):
        kept = [parameter.detach().clone() for parameter in layer.parameters()]
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.add_(0.1 * torch.rand_like(parameter))
            found = {cut: backbone(given, 0, cut) for cut in backbone.cuts}
            for parameter, old in zip(layer.parameters(), kept, strict=True):
                parameter.copy_(old)
        for cut in backbone.cuts:
            assert same(found[cut], before[cut]) == (cut <= at), (layer.name, cut)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return all(torch.equal(one[name], other[name]) for name in one)
    return torch.equal(one, other)


def test_checkpointing_changes_no_gradient(family: tuple[str, Backbone]) -> None:
    """With dropout and stochastic depth at work."""
    name, _ = family
    torch.manual_seed(1)
    plain = network.architecture(described(name), 0.4).train()
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    for backbone in (plain, frugal):
        torch.manual_seed(8)
        backbone(inputs(name)).square().sum().backward()
    for (tensor_name, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert one.grad is not None, tensor_name
        assert torch.equal(one.grad, other.grad), tensor_name  # type: ignore[arg-type]


def test_stochastic_depth_leaves_out_whole_blocks_for_some_samples(family: tuple[str, Backbone]) -> None:
    name, _ = family
    off = dict.fromkeys(DROPOUTS, 0.0)
    torch.manual_seed(2)
    backbone = stirred(network.architecture(described(name, **off), 1.0 - 1e-7, "pooled"))
    plain = made(name)
    assert list(backbone.state_dict()) == list(plain.state_dict())
    given = inputs(name)
    with torch.no_grad():
        backbone.eval()
        whole = backbone(given)
        plain.load_state_dict(backbone.state_dict())
        torch.testing.assert_close(plain(given), whole)
        backbone.train()
        # The top block, or its last pass, is left out for every text at that rate.
        below = backbone(given, 0, backbone.cuts[-2])
        backbone.gives = "tokens"
        if name == "t5":
            torch.manual_seed(1)
            top = backbone(below, backbone.cuts[-2])["hidden"]
            torch.testing.assert_close(top, backbone.model.encoder.final_layer_norm(below["hidden"]))  # type: ignore[union-attr, operator]
        elif name not in ("albert", "gpt2", "modernbert"):
            torch.testing.assert_close(backbone(below, backbone.cuts[-2])["hidden"], below["hidden"])
        backbone.gives = "pooled"
        assert not torch.allclose(backbone(given), whole, atol=1e-3)


# ---------------------------------------------------------------------------------------- what writes texts


@pytest.fixture(scope="module")
def writer() -> Backbone:
    return made("t5", "tokens", num_decoder_layers=3)


def test_a_decoder_stands_above_its_encoder(writer: Backbone) -> None:
    assert [layer.name for layer in writer.layers] == [
        "embeddings", "encoder.0", "encoder.1", "decoder.0", "decoder.1", "decoder.2"
    ]  # fmt: skip
    assert writer.cuts == (0, 1, 2, 3, 6)
    assert writer.storable == (0, 1, 2, 3)
    check_layers(writer)
    check_order(writer, inputs("t5", decoder=True))


def test_checkpointing_changes_no_gradient_of_a_decoder() -> None:
    torch.manual_seed(1)
    plain = network.architecture(described("t5"), 0.4, "tokens").train()
    frugal = copy.deepcopy(plain)
    frugal.checkpointing = True
    for backbone in (plain, frugal):
        torch.manual_seed(8)
        backbone(inputs("t5", decoder=True))["hidden"].square().sum().backward()
    for (name, one), other in zip(plain.named_parameters(), frugal.parameters(), strict=True):
        assert one.grad is not None, name
        assert torch.equal(one.grad, other.grad), name  # type: ignore[arg-type]


def test_a_decoder_gives_what_the_librarys_gives(writer: Backbone) -> None:
    given = inputs("t5", decoder=True)
    unmasked = {name: tensor for name, tensor in given.items() if name != "decoder_attention_mask"}
    own = library(writer)
    real = given["decoder_attention_mask"].bool()
    with torch.inference_mode():
        expected = own(**given).last_hidden_state
        for cut in writer.cuts[:-1]:
            found = writer(writer(given, 0, cut), cut)
            assert set(found) == {"hidden", "attention_mask"}
            torch.testing.assert_close(found["hidden"], expected, atol=1e-5, rtol=1e-5)
            assert torch.equal(found["attention_mask"], given["decoder_attention_mask"])
        found = writer(unmasked)
        torch.testing.assert_close(found["hidden"][real], expected[real], atol=1e-5, rtol=1e-5)
        assert found["attention_mask"].all()


def folder_of(description: dict[str, Any], tmp_path: Path, seed: int = 3) -> Path:
    torch.manual_seed(seed)
    module = network.stored(description)
    artifacts.write_json(tmp_path / "architecture.json", description)
    save_file(dict(module.state_dict()), tmp_path / "model.safetensors")
    return tmp_path


WRITERS = {
    "t5": (described("t5"), transformers.T5ForConditionalGeneration),
    "t5 untied": (described("t5", tie_word_embeddings=False), transformers.T5ForConditionalGeneration),
    "gpt2": (described("gpt2"), transformers.GPT2LMHeadModel),
    "gpt2 untied": (described("gpt2", tie_word_embeddings=False), transformers.GPT2LMHeadModel),
}


def library_model(name: str) -> Any:
    """transformers' own, with an output layer."""
    description, kind = WRITERS[name]
    model: Any = kind(transformers.AutoConfig.for_model(**description["config"]))
    if "untied" in name:  # as from_pretrained leaves it where the file has a layer of its own
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_holds_all_that_was_published(name: str, tmp_path: Path) -> None:
    description, _ = WRITERS[name]
    library_model(name).save_pretrained(tmp_path)
    published = {
        one.removeprefix("transformer."): tensor
        for one, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    assert ("lm_head.weight" in published) == ("untied" in name)
    stored = network.stored(description)
    network.load_exactly(stored, published, "here")
    folder = folder_of(description, tmp_path)
    kept = load_file(folder / "model.safetensors")
    both: tuple[Gives, ...] = ("pooled", "tokens")
    for gives in both:
        backbone = network.build_backbone(folder, pretrained=True, gives=gives)
        for one, tensor in backbone.model.state_dict().items():
            assert torch.equal(tensor, kept[one]), one


def test_what_is_needed_must_be_there_and_nothing_unknown(tmp_path: Path) -> None:
    folder = folder_of(described("t5"), tmp_path)
    whole = load_file(folder / "model.safetensors")
    lost = "encoder.block.1.layer.0.SelfAttention.q.weight"
    save_file({name: one for name, one in whole.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=rf"tensor '{lost}' is missing"):
        network.build_backbone(folder, pretrained=True)
    save_file({**whole, "stranger": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"no tensor 'stranger' \(1 left over\)"):
        network.build_backbone(folder, pretrained=True)


def test_an_encoder_published_alone_gives_its_own_tokens(tmp_path: Path) -> None:
    description = described("t5", architectures=["T5EncoderModel"])
    folder = folder_of(description, tmp_path)
    assert not [name for name in load_file(folder / "model.safetensors") if name.startswith("decoder")]
    backbone = network.build_backbone(folder, pretrained=True, gives="tokens").eval()
    given = inputs("t5")
    with torch.inference_mode():
        expected = library(backbone)(**given).last_hidden_state
        torch.testing.assert_close(backbone(given)["hidden"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", WRITERS)
def test_generating_is_the_librarys_with_the_very_tensors(name: str, tmp_path: Path) -> None:
    description, _ = WRITERS[name]
    folder = folder_of(description, tmp_path)
    backbone = stirred(network.build_backbone(folder, pretrained=True, gives="tokens"), 0.5).eval()
    head = network.language_head(backbone, folder).eval()
    model = network.generation_model(backbone, head)
    assert not [one for one, tensor in model.named_parameters() if tensor.is_meta]
    mine = {id(one) for module in (backbone, head) for one in module.parameters()}
    assert {id(one) for one in model.parameters()} == mine

    own = library_model(name).eval()
    missing, unexpected = own.load_state_dict(
        {key: tensor.clone() for key, tensor in model.state_dict().items()}, strict=False
    )
    assert not unexpected
    assert all(key.endswith("embed_tokens.weight") for key in missing)
    if own.generation_config.pad_token_id is None:
        own.generation_config.pad_token_id = own.config.eos_token_id
    texts = Texts("t5")
    given = {key: tensor for key, tensor in texts.batch([0, 2]).items() if key != "token_type_ids"}
    if name.startswith("gpt2"):  # a text goes on at its right end
        given = {key: tensor.flip(1) for key, tensor in given.items()}
    said = [one.generate(**given, max_new_tokens=6, num_beams=beams, do_sample=False)
            for beams in (1, 3) for one in (model, own)]  # fmt: skip
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[2], said[3])
    assert len(set(said[0].flatten().tolist())) > 2, "it always says the same"
    # What is trained afterwards is what writes.
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.mul_(-1)
    assert not torch.equal(model.generate(**given, max_new_tokens=6, do_sample=False), said[0])


@pytest.mark.parametrize("name", WRITERS)
def test_logits_are_the_librarys(name: str, tmp_path: Path) -> None:
    description, _ = WRITERS[name]
    folder = folder_of(description, tmp_path)
    backbone = network.build_backbone(folder, pretrained=True, gives="tokens").eval()
    model = Network(backbone, network.language_head(backbone, folder)).eval()
    given = inputs("t5", decoder=name.startswith("t5"))
    with torch.inference_mode():
        expected = network.generation_model(backbone, model.head)(**given).logits  # type: ignore[arg-type]
        torch.testing.assert_close(model(given), expected)
        copied = copy.deepcopy(model)
        for parameter in copied.parameters():
            parameter.zero_()
        assert not copied(given).any()
        torch.testing.assert_close(model(given), expected)
    names = list(model.state_dict())
    assert ("head.linear.weight" in names) == ("untied" in name)
    assert len({tensor.data_ptr() for tensor in model.state_dict().values()}) == len(names)


def test_a_head_without_weights_cannot_be_all_that_trains() -> None:
    backbone = made("gpt2", "tokens")
    model = Network(backbone, LanguageHead(backbone))
    with pytest.raises(UserError, match=r"nothing would train: the head upon 'gpt2-.* has no weights of its"):
        freezing.freeze(model, Arm(tune="head", learning_rate=0.1))
    freezing.freeze(model, Arm(freeze_bottom=1, **RATES))
    assert not model.head.weight.requires_grad


def test_an_output_layer_that_is_not_there(tmp_path: Path) -> None:
    folder = folder_of(described("gpt2"), tmp_path)  # tied: nothing is stored
    untied = network.architecture(described("gpt2", tie_word_embeddings=False), gives="tokens")
    with pytest.raises(WeightsError, match="lm_head: tensor 'weight' is missing"):
        network.language_head(untied, folder)
    others = (made("bert", "tokens"), made("gpt2"), made("t5"))
    for backbone in others:
        with pytest.raises(UserError, match=r"writes no texts: take a backbone of the families T5"):
            LanguageHead(backbone)


# ------------------------------------------------------------------------------------------- what is refused


def test_models_that_cannot_be_ordered_are_refused() -> None:
    with pytest.raises(
        WeightsError, match=r"'mamba' is a model whose architecture we cannot order .* albert, "
    ):
        network.architecture({"library": "transformers", "name": "mamba", "config": {"model_type": "mamba"}})
    with pytest.raises(WeightsError, match=r"names code of its own \(`auto_map`\), which is never run"):
        network.architecture(described("bert", auto_map={"AutoModel": "modeling.Mine"}))
    for key in ("is_decoder", "add_cross_attention"):
        with pytest.raises(WeightsError, match=f"says `{key}: true`"):
            network.architecture(described("bert", **{key: True}))
    with pytest.raises(WeightsError, match="transformers cannot build 'bert': Validation error"):
        network.architecture(described("bert", hidden_size="wide"))


def test_half_precision_of_a_file_is_not_trained_in() -> None:
    backbone = network.architecture(described("bert", dtype="float16"))
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def test_a_decoder_without_a_text_to_write_is_refused(writer: Backbone) -> None:
    with pytest.raises(UserError, match="T5 gives tokens of the text that it writes"):
        writer(inputs("t5"))


def of_vectors(encoder: str) -> dict[str, Any]:
    small = {"maps": 4, "units": 4}
    found = wordvectors.describe(encoder, 60, 8)
    return found | {key: value for key, value in small.items() if key in found}


@pytest.mark.parametrize("encoder", ["mean", "cnn", "lstm"])
def test_vectors_of_words_have_layers_too(encoder: str) -> None:
    torch.manual_seed(1)
    backbone = stirred(network.architecture(of_vectors(encoder))).eval()
    given = inputs("words")
    check_layers(backbone)
    assert backbone.cuts == ((0, 1) if encoder == "mean" else (0, 1, 2))
    with torch.inference_mode():
        expected = backbone.model(given)
        assert expected.shape == (4, backbone.features)
        for cut in backbone.cuts:
            torch.testing.assert_close(backbone(backbone(given, 0, cut), cut), expected)
        tokens = network.architecture(of_vectors(encoder), gives="tokens")
        assert set(tokens(given)) == {"hidden", "attention_mask"}
    with pytest.raises(UserError, match=rf"'{encoder}' has no stochastic depth: leave the arm's `drop_path`"):
        network.architecture(of_vectors(encoder), 0.1)


def test_a_savedmodel_is_no_network() -> None:
    with pytest.raises(UserError, match=r"'use' is a SavedModel.*only arms with `tune: head`"):
        network.architecture({"library": "savedmodel", "name": "use"})


# ---------------------------------------------------------------------------------- what works with what

IMAGES = {
    "EfficientNet": "test_efficientnet",
    "MobileNetV3": "mobilenetv3_small_050",
    "RegNet": "regnetx_002",
    "ResNet": "test_resnet",
    "ConvNeXt": "test_convnext",
    "VisionTransformer": "test_vit",
    "another of timm's": "test_byobnet",
}
NAMES = {
    "ALBERT": "albert",
    "BERT": "bert",
    "DeBERTa-v2": "deberta-v2",
    "DeBERTa-v3": "deberta-v3",
    "DistilBERT": "distilbert",
    "ELECTRA": "electra",
    "GPT-2": "gpt2",
    "ModernBERT": "modernbert",
    "RoBERTa": "roberta",
    "T5, its encoder": "t5",
    "T5, writing": "t5",
    "XLM-RoBERTa": "xlm-roberta",
}
VECTORS = {
    "word vectors, mean": "mean",
    "word vectors, convolutions": "cnn",
    "word vectors, LSTM": "lstm",
}
RATES: dict[str, Any] = {"learning_rate": 0.02, "backbone_learning_rate": 0.01}


class MeanHead(nn.Module):
    """Classes of texts by the mean over tokens, where a backbone gives those."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 3)

    def forward(self, flow: dict[str, Tensor]) -> Tensor:
        mask = flow["attention_mask"].unsqueeze(-1).float()
        found: Tensor = self.linear((flow["hidden"] * mask).sum(dim=1) / mask.sum(dim=1))
        return found


@lru_cache
def about(row: str) -> dict[str, Any]:
    if row in VECTORS:
        return of_vectors(VECTORS[row])
    if row in IMAGES:
        sized = {"img_size": 32} if IMAGES[row] == "test_vit" else {}
        return {"library": "timm", "name": IMAGES[row], **sized}
    return described(NAMES[row])


def given_by(row: str) -> Gives:
    return "tokens" if row == "T5, writing" else "pooled"


@lru_cache
def first(row: str) -> Backbone:
    torch.manual_seed(4)
    return stirred(network.architecture(about(row), gives=given_by(row)))


def classifier(row: str) -> Network:
    backbone = copy.deepcopy(first(row))
    torch.manual_seed(5)
    if row == "T5, writing":
        return Network(backbone, MeanHead(backbone.features))
    return network.classifier(backbone, 3, 0.1)


def samples(row: str) -> Samples:
    if row in IMAGES:
        side = 64 if row == "another of timm's" else 32
        return FeatureSamples(torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(7)))
    return Texts(NAMES.get(row, "words"), decoder=row == "T5, writing")


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def train(
    row: str,
    model: Network,
    arm: Arm,
    *,
    fed: Fed | None = None,
    keeper: Checkpoints | None = None,
    stop: int | None = None,
) -> loop.Fitted:
    """Two epochs of two steps each; with gradual thawing the top layer joins in the second."""
    train_on = fed or Fed(batches(row, samples(row)), batches(row, samples(row)))
    stages = [Stage(1, lambda: freezing.parameter_groups(model, arm), lambda: train_on)]
    if arm.tune == "gradual":
        name = model.backbone.layers[-1].name
        stages.append(
            Stage(
                2,
                lambda: freezing.parameter_groups(model, arm, [freezing.thaw(model, name)]),
                lambda: train_on,
            )
        )
    labels = torch.arange(4) % 3
    recipe = Recipe(arm, Training(epochs=2, batch_size=2), Objective(arm, labels, 3), Machine(device="cpu"))

    def log(values: dict[str, float], step: int) -> None:
        if step == stop:
            raise InterruptedError

    device = network.prepare_device("cpu")  # deterministic, as every training is
    return loop.fit(model, stages, recipe, seed=1, log=log, device=device, keeper=keeper)


def batches(row: str, inputs: Samples) -> Batches:
    return Batches(inputs, torch.arange(4) % 3, 2)


def moved(model: Network, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def of_layers(model: Network, layers: Sequence[network.Layer]) -> set[str]:
    """Names of the tensors of these layers, statistics too."""
    inside = {
        id(one)
        for layer in layers
        for one in (*layer.parameters(), *(one for module in layer.modules for one in module.buffers()))
    }
    both = (*model.named_parameters(), *model.named_buffers())
    return {name for name, one in both if id(one) in inside} & set(model.state_dict())


def frozen_bottom(row: str, folder: Path) -> str:
    arm, model = Arm(freeze_bottom=1, **RATES), classifier(row)
    freezing.freeze(model, arm)
    before, proof = tensors(model), freezing.Proof(model)
    train(row, model, arm)
    assert proof.check(model)["unchanged"]
    changed = moved(model, before)
    assert not changed & of_layers(model, model.backbone.layers[:1])
    for layer in model.layers()[1:]:
        assert changed & of_layers(model, [layer]), layer.name
    return "yes"


def layer_decay(row: str, folder: Path) -> str:
    arm, model = Arm(layer_decay=0.5, **RATES), classifier(row)
    freezing.freeze(model, arm)
    rates = {group["name"]: group["lr"] for group in freezing.parameter_groups(model, arm)}
    assert list(rates) == ["head", *reversed([layer.name for layer in model.backbone.layers])]
    found = list(rates.values())[1:]
    assert found == [0.01 * 0.5**place for place in range(len(found))]
    before = tensors(model)
    train(row, model, arm)
    assert {name for name, one in model.named_parameters()} <= moved(model, before) | zero_gradient(row)
    return "yes"


def zero_gradient(row: str) -> set[str]:
    """A bias of keys moves all of a query's scores alike, and softmax does not care."""
    keys = [name for name, _ in classifier(row).named_parameters() if name.endswith("key.bias")]
    return set(keys)


def reinit_top(row: str, folder: Path) -> str:
    arm, model = Arm(reinit_top=1, **RATES), classifier(row)
    before = tensors(model)
    network.reinitialise(model.backbone, about(row), 1, seed=9)
    freezing.freeze(model, arm)
    # No tensor is as its initialiser leaves it before.
    assert moved(model, before) == {
        name for name in of_layers(model, model.backbone.layers[-1:]) if "num_batches" not in name
        and not name.endswith(("running_mean", "running_var"))
    }  # fmt: skip
    train(row, model, arm)
    return "yes"


def lora(row: str, folder: Path) -> str:
    arm, model = Arm(tune="lora", lora=Lora(rank=2), **RATES), classifier(row)
    plain = set(model.state_dict())
    freezing.freeze(model, arm)
    before, proof, inputs = tensors(model), freezing.Proof(model), samples(row).batch([0, 1, 2, 3])
    train(row, model, arm)
    proof.check(model)
    assert [name for name in moved(model, before) if "lora_B" in name]
    with torch.inference_mode():
        adapted = model.eval()(inputs)
        freezing.merge_lora(model)
        torch.testing.assert_close(model.eval()(inputs), adapted, atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == plain
    return "yes"


def gradual(row: str, folder: Path) -> str:
    arm, model = Arm(tune="gradual", soup="uniform", **RATES), classifier(row)
    freezing.freeze(model, arm)
    before, proof = tensors(model), freezing.Proof(model)
    train(row, model, arm)
    top = model.backbone.layers[-1:]
    proof.check(model, top)
    changed = moved(model, before)
    assert changed & of_layers(model, top)
    assert changed <= of_layers(model, [*top, model.layers()[-1]])
    return "yes"


def chosen(tune: Any) -> Callable[[str, Path], str]:
    def run(row: str, folder: Path) -> str:
        arm, model = Arm(tune=tune, **RATES), classifier(row)
        freezing.freeze(model, arm)
        before = tensors(model)
        trains = {name for name, one in model.named_parameters() if one.requires_grad}
        assert any(name.startswith("backbone") for name in trains)
        train(row, model, arm)
        statistics = {name for name in before if name.endswith(("_mean", "_var", "_tracked"))}
        assert moved(model, before) - statistics <= trains
        assert moved(model, before) >= trains - zero_gradient(row)
        return "yes"

    return run


def prefix_cache(row: str, folder: Path) -> str:
    """Features from what was stored are those computed whole."""
    model = classifier(row).eval()
    backbone, raw = model.backbone, samples(row)
    cache = PrefixCache(folder, 2**24)
    with torch.inference_mode():
        expected = model(raw.batch([0, 1, 2, 3]))
        for cut in {1, len(backbone.storable) // 2, backbone.storable[-1]} & {*backbone.storable}:
            kept = cached(cache, backbone, cut, raw)
            torch.testing.assert_close(model(kept.batch([0, 1, 2, 3]), cut), expected, atol=1e-5, rtol=1e-5)
    if len(backbone.storable) == 2:
        return "all layers"
    # A training on what was stored is the one on raw inputs.
    arm = Arm(freeze_bottom=1, **RATES)
    if not backbone.family.shared:
        ends = []
        for stored in (False, True):
            model = classifier(row)
            freezing.freeze(model, arm)
            cut = freezing.boundary(model)
            assert cut == 1
            on = cached(cache, model.backbone, cut, raw) if stored else raw
            train(row, model, arm, fed=Fed(batches(row, on), batches(row, on), cut if stored else 0))
            ends.append(tensors(model))
        for name, tensor in ends[0].items():
            torch.testing.assert_close(tensor, ends[1][name], atol=2e-3, rtol=1e-3, msg=name)
    return "yes" if len(backbone.storable) > len(backbone.layers) else "the encoder"


def cached(cache: PrefixCache, backbone: Backbone, cut: int, raw: Samples) -> PrefixSamples:
    return cache.samples(
        backbone, cut, raw, ["a", "b", "c", "d"], weights_sha256="w", transform={}, device=CPU
    )


def drop_path(row: str, folder: Path) -> str:
    backbone = network.architecture(about(row), 0.9, given_by(row))
    backbone.load_state_dict(first(row).state_dict())
    inputs = samples(row).batch([0, 1, 2, 3])
    backbone.eval()
    with torch.inference_mode():
        assert same(backbone(inputs), copy.deepcopy(first(row)).eval()(inputs))
    model = classifier(row)
    model.backbone = backbone
    arm = Arm(drop_path=0.9, **RATES)
    freezing.freeze(model, arm)
    train(row, model, arm)
    return "yes"


class AfterEachStep(Checkpoints):
    """Checkpoints that never wait."""

    def due(self) -> bool:
        return True


def resume(row: str, folder: Path) -> str:
    """Broken off in the third of four steps, with dropout, and taken up again by another process' objects."""
    arm, key = Arm(**RATES), {"row": row}
    unbroken = classifier(row)
    freezing.freeze(unbroken, arm)
    train(row, unbroken, arm)
    broken = classifier(row)
    freezing.freeze(broken, arm)
    with pytest.raises(InterruptedError):
        train(row, broken, arm, keeper=AfterEachStep(folder, key, 0, print), stop=3)
    resumed = classifier(row)
    freezing.freeze(resumed, arm)
    fitted = train(row, resumed, arm, keeper=Checkpoints(folder, key, 3600, print))
    assert fitted.resumed_from == 2
    assert network.state_sha256(resumed.state_dict()) == network.state_sha256(unbroken.state_dict())
    return "yes"


CHOICES: dict[str, Callable[[str, Path], str]] = {
    "freeze_bottom": frozen_bottom,
    "layer_decay": layer_decay,
    "reinit_top": reinit_top,
    "lora": lora,
    "gradual": gradual,
    "biases": chosen("biases"),
    "norms": chosen("norms"),
    "prefix cache": prefix_cache,
    "drop_path": drop_path,
    "resume": resume,
}
DOCUMENT = Path(__file__).parents[1] / "docs/families.md"
BEGIN, END = "<!-- what works: begin -->\n", "<!-- what works: end -->\n"


def documented() -> list[str]:
    text = DOCUMENT.read_text("utf-8")
    return text.split(BEGIN)[1].split(END)[0].strip().splitlines()


def told(row: str, folder: Path) -> Iterator[str]:
    """What the document says of a family: its line of the table, and why something is refused."""
    cells, reasons = [], []
    for choice, run in CHOICES.items():
        try:
            cells.append(run(row, folder / choice))
        except UserError as error:
            cells.append("no")
            reason = str(error).replace(first(row).name, row)
            reasons.append(f"* {row}, {choice}: {reason}")
    yield f"| {row} | {' | '.join(cells)} |"
    yield from reasons


@pytest.mark.parametrize("row", [*NAMES, *VECTORS, *IMAGES])
def test_the_document_says_what_works(row: str, tmp_path: Path) -> None:
    found, lines = list(told(row, tmp_path)), documented()
    assert found == [line for line in lines if line.startswith((f"| {row} |", f"* {row}, "))], "\n".join(
        found
    )


def test_the_document_is_of_all_families_and_choices() -> None:
    lines = documented()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == f"| family | {' | '.join(CHOICES)} |"
    assert [line.split(" | ")[0].removeprefix("| ") for line in table[2:]] == [*NAMES, *VECTORS, *IMAGES]
