from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file, save

from steps import artifacts, network
from steps.artifacts import sha256_file, sha256_json
from steps.errors import WeightsError
from steps.fetch import fetch
from steps.references import HfWeights
from steps.sources import huggingface
from tests import standin
from tests.standin import TOKEN, Hub

NAME = "toy/bert-tiny"
SLUG = "toy"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with standin.running(tmp_path / "home", monkeypatch) as running:
        yield running


def ask(server: Hub, files: dict[str, bytes], **changes: Any) -> Path:
    """Put a repository on the hub, pin it, and fetch it."""
    commit = server.add(NAME, files) if NAME not in server.repos else server.repos[NAME].newest
    pinned = hashlib.sha256(files.get("model.safetensors", b"")).hexdigest()
    given: dict[str, Any] = {"revision": commit, "sha256": pinned, "licence": "apache-2.0"} | changes
    reference = HfWeights(source="hf", model=NAME, **given)
    artifacts.write_json(artifacts.pretrained_settings_file(SLUG), reference.model_dump(mode="json"))
    fetch(SLUG)
    return artifacts.pretrained_dir(SLUG)


def test_a_bert_comes_from_under_its_tops_with_its_tokenizer(
    server: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer, BertTokenizer

    folder = ask(server, standin.bert_files())
    plain = load(standin.bert_files(tops=False)["model.safetensors"])
    built = network.build_backbone(folder, pretrained=True)
    assert network.state_sha256(dict(built.model.state_dict())) == network.state_sha256(plain)
    said = capsys.readouterr().out
    assert f"{len(plain)} tensors checked" in said
    assert f"apache-2.0, from {NAME} {server.repos[NAME].newest[:12]}" in said
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["source"] == "hf"
    assert provenance["model"] == NAME
    assert provenance["revision"] == server.repos[NAME].newest
    assert provenance["sha256"] == hashlib.sha256(standin.bert_files()["model.safetensors"]).hexdigest()
    assert provenance["converted_sha256"] == sha256_file(folder / "model.safetensors")
    assert provenance["left_out"] == ["cls", "pooler"]
    # The source names no tokenizer's class; what was written needs no config.json to tell it.
    (folder.parent / "vocab.txt").write_bytes(standin.bert_files()["vocab.txt"])
    expected = BertTokenizer(vocab=str(folder.parent / "vocab.txt"), do_lower_case=True)
    ours = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    text = "The Rose near a crane, unheard of"
    assert ours(text)["input_ids"] == expected(text)["input_ids"]
    assert ours.unk_token_id in ours(text)["input_ids"]


def test_after_one_fetch_everything_works_without_the_hub(server: Hub, tmp_path: Path) -> None:
    files = standin.bert_files()
    first = {path.name: sha256_file(path) for path in ask(server, files).iterdir()}
    requests = len(server.seen)
    server.stop()
    again = ask(server, files)
    assert {path.name: sha256_file(path) for path in again.iterdir()} == first
    assert len(server.seen) == requests


def test_weights_in_several_files(server: Hub) -> None:
    files = dict(standin.bert_files(tops=False))
    tensors = load(files.pop("model.safetensors"))
    half = len(tensors) // 2
    parts = {
        "model-00001-of-00002.safetensors": dict(list(tensors.items())[:half]),
        "model-00002-of-00002.safetensors": dict(list(tensors.items())[half:]),
    }
    places = {name: part for part, inside in parts.items() for name in inside}
    files |= {part: save(inside) for part, inside in parts.items()}
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    pin = sha256_json({part: hashlib.sha256(files[part]).hexdigest() for part in parts})
    folder = ask(server, files, sha256=pin)
    fetched = load_file(folder / "model.safetensors")
    assert network.state_sha256(dict(fetched)) == network.state_sha256(tensors)
    told = huggingface.newest(HfWeights(source="hf", model=NAME))
    assert told.fields == {"revision": server.repos[NAME].newest, "sha256": pin, "licence": "apache-2.0"}
    assert told.size == sum(len(files[part]) for part in parts)
    with pytest.raises(WeightsError, match=r"params\.yaml pins 1111"):
        ask(server, files, sha256="1" * 64)


def test_half_precision_is_kept_as_float32(server: Hub) -> None:
    files = dict(standin.bert_files(tops=False))
    tensors = load(files["model.safetensors"])
    files["model.safetensors"] = save({name: one.half() for name, one in tensors.items()})
    fetched = load_file(ask(server, files) / "model.safetensors")
    assert {one.dtype for one in fetched.values()} == {torch.float32}
    assert all(torch.equal(fetched[name], one.half().float()) for name, one in tensors.items())


def test_a_missing_tensor_is_named(server: Hub) -> None:
    files = dict(standin.bert_files())
    tensors = load(files["model.safetensors"])
    del tensors["bert.encoder.layer.1.output.LayerNorm.gamma"]
    files["model.safetensors"] = save(tensors)
    with pytest.raises(WeightsError, match=r"'encoder\.layer\.1\.output\.LayerNorm\.weight' is missing"):
        ask(server, files)


def test_a_tensor_of_another_shape_is_named(server: Hub) -> None:
    files = dict(standin.bert_files())
    tensors = load(files["model.safetensors"])
    tensors["bert.encoder.layer.0.output.dense.bias"] = torch.zeros(7)
    files["model.safetensors"] = save(tensors)
    with pytest.raises(WeightsError, match=r"dense\.bias' has shape \(7,\), the architecture needs \(32,\)"):
        ask(server, files)


def test_weights_of_a_deeper_network_are_refused(server: Hub) -> None:
    files = dict(standin.bert_files())
    tensors = load(files["model.safetensors"])
    deeper = {
        name.replace("layer.1.", "layer.2."): one.clone()
        for name, one in tensors.items()
        if "layer.1." in name
    }
    files["model.safetensors"] = save(tensors | deeper)
    with pytest.raises(WeightsError, match=r"no tensor 'bert\.encoder\.layer\.2\..* \(16 left over\)"):
        ask(server, files)


def test_pickles_are_refused_and_not_even_downloaded(server: Hub) -> None:
    files = dict(standin.bert_files())
    files["pytorch_model.bin"] = files.pop("model.safetensors")
    with pytest.raises(WeightsError, match=r"as a pickle alone \(pytorch_model\.bin\).*`source: file`"):
        ask(server, files)
    assert not server.asked("GET .*bin|/store/")
    with pytest.raises(WeightsError, match="as a pickle alone"):
        huggingface.newest(HfWeights(source="hf", model=NAME))


def test_no_weights_at_all(server: Hub) -> None:
    files = {name: one for name, one in standin.bert_files().items() if "safetensors" not in name}
    with pytest.raises(WeightsError, match="has no weights as safetensors"):
        ask(server, files)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_of_the_repository_is_never_run(server: Hub, file: str, tmp_path: Path) -> None:
    files = dict(standin.bert_files())
    told = json.loads(files[file]) | {
        "auto_map": {"AutoModel": "own.Model", "AutoTokenizer": ["own.T", None]}
    }
    files |= {
        file: json.dumps(told).encode(),
        "own.py": f"open({str(tmp_path / 'trace')!r}, 'w')".encode(),
    }
    with pytest.raises(WeightsError, match=r"wants to run code from the repository \(`auto_map`\)"):
        ask(server, files)
    assert not (tmp_path / "trace").exists()
    assert not server.asked(r"own\.py|/store/")


def test_an_unknown_kind_of_network_is_refused_before_the_download(server: Hub) -> None:
    files = dict(standin.bert_files())
    files["config.json"] = json.dumps(json.loads(files["config.json"]) | {"model_type": "strange"}).encode()
    with pytest.raises(WeightsError, match="'strange'"):
        ask(server, files)
    assert not server.asked("/store/")


def test_a_repository_of_timms_layout_is_told(server: Hub) -> None:
    with pytest.raises(WeightsError, match=r"names no `model_type`.*say `library: timm`"):
        ask(server, standin.timm_files())


def test_a_tokenizer_with_more_words_than_the_model(server: Hub) -> None:
    files = dict(standin.bert_files())
    files["vocab.txt"] += b"one\ntwo\nthree\n"
    with pytest.raises(WeightsError, match=r"the tokenizer has \d+ words, the model embeds \d+"):
        ask(server, files)


def test_no_tokenizer(server: Hub) -> None:
    kept = ("config.json", "model.safetensors")
    with pytest.raises(WeightsError, match="there is no tokenizer beside the weights"):
        ask(server, {name: standin.bert_files()[name] for name in kept})


def test_a_broken_tokenizer(server: Hub) -> None:
    files = standin.bert_files() | {"tokenizer.json": b"{}"}
    with pytest.raises(WeightsError, match="the tokenizer cannot be read") as caught:
        ask(server, files)
    assert "\n" not in str(caught.value)


def test_what_is_not_pinned_is_refused_before_anything_is_asked(server: Hub) -> None:
    with pytest.raises(WeightsError, match=r"pretrained\.toy: revision and sha256 are not pinned; run"):
        ask(server, standin.bert_files(), revision=None, sha256=None)
    assert not server.seen


def test_other_bytes_than_those_pinned_keep_what_was_there(server: Hub) -> None:
    folder = ask(server, standin.bert_files())
    before = {path.name: sha256_file(path) for path in folder.iterdir()}
    with pytest.raises(WeightsError, match=r"params\.yaml pins 2222.*`headstart pin` tells what the hub has"):
        ask(server, standin.bert_files(), sha256="2" * 64)
    assert {path.name: sha256_file(path) for path in folder.iterdir()} == before
    assert not list(Path(".headstart/scratch").iterdir())


def test_no_token_is_left_anywhere(
    server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    server.add(NAME, standin.bert_files())
    server.repos[NAME].gated = True
    with pytest.raises(WeightsError) as caught:
        ask(server, standin.bert_files())
    server.members.add(TOKEN)
    server.fail("GET /store/", times=1, status=500)
    ask(server, standin.bert_files())
    said = capfd.readouterr()
    secret = TOKEN.removeprefix("hf_")
    assert secret not in said.out + said.err + str(caught.value)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret in str([one.headers for one in server.seen])


@pytest.mark.slow
def test_the_environment_alone_leads_another_process_to_hub_and_cache(server: Hub, tmp_path: Path) -> None:
    commit = server.add(NAME, standin.bert_files())
    pinned = hashlib.sha256(standin.bert_files()["model.safetensors"]).hexdigest()
    reference = HfWeights(source="hf", model=NAME, revision=commit, sha256=pinned)
    artifacts.write_json(artifacts.pretrained_settings_file(SLUG), reference.model_dump(mode="json"))
    given = {**os.environ, **standin.environment(server, tmp_path / "other"), "PYTHONPATH": str(ROOT)}
    said = []
    for offline in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-m", "steps.fetch", SLUG],
            env=given | {"HF_HUB_OFFLINE": offline},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
        if offline == "0":
            server.stop()
    assert said[0] == said[1]
    assert TOKEN not in "".join(said)
