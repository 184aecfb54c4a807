"""split: divide the samples into train, validation and test, and keep to the label budget.

What is promised, when samples are added to the data later:

* A sample's side is drawn by hashes of what it is, never by its place, its name, or how many there are.
  So it stays on its side.
* Duplicates, near duplicates and groups given by the user are one content group, on one side. One case
  can move a group: an added sample that ties it, by looking nearly like it, to a sample of another
  side. Then the group goes to the side nearer to test: what was tested once is never trained on.
* Proportions are those asked for in expectation, in every class; in a class of n samples they vary with
  the square root of n, as tosses of a coin do. Exact proportions would need samples to move.
* A label budget takes the first samples of one fixed order: 50 labels are among the 100. An added
  sample may enter the budget and push another out, one for one.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from steps import artifacts, data, entry, params
from steps.errors import DataError
from steps.params import Split, SplitSettings

UNUSED = ""
# Of an accepted sample; its texts alone may take more than all of these.
NEEDED = ("id", "label", "split", "group", "content", "near_group", "split_key")


def split(experiment: str) -> None:
    """Write `work/<experiment>/split.parquet`: id and split, which is empty outside of the label budget.

    With resamples there is a column for each further one. Beside it `pool.parquet` holds the place of each
    sample that may be trained on, in the order that budgets take them; -1 for the others.

    Raises:
        DataError: a class has no sample to train on, a split is empty, or the budget is larger than it.
    """
    wanted = params.read_settings(SplitSettings, artifacts.settings_file(experiment, "split"))
    settings, accepted = wanted.split, data.read_accepted(experiment, NEEDED)
    sides = assign(accepted, settings)
    _check_sides(experiment, sides, accepted["label"])
    used = within_budget(accepted, sides, settings)
    columns = {"id": accepted["id"], "split": used}
    for resample in range(2, wanted.resamples + 1):
        columns[data.split_column(resample)] = another_part(accepted, sides, used, settings, resample)
    with artifacts.new_file(artifacts.split_file(experiment)) as partial:
        data.write_table(pd.DataFrame(columns), partial)
    with artifacts.new_file(artifacts.pool_file(experiment)) as partial:
        data.write_table(
            pd.DataFrame({"id": accepted["id"], "place": places(accepted, sides, settings)}), partial
        )
    counts = [f"{name} {_count(used, name)} of {_count(sides, name)}" for name in data.SPLITS]
    entry.say(f"{experiment}: labels used: {', '.join(counts)}")


def _count(sides: pd.Series, name: str) -> str:
    return f"{int((sides == name).sum()):,}"


# --------------------------------------------------------------------------------------------------- sides


def assign(accepted: pd.DataFrame, settings: Split) -> pd.Series:
    """The side of each sample.

    A split the user gave is kept. A validation or test split that is missing is drawn from the samples
    given as train, and samples without a split are drawn like these; but a sample without a split whose
    like is in a given one joins it there.

    Raises:
        DataError: all three splits are given, and yet some samples are in none.
    """
    given = accepted["split"]
    missing = [name for name in data.SPLITS[1:] if not (given == name).any()]
    if not missing and given.isna().any():
        names = accepted["id"][given.isna()].tolist()
        raise DataError(
            f"{len(names)} samples are in none of train, validation and test though all are given, "
            f"e.g. {names[0]}; fill in their split"
        )
    is_open = given.isna() | ((given == "train") & bool(missing))
    groups = content_groups(accepted)
    # The last of train, validation, test that a member of the group is bound to; -1 where none is.
    rank = given.map({name: place for place, name in enumerate(data.SPLITS)}).where(~is_open, -1)
    bound = rank.astype(int).groupby(groups).transform("max").to_numpy()
    drawn = _draw(_position(accepted, groups, settings.salt), missing, settings)
    joined = np.where(bound >= 0, np.array(data.SPLITS)[np.maximum(bound, 0)], drawn)
    # A sample given as train stays there if its like was given elsewhere: validate has told of it.
    joined = np.where((bound >= 0) & (given == "train").to_numpy(), "train", joined)
    return pd.Series(joined, index=accepted.index).where(is_open, given)


def _draw(position: NDArray[np.float64], missing: list[str], settings: Split) -> NDArray[np.str_]:
    """Sides for positions in [0, 1): test lowest, then validation, then train."""
    shares = {"test": settings.test, "validation": settings.validation}
    train = 1 - settings.test - settings.validation
    wanted = {name: share for name, share in shares.items() if name in missing}
    edges = np.cumsum(list(wanted.values())) / (train + sum(wanted.values()))
    return np.array([*wanted, "train"])[np.searchsorted(edges, position, side="right")]


def content_groups(accepted: pd.DataFrame) -> NDArray[np.int64]:
    """A number for each sample that the samples of its content group share.

    Samples are together when they have the same content, nearly the same, or the same group of the
    user's, and with whatever those are together with.
    """
    count = len(accepted)
    rows, nodes, used = [], [], count
    for column in ("content", "near_group", "group"):
        codes = pd.factorize(accepted[column])[0]
        linked = np.flatnonzero(codes >= 0)
        rows.append(linked)
        nodes.append(codes[linked] + used)
        used += codes.max(initial=-1) + 1
    row, node = np.concatenate(rows), np.concatenate(nodes)
    links = coo_array((np.ones(len(row), dtype=bool), (row, node)), shape=(used, used))
    return np.asarray(connected_components(links, directed=False)[1][:count], dtype=np.int64)


def _position(accepted: pd.DataFrame, groups: NDArray[np.int64], salt: str) -> NDArray[np.float64]:
    """Where each group lies in [0, 1): the lowest of its members' own positions.

    A key made from the whole group would change, and with it the side at random, whenever a member
    joins. The lowest position only ever sinks, towards test.
    """
    own = accepted["split_key"].fillna(accepted["id"])
    keys = ("group\0" + accepted["group"]).fillna("content\0" + own)
    positions = pd.Series(_hashed(f"{salt}\0{key}" for key in keys))
    return positions.groupby(groups).transform("min").to_numpy()


def _hashed(keys: Iterable[str]) -> NDArray[np.float64]:
    """A number in [0, 1) for each key."""
    return np.array(
        [int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48 for key in keys], dtype=np.float64
    )


def _check_sides(experiment: str, sides: pd.Series, labels: pd.Series) -> None:
    for name in data.SPLITS:
        if not (sides == name).any():
            raise DataError(
                f"{experiment}: no sample fell to {name}; add data, or raise its share under `split`"
            )
        missing = sorted(set(labels) - set(labels[sides == name]))
        if missing and name == "train":
            count = int((labels == missing[0]).sum())
            raise DataError(
                f"{experiment}: class {missing[0]!r} has no sample to train on (its {count} are in "
                "validation or test); add samples of it, lower `split.test`, or change `split.salt`"
            )
        if missing:
            entry.say(f"{experiment}: warning: no sample of {', '.join(missing)} fell to {name}")


# -------------------------------------------------------------------------------------------------- budget


def within_budget(accepted: pd.DataFrame, sides: pd.Series, settings: Split) -> pd.Series:
    """The sides, made empty for samples outside of the label budget.

    Raises:
        DataError: a budget is larger than its split, or smaller than the number of classes.
    """
    used = sides.copy()
    budgets = {
        "train": settings.train_labels,
        "validation": settings.validation_labels,
        "test": settings.test_labels,
    }
    for name, budget in budgets.items():
        members = accepted[sides == name]
        if budget is None:
            continue
        if budget > len(members):
            raise DataError(
                f"split.{name}_labels: {budget} is more than the {len(members)} samples of {name}; "
                "lower it, or add data"
            )
        classes = members["label"].nunique()
        if name == "train" and budget < classes:
            raise DataError(f"split.train_labels: {budget} is fewer than the {classes} classes; raise it")
        used[in_order(members, settings.salt)[budget:]] = UNUSED
    return used


def another_part(
    accepted: pd.DataFrame, sides: pd.Series, used: pd.Series, settings: Split, resample: int
) -> pd.Series:
    """The splits with another part of the training pool, of the same size; the parts may overlap.

    Raises:
        DataError: there is no other part, the budget takes the whole pool.
    """
    budget, pool = int((used == "train").sum()), accepted[sides == "train"]
    if budget == len(pool):
        raise DataError(
            f"training.resamples: the budget of {budget} labels takes the whole pool; lower "
            "`split.train_labels`, or set resamples to 1"
        )
    other = used.where(used != "train", UNUSED)
    other[in_order(pool, f"{settings.salt}\0resample {resample}")[:budget]] = "train"
    return other


def places(accepted: pd.DataFrame, sides: pd.Series, settings: Split) -> pd.Series:
    """The place of each sample of the training pool in the order that budgets take them; -1 elsewhere."""
    found = pd.Series(-1, index=accepted.index, dtype=np.int64)
    order = in_order(accepted[sides == "train"], settings.salt)
    found[order] = np.arange(len(order))
    return found


def in_order(members: pd.DataFrame, salt: str) -> pd.Index:
    """The samples of a split in the order that budgets take them.

    Every beginning of the order holds the classes in their proportions, to within one sample, and one
    sample of each class before the second of any.
    """
    own = members["split_key"].fillna(members["id"])
    order = pd.DataFrame(
        {
            "label": members["label"],
            "id": members["id"],
            "hash": _hashed(f"{salt}\0budget\0{key}" for key in own),
        }
    ).sort_values(["hash", "id"])
    order["rank"] = order.groupby("label").cumcount()
    order["size"] = order.groupby("label")["id"].transform("size")
    # Webster's way of sharing out seats: with a larger budget nobody ever loses one.
    order["turn"] = ((order["rank"] + 0.5) / order["size"]).where(order["rank"] > 0, 0.0)
    return order.sort_values(["turn", "size", "label"], ascending=[True, False, True], kind="stable").index


def main() -> int:
    """Run `python -m steps.split <experiment>`."""
    return entry.run(split, "experiment")


if __name__ == "__main__":
    sys.exit(main())
