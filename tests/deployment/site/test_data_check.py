"""What `fedelta site` says of a site's data before it joins."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.deployment.talk import write_images
from tests.small import SMALL

from fedelta.deployment.site.account import Account, Due, Limit
from fedelta.deployment.site.data_check import check_site
from fedelta.deployment.site.settings import parse_site
from fedelta.errors import ClassesError, DataError, InputError
from fedelta.privacy.state import Release


def said(folder: Path, recipe: str | None = None, **table: object) -> list[str]:
    return list(check_site(parse_site({"name": "hamburg", "data": {"source": "digits"}} | table, folder), recipe))


def own(folder: Path, labels: str) -> dict[str, object]:
    """The settings of a site with images of its own."""
    rows = [{"label": label, "ward": index % 2} for index, label in enumerate(labels)]
    return {"source": str(write_images(folder / "rows.jsonl", rows)), "test_fraction": 0.25}


def test_data_classes_and_clients_are_told(tmp_path):
    assert said(tmp_path, clients="0-31") == [
        "data: 1437 training rows and 360 test rows of images",
        "classes: 10: '0', '1', '2', '3', '4', '5', '6', '7' and 2 more",
        "clients: 32 of the recipe's partition: 0, 1, 2, 3, 4, 5, 6, 7 and 24 more",
    ]


def test_labels_and_tags_are_called_so(tmp_path):
    assert said(tmp_path, data={"source": "digit-scenes"}, task={"name": "multi-label"})[1].startswith(
        "labels: 10: '0'"
    )
    rows = [{"words": ["maria", "sings"], "tags": tags} for tags in (["B-PER", "O"], ["O", "O"]) * 4]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"source": str(tmp_path / "words.jsonl"), "test_fraction": 0.25}
    assert said(tmp_path, data=data, task={"name": "tokens"})[1] == "tags: 2: 'O', 'B-PER'"


def test_clients_are_named_by_the_data_or_by_the_site(tmp_path):
    data = own(tmp_path, "cat" * 4)
    assert said(tmp_path, data=data)[-1] == "clients: 1, called 'hamburg', which has all of the data"
    assert said(tmp_path, data=data | {"client_column": "ward"})[-1] == "clients: 2, named by the data: 0, 1"


def test_with_a_recipe_the_part_in_its_run_is_told(tmp_path):
    assert said(tmp_path, SMALL, clients=[0, 3])[-1] == "clients: 2: 0, 3, with 11 to 21 examples"
    with pytest.raises(InputError, match="none of this site's clients 6"):
        said(tmp_path, SMALL, clients=[6])


def test_data_that_cannot_be_used_are_told_with_everything_that_helps_here(tmp_path):
    data = own(tmp_path, "cat" * 4)
    with pytest.raises(DataError, match=r"no column 'kind' \(`data.label_column`\), the columns are .*'ward'"):
        said(tmp_path, data=data | {"label_column": "kind"})
    with pytest.raises(DataError, match="has only one class"):
        said(tmp_path, data=own(tmp_path, "c" * 9))
    assert said(tmp_path, data=own(tmp_path, "c" * 8), allow_missing_classes=True)[1] == "classes: 1: 'c'"


def test_a_class_of_the_test_rows_alone_is_a_class_of_a_site_that_may_lack_some(tmp_path):
    write_images(tmp_path / "train.jsonl", [{"label": label} for label in "cacaca"])
    write_images(tmp_path / "test.jsonl", [{"label": "t"}])
    data = {"source": str(tmp_path / "train.jsonl"), "test_source": str(tmp_path / "test.jsonl")}
    assert said(tmp_path, data=data, allow_missing_classes=True)[1] == "classes: 3: 'a', 'c', 't'"
    with pytest.raises(DataError, match="1 rows with labels outside the 2 classes") as raised:
        said(tmp_path, data=data)
    assert not isinstance(raised.value, ClassesError)


def test_a_plug_in_and_a_model_are_told(tmp_path):
    weights = Path(__file__).parents[3] / "src/fedelta/models/bundled/vit-micro"
    assert said(tmp_path, model={"source": str(weights)})[-1] == f"model: {weights}, of the family vit"
    (tmp_path / "mine.py").write_text("raise SystemExit\n")
    with pytest.raises(InputError, match=r"plug-in 'mine.py' fails"):
        said(tmp_path, plugins=["mine.py"])


def test_what_a_site_insists_on_and_has_spent_is_told(tmp_path):
    insists = {"unit": "example", "max_epsilon": 6.0, "max_delta": 1e-5}
    account = Account(tmp_path / "state", Limit(1e-5, is_shared=True))
    (tmp_path / "state").mkdir()
    account.admit("run", {"3": Due({Release(1.0): 1}, "x"), "0": Due({Release(2.0): 1}, "x")})
    assert said(tmp_path, clients="0-3", privacy=insists)[-3:] == [
        "privacy: only runs that protect 'example' or more, and at most epsilon 6 in all runs",
        # Every recipe divides these data anew, so that client 0 may have had the rows of client 3.
        "privacy: epsilon 4.378 is spent for client '0', at delta 1e-05",
        "privacy: epsilon 4.378 is spent for client '3', at delta 1e-05",
    ]
