"""Bottlenecks against their formula, and the state that the parallel form keeps."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from skpeft._network import AdapterNetwork
from skpeft.adapters import Bottleneck, resolve_adapter
from skpeft.adapters.base import Handover, Stack
from skpeft.adapters.bottleneck import BottleneckNetwork
from skpeft.encoders import TinyTextEncoder

N_IN, N_INNER, N_OUT, WIDTH = 6, 10, 7, 3


def linear(n_in, n_out, seed):
    layer = nn.Linear(n_in, n_out).double().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.normal_(generator=generator)
    return layer


def randomise(module, seed=0):
    """Give all trainable tensors values, in float64."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, BottleneckNetwork):
            part.double()
            for tensor in part.parameters():
                tensor.data.normal_(generator=generator)
    return module


def sites():
    return {"ffn_in": linear(N_IN, N_INNER, 0), "ffn_out": linear(N_INNER, N_OUT, 1)}


def by_hand(network, x):
    """The two-layer network in numpy."""
    down, down_bias, up, up_bias = (
        tensor.detach().numpy()
        for tensor in (network.down, network.down_bias, network.up, network.up_bias)
    )
    return np.maximum(x @ down.T + down_bias, 0) @ up.T + up_bias


def rows(n=5):
    return torch.randn(n, N_IN, generator=torch.Generator().manual_seed(2)).double()


def test_serial_bottleneck_equals_the_formula():
    site = linear(N_IN, N_OUT, 0)
    spec = Bottleneck(WIDTH, placement="pfeiffer")
    (layers,) = spec.attach(Stack([{"ffn_out": site}]), torch.Generator())
    layer = randomise(layers["ffn_out"])
    hidden = site(rows()).numpy()
    expected = hidden + by_hand(layer.network, hidden)
    np.testing.assert_allclose(layer(rows()).detach().numpy(), expected, rtol=1e-12)
    assert np.abs(expected - hidden).max() > 0.1


def test_parallel_bottleneck_equals_the_formula():
    frozen = sites()
    spec = Bottleneck(WIDTH, placement="parallel")
    (layers,) = spec.attach(Stack([frozen]), torch.Generator())
    adapted = randomise(nn.ModuleDict(layers))
    x = rows()
    found = adapted["ffn_out"](adapted["ffn_in"](x).relu())
    network = adapted["ffn_in"].network
    feed_forward = frozen["ffn_out"](frozen["ffn_in"](x).relu()).numpy()
    expected = feed_forward + 4.0 * by_hand(network, x.numpy())
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scaling", [None, 0.5, "learned"], ids=str)
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("tanh", np.tanh),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("gelu", lambda x: x * norm.cdf(x)),
    ],
)
def test_bottleneck_with_other_non_linearity_and_factor(activation, function, scaling):
    spec = Bottleneck(
        WIDTH, placement="pfeiffer", activation=activation, scaling=scaling
    )
    site = linear(N_IN, N_OUT, 0)
    (layers,) = spec.attach(Stack([{"ffn_out": site}]), torch.Generator())
    network = layers["ffn_out"].network
    start = {None: 1.0, 0.5: 0.5, "learned": 1.0}[scaling]
    assert float(network.scaling) == start
    randomise(layers["ffn_out"])
    hidden = site(rows()).numpy()
    down, down_bias, up, up_bias = (
        tensor.detach().numpy()
        for tensor in (network.down, network.down_bias, network.up, network.up_bias)
    )
    inner = function(hidden @ down.T + down_bias) @ up.T + up_bias
    found = layers["ffn_out"](rows()).detach().numpy()
    np.testing.assert_allclose(
        found, hidden + float(network.scaling) * inner, rtol=1e-6
    )


@pytest.mark.parametrize(
    ("placement", "roles", "n_networks"),
    [
        ("houlsby", {"attention_output", "ffn_out"}, 2),
        ("pfeiffer", {"ffn_out"}, 1),
        ("parallel", {"ffn_in", "ffn_out"}, 1),
    ],
)
def test_placement_says_where_the_networks_go(placement, roles, n_networks):
    spec = Bottleneck(WIDTH, placement=placement)
    assert set(spec.target_roles()) == roles
    network = AdapterNetwork(
        TinyTextEncoder(n_layers=1),
        spec,
        None,
        n_features=1,
        device="cpu",
        precision="float32",
        seed=0,
    )
    modules = network.live.module.modules()
    assert sum(isinstance(part, BottleneckNetwork) for part in modules) == n_networks


def parallel_network(n_layers=2):
    network = AdapterNetwork(
        TinyTextEncoder(n_layers=n_layers),
        Bottleneck(8, placement="parallel"),
        None,
        n_features=1,
        device="cpu",
        precision="float64",
        seed=0,
    )
    randomise(network.live.module)
    return network


def handovers(network):
    modules = network.live.module.modules()
    return [part for part in modules if isinstance(part, Handover)]


def test_parallel_network_serves_two_threads_at_once():
    network = parallel_network()
    texts = [["good film", "bad film"], ["a small green tea pot", "one more book"]]
    items = [network.live.prepare(batch) for batch in texts]
    expected = [network.live.features(batch) for batch in items]
    assert np.abs(expected[0] - expected[1]).max() > 0.1
    barrier = Barrier(2, timeout=30)

    def meet(*arguments):  # both threads are between the two layers at the same time
        barrier.wait()

    handles = [
        part.register_forward_hook(meet)
        for name, part in network.live.module.named_modules()
        if name.endswith("ffn_in")
    ]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(network.live.features, items))
    for handle in handles:
        handle.remove()
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_parallel_network_keeps_no_state_after_a_call():
    network = parallel_network()
    network.live.features(network.live.prepare(["good film"]))
    assert len(handovers(network)) == 2
    for waiting in handovers(network):
        with pytest.raises(KeyError):
            waiting.take()


def test_parallel_network_after_a_failed_call_gives_the_right_answer():
    network = parallel_network()
    items = network.live.prepare(["good film"])
    expected = network.live.features(items)

    def fail(*arguments):
        raise FloatingPointError

    inside = network.live.module.get_submodule("blocks.1.ffn_in.base")
    handle = inside.register_forward_hook(fail)
    with pytest.raises(FloatingPointError):
        network.live.features(
            network.live.prepare(["a much longer text than the one before"])
        )
    handle.remove()
    np.testing.assert_array_equal(network.live.features(items), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bottleneck_dim": 0}, r"'bottleneck_dim' parameter of Bottleneck.*Got 0"),
        ({"placement": "serial"}, r"'placement' parameter .*pfeiffer.*Got 'serial'"),
        ({"dropout": -0.1}, r"'dropout' parameter of Bottleneck.*Got -0.1"),
    ],
    ids=str,
)
def test_bottleneck_with_wrong_parameter_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        resolve_adapter(Bottleneck(**parameters))


def test_rank_of_an_estimator_sets_the_inner_width():
    spec = Bottleneck(placement="pfeiffer")
    resolved = resolve_adapter(spec, rank=5)
    assert resolved.get_params() == {**spec.get_params(), "bottleneck_dim": 5}
    assert spec.bottleneck_dim != 5
