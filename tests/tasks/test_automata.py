"""Automata against brute force over all strings, and the network that goes on from its own states."""

import itertools
import re
from collections import Counter

import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from networks import trainer
from torch.nn import functional as F

from lightning_cvxsnn import AutomatonDataModule, AutomatonSNN, ConvexReconstruction, ParallelSNN
from lightning_cvxsnn.tasks.automata import TOMITA, Automaton, random_automaton


def strings(alphabet, length):
    return torch.tensor(list(itertools.product(range(alphabet), repeat=length)))


def metrics_of(run, net, data):
    """The metrics of all loaders."""
    return {name: value for each in run.test(net, datamodule=data, verbose=False) for name, value in each.items()}


def in_language_3(word):
    """No maximal run of ones of odd length stands right before a maximal run of zeros of odd length."""
    return not any(len(ones) % 2 and len(zeros) % 2 for ones, zeros in re.findall("(1+)(0+)", word))


def in_language_6(word):
    return (word.count("0") - word.count("1")) % 3 == 0


@pytest.mark.parametrize(("number", "in_language"), [(3, in_language_3), (6, in_language_6)])
@pytest.mark.parametrize("length", [1, 2, 5, 11])
def test_tomitas_languages(number, in_language, length):
    words = strings(2, length)
    expected = [in_language("".join(map(str, word))) for word in words.tolist()]
    assert TOMITA[number].accepts(words).tolist() == expected
    assert TOMITA[number].is_minimal


def test_a_random_automaton_tells_all_its_states_apart():
    """Brute force: each state is reached, and for each two some string of at most 4 symbols ends differently."""
    for seed in range(5):
        automaton = random_automaton(5, 3, seed)
        words = [word for length in range(5) for word in itertools.product(range(3), repeat=length)]

        def after(state, word, automaton=automaton):
            for symbol in word:
                state = automaton.transitions[state][symbol]
            return state

        assert {after(0, word) for word in words} == set(range(5))
        ends = {tuple(automaton.accepting[after(state, word)] for word in words) for state in range(5)}
        assert len(ends) == 5
    assert random_automaton(5, 3, 0) == random_automaton(5, 3, 0) != random_automaton(5, 3, 1)


def test_automata_with_states_too_many_are_not_minimal():
    unreachable = Automaton(((0, 1), (1, 0), (2, 0)), (True, False, False))
    twins = Automaton(((1, 2), (0, 0), (0, 0)), (True, False, False))
    assert not unreachable.is_minimal
    assert not twins.is_minimal


@pytest.mark.parametrize("automaton", [TOMITA[3], TOMITA[6], random_automaton(4, 3, 2)])
def test_strings_are_drawn_uniformly_among_those_asked_for(automaton):
    words = strings(automaton.alphabet, 4)
    accepts = automaton.accepts(words)
    for wanted in (True, False):
        drawn = automaton.draw(torch.full((20_000,), wanted), 4, torch.Generator().manual_seed(0))
        counts = Counter(map(tuple, drawn.tolist()))
        eligible = [tuple(word) for word in words[accepts == wanted].tolist()]
        assert set(counts) == set(eligible)
        expected = 20_000 / len(eligible)
        chi2 = sum((counts[word] - expected) ** 2 / expected for word in eligible)
        assert chi2 < len(eligible) + 5 * (2 * len(eligible)) ** 0.5  # five deviations


def test_what_has_no_strings_is_refused():
    everything = Automaton(((1, 1), (1, 1)), (False, True))
    with pytest.raises(MisconfigurationException, match="length=3, of which all strings or none are accepted"):
        everything.draw(torch.tensor([True, False]), 3, torch.Generator())


@pytest.mark.parametrize("automaton", ["tomita3", "tomita6", "random"])
def test_acceptance(automaton):
    data = AutomatonDataModule(automaton, length=6, sizes=(300, 100, 101))
    data.setup("fit")
    for length, dataset in [(6, data.train), (6, data.val), *zip((6, 12, 30, 60), data.tests, strict=True)]:
        x, y = dataset.tensors
        assert x.shape == (len(y), length, data.automaton.alphabet)
        assert torch.equal(x.sum(-1), torch.ones(x.shape[:2]))
        assert torch.equal(data.automaton.accepts(x.argmax(-1)).long(), y)
        assert int(y.sum()) == len(y) // 2
    assert not torch.equal(data.train.tensors[0][:100], data.val.tensors[0])


def test_states():
    data = AutomatonDataModule(states=4, alphabet=2, target="state", length=5, sizes=(200, 50, 60), automaton_seed=3)
    data.setup("fit")
    for length, dataset in [(5, data.train), *zip((5, 10, 25, 50), data.tests, strict=True)]:
        x, y = dataset.tensors
        assert x.shape == (len(y), length, 6)
        symbols, states = x[..., :2].argmax(-1), x[..., 2:].argmax(-1)
        assert not states[:, 0].any()
        assert torch.equal(states[:, 1:], y[:, :-1])
        table = torch.tensor(data.automaton.transitions)
        assert torch.equal(table[states, symbols], y)


def test_the_network_goes_on_from_its_own_states():
    """A network that knows the table answers whole strings rightly; one that is wrong once goes on wrongly."""
    data = AutomatonDataModule(target="state", length=6, sizes=(20, 20, 50))
    data.setup("fit")
    table = torch.tensor(data.automaton.transitions)
    net = AutomatonSNN(states=5, alphabet=3, last_width=8, depth=2, branches=1)
    seen = []
    net.branches[0][0].register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    net.answer = lambda features: F.one_hot(table[seen[-1][:, 3:].argmax(-1), seen[-1][:, :3].argmax(-1)], 5)[None]
    x, y = data.tests[-1].tensors
    assert torch.equal(net.unroll(x[..., :3].argmax(-1), torch.zeros(50, dtype=torch.long)), y)
    metrics = metrics_of(trainer(), net, data)
    assert metrics["test_accuracy_60_steps"] == metrics["test_sequences_60_steps"] == 1
    assert len(metrics) == 8


def test_both_networks_train_and_are_tested_on_longer_strings():
    run = trainer(ConvexReconstruction(beta=0.01), max_epochs=1, num_sanity_val_steps=0)
    states = AutomatonDataModule(target="state", length=5, sizes=(300, 100, 100))
    run.fit(AutomatonSNN(width=20, last_width=100, tau=1.1, depth=2), states)
    assert metrics_of(run, run.lightning_module, states)["test_accuracy_5_steps"] > 0.5
    accept = AutomatonDataModule("tomita6", length=5, sizes=(300, 100, 100))
    run = trainer(ConvexReconstruction(beta=0.01), max_epochs=1, num_sanity_val_steps=0)
    net = ParallelSNN(width=20, last_width=100, depth=2)
    run.fit(net, accept)
    metrics = metrics_of(run, net, accept)
    assert set(metrics) == {f"test_accuracy_{steps}_steps" for steps in (5, 10, 25, 50)}
    x, y = accept.tests[2].tensors
    assert metrics["test_accuracy_25_steps"] == pytest.approx(float((net(x).argmax(1) == y).float().mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"automaton": "tomita9"}, "automaton='tomita9'. Expected 'tomita3'"),
        ({"target": "both"}, "target='both'. Expected 'accept' or 'state'"),
        ({"states": 1}, "states=1. Expected an integer >= 2"),
        ({"test_times": (0,)}, "test_times=0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(MisconfigurationException, match=message):
        AutomatonDataModule(**options)
