"""Write docs/params.md from the models of params.yaml: `python docs/make_params.py`.

A test compares the page with the models, so the two cannot drift apart.
"""

from __future__ import annotations

import types
import typing
from pathlib import Path

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from steps import arms, kinds, layouts, operation, params, references
from steps.settings import Settings, as_yaml


def source_of(model: type[Settings]) -> str:
    """What an entry says of its `source` to be of this model."""
    (found,) = typing.get_args(model.model_fields["source"].annotation)
    return str(found)


PAGE = Path(__file__).parent / "params.md"
SECTIONS: list[tuple[str, type[Settings]]] = [
    ("experiments.&lt;name&gt;", params.Experiment),
    *((f"experiments.&lt;name&gt;.data, source: {source_of(model)}", model) for model in layouts.MODELS),
    ("experiments.&lt;name&gt;.model", params.Model),
    ("experiments.&lt;name&gt;.validation", params.Validation),
    ("experiments.&lt;name&gt;.split", params.Split),
    ("experiments.&lt;name&gt;.training", params.Training),
    ("experiments.&lt;name&gt;.tuning", params.Tuning),
    ("experiments.&lt;name&gt;.curve", params.Curve),
    ("experiments.&lt;name&gt;.evaluation", params.Evaluation),
    ("experiments.&lt;name&gt;.machine", params.Machine),
    ("experiments.&lt;name&gt;.gate", operation.Gate),
    ("experiments.&lt;name&gt;.drift", operation.Drift),
    ("experiments.&lt;name&gt;.serving", operation.Serving),
    ("nightly", operation.Nightly),
    ("arms.&lt;name&gt;", params.Arm),
    ("arms.&lt;name&gt;.lora", params.Lora),
    *((f"pretrained.&lt;name&gt;, source: {name}", model) for name, model in references.MODELS.items()),
]
HEAD = """# Keys of params.yaml

Made by `python docs/make_params.py` from the models in `steps/params.py`. Unknown keys are refused, all
mistakes are told together, and a number must be a number: write `1.0e-3`; YAML reads `1e-3` as text.

An entry under `pretrained:` may be one line as well, e.g. `hf:owner/name`: [sources.md](sources.md).

The tasks are: {tasks}; each is told of in [tasks.md](tasks.md).

The expectations whose level `validation.levels` may set to `error` or `warning` are: {expectations}.
By default {warnings} are warnings.
"""
PRESETS = """## Presets of arms

`preset: lora` stands for the keys below; other keys of the arm override them, and all else is at its
default. An experiment's change that names a preset starts from it, not from the top-level arm.

| preset | stands for | what it does | paper |
| --- | --- | --- | --- |
{rows}
"""
RATES = """## Learning rates where none are given

| library | what trains | head | backbone |
| --- | --- | --- | --- |
{rows}

`gradual` and `pattern` take the rates of `all`. With `start: random` the head's rate is that of everything.
"""


def page() -> str:
    """The whole page."""
    head = HEAD.format(
        tasks=", ".join(f"`{name}`" for name in kinds.KINDS),
        expectations=", ".join(f"`{name}`" for name in params.EXPECTATIONS),
        warnings=", ".join(f"`{name}`" for name in params.WARNINGS),
    )
    return "\n".join([head, *(section(title, model) for title, model in SECTIONS), presets(), rates()])


def presets() -> str:
    """The table of presets: a row each."""
    rows = []
    for name, keys in arms.PRESETS.items():
        said, paper = arms.ABOUT_PRESETS[name]
        expansion = ", ".join(f"{key}: {as_yaml(value)}" for key, value in keys.items())
        rows.append(f"| `{name}` | `{expansion}` | {said} | {paper} |")
    return PRESETS.format(rows="\n".join(rows))


def rates() -> str:
    """The table of learning rates: a row for each library and kind."""
    rows = [
        f"| {library} | `{'start: random' if kind == 'random' else f'tune: {kind}'}` | {head} | {backbone} |"
        for library, kinds in arms.RATES.items()
        for kind, (head, backbone) in kinds.items()
    ]
    return RATES.format(rows="\n".join(rows))


def section(title: str, model: type[Settings]) -> str:
    """One table: a row for each key."""
    said = " ".join((model.__doc__ or "").split())
    rows = [
        f"| `{name}` | {kind(field)} | {default(field)} | {about(field)} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(
        [f"## {title}", "", said, "", "| key | type | default | |", "| --- | --- | --- | --- |", *rows, ""]
    )


def kind(field: FieldInfo) -> str:
    """The type in words a reader of YAML knows."""
    return words(field.annotation).replace("|", "\\|")


def words(annotation: object) -> str:
    """A type without Python's own names."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation == arms.Range:
        return "`[low, high]` | `{choices: [...]}`"
    if origin is typing.Annotated:
        return words(arguments[0])
    if origin is typing.Literal:
        return "a name below" if len(arguments) > 8 else " | ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        kinds = [words(one) for one in arguments if one is not type(None)]
        return "a section below" if len(kinds) > 2 else " | ".join(kinds)
    if origin is tuple:
        return f"list of {words(arguments[0])}"
    if origin is dict:
        return f"{words(arguments[0])} → {words(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return "a section below"
    plain: dict[object, str] = {
        str: "text", int: "whole number", float: "number", bool: "yes/no", typing.Any: "anything"
    }  # fmt: skip
    return plain.get(annotation, str(annotation))


def default(field: FieldInfo) -> str:
    """The default as YAML would say it."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**needed**"
    if isinstance(value, Settings):
        return ""
    return "" if value is None or value == {} else f"`{as_yaml(value)}`"


def about(field: FieldInfo) -> str:
    """What the key means, and its limits."""
    limits = []
    for limit in field.metadata:
        for name, sign in (("gt", ">"), ("ge", "≥"), ("lt", "<"), ("le", "≤")):
            if hasattr(limit, name) and getattr(limit, name) is not None:
                limits.append(f"{sign} {getattr(limit, name)}")
    return " ".join(filter(None, [field.description or "", f"({', '.join(limits)})" if limits else ""]))


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
