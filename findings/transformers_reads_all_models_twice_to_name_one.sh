#!/usr/bin/env bash
# transformers: the import of one name reads the source files of all models, each of them twice
#
# Versions: transformers 5.23.0, CPython 3.11.
#
# What one would expect: names are imported lazily, so `from transformers import AutoConfig` reads the files of that class;
# a list of what each model has to offer could be stored with the package, or be made once.
#
# What happens: to find out which names exist, the sources of all models are read and searched for exports when the package
# is imported, and then once more: every file is opened twice. It happens in every process that imports transformers,
# for example in each client that a federation starts on a machine. A model's own files come on top.
#
# Output: 1661 source files of 546 models, 1652 of them twice
#
# What we do: the commands let the second search take what the first has found.
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install --disable-pip-version-check transformers==5.23.0
cat >"$folder/see.py" <<'PYTHON'
import sys
from collections import Counter
from pathlib import PurePath

opened = Counter()


def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".py"):
        if PurePath(arguments[0]).parent.parent.name == "models":
            opened[arguments[0]] += 1


sys.addaudithook(note)
from transformers import AutoConfig  # noqa: F401

twice = sum(times == 2 for times in opened.values())
folders = len({PurePath(path).parent for path in opened})
print(f"{len(opened)} source files of {folders} models, {twice} of them twice")
assert folders > 100 and twice > 0.9 * len(opened), "it reads fewer files now"
PYTHON
"$folder/venv/bin/python" "$folder/see.py"
