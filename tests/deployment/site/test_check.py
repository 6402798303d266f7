"""Settings and data of a site, read in a process of their own."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from fedelta.deployment.server import certificates
from fedelta.deployment.server.certificates import Certificates
from fedelta.deployment.site import check as site_check
from fedelta.deployment.site.check import Address, check, lines, main
from fedelta.deployment.site.folder import Draft, create
from fedelta.errors import DataError, InputError

ADDRESS = {"name": "a", "server": "h:1", "ca": "ca", "key": "key", "state": "state", "max_message_mib": 7}


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Lets another program stand for Python: it prints the lines that it is given, and ends with an exit code."""

    def install(*values: object, code: int = 0, forever: bool = False) -> None:
        script = tmp_path / "python"
        texts = "".join(f"echo {shlex.quote(json.dumps(value))}\n" for value in values)
        script.write_text(f"#!/bin/sh\n{texts}{'exec sleep 60' if forever else ''}\nexit {code}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))

    return install


def test_the_address_comes_before_the_lines_about_the_data(program):
    program({"address": ADDRESS}, {"line": "10 classes"})
    assert list(check(Path("x"))) == [Address("a", "h:1", "ca", "key", "state", 7), "10 classes"]


def test_what_is_wrong_with_the_data_is_raised_as_it_was(program):
    program({"address": ADDRESS}, {"error": "column 'x' is missing.", "hint": "there are 'y' and 'z'."})
    with pytest.raises(InputError, match="column 'x' is missing") as raised:
        list(check(Path("x")))
    assert raised.value.hint == "there are 'y' and 'z'."


def test_a_process_that_dies_is_told(program):
    program({"address": ADDRESS}, code=3)
    with pytest.raises(InputError, match="ended with exit code 3") as raised:
        list(check(Path("x")))
    assert raised.value.hint == "`fedelta site check x` says more."


def test_whoever_reads_no_further_ends_the_process(program):
    program({"address": ADDRESS}, forever=True)
    reader = check(Path("x"))
    assert isinstance(next(reader), Address)
    reader.close()  # would wait for a minute otherwise


def test_the_settings_of_a_site_are_read_before_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "fedelta.deployment.site.data_check.check_site", lambda settings: iter([f"data: {settings.data.source}"])
    )
    files = Certificates(tmp_path)
    certificates.create(files, "fl.example.org")
    create(tmp_path / "site", Draft("kiel", "fl.example.org:9093", "digits", "0-3"), files.authority)
    address, *rest = lines(tmp_path / "site")
    assert address["address"]["name"] == "kiel"
    assert address["address"]["key"] == str(tmp_path / "site" / "site.key")
    assert address["address"]["ca"] == str(tmp_path / "site" / "ca.crt")
    assert rest == [{"line": "data: digits"}]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("no rows.", hint="add some."), {"error": "no rows.", "hint": "add some."}),
        (PermissionError(13, "Permission denied", "/data"), {"error": "Permission denied: /data", "hint": None}),
    ],
)
def test_an_error_is_one_line_of_json(monkeypatch, capsys, error, expected):
    def fail(folder: Path):
        yield {"address": ADDRESS}
        raise error

    monkeypatch.setattr(site_check, "lines", fail)
    monkeypatch.setattr(sys, "argv", ["site_check", "x"])
    main()
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [{"address": ADDRESS}, expected]
