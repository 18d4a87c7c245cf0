import math
from collections import namedtuple

import pytest
import torch
import torchvision

from prune2deploy.errors import DataError, TrainingError
from prune2deploy.train import Classification, Task, distillation_loss, load_task
from prune2deploy.train.tasks import task_distillation_loss

Aux = namedtuple("Aux", ["logits", "aux_logits"])
TwoAux = namedtuple("TwoAux", ["logits", "aux_logits2", "aux_logits1"])


def test_classification_is_a_task():
    assert isinstance(Classification(), Task)
    assert (Classification().metric, Classification().higher_is_better) == ("top1", True)


def test_loss_is_the_cross_entropy():
    loss = Classification().loss(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(4))  # probability 1/4


def test_label_smoothing_spreads_the_target():
    smooth = Classification().with_label_smoothing(0.2)
    loss = smooth.loss(torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([0]))
    # targets 0.9 and 0.1 of probabilities 1/4 and 3/4
    assert float(loss) == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))


def test_auxiliary_heads_join_the_loss():
    task, target = Classification(), torch.tensor([1, 0])
    main, first, second = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    alone = [float(task.loss(logits, target)) for logits in (main, first, second)]
    one = task.loss(Aux(main, first), target)
    assert float(one) == pytest.approx(alone[0] + 0.4 * alone[1])
    two = task.loss(TwoAux(main, first, second), target)
    assert float(two) == pytest.approx(alone[0] + 0.3 * alone[1] + 0.3 * alone[2])
    assert float(task.loss(Aux(main, None), target)) == pytest.approx(alone[0])


@pytest.mark.filterwarnings("ignore:.*init")
def test_googlenet_trains_with_its_auxiliary_heads():
    model = torchvision.models.googlenet(num_classes=6, aux_logits=True, init_weights=False)
    model.train()
    loss = Classification().loss(model(torch.rand(2, 3, 64, 64)), torch.tensor([1, 5]))
    loss.backward()
    assert model.aux1.fc2.weight.grad.abs().sum() > 0
    assert model.aux2.fc2.weight.grad.abs().sum() > 0


def test_evaluate_counts_over_all_batches():
    # Class 9 is always first, then 8, 7, 6, 5: top-5 holds 5..9.
    logits = torch.arange(10.0)
    loader = [(torch.zeros(3, 1), torch.tensor([9, 9, 5])), (torch.zeros(1, 1), torch.tensor([0]))]
    figures = Classification().evaluate(lambda x: logits.expand(len(x), -1), loader)
    assert figures["top1"] == 50.0
    assert figures["top5"] == 75.0
    total = math.log(sum(math.exp(i) for i in range(10)))
    expected = ((total - 9) * 2 + (total - 5) + total) / 4
    assert figures["loss"] == pytest.approx(expected, rel=1e-5)


def test_top5_is_left_out_where_it_says_nothing():
    loader = [(torch.zeros(2, 1), torch.tensor([0, 1]))]
    figures = Classification().evaluate(lambda x: torch.eye(2, 5), loader)
    assert set(figures) == {"top1", "loss"}
    assert figures["top1"] == 100.0


def test_evaluating_on_nothing_is_an_error():
    with pytest.raises(DataError, match="no images"):
        Classification().evaluate(lambda x: x, [])


def test_more_classes_in_the_data_than_outputs():
    with pytest.raises(DataError, match=r"from 1 to 4, the model has 3 outputs"):
        Classification().loss(torch.zeros(2, 3), torch.tensor([1, 4]))
    with pytest.raises(DataError, match=r"3 outputs"):
        Classification().evaluate(
            lambda x: torch.zeros(1, 3), [(torch.zeros(1), torch.tensor([3]))]
        )


def test_output_that_is_no_logits():
    with pytest.raises(TrainingError, match=r"shape \(2, 3, 4, 4\).*task: file\.py:MyTask"):
        Classification().outputs(torch.zeros(2, 3, 4, 4))
    with pytest.raises(TrainingError, match="returned list"):
        Classification().outputs([torch.zeros(2, 3)])


def test_agreement_is_the_share_of_equal_classes():
    a = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    b = torch.tensor([[5.0, 0], [0, 5], [0, 5], [0, 5]])
    assert Classification().agreement({"logits": a}, {"logits": b}) == 0.75
    assert Classification().outputs(Aux(a, None))["logits"] is a


def test_distillation_loss_of_hinton():
    student, teacher = torch.tensor([[0.0, 2.0]]), torch.tensor([[2.0, 0.0]])
    # softmax of (1, 0) is (0.731059, 0.268941); the divergence 0.462117 times 4.
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(1.848469, abs=1e-5)
    assert float(distillation_loss(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-7)


def test_distillation_loss_is_a_mean_over_samples_and_places():
    student = torch.tensor([0.0, 2.0]).view(1, 2, 1, 1).expand(3, 2, 4, 5)
    teacher = torch.tensor([2.0, 0.0]).view(1, 2, 1, 1).expand(3, 2, 4, 5)
    assert float(distillation_loss(student, teacher, 2.0)) == pytest.approx(1.848469, abs=1e-5)


def test_a_task_may_bring_its_own_distillation():
    class Own(Classification):
        def distill_loss(self, student, teacher, temperature):
            return (student - teacher).sum() * temperature

    loss = task_distillation_loss(Own(), torch.tensor([3.0]), torch.tensor([1.0]), 2.0)
    assert float(loss) == 4.0


TASK_FILE = """
from prune2deploy.train import Classification

class Mine(Classification):
    pass

class Half:
    metric = "iou"
    def loss(self, output, target): ...

class Needy:
    def __init__(self, size): ...
"""


def test_tasks_are_loaded_by_name_or_file(tmp_path):
    (tmp_path / "tasks.py").write_text(TASK_FILE)
    assert load_task("classification", tmp_path) == Classification()
    assert type(load_task("tasks.py:Mine", tmp_path)).__name__ == "Mine"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("clasification", "Did you mean 'classification'"),
        ("tasks.py:Half", "lacks higher_is_better, evaluate, outputs, agreement"),
        ("tasks.py:Needy", r"TypeError.*size.*takes no arguments"),
        ("tasks.py:Mien", "does not define 'Mien'"),
    ],
)
def test_tasks_that_cannot_be_used(tmp_path, spec, message):
    (tmp_path / "tasks.py").write_text(TASK_FILE)
    with pytest.raises(TrainingError, match=message):
        load_task(spec, tmp_path)
