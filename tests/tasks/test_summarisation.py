from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from transformers import T5Config, T5ForConditionalGeneration

from steps import loop, network, raw, tasks
from steps.arms import Arm
from steps.errors import UserError
from steps.layouts import PackageData, TableData
from steps.params import Model
from steps.tasks.summarisation import IGNORED, TeacherForcing, _first_sentence
from tests.tasks import clone

T5: dict[str, Any] = {
    "vocab_size": 60, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2,
    "pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0, "dropout_rate": 0.0,
}  # fmt: skip
NEW = {
    "source": "new", "library": "transformers", "architecture": "t5", "tokenizer": "toy-text",
    "config": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}  # fmt: skip
TASK = tasks.get("summarisation")


def of_texts(samples: Any, index: int) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = samples.batch([index])
    return found


def reports() -> list[raw.RawSample]:
    data = PackageData(source="package", dataset="weather-reports", path="requirements.lock")
    return list(raw.read(data, "summarisation", Path("nowhere")).samples)


def test_the_reports_are_the_same_every_time_and_none_comes_twice() -> None:
    found = reports()
    assert found == reports()
    assert len({one.content for one in found}) == len(found) == 900
    assert {one.label for one in found} == {"rain", "sun", "snow", "fog"}
    # What is to be written cannot be copied from the text.
    assert sum(str(one.label) in str(one.content) for one in found) < 450


def test_a_table_gives_texts_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("body,short\na long text,short\nanother,\n", "utf-8")
    data = TableData(source="table", path=str(tmp_path / "t.csv"), text="body", target="short")
    found = list(raw.read(data, "summarisation", tmp_path / "u").samples)
    assert [(one.content, one.target) for one in found] == [("a long text", "short"), ("another", None)]


def test_the_loss_is_transformers_own() -> None:
    torch.manual_seed(0)
    reference: Any = T5ForConditionalGeneration(T5Config(**T5))
    reference.eval()
    backbone = network.architecture(
        {"library": "transformers", "name": "t5", "config": T5}, gives="tokens"
    ).eval()
    backbone.model.load_state_dict(
        {name: one for name, one in reference.state_dict().items() if name in backbone.model.state_dict()}
    )
    head = TASK.head(backbone, [], Model(pretrained="toy"), Arm(start="random", learning_rate=0.1))
    model = network.Network(backbone, head).eval()
    labels = torch.tensor([[5, 6, 3], [7, 3, IGNORED], [8, 9, 3]])
    inputs = {
        "input_ids": torch.randint(4, 60, (3, 7)),
        "attention_mask": torch.ones(3, 7, dtype=torch.int64),
    }
    expected = reference(**inputs, labels=labels).loss
    criterion = TeacherForcing(0, 0)

    def share(rows: slice) -> torch.Tensor:
        part = {name: one[rows] for name, one in inputs.items()}
        targets = {"labels": labels[rows]}
        return criterion.share(model(criterion.forced(part, targets)), targets, {"labels": labels})

    torch.testing.assert_close(share(slice(None)), expected)
    # In parts it is the same.
    torch.testing.assert_close(share(slice(0, 1)) + share(slice(1, 3)), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written_is_what_transformers_writes(beams: int, tmp_path: Path) -> None:
    from tests import twin

    twin.text_package(tmp_path)
    torch.manual_seed(1)
    reference: Any = T5ForConditionalGeneration(T5Config(**T5))
    reference.eval()
    backbone = network.architecture({"library": "transformers", "name": "t5", "config": T5}, gives="tokens")
    backbone.model.load_state_dict(
        {name: one for name, one in reference.state_dict().items() if name in backbone.model.state_dict()}
    )
    settings = Model(pretrained="toy", max_target_tokens=6, num_beams=beams)
    head = TASK.head(backbone, [], settings, Arm(start="random", learning_rate=0.1))
    folder = tmp_path / "toy_text/model"
    samples = TASK.samples(["rose tulip soil", "the ship of a harbour crane", "oven"], settings, folder)
    ask = tasks.Ask([], settings, torch.device("cpu"), pretrained=folder)
    said = TASK.predict(network.Network(backbone, head), samples, ask)
    tokenizer = tasks.summarisation.tokenizer_of(folder)  # type: ignore[attr-defined]
    for index, one in enumerate(said):
        alone = reference.generate(
            **of_texts(samples, index), max_new_tokens=6, num_beams=beams, do_sample=False,
            eos_token_id=tokenizer.sep_token_id,
        )  # fmt: skip
        assert one["summary"] == " ".join(str(tokenizer.decode(alone[0], skip_special_tokens=True)).split())


def test_scores_are_those_of_rouge_score_also_of_nothing_and_of_signs() -> None:
    truths = ["the cat sat on the mat", "Ünïcode wörds!", "one two", "same words here"]
    said = [{"summary": one} for one in ("the cat on a mat", "ünïcode", "", "same words here")]
    found = TASK.scores(truths, said, [])
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name, key in {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}.items():
        expected = [scorer.score(a, b["summary"])[key].fmeasure for a, b in zip(truths, said, strict=True)]
        assert found[name].tolist() == expected
    assert found["rouge_l"][2] == 0
    assert found["rouge_l"][3] == 1


def test_baselines_are_the_beginnings_of_the_texts() -> None:
    rows = pd.DataFrame(
        {
            "split": ["train", "test"],
            "text": ["x", "First is here. Second follows."],
            "target": ['"three words now"', '"y"'],
        }
    )
    found = TASK.baselines(rows, [], Path())
    assert found["first_sentence"].said == [{"summary": "First is here."}]
    assert found["first_words"].said == [{"summary": "First is here."}]
    assert _first_sentence("no end of it") == "no end of it"


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gpt2", {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2}, "has no decoder"),
        (
            "bert",
            {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 16},
            "has no decoder",
        ),
    ],
)  # fmt: skip
def test_a_backbone_without_decoder_is_refused(name: str, config: dict[str, Any], message: str) -> None:
    backbone = network.architecture(
        {"library": "transformers", "name": name, "config": config}, gives="tokens"
    )
    with pytest.raises(UserError, match=message):
        TASK.head(backbone, [], Model(pretrained="toy"), Arm(start="random"))


def test_a_head_that_is_the_embeddings_cannot_be_trained_alone() -> None:
    backbone = network.architecture({"library": "transformers", "name": "t5", "config": T5}, gives="tokens")
    with pytest.raises(UserError, match="leaves nothing to train"):
        TASK.head(backbone, [], Model(pretrained="toy"), Arm(tune="head"))


def test_a_case_shows_both_texts() -> None:
    row = SimpleNamespace(text="read " * 500, target='"short"')
    found = TASK.case(row, {"summary": ""}, Path())
    assert (found.truth, found.predicted) == ("short", "(nothing)")
    assert len(found.marks[0][0]) == 600


@pytest.mark.flow
def test_from_a_table_to_a_registered_model_that_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").mkdir()
    with (tmp_path / "raw/t.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["body", "short"])
        for number in range(40):
            topic = ["rose tulip", "ship crane", "oven flour"][number % 3]
            writer.writerow([f"the {topic} of {'many ' * (number // 3)}old", topic])
    monkeypatch.setattr(loop, "WORTH_KEEPING", 1e9)
    experiment = {
        "task": "summarisation",
        "data": {"source": "table", "path": "raw/t.csv", "text": "body", "target": "short"},
        "model": {"pretrained": "toy-writer", "max_tokens": 24, "max_target_tokens": 6},
        "training": {"epochs": 3, "batch_size": 8, "seeds": [1, 2]},
        "arms": {"frozen": None, "full": None},
    }
    clone.lay_out(tmp_path, experiment, {"toy-writer": NEW})
    found = clone.run()
    assert found["metric"]["name"] == "rouge_l"
    assert {one["name"] for one in found["baselines"]} == {"first_sentence", "first_words"}
    assert [one["arm"] for one in found["arms"]] == ["scratch"]
    (said,) = clone.predicted([{"text": "the rose tulip of old"}])
    assert set(said) == {"summary"}
