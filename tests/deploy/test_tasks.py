"""Language models and tags deployed: two sites with texts of their own, as real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.deploy.harness import Federation
from tests.small_language import dialogues, small_config, write_model, write_table
from tests.test_token_runs import CONFIG as TAGS
from tests.test_token_runs import write_model as write_tagger
from tests.test_token_runs import write_texts

pytestmark = [pytest.mark.deploy, pytest.mark.allow_hosts(["127.0.0.1"])]

FARMS = {"hamburg": ("farm 0", "farm 1", "farm 2"), "kiel": ("farm 3", "farm 4", "farm 5")}
DEPLOYED = """
[runtime]
name = "flower"

[deployment]
evaluate = "sites"
start_seconds = 60.0
round_seconds = 90.0
"""


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """A server, and two sites whose clients are farms with dialogues."""
    with Federation(tmp_path_factory.mktemp("speakers")) as federation:
        federation.start_server()
        model = write_model(federation.folder / "model")
        for name, farms in FARMS.items():
            table = federation.folder / f"{name}.jsonl"
            write_table(table, [row for row in dialogues(90) if row["client"] in farms])
            data = {"source": str(table), "client_column": "client", "max_length": 48}
            settings = {"data": data, "model": {"source": str(model)}, "task": {"name": "language"}}
            federation.add_site(name, settings)
            federation.register(name)
            federation.sites[name].run()
        for site in federation.sites.values():
            site.wait_until_joined()
        yield federation


def test_a_language_model_is_tuned_at_sites_that_answer_for_themselves(speakers: Federation) -> None:
    recipe = small_config(speakers.folder / "model", speakers.folder / "none.jsonl") + DEPLOYED
    run = speakers.deploy(recipe, "speakers", "data.source=sites", "strategy.clients_per_round=6").wait()
    first, last = run.rounds
    assert last["measures"]["test_loss"] < first["measures"]["test_loss"]
    assert {"exact_match", "rouge_l"} <= last["measures"].keys()
    assert [entry["measures"].keys() for entry in last["sites"]] == [last["measures"].keys()] * 2
    said = speakers.command("predict", "predict", run.path, "--prompt", "What does the cow do?", "--max-tokens", "4")
    assert said.strip()


def test_a_tagger_is_tuned_at_the_same_sites_with_other_texts(speakers: Federation) -> None:
    write_tagger(speakers.folder / "bert")
    for number, (name, site) in enumerate(speakers.sites.items()):
        for place, size in (("train", 60), ("test", 20)):
            path = speakers.folder / f"{name}-texts" / f"{place}.parquet"
            path.parent.mkdir(exist_ok=True)
            write_texts(path, size, seed=10 * number + size)
        model = {"source": str(speakers.folder / "bert")}
        site.change({"data": {"source": str(path.parent)}, "model": model, "task": {"name": "tokens"}})
        site.kill()
        site.run()
    for site in speakers.sites.values():
        site.wait_until_joined()
    recipe = TAGS.replace("FOLDER", str(speakers.folder)).replace("clients_per_round = 3", "clients_per_round = 2")
    settings = ("data.source=sites", "data.test_source=", "data.client_column=")
    run = speakers.deploy(recipe + DEPLOYED, "taggers", *settings).wait()
    assert run.rounds[-1]["measures"]["entity_f1"] > 0.8
    said = speakers.command("tag", "predict", run.path, "king maria visits the old oslo")
    assert "PER 1-2, LOC 6-6" in said
