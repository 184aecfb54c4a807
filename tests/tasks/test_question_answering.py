from __future__ import annotations

import collections
import json
import re
import string
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional
from transformers import PreTrainedTokenizerFast

from steps import network, raw, tasks
from steps.arms import Arm
from steps.data import Batches
from steps.errors import DataError, UserError
from steps.ingest import ingest
from steps.layouts import PackageData
from steps.params import Model, Validation
from steps.tasks import answer_metrics
from steps.tasks.answer_network import SpanLoss, best_span, masked
from steps.tasks.answer_samples import AnswerTargets, QuestionSamples, slid, tokens_of
from steps.tasks.question_answering import marked
from steps.validate import validate
from tests.rawdata import settle_ingest, settle_validate
from tests.tasks import clone

TASK = tasks.get("question-answering")
WORDS = ["where", "is", "ada", "bo", "in", "lon", "##don", "paris", ".", "a", "b", "c", "d", "e", "f", "g"]
CONFIG = {
    "model_type": "bert", "vocab_size": 5 + len(WORDS), "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 32, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
BOTH = ["answerable", "unanswerable"]
# Its constructor has no types.
Saved: Any = PreTrainedTokenizerFast


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """A folder as fetch leaves it: a tokenizer of word pieces, as BERT's, that tells two texts apart."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: at for at, word in enumerate([*specials, *WORDS])}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True)
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    Saved(tokenizer_object=fast, model_input_names=inputs, **names).save_pretrained(tmp_path)
    describe(tmp_path, CONFIG)
    return tmp_path


def describe(folder: Path, config: dict[str, Any]) -> None:
    description = {"library": "transformers", "name": "bert", "config": config}
    (folder / "architecture.json").write_text(json.dumps(description))


def plain(folder: Path, after: int | None) -> Path:
    """A tokenizer of signs that puts nothing around texts, or as T5's one id behind them."""
    vocabulary = {sign: at for at, sign in enumerate(["</s>", *pre_tokenizers.ByteLevel.alphabet()])}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if after is not None:
        fast.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", after)])
    Saved(tokenizer_object=fast).save_pretrained(folder)
    describe(folder, {"model_type": "gpt2"})
    return folder


def frame(*rows: tuple[str, str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [f"s{at}" for at in range(len(rows))],
            "text": [question for question, _, _ in rows],
            "pair": [context for _, context, _ in rows],
            "label": ["answerable"] * len(rows),
            "target": [
                None if answers is None else json.dumps({"answers": answers}) for _, _, answers in rows
            ],
        }
    )


def settled(**more: Any) -> Model:
    return Model(pretrained="x", **{"max_tokens": 12, "stride": 2, "dropout": 0.0, **more})


# ---------------------------------------------------------------------------------------------- metrics


def official_normal(text: str) -> str:
    """As `evaluate-v2.0.py` has it."""

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return white_space_fix(re.sub(re.compile(r"\b(a|an|the)\b", re.UNICODE), " ", remove_punc(text.lower())))


def official_f1(a_gold: str, a_pred: str) -> float:
    """As `evaluate-v2.0.py` has it."""
    gold_toks, pred_toks = official_normal(a_gold).split(), official_normal(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def official(answers: list[str], said: str) -> tuple[float, float]:
    gold = [one for one in answers if official_normal(one)] or [""]
    exact = max(int(official_normal(one) == official_normal(said)) for one in gold)
    return max(official_f1(one, said) for one in gold), exact


PARTS = st.sampled_from(
    [
        "the",
        "The",
        "a",
        "an",
        "cat",
        "Cat",
        "cats",
        "-",
        "!",
        "\u201c",
        "\u00c9tat",
        "\u00a0",
        "3.5",
        "$",
        "Athens",
        "a.b",
    ]
)
ANSWERS = st.lists(PARTS, max_size=5).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.lists(ANSWERS, max_size=3), ANSWERS), min_size=1, max_size=4))
def test_metrics_are_those_of_the_official_script(asked: list[tuple[list[str], str]]) -> None:
    found = answer_metrics.scores([answers for answers, _ in asked], [said for _, said in asked])
    expected = [official(answers, said) for answers, said in asked]
    assert found["squad_f1"].tolist() == [f1 for f1, _ in expected]
    assert found["exact_match"].tolist() == [exact for _, exact in expected]


@pytest.mark.parametrize(
    ("answers", "said", "f1", "exact"),
    [
        (["the cat"], "Cat!", 1.0, 1.0),
        (["a black cat"], "the cat", 2 / 3, 0.0),
        (["Denver Broncos", "Broncos"], "the Broncos", 1.0, 1.0),
        ([], "", 1.0, 1.0),
        ([], "cat", 0.0, 0.0),
        (["cat"], "", 0.0, 0.0),
        (["cat cat dog"], "cat dog dog", 2 / 3, 0.0),
        (["\u00c9tat"], "\u00e9tat", 1.0, 1.0),
        (["Athens"], "Athen", 0.0, 0.0),
        (["\u201ccat\u201d"], "cat", 0.0, 0.0),
        (["."], "", 1.0, 1.0),
    ],
)
def test_metrics_by_hand(answers: list[str], said: str, f1: float, exact: float) -> None:
    found = TASK.scores([answers], [{"answer": said}], BOTH)
    assert found["squad_f1"][0] == pytest.approx(f1)
    assert found["exact_match"][0] == exact


# ---------------------------------------------------------------------------------------------- tokens


def test_a_question_and_its_paragraph_as_tokens(pretrained: Path) -> None:
    samples = QuestionSamples([("Where is Ada", "Ada is in London.")], pretrained, settled())
    batch = samples.batch([0])
    assert batch["input_ids"].tolist() == [[2, 5, 6, 7, 3, 7, 6, 9, 10, 11, 13, 3]]
    assert batch["token_type_ids"].tolist() == [[0] * 5 + [1] * 7]
    assert samples.places[5:11].tolist() == [[0, 3], [4, 6], [7, 9], [10, 13], [13, 16], [16, 17]]
    assert samples.nothing.tolist() == [0]
    targets = AnswerTargets([[[10, "London"]]], samples).batch([0])
    assert targets["span"].tolist() == [[8, 9]]
    assert targets["valid"].tolist() == [[1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 0]]


@given(st.integers(0, 60), st.integers(1, 20), st.data())
def test_windows_cover_all_and_share_what_is_told(tokens: int, room: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(0, room - 1))
    windows = [*slid(tokens, room, stride)]
    assert windows[0][0] == 0
    assert windows[-1][1] == tokens
    assert all(end - start == room for start, end in windows[:-1])
    assert all(before[1] - after[0] == stride for before, after in pairwise(windows))
    assert windows[-1][1] - windows[-1][0] <= room


def test_a_long_paragraph_has_windows_and_an_answer_is_in_those_that_hold_it(pretrained: Path) -> None:
    context = "a b c d e f g a b c d e"
    samples = QuestionSamples([("where", context), ("is", "a")], pretrained, settled(max_tokens=10))
    assert samples.windowed
    # A question of one token leaves six for a window.
    assert samples.counts.tolist() == [3, 1]
    assert samples.batch([0])["input_ids"].tolist() == [
        [2, 5, 3, 14, 15, 16, 17, 18, 19, 3],
        [2, 5, 3, 18, 19, 20, 14, 15, 16, 3],
        [2, 5, 3, 15, 16, 17, 18, 3, 0, 0],
    ]
    targets = AnswerTargets([[[8, "e f"]], []], samples)
    assert targets.batch([0, 1])["span"].tolist() == [[7, 8], [3, 4], [0, 0], [0, 0]]
    # Only a part of it is no answer.
    assert AnswerTargets([[[6, "d e f g"]], []], samples).spans[:3].tolist() == [[0, 0]] * 3
    # The first answer that a window holds.
    several = AnswerTargets([[[16, "b c"], [0, "a"], [2, "b"]], []], samples)
    assert several.spans[:3].tolist() == [[3, 3], [7, 8], [3, 4]]


@pytest.mark.parametrize(("after", "nothing"), [(None, 1), (0, 6)])
def test_no_answer_has_a_place_whatever_stands_around(
    tmp_path: Path, after: int | None, nothing: int
) -> None:
    samples = QuestionSamples([("ab", "cde")], plain(tmp_path, after), settled())
    assert samples.nothing.tolist() == [nothing]
    assert "token_type_ids" not in samples.batch([0])
    assert not samples.may_answer(0)[nothing]


def test_a_network_of_one_kind_of_text_is_not_told_of_two(pretrained: Path) -> None:
    describe(pretrained, {**CONFIG, "type_vocab_size": 1})
    assert "token_type_ids" not in QuestionSamples([("is", "a")], pretrained, settled()).batch([0])
    describe(pretrained, {"model_type": "distilbert"})
    assert "token_type_ids" not in QuestionSamples([("is", "a")], pretrained, settled()).batch([0])


def test_long_questions_are_cut_and_settings_that_do_not_fit_are_told(pretrained: Path) -> None:
    samples = QuestionSamples([("where " * 30, "a b c d e f g")], pretrained, settled(max_tokens=13))
    assert set(samples.batch([0])["input_ids"][:, 6].tolist()) == {3}
    assert samples.rows.lengths.max() == 13
    with pytest.raises(
        UserError, match=r"`model.stride: 5` must be less than half of `model.max_tokens: 13`, here 5"
    ):
        QuestionSamples([("is", "a")], pretrained, settled(max_tokens=13, stride=5))
    with pytest.raises(DataError, match="one of two texts is empty"):
        QuestionSamples([("is", " ")], pretrained, settled())


def test_tokens_of_characters() -> None:
    places = np.array([[-1, -1], [0, 3], [4, 4], [4, 7], [7, 9], [-1, -1]])
    assert tokens_of(places, 4, 9) == (3, 4)
    assert tokens_of(places, 5, 6) == (3, 3)
    assert tokens_of(places, 7, 12) is None
    assert tokens_of(places, 20, 22) is None


# ---------------------------------------------------------------------------------------------- network


def test_shares_add_up_to_the_mean_over_windows() -> None:
    torch.manual_seed(0)
    outputs = torch.randn(5, 4, 2, requires_grad=True)
    targets = {"span": torch.tensor([[0, 0], [1, 2], [2, 2], [0, 3], [3, 3]]), "valid": torch.ones(5, 4)}
    targets["valid"][1, 3] = targets["valid"][0, 1:] = 0
    loss = SpanLoss()
    pairs = [
        functional.cross_entropy(outputs[row : row + 1, targets["valid"][row] > 0, side], wanted[None])
        for row in range(5)
        for side, wanted in enumerate(targets["span"][row])
    ]
    expected = torch.stack(pairs).mean()
    parts = [
        loss.share(outputs[at : at + 2], {name: one[at : at + 2] for name, one in targets.items()}, targets)
        for at in (0, 2, 4)
    ]
    assert torch.stack(parts).sum().item() == pytest.approx(expected.item(), rel=1e-5)
    torch.stack(parts).sum().backward()  # type: ignore[no-untyped-call]
    assert outputs.grad is not None
    assert outputs.grad.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 99))
def test_the_best_span_is_the_best_of_all(tokens: int, longest: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logs = torch.randn(2, tokens, generator=generator)
    choice = torch.rand(tokens, generator=generator) < 0.7
    choice[seed % tokens] = True
    spans = [
        (first, last)
        for first in range(tokens)
        for last in range(first, min(tokens, first + longest))
        if choice[first] and choice[last]
    ]
    expected = max(spans, key=lambda span: float(logs[0, span[0]] + logs[1, span[1]]))
    assert best_span(logs, choice, longest) == expected


def test_what_is_not_valid_is_out_of_reach() -> None:
    scores = masked(torch.zeros(1, 3, 2), torch.tensor([[1, 0, 1]]))
    assert scores.shape == (1, 2, 3)
    assert scores.softmax(dim=2)[0, 0].tolist() == [0.5, 0, 0.5]


class Told(torch.nn.Module):
    """A network that says what it is told: scores of start and end by token id."""

    def __init__(self, start: dict[int, float], end: dict[int, float]) -> None:
        super().__init__()
        self.start, self.end = start, end

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        ids = inputs["input_ids"]
        rows = [[[side.get(int(one), 0.0) for side in (self.start, self.end)] for one in row] for row in ids]
        return torch.tensor(rows)


def said_by(network: torch.nn.Module, samples: QuestionSamples, classes: list[str], **more: Any) -> list[Any]:
    ask = tasks.Ask(classes, settled(**more), torch.device("cpu"))
    said = TASK.predict(network, samples, ask)
    assert isinstance(said, list)
    return said


def test_the_best_window_answers_unless_nothing_is_better_in_all(pretrained: Path) -> None:
    context = "a b c d e f g a b c"
    samples = QuestionSamples([("where", context), ("is", "a")], pretrained, settled(max_tokens=10))
    # `g` is in the second window alone; [CLS] scores in all.
    told = Told({20: 5.0, 2: 2.0}, {20: 5.0, 2: 2.0})
    found = said_by(told, samples, BOTH)
    assert (found[0]["answer"], found[0]["start"], found[0]["end"]) == ("g", 12, 13)
    assert 0.8 < found[0]["score"] < 1
    assert (found[1]["answer"], found[1]["start"], found[1]["end"]) == ("", -1, -1)
    assert json.loads(json.dumps(found)) == found
    # Where every question has an answer, there is one.
    assert said_by(told, samples, ["answerable"])[1]["answer"] == "a"
    sure = Told({20: 5.0, 2: 9.0}, {20: 5.0, 2: 9.0})
    assert said_by(sure, samples, BOTH)[0]["answer"] == ""
    longest = Told({18: 9.0, 20: 1.0}, {20: 9.0})
    assert said_by(longest, samples, BOTH)[0]["answer"] == "e f g"
    assert said_by(longest, samples, BOTH, max_answer_tokens=2)[0]["answer"] != "e f g"


def test_it_learns_and_says_what_it_learnt(pretrained: Path) -> None:
    torch.manual_seed(0)
    rows = frame(
        ("where is ada", "ada is in paris .", [[10, "paris"]]),
        ("where is bo", "a . b . bo is in london", [[17, "london"]]),
        ("where is bo", "a b c d e f g", []),
    )
    model, arm = settled(max_tokens=20), Arm(learning_rate=0.01)
    samples = TASK.samples(tasks.contents(TASK, rows, Path()), model, pretrained)
    classes = TASK.classes(rows)
    assert classes == BOTH
    targets = TASK.targets(rows, classes, samples, Path(), model)
    backbone = network.architecture(
        json.loads((pretrained / "architecture.json").read_text()), gives="tokens"
    )
    made = network.Network(backbone, TASK.head(backbone, classes, model, arm))
    criterion = TASK.objective(arm, targets, classes)
    optimizer = torch.optim.AdamW(made.parameters(), lr=0.01)
    inputs, wanted = Batches(samples, targets, 4).batch([0, 1, 2])
    losses = []
    for _ in range(60):
        loss = criterion.share(made(inputs), wanted, wanted)
        optimizer.zero_grad(), loss.backward(), optimizer.step()  # type: ignore[no-untyped-call]
        losses.append(loss.item())
    assert losses[-1] < 0.2 < losses[0]
    said = TASK.predict(made, samples, tasks.Ask(classes, model, torch.device("cpu")))
    assert isinstance(said, list)
    assert [one["answer"] for one in said] == ["paris", "london", ""]
    scores = TASK.scores(TASK.truths(rows), said, classes)
    assert {name: float(shares.mean()) for name, shares in scores.items()} == {
        "squad_f1": 1.0,
        "exact_match": 1.0,
    }


# ---------------------------------------------------------------------------------------------- the rest


def test_answers_that_are_not_there_are_told() -> None:
    context = "Ada is in London."
    rows = frame(
        ("Where?", context, [[10, "London"]]),
        ("Where?!", context, [[9, "London"]]),
        ("Who?", context, [[99, "Ada"]]),
        ("How?", context, [[0, ""]]),
        ("Why?", context, []),
        ("What?", "", []),
        ("When?", context, None),
    )
    found = TASK.facts(rows, Path(), Validation())
    assert found["target_error"].isna().tolist() == [True, False, False, False, True, True, True]
    assert found["target_error"][1] == "answer 'London' is not at 9, where ' Londo' stands"
    assert found["target_error"][3] == "the answer at 0 is empty"
    assert found["near_duplicate_of"].fillna("").tolist() == ["", "s0", "", "", "", "", ""]
    assert found["content"].isna().tolist() == [False] * 5 + [True, False]
    both = rows.assign(target=json.dumps({"answers": [[0, "Ada"]], "impossible": True}))
    assert "is said to have no answer" in TASK.facts(both, Path(), Validation())["target_error"][0]
    names = [one.name for one in TASK.expectations(Validation())]
    assert {"targets_present", "answers_found", "pairs_complete", "text_not_empty"} <= set(names)


def test_simple_methods() -> None:
    context = "Ada lived in Paris. It was long ago! Bo lives in London, 3.5 miles off. "
    rows = frame(("Where does Bo live, near what?", context, [[49, "London"]]), ("Who?", " No end", []))
    found = TASK.baselines(rows.assign(split="test"), BOTH, Path())
    assert [one["answer"] for one in found["sentence"].said] == [
        "Bo lives in London, 3.5 miles off.",
        "No end",
    ]
    first = found["sentence"].said[0]
    assert context[first["start"] : first["end"]] == first["answer"]
    assert [one["answer"] for one in found["no-answer"].said] == ["", ""]
    assert set(TASK.baselines(rows.assign(split="test"), ["answerable"], Path())) == {"sentence"}


def test_a_case_shows_the_answer_in_its_paragraph() -> None:
    row = next(frame(("Where?", "Ada is in London.", [[10, "London"]])).itertuples())
    right = TASK.case(row, {"answer": "London", "start": 10, "end": 16, "score": 0.5}, Path())
    assert (right.truth, right.predicted) == ("Where? London", "London")
    assert right.marks == (("Ada is in ", ""), ("London", "right"), (".", ""))
    wrong = TASK.case(row, {"answer": "Ada", "start": 0, "end": 3, "score": 0.5}, Path())
    assert wrong.marks == (("Ada", "wrong"), (" is in ", ""), ("London", "missed"), (".", ""))
    none = TASK.case(row, {"answer": "", "start": -1, "end": -1, "score": 0.5}, Path())
    assert (none.predicted, none.marks[1]) == ("no answer", ("London", "missed"))
    assert marked("Ada", [], {"start": -1, "end": -1}, right=True) == (("Ada", ""),)


def test_the_synthetic_questions_are_the_same_every_time_and_their_answers_are_there() -> None:
    def read() -> list[raw.RawSample]:
        data = PackageData(source="package", dataset="facts-qa", path="requirements.lock")
        return list(raw.read(data, "question-answering", Path("nowhere")).samples)

    first = read()
    assert first == read()
    assert len({(one.content, one.pair) for one in first}) == len(first) == 240
    rows = frame(*((str(one.content), str(one.pair), one.target["answers"]) for one in first))
    found = TASK.facts(rows, Path(), Validation())
    assert found[["target_error", "near_duplicate_of"]].isna().to_numpy().all()
    assert {one.label for one in first} == set(BOTH)
    sides = pd.DataFrame({"group": [one.group for one in first], "split": [one.split for one in first]})
    assert (sides.groupby("group")["split"].nunique() == 1).all()


def test_validate_names_the_questions_and_goes_on_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[dict[str, Any]] = [
        {"id": f"good-{at}", "question": f"{at}?", "answers": [{"text": "Ada", "answer_start": 0}]}
        for at in range(3)
    ]
    asked += [
        {"id": f"none-{at}", "question": f"{at}!!", "is_impossible": True, "answers": []} for at in range(3)
    ]
    asked += [
        {"id": "misplaced", "question": "a?", "answers": [{"text": "Ada", "answer_start": 1}]},
        {"id": "untold", "question": "b?", "answers": []},
        {
            "id": "both",
            "question": "c?",
            "is_impossible": True,
            "answers": [{"text": "Ada", "answer_start": 0}],
        },
    ]
    paragraphs = [
        {"context": f"Ada {at}", "qas": [{**one, "id": f"{at}-{one['id']}"} for one in asked]} for at in "xy"
    ]
    Path("t.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    settle_ingest("facts", "question-answering", source="squad", path="t.json")
    levels = {"no_near_duplicates": "warning"}
    settle_validate("facts", "question-answering", on_reject="drop", min_per_class=2, levels=levels)
    ingest("facts")
    validate("facts")
    rejected = pd.read_csv("work/facts/validation/rejected.csv").set_index("id")
    assert rejected["expectation"].to_dict() == {
        "x-untold": "targets_present",
        "y-untold": "targets_present",
        "x-misplaced": "answers_found",
        "x-both": "answers_found",
        "y-misplaced": "answers_found",
        "y-both": "answers_found",
    }
    assert rejected["reason"]["x-misplaced"] == "answer 'Ada' is not at 1, where 'da ' stands"
    accepted = pd.read_parquet("work/facts/validation/accepted.parquet")
    assert len(accepted) == 12
    assert TASK.classes(accepted) == BOTH


# ---------------------------------------------------------------------------------------------- end to end


def questions(root: Path) -> dict[str, Any]:
    """Which thing stands where: short paragraphs of the topics' words."""
    from tests import twin

    rng = np.random.default_rng(3)
    paragraphs = []
    words = [word for topic in twin.TOPICS.values() for word in topic]
    for number in range(40):
        one, two, three = rng.permutation(words)[:3].tolist()
        context = f"the {one} of the {two} and a new {three}"
        asked: list[dict[str, Any]] = [
            {"question": f"the new {three}", "answers": [{"text": one, "answer_start": context.index(one)}]},
            {"question": "under", "is_impossible": True, "answers": []},
        ]
        qas = [{"id": f"q{number}-{at}", **one} for at, one in enumerate(asked)]
        paragraphs.append({"context": context, "qas": qas})
    (root / "raw").mkdir()
    (root / "raw/all.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))
    return {
        "task": "question-answering",
        "data": {"source": "squad", "path": "raw/all.json"},
        "model": {"pretrained": "toy-text", "max_tokens": 14, "stride": 2},
    }


@pytest.mark.flow
def test_from_squad_to_a_registered_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    clone.lay_out(tmp_path, questions(tmp_path))
    found = clone.run()
    assert found["metric"]["name"] == "squad_f1"
    assert {one["arm"] for one in found["arms"]} == {"scratch", "frozen", "full"}
    assert {one["name"] for one in found["baselines"]} == {"sentence", "no-answer"}
    context = "the rose of the ship and a new oven"
    said = clone.predicted([{"text": "the new oven", "pair": context}])
    assert set(said[0]) == {"answer", "score", "start", "end"}
    assert said[0]["answer"] == ("" if said[0]["start"] < 0 else context[said[0]["start"] : said[0]["end"]])
