"""What people call a version: `digits@champion`, `headstart-digits@3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steps.errors import UserError
from steps.settings import suggest
from steps.tracking import lease, registry, store
from steps.tracking.registry import Version
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

SHAPE = "MODEL@ALIAS or MODEL@NUMBER, e.g. digits@champion"


def model_of(opened: Store, name: str) -> str:
    """The registered model that an experiment's name or its own full name means.

    Args:
        opened: the store.
        name: `digits` or `headstart-digits`.

    Raises:
        UserError: there is none.
    """
    return str(_registered(opened, name).name)


def version_of(opened: Store, text: str) -> Version:
    """The version that `MODEL@ALIAS` or `MODEL@NUMBER` means now.

    Args:
        opened: the store.
        text: as the user wrote it.

    Raises:
        UserError: it is no such text, or there is no such model or version.
    """
    name, _, which = text.rpartition("@")
    if not name or not which:
        raise UserError(f"{text!r} names no version; write {SHAPE}")
    found = _registered(opened, name)
    number = which if which.isdecimal() else found.aliases.get(which)
    if number is None:
        raise UserError(f"{found.name} has no version with the alias {which!r}; {_told(found)}")
    version = registry.version(opened, str(found.name), str(int(number)))
    if version is None:
        raise UserError(f"{found.name} has no version {number}; {_told(found)}")
    return version


def _registered(opened: Store, name: str) -> RegisteredModel:
    for full in (name, registry.name_of(name)):
        try:
            return opened.client.get_registered_model(full)
        except Exception as error:
            store.is_absent(error)
    known = [one.name for one in opened.client.search_registered_models(max_results=100)]
    known = [one for one in known if not one.endswith(lease.ENDING)]
    end = suggest(registry.name_of(name), known) if known else "; nothing is registered yet"
    raise UserError(f"there is no registered model {name!r} or {registry.name_of(name)!r}{end}")


def _told(found: RegisteredModel) -> str:
    there = [f"{alias} is version {number}" for alias, number in sorted(found.aliases.items())]
    return ", ".join(there) or f"`headstart history {found.name}` tells which were champion"
