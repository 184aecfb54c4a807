"""Which version is champion, and since when."""

from __future__ import annotations

from dataclasses import dataclass

from steps.tracking import addresses
from steps.tracking.addresses import Seen

ALIAS = "champion"


@dataclass(frozen=True)
class Glance:
    """What a look at the registry gave.

    Attributes:
        champion: None where the model has none, or where it could not be told.
        unknown: why it could not be told; empty where it could.
    """

    champion: Seen | None = None
    unknown: str = ""


# The registry was asked, and the model has no champion.
NOTHING = Glance()


def glance(model: str) -> Glance:
    """Look for the champion of a registered model."""
    try:
        return Glance(addresses.look(model, alias=ALIAS))
    except addresses.UnknownError as error:
        return Glance(unknown=str(error))


def page(model: str, version: str) -> str | None:
    """The address of a version's page; None where the store is a file, which has none."""
    uri = addresses.shown(addresses.address()).rstrip("/")
    return f"{uri}/#/models/{model}/versions/{version}" if uri.startswith(("http://", "https://")) else None
