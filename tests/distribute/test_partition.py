"""Partitions, tested as pure functions: everything is owned once, and in equal slices."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from revkeras.distribute.partition import (
    even_buckets,
    own_range,
    pieces,
    share,
    whole_buckets,
)

sizes = st.lists(st.integers(1, 50), min_size=1, max_size=12)
ranks = st.integers(1, 5)
bucket_sizes = st.integers(1, 120)


@pytest.mark.parametrize("make", [even_buckets, whole_buckets])
@settings(max_examples=200, deadline=None)
@given(sizes, ranks, bucket_sizes)
def test_every_element_has_one_owner(make, sizes, n_ranks, bucket_size):
    buckets = make(sizes, n_ranks, bucket_size)
    owners = [[0] * size for size in sizes]
    for bucket in buckets:
        for segments in bucket.slices:
            assert sum(s.size for s in segments) == bucket.slice_size
            for s in segments:
                if s.variable is not None:
                    for i in range(s.start, s.stop):
                        owners[s.variable][i] += 1
    assert all(count == 1 for variable in owners for count in variable)


@settings(max_examples=100, deadline=None)
@given(sizes, ranks, bucket_sizes)
def test_even_slices_pad_less_than_one_element_a_rank(sizes, n_ranks, bucket_size):
    for bucket in even_buckets(sizes, n_ranks, bucket_size):
        whole = sum(sizes[v] for v in bucket.variables)
        assert 0 <= bucket.slice_size * n_ranks - whole < n_ranks
        assert list(bucket.variables) == sorted(bucket.variables, reverse=True)  # last layers first


@settings(max_examples=100, deadline=None)
@given(sizes, ranks, bucket_sizes)
def test_whole_variables_have_one_owner_and_little_padding(sizes, n_ranks, bucket_size):
    buckets = whole_buckets(sizes, n_ranks, bucket_size)
    owned = [pieces(buckets, rank) for rank in range(n_ranks)]
    assert sorted(p.segment.variable for own in owned for p in own) == list(range(len(sizes)))
    assert all(p.segment.size == sizes[p.segment.variable] for own in owned for p in own)
    longest = sum(bucket.slice_size for bucket in buckets)
    assert longest <= sum(sizes) / n_ranks + max(sizes)


@pytest.mark.parametrize("make", [even_buckets, whole_buckets])
@settings(max_examples=100, deadline=None)
@given(sizes, ranks, bucket_sizes)
def test_pieces_are_their_sources_one_after_the_other(make, sizes, n_ranks, bucket_size):
    buckets = make(sizes, n_ranks, bucket_size)
    for rank in range(n_ranks):
        for piece in pieces(buckets, rank):
            parts = [buckets[b].slices[rank][i] for b, i in piece.sources]
            assert [p.start for p in parts[1:]] == [p.stop for p in parts[:-1]]
            assert (parts[0].start, parts[-1].stop) == (piece.segment.start, piece.segment.stop)


@pytest.mark.parametrize("make", [even_buckets, whole_buckets])
@settings(max_examples=50, deadline=None)
@given(sizes, ranks, bucket_sizes)
def test_runs_are_the_whole_bucket_in_order(make, sizes, n_ranks, bucket_size):
    for bucket in make(sizes, n_ranks, bucket_size):
        assert sum(run.size for run in bucket.runs) == bucket.slice_size * n_ranks


@given(st.integers(1, 1000), ranks)
def test_ranges_of_a_variable_that_is_cut_by_itself(size, n_ranks):
    ranges = [own_range(size, n_ranks, rank) for rank in range(n_ranks)]
    assert ranges[0][0] == 0
    assert ranges[-1][1] == size
    assert all(a[1] == b[0] for a, b in zip(ranges, ranges[1:]))
    assert max(stop - start for start, stop in ranges) == share(size, n_ranks)
