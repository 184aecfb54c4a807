"""Many workers, one dvc.lock: PostgreSQL, an S3-compatible store, both servers, two workers in two clones."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from steps.artifacts import sha256_file
from tests.topology import BUCKET, DEPLOY, USER, Topology, end, process, topology
from tests.tracking.servers import free_port
from tests.twin import Twin, build

pytestmark = pytest.mark.long

SPREAD_SECONDS = 900
# Steps that write down how long something took, so that no two runs have the same bytes.
TIMED = ("validate", "train", "curve", "compare")
SHARED = {"embed@shapes", "embed@topics"} | {
    f"train@{name}-{arm}" for name in ("shapes", "topics") for arm in ("scratch", "frozen", "full")
}


@dataclass(frozen=True)
class Spread:
    """What a run with two workers, one of them killed, left behind."""

    topology: Topology
    owner: Twin
    second: Twin
    lines: list[str]
    killed: str

    def said(self, pattern: str) -> list[str]:
        return [line for line in self.lines if re.search(pattern, line)]

    def stages_of(self, worker: str) -> set[str]:
        found = [
            re.search(rf"  (\S+) (\S+) +(?:ran|restored) on \S+/{worker} in", line) for line in self.lines
        ]
        return {f"{one[1]}@{one[2]}" for one in found if one}


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    with topology(tmp_path_factory.mktemp("topology") / "root") as made:
        yield made


@pytest.fixture(scope="module")
def spread(up: Topology) -> Iterator[Spread]:
    owner = build(up.root / "owner")
    up.publish(owner)
    first, second = up.clone(owner, "first"), up.clone(owner, "second")
    with ExitStack() as stack:
        one = stack.enter_context(up.worker(first, "first"))
        stack.enter_context(up.worker(second, "second"))
        up.wait_for_pool()
        started = owner.start("spread", "--dead-after", "30", environment=up.client)
        try:
            lines, killed = _watch(started, one)
        finally:
            end(started)  # type: ignore[arg-type]  # text or bytes, it is only killed
        (up.root / "spread.log").write_text("\n".join(lines) + "\n")
        assert started.returncode == 0, "\n".join(lines)
        yield Spread(up, owner, second, lines, killed)


def _watch(started: subprocess.Popen[str], worker: subprocess.Popen[bytes]) -> tuple[list[str], str]:
    """Read what the owner says; once the first worker has done one stage and begun another, kill it."""
    assert started.stdout is not None
    lines: list[str] = []
    done = False
    killed = ""
    for line in started.stdout:
        lines.append(line.rstrip())
        done = done or bool(re.search(r" (ran|restored) on \S+/first in", line))
        begun = re.search(r"  (\S+) (\S+) +runs on \S+/first$", line.rstrip())
        if done and begun and not killed:
            killed = f"{begun[1]}@{begun[2]}"
            time.sleep(2)  # in the middle of it
            end(worker)
    started.wait(timeout=SPREAD_SECONDS)
    return lines, killed


def test_both_workers_did_some_stages_and_the_owner_the_rest(spread: Spread) -> None:
    first, second = spread.stages_of("first"), spread.stages_of("second")
    assert first
    assert second
    assert first | second == SHARED
    assert not spread.said(r"(ingest|evaluate|compare) \S+ +runs on")


def test_a_killed_workers_stage_was_taken_over(spread: Spread) -> None:
    assert spread.killed in SHARED
    name = spread.killed.replace("@", " ")
    assert spread.said(rf"  {name} +no sign of life for \d+ s")
    assert spread.said(rf"  {name} +given to the pool again")
    assert spread.killed in spread.stages_of("second")


def test_the_merged_lock_is_that_of_a_run_in_one_clone(spread: Spread) -> None:
    single = spread.topology.clone(spread.owner, "single")
    subprocess.run(
        [sys.executable, "-m", "dvc", "repro", "--quiet", "compare@shapes", "compare@topics"],
        cwd=single.root, env=single.environment, check=True, capture_output=True, timeout=SPREAD_SECONDS,
    )  # fmt: skip
    assert without_durations(spread.owner.root) == without_durations(single.root)
    same = [file_digests(twin.root) for twin in (spread.owner, single)]
    assert len(same[0]) > 12
    assert same[0] == same[1]
    # And DVC itself finds nothing to do in the owner's clone.
    said = spread.owner.run("dvc", "status", "compare@shapes", "compare@topics").stdout
    assert "up to date" in said


def without_durations(root: Path) -> dict[str, Any]:
    """dvc.lock without the hashes of folders in which steps write how long they took."""
    stages: dict[str, Any] = YAML(typ="safe").load(root / "dvc.lock")["stages"]
    timed = {
        out["path"] for name, entry in stages.items() if name.split("@")[0] in TIMED for out in entry["outs"]
    }
    for entry in stages.values():
        for item in [*entry["deps"], *entry["outs"]]:
            if any(path == item["path"] or path.startswith(f"{item['path']}/") for path in timed):
                item.pop("md5")
                item.pop("size")
    return stages


def file_digests(root: Path) -> dict[str, str]:
    """Of what those folders hold beside durations: weights, predictions, what was chosen."""
    patterns = ("work/*/arms/*/seed-*/*.safetensors", "work/*/curve/predictions.parquet", "reports/*/plots/*")
    found = [path for pattern in patterns for path in root.glob(pattern)]
    return {path.relative_to(root).as_posix(): sha256_file(path) for path in sorted(found)}


def test_every_output_is_in_the_store(spread: Spread) -> None:
    said = spread.owner.run("dvc", "status", "--cloud", *sorted(SHARED), environment=spread.topology.client)
    assert "in sync" in said.stdout, said.stdout


def test_the_result_is_registered_with_its_files_in_the_store(spread: Spread) -> None:
    import boto3

    database, top = spread.topology.postgres, spread.topology
    found = database.sql(
        "-c", "SELECT name, alias FROM registered_model_aliases ORDER BY 1", database="mlflow"
    )
    assert "headstart-shapes|champion" in found.splitlines()
    assert "headstart-topics|champion" in found.splitlines()
    client = boto3.client(
        "s3", endpoint_url=top.store["AWS_ENDPOINT_URL"], region_name="us-east-1",
        aws_access_key_id="twin", aws_secret_access_key=top.store["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="mlflow/")
    keys = [one["Key"] for page in pages for one in page.get("Contents", ())]
    assert any(key.endswith(".safetensors") for key in keys)


def test_a_client_without_keys_of_the_store_gets_the_champion(spread: Spread) -> None:
    keyless = {name: value for name, value in spread.topology.client.items() if not name.startswith("AWS_")}
    picture = spread.owner.root / "raw/shapes/circle/circle-00.png"
    said = spread.second.headstart("predict", "shapes", str(picture), "--json", environment=keyless)
    assert json.loads(said.splitlines()[-1])["label"] in ("circle", "square", "triangle")


def test_a_second_run_has_nothing_to_do(spread: Spread) -> None:
    said = spread.owner.headstart("spread", environment=spread.topology.client)
    assert not re.search(r"(embed|train) \S+ +(given|runs)", said), said
    assert said.count("unchanged") >= len(SHARED)


def test_nobody_gets_in_without_the_password(up: Topology) -> None:
    for page in (f"{up.prefect}/api/admin/version", f"{up.mlflow}/api/2.0/mlflow/users/current"):
        assert code(page) == 401
        assert code(page, f"{USER}:wrong") == 401
        assert code(page, f"{USER}:{up.password}") == 200


def test_the_proxy_lets_in_with_the_password_alone(up: Topology, tmp_path: Path) -> None:
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    doors = {"PREFECT": (free_port(), up.prefect), "MLFLOW": (free_port(), up.mlflow)}
    values = {
        "HEADSTART_USER": USER,
        "HEADSTART_PASSWORD": up.password,
        "LOGINS": str(tmp_path / "passwords"),
    }
    for name, (port, address) in doors.items():
        values |= {f"{name}_LISTEN": f"127.0.0.1:{port}", f"{name}_UPSTREAM": address.removeprefix("http://")}
    for template in (DEPLOY / "proxy").iterdir():
        text = template.read_text(
            "utf-8"
        )  # nginx's image fills in what the environment has, and nothing else
        for name, value in values.items():
            text = text.replace(f"${{{name}}}", value)
        assert "${" not in text
        (tmp_path / template.name.removesuffix(".template")).write_text(text)
    (tmp_path / "nginx.conf").write_text(
        "daemon off; error_log stderr; pid nginx.pid; user root;\nevents {}\n"
        "http { access_log off; include headstart.conf; }\n"
    )
    command = [nginx, "-p", str(tmp_path), "-c", "nginx.conf"]
    with process(
        command, tmp_path, "nginx", os.environ, f"http://127.0.0.1:{doors['PREFECT'][0]}/api/health"
    ):
        for name, page in (("PREFECT", "/api/admin/version"), ("MLFLOW", "/api/2.0/mlflow/users/current")):
            address = f"http://127.0.0.1:{doors[name][0]}{page}"
            assert code(address) == 401
            assert code(address, f"{USER}:wrong") == 401
            assert code(address, f"{USER}:{up.password}") == 200
        assert code(f"http://127.0.0.1:{doors['MLFLOW'][0]}/health") == 200


def code(address: str, login: str = "") -> int:
    """The status that an address answers with."""
    page = urllib.request.Request(address)
    if login:
        page.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    try:
        with urllib.request.urlopen(page, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


def test_the_password_of_mlflow_is_changed_as_the_page_says(up: Topology) -> None:
    page = (DEPLOY.parent / "docs/operations.md").read_text("utf-8")
    said = re.search(r"python - <<'END'\n(.*?)\nEND\n", page, re.DOTALL)
    assert said is not None
    login = f"{up.mlflow}/api/2.0/mlflow/users/current"
    for old, new in ((up.password, "another password"), ("another password", up.password)):
        told = {"MLFLOW_TRACKING_PASSWORD": old, "NEW_PASSWORD": new}
        subprocess.run(
            [sys.executable, "-"], input=said[1], text=True, env=os.environ | up.client | told, check=True
        )
        assert code(login, f"{USER}:{old}") == 401
        assert code(login, f"{USER}:{new}") == 200


def test_no_password_is_on_a_command_line(up: Topology) -> None:
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    for secret in (up.password, up.postgres.password, up.store["AWS_SECRET_ACCESS_KEY"]):
        assert secret not in shown


def test_a_commit_that_is_not_pushed_is_named(spread: Spread) -> None:
    copy = spread.topology.clone(spread.owner, "unpushed")
    (copy.root / "README.md").write_text("Changed.\n")
    said = copy.headstart("spread", expect=2, environment=spread.topology.client)
    assert "README.md is not committed" in said
    assert "Traceback" not in said


def test_a_pool_that_is_not_there_is_named(spread: Spread) -> None:
    said = spread.owner.headstart("spread", "--pool", "other", expect=2, environment=spread.topology.client)
    assert "`headstart worker --pool other` makes it" in said
