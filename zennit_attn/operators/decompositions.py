'''Torch functions that consist of others, written with functions that the table knows.'''
from functools import cache, partial
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
    def run(x, *arguments):
        if isinstance(arguments[0], torch.Tensor) and not arguments[0].is_floating_point():
            sizes, *arguments = arguments
            return layered(partial(_scan_packed, sizes.tolist()), x, *arguments)
        return padded(x, *arguments)

    def padded(x, hx, params, biases, layers, dropout, train, bidirectional, batch_first=False):
        x = x.transpose(0, 1) if batch_first else x
        x, *last = layered(_scan, x, hx, params, biases, layers, dropout, train, bidirectional)
        return x.transpose(0, 1) if batch_first else x, *last

    def layered(scan, x, hx, params, biases, layers, dropout, train, bidirectional):
        states = (hx,) if isinstance(hx, torch.Tensor) else tuple(hx)
        directions, last = 2 if bidirectional else 1, []
        size = len(params) // (layers * directions)
        for layer in range(layers):
            outputs = []
            for direction in range(directions):
                index = layer * directions + direction
                w_ih, b_ih, *own = _weights(params[index * size:(index + 1) * size], biases)
                output, hidden = scan(lambda gate, hidden, own=own: step(gate, hidden, *own),
                                      functional.linear(x, w_ih, b_ih), tuple(state[index] for state in states),
                                      direction == 1)
                outputs.append(output)
                last.append(hidden)
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if layer + 1 < layers:
                x = functional.dropout(x, dropout, train)
        return x, *map(torch.stack, zip(*last, strict=True))
    return run


def _weights(params, biases):
    '''Weights and biases of the inputs, then those of the hidden state, then the projection if there is one.'''
    w_ih, w_hh, *rest = params
    b_ih, b_hh = rest[:2] if biases else (None, None)
    return w_ih, b_ih, w_hh, b_hh, *rest[2 if biases else 0:]


def _scan(step, gates, hidden, reverse):
    '''The outputs of all steps, and the last state.'''
    outputs = []
    for gate in reversed(gates.unbind(0)) if reverse else gates.unbind(0):
        hidden = step(gate, hidden)
        outputs.append(hidden[0])
    return torch.stack(outputs[::-1] if reverse else outputs), hidden


def _scan_packed(sizes, step, gates, hidden, reverse):
    '''The same where the steps have fewer and fewer sequences, of which the longest come first.'''
    outputs, ended, steps = [], [], gates.split(sizes)
    first, hidden = hidden, tuple(state[:0] for state in hidden) if reverse else hidden
    for size, gate in reversed([*zip(sizes, steps, strict=True)]) if reverse else zip(sizes, steps, strict=True):
        if reverse:
            begun = (state[len(last):size] for state, last in zip(first, hidden, strict=True))
            hidden = tuple(map(_joined, zip(hidden, begun, strict=True)))
        else:
            ended.append(tuple(state[size:] for state in hidden))
            hidden = tuple(state[:size] for state in hidden)
        hidden = step(gate, hidden)
        outputs.append(hidden[0])
    last = tuple(map(_joined, zip(hidden, *reversed(ended), strict=True)))
    return torch.cat(outputs[::-1] if reverse else outputs), last


def _joined(parts):
    return torch.cat([part for part in parts if len(part)])


def pad_packed_sequence(data, sizes, batch_first=False, padding_value=0., total_length=-1):
    sequences = torch.arange(sizes[0], device=data.device)
    there = sequences < sizes.to(data.device)[:, None]
    places = (sizes.cumsum(0) - sizes).to(data.device)[:, None] + sequences
    output = data[places.where(there, 0)]
    output = output.masked_fill(~there.reshape(*there.shape, *[1] * (data.ndim - 1)), padding_value)
    if total_length > len(output):
        shape = (total_length - len(output), *output.shape[1:])
        output = torch.cat([output, data.new_full(shape, padding_value)])
    return output.transpose(0, 1) if batch_first else output, (sizes > sequences.cpu()[:, None]).sum(1)


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
