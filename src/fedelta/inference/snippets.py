"""Code in a model card that loads the adapter and answers for one example, with stock PEFT and with fedelta."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fedelta.inference.origin import Origin
from fedelta.modalities.settings import Preparation
from fedelta.tasks.base import Loader, Task
from fedelta.tasks.code import answer_code
from fedelta.tasks.own_loss import OwnLoss
from fedelta.tasks.regression import Regression

DIRECTORY, BASE = "path/of/this/directory", "path/of/the/base/model"
"""What a reader of the code replaces."""
_EXAMPLES = {"image": '"image.png"', "audio": '"recording.wav"', "text": '"A text."', "words": '"A few words"'}
_QUESTION = '"Who are you?"'


@dataclass(frozen=True)
class Subject:
    """What the code is about.

    Args:
        origin: of the base model.
        modality: name of the kind of examples; "" without one.
        task: what is predicted.
        class_names: in label order, or None.
        preparation: how examples became inputs.
        is_given: whether the base model was an object of the caller's.
        is_native: whether the base model is one of fedelta's own networks.
        extra_inputs: with which the model is called besides.
    """

    origin: Origin
    modality: str
    task: Task
    class_names: tuple[str, ...] | None
    preparation: Preparation
    is_given: bool = False
    is_native: bool = False
    extra_inputs: Mapping[str, object] = field(default_factory=dict)


def block(lines: Sequence[str]) -> list[str]:
    """The lines as a block of Python in Markdown."""
    return ["```python", *lines, "```"]


def ours(subject: Subject) -> list[str]:
    """Code with fedelta."""
    model = "model" if subject.is_given else f'"{BASE}"' if subject.origin.folder else ""
    arguments = ", ".join([f'"{DIRECTORY}"', *([model] if model else [])])
    opening = ["from fedelta import Predictor", "", f"predictor = Predictor.from_adapter({arguments})"]
    if isinstance(subject.task, OwnLoss):
        return [*opening, "module = predictor.module()"]
    if subject.task.name == "language":
        return [*opening, f"print(predictor.generate([{_QUESTION}])[0])"]
    if subject.is_given:
        return [*opening, "print(predictor.predict([row]))  # a row of data, as in the run, without its label"]
    return [*opening, f"print(predictor.predict([{_EXAMPLES.get(subject.modality, '...')}]))"]


def stock(loader: Loader, subject: Subject) -> list[str]:
    """Code with stock PEFT. It ends with the model where only fedelta makes inputs of such examples."""
    if loader.dialogue is not None:
        return _stock_words(loader, subject)
    inputs = _inputs(subject)
    preparing = [name for name in ("AutoImageProcessor", "AutoTokenizer") if any(name in line for line in inputs)]
    return [
        "import json",
        "from pathlib import Path",
        "",
        *(["import torch"] if inputs and isinstance(subject.task, Regression) else []),
        "from peft import PeftModel",
        *(["from PIL import Image"] if "AutoImageProcessor" in preparing else []),
        f"from transformers import {', '.join(sorted([*preparing, loader.auto_class]))}",
        *_helpers(subject),
        "",
        f'here, source = Path("{DIRECTORY}"), {_source(subject.origin)}',
        'settings = json.loads((here / "fedelta.json").read_text())',
        *_base(loader, subject),
        "model = PeftModel.from_pretrained(base, here).eval()",
        *inputs,
        *(_answer(subject) if inputs else []),
    ]


def _base(loader: Loader, subject: Subject) -> list[str]:
    """The base model with a head of the adapter's classes, or numbers."""
    named = ["id2label=dict(enumerate(names))", "label2id={name: number for number, name in enumerate(names)}"]
    outputs = subject.task.num_outputs(subject.class_names or ())
    head = named if subject.class_names else [f"num_labels={outputs}"] * bool(outputs)
    return [
        *(['names = settings["class_names"]'] if subject.class_names else []),
        f"base = {loader.auto_class}.from_pretrained(",
        "    source,",
        # Without it, transformers uses the checkpoint's, and half precision changes the logits.
        '    dtype="float32",',
        *(f"    {argument}," for argument in head),
        "    ignore_mismatched_sizes=True,",
        ")",
    ]


def _inputs(subject: Subject) -> list[str]:
    """Makes `inputs` of one example; nothing where only fedelta can."""
    kind, preparation = subject.modality, subject.preparation
    if kind == "image" and preparation.processor is not None and preparation.value_range in (None, (0, 255)):
        return [
            'processor = AutoImageProcessor.from_pretrained(here, backend="pil")',
            'inputs = processor(Image.open("image.png").convert("RGB"), return_tensors="pt")',
        ]
    if kind not in ("text", "words"):
        return []
    cut = "" if preparation.max_length is None else f", truncation=True, max_length={preparation.max_length}"
    example = _EXAMPLES[kind] if kind == "text" else f"{_EXAMPLES[kind]}.split(), is_split_into_words=True"
    # Byte-level tokenizers would grow the words of a list together; others pass over it.
    apart = ", add_prefix_space=True" if kind == "words" else ""
    return [
        f"tokenizer = AutoTokenizer.from_pretrained(source{apart})",
        f'inputs = tokenizer({example}{cut}, return_tensors="pt")',
    ]


def _answer(subject: Subject) -> list[str]:
    extra = "".join(f", {name}={value!r}" for name, value in subject.extra_inputs.items())
    return [f"logits = model(**inputs{extra}).logits", *answer_code(subject.task)]


def _stock_words(loader: Loader, subject: Subject) -> list[str]:
    """A language model that answers a question."""
    return [
        "from pathlib import Path",
        "",
        "from peft import PeftModel",
        f"from transformers import {loader.auto_class}, AutoTokenizer",
        *_helpers(subject),
        "",
        f'here, source = Path("{DIRECTORY}"), {_source(subject.origin)}',
        f'base = {loader.auto_class}.from_pretrained(source, dtype="float32")',
        "model = PeftModel.from_pretrained(base, here).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(source)",
        'tokenizer.chat_template = (here / "chat_template.jinja").read_text()',
        f'messages = [{{"role": "user", "content": {_QUESTION}}}]',
        "prompt = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        "ids = model.generate(**prompt, max_new_tokens=64, do_sample=False)",
        'print(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]


def _source(origin: Origin) -> str:
    """An expression for what transformers loads the base model from."""
    if origin.bundled:
        return f'str(bundled_path("{origin.bundled}"))'
    return f'"{origin.hub or BASE}"'


def _helpers(subject: Subject) -> list[str]:
    names = ["bundled_path"] * bool(subject.origin.bundled) + ["register_networks"] * subject.is_native
    imported = [f"from fedelta import {', '.join(names)}"] if names else []
    called = ["", "register_networks()  # the base model is one of fedelta's own"] if subject.is_native else []
    return [*imported, *called]
