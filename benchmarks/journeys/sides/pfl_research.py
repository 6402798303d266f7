"""pfl-research: `FederatedAveraging` and stock PEFT, in its simulated backend."""

from functools import partial

import torch
from given import clients, model, test
from peft import LoraConfig, get_peft_model
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.aggregate_metrics_to_disk import AggregateMetricsToDisk
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn.functional import cross_entropy


class Tuned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = get_peft_model(
            model, LoraConfig(r=8, lora_alpha=16, target_modules=["0", "2"], modules_to_save=["5"])
        )

    def loss(self, images, labels):
        return cross_entropy(self.net(images), labels)

    def metrics(self, images, labels):
        return {"accuracy": Weighted((self.net(images).argmax(1) == labels).sum().item(), len(labels))}


tuned = Tuned()
trained = [value for value in tuned.parameters() if value.requires_grad]
sampler = get_user_sampler("minimize_reuse", list(clients))
data = FederatedDataset(lambda name: PyTorchTensorDataset(clients[name], user_id=name), sampler)
evaluation = CentralEvaluationCallback(PyTorchTensorDataset(test))
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=5, evaluation_frequency=1, train_cohort_size=len(clients), val_cohort_size=0
    ),
    SimulatedBackend(training_data=data, val_data=data),
    PyTorchModel(tuned, partial(torch.optim.SGD, momentum=0.9), torch.optim.SGD(trained, lr=1.0)),
    NNTrainHyperParams(local_num_epochs=2, local_learning_rate=0.02, local_batch_size=16),
    callbacks=[evaluation, AggregateMetricsToDisk("report/metrics.csv")],
)
print(tuned.metrics(*test)["accuracy"].overall_value)
