'''Writes past autograd: weights that change inside a forward, and memory of tensors that carry relevance.'''
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from helpers import equal_maps, explain, stock
from zennit_attn.errors import AttributionError

from .helpers import every_composite


class Layer(nn.Module):
    '''A layer whose weights are doubled by some way, between two others.'''
    def __init__(self, call):
        super().__init__()
        self.first, self.fc, self.out, self.call = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3), call

    def forward(self, x):
        return self.out(self.call(self.fc, self.first(x)).relu())


def by_data(fc, x):
    fc.weight.data.mul_(2)
    y = fc(x)
    fc.weight.data.div_(2)
    return y


def without_grad(fc, x):
    with torch.no_grad():
        fc.weight.mul_(2)
    y = fc(x)
    with torch.no_grad():
        fc.weight.div_(2)
    return y


def by_a_row(fc, x):
    kept = fc.weight.detach().clone()
    fc.weight.data[0].mul_(2)
    y = fc(x)
    fc.weight.data.copy_(kept)
    return y


def by_other_memory(fc, x):
    kept = fc.weight.data
    fc.weight.data = kept * 2
    y = fc(x)
    fc.weight.data = kept
    return y


def limited(fc, x):
    fc.weight.data = torch.renorm(fc.weight.data, 2, 0, .5)
    return fc(x)


def by_a_list(fc, x):
    torch._foreach_mul_([fc.weight.data], 2)
    y = fc(x)
    torch._foreach_div_([fc.weight.data], 2)
    return y


def by_an_out_argument(fc, x):
    weight = fc.weight.data
    torch.mul(weight, 2, out=weight)
    y = fc(x)
    torch.div(weight, 2, out=weight)
    return y


def by_numpy(fc, x):
    array = fc.weight.detach().numpy()
    array *= 2
    y = fc(x)
    array /= 2
    return y


def by_a_copy_for_numpy(fc, x):
    array = fc.weight.detach().clone().numpy()
    array *= 2
    return fc(x) * float(abs(array).max())


def by_a_number(fc, x):
    return fc(x) * float(2 * fc.weight.detach().abs().max())


def limited_in_place(fc, x):
    with torch.no_grad():
        fc.weight.renorm_(2, 0, .5)
    return fc(x)


def limited_copy(fc, x):
    return F.linear(x, torch.renorm(fc.weight, 2, 0, .5), fc.bias)


def of_data(fc, x):
    y = fc(x)
    z = y * 3
    y.data.mul_(2)
    return y + z


def of_detached(fc, x):
    y = fc(x)
    z = y.relu()
    y.detach().mul_(2)
    return y + z


def of_a_view(fc, x):
    y = fc(x)
    y.detach()[:, 0].zero_()
    return y


def of_numpy(fc, x):
    y = fc(x)
    z = y * y
    array = y.detach().numpy()
    array *= 2
    return y + z


def under_vmap(fc, x):
    y = fc(x)
    z = y * y
    torch.vmap(lambda row: row.mul_(2))(y.data)
    return y + z


def by_out(fc, x):
    y = fc(x)
    z = y * y
    torch.mul(y.data, 2, out=y.data)
    return y + z


def of_a_list(fc, x):
    y = fc(x)
    z = y * y
    torch._foreach_mul_([y.data], 2)
    return y + z


def only_read(fc, x):
    y = fc(x)
    assert y.detach().numpy().shape == y.data.shape
    return y / torch.from_numpy(abs(y.detach().numpy()) + 1)


def of_an_own_copy(fc, x):
    y = fc(x)
    scale = y.detach().clone().abs_().add_(1)
    return y / scale


def of_a_copy(fc, x):
    y = fc(x)
    return y / (y.detach().abs() + 1)


def built(call):
    torch.manual_seed(3)
    return Layer(call).double().eval(), torch.randn(4, 5, dtype=torch.float64)


def doubled(fc, x):
    return F.linear(x, 2 * fc.weight, fc.bias)


def doubled_row(fc, x):
    return F.linear(x, torch.cat([2 * fc.weight[:1], fc.weight[1:]]), fc.bias)


@every_composite
@pytest.mark.parametrize(('call', 'same'), [
    (by_data, doubled), (without_grad, doubled), (by_a_row, doubled_row), (by_other_memory, doubled),
    (by_a_list, doubled), (by_an_out_argument, doubled), (by_numpy, doubled)])
def test_weights_changed_and_changed_back(call, same, composite):
    '''The gradient would see the weights after the forward; these are half of those in it. A rule of the layer does.'''
    model, input = built(call)
    if composite is stock:
        before = model.fc.weight.clone()
        words = {by_other_memory: 'has other parameters than', by_numpy: 'to NumPy'}.get(
            call, 'which has a rule, ran before')
        with pytest.raises(AttributionError, match=f"'fc[\\s\\S]*{words}"):
            explain(model, input, composite)
        assert torch.equal(model.fc.weight, before)
        return
    assert equal_maps(explain(model, input, composite)[1], explain(*built(same), composite)[1])


@every_composite
def test_a_copy_for_numpy(composite):
    '''The advice of the refusal.'''
    expected = explain(*built(by_a_number), composite)[1]
    assert equal_maps(explain(*built(by_a_copy_for_numpy), composite)[1], expected)


@every_composite
@pytest.mark.parametrize('call', [limited, limited_in_place])
def test_weights_changed_before_their_use(call, composite):
    '''As where the norm of weights is limited: the map is that of the weights which are used.'''
    model, input = built(call)
    _, relevance = explain(model, input, composite)
    if composite is not stock:  # a rule for Linear follows modules, and does not see the function
        assert equal_maps(relevance, explain(*built(limited_copy), composite)[1])


@every_composite
@pytest.mark.parametrize('call', [
    of_data, of_detached, of_a_view, of_numpy, under_vmap, by_out, of_a_list])
def test_hidden_writes_into_what_carries_relevance(call, composite):
    model, input = built(call)
    with pytest.raises(AttributionError, match=r'past autograd[\s\S]*test_hidden_writes\.py[\s\S]*clone'):
        explain(model, input, composite)


@every_composite
@pytest.mark.parametrize('call', [of_an_own_copy, only_read])
def test_writes_into_a_copy(call, composite):
    assert equal_maps(explain(*built(call), composite)[1], explain(*built(of_a_copy), composite)[1])
