"""One night: what was found, what came of it, and how that is told. Light; Prefect is not needed for it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from flows import causes, champions, records
from flows.causes import Look
from flows.champions import Glance
from flows.stages import Outcome, Stages
from steps import artifacts
from steps.errors import HeadstartError
from steps.params import Params

End = Literal["promoted", "refused", "same", "nothing", "drift", "failed", "unpublished", "broken off"]
# What a message is about, by what the night came to; of the others nobody has to hear.
TOLD: dict[End, str] = {
    "promoted": "promoted", "refused": "refused", "failed": "failed", "unpublished": "failed",
    "drift": "drift",
}  # fmt: skip
SIGNS: dict[End, str] = {
    "promoted": "promoted",
    "refused": "refused",
    "same": "unchanged",
    "nothing": "nothing to do",
    "drift": "drift",
    "failed": "failed",
    "unpublished": "not published",
    "broken off": "broken off",
}
ADVICE = (
    "training again on the same data would give the same weights, so nothing was trained: "
    "label some of the new inputs and add them to the data, and the next night trains on them"
)
LOST = (
    "{model} has no champion: the alias was removed, and not by `headstart`; "
    "`headstart promote {model}@{version}` gives it back"
)


@dataclass
class Result:
    """What a night came to for one experiment.

    Attributes:
        look: what was found.
        end: what it came to.
        text: the same in a sentence.
        champion: the version that serves now; None where there is none, or it could not be told.
        seconds: wall time.
        outcomes: of its stages.
        failures: nights in a row that failed, this one included.
        decision: the gate's reason, where it decided.
    """

    look: Look
    end: End
    text: str
    champion: str | None = None
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    failures: int = 0
    decision: str = ""

    def as_json(self) -> dict[str, Any]:
        """As the record has it."""
        drift = self.look.drift
        return {
            "causes": [{"kind": one.kind, "text": one.text} for one in self.look.causes],
            "outcome": self.end,
            "text": self.text,
            "champion": self.champion,
            "seconds": round(self.seconds, 1),
            "ran": [
                {"stage": one.stage, "how": one.how, "seconds": round(one.seconds, 1)}
                for one in self.outcomes
                if one.how != "unchanged"
            ],
            "failures": self.failures,
            "decision": self.decision,
            "anew": self.look.anew,
            "drift": None if drift is None else records.mark(drift),
        }


@dataclass
class Night:
    """All of one night.

    Attributes:
        looks: what was found, by experiment.
        record: what is kept of it.
        results: what came of it.
        seconds: wall time of the whole.
        crashed: runs of dead workers that were marked.
    """

    looks: list[Look]
    record: records.Record
    before: Sequence[records.Record] = ()
    results: list[Result] = field(default_factory=list)
    seconds: float = 0.0
    crashed: list[str] = field(default_factory=list)

    @property
    def quiet(self) -> bool:
        """Whether there is no cause at all."""
        return not any(look.causes for look in self.looks)

    @property
    def failed(self) -> list[Result]:
        """What went wrong."""
        return [one for one in self.results if one.end == "failed"]

    def begin(self, **about: Any) -> None:  # noqa: ANN401 - any JSON value
        """Write down what is going to be done, so that a night that is killed has left a trace."""
        self.record |= about
        for look in self.looks:
            if look.to_run:
                text = "the night was broken off before its end"
                self.record["experiments"][look.experiment] = Result(look, "broken off", text).as_json()
        records.write(self.record)

    def end(self) -> None:
        """Write down what came of it."""
        for one in self.results:
            self.record["experiments"][one.look.experiment] = one.as_json()
        ended = {"ended": datetime.now(UTC).isoformat(), "seconds": round(self.seconds, 1)}
        self.record |= ended | {"took_over": self.crashed}
        records.write(self.record)


def look(stages: Stages, names: list[str], checked: Params, *, force: bool = False) -> Night:
    """Look at experiments; nothing is run or written.

    Raises:
        UserError: DVC cannot work here.
    """
    now, before = datetime.now(UTC), records.recent()
    found = [causes.find(stages, name, checked, before, now, force=force) for name in names]
    return Night(found, records.new(now), before)


def rest(found: Look) -> Result:
    """The result of an experiment that there is nothing to run for."""
    if found.drift is not None:
        return Result(found, "drift", f"{found.drift.get('text')}; {ADVICE}", _version(found.champion))
    return Result(found, "nothing", "no cause to train anew", _version(found.champion))


def failure(found: Look, error: str, before: Sequence[records.Record], *, published: bool = True) -> Result:
    """The result of an experiment that stopped, or whose results the tracking server did not take."""
    count = 1 + records.failed_before(before, found.experiment)
    often = records.in_a_row(count)
    noted_before = noted(found.experiment)
    now = champions.glance(noted_before["model"]) if noted_before else champions.NOTHING
    champion = _version(now) or (before_champion(noted_before) if now.unknown else None)
    serves = f"champion version {champion} still serves" if champion else "there is no champion yet"
    said = f"failed {often}, {serves}: {error}" if often else f"failed, {serves}: {error}"
    end: End = "failed" if published else "unpublished"
    return Result(found, end, said, champion, failures=count)


def concluded(found: Look, before: dict[str, Any]) -> Result:
    """The result of an experiment whose steps all ended well, by what register wrote down.

    Args:
        found: what was found at first.
        before: what register had written down before; empty where it never had.
    """
    after = noted(found.experiment)
    version, model = str(after["version"]), str(after["model"])
    decision = str(after["decision"]["reason"])
    glance = champions.glance(model)
    champion = _version(glance) or (version if champions.ALIAS in after["aliases"] else None)
    lost = after["decision"].get("evidence", {}).get("lost_champion")
    if glance == champions.NOTHING and (lost or any(one.kind == "champion" for one in found.causes)):
        text = decision if lost else LOST.format(model=model, version=before.get("version"))
        return Result(found, "failed", text)
    was = _version(found.champion) or before_champion(before)
    if after.get("result") == before.get("result"):
        return Result(found, "same", f"the results are what they were; version {version} stays", champion)
    if found.anew and version == before.get("version"):
        text = f"built anew, and version {version} came out byte for byte"
        return Result(found, "same", text, champion, decision=decision)
    if after["decision"]["promote"] and version != was:
        return Result(
            found, "promoted", f"version {version} is champion: {decision}", champion, decision=decision
        )
    if after["decision"]["promote"]:
        text = f"the winner is version {version}, which is champion already"
        return Result(found, "same", text, champion, decision=decision)
    stays = f"version {champion} stays champion" if champion else "there is no champion"
    text = f"version {version} was refused, {stays}: {decision}"
    return Result(found, "refused", text, champion, decision=decision)


def before_champion(noted: dict[str, Any]) -> str | None:
    """The champion by what register wrote down, for when the registry could not be asked."""
    return str(noted["version"]) if champions.ALIAS in noted.get("aliases", ()) else None


def noted(experiment: str) -> dict[str, Any]:
    """What register wrote down last; empty where it never did."""
    try:
        found = json.loads(artifacts.registration_file(experiment).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def whole_failure(night: Night | None, error: HeadstartError) -> records.Record:
    """The record of a night that stopped before any experiment.

    Args:
        night: as far as it came; None where it could not even look.
        error: what stopped it.
    """
    record = records.new(datetime.now(UTC)) if night is None else night.record
    before = records.recent() if night is None else night.before
    failures = 1 + records.stopped_before(before)
    return record | {"experiments": {}, "failed": str(error), "failures": failures}


def message(result: Result) -> str:
    """The one message about an experiment."""
    said = result.text
    reasons = [str(one) for one in result.look.causes if one.kind != "drift"]
    if reasons:
        said += f" (because of {'; '.join(reasons)})"
    if result.look.drift is not None and result.end != "drift":
        said += f". Drift: {result.look.drift.get('text')}"
    return said


def markdown(night: Night) -> str:
    """The night as Prefect's artifact shows it."""
    from flows import summary
    from steps.report.wording import markdown as escaped
    from steps.report.wording import seconds

    lines = [
        f"# Night of {night.record['began'][:16].replace('T', ' ')} UTC",
        "",
        "| experiment | came to | took | champion |",
        "| --- | --- | ---: | --- |",
    ]
    for one in night.results:
        champion = escaped(one.champion) if one.champion else "none known"
        name = escaped(one.look.experiment)
        lines.append(f"| {name} | {SIGNS[one.end]} | {seconds(one.seconds)} | {champion} |")
    for run in night.crashed:
        lines += ["", f"The run {escaped(run)} had died; its work was taken over."]
    for one in night.results:
        lines += ["", *_section(one)]
    ran = [one.look.experiment for one in night.results if one.outcomes and one.end != "failed"]
    return "\n".join([*lines, "", *([summary.markdown(ran)] if ran else [])])


def _section(one: Result) -> list[str]:
    from steps.report.wording import markdown as escaped
    from steps.report.wording import seconds

    lines = [f"## {escaped(one.look.experiment)}", "", escaped(one.text), ""]
    lines += [f"* {escaped(str(cause))}" for cause in one.look.causes] or ["* no cause"]
    ran = [outcome for outcome in one.outcomes if outcome.how != "unchanged"]
    if ran:
        lines += ["", "| stage | how | took |", "| --- | --- | ---: |"]
        lines += [f"| {escaped(done.stage)} | {done.how} | {seconds(done.seconds)} |" for done in ran]
    lines += ["", *_links(one)]
    return lines


def _links(one: Result) -> list[str]:
    """Where to read on; a store that is a file has no page."""
    from steps.report.wording import markdown as escaped

    found = noted(one.look.experiment)
    lines = []
    report = artifacts.report_dir(one.look.experiment) / "report.html"
    if report.exists():
        lines.append(f"Report: `{report.as_posix()}`")
    address = champions.page(found["model"], found["version"]) if found else None
    if address:
        lines.append(f"[{escaped(found['model'])} version {escaped(str(found['version']))}]({address})")
    return [" · ".join(lines)] if lines else []


def _version(found: Glance) -> str | None:
    return None if found.champion is None else found.champion.version
