"""Finite automata: Tomita's languages 3 and 6, and random ones."""

from dataclasses import dataclass
from typing import Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from lightning_cvxsnn.tasks.splits import Splits, check_at_least, checked_sizes


@dataclass(frozen=True)
class Automaton:
    """A deterministic finite automaton that begins in state 0.

    Attributes:
        transitions: Of each state, where each symbol leads.
        accepting: Of each state, whether a string that ends there is in the language.

    Example:
        >>> Automaton(((0, 1), (1, 0)), (True, False)).run(torch.tensor([[1, 0, 1]]))
        tensor([[1, 1, 0]])
    """

    transitions: tuple[tuple[int, ...], ...]
    accepting: tuple[bool, ...]

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.transitions)

    @property
    def alphabet(self) -> int:
        """Number of symbols."""
        return len(self.transitions[0])

    def run(self, symbols: Tensor) -> Tensor:
        """The state after each of the symbols, both int64 ``[N, T]``."""
        table = torch.tensor(self.transitions)
        state, states = symbols.new_zeros(len(symbols)), []
        for now in symbols.unbind(1):
            state = table[state, now]
            states.append(state)
        return torch.stack(states, 1)

    def accepts(self, symbols: Tensor) -> Tensor:
        """Whether each string is in the language, bool ``[N]``, of int64 ``[N, T]``."""
        return torch.tensor(self.accepting)[self.run(symbols)[:, -1]]

    @property
    def is_minimal(self) -> bool:
        """Whether every state can be reached and no two of them can be told apart by no string."""
        reached, classes = {0}, [int(kind) for kind in self.accepting]
        for _ in self.transitions:
            reached |= {after for state in reached for after in self.transitions[state]}
            told = [(kind, *(classes[k] for k in row)) for kind, row in zip(classes, self.transitions, strict=True)]
            classes = [told.index(kind) for kind in told]
        return len(reached) == len(set(classes)) == self.states

    def draw(self, accepted: Tensor, length: int, generator: torch.Generator) -> Tensor:
        """Strings, each uniformly among all of its length that are accepted, or that are not.

        Args:
            accepted: Bool ``[N]``, which strings are to be in the language.
            length: Symbols of a string.
            generator: Source of randomness.

        Returns:
            int64 ``[N, length]``.

        Raises:
            MisconfigurationException: If there are no such strings.
        """
        table = torch.tensor(self.transitions)
        share = torch.tensor(self.accepting).double()
        shares = [torch.stack([1 - share, share])]  # of strings not accepted, and accepted, from each state on
        for _ in range(length):
            shares.append(shares[-1][:, table].mean(-1))
        kinds = accepted.long()
        if not bool((shares[-1][kinds, 0] > 0).all()):
            raise MisconfigurationException(
                f"Found length={length}, of which all strings or none are accepted. Expected another length."
            )
        state, symbols = torch.zeros_like(kinds), []
        for rest in reversed(shares[:-1]):
            chances = rest[kinds[:, None], table[state]]
            symbols.append(torch.multinomial(chances, 1, generator=generator)[:, 0])
            state = table[state, symbols[-1]]
        return torch.stack(symbols, 1)


#: No odd number of zeros follows an odd number of ones; the difference of their numbers is a multiple of three.
TOMITA = {
    3: Automaton(((0, 1), (2, 0), (3, 4), (2, 1), (4, 4)), (True, True, False, True, False)),
    6: Automaton(((2, 1), (0, 2), (1, 0)), (True, False, False)),
}


def random_automaton(states: int, alphabet: int, seed: int) -> Automaton:
    """A random automaton, no smaller one of which accepts the same strings.

    Example:
        >>> automaton = random_automaton(5, 3, seed=0)
        >>> automaton.states, automaton.alphabet, automaton.is_minimal
        (5, 3, True)
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        table = torch.randint(states, (states, alphabet), generator=generator).tolist()
        accepting = (torch.rand(states, generator=generator) < 0.5).tolist()
        automaton = Automaton(tuple(map(tuple, table)), tuple(accepting))
        if automaton.is_minimal:
            return automaton


class AutomatonDataModule(Splits):
    """Strings of symbols that a finite automaton reads.

    For ``target="accept"`` samples are ``(x [T, alphabet] float32, y)``: symbols one-hot, and whether the automaton
    accepts the string; half of the strings of each split are accepted. For ``"state"`` they are ``(x [T, alphabet +
    states], y [T])``: the symbol and the state before it, both one-hot, and the state after it; symbols are uniform.
    `AutomatonSNN` is then tested on states of its own.

    Networks are trained on strings of one length and tested on longer ones, one loader for each of ``test_times``.

    Args:
        automaton: ``"tomita3"``: an odd number of ones is never followed by an odd number of zeros; ``"tomita6"``: the
            numbers of zeros and ones differ by a multiple of three; ``"random"``: a random minimal automaton.
        states: States of a random automaton.
        alphabet: Symbols of a random automaton.
        target: What is asked for.
        length: Symbols of a string to train and validate on.
        test_times: Lengths to test on, as multiples of ``length``.
        sizes: Strings to train, validate and test on.
        batch_size: Samples per batch.
        seed: Seed of the strings.
        automaton_seed: Seed of a random automaton.

    Raises:
        MisconfigurationException: If a number is out of range; in ``setup`` if all strings or none are accepted.

    Example:
        >>> data = AutomatonDataModule("tomita6", length=6)
        >>> data.setup("fit")
        >>> x, y = data.train.tensors
        >>> x.shape, int(y.sum()), [len(test[0][0]) for test in data.tests]
        (torch.Size([2000, 6, 2]), 1000, [6, 12, 30, 60])
    """

    def __init__(
        self,
        automaton: Literal["tomita3", "tomita6", "random"] = "random",
        states: int = 5,
        alphabet: int = 3,
        target: Literal["accept", "state"] = "accept",
        length: int = 8,
        test_times: tuple[int, ...] = (1, 2, 5, 10),
        sizes: tuple[int, int, int] = (2000, 1000, 1000),
        batch_size: int = 128,
        seed: int = 0,
        automaton_seed: int = 0,
    ) -> None:
        super().__init__(batch_size, seed)
        self.save_hyperparameters()
        for name, value, least in (("states", states, 2), ("alphabet", alphabet, 2), ("length", length, 1)):
            check_at_least(name, value, least)
        for times in test_times:
            check_at_least("test_times", times, 1)
        if automaton == "random":
            self.automaton = random_automaton(states, alphabet, automaton_seed)
        elif automaton in ("tomita3", "tomita6"):
            self.automaton = TOMITA[int(automaton[-1])]
        else:
            raise MisconfigurationException(
                f"Invalid value automaton={automaton!r}. Expected 'tomita3', 'tomita6' or 'random'."
            )
        if target not in ("accept", "state"):
            raise MisconfigurationException(f"Invalid value target={target!r}. Expected 'accept' or 'state'.")
        self.target, self.length, self.test_times, self.sizes = target, length, tuple(test_times), checked_sizes(sizes)

    @override
    def setup(self, stage: str) -> None:
        """Generate all splits; the same for every stage."""
        generator = torch.Generator().manual_seed(self.seed)
        train, val, test = self.sizes
        self.train, self.val = self._draw(train, self.length, generator), self._draw(val, self.length, generator)
        self.tests = [self._draw(test, times * self.length, generator) for times in self.test_times]

    @override
    def test_dataloader(self) -> list[DataLoader]:
        """In order, one for each of ``test_times``."""
        return [DataLoader(dataset, batch_size=self.batch_size) for dataset in self.tests]

    def _draw(self, size: int, length: int, generator: torch.Generator) -> TensorDataset:
        automaton = self.automaton
        if self.target == "accept":
            y = torch.randperm(size, generator=generator) < size // 2
            return TensorDataset(self._one_hot(automaton.draw(y, length, generator), automaton.alphabet), y.long())
        symbols = torch.randint(automaton.alphabet, (size, length), generator=generator)
        after = automaton.run(symbols)
        before = F.pad(after[:, :-1], (1, 0))
        x = [self._one_hot(symbols, automaton.alphabet), self._one_hot(before, automaton.states)]
        return TensorDataset(torch.cat(x, -1), after)

    @staticmethod
    def _one_hot(values: Tensor, kinds: int) -> Tensor:
        return F.one_hot(values, kinds).float()
