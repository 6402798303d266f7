"""What leaves a site when something is wrong."""

from __future__ import annotations

import pytest

from fedelta.deployment.site.refusals import told
from fedelta.errors import ClassesError, ConfigError, DataError, InputError, PayloadError


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PayloadError("the payload is for other tensors: fingerprint aa, expected bb."), "the payload is for other"),
        (InputError("data source '/home/ann/x y.csv' is bad"), "data source '…' is bad"),
        (InputError("cannot read /home/ann/x.csv: no such file"), "cannot read …: no such file"),
        (InputError("cannot read ~/x.csv, ./y.csv or ../z"), "cannot read …, … or …"),
        (InputError("the site's model 'bundled:vit' is 3/4 of `a/b`"), "the site's model 'bundled:vit' is 3/4 of"),
        (DataError("2 rows, such as 'Ann' in row 3 of column 'age'"), "2 rows, such as '…' in row 3 of column 'age'"),
        (DataError("a client's text \"Ann's\" is no label"), 'a client\'s text "…" is no label'),
        (ClassesError("data source '/a/b': no class 'fox'"), "data source '…': no class 'fox'"),
    ],
)
def test_paths_and_values_stay_at_the_site(error, reason):
    assert told(error, ["age"])[0].startswith(reason)


def test_hints_are_told_alike_and_texts_are_cut():
    assert told(InputError("x", hint="look at /var/log"))[1] == "look at …"
    assert len(told(InputError("x" * 9999))[0]) == 2000


def test_a_site_that_insists_on_privacy_tells_no_numbers_of_its_data():
    error = DataError("row 17 has 3.5e4, -12 to 4,000 are expected in 8 columns of x2")
    assert told(error, hides_numbers=True)[0] == "row … has …, … to … are expected in … columns of x2"
    assert told(error)[0] == error.message
    assert told(ConfigError(["`client.lr` is 17"]), hides_numbers=True)[0].endswith("is 17")
