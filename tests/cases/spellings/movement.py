'''What moves, picks and pools values.'''
import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat


def full(x, value=1.):
    return torch.full((1, 6), value, dtype=x.dtype)


def valid(x):
    '''Which tokens count.'''
    return torch.tensor([[1, 1, 1, 0, 1, 0], [1, 0, 1, 1, 1, 1]])[..., None].to(x)


def chosen(m, x):
    return torch.where(m.bias > 0, m.a(x), m.b(x))


def chosen_item(m, x):
    output = m.b(x)
    output[..., m.bias > 0] = m.a(x)[..., m.bias > 0]
    return output


def prefix_loop(m, x):
    total, outputs = torch.zeros_like(x[:, 0]), []
    for i in range(6):
        total = total + x[:, i]
        outputs.append(total)
    return torch.stack(outputs, 1)


def prefix_in_place(m, x):
    for i in range(1, 6):
        x[:, i] += x[:, i - 1]
    return x


def prefix_conv(m, x):
    return F.conv1d(F.pad(x.mT, (5, 0)), torch.ones(12, 1, 6).to(x), groups=12).mT


def counts(x):
    return torch.arange(1, 7).to(x)[:, None]


def shifted_in_place(m, x):
    output = torch.zeros_like(x)
    output[:, 1:] = x[:, :-1]
    return output


def shift_matrix(m, x):
    return torch.ones(5).diag(-1).to(x) @ x


def masked_roll(m, x):
    x = x.roll(1, 1)
    x[:, 0] = 0
    return x


def swapped(m, x):
    left, right = x.chunk(2, -1)
    return torch.cat([right, left], -1)


def parted(m, x):
    a, b, c = x.split([2, 4, 6], -1)
    return torch.cat([m.a(x)[..., :2] + a, b, c * 2], -1)


def parted_in_place(m, x):
    first = m.a(x)[..., :2]
    x[..., :2] += first
    x[..., 6:] *= 2
    return x


def ordered(x):
    return torch.tensor([3, 0, 5, 1, 4, 2])


SPELLINGS = {
    'mean of tokens': [
        ('mean', lambda m, x: x.mean(1, keepdim=True).expand_as(x)),
        ('sum', lambda m, x: (x.sum(1) / x.shape[1])[:, None].expand(2, 6, 12)),
        ('torch', lambda m, x: torch.mean(x, dim=1, keepdim=True).repeat(1, 6, 1)),
        ('einsum', lambda m, x: repeat(torch.einsum('bnd->bd', x) / 6, 'b d -> b n d', n=6)),
        ('einsum of weights', lambda m, x: torch.einsum('bnd,n->bd', x, full(x, 1 / 6)[0])[:, None].repeat(1, 6, 1)),
        ('matmul', lambda m, x: (full(x, 1 / 6) @ x).expand(2, 6, 12)),
        ('square matrix', lambda m, x: torch.full((6, 6), 1 / 6, dtype=x.dtype) @ x),
        ('adaptive pooling', lambda m, x: F.adaptive_avg_pool1d(x.mT, 1).expand(2, 12, 6).mT),
        ('module', lambda m, x: m.functions['mean'](x.transpose(1, 2)).transpose(1, 2).expand_as(x)),
        ('pooling', lambda m, x: F.avg_pool1d(x.mT, 6).mT.expand_as(x)),
        ('einops', lambda m, x: repeat(reduce(x, 'b n d -> b d', 'mean'), 'b d -> b n d', n=6)),
        ('last of cumsum', lambda m, x: (x.cumsum(1)[:, -1:] / 6).expand_as(x)),
        ('builtin', lambda m, x: (sum(x.unbind(1)) / 6).unsqueeze(1).expand_as(x)),
        ('beside zeros', lambda m, x: x.mean(1, keepdim=True) + torch.zeros_like(x)),
    ],
    'mean of valid tokens': [
        ('product', lambda m, x: ((x * valid(x)).sum(1) / valid(x).sum(1))[:, None].expand_as(x)),
        ('einsum', lambda m, x: (torch.einsum('bnd,bn->bd', x, valid(x)[..., 0]) / valid(x).sum(1)
                                 ).unsqueeze(1).expand_as(x)),
        ('where', lambda m, x: (torch.where(valid(x) > 0, x, 0.).sum(1, True) / valid(x).sum(1, True)).expand_as(x)),
        ('masked_fill', lambda m, x: x.masked_fill(valid(x) == 0, 0.).sum(1, True).div(valid(x).sum(1, True)
                                                                                     ).repeat(1, 6, 1)),
        ('weights', lambda m, x: ((valid(x) / valid(x).sum(1, True)).mT @ x).expand_as(x)),
        ('items', lambda m, x: torch.stack([own[keep[:, 0] > 0].mean(0).expand(6, 12) for own, keep in zip(
            x, valid(x), strict=True)])),
        ('in place', lambda m, x: x.mul_(valid(x)).sum(1, keepdim=True).div_(valid(x).sum(1, True)).expand(2, 6, 12)),
    ],
    'sum of tokens': [
        ('sum', lambda m, x: x.sum(1, keepdim=True).expand_as(x)), ('einsum', lambda m, x: torch.einsum(
            'bnd->bd', x)[:, None].expand_as(x)), ('matmul', lambda m, x: torch.ones(6, 6).to(x) @ x),
        ('cumsum', lambda m, x: x.cumsum(1)[:, -1:].repeat(1, 6, 1)),
        ('mean', lambda m, x: (x.mean(1, True) * 6).expand_as(x)),
        ('index_add', lambda m, x: torch.zeros(2, 1, 12).to(x).index_add(
            1, torch.zeros(6, dtype=torch.long), x).expand_as(x)),
    ],
    'largest token': [
        ('amax', lambda m, x: x.amax(1, keepdim=True).expand_as(x)),
        ('max', lambda m, x: x.max(1, keepdim=True)[0].expand_as(x)),
        ('torch', lambda m, x: torch.max(x, dim=1).values[:, None].repeat(1, 6, 1)),
        ('pooling', lambda m, x: F.max_pool1d(x.mT, 6).mT.expand_as(x)),
        ('adaptive pooling', lambda m, x: F.adaptive_max_pool1d(x.mT, 1).mT.expand_as(x)),
        ('module', lambda m, x: m.functions['max'](x.mT).mT.expand_as(x)),
        ('topk', lambda m, x: x.topk(1, 1)[0].expand_as(x)), ('sort', lambda m, x: x.sort(1)[0][:, -1:].expand_as(x)),
        ('einops', lambda m, x: repeat(reduce(x, 'b n d -> b d', 'max'), 'b d -> b n d', n=6)),
        ('gather', lambda m, x: x.gather(1, x.argmax(1, keepdim=True)).expand_as(x)),
        ('cummax', lambda m, x: x.cummax(1)[0][:, -1:].expand_as(x)),
        ('negative min', lambda m, x: -(-x).min(1, True)[0].expand_as(x)),
        ('one by one', lambda m, x: torch.maximum(torch.maximum(torch.maximum(x[:, 0], x[:, 1]), torch.maximum(
            x[:, 2], x[:, 3])), torch.max(x[:, 4], x[:, 5])).unsqueeze(1).expand_as(x)),
    ],
    'cumulative sum': [
        ('cumsum', lambda m, x: x.cumsum(1)), ('torch', lambda m, x: torch.cumsum(x, dim=1)),
        ('triangle', lambda m, x: torch.ones(6, 6).tril().to(x) @ x),
        ('einsum', lambda m, x: torch.einsum('ij,bjd->bid', torch.ones(6, 6).tril().to(x), x)),
        ('loop', prefix_loop), ('in place', prefix_in_place), ('convolution', prefix_conv),
        ('cumsum in place', lambda m, x: x.cumsum_(1)),
    ],
    'cumulative mean': [
        ('cumsum', lambda m, x: x.cumsum(1) / counts(x)),
        ('triangle', lambda m, x: (torch.ones(6, 6).tril().to(x) / counts(x)) @ x),
        ('softmax of zeros', lambda m, x: torch.zeros(6, 6).to(x).masked_fill(torch.ones(6, 6).triu(1) > 0, -torch.inf
                                                                              ).softmax(-1) @ x),
        ('prefixes', lambda m, x: torch.stack([x[:, :i + 1].mean(1) for i in range(6)], 1)),
    ],
    'shift by a token': [
        ('pad', lambda m, x: F.pad(x, (0, 0, 1, -1))), ('pad and slice', lambda m, x: F.pad(x, (0, 0, 1, 0))[:, :-1]),
        ('cat', lambda m, x: torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)), ('in place', shifted_in_place),
        ('roll', masked_roll), ('matrix', shift_matrix),
        ('roll times mask', lambda m, x: torch.roll(x, shifts=1, dims=1) * (torch.arange(6) > 0)[:, None]),
    ],
    'swapped halves': [
        ('chunk', swapped), ('roll', lambda m, x: x.roll(6, -1)),
        ('slices', lambda m, x: torch.cat((x[..., 6:], x[..., :6]), dim=-1)),
        ('stack', lambda m, x: torch.stack(x.split(6, -1)[::-1], -2).flatten(-2)),
        ('flip', lambda m, x: x.unflatten(-1, (2, 6)).flip(-2).flatten(-2)),
        ('index', lambda m, x: x[..., [*range(6, 12), *range(6)]]),
        ('index_select', lambda m, x: x.index_select(2, torch.arange(12).roll(6))),
        ('einops', lambda m, x: rearrange(rearrange(x, 'b n (two d) -> two b n d', two=2).flip(0),
                                          'two b n d -> b n (two d)')),
        ('matrix', lambda m, x: x @ torch.eye(12).roll(6, 0).to(x)),
    ],
    'parts': [
        ('split', parted), ('in place', parted_in_place),
        ('padded', lambda m, x: x + F.pad(m.a(x)[..., :2], (0, 10)) + F.pad(x[..., 6:], (6, 0))),
        ('masks', lambda m, x: x * (1 + (torch.arange(12) >= 6).to(x)) + m.a(x) * (torch.arange(12) < 2)),
    ],
    'other order of tokens': [
        ('index', lambda m, x: x[:, ordered(x)]), ('index_select', lambda m, x: torch.index_select(x, 1, ordered(x))),
        ('gather', lambda m, x: x.gather(1, ordered(x)[:, None].expand(2, 6, 12))),
        ('take_along_dim', lambda m, x: torch.take_along_dim(x, ordered(x)[None, :, None], 1)),
        ('one_hot', lambda m, x: F.one_hot(ordered(x), 6).to(x) @ x),
        ('scatter', lambda m, x: torch.zeros_like(x).scatter(1, ordered(x).argsort()[:, None].expand(2, 6, 12), x)),
        ('stack', lambda m, x: torch.stack([x[:, i] for i in ordered(x)], 1)),
        ('index_copy', lambda m, x: torch.zeros_like(x).index_copy(1, ordered(x).argsort(), x)),
    ],
    'transposed and back': [
        ('nothing', lambda m, x: m.a(x)), ('mT', lambda m, x: (m.a.weight @ x.mT).mT + m.a.bias),
        ('permute', lambda m, x: m.a(x.permute(1, 0, 2)).permute(1, 0, 2)),
        ('flatten', lambda m, x: m.a(x.flatten(0, 1)).view(x.shape)),
        ('einops', lambda m, x: rearrange(m.a(rearrange(x, 'b n d -> (n b) d')), '(n b) d -> b n d', b=2)),
        ('contiguous', lambda m, x: m.a(x.transpose(0, 1).contiguous()).transpose(0, 1).contiguous()),
        ('token by token', lambda m, x: torch.stack([m.a(token) for token in x.unbind(1)], 1)),
        ('sample by sample', lambda m, x: torch.cat([m.a(sample[None]) for sample in x])),
        ('module', lambda m, x: m.functions['dropout'](m.functions['identity'](m.a(x)))),
    ],
    'zeroed tokens': [
        ('product', lambda m, x: x * valid(x)), ('masked_fill', lambda m, x: x.masked_fill(valid(x) == 0, 0)),
        ('where', lambda m, x: torch.where(valid(x).bool(), x, torch.zeros_like(x))),
        ('item', lambda m, x: x.index_put((valid(x)[..., 0] == 0,), torch.zeros(()).to(x))),
        ('bool', lambda m, x: x * valid(x).bool()), ('in place', lambda m, x: x.mul_(valid(x))),
        ('diagonal', lambda m, x: torch.diag_embed(valid(x)[..., 0]) @ x),
        ('minus', lambda m, x: x - x * (1 - valid(x))),
    ],
    'choice': [
        ('where', chosen), ('item', chosen_item),
        ('products', lambda m, x: m.a(x) * (m.bias > 0) + m.b(x) * ~(m.bias > 0)),
        ('lerp', lambda m, x: torch.lerp(m.b(x), m.a(x), (m.bias > 0).to(x))),
        ('difference', lambda m, x: m.b(x) + (m.bias > 0) * (m.a(x) - m.b(x))),
        ('masked_scatter', lambda m, x: m.b(x).masked_scatter(m.bias > 0, m.a(x)[..., m.bias > 0])),
        ('gather', lambda m, x: torch.stack([m.b(x), m.a(x)], -1).gather(-1, (m.bias > 0).long().expand(
            2, 6, 12)[..., None])[..., 0]),
    ],
    'larger of two': [
        ('maximum', lambda m, x: torch.maximum(m.a(x), m.b(x))), ('max', lambda m, x: torch.max(m.a(x), m.b(x))),
        ('where', lambda m, x: torch.where(m.a(x) > m.b(x), m.a(x), m.b(x))),
        ('amax', lambda m, x: torch.stack([m.a(x), m.b(x)]).amax(0)),
        ('relu', lambda m, x: m.b(x) + F.relu(m.a(x) - m.b(x))),
        ('abs', lambda m, x: (m.a(x) + m.b(x) + (m.a(x) - m.b(x)).abs()) / 2),
        ('fmax', lambda m, x: m.a(x).fmax(m.b(x))),
    ],
}
