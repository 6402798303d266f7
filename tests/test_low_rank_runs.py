"""Low-rank aggregation in whole runs: resumed, private, evaluated, and as an adapter of stock PEFT."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.report.synthetic import history_of
from tests.small import stop_after, write_small

from fedelta.aggregation.low_rank import paths_of
from fedelta.errors import CheckpointError
from fedelta.evaluation import evaluate_adapter
from fedelta.experiment import Experiment
from fedelta.inference.adapter import read_adapter
from fedelta.inference.folding import folded_pairs
from fedelta.inference.predict import Predictor
from fedelta.inspection import inspect
from fedelta.personalization import personalize
from fedelta.record.checkpoint import load
from fedelta.tuning.lora import LoraLinear

RANKS = ["tuning.r=4", "tuning.rank_by_client.ranks=[1, 2, 4]"]
COMPARED = ("rounds.jsonl", "ledger.jsonl", "adapter/adapter_model.safetensors")


@pytest.mark.parametrize("name", ["ffa", "rolora", "fedsa", "hlora", "flora", "fedex"])
def test_an_interrupted_run_ends_with_the_same_bits(name: str, tmp_path: Path):
    path, settings = write_small(tmp_path), [f"aggregation.name={name}", *RANKS]
    Experiment.from_toml(path, settings).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(path, settings).run(tmp_path / "stopped", on_round=stop_after(2))
    Experiment.from_toml(path, settings).resume(tmp_path / "stopped")
    for file in COMPARED:
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()


@pytest.mark.parametrize("name", ["flora", "fedex"])
@pytest.mark.parametrize("use_rslora", ["true", "false"])
def test_what_is_carried_is_in_the_adapter_and_the_run_measures_the_same(name: str, use_rslora: str, tmp_path: Path):
    settings = [f"aggregation.name={name}", f"tuning.use_rslora={use_rslora}", "strategy.num_rounds=2"]
    result = Experiment.from_toml(write_small(tmp_path), settings).run(tmp_path / "run")
    params = load(result.path / "checkpoint" / "state.safetensors").params
    pairs, _ = folded_pairs(params)
    adapter = read_adapter(result.path / "adapter")
    config = json.loads((result.path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert not any("carried" in key for key in adapter.params)
    for path in paths_of(params):
        rank = pairs[f"{path}.lora_A"].shape[0]
        a, b, c, d = (params[f"{path}.{factor}"] for factor in ("lora_A", "lora_B", "carried_A", "carried_B"))
        assert rank > 2
        assert torch.allclose(pairs[f"{path}.lora_B"] @ pairs[f"{path}.lora_A"], b @ a + d @ c, atol=1e-5)
    measured = evaluate_adapter(result.path)
    assert measured.measures["accuracy"] == result.summary["final_accuracy"]
    # The scale of every layer is that of the run, 16 / 2 or 16 / sqrt 2.
    predictor = Predictor.open(result.path)
    scales = {module.scale for module in predictor.backbone.module.modules() if isinstance(module, LoraLinear)}
    expected = 16 / 2**0.5 if use_rslora == "true" else 8.0
    assert all(scale == pytest.approx(expected) for scale in scales)
    assert scales


@pytest.mark.parametrize(
    "privacy",
    [
        ["privacy.unit=example"],
        ["privacy.unit=example", "aggregation.name=rolora"],
        ["privacy.unit=client", "strategy.mean.name=uniform"],
    ],
)
def test_private_runs_send_and_change_b_only(privacy: list[str], tmp_path: Path):
    noise = ["privacy.target_delta=1e-3", "privacy.noise_multiplier=1.0", "privacy.clipping_norm=1.0"]
    settings = ["aggregation.name=ffa", "strategy.num_rounds=1", *noise, *privacy]
    experiment = Experiment.from_toml(write_small(tmp_path), settings)
    before = experiment.assembly.params
    after = experiment.run(tmp_path / "run", writes_page=False).params
    for path in paths_of(before):
        assert torch.equal(after[f"{path}.lora_A"], before[f"{path}.lora_A"])
        assert after[f"{path}.lora_B"].all()  # noise in every element


def test_a_client_of_a_run_with_local_factors_has_a_model_of_its_own(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    result = Experiment.from_toml(write_small(tmp_path), ["aggregation.name=fedsa"]).run(tmp_path / "run")
    client = next(iter(json.loads((result.path / "rounds.jsonl").read_text().splitlines()[-1])["cohort"]))
    models = [Predictor.open(result.path, client)]
    assert "keeps its own" not in caplog.text
    models.append(Predictor.open(result.path))
    assert "each client of the run" in caplog.text
    assert "keeps its own lora_B (`aggregation.name` is 'fedsa')" in caplog.text
    factors = [
        next(module.lora_B for module in model.backbone.module.modules() if isinstance(module, LoraLinear))
        for model in models
    ]
    assert factors[0].any()
    assert not factors[1].any()
    assert evaluate_adapter(result.path).measures["accuracy"] == result.summary["final_accuracy"]
    assert history_of(result.path).misfits == ()


def transfers(path: Path) -> list[dict[str, int]]:
    rows = [json.loads(line) for line in (path / "ledger.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("client_id") is not None]


@pytest.mark.parametrize("name", ["plain", "ffa", "rolora", "fedsa", "hlora", "flora", "fedex"])
def test_inspect_gives_the_lengths_that_a_run_sends(name: str, tmp_path: Path):
    experiment = Experiment.from_toml(write_small(tmp_path), [f"aggregation.name={name}", *RANKS])
    pairs = experiment.assembly.federation.pairs
    assert pairs is not None
    sizes = inspect(experiment.config)
    of_rank = {row.rank: row for row in sizes.ranks}
    rows = transfers(experiment.run(tmp_path / "run", writes_page=False).path)

    ranks = {row["client_id"]: pairs.ranks[row["client_id"]] for row in rows}
    assert set(ranks.values()) <= set(of_rank) == {1, 2, 4}
    assert len(set(ranks.values())) > 1
    first = [row for row in rows if row["round"] == 1]
    for row in first:
        is_up, expected = row["direction"] == "up", of_rank[ranks[row["client_id"]]]
        assert row["payload_bytes"] == (expected.payload_bytes if is_up else expected.download_bytes)
    most = max(row["payload_bytes"] for row in rows if row["direction"] == "down")
    if name in ("flora", "fedex"):
        assert sizes.largest_download_bytes is not None
        assert sizes.download_bytes < most <= sizes.largest_download_bytes
    else:
        assert sizes.largest_download_bytes is None
        assert most <= sizes.download_bytes


@pytest.mark.parametrize("name", ["flora", "fedex"])
@pytest.mark.parametrize("num_rounds", [2, 3, 6])
def test_inspect_gives_the_length_of_the_last_download_with_what_is_carried(name: str, num_rounds: int, tmp_path: Path):
    # Pairs of rank 2 of 3 clients are 6 rows a round, of 64 numbers, and a whole layer has 32 x 32: so after 2 rounds
    # 12 rows are carried, and after 5 the layers themselves.
    settings = [f"aggregation.name={name}", f"strategy.num_rounds={num_rounds}"]
    experiment = Experiment.from_toml(write_small(tmp_path), settings)
    rows = transfers(experiment.run(tmp_path / "run", writes_page=False).path)
    last = {row["payload_bytes"] for row in rows if row["direction"] == "down" and row["round"] == num_rounds}
    assert last == {inspect(experiment.config).largest_download_bytes}


@pytest.mark.parametrize("settings", [["aggregation.name=fedex"], ["aggregation.name=flora"], RANKS])
def test_a_byte_budget_is_kept_with_what_is_carried_and_with_ranks_that_differ(settings: list[str], tmp_path: Path):
    # 18 exchanges: of 4 kB in round 1, and of 12 kB when 4 layers of 32 x 32 are carried in float16.
    budget = ["strategy.name=fedlama-auto", "strategy.phi=3", "strategy.num_rounds=6", "client.local_epochs="]
    experiment = Experiment.from_toml(write_small(tmp_path), [*settings, *budget, "byte_budget_mib=0.08"])
    result = experiment.run(tmp_path / "run", writes_page=False)
    assert result.summary["rounds"] == 6
    assert sum(row["payload_bytes"] for row in transfers(result.path)) <= 0.08 * 2**20


@pytest.mark.parametrize("ranks", [[2, 1, 2, 1, 2, 1], [2, 2, 2, 2, 2, 2]])
def test_a_run_is_not_resumed_with_other_ranks(ranks: list[int], tmp_path: Path):
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps({str(client): 1 + client % 2 for client in range(6)}))
    settings = [f"tuning.rank_by_client.file={file}", "aggregation.name=hlora"]
    path = write_small(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(path, settings).run(tmp_path / "run", on_round=stop_after(1))
    file.write_text(json.dumps(dict(enumerate(ranks))))
    with pytest.raises(CheckpointError, match="the ranks of the clients are not those that the run began with"):
        Experiment.from_toml(path, settings).resume(tmp_path / "run")


@pytest.mark.parametrize("other", [[], ["tuning.rank_by_client.ranks=[2, 2]"]])
def test_a_run_is_not_resumed_with_other_settings_of_ranks(other: list[str], tmp_path: Path):
    path, method = write_small(tmp_path), "aggregation.name=hlora"
    with pytest.raises(KeyboardInterrupt):
        Experiment.from_toml(path, [method, "tuning.rank_by_client.ranks=[1, 2]"]).run(
            tmp_path / "run", on_round=stop_after(1)
        )
    with pytest.raises(CheckpointError, match=r"`tuning.rank_by_client.ranks` is .*, the run began with \[1, 2\]"):
        Experiment.from_toml(path, [method, *other]).resume(tmp_path / "run")


@pytest.mark.parametrize("name", ["plain", "ffa", "fedsa", "hlora", "fedex"])
def test_clients_that_a_run_with_ranks_held_out_fine_tune_all_rows_of_its_pairs(name: str, tmp_path: Path):
    file = tmp_path / "ranks.json"
    file.write_text(json.dumps({str(client): 1 + client % 2 for client in range(4)}))
    held_out = ["personalization.held_out=[4, 5]", "personalization.lrs=[0.01]", "strategy.num_rounds=2"]
    settings = [f"aggregation.name={name}", f"tuning.rank_by_client.file={file}", *held_out]
    result = Experiment.from_toml(write_small(tmp_path), settings).run(tmp_path / "run", writes_page=False)
    record = personalize(result.path)
    assert {row["client_id"] for row in record["scopes"]["all"]["clients"]} == {4, 5}
    file.write_text(json.dumps(dict.fromkeys(map(str, range(4)), 2)))
    with pytest.raises(CheckpointError, match="the ranks of the clients are not those that the run began with"):
        personalize(result.path)


@pytest.mark.parametrize("name", ["plain", "ffa", "rolora", "fedsa", "hlora"])
def test_clients_of_lower_depth_and_rank_send_what_they_hold(name: str, tmp_path: Path):
    tiers = ["exits.tiers=[1, 2]", "tuning.rank_by_client.ranks=[1, 2]", "tuning.rank_by_client.assignment=tier"]
    settings = [f"aggregation.name={name}", "tuning.name=exit-heads+lora", "strategy.num_rounds=2", *tiers]
    experiment = Experiment.from_toml(write_small(tmp_path), settings)
    federation = experiment.assembly.federation
    assert federation.tiers is not None
    assert federation.pairs is not None
    depths, ranks = federation.tiers.depths, federation.pairs.ranks
    assert all(ranks[client] == depth for client, depth in depths.items())
    assert len(set(ranks.values())) == 2
    result = experiment.run(tmp_path / "run", writes_page=False)
    for record in map(json.loads, (result.path / "rounds.jsonl").read_text().splitlines()):
        assert not record["rejections"]
    sent: dict[int, set[int]] = {1: set(), 2: set()}
    for row in map(json.loads, (result.path / "ledger.jsonl").read_text().splitlines()):
        if row.get("direction") == "up":
            sent[ranks[row["client_id"]]].add(row["payload_bytes"])
    assert max(sent[1]) < min(sent[2])
