"""One writer at a time for a registered model, on any machine: a lease that the registry grants.

A registered model's name is unique in every backend of MLflow, so making `<model>.lease` succeeds for one
writer only. It is given back by giving it another name first, which holds its token: a name that nobody
else gives it, and that a lease which was taken over can no longer get. So nobody gives back what is
another's.

No two clocks are compared. Who waits watches the holder's beat by its own steady clock and takes over a lease
that has not beaten for `SECONDS`; a holder that died on the same machine is known by its process, at once.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import random
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steps.errors import TrackingError
from steps.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

# A holder that shows no sign of life for so long has lost its lease. It beats before every write.
SECONDS = 20.0
# How long to wait for others who hold it one after the other.
PATIENCE = 120.0
ENDING = ".lease"
TOKEN, HOLDER, NODE, PROCESS, BEAT = (
    f"headstart.{name}" for name in ("token", "holder", "node", "process", "beat")
)


@dataclass
class Lease:
    """A lease that is held.

    Attributes:
        opened: the store.
        name: of the registered model that stands for it.
        token: nobody else's.
        beats: how often the holder has shown that it lives.
    """

    opened: Store
    name: str
    token: str
    beats: int = 0

    def hold(self) -> None:
        """Show that the holder lives; to be called before every write.

        Raises:
            TrackingError: it was taken over.
        """
        found = _look(self.opened, self.name)
        if found is None or found.tags.get(TOKEN) != self.token:
            raise TrackingError(
                f"{self.name} was taken over while this process waited; what it had begun is completed by "
                "whoever comes next: look at `headstart history`, and run it again if it is not there"
            )
        self.beats += 1
        self.opened.client.set_registered_model_tag(self.name, BEAT, str(self.beats))


def who() -> str:
    """Who acts: HEADSTART_WHO where it is set, else user@host."""
    named = os.environ.get("HEADSTART_WHO", "").strip()
    if named:
        return named
    try:
        user = getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@contextmanager
def held(opened: Store, model: str) -> Iterator[Lease]:
    """Be the only writer of a registered model's aliases until the block ends.

    Args:
        opened: the store.
        model: the registered model's name.

    Raises:
        TrackingError: others held it for two minutes.
    """
    lease = Lease(opened, f"{model}{ENDING}", uuid.uuid4().hex)
    _take(lease)
    try:
        yield lease
    finally:
        _give_back(lease)


def _take(lease: Lease) -> None:
    deadline = time.monotonic() + PATIENCE
    seen: tuple[str, str] | None = None
    since = time.monotonic()
    while not _made(lease):
        found = _look(lease.opened, lease.name)
        if found is None:
            continue
        if found.tags.get(TOKEN) == lease.token:
            return  # a request that was sent twice
        sign = (found.tags.get(TOKEN, ""), found.tags.get(BEAT, ""))
        if sign != seen:
            seen, since = sign, time.monotonic()
        if _is_dead(found.tags) or time.monotonic() - since > SECONDS:
            _break(lease, found)
            continue
        if time.monotonic() > deadline:
            raise TrackingError(
                f"{lease.name} is held by {found.tags.get(HOLDER, 'somebody')} for too long; try again later"
            )
        time.sleep(random.uniform(0.05, 0.15))


def _made(lease: Lease) -> bool:
    from mlflow.exceptions import MlflowException

    tags = {TOKEN: lease.token, HOLDER: who(), NODE: _node(), PROCESS: _process(os.getpid()), BEAT: "0"}
    text = "Held while aliases move; it goes by itself. See docs/aliases.md of Headstart."
    try:
        lease.opened.client.create_registered_model(lease.name, tags=tags, description=text)
    except MlflowException as error:
        # One that went in the moment of the refusal is the same as one that is there.
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return False
    return True


def _look(opened: Store, name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return opened.client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _break(lease: Lease, found: RegisteredModel) -> None:
    """Take a dead holder's lease away; of several who try, one succeeds.

    The new name holds the dead one's token, so whoever comes late cannot give it to a lease made since.
    """
    from mlflow.exceptions import MlflowException

    gone = f"{lease.name}.{found.tags.get(TOKEN, 'unknown')}"
    with contextlib.suppress(MlflowException):
        lease.opened.client.rename_registered_model(lease.name, gone)


def _give_back(lease: Lease) -> None:
    client = lease.opened.client
    # One that was taken over is another's. A store that is away finds our process dead later; and what ended
    # the block is what is to be told.
    with contextlib.suppress(Exception):
        client.rename_registered_model(lease.name, f"{lease.name}.{lease.token}")
    with contextlib.suppress(Exception):
        for left in client.search_registered_models(f"name LIKE '{lease.name}.%'"):
            client.delete_registered_model(left.name)


# ----------------------------------------------------------------------------------------- who is alive here


def _node() -> str:
    """Where a process number means the same; empty where that cannot be known."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""


def _process(number: int) -> str:
    """A process by its number and its start in ticks since the boot, which no clock moves; empty if dead."""
    with contextlib.suppress(OSError, IndexError):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{number} {fields[19]}"
    return ""


def _is_dead(tags: dict[str, str]) -> bool:
    """Whether the holder was a process of this machine, and is no more."""
    node, process = _node(), tags.get(PROCESS, "")
    if not node or tags.get(NODE) != node or not process:
        return False
    number = process.split()[0]
    return number.isdigit() and _process(int(number)) != process
