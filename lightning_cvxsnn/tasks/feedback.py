"""Networks that answer at each step and, in testing, go on from their own answers: `AdditionSNN`, `AutomatonSNN`."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from lightning_cvxsnn.network import reset_neurons
from lightning_cvxsnn.tasks.parallel import Constant, ParallelSNN
from lightning_cvxsnn.tasks.splits import check_at_least


class FeedbackSNN(ParallelSNN):
    """`ParallelSNN` that is trained on true states and tested on those that follow from its own answers.

    An answer is a class; it says what is asked for, a *token*, and the state for the next step.
    """

    def state_after(self, answers: Tensor) -> Tensor:
        """The state that answers ``[N]`` lead to, int64 ``[N]``."""
        return answers

    def tokens(self, answers: Tensor) -> Tensor:
        """What is asked for, of answers of any shape."""
        return answers

    def encode(self, given: Tensor, state: Tensor) -> Tensor:
        """Inputs ``[N, in_features]`` of one step, of what is given ``[N, ...]`` and the state ``[N]``."""
        raise NotImplementedError

    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is given at each step, ``[N, T, ...]``, and the first state ``[N]``, of inputs ``[N, T, F]``."""
        raise NotImplementedError

    def lengths(self, steps: int) -> str:
        """How metrics name sequences of so many steps."""
        return f"{steps}_steps"

    @torch.no_grad()
    def unroll(self, given: Tensor, state: Tensor) -> Tensor:
        """Answers int64 ``[N, T]``, each from the state that the one before led to.

        Args:
            given: int64 ``[N, T, ...]``, what is given at each step.
            state: int64 ``[N]``, the first state.
        """
        reset_neurons(self.branches)
        answers = []
        for now in given.unbind(1):
            x = self.encode(now, state).to(self.readout.weight)
            answers.append(self._read(x[None])[0].argmax(1))
            state = self.state_after(answers[-1])
        reset_neurons(self.branches)
        return torch.stack(answers, 1)

    @override
    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """The network's answers, int64 ``[N, T]``; of the inputs only the first state is used."""
        return self.unroll(*self.decode(batch[0] if isinstance(batch, (tuple, list)) else batch))

    @override
    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Share of tokens, and of sequences, that are right; of the inputs only the first state is used."""
        x, y = batch
        right = self.tokens(self.unroll(*self.decode(x))) == self.tokens(y)
        options: Any = {"on_epoch": True, "add_dataloader_idx": False, "batch_size": len(x)}
        name = self.lengths(x.shape[1])
        self.log(f"test_accuracy_{name}", right.float().mean(), **options)
        self.log(f"test_{self.whole}_{name}", right.all(1).float().mean(), **options)

    #: How metrics name a whole sequence.
    whole = "sequences"


class AdditionSNN(FeedbackSNN):
    """`ParallelSNN` for the sums of `AdditionDataModule`; in testing it feeds back the carry that it has computed.

    Of each column it tells the sum ``s = a + b + carry``, one of ``2 * base`` classes: the digit is ``s % base``, the
    carry ``s // base``. Logs ``test_accuracy_5_digits`` and so on: the share of digits that are right where the network
    only sees ``a`` and ``b``, and ``test_sums_5_digits``, the share of sums of which every digit is.

    Args:
        base: Base of the numbers, at least 2.
        width: See `ParallelSNN`, as the rest.
        last_width: Units of the last LIF layer.
        depth: Layers, the readout included.
        branches: K.
        tau: Membrane time constant, or its range.
        v_threshold: Threshold, or its range.
        reset: Kind of reset.
        decay_input: Whether the input is divided by ``tau`` too.
        lr: Learning rate of Adam.
        bias: Whether hidden layers have biases.

    Shapes:
        Input ``[N, T, 3]``, output (logits) ``[N, T, 2 * base]``.

    Example:
        >>> net = AdditionSNN(base=3, last_width=16, depth=2, branches=1)
        >>> net.add(torch.tensor([[[2, 2], [1, 0], [0, 0]]])).shape
        torch.Size([1, 3])
    """

    whole = "sums"

    def __init__(
        self,
        base: int = 3,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 2,
        branches: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        lr: float = 1e-3,
        bias: bool = True,
    ) -> None:
        super().__init__(
            3, width, last_width, depth, branches, 2 * base, tau, v_threshold, reset, decay_input, "all", lr=lr,
            bias=bias,
        )  # fmt: skip
        self.base = base

    def add(self, digits: Tensor) -> Tensor:
        """Add numbers column by column, least significant first, each with the carry of the one before.

        Args:
            digits: int64 ``[N, T, 2]``, the digits of both numbers.

        Returns:
            int64 ``[N, T]``, the network's answer for the sum of each column, carry included.
        """
        return self.unroll(digits, digits.new_zeros(len(digits)))

    @override
    def state_after(self, answers: Tensor) -> Tensor:
        """The carry."""
        return answers // self.base

    @override
    def tokens(self, answers: Tensor) -> Tensor:
        """The digits of the sum."""
        return answers % self.base

    @override
    def encode(self, given: Tensor, state: Tensor) -> Tensor:
        """A column of digits and the carry into it."""
        return torch.cat([given, state[:, None]], 1) / (self.base - 1)

    @override
    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The digits, and the carry into the first column."""
        columns = (x * (self.base - 1)).round().long()
        return columns[..., :2], columns[:, 0, 2]

    @override
    def lengths(self, steps: int) -> str:
        """A sum has one digit more than its numbers."""
        return f"{steps - 1}_digits"


class TwoHeadedAdditionSNN(AdditionSNN):
    """`AdditionSNN` with the paper's two readouts over the same spikes: one for the digit, one for the carry.

    ``readout`` answers the digit, ``carry_readout`` the carry; the logit of a sum is that of its digit plus that of its
    carry, so that the cross-entropy of sums is that of both together. To solve for both, use two callbacks:
    ``ConvexReconstruction(readout="readout")`` and ``ConvexReconstruction(readout="carry_readout")``.

    Args:
        carry_weight: Weight of the carry's cross-entropy beside the digit's, in training.
        base: See `AdditionSNN`, as the rest.
        width: Units of each hidden LIF layer but the last.
        last_width: Units of the last LIF layer.
        depth: Layers, the readout included.
        branches: K.
        tau: Membrane time constant, or its range.
        v_threshold: Threshold, or its range.
        reset: Kind of reset.
        decay_input: Whether the input is divided by ``tau`` too.
        lr: Learning rate of Adam.
        bias: Whether hidden layers have biases.

    Shapes:
        Input ``[N, T, 3]``, output (logits of sums) ``[N, T, 2 * base]``.

    Raises:
        MisconfigurationException: If the weight is negative.

    Example:
        >>> net = TwoHeadedAdditionSNN(base=3, last_width=16, branches=1, carry_weight=0.5)
        >>> {name: tuple(logits.shape) for name, logits in net.convex_forward(torch.rand(2, 6, 3)).items()}
        {'digit': (2, 6, 3), 'carry': (2, 6, 2)}
    """

    def __init__(
        self,
        carry_weight: float = 1.0,
        base: int = 3,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 2,
        branches: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        lr: float = 1e-3,
        bias: bool = True,
    ) -> None:
        super().__init__(base, width, last_width, depth, branches, tau, v_threshold, reset, decay_input, lr, bias)
        if not 0 <= carry_weight < float("inf"):
            raise MisconfigurationException(
                f"Invalid value carry_weight={carry_weight!r}. Expected a finite number >= 0."
            )
        self.carry_weight = carry_weight
        self.readout = nn.Linear(self.readout.in_features, self.base)
        self.carry_readout = nn.Linear(self.readout.in_features, 2)

    @override
    def answer(self, features: Tensor) -> Tensor:
        """Logits of the sums: of a carry plus of a digit."""
        digit, carry = self.readout(features), self.carry_readout(features)
        return (carry[..., :, None] + digit[..., None, :]).flatten(-2)

    @override
    def _loss_of(self, logits: Tensor, y: Tensor) -> Tensor:
        both = logits.unflatten(-1, (2, self.base))  # summed over one head, the other's up to a constant is left
        digit = F.cross_entropy(both.logsumexp(-2), y % self.base)
        return digit + self.carry_weight * F.cross_entropy(both.logsumexp(-1), y // self.base)

    def convex_forward(self, x: Tensor) -> dict[str, Tensor]:
        """The logits of each readout."""
        reset_neurons(self.branches)
        seen = self._seen(x.transpose(0, 1))
        reset_neurons(self.branches)
        return {"digit": self.readout(seen).transpose(0, 1), "carry": self.carry_readout(seen).transpose(0, 1)}

    def convex_batch(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs and a target for each readout."""
        x, y = batch
        return x, {"digit": y % self.base, "carry": y // self.base}


class AutomatonSNN(FeedbackSNN):
    """`ParallelSNN` for the states of `AutomatonDataModule`; in testing it goes on from the state it has computed.

    Logs ``test_accuracy_8_steps`` and so on: the share of states that are right where the network is only told the
    symbols, and ``test_sequences_8_steps``, the share of sequences of which every state is.

    Args:
        states: States of the automaton.
        alphabet: Its symbols.
        width: See `ParallelSNN`, as the rest.
        last_width: Units of the last LIF layer.
        depth: Layers, the readout included.
        branches: K.
        tau: Membrane time constant, or its range.
        v_threshold: Threshold, or its range.
        reset: Kind of reset.
        decay_input: Whether the input is divided by ``tau`` too.
        lr: Learning rate of Adam.
        bias: Whether hidden layers have biases.

    Shapes:
        Input ``[N, T, alphabet + states]``, output (logits) ``[N, T, states]``.

    Example:
        >>> net = AutomatonSNN(states=5, alphabet=3, last_width=16, depth=2, branches=1)
        >>> net.unroll(torch.tensor([[0, 2, 1]]), torch.tensor([0])).shape
        torch.Size([1, 3])
    """

    def __init__(
        self,
        states: int = 5,
        alphabet: int = 3,
        width: int = 500,
        last_width: int = 1000,
        depth: int = 2,
        branches: int = 2,
        tau: Constant = 100.0,
        v_threshold: Constant = 1.0,
        reset: Literal["soft", "hard", "mixed"] = "soft",
        decay_input: bool = False,
        lr: float = 1e-3,
        bias: bool = True,
    ) -> None:
        check_at_least("states", states, 2)
        check_at_least("alphabet", alphabet, 2)
        super().__init__(
            alphabet + states, width, last_width, depth, branches, states, tau, v_threshold, reset, decay_input, "all",
            lr=lr, bias=bias,
        )  # fmt: skip
        self.states, self.alphabet = states, alphabet

    @override
    def encode(self, given: Tensor, state: Tensor) -> Tensor:
        """The symbol and the state, both one-hot."""
        return torch.cat([F.one_hot(given, self.alphabet), F.one_hot(state, self.states)], 1)

    @override
    def decode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The symbols, and the first state."""
        return x[..., : self.alphabet].argmax(-1), x[:, 0, self.alphabet :].argmax(-1)
