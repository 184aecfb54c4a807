"""Events as they leave the machine: complete, plain, and without anything that is nobody's business."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import notify, redaction
from flows.redaction import HIDDEN, redacted

ROOT = Path(__file__).resolve().parents[2]

SECRETS = [
    "postgresql://mlflow:s3cr3t@db.local/mlflow does not answer",
    "postgresql://mlflow:s3/c@r3t@db.local:5432/mlflow refused",
    "https://s3cr3t@host/path",
    "https://:s3cr3t@host/path",
    "connect to s3://bucket?AWS_SECRET_ACCESS_KEY=s3cr3t&x=1",
    "PGPASSWORD=s3cr3t psql failed",
    "password: s3cr3t",
    "password = 's3cr3t with blanks'",
    '{"password": "s3cr3t with blanks", "user": "me"}',
    r"{\"api_key\": \"s3cr3t\"}",
    "Authorization: Bearer s3cr3t.abc",
    "authorization: basic dXNlcjpzM2NyM3Q=",
    "sent Bearer s3cr3t0123456",
    "got Basic dXNlcjpzM2NyM3Q= back",
    "x-auth-token: s3cr3t",
    "https://host/hook?token=s3cr3t",
    "https://host/blob?sv=1&sig=s3cr3t%3D",
    "client_secret=s3cr3t",
    "HEADSTART_SMTP_PASSWORD=s3cr3t",
    "cookie: s3cr3t",
    "AKIAIOSFODNN7EXAMPLE was refused",
    "ghp_0123456789abcdefghijklmnopqrstuvwxyz",
    "hf_0123456789abcdefghijABCDEFG",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s3cr3t",
    "https://chat.example.org/services/T0001/B0002/s3cr3tXYZ",
    "-----BEGIN RSA PRIVATE KEY-----\ns3cr3t\nmore\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\ns3cr3t, and it was cut",
]
LEAKS = ("s3cr3t", "s3/c@r3t", "c@r3t", "dXNlcjpzM2NyM3Q=", "AKIAIOS", "ghp_0", "hf_0", "more")
HARMLESS = [
    "max_tokens: 16 must be larger than 32",
    "3 of 4 slices pass: class circle is worse by 4.0 points",
    "http://127.0.0.1:5000/health answers 500",
    "s3://bucket/key is missing",
    "author: the team; the key idea: two arms",
    "params.yaml: experiments.digits.training.epochs must be positive",
    "basic accuracy 0.91 (95 % interval 0.88 to 0.94)",
    "test_sha256 4f219df0 has been looked at 100 times",
]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """A process environment of our own."""
    made: dict[str, str] = {"PATH": "/usr/bin", "HOME": "/home/somebody", "TOKENIZERS_PARALLELISM": "false"}
    monkeypatch.setattr(os, "environ", made)
    return made


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_of_known_shape_is_hidden(text: str, environment: dict[str, str]) -> None:
    hidden = redacted(text)
    assert not any(leak in hidden for leak in LEAKS), hidden
    assert HIDDEN in hidden
    assert redacted(hidden) == hidden
    assert not any(
        leak in json.dumps(notify.message("failed", "digits", text, {"about": text})) for leak in LEAKS
    )


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_stays(text: str, environment: dict[str, str]) -> None:
    assert redacted(text) == text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PREFECT_API_AUTH_STRING", "admin:correct horse", "refused for correct horse"),
        ("PREFECT_API_AUTH_STRING", "admin:correct horse", "sent YWRtaW46Y29ycmVjdCBob3JzZQ=="),
        ("HEADSTART_WEBHOOK_URL", "https://chat.example.org/h/abcdef", "no answer of https://chat.example.org/h/abcdef"),
        ("DATABASE", "postgresql://me:pa%2Fss@db/x", "password pa/ss refused"),
        ("DATABASE", "postgresql://me:pa%2Fss@db/x", "password pa%2Fss refused"),
        ("MLFLOW_TRACKING_PASSWORD", "tiger", "for user me, tiger"),
        ("AWS_SECRET_ACCESS_KEY", "abc/def+ghi=", "signature of abc%2Fdef%2Bghi%3D differs"),
        ("DEPLOY_KEY", "one\ntwo three", "key one\ntwo three"),
    ],
)  # fmt: skip
def test_the_value_of_a_secret_variable_is_hidden(
    name: str, value: str, said: str, environment: dict[str, str]
) -> None:
    environment[name] = value
    assert HIDDEN in notify.plain(said, 999)
    for part in (value, *value.split(":")[1:], "horse", "pa/ss", "pa%2Fss", "YWRtaW46", "two three"):
        assert part not in notify.plain(said, 999)


def test_a_secret_is_found_behind_signs_that_nobody_sees(environment: dict[str, str]) -> None:
    environment["MY_TOKEN"] = "hunter2hunter"
    for said in ("hunter2\u200bhunter", "hunt\x1b[0mer2hunter", "hunter2\u202ehunter", "hun\u00adter2hunter"):
        assert notify.plain(f"it was {said}.", 99) == f"it was {HIDDEN}."


def test_short_values_and_switches_do_not_eat_words(environment: dict[str, str]) -> None:
    environment |= {"A_KEY": "test", "B_TOKEN": "ab", "C_AUTH": "true"}
    assert redacted("the latest test: true, about ab") == f"the latest {HIDDEN}: true, about ab"


def test_a_secret_that_the_cut_would_halve_is_not_shown(environment: dict[str, str]) -> None:
    environment["MY_TOKEN"] = "hunter2hunter"
    text = "x " * (notify.READ // 2 - 3) + "hunter2hunter"
    assert "hunter2" not in notify.plain(text, notify.READ)


@given(st.text(max_size=300))
def test_any_text_becomes_one_line_without_steering_signs(text: str) -> None:
    line = notify.plain(text, 100)
    assert len(line) <= 100
    assert line.isprintable()
    line.encode("utf-8")


@pytest.mark.parametrize(
    "text", ["a:" * 40_000, "://" * 30_000, "key=" * 25_000, "-----BEGIN PRIVATE KEY-----" * 3_000]
)
def test_a_hostile_text_takes_no_time(text: str) -> None:
    started = time.monotonic()
    notify.plain(text, 100)
    assert time.monotonic() - started < 5


def test_facts_are_json_without_secrets(environment: dict[str, str]) -> None:
    facts = {
        "gain": 1.5, "worse": float("nan"), "champion": None, "is_new": True, "path": Path("reports/x"),
        "apiKey": "s3cr3t", "store": {"password": "s3cr3t", "uri": "sqlite:///x"},
        "lines": ["ok", "token=s3cr3t", {"deep": {"deeper": {"deepest": {"secret": "s3cr3t"}}}}],
        **{f"fact{number}": number for number in range(100)},
    }  # fmt: skip
    told = notify.message("promoted", "digits", "text", facts)["facts"]
    written = json.dumps(told, allow_nan=False)
    assert "s3cr3t" not in written
    assert told["gain"] == 1.5
    assert told["is_new"] is True
    assert told["store"] == {"password": HIDDEN, "uri": "sqlite:///x"}
    assert len(told) == notify.FACTS


def test_chat_shows_the_text_and_does_nothing() -> None:
    shown = notify.message("refused", "digits", "<!channel> @here *bold* [x](http://evil.example) & `y`", {})[
        "chat"
    ]
    assert shown.startswith("*Headstart digits: candidate refused*\n")
    said = shown.split("\n", 1)[1]
    for mark in ("<", ">", "@here", "*bold", "[x", "http://", "`y"):
        assert mark not in said
    assert "&lt;!channel&gt;" in said
    assert "&amp;" in said


def test_every_kind_has_a_title_and_nothing_new_tells_nobody() -> None:
    assert set(notify.TITLES) == set(notify.KINDS)
    assert set(notify.KINDS) - set(notify.TOLD) == {"nothing"}


def test_names_that_hold_secrets() -> None:
    for name in (
        "password",
        "db_password",
        "PGPASSWORD",
        "apiKey",
        "X-Auth-Token",
        "SLACK_WEBHOOK",
        "aws_secret_access_key",
    ):
        assert redaction.is_secret(name), name
    for name in ("PWD", "TOKENIZERS_PARALLELISM", "max_tokens", "author", "monkey", "passed", "keys_of_x"):
        assert not redaction.is_secret(name), name


def test_emitting_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("password=s3cr3t")

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError("no text")

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(notify, "emit_event", broken)
    monkeypatch.setattr(
        notify, "PREFECT_API_URL", type("Set", (), {"value": staticmethod(lambda: "http://x/api")})
    )
    notify.emit("failed", "digits", "text")
    notify.emit("failed", "digits", "text", about=Unprintable())
    notify.emit("no such kind", "digits", "text")  # type: ignore[arg-type]


def test_without_a_server_nobody_is_told_and_none_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(notify, "emit_event", lambda *told, **more: called.append(told))
    monkeypatch.setattr(notify, "PREFECT_API_URL", type("Unset", (), {"value": staticmethod(lambda: None)}))
    notify.emit("failed", "digits", "text")
    assert called == []


@pytest.mark.slow
@pytest.mark.survives(
    "servers",
    "Prefect's server is away when something is to be told",
    how="an address where nothing listens",
    held="no error, and no time",
)
def test_a_server_that_is_away_costs_no_time_and_no_error(tmp_path: Path) -> None:
    script = (
        "import time; from flows import notify; began = time.monotonic(); "
        "notify.emit('failed', 'digits', 'text'); print(time.monotonic() - began)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=90, check=False,
        env=os.environ | {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1
