"""Payloads with fewer rows of pairs: what travels, what comes back, and how a client knows the form."""

import pytest
import torch

from fedelta.aggregation.carrying import as_dense
from fedelta.aggregation.flora import Flora
from fedelta.aggregation.low_rank import sourced
from fedelta.codecs.cast import Cast
from fedelta.codecs.wire import decode, encode
from fedelta.federation.forms import Forms
from fedelta.params import Params, ParamSpec, TensorSpec
from fedelta.seeds import stream
from fedelta.strategies.base import Form

PAIRS = ParamSpec({
    "wide.lora_A": TensorSpec((3, 8), "wide"),
    "wide.lora_B": TensorSpec((4, 3), "wide"),
    "kernel.lora_A": TensorSpec((3, 2, 3, 3), "kernel"),
    "kernel.lora_B": TensorSpec((5, 3, 1, 1), "kernel"),
    "head.weight": TensorSpec((2, 4), "head"),
})  # fmt: skip
FORMS = Forms(sourced(Flora(), PAIRS))


def params_with(rows: int, *, dense: bool = False) -> Params:
    """Random tensors, in which so many rows of what is carried are in use, or all in dense form."""
    params = {name: torch.randn(tensor.shape, generator=stream(0, name)) for name, tensor in FORMS.wire.tensors.items()}
    for path in ("wide", "kernel"):
        c, d = params[f"{path}.carried_A"], params[f"{path}.carried_B"]
        if dense:
            product = torch.randn(d.shape[0], c[0].numel(), generator=stream(1, path))
            c_dense, d_dense = as_dense(c.flatten(1), product)
            params |= {f"{path}.carried_A": c_dense.reshape(c.shape), f"{path}.carried_B": d_dense.reshape(d.shape)}
        else:
            c[rows:], d[:, rows:] = 0, 0
    return params


@pytest.mark.parametrize("rank", [None, 3, 2, 1])
@pytest.mark.parametrize(("rows", "dense"), [(0, False), (2, False), (4, False), (5, False), (5, True)])
def test_a_client_finds_the_form_of_its_download_and_fills_up_what_did_not_travel(
    rank: int | None, rows: int, dense: bool
):
    params = params_with(rows, dense=dense)
    form = FORMS.form_of(params, rank)
    assert form.rows == ("dense" if dense else min(rows, 5))
    payload, _ = encode(FORMS.narrowed(params, form), FORMS.spec_of(form), Cast())
    found = FORMS.form_in(payload)
    assert FORMS.spec_of(found) == FORMS.spec_of(form)
    received = FORMS.widened(decode(payload, FORMS.spec_of(found), Cast())[0], found)
    assert list(received) == list(FORMS.wire)
    kept = 3 if rank is None else rank
    for name, tensor in params.items():
        expected = tensor.clone()
        if name.endswith("lora_A"):
            expected[kept:] = 0
        if name.endswith("lora_B"):
            expected[:, kept:] = 0
        assert torch.equal(received[name], expected)


def test_of_the_dense_form_only_the_change_of_the_layer_travels():
    spec = FORMS.spec_of(FORMS.form_of(params_with(0, dense=True), None))
    # 4 x 8: B is the identity; 5 x 18: likewise.
    assert {name for name in spec if "carried" in name} == {"wide.carried_A", "kernel.carried_A"}
    assert (spec.tensors["wide.carried_A"].numel, spec.tensors["kernel.carried_A"].numel) == (4 * 8, 5 * 18)


def test_a_layer_that_is_not_sent_is_not_filled_up():
    form = Form(2, 1)
    part = {name: tensor for name, tensor in params_with(1).items() if not name.startswith("kernel")}
    assert not any(name.startswith("kernel") for name in FORMS.widened(FORMS.narrowed(part, form), form))


def test_bytes_that_name_no_form_are_taken_for_the_usual_one():
    assert FORMS.form_in(b"FDLT") == FORMS.form_in(b"FDLT\x03" + bytes(30)) == Form()
