"""pfl-research: `FederatedAveraging` with its simulated backend, in one process of a cohort that may be shared."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path

import numpy as np
import torch
from benchmarks.peers.loaded import Loaded, load
from benchmarks.peers.talk import Params, Talk
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn

MANY_ROUNDS = 1_000_000


class Network(nn.Module):
    """A model with the two methods that pfl asks for."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def loss(self, pixels: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.model(pixels), labels)

    def metrics(self, pixels: Tensor, labels: Tensor) -> dict[str, Weighted]:
        return {"loss": Weighted(self.loss(pixels, labels).item() * len(labels), len(labels))}


class Rounds(TrainingProcessCallback):
    """Waits after every round.

    Args:
        talk: of the first process; None in others, which wait for the first.
        loaded: the work.
    """

    def __init__(self, talk: Talk | None, loaded: Loaded) -> None:
        self.talk, self.loaded, self.number = talk, loaded, 1

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.number += 1
        return not self.goes_on(lambda: self.loaded.tuned), Metrics()

    def goes_on(self, params: Params | None = None) -> bool:
        """Whether there is another round, for all processes."""
        answer = torch.tensor(self.talk is None or self.talk.wait(params))
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(answer, 0)
        return bool(answer)


def run(folder: Path, threads: int, talk: Talk | None) -> None:
    """Runs rounds for as long as they are wanted."""
    torch.set_num_threads(threads)
    loaded = load(folder)
    work = loaded.work
    rounds = Rounds(talk, loaded)
    if not rounds.goes_on():
        return

    def dataset_of(client: int) -> PyTorchTensorDataset:
        # pfl goes through a data set in its order, so it gets the rows of all epochs in the order of the round's steps.
        rows = loaded.steps(rounds.number, client).flatten()
        return PyTorchTensorDataset((loaded.pixels[rows], loaded.labels[rows]), user_id=str(client))

    np.random.seed(0)  # noqa: NPY002 pfl draws from it
    clients = itertools.cycle(range(work.num_clients))
    data = FederatedDataset(dataset_of, lambda: next(clients))
    model = PyTorchModel(
        Network(loaded.model),
        local_optimizer_create=partial(torch.optim.SGD, fused=True),
        central_optimizer=torch.optim.SGD(loaded.tuned.values(), lr=1.0),
    )
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=MANY_ROUNDS,
            evaluation_frequency=MANY_ROUNDS,
            train_cohort_size=work.num_clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch_size
        ),
        callbacks=[rounds],
    )
