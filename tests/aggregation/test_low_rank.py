"""The mean of products: what each method of low-rank aggregation gives, against the dense mean."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedelta.aggregation.base import Update
from fedelta.aggregation.fedex import FedEx
from fedelta.aggregation.fedsa import FedSa
from fedelta.aggregation.ffa import Ffa
from fedelta.aggregation.flora import Flora
from fedelta.aggregation.hlora import Hlora
from fedelta.aggregation.joining import Joining
from fedelta.aggregation.low_rank import Apart, Joined, LowRank, Pair, averaged, paths_of, sourced, stacked
from fedelta.aggregation.means import Uniform, Weighted
from fedelta.aggregation.rolora import RoLora
from fedelta.params import ParamSpec, TensorSpec
from fedelta.seeds import stream

SHAPES = st.tuples(st.integers(2, 12), st.integers(2, 12), st.integers(1, 4), st.integers(1, 5))


def drawn(out: int, columns: int, ranks: list[int], seed: int = 0) -> list[Pair]:
    """A pair for each of `ranks`, padded with zeros to the largest, with different shares."""
    generator, most = stream(seed, "pairs"), max(ranks)
    weights = torch.rand(len(ranks), generator=generator, dtype=torch.float64) + 0.1
    pairs = []
    for rank, share in zip(ranks, (weights / weights.sum()).tolist(), strict=True):
        a = torch.zeros(most, columns, dtype=torch.float64)
        b = torch.zeros(out, most, dtype=torch.float64)
        a[:rank] = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
        b[:, :rank] = torch.randn(out, rank, generator=generator, dtype=torch.float64)
        pairs.append(Pair(share, a, b))
    return pairs


def dense_mean(pairs: list[Pair]) -> Tensor:
    total = torch.zeros(pairs[0].b_OR.shape[0], pairs[0].a_RI.shape[1], dtype=torch.float64)
    for pair in pairs:
        total += pair.share * (pair.b_OR @ pair.a_RI)
    return total


def product(joined: Joined) -> Tensor:
    whole = joined.b_OR @ joined.a_RI
    return whole if joined.carried is None else whole + joined.carried[1] @ joined.carried[0]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-300))


@given(SHAPES, st.sampled_from([FedEx(), Flora()]), st.booleans())
def test_exact_methods_give_the_dense_mean_of_the_products(
    shape: tuple[int, int, int, int], method: LowRank, differs: bool
):
    out, columns, rank, count = shape
    pairs = drawn(out, columns, [max(1, rank - number % rank) if differs else rank for number in range(count)])
    joined = method.join(pairs, stream(0), ordered=differs)
    if joined is None:  # plain averaging is exact
        a, b = averaged(pairs)
        joined = Joined(a, b)
    assert error(product(joined), dense_mean(pairs)) < 1e-5


@given(SHAPES, st.booleans())
def test_hlora_is_the_truncated_svd_of_the_dense_mean(shape: tuple[int, int, int, int], differs: bool):
    out, columns, rank, count = shape
    rank = min(rank, out, columns)
    pairs = drawn(out, columns, [max(1, rank - number % rank) if differs else rank for number in range(count)])
    joined = Hlora().join(pairs, stream(0), ordered=True)
    assert joined is not None
    u, s, v = torch.linalg.svd(dense_mean(pairs), full_matrices=False)
    for lower in range(1, joined.a_RI.shape[0] + 1):  # ordered, so that every client's part is the best of its rank
        best = (u[:, :lower] * s[:lower]) @ v[:lower]
        assert error(joined.b_OR[:, :lower] @ joined.a_RI[:lower], best) < 1e-5
    assert torch.allclose(joined.a_RI @ joined.a_RI.T, torch.eye(len(joined.a_RI), dtype=torch.float64), atol=1e-8)


def test_hlora_gives_the_same_signs_whatever_the_signs_of_the_clients():
    pairs = drawn(6, 5, [2, 2, 2])
    turned = [Pair(pair.share, -pair.a_RI, -pair.b_OR) for pair in pairs]
    first, second = (Hlora().join(some, stream(0), ordered=True) for some in (pairs, turned))
    assert first is not None
    assert second is not None
    assert torch.allclose(first.a_RI, second.a_RI)
    assert torch.allclose(first.b_OR, second.b_OR)
    assert (first.a_RI.gather(1, first.a_RI.abs().argmax(1, keepdim=True)) > 0).all()


def test_a_direction_without_anything_can_still_be_learned():
    # All B are zero, as before the first step: zeros in A as well would never get a gradient.
    pairs = [pair._replace(b_OR=torch.zeros_like(pair.b_OR)) for pair in drawn(6, 5, [2, 2])]
    joined = Hlora().join(pairs, stream(0), ordered=True)
    assert joined is not None
    assert not joined.b_OR.any()
    assert torch.allclose(joined.a_RI @ joined.a_RI.T, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("method", [Hlora(), FedEx()])
def test_clients_that_agree_in_a_factor_are_averaged_plainly(method: LowRank):
    # sum_i p_i B_i A = (sum_i p_i B_i) A, and the same the other way round.
    pairs = drawn(6, 5, [2, 2, 2])
    same_a = [pair._replace(a_RI=pairs[0].a_RI) for pair in pairs]
    same_b = [pair._replace(b_OR=pairs[0].b_OR) for pair in pairs]
    for agreeing in (same_a, same_b, pairs[:1]):
        assert method.join(agreeing, stream(0), ordered=False) is None
    assert method.join(pairs, stream(0), ordered=False) is not None


def test_flora_leaves_out_the_rows_that_clients_of_lower_rank_lack():
    joined = Flora().join(drawn(9, 8, [1, 3, 2]), stream(0), ordered=True)
    assert joined is not None
    assert joined.carried is not None
    below, beside = joined.carried
    assert (len(below), beside.shape[1]) == (6, 6)
    assert not joined.b_OR.any()
    assert joined.a_RI.any(1).all()


def test_a_stack_of_pairs_has_each_weight_once():
    # 0.25 * 2 * 3 + 0.75 * 4 * 5 = 16.5
    pairs = [
        Pair(share, torch.tensor([[a]], dtype=torch.float64), torch.tensor([[b]], dtype=torch.float64))
        for share, a, b in ((0.25, 3.0, 2.0), (0.75, 5.0, 4.0))
    ]
    below, beside = stacked(pairs)
    assert (beside @ below).item() == 16.5


SPEC = ParamSpec({
    "x.lora_A": TensorSpec((2, 5, 3, 3), "x"),
    "x.lora_B": TensorSpec((6, 2, 1, 1), "x"),
    "head.weight": TensorSpec((3, 4), "head"),
})  # fmt: skip


def test_what_travels_follows_from_the_method():
    assert sourced(Apart(), SPEC) == SPEC
    ffa, fedsa, flora = sourced(Ffa(), SPEC), sourced(FedSa(), SPEC), sourced(Flora(), SPEC)
    assert ffa.shared == ("x.lora_B", "head.weight")
    assert ffa.given == ("x.lora_A",)
    assert ffa.kept == ()
    assert not ffa.tensors["x.lora_A"].trained
    assert ffa.num_parameters == 12 + 12
    assert fedsa.shared == ("x.lora_A", "head.weight")
    assert fedsa.kept == ("x.lora_B",)
    # min(6, 5 * 3 * 3) rows have space for any change of the kernel.
    assert flora.received == ("x.carried_A", "x.carried_B")
    assert flora.shared == SPEC.shared
    assert [flora.tensors[name].shape for name in flora.received] == [(6, 5, 3, 3), (6, 6, 1, 1)]
    assert paths_of(flora) == ("x",)


def test_rolora_begins_with_b():
    assert [RoLora().resting(turn) for turn in (1, 2, 3)] == ["lora_A", "lora_B", "lora_A"]


@pytest.mark.parametrize(("mean", "shares"), [(Weighted(), (0.25, 0.75)), (Uniform(), (0.5, 0.5))])
def test_pairs_weigh_what_the_mean_says_also_as_kernels(mean, shares):
    params = {name: torch.randn(tensor.shape, generator=stream(1, name)) for name, tensor in SPEC.tensors.items()}
    deltas = [
        {name: torch.randn(tensor.shape, generator=stream(2, name, client)) for name, tensor in SPEC.tensors.items()}
        for client in range(2)
    ]
    joining = Joining(Hlora(), mean, SPEC, params, params)
    for client, (delta, num_examples) in enumerate(zip(deltas, (10, 30), strict=True)):
        joining.add(Update(client, num_examples, delta))
    changes, carried = joining.finish(0, 1)
    assert changes.keys() == {"x.lora_A", "x.lora_B"}
    assert not carried
    expected = torch.zeros(6, 45, dtype=torch.float64)
    for share, delta in zip(shares, deltas, strict=True):
        a, b = ((params[f"x.{factor}"] + delta[f"x.{factor}"]).double().flatten(1) for factor in ("lora_A", "lora_B"))
        expected += share * (b @ a)
    u, s, v = torch.linalg.svd(expected, full_matrices=False)
    a, b = ((params[f"x.{factor}"] + changes[f"x.{factor}"]).flatten(1) for factor in ("lora_A", "lora_B"))
    assert error(b @ a, (u[:, :2] * s[:2]) @ v[:2]) < 1e-5
