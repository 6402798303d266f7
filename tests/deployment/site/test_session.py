"""One process for each site, and what it knows of the one before."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

from fedelta.deployment.site.session import Session, only_process
from fedelta.errors import InputError


def test_a_second_process_for_the_same_site_is_refused(tmp_path):
    state = tmp_path / "state"
    message = "another process serves this site already"
    with only_process(state), pytest.raises(InputError, match=message), only_process(state):
        pass
    with only_process(state):  # free again
        pass
    assert stat.S_IMODE(state.stat().st_mode) == 0o700


def test_the_lock_is_free_after_a_kill(tmp_path):
    program = "import os, sys, pathlib; from fedelta.deployment.site.session import only_process\n"
    program += "with only_process(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False).returncode == -9
    with only_process(tmp_path):
        pass


def test_a_session_that_did_not_end_is_known_to_the_next_process(tmp_path):
    with only_process(tmp_path) as session:
        assert session.lost() is None
        session.begin(2**63 + 5)
    with only_process(tmp_path) as session:
        assert session.lost() == 2**63 + 5
        session.end()
        assert session.lost() is None
        session.end()


def test_a_copy_of_the_folder_leaves_the_session_of_the_original_alone(tmp_path):
    original, copy = tmp_path / "a" / "session.json", tmp_path / "b" / "session.json"
    for path in (original, copy):
        path.parent.mkdir()
    Session(original).begin(7)
    copy.write_bytes(original.read_bytes())
    assert Session(copy).lost() is None


def test_a_session_of_another_machine_is_left_alone(tmp_path, monkeypatch):
    Session(tmp_path / "session.json").begin(7)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    assert Session(tmp_path / "session.json").lost() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"number": null, "place": 1}'])
def test_a_damaged_record_of_a_session_is_no_session(tmp_path, text):
    (tmp_path / "session.json").write_text(text)
    assert Session(tmp_path / "session.json").lost() is None
