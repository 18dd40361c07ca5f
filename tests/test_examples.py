import importlib.util
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import Callback

from lightning_cvxsnn import ConvexReconstruction

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("ignore")
def test_own_module(capsys):
    spec = importlib.util.spec_from_file_location("own_module", EXAMPLES / "own_module.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    trainer = module.main(epochs=1)
    (callback,) = [c for c in trainer.callbacks if isinstance(c, ConvexReconstruction)]
    assert isinstance(callback, Callback)
    assert callback.reports[0].accepted
    assert trainer.callback_metrics["accuracy"] > 0.5
