#!/usr/bin/env bash
# transformers: a byte-level tokenizer that is given a list of words reads them as one word, without a warning
#
# Versions: transformers 5.23.0 and 4.57.1, CPython 3.11.
#
# What one would expect: `tokenizer(["the", "king"], is_split_into_words=True)` gives the tokens of "the king", or an error.
# Tags for each word (names, parts of speech) are trained on such lists.
#
# What happens: byte-level tokenizers (GPT-2, RoBERTa) mark a word by the space before it, which the words of a list do not
# have. Version 4 refused the call unless the tokenizer was made with `add_prefix_space=True`. Version 5 answers: the words
# get the tokens of "theking", which the model has not seen at the beginning of words, and `word_ids` looks as it should.
#
# What we do: a trial on two words shows what a tokenizer needs, and the words of a list get a space (modalities/words.py).
#
# Fails if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat >"$folder/see.py" <<'PYTHON'
import json
import pathlib
import sys
import tempfile

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

alphabet = pre_tokenizers.ByteLevel.alphabet()
learned = Tokenizer(models.BPE())
learned.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
learned.train_from_iterator(["the king and the queen saw the king"] * 4, trainer)
files = pathlib.Path(tempfile.mkdtemp(dir=sys.argv[1]))
learned.model.save(str(files))
vocabulary = json.loads((files / "vocab.json").read_text())
if transformers.__version__.startswith("4."):
    tokenizer = transformers.GPT2TokenizerFast(str(files / "vocab.json"), str(files / "merges.txt"))
else:
    merges = [tuple(line.split()) for line in (files / "merges.txt").read_text().splitlines()[1:]]
    tokenizer = transformers.GPT2Tokenizer(vocab=vocabulary, merges=merges)

print(transformers.__version__)
text = tokenizer.convert_ids_to_tokens(tokenizer("the king")["input_ids"])
print("  as a text:", text)
try:
    encoded = tokenizer(["the", "king"], is_split_into_words=True)
except AssertionError as error:
    print("  as a list:", error)
    assert transformers.__version__.startswith("4."), "it refuses, too"
else:
    words = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    print("  as a list:", words, encoded.word_ids(), repr(tokenizer.decode(encoded["input_ids"])))
    assert words != text and tokenizer.decode(encoded["input_ids"]) == "theking", "the words are apart now"
PYTHON
for version in 4.57.1 5.23.0; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" -q install --disable-pip-version-check "transformers==$version"
  HF_HUB_OFFLINE=1 "$folder/$version/bin/python" "$folder/see.py" "$folder"
done
