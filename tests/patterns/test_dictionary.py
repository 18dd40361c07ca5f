import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_cvxsnn.patterns import SpikeDictionary

LARGE = (400, 1500)  # more entries than are processed at a time


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


@pytest.mark.parametrize("largest", [1, 200, 65535])
def test_large_matrices_have_the_same_statistics(largest):
    values = torch.randint(largest + 1, LARGE, generator=torch.Generator().manual_seed(0))
    values[:, ::7], values[:, 1::7], values[:, 2::7] = 0, largest, values[:, 3:4]
    values[-1, 3] = largest - values[-2, 3]  # columns that only the last rows tell apart
    plain = SpikeDictionary.from_values(values)
    for found in (plain, plain.packed()) if largest == 1 else (plain,):
        _check_statistics(found, values.tolist())
        dual = torch.randn(len(values), 3, dtype=torch.float64)
        torch.testing.assert_close(found.column_scores(dual), found.to_dense().T @ dual)
        index = torch.arange(0, LARGE[1], 3)
        assert torch.equal(found.columns(index).to_dense(), values[:, index].double())


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
    torch.testing.assert_close(found.rates, found.to_dense().mean(0))
    assert found.column_sums().tolist() == [sum(column) for column in columns]
    _check_distinct(found.distinct_columns(), columns)


def _check_distinct(found, columns):
    patterns = list(dict.fromkeys(columns))  # in the order of their first occurrence
    assert found.witness.tolist() == [columns.index(pattern) for pattern in patterns]
    assert found.owner.tolist() == [patterns.index(column) for column in columns]
    assert found.multiplicity.tolist() == [columns.count(pattern) for pattern in patterns]
    assert torch.equal(found.dictionary.block(slice(None)).T, torch.tensor(patterns))


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


def test_fractions_have_distinct_columns_rates_and_scores():
    found = SpikeDictionary.from_values(torch.tensor([[0.5, -0.0, 0.5, 0.0], [1.25, 1.0, 1.25, 1.0]]), 0.5)
    distinct = found.distinct_columns()
    assert distinct.owner.tolist() == [0, 1, 0, 1]
    assert distinct.multiplicity.tolist() == [2, 2]
    assert found.distinct == 2
    assert found.rates.tolist() == [0.4375, 0.25, 0.4375, 0.25]
    assert torch.equal(found.column_scores(torch.eye(2)), found.to_dense(torch.float32).T)


@given(st.sets(st.integers(0, 2**16 - 1), min_size=2, max_size=30))
def test_hashes_tell_columns_apart_and_do_not_depend_on_the_storage(values):
    found = SpikeDictionary.from_values(torch.tensor([[1.0] * len(values), sorted(values)]))
    hashes = found.column_hashes()
    assert len(hashes.unique()) == len(values)
    assert not (hashes == found.column_hashes(seed=1)).any()
    wide = SpikeDictionary(found.counts.to(torch.uint16))
    assert torch.equal(wide.column_hashes(), hashes)


@given(_matrices(1, columns=20), st.integers(1, 4))
def test_scores_are_the_product_of_the_transpose(entries, outputs):
    found = SpikeDictionary.from_values(torch.tensor(entries), 0.25)
    for dual in (torch.randn(len(entries), outputs), torch.randn(len(entries), outputs, dtype=torch.float64)):
        for one in (found, found.packed()):
            assert one.column_scores(dual).dtype == dual.dtype
            torch.testing.assert_close(one.column_scores(dual), found.to_dense(dual.dtype).T @ dual)


@pytest.mark.parametrize("dual", [torch.zeros(3, 1), torch.zeros(2), torch.zeros(2, 1, dtype=torch.int64)])
def test_scores_of_other_dual_points_are_refused(dual):
    with pytest.raises(ValueError, match="dual point"):
        SpikeDictionary(torch.zeros(2, 4, dtype=torch.uint8)).column_scores(dual)


@pytest.mark.parametrize(
    "found",
    [
        SpikeDictionary(torch.tensor([[0, 3], [255, 1]], dtype=torch.uint8), 0.25),
        SpikeDictionary(torch.tensor([[0, 3], [65535, 1]], dtype=torch.uint16)),
        SpikeDictionary(torch.tensor([[0.5, -1.5]])),
        SpikeDictionary(torch.randint(2, (9, 11), dtype=torch.uint8), 0.1).packed(),
    ],
)
def test_a_dictionary_is_read_as_it_was_written(found, tmp_path):
    found.save(tmp_path / "patterns.pt")
    again = SpikeDictionary.load(tmp_path / "patterns.pt")
    assert again.counts.dtype == found.counts.dtype
    assert torch.equal(again.to_dense(), found.to_dense())
    assert (again.scale, again.packed_columns) == (found.scale, found.packed_columns)


def test_part_of_a_larger_matrix_is_written_without_the_rest(tmp_path):
    large = torch.zeros(10_000, 100, dtype=torch.uint8)
    SpikeDictionary(large[:10]).save(tmp_path / "patterns.pt")
    assert (tmp_path / "patterns.pt").stat().st_size < 10_000


def _foreign_files(folder):
    SpikeDictionary(torch.ones(50, 50, dtype=torch.uint8)).save(folder / "whole")
    whole = (folder / "whole").read_bytes()
    torch.save({"weight": torch.zeros(2)}, folder / "weights")
    torch.save(torch.nn.Linear(1, 1), folder / "module")
    torch.save({"format": "lightning_cvxsnn.SpikeDictionary 2"}, folder / "later")
    torch.save({"format": "lightning_cvxsnn.SpikeDictionary 1"}, folder / "without")
    (folder / "cut").write_bytes(whole[: len(whole) // 2])
    (folder / "text").write_text("patterns")
    (folder / "empty").write_bytes(b"")
    return ["weights", "module", "later", "without", "cut", "text", "empty"]


def test_other_files_are_refused(tmp_path):
    for name in _foreign_files(tmp_path):
        with pytest.raises(ValueError, match=f"{name}.*SpikeDictionary"):
            SpikeDictionary.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        SpikeDictionary.load(tmp_path / "nowhere")


def test_rows():
    found = SpikeDictionary.from_values(torch.arange(6.0).reshape(3, 2), 0.5)
    mask = torch.tensor([True, False, True])
    assert torch.equal(found.rows(mask).to_dense(), found.to_dense()[mask])
    assert found.rows(mask).shape == (2, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(3), "shape"),
        (torch.tensor([[float("nan")]]), "NaN"),
        (torch.tensor([[float("inf")]]), "infinity"),
        (torch.tensor([[1e39, 0.5]], dtype=torch.float64), "beyond 3e38"),
        (torch.ones(1, 1, dtype=torch.complex64), "complex64"),
    ],
)
def test_what_is_no_dictionary_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SpikeDictionary.from_values(values)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.float16])
def test_any_real_dtype(dtype):
    found = SpikeDictionary.from_values(torch.tensor([[0, 3], [7, 1]]).to(dtype))
    assert found.counts.dtype == torch.uint8
    assert found.to_dense().tolist() == [[0.0, 3.0], [7.0, 1.0]]


def test_no_graph_is_kept():
    assert not SpikeDictionary.from_values(torch.rand(2, 2, requires_grad=True)).counts.requires_grad


@given(st.lists(st.tuples(_matrices(1, columns=9), st.sampled_from([1, 200, 300, 0.5])), min_size=1, max_size=4))
def test_columns_side_by_side(parts):
    rows = min(len(entries) for entries, _ in parts)
    values = [torch.tensor(entries[:rows]) * factor for entries, factor in parts]
    found = [SpikeDictionary.from_values(value, 0.5) for value in values]
    for several in (found, [d.packed() if factor == 1 else d for d, (_, factor) in zip(found, parts, strict=True)]):
        joined = SpikeDictionary.side_by_side(several)
        assert torch.equal(joined.to_dense(), torch.cat([value.double() for value in values], 1) * 0.5)
        assert joined.counts.dtype in {d.counts.dtype for d in found}
    tall = [SpikeDictionary.from_values(value.T, 0.5) for value in values]
    for several in (tall, [d.packed() if factor == 1 else d for d, (_, factor) in zip(tall, parts, strict=True)]):
        stacked = SpikeDictionary.stacked(several)
        assert torch.equal(stacked.to_dense(), joined.to_dense().T)
        assert stacked.counts.dtype in {d.counts.dtype for d in tall}


def test_dictionaries_of_other_rows_or_scales_do_not_join():
    one = SpikeDictionary(torch.zeros(2, 3, dtype=torch.uint8))
    for others in ([], [one, one.rows(torch.tensor([0]))], [one, SpikeDictionary(one.counts, 0.5)]):
        with pytest.raises(ValueError, match="same scale"):
            SpikeDictionary.side_by_side(others)
    for others in ([], [one, one.columns(torch.tensor([0]))], [one, SpikeDictionary(one.counts, 0.5)]):
        with pytest.raises(ValueError, match="same scale"):
            SpikeDictionary.stacked(others)


def test_columns():
    for largest in (1.0, 1000.0, 0.5):
        values = torch.arange(6.0).reshape(2, 3) * largest
        found = SpikeDictionary.from_values(values)
        index = torch.tensor([2, 0, 2])
        assert found.columns(index).counts.dtype == found.counts.dtype
        assert torch.equal(found.columns(index).to_dense(), values[:, index].double())


def test_other_counts_and_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"counts of torch.float64. Expected uint8, uint16 or float32"):
        SpikeDictionary(torch.rand(3, 4).double())
    with pytest.raises(ValueError, match=r"counts of shape \[3\]"):
        SpikeDictionary(torch.ones(3, dtype=torch.uint8))
    for counts in (torch.ones(3, 1, dtype=torch.uint8), torch.ones(3, 13)):
        with pytest.raises(ValueError, match=r"100 columns stored as bits. Expected \[rows, 13\] of uint8"):
            SpikeDictionary(counts, packed_columns=100)
    dictionary = SpikeDictionary(torch.ones(3, 4, dtype=torch.uint8))
    for coef in (torch.ones(4), torch.ones(3, 2)):
        with pytest.raises(ValueError, match=r"coef of shape .* Expected \[4, outputs\]"):
            dictionary @ coef
