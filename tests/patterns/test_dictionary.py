import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cvxsnn.patterns import SpikeDictionary, dictionary


@pytest.fixture(autouse=True, scope="module")
def _many_small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dictionary, "_BLOCK", 10)
        yield


def _matrices(largest, columns=8):
    return st.integers(1, columns).flatmap(
        lambda p: st.lists(st.lists(st.integers(0, largest), min_size=p, max_size=p), min_size=1, max_size=8)
    )


@given(st.one_of(_matrices(1), _matrices(300), _matrices(65535)))
def test_counts_are_exact_and_statistics_are_those_of_the_matrix(entries):
    values = torch.tensor(entries, dtype=torch.float32)
    found = SpikeDictionary.from_values(values, scale=0.25)
    assert torch.equal(found.to_dense(), values.double() * 0.25)
    assert found.counts.dtype == (torch.uint8 if values.max() <= 255 else torch.uint16)
    for one in (found, found.packed()) if values.max() <= 1 else (found,):
        _check_statistics(one, entries)


def _check_statistics(found, entries):
    columns = [tuple(column) for column in zip(*entries, strict=True)]
    assert found.shape == (len(entries), len(columns))
    assert found.distinct == len(set(columns))
    assert found.constant.tolist() == [len(set(column)) == 1 for column in columns]
    assert found.silent == sum(not any(column) for column in columns)
    assert found.saturated == sum(len(set(column)) == 1 and any(column) for column in columns)
    coef = torch.arange(2.0 * len(columns), dtype=torch.float64).reshape(-1, 2)
    torch.testing.assert_close(found @ coef, found.to_dense() @ coef)
    assert found.rate == pytest.approx(float(found.to_dense().mean()))


@given(_matrices(1, columns=20), st.data())
def test_bits_are_the_same_dictionary(entries, data):
    plain = SpikeDictionary.from_values(torch.tensor(entries), 0.5)
    bits = plain.packed()
    rows, columns = plain.shape
    assert bits.counts.nbytes == rows * -(-columns // 8)
    assert bits.packed() is bits
    index = torch.tensor(data.draw(st.lists(st.integers(0, columns - 1), min_size=1, max_size=30)))
    part = slice(*sorted(data.draw(st.tuples(st.integers(0, rows), st.integers(0, rows)))))
    assert torch.equal(bits.to_dense(), plain.to_dense())
    assert torch.equal(bits.block(part), plain.block(part))
    assert torch.equal(bits.block(part, index), plain.block(part, index))
    assert torch.equal(bits.columns(index).to_dense(), plain.to_dense()[:, index])
    kept = torch.tensor([row % 2 == 0 for row in range(rows)])
    assert torch.equal(bits.rows(kept).to_dense(), plain.to_dense()[kept])


def test_only_zeros_and_ones_pack():
    for values in (torch.tensor([[0, 2]]), torch.tensor([[0.5, 1.0]])):
        with pytest.raises(ValueError, match="Only zeros and ones"):
            SpikeDictionary.from_values(values).packed()


def test_fractions_stay_fractions():
    values = torch.tensor([[0.5, 1.25]])
    assert torch.equal(SpikeDictionary.from_values(values).to_dense(), values.double())


def test_rows():
    found = SpikeDictionary.from_values(torch.arange(6.0).reshape(3, 2), 0.5)
    mask = torch.tensor([True, False, True])
    assert torch.equal(found.rows(mask).to_dense(), found.to_dense()[mask])
    assert found.rows(mask).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [(torch.zeros(3), "shape"), (torch.tensor([[float("nan")]]), "NaN"), (torch.tensor([[float("inf")]]), "infinity")],
)
def test_what_is_no_dictionary_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SpikeDictionary.from_values(values)


def test_columns():
    for largest in (1.0, 1000.0, 0.5):
        values = torch.arange(6.0).reshape(2, 3) * largest
        found = SpikeDictionary.from_values(values)
        index = torch.tensor([2, 0, 2])
        assert found.columns(index).counts.dtype == found.counts.dtype
        assert torch.equal(found.columns(index).to_dense(), values[:, index].double())
