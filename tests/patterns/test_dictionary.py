import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cvxsnn.patterns import SpikeDictionary


@given(
    st.integers(1, 8).flatmap(
        lambda p: st.lists(st.lists(st.integers(0, 300), min_size=p, max_size=p), min_size=1, max_size=8)
    )
)
def test_counts_are_exact_and_statistics_are_those_of_the_matrix(entries):
    values = torch.tensor(entries, dtype=torch.float32)
    dictionary = SpikeDictionary.from_values(values, scale=0.25)
    assert torch.equal(dictionary.to_dense(), values.double() * 0.25)
    assert dictionary.counts.dtype == (torch.uint8 if values.max() <= 255 else torch.uint16)
    columns = [tuple(column) for column in zip(*entries, strict=True)]
    assert dictionary.distinct == len(set(columns))
    assert dictionary.silent == sum(not any(column) for column in columns)
    assert dictionary.saturated == sum(len(set(column)) == 1 and any(column) for column in columns)


def test_fractions_stay_fractions():
    values = torch.tensor([[0.5, 1.25]])
    assert torch.equal(SpikeDictionary.from_values(values).to_dense(), values.double())


def test_rows():
    dictionary = SpikeDictionary.from_values(torch.arange(6.0).reshape(3, 2), 0.5)
    mask = torch.tensor([True, False, True])
    assert torch.equal(dictionary.rows(mask).to_dense(), dictionary.to_dense()[mask])
    assert dictionary.rows(mask).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [(torch.zeros(3), "shape"), (torch.tensor([[float("nan")]]), "NaN"), (torch.tensor([[float("inf")]]), "infinity")],
)
def test_what_is_no_dictionary_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SpikeDictionary.from_values(values)
