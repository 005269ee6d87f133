'''Softmax attention, its masks, positions and heads.'''
import torch
import torch.nn.functional as F
from einops import rearrange

HEADS, SCALE = 3, 4 ** -.5


def heads(x):
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def merged(x):
    return x.transpose(1, 2).flatten(2)


def qkv(m, x):
    return heads(m.q(x)), heads(m.k(x)), heads(m.v(x))


def fused(m, x, **options):
    return m.o(merged(F.scaled_dot_product_attention(*qkv(m, x), **options)))


def weighted(m, x, weigh):
    '''Attention with `weigh` between scores and values.'''
    q, k, v = qkv(m, x)
    return m.o(merged(weigh(q @ k.mT * SCALE) @ v))


def einsums(m, x):
    q, k, v = (proj(x).view(2, 6, HEADS, 4) for proj in (m.q, m.k, m.v))
    scores = torch.einsum('bihd,bjhd->bhij', q, k) / 2
    return m.o(torch.einsum('bhij,bjhd->bihd', scores.softmax(-1), v).reshape(x.shape))


def batched(m, x):
    q, k, v = (t.flatten(0, 1) for t in qkv(m, x))
    weights = F.softmax(torch.bmm(q, k.transpose(1, 2)) * SCALE, dim=-1)
    return m.o(merged(torch.bmm(weights, v).view(2, HEADS, 6, 4)))


def baddbmm(m, x):
    q, k, v = (t.reshape(-1, 6, 4) for t in qkv(m, x))
    scores = torch.baddbmm(torch.empty(6, 6, 6).to(x), q, k.mT, beta=0, alpha=SCALE)
    return m.o(merged((scores.softmax(-1) @ v).unflatten(0, (2, HEADS))))


def einops(m, x):
    q, k, v = (rearrange(proj(x), 'b n (h d) -> b h n d', h=HEADS) for proj in (m.q, m.k, m.v))
    return m.o(rearrange((q * SCALE @ k.mT).softmax(-1) @ v, 'b h n d -> b n (h d)'))


def one_matrix(m, x):
    weight = torch.cat([m.q.weight, m.k.weight, m.v.weight])
    bias = torch.cat([m.q.bias, m.k.bias, m.v.bias])
    q, k, v = F.linear(x, weight, bias).reshape(2, 6, 3, HEADS, 4).permute(2, 0, 3, 1, 4).unbind(0)
    return m.o(merged((q @ k.transpose(-2, -1)).mul(SCALE).softmax(dim=-1) @ v))


def head_by_head(m, x):
    heads = zip(*(t.chunk(HEADS, -1) for t in (m.q(x), m.k(x), m.v(x))), strict=True)
    parts = [(q @ k.mT / 2).softmax(-1) @ v for q, k, v in heads]
    return m.o(torch.cat(parts, -1))


def query_by_query(m, x):
    q, k, v = qkv(m, x)
    rows = [torch.softmax((q[:, :, i:i + 1] * k).sum(-1) * SCALE, -1).unsqueeze(2) @ v for i in range(6)]
    return m.o(merged(torch.cat(rows, 2)))


def functional(m, x):
    own = m.attention
    x = x.transpose(0, 1)
    return F.multi_head_attention_forward(
        x, x, x, 12, HEADS, torch.cat([m.q.weight, m.k.weight, m.v.weight]), torch.cat([m.q.bias, m.k.bias, m.v.bias]),
        None, None, False, 0., m.o.weight, m.o.bias, training=own.training, need_weights=False)[0].transpose(0, 1)


def in_place(m, x):
    q, k, v = qkv(m, x)
    scores = torch.matmul(q, k.mT).mul_(SCALE)
    return m.o(merged(scores.add_(0.).softmax(-1).matmul(v)))


def inverted(m, scores):
    weights = scores.softmax(-1) * m.mask
    return weights / weights.sum(-1, keepdim=True)


def added(m, x):
    return torch.zeros(6, 6).to(x).masked_fill(~m.mask, -torch.inf)


def filled_in_place(m, scores):
    scores[:, :, ~m.mask] = -torch.inf
    return scores.softmax(-1)


def kept_only(m, x):
    '''Each query with the keys that it may see.'''
    q, k, v = qkv(m, x)
    rows = [(q[:, :, i:i + 1] @ k[:, :, keep].mT * SCALE).softmax(-1) @ v[:, :, keep] for i, keep in enumerate(m.mask)]
    return m.o(merged(torch.cat(rows, 2)))


def causal(x):
    return torch.ones(6, 6, dtype=torch.bool).tril()


def prefixes(m, x):
    q, k, v = qkv(m, x)
    rows = [(q[:, :, i:i + 1] @ k[:, :, :i + 1].mT * SCALE).softmax(-1) @ v[:, :, :i + 1] for i in range(6)]
    return m.o(merged(torch.cat(rows, 2)))


def biased_baddbmm(m, x):
    q, k, v = (t.flatten(0, 1) for t in qkv(m, x))
    scores = torch.baddbmm(m.positions.repeat(2, 1, 1), q, k.mT, alpha=SCALE)
    return m.o(merged((scores.softmax(-1) @ v).unflatten(0, (2, HEADS))))


def one_key(m, x):
    '''Queries of three heads, with the first head's keys and values for all.'''
    q, k, v = qkv(m, x)
    return q, k[:, :1], v[:, :1]


def attend(q, k, v):
    return (q @ k.mT * SCALE).softmax(-1) @ v


def one_key_einsum(m, x):
    q, k, v = one_key(m, x)
    weights = torch.einsum('bhid,bjd->bhij', q * SCALE, k[:, 0]).softmax(-1)
    return merged(torch.einsum('bhij,bjd->bhid', weights, v[:, 0]))


def rotated(x):
    left, right = x.chunk(2, -1)
    return torch.cat([-right, left], -1)


def rotary(m, x):
    angles = m.angles.repeat(1, 2)
    return x * angles.cos() + rotated(x) * angles.sin()


def rotary_halves(m, x):
    left, right = x[..., :6], x[..., 6:]
    cos, sin = m.angles.cos(), m.angles.sin()
    return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)


def rotary_complex(m, x):
    pairs = torch.complex(x[..., :6], x[..., 6:]) * torch.polar(torch.ones_like(m.angles), m.angles)
    return torch.cat([pairs.real, pairs.imag], -1)


def rotary_view(m, x):
    pairs = torch.view_as_complex(rearrange(x, 'b n (two d) -> b n d two', two=2).contiguous())
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(m.angles), m.angles))
    return rearrange(turned, 'b n d two -> b n (two d)')


def rotary_matrix(m, x):
    cos, sin = m.angles.cos(), m.angles.sin()
    matrix = torch.cat([torch.cat([cos.diag_embed(), -sin.diag_embed()], -1),
                        torch.cat([sin.diag_embed(), cos.diag_embed()], -1)], -2)
    return torch.einsum('nij,bnj->bni', matrix, x)


def rotary_in_place(m, x):
    output = torch.empty_like(x)
    output[..., :6] = x[..., :6] * m.angles.cos() - x[..., 6:] * m.angles.sin()
    output[..., 6:] = x[..., 6:] * m.angles.cos() + x[..., :6] * m.angles.sin()
    return output


def rolled(m, x):
    signs = torch.cat([-torch.ones(6), torch.ones(6)]).to(x)
    return torch.addcmul(x * m.angles.cos().tile(2), x.roll(6, -1) * signs, m.angles.sin().tile(2))


def attended_rotary(rotate):
    return lambda m, x: ((rotate(m, m.q(x)) @ rotate(m, m.k(x)).mT) / 12 ** .5).softmax(-1) @ m.v(x)


def sigmoid_attention(m, x):
    return weighted(m, x, lambda scores: torch.sigmoid(scores) / 6)


def cosine(q, k, v):
    return (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * 5).softmax(-1) @ v


def cosine_of_scores(q, k, v):
    norms = q.norm(dim=-1, keepdim=True) * k.norm(dim=-1)[..., None, :]
    return (q @ k.mT / norms * 5).softmax(-1) @ v


def windows(m, x):
    '''Neighbours at a distance of one, by unfolding padded keys and values.'''
    q, k, v = m.q(x), m.k(x), m.v(x)
    k, v = (F.pad(t, (0, 0, 1, 1)).unfold(1, 3, 1) for t in (k, v))
    scores = torch.einsum('bnd,bndw->bnw', q, k)
    near = torch.ones(6, 3, dtype=torch.bool)
    near[0, 0] = near[-1, -1] = False
    return torch.einsum('bnw,bndw->bnd', scores.masked_fill(~near, -torch.inf).softmax(-1), v)


def band(x):
    at = torch.arange(6)
    return (at[:, None] - at).abs() <= 1


def pooled(m, x):
    return (m.score(x).softmax(1) * m.v(x)).sum(1, keepdim=True).expand_as(x)


def over_sum(x):
    return x / x.sum(-1, keepdim=True)


def weights_of(m, x):
    q, k, v = qkv(m, x)
    return (q @ k.mT * SCALE).exp(), v


def values_first(m, x):
    weights, v = weights_of(m, x)
    return m.o(merged(weights @ v / weights.sum(-1, keepdim=True)))


def three(m, x):
    weights, v = weights_of(m, x)
    return m.o(merged(torch.einsum('bhij,bhjd,bhi->bhid', weights, v, 1 / weights.sum(-1))))


def diagonal(m, x):
    weights, v = weights_of(m, x)
    return m.o(merged(torch.diag_embed(weights.sum(-1).reciprocal()) @ (weights @ v)))


def key_by_key(m, x):
    q, k, v = qkv(m, x)
    above = below = 0.
    for j in range(6):
        weight = ((q * k[:, :, j:j + 1]).sum(-1, keepdim=True) * SCALE).exp()
        above, below = above + weight * v[:, :, j:j + 1], below + weight
    return m.o(merged(above / below))


def ones_beside_values(m, x):
    weights, v = weights_of(m, x)
    sums = weights @ torch.cat([v, torch.ones_like(v[..., :1])], -1)
    return m.o(merged(sums[..., :-1] / sums[..., -1:]))


def online(in_place):
    '''Block by block, with a running maximum.'''
    def run(m, x):
        q, k, v = qkv(m, x)
        top = torch.full((2, HEADS, 6, 1), -torch.inf).to(x)
        below, above = torch.zeros_like(top), torch.zeros(2, HEADS, 6, 4).to(x)
        for start in range(0, 6, 2):
            scores = q @ k[:, :, start:start + 2].mT * SCALE
            new = torch.maximum(top, scores.amax(-1, keepdim=True))
            weights, factor, top = (scores - new).exp(), (top - new).exp(), new
            if in_place:
                below.mul_(factor).add_(weights.sum(-1, keepdim=True))
                above.mul_(factor).add_(weights @ v[:, :, start:start + 2])
            else:
                below = below * factor + weights.sum(-1, keepdim=True)
                above = above * factor + weights @ v[:, :, start:start + 2]
        return m.o(merged(above / below))
    return run


def blocks_merged(m, x):
    '''Attention to each block, and a softmax over what the blocks add up to.'''
    q, k, v = qkv(m, x)
    output = total = None
    for start in range(0, 6, 2):
        scores = q @ k[:, :, start:start + 2].mT * SCALE
        own, size = scores.softmax(-1) @ v[:, :, start:start + 2], scores.logsumexp(-1, keepdim=True)
        if output is None:
            output, total = own, size
        else:
            new = torch.logaddexp(total, size)
            output, total = output * (total - new).exp() + own * (size - new).exp(), new
    return m.o(merged(output))


def filled_after(m, scores):
    weights = scores.exp()
    weights[:, :, ~m.mask] = 0.
    return over_sum(weights)


SOURCES, TARGETS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 2, 4, 1]), torch.tensor([0, 1, 2, 3, 4, 5, 1, 1, 0, 5])


def edges(m, x):
    '''Scores and values of the edges of a graph.'''
    return (m.q(x)[:, TARGETS] * m.k(x)[:, SOURCES]).sum(-1, keepdim=True), m.v(x)[:, SOURCES]


def node_by_node(m, x):
    scores, values = edges(m, x)
    return torch.stack([(scores[:, node == TARGETS].softmax(1) * values[:, node == TARGETS]).sum(1)
                        for node in range(6)], 1)


def dense_graph(m, x):
    mask = torch.full((6, 6), -torch.inf).to(x)
    mask[TARGETS, SOURCES] = 0.
    return (m.q(x) @ m.k(x).mT + mask).softmax(-1) @ m.v(x)


def index_added(x):
    return torch.zeros(2, 6, x.shape[-1]).to(x).index_add(1, TARGETS, x)


def scattered(x):
    return torch.zeros(2, 6, x.shape[-1]).to(x).scatter_add_(1, TARGETS[None, :, None].expand_as(x), x)


def scatter_reduced(x):
    return torch.zeros(2, 6, x.shape[-1]).to(x).scatter_reduce(1, TARGETS[None, :, None].expand_as(x), x, 'sum')


def multiplied(x):
    return torch.nn.functional.one_hot(TARGETS, 6).to(x).mT @ x


def by_edge(add, top=None):
    def run(m, x):
        scores, values = edges(m, x)
        weights = (scores if top is None else scores - top(scores)).exp()
        return add(weights / add(weights)[:, TARGETS] * values)
    return run


def by_edge_last(add):
    def run(m, x):
        scores, values = edges(m, x)
        weights = (scores - scores.max()).exp()
        return add(weights * values) / add(weights)
    return run


def top_of_node(scores):
    top = torch.full((2, 6, 1), -torch.inf).to(scores)
    return top.scatter_reduce(1, TARGETS[None, :, None].expand(2, -1, 1), scores, 'amax')[:, TARGETS]


def prefix_pooled(m, x):
    k, v = m.k(x), m.v(x)
    return torch.stack([(k[:, :i + 1].softmax(1) * v[:, :i + 1]).sum(1) for i in range(6)], 1)


def prefix_sums(shift):
    def run(m, x):
        k, v = m.k(x), m.v(x)
        weights = (k - k.amax(1, keepdim=True) if shift else k).exp()
        return (weights * v).cumsum(1) / weights.cumsum(1)
    return run


def prefix_matrix(m, x):
    weights, mask = (m.k(x) - m.k(x).max()).exp(), torch.ones(6, 6).tril().to(x)
    return torch.einsum('ij,bjd,bjd->bid', mask, weights, m.v(x)) / torch.einsum('ij,bjd->bid', mask, weights)


def prefix_loop(m, x):
    '''With a running maximum, as RWKV has it.'''
    k, v = m.k(x), m.v(x)
    above, below, top = torch.zeros(2, 12).to(x), torch.zeros(2, 12).to(x), torch.full((2, 12), -1e38).to(x)
    outputs = []
    for i in range(6):
        new = torch.maximum(top, k[:, i])
        factor, weight, top = (top - new).exp(), (k[:, i] - new).exp(), new
        above, below = above * factor + weight * v[:, i], below * factor + weight
        outputs.append(above / below)
    return torch.stack(outputs, 1)


SPELLINGS = {
    'attention': [
        ('matmul', lambda m, x: weighted(m, x, lambda scores: scores.softmax(-1))),
        ('einsum', einsums), ('bmm', batched), ('baddbmm', baddbmm), ('fused', fused),
        ('module', lambda m, x: m.attention(x, x, x, need_weights=False)[0]),
        ('module with weights', lambda m, x: m.attention(query=x, key=x, value=x)[0]),
        ('functional', functional), ('einops', einops), ('one matrix', one_matrix), ('head by head', head_by_head),
        ('query by query', query_by_query), ('in place', in_place),
        ('softmax by hand', lambda m, x: weighted(m, x, lambda scores: scores.exp() / scores.exp().sum(-1, True))),
        ('values first', values_first), ('einsum of three', three), ('diagonal', diagonal), ('key by key', key_by_key),
        ('online', online(False)), ('online in place', online(True)),
        ('ones beside values', ones_beside_values), ('blocks merged', blocks_merged),
    ],
    'graph attention': [
        ('dense', dense_graph), ('node by node', node_by_node), ('index_add', by_edge(index_added)),
        ('scatter_add', by_edge(scattered, torch.max)), ('scatter_reduce', by_edge(scatter_reduced, top_of_node)),
        ('one-hot', by_edge(multiplied, top_of_node)), ('divided last', by_edge_last(index_added)),
        ('scattered and divided last', by_edge_last(scattered)),
    ],
    'causal pooling': [
        ('prefixes', prefix_pooled), ('cumsum', prefix_sums(False)), ('shifted', prefix_sums(True)),
        ('matrix', prefix_matrix), ('loop', prefix_loop),
    ],
    'attention with a mask': [
        ('masked_fill', lambda m, x: weighted(m, x, lambda s: s.masked_fill(~m.mask, -torch.inf).softmax(-1))),
        ('in place', lambda m, x: weighted(m, x, lambda s: s.masked_fill_(~m.mask, -1e9).softmax(-1))),
        ('item', lambda m, x: weighted(m, x, lambda s: filled_in_place(m, s))),
        ('added', lambda m, x: weighted(m, x, lambda s: (s + added(m, x)).softmax(-1))),
        ('where', lambda m, x: weighted(m, x, lambda s: torch.where(m.mask, s, -1e9).softmax(-1))),
        ('where of full', lambda m, x: weighted(m, x, lambda s: torch.where(
            ~m.mask, torch.full_like(s, -torch.inf), s).softmax(-1))),
        ('fused', lambda m, x: fused(m, x, attn_mask=m.mask)),
        ('fused, added', lambda m, x: fused(m, x, attn_mask=added(m, x))),
        ('module', lambda m, x: m.attention(x, x, x, attn_mask=~m.mask)[0]),
        ('multiplied after', lambda m, x: weighted(m, x, lambda s: inverted(m, s))),
        ('kept only', kept_only),
        ('exp of masked', lambda m, x: weighted(m, x, lambda s: over_sum(s.masked_fill(~m.mask, -torch.inf).exp()))),
        ('exp times mask', lambda m, x: weighted(m, x, lambda s: over_sum((s - s.max()).exp() * m.mask))),
        ('mask in place', lambda m, x: weighted(m, x, lambda s: over_sum(s.exp().mul_(m.mask)))),
        ('exp filled', lambda m, x: weighted(m, x, lambda s: over_sum(s.exp().masked_fill(~m.mask, 0.)))),
        ('where of exp', lambda m, x: weighted(m, x, lambda s: over_sum(torch.where(m.mask, s.exp(), 0.)))),
        ('exp filled in place', lambda m, x: weighted(m, x, lambda s: filled_after(m, s))),
    ],
    'causal attention': [
        ('masked_fill', lambda m, x: weighted(m, x, lambda s: s.masked_fill(~causal(x), -torch.inf).softmax(-1))),
        ('fused', lambda m, x: fused(m, x, is_causal=True)),
        ('fused, masked', lambda m, x: fused(m, x, attn_mask=causal(x))),
        ('added', lambda m, x: weighted(m, x, lambda s: (s + torch.full((6, 6), -torch.inf).triu(1)).softmax(-1))),
        ('where', lambda m, x: weighted(m, x, lambda s: s.where(causal(x), -torch.inf).softmax(-1))),
        ('module', lambda m, x: m.attention(x, x, x, attn_mask=~causal(x), is_causal=True, need_weights=False)[0]),
        ('prefixes', prefixes),
    ],
    'attention with positions': [
        ('plus', lambda m, x: weighted(m, x, lambda s: (s + m.positions).softmax(-1))),
        ('in place', lambda m, x: weighted(m, x, lambda s: s.add_(m.positions).softmax(-1))),
        ('fused', lambda m, x: fused(m, x, attn_mask=m.positions)), ('baddbmm', biased_baddbmm),
        ('times their exp', lambda m, x: weighted(m, x, lambda s: F.normalize(
            s.softmax(-1) * m.positions.exp(), p=1., dim=-1))),
    ],
    'attention with one key': [
        ('broadcast', lambda m, x: merged(attend(*one_key(m, x)))),
        ('expand', lambda m, x: merged(attend(*(t.expand(2, HEADS, 6, 4) for t in one_key(m, x))))),
        ('repeat', lambda m, x: merged(attend(*(t.repeat_interleave(HEADS // t.shape[1], 1) for t in one_key(m, x))))),
        ('fused', lambda m, x: merged(F.scaled_dot_product_attention(*(t.expand(2, HEADS, 6, 4)
                                                                       for t in one_key(m, x))))),
        ('enable_gqa', lambda m, x: merged(F.scaled_dot_product_attention(*one_key(m, x), enable_gqa=True))),
        ('einsum', one_key_einsum),
    ],
    'rotary positions': [
        ('rotate half', rotary), ('halves', rotary_halves), ('complex', rotary_complex),
        ('view_as_complex', rotary_view),
        ('matrix', rotary_matrix), ('in place', rotary_in_place), ('rolled', rolled),
    ],
    'attention with rotary positions': [
        ('rotate half', attended_rotary(rotary)), ('halves', attended_rotary(rotary_halves)),
        ('complex', attended_rotary(rotary_complex)), ('matrix', attended_rotary(rotary_matrix)),
        ('view_as_complex', attended_rotary(rotary_view)),
    ],
    'sigmoid attention': [
        ('torch', sigmoid_attention),
        ('after', lambda m, x: weighted(m, x, lambda s: s.sigmoid()) / 6 + m.o.bias * 5 / 6),
        ('tanh', lambda m, x: weighted(m, x, lambda s: (1 + torch.tanh(s / 2)) / 12)),
        ('quotient', lambda m, x: weighted(m, x, lambda s: 1 / (6 + 6 * torch.exp(-s)))),
    ],
    'squared relu attention': [
        ('square', lambda m, x: weighted(m, x, lambda s: F.relu(s).square() / 6)),
        ('product', lambda m, x: weighted(m, x, lambda s: F.relu(s) * s / 6)),
        ('power', lambda m, x: weighted(m, x, lambda s: s.clamp(min=0) ** 2 / 6)),
        ('maximum', lambda m, x: weighted(m, x, lambda s: torch.maximum(s, torch.zeros_like(s)).pow(2).div(6))),
    ],
    'cosine attention': [
        ('normalized', lambda m, x: merged(cosine(*qkv(m, x)))),
        ('over norms', lambda m, x: merged(cosine_of_scores(*qkv(m, x)))),
        ('similarity', lambda m, x: merged((5 * F.cosine_similarity(
            qkv(m, x)[0].unsqueeze(-2), qkv(m, x)[1].unsqueeze(-3), dim=-1)).softmax(-1) @ qkv(m, x)[2])),
    ],
    'attention in windows': [
        ('band', lambda m, x: (m.q(x) @ m.k(x).mT).masked_fill(~band(x), -torch.inf).softmax(-1) @ m.v(x)),
        ('unfold', windows),
        ('fused', lambda m, x: F.scaled_dot_product_attention(m.q(x), m.k(x), m.v(x), band(x), scale=1.)),
    ],
    'attention pooling': [
        ('sum', pooled),
        ('matmul', lambda m, x: (m.score(x).softmax(1).mT @ m.v(x)).repeat(1, 6, 1)),
        ('einsum', lambda m, x: torch.einsum('bn,bnd->bd', m.score(x)[..., 0].softmax(-1), m.v(x))[:, None] + x * 0),
        ('fused', lambda m, x: F.scaled_dot_product_attention(
            m.score.weight.expand(2, 6, 12), x, m.v(x), scale=1.)),
    ],
}
