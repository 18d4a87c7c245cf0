import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from prune2deploy.errors import MissingDependencyError, ModelError
from prune2deploy.models import check_forward, load_model


def build(
    source: str,
    args: dict[str, object] | None = None,
    *,
    base_dir: Path = Path("."),
    num_classes: int | None = None,
    checkpoint: Path | None = None,
) -> nn.Module:
    return load_model(
        source, args or {}, base_dir=base_dir, num_classes=num_classes, checkpoint=checkpoint
    )


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        # The paper's count (table 6) in millions: 0.27, 0.46, 0.66, 0.85, 1.7.
        ("cifar:resnet20", 0.27),
        ("cifar:resnet32", 0.46),
        ("cifar:resnet44", 0.66),
        ("cifar:resnet56", 0.85),
        ("cifar:resnet110", 1.7),
        ("cifar:preact_resnet164", 1.7),
        ("cifar:vgg16_bn", 14.7),
        ("cifar:vgg19_bn", 20.0),
        ("cifar:densenet40", 1.06),
    ],
)
def test_cifar_networks_have_the_papers_parameter_count(source: str, parameters: float) -> None:
    count = sum(p.numel() for p in build(source).parameters())
    assert count / 1e6 == pytest.approx(parameters, rel=0.03)


def test_cifar_shortcut_takes_every_second_pixel_between_zeros() -> None:
    model = build("cifar:resnet20")
    block = model.layer2[0]
    for conv in (block.conv1, block.conv2):
        nn.init.zeros_(conv.weight)
    x = torch.rand(2, 16, 8, 8)
    out = block(x)
    assert out.shape == (2, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().max() == 0
    assert out[:, 24:].abs().max() == 0


def test_convnet_takes_widths_and_classes() -> None:
    model = build("digits:convnet", {"widths": [8, 8, 16]}, num_classes=7)
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [8, 8, 16]
    assert check_forward(model, (1, 8, 8)).classes == 7


def test_torchvision_gets_arguments_and_classes_and_comes_in_eval_mode() -> None:
    model = build("torchvision:mobilenet_v3_small", {"dropout": 0.5}, num_classes=4)
    assert not model.training
    assert check_forward(model, (3, 32, 32)).classes == 4
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.5]


def test_googlenet_is_built_without_its_slow_start_and_its_warning() -> None:
    assert check_forward(build("torchvision:googlenet", num_classes=3), (3, 64, 64)).classes == 3


def test_timm_models_are_built_by_name() -> None:
    pytest.importorskip("timm")
    model = build("timm:mobilenetv3_small_050", num_classes=6)
    assert check_forward(model, (3, 32, 32)).classes == 6
    with pytest.raises(ModelError, match="Did you mean 'resnet18'"):
        build("timm:resnet_18")


def test_absent_timm_is_asked_for_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingDependencyError, match=r"prune2deploy\[timm\]"):
        build("timm:resnet18")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:resnet81", "torchvision has no model 'resnet81'.*'resnet18'"),
        ("torchvision:qqqqqq", r"It has \d+ models"),
        ("cifar:resnet18", "Did you mean .resnet"),
        ("torchvison:resnet18", "Did you mean 'torchvision'"),
        ("model.py", "path/to/file.py:name"),
        ("absent.py:build", "there is no file"),
    ],
)
def test_unknown_sources_get_the_nearest_right_name(source: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(source)


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ModelError, match=r"unexpected keyword argument 'dept'.*num_classes"):
        build("cifar:resnet20", {"dept": 3})
    with pytest.raises(ModelError, match="unexpected keyword argument 'dept'"):
        build("torchvision:resnet18", {"dept": 3})


def test_a_class_count_against_the_data_is_refused() -> None:
    with pytest.raises(ModelError, match="num_classes: 5, but the data has 10"):
        build("cifar:resnet20", {"num_classes": 5}, num_classes=10)


USER_MODEL = """
from torch import nn
from layers_beside_model import width

def build(num_classes, depth=1):
    return nn.Sequential(nn.Flatten(), *(nn.Linear(12, 12) for _ in range(depth)),
                         nn.Linear(12, num_classes)).double()

def no_classes():
    import layers_beside_model as layers
    return nn.Linear(layers.width, 2)

def not_a_model(): return 3

def fails():
    return nn.Linear("wide", 3)

ready = nn.Linear(2, 2)
"""


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(USER_MODEL)
    (tmp_path / "layers_beside_model.py").write_text("width = 5\n")
    return tmp_path


def test_a_users_function_gets_arguments_and_neighbours(user_folder: Path) -> None:
    before = list(sys.path)
    model = build("model.py:build", {"depth": 2}, base_dir=user_folder, num_classes=3)
    assert check_forward(model, (3, 2, 2)).classes == 3
    assert len(list(model.children())) == 4
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    other = build("model.py:no_classes", base_dir=user_folder, num_classes=3)
    assert other.in_features == 5
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("biuld", "does not define 'biuld'. Did you mean 'build'"),
        ("not_a_model", "returned a int; expected a torch.nn.Module"),
        ("ready", "is a Linear, not something that builds a model"),
        ("fails", r"could not be built: TypeError: .*model\.py, line \d+, in fails: return nn"),
    ],
)
def test_a_users_function_that_cannot_be_used_is_explained(
    user_folder: Path, name: str, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(f"model.py:{name}", base_dir=user_folder)


def test_a_checkpoint_is_loaded_and_its_class_count_compared(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    source = build("cifar:resnet20")
    torch.save({f"module.{k}": v for k, v in source.state_dict().items()}, path)
    loaded = build("cifar:resnet20", checkpoint=path, num_classes=10)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded(x), source(x))
    with pytest.raises(ModelError, match=r"'linear\.weight' has 10 rows.*has 4 classes"):
        build("cifar:resnet20", checkpoint=path, num_classes=4)


def test_lazy_layers_without_shapes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "lazy.py").write_text("from torch import nn\nbuild = lambda: nn.LazyLinear(3)\n")
    with pytest.raises(ModelError, match="lazy layers"):
        build("lazy.py:build", base_dir=tmp_path)
