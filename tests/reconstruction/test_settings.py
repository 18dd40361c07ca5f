import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_cvxsnn import ConvexReconstruction, reconstruct

WRONG = [
    ({"loss": "mse"}, r"loss='mse'. Expected one of \['cross_entropy', 'hinge', 'squared', 'squared_hinge'\]"),
    ({"beta": 0}, "beta=0. Expected a positive number or 'auto'"),
    ({"beta": -1.0}, "beta=-1.0"),
    ({"beta": float("nan")}, "beta=nan"),
    ({"beta": "small"}, "beta='small'"),
    ({"beta": True}, "beta=True"),
    ({"l1_ratio": -0.1}, "l1_ratio=-0.1. Expected a number from 0 to 1, or 'auto'"),
    ({"l1_ratio": 1.5}, "l1_ratio=1.5"),
    ({"l1_ratio": float("nan")}, "l1_ratio=nan"),
    ({"l1_ratio": "ridge"}, "l1_ratio='ridge'"),
    ({"l1_ratio": None}, "l1_ratio=None"),
    ({"l1_ratio": True}, "l1_ratio=True"),
    ({"relaxation": -1}, "relaxation=-1. Expected a number from 0 to 1, or 'auto'"),
    ({"relaxation": 1.1}, "relaxation=1.1"),
    ({"relaxation": float("inf")}, "relaxation=inf"),
    ({"relaxation": "half"}, "relaxation='half'"),
    ({"relaxation": False}, "relaxation=False"),
    ({"relaxation": 0.5, "apply": "replace"}, "relaxation=0.5 with apply='replace', .* all the way. Use apply='auto'"),
    ({"relaxation": 0, "apply": "shadow"}, "relaxation=0 with apply='shadow', .* nowhere. Use apply='auto'"),
    ({"judge": "test"}, r"judge='test'. Expected one of \['auto', 'train', 'validation'\]"),
    ({"judge": None}, "judge=None"),
    ({"readout": 3}, "readout=3. Expected a dotted name"),
    ({"witnesses": "random"}, "witnesses='random'. Expected one of"),
    ({"apply": "both"}, r"apply='both'. Expected one of \['auto', 'replace', 'shadow'\]"),
    ({"backend": "numpy"}, "Invalid value backend='numpy'"),
    ({"max_overhead": 0}, "max_overhead=0. Expected a positive share of training work"),
    ({"max_overhead": "all"}, "max_overhead='all'"),
    ({"every_n_epochs": -1}, "every_n_epochs=-1. Expected an integer >= 0"),
    ({"every_n_epochs": 1.5}, "every_n_epochs=1.5"),
    ({"gap_tolerance": 0}, "gap_tolerance=0"),
    ({"max_samples": 2}, "max_samples=2. Expected an integer >= 5"),
    ({"scale": "half"}, "scale='half'"),
    ({"warm_start": "yes"}, "warm_start='yes'. Expected True or False"),
    ({"seed": -1}, "seed=-1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_refused_at_construction(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        ConvexReconstruction(**arguments)


@pytest.mark.parametrize(("arguments", "message"), WRONG[:3])
def test_reconstruct_refuses_the_same(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        reconstruct(nn.Linear(1, 1), [], **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"l1_ratio": 0},
        {"l1_ratio": 0.5, "beta": 0.1},
        {"l1_ratio": 1, "relaxation": 1},
        {"relaxation": 0.0},
        {"relaxation": "auto", "apply": "shadow"},
        {"judge": "validation", "apply": "replace"},
    ],
)
def test_right_arguments_are_taken(arguments):
    assert {name: getattr(ConvexReconstruction(**arguments).settings, name) for name in arguments} == arguments


def test_a_typo_is_refused():
    with pytest.raises(TypeError, match="los"):
        ConvexReconstruction(los="hinge")
    with pytest.raises(MisconfigurationException, match=r"unexpected arguments \['los'\]"):
        reconstruct(nn.Linear(1, 1), [], los="hinge")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "ConvexReconstruction()"),
        ({"seed": 1, "loss": "hinge", "beta": "auto"}, "ConvexReconstruction(loss='hinge', seed=1)"),
        ({"max_overhead": None, "warm_start": False}, "ConvexReconstruction(warm_start=False, max_overhead=None)"),
    ],
)
def test_a_callback_shows_the_arguments_that_are_not_the_defaults(arguments, shown):
    assert repr(ConvexReconstruction(**arguments)) == shown
    assert eval(shown).settings == ConvexReconstruction(**arguments).settings
