'''Torch functions that consist of others, written with functions that the table knows.'''
from functools import cache
from types import FunctionType

import torch
from torch.nn import functional

from ..kernels import blank_rows, per_channel


class Unwritten(Exception):
    '''A case of a function that is not written out: why, and what to use instead.'''


def lerp(start, end, weight):
    return start + weight * (end - start)


def addcdiv(x, tensor1, tensor2, *, value=1):
    return x + value * (tensor1 / tensor2)


def log_sigmoid_forward(x):
    return functional.logsigmoid(x), x.new_empty(0)


def glu(x, dim=-1):
    value, gate = x.chunk(2, dim)
    return value * torch.sigmoid(gate)


def cosine_similarity(x1, x2, dim=1, eps=1e-8):
    x1 = x1 / x1.norm(dim=dim, keepdim=True).clamp_min(eps)
    x2 = x2 / x2.norm(dim=dim, keepdim=True).clamp_min(eps)
    return (x1 * x2).sum(dim)


def layer_norm(x, shape, weight=None, bias=None, eps=1e-5, *_):
    return _affine(functional.layer_norm(x, shape, eps=eps), weight, bias)


def rms_norm(x, shape, weight=None, eps=None):
    return _affine(functional.rms_norm(x, shape, eps=eps), weight, None)


def group_norm(x, groups, weight=None, bias=None, eps=1e-5, *_):
    weight, bias = per_channel(weight, x), per_channel(bias, x)
    return _affine(functional.group_norm(x, groups, eps=eps), weight, bias)


def _affine(x, weight, bias):
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def batch_norm(x, weight, bias, mean, variance, training, momentum, eps, _):
    return functional.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)


def instance_norm(x, weight, bias, mean, variance, use_input_stats, momentum, eps, _):
    return functional.instance_norm(x, mean, variance, weight, bias, use_input_stats, momentum, eps)


def _conditional(normalize):
    '''A normalization whose statistics, weight or bias depend on the input.'''
    def run(x, mean=None, variance=None, weight=None, bias=None, *settings, **options):
        weight, bias = per_channel(weight, x), per_channel(bias, x)
        if any(tensor is not None and tensor.requires_grad for tensor in (mean, variance)):
            x = _standardized(x, mean, variance, *settings, **options)
        else:
            x = normalize(x, mean, variance, None, None, *settings, **options)
        return _affine(x, weight, bias)
    return run


def _standardized(x, mean, variance, training=False, momentum=.1, eps=1e-5, use_input_stats=False):
    if training or use_input_stats:
        raise Unwritten('a normalization that updates statistics which depend on the input has no rule; call '
                        'model.eval() first')
    return (x - per_channel(mean, x)) / (per_channel(variance, x) + eps).sqrt()


conditional_batch_norm = _conditional(functional.batch_norm)
conditional_instance_norm = _conditional(functional.instance_norm)


def attention(query, key, value, mask=None, dropout_p=0., is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    scores = query @ key.mT * (query.shape[-1] ** -.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = scores.softmax(-1)
    if mask is not None:
        weights = weights.masked_fill(blank_rows(scores, -1), 0.)
    return functional.dropout(weights, dropout_p) @ value


def threshold(x, threshold, value, inplace=False):
    output = torch.where(x <= threshold, value, x)
    return x.copy_(output) if inplace else output


def renorm(x, p, dim, maxnorm):
    axes = [axis for axis in range(x.ndim) if axis != dim % x.ndim]
    norm = torch.linalg.vector_norm(x, p, axes, keepdim=True)
    return x * torch.where(norm > maxnorm, maxnorm / (norm + 1e-7), 1.)


def scatter_reduce(x, dim, index, src, reduce, *, include_self=True):
    src = src[tuple(slice(size) for size in index.shape)]
    if reduce in ('amax', 'amin'):
        return _scatter_extremum(x, dim, index, src, reduce, include_self)
    if reduce not in ('sum', 'mean'):
        raise Unwritten(f'scatter_reduce and index_reduce have no rule for {reduce!r}; use sum, mean, amax or amin')
    x = x if include_self else x.scatter(dim, index, 0.)
    total = x.scatter_add(dim, index, src)
    if reduce == 'sum':
        return total
    count = torch.ones_like(x.detach())
    count = count if include_self else count.scatter(dim, index, 0.)
    return total / count.scatter_add(dim, index, torch.ones_like(src.detach()))


def _scatter_extremum(x, dim, index, src, reduce, include_self):
    '''Those that equal the extremum share, as torch's gradient has it.'''
    best = x.detach().scatter_reduce(dim, index, src.detach(), reduce, include_self=include_self)
    own = x.detach() == best
    own = own if include_self else own.scatter(dim, index, False)
    chosen = src.detach() == best.gather(dim, index)
    share = 1 / own.to(x.dtype).scatter_add(dim, index, chosen.to(x.dtype))
    src = torch.where(chosen, src, 0.) * share.gather(dim, index)
    return (torch.where(own, x, 0.) * share).scatter_add(dim, index, src)


def index_reduce(x, dim, index, source, reduce, *, include_self=True):
    places = index.reshape([-1 if axis == dim % x.ndim else 1 for axis in range(x.ndim)]).expand(source.shape)
    return scatter_reduce(x, dim, places, source, reduce, include_self=include_self)


def _lstm_step(gates, hidden, w_hh, b_hh, w_hr=None):
    h, c = hidden
    i, f, g, o = (gates + functional.linear(h, w_hh, b_hh)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return h if w_hr is None else functional.linear(h, w_hr), c


def _gru_step(gates, hidden, w_hh, b_hh):
    reset, update, new = gates.chunk(3, -1)
    reset_h, update_h, new_h = functional.linear(hidden[0], w_hh, b_hh).chunk(3, -1)
    new = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
    update = torch.sigmoid(update + update_h)
    return (new + update * (hidden[0] - new),)


def _tanh_step(gates, hidden, w_hh, b_hh):
    return (torch.tanh(gates + functional.linear(hidden[0], w_hh, b_hh)),)


def _relu_step(gates, hidden, w_hh, b_hh):
    return (torch.relu(gates + functional.linear(hidden[0], w_hh, b_hh)),)


def _cell(step):
    def cell(x, hidden, w_ih, w_hh, b_ih=None, b_hh=None):
        single = isinstance(hidden, torch.Tensor)
        hidden = step(functional.linear(x, w_ih, b_ih), (hidden,) if single else tuple(hidden), w_hh, b_hh)
        return hidden[0] if single else hidden
    return cell


def _recurrence(step):
    '''All layers and directions of a recurrent network, step by step, so that its gates are seen.'''
    def run(x, hx, params, biases, layers, dropout, train, bidirectional, batch_first=False):
        if isinstance(biases, (list, tuple)):  # the parameters, which sizes of batches push one place on
            raise Unwritten('a recurrence over a packed sequence has no rule; pad to one length instead')
        states = (hx,) if isinstance(hx, torch.Tensor) else tuple(hx)
        x = x.transpose(0, 1) if batch_first else x
        directions, last = 2 if bidirectional else 1, []
        size = len(params) // (layers * directions)
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                own = _weights(params[index * size:(index + 1) * size], biases)
                output, hidden = _scan(step, x, tuple(state[index] for state in states), *own, reverse=direction == 1)
                outputs.append(output)
                last.append(hidden)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if layer + 1 < layers:
                x = functional.dropout(x, dropout, train)
        return x.transpose(0, 1) if batch_first else x, *map(torch.stack, zip(*last, strict=True))
    return run


def _weights(params, biases):
    '''Weights and biases of the inputs, then those of the hidden state, then the projection if there is one.'''
    w_ih, w_hh, *rest = params
    b_ih, b_hh = rest[:2] if biases else (None, None)
    return w_ih, b_ih, w_hh, b_hh, *rest[2 if biases else 0:]


def _scan(step, x, hidden, w_ih, b_ih, *own, reverse):
    gates, outputs = functional.linear(x, w_ih, b_ih).unbind(0), []
    for gate in reversed(gates) if reverse else gates:
        hidden = step(gate, hidden, *own)
        outputs.append(hidden[0])
    return torch.stack(outputs[::-1] if reverse else outputs), hidden


lstm, lstm_cell = _recurrence(_lstm_step), _cell(_lstm_step)
gru, gru_cell = _recurrence(_gru_step), _cell(_gru_step)
rnn_tanh, rnn_tanh_cell = _recurrence(_tanh_step), _cell(_tanh_step)
rnn_relu, rnn_relu_cell = _recurrence(_relu_step), _cell(_relu_step)


@cache
def visible(function):
    '''A copy of a Python function of torch that does not hand itself over to a mode, which then sees its inside.'''
    checks = {name: lambda *_: False for name in function.__globals__ if name.startswith('has_torch_function')}
    copy = FunctionType(function.__code__, {**function.__globals__, **checks}, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy
