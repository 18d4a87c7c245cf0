import pytest
import torch

from prune2deploy.train import cpu_bf16_features, resolve_precision
from prune2deploy.train import precision as module


def facts(tmp_path, flags):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nflags\t\t: fpu sse4_2 {flags}\nbugs\t\t: amx_bf16\n")
    return file


@pytest.fixture(autouse=True)
def _on_x86(monkeypatch):
    monkeypatch.setattr(module.platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ("avx512f avx512_bf16", ["avx512_bf16"]),
        ("amx_tile amx_bf16 avx512_bf16", ["amx_bf16", "avx512_bf16"]),
        ("avx512f avx2", []),
    ],
)
def test_features_come_from_the_flags(tmp_path, flags, found):
    assert cpu_bf16_features(facts(tmp_path, flags)) == found


def test_unknown_machines_have_none(tmp_path, monkeypatch):
    assert cpu_bf16_features(tmp_path / "missing") == []
    monkeypatch.setattr(module.platform, "machine", lambda: "aarch64")
    assert cpu_bf16_features(facts(tmp_path, "avx512_bf16")) == []


def test_auto_follows_the_processor_and_a_wish_is_kept(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(module, "cpu_bf16_features", lambda: ["avx512_bf16"])
    assert resolve_precision("auto", cpu) == "bf16"
    assert resolve_precision("fp32", cpu) == "fp32"
    monkeypatch.setattr(module, "cpu_bf16_features", list)
    assert resolve_precision("auto", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    assert resolve_precision("auto", torch.device("mps")) == "fp32"
