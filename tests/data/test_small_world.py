from __future__ import annotations

import re

from fedelta.data.small_world import DAYS, MONTHS, OPPOSITES, QUESTIONS, SOUNDS, instructions, statements
from fedelta.data.sources import DataSource, read
from fedelta.tasks.language import Language


def test_texts_and_instructions_follow_from_their_seed():
    assert list(statements(1, 5)) == list(statements(1, 5)) != list(statements(2, 5))
    assert instructions(1, 3, 1) == instructions(1, 3, 1) != instructions(2, 3, 1)


def test_every_sum_is_right():
    sums = [match for text in statements(0, 300) for match in re.findall(r"(\d+) and (\d+) make (\d+)\.", text)]
    assert len(sums) > 50
    assert all(int(left) + int(right) == int(total) for left, right, total in sums)


def test_every_answer_is_right():
    train, test = instructions(0, 20, 5)
    opposites = OPPOSITES | {right: left for left, right in OPPOSITES.items()}
    for row in (*train, *test):
        prompt, response = row["prompt"], row["response"]
        words = re.findall(r"\w+", prompt)
        match row["client"]:
            case "sum":
                assert sum(map(int, re.findall(r"\d+", prompt))) == int(response)
            case "day":
                assert DAYS[(DAYS.index(words[-1]) + 1) % 7] == response
            case "month":
                assert MONTHS[(MONTHS.index(words[-1]) + 1) % 12] == response
            case "opposite":
                assert opposites[words[-1]] == response
            case "sound":
                assert response in {SOUNDS[word] for word in words if word in SOUNDS}
            case "where":
                assert f"went to the {response.removeprefix('in the ')}." in prompt
            case "colour":
                assert f"a {response} {words[-1]}." in prompt
            case "owner":
                assert re.search(rf"{response} has a \w+ {words[-1]}\.", prompt)


def test_no_prompt_of_the_test_is_one_of_training():
    train, test = instructions(0, 200, 50)
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in test}
    # Sums are other ones, and not only asked for in other words.
    added = [
        {tuple(re.findall(r"\d+", row["prompt"])) for row in rows if row["client"] == "sum"} for rows in (train, test)
    ]
    assert not added[0] & added[1]


def test_it_is_a_data_source_of_eight_clients():
    raw = read(DataSource(source="small-world", client_column="client"), seed=0, task=Language())
    assert sorted(set(raw.train_ids.names)) == sorted(QUESTIONS)
    assert (len(raw.train), len(raw.test)) == (1600, 400)
