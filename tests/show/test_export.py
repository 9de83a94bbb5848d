"""A run's network goes to other programs as a file, which gives what the run gives, or there is no file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from conftest import ROOT, Command
from hydra.utils import instantiate
from some import some

from mnist_lab.build import build_tested
from mnist_lab.composing import compose_config, run_config
from mnist_lab.files import CONF_DIR
from mnist_lab.show.portable import FORMATS, facts
from mnist_lab.trained import TrainedRun, load_run

SAME = {"mlp_512", "mlp_1000"}  # as mlp_784_32, with one hidden layer
MODELS = sorted({path.stem for path in (CONF_DIR / "model").glob("*.yaml")} - SAME)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    words = ["model=cnn", "data=mnist_5k", "data.scale=standard", "data.val=none", "trainer=cpu"]
    words += ["trainer.max_epochs=1", f"hydra.run.dir={folder}", "logger=none", "report=false"]
    done = warm.lab(words, folder.parent)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "absent"),
    [("onnx", ("mnist_lab", "torch", "lightning")), ("torch_export", ("mnist_lab", "lightning")), ("safetensors", ())],
)
def test_the_printed_code_loads_the_exported_file(
    kind: str, absent: tuple[str, ...], run_dir: Path, lab: Command, tmp_path: Path
) -> None:
    target = tmp_path / "some model"
    done = lab("export", f"run={run_dir}", f"format={kind}", f"to={target}")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "1,000 test images" in done.stdout and "the same class for 1,000 of 1,000" in done.stdout
    lines = done.stdout.strip().splitlines()[-3:]
    assert [path.name for path in tmp_path.iterdir()] == ["some model"]
    assert str(run_dir.parent).encode() not in target.read_bytes()

    images = build_tested(load_run(run_dir).cfg, run_dir).images
    assert images is not None and isinstance(images.test_images, torch.Tensor)
    np.save(tmp_path / "images.npy", images.test_images.numpy())
    hide = [f"import sys; sys.modules[{name!r}] = None" for name in absent]
    zeros = lines[2].replace("probabilities", "of_zeros")
    given = "numpy.load('images.npy')" if kind == "onnx" else "torch.from_numpy(numpy.load('images.npy'))"
    start = "numpy.zeros(" if kind == "onnx" else "torch.zeros("
    before, _, rest = lines[2].partition(start)
    after = rest[rest.index('"uint8")') + 8 :] if kind == "onnx" else rest[rest.index("uint8)") + 6 :]
    code = [*hide, *lines[:2], zeros, "assert of_zeros.shape == (1, 10)", "import numpy", before + given + after]
    code += ["numpy.save('found.npy', numpy.asarray(probabilities))"]
    (tmp_path / "loads.py").write_text("\n".join(code))
    if absent:
        subprocess.run([sys.executable, "loads.py"], cwd=tmp_path, check=True, timeout=600)
    else:
        assert warm.lab([], tmp_path, module="loads").returncode == 0
    found = np.load(tmp_path / "found.npy")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, load_run(run_dir).predict(images.test_images).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("model", MODELS)
def test_every_network_can_be_exported_for_colour_images(model: str, kind: str, tmp_path: Path) -> None:
    cfg = run_config(compose_config([f"model={model}", "data=cifar10"]))
    net = instantiate(cfg.model, _convert_="all").eval().requires_grad_(False)
    names = ("no", "yes") if model == "neuron" else tuple("abcdefghij")
    shift, divisor = torch.tensor([10.0, 20.0, 30.0]).view(3, 1, 1), torch.full((3, 1, 1), 50.0)
    run = TrainedRun(tmp_path, "last", cfg, net, (3, 32, 32), names, shift, divisor, False, torch.device("cpu"))
    FORMATS[kind].write(run, facts(run), tmp_path / "model.pt2")
    predict = FORMATS[kind].read(tmp_path / "model.pt2")
    for n in (0, 1, 7):
        images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8)
        torch.testing.assert_close(predict(images), run.predict(images), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_file_names_the_classes_and_holds_standard_operators_alone(run_dir: Path, tmp_path: Path) -> None:
    import onnx

    run = load_run(run_dir)
    FORMATS["onnx"].write(run, facts(run), tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [opset.domain for opset in model.opset_import] == [""]
    said = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(said["classes"]) == list("0123456789") and json.loads(said["shape"]) == [1, 28, 28]

    FORMATS["torch_export"].write(run, facts(run), tmp_path / "model.pt2")
    extra = {"classes": ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra)
    assert json.loads(extra["classes"]) == list("0123456789")
    calls = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert calls and all(name.startswith("aten.") for name in calls)


OWN = """
import torch
import warm
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, images):
        logits = self.linear(images.flatten(1))
        {}
        return logits
"""


@pytest.mark.slow
def test_a_wrong_exported_file_is_removed(lab: Command, tmp_path: Path) -> None:
    path = f"{tmp_path}:{ROOT}"
    (tmp_path / "own.py").write_text(OWN.format("pass"))
    words = [
        "data=mnist_5k",
        "trainer=debug",
        "model._target_=own.Net",
        "hydra.run.dir=run",
        "logger=none",
        "report=false",
    ]
    words += [f"~model.{key}" for key in ("input_shape", "num_classes", "hidden", "activation", "dropout", "init")]
    assert lab(*words, PYTHONPATH=path).returncode == 0
    for line, status, said in (
        ("if torch.compiler.is_exporting(): logits = -logits", 1, "is wrong and was not kept"),
        ("if logits.sum() > 0: logits = -logits", 2, "own.Net can't be written as torch_export"),
    ):
        (tmp_path / "own.py").write_text(OWN.format(line))
        done = lab("export", "run=run", "format=torch_export", PYTHONPATH=path)
        assert done.returncode == status and said in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1 and done.stdout == ""
        assert not list((tmp_path / "run/export").iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    some(
        [
            ([], "which run?"),
            (["run=nowhere"], "there is no such folder"),
            (["run=RUN", "format=onx"], "one of onnx, torch_export, safetensors"),
            (["run=RUN", "checkpoint=best"], "there is no such checkpoint"),
            (["run=RUN", "to=."], "is a folder"),
            (["run=RUN", "to=RUN/config.yaml/x.onnx"], "config.yaml is a file"),
            (["run=RUN", "formt=onnx"], "the run has no such option"),
        ],
        4,
    ),
)
def test_a_mistake_is_told_in_a_line_or_two(words: list[str], said: str, run_dir: Path, lab: Command) -> None:
    done = lab("export", *(word.replace("RUN", str(run_dir)) for word in words))
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and done.stdout == ""


def test_a_missing_package_is_named_with_what_installs_it(run_dir: Path) -> None:
    probe = f"""
import runpy, sys
sys.modules["onnxscript"] = None
sys.argv = ["mnist_lab", "export", "run={run_dir}"]
runpy.run_module("mnist_lab", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == 'error: format=onnx needs onnxscript: pip install -e ".[export]"\n'
