import torch

from lightning_cvxsnn.patterns.hashing import mix64, random_keys


def test_keys_are_those_of_splitmix64():
    # The first outputs for the seed 1234567, as the generator's implementations publish them.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [key % 2**64 for key in random_keys(5, 1234567).tolist()] == expected


def test_mixing_is_a_permutation_that_spreads_single_bits():
    states = torch.tensor([0, *(1 << bit if bit < 63 else -(2**63) for bit in range(64))])
    mixed = mix64(states)
    assert len(mixed.unique()) == len(states)
    changed = [bin((key ^ mixed[0].item()) % 2**64).count("1") for key in mixed[1:].tolist()]
    assert 28 < sum(changed) / len(changed) < 36
