"""Code that says what the outputs of a model mean, for people who run it without fedelta."""

from __future__ import annotations

from fedelta.tasks.base import Task
from fedelta.tasks.classification import Classification
from fedelta.tasks.multi_label import MultiLabel
from fedelta.tasks.regression import Regression
from fedelta.tasks.tokens import Tokens


def answer_code(task: Task) -> list[str]:
    """Lines of Python that print the answer to one example.

    They read `logits` of shape [1, C] (or [1, T, C] for T tokens), `names` of the C classes if the task has any, and
    `settings`, the content of `fedelta.json`. Those of numbers need `torch`.
    """
    match task:
        case Regression():
            unit = [f'{name} = torch.tensor(settings["task"]["{name}"])' for name in ("scale", "offset")]
            return [*unit, "print(logits[0] * scale + offset)"]
        case MultiLabel():
            chances = "zip(names, logits[0].sigmoid())"
            return [f"print([name for name, chance in {chances} if chance > {task.threshold:g}])"]
        case Tokens():
            return ["print([names[number] for number in logits[0].argmax(1)])  # of each token"]
        case Classification():
            return ["print(names[logits[0].argmax()])"]
        case _:
            return ["print(logits[0])"]
