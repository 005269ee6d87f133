'''Linear attention, recurrences and cells.'''
import torch
import torch.nn.functional as F

from zennit_attn.kernels import causal_dot_product, delta_rule


def features(m, x):
    return F.elu(m.q(x)) + 1, F.elu(m.k(x)) + 1, m.v(x)


def relus(m, x):
    return F.relu(m.q(x)), F.relu(m.k(x)), m.v(x)


def softmaxes(m, x):
    return m.q(x).softmax(-1), m.k(x).softmax(-2), m.v(x)


def map_first(q, k, v):
    return q @ k.mT @ v


def keys_first(q, k, v):
    return q @ (k.mT @ v)


def einsum(q, k, v):
    return torch.einsum('bid,bjd,bje->bie', q, k, v)


def normalized(q, k, v):
    return q @ (k.mT @ v) / (q @ k.sum(1)[..., None])


def normalized_map(q, k, v):
    weights = q @ k.mT
    return (weights / weights.sum(-1, keepdim=True)) @ v


def normalized_einsum(q, k, v):
    z = 1 / torch.einsum('bnd,bd->bn', q, k.sum(1))
    return torch.einsum('bnd,bde,bn->bne', q, torch.einsum('bnd,bne->bde', k, v), z)


def normalized_query(q, k, v):
    return (q / (q * k.sum(1, keepdim=True)).sum(-1, keepdim=True)) @ (k.mT @ v)


def causal_mask(q, k, v):
    return (q @ k.mT).tril() @ v


def causal_sums(q, k, v):
    return torch.einsum('bnd,bnde->bne', q, torch.einsum('bnd,bne->bnde', k, v).cumsum(1))


def causal_loop(q, k, v):
    state, outputs = 0., []
    for i in range(q.shape[1]):
        state = state + k[:, i, :, None] * v[:, i, None]
        outputs.append((q[:, i, None] @ state)[:, 0])
    return torch.stack(outputs, 1)


def causal_kernel(q, k, v):
    return causal_dot_product(q, k, v)


def causal_in_place(q, k, v):
    state, output = torch.zeros(len(q), 12, 12).to(q), torch.empty_like(v)
    for i in range(q.shape[1]):
        state = state.clone().add_(torch.einsum('bd,be->bde', k[:, i], v[:, i]))
        output[:, i] = torch.einsum('bd,bde->be', q[:, i], state)
    return output


def causal_where(q, k, v):
    return torch.where(torch.ones(6, 6).tril().bool(), q @ k.mT, 0.) @ v


def delta_parts(m, x):
    return m.q(x).softmax(-1), m.k(x).softmax(-1), m.v(x), torch.sigmoid(m.score(x))


def delta_loop(m, x):
    q, k, v, beta = delta_parts(m, x)
    state, outputs = torch.zeros(2, 12, 12).to(x), []
    for i in range(6):
        old = torch.einsum('bde,bd->be', state, k[:, i])
        state = state + torch.einsum('bd,be->bde', k[:, i], beta[:, i] * (v[:, i] - old))
        outputs.append(torch.einsum('bde,bd->be', state, q[:, i]))
    return torch.stack(outputs, 1)


def delta_matmul(m, x):
    q, k, v, beta = (t.unbind(1) for t in delta_parts(m, x))
    state, outputs = 0., []
    for q_i, k_i, v_i, beta_i in zip(q, k, v, beta, strict=True):
        key = k_i.unsqueeze(-1)
        old = key.mT @ state if outputs else 0.
        state = state + key @ ((v_i.unsqueeze(1) - old) * beta_i.unsqueeze(1))
        outputs.append((q_i.unsqueeze(1) @ state).squeeze(1))
    return torch.stack(outputs, dim=1)


def delta_transition(m, x):
    '''The state times a matrix for each step.'''
    q, k, v, beta = delta_parts(m, x)
    state, outputs = torch.zeros(2, 12, 12).to(x), []
    for i in range(6):
        forget = torch.eye(12).to(x) - beta[:, i, :, None] * k[:, i, :, None] * k[:, i, None]
        state = forget @ state + beta[:, i, :, None] * (k[:, i, :, None] * v[:, i, None])
        outputs.append((state * q[:, i, :, None]).sum(1))
    return torch.stack(outputs, 1)


def delta_kernel(m, x):
    *parts, beta = delta_parts(m, x)
    return delta_rule(*parts, beta.squeeze(-1))


def gated(m, x):
    hidden, outputs = 0., []
    for value, forget in zip(m.v(x).unbind(1), torch.sigmoid(m.a(x)).unbind(1), strict=True):
        hidden = forget * hidden + (1 - forget) * value
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def gated_lerp(m, x):
    v, forget, hidden, outputs = m.v(x), m.a(x).sigmoid(), torch.zeros(2, 12).to(x), []
    for i in range(6):
        hidden = torch.lerp(v[:, i], hidden, forget[:, i])
        outputs.append(hidden.unsqueeze(1))
    return torch.cat(outputs, dim=1)


def gated_in_place(m, x):
    v, forget, output = m.v(x), m.a(x).sigmoid(), torch.zeros_like(x)
    hidden = torch.zeros(2, 12).to(x)
    for i in range(6):
        hidden = hidden.mul(forget[:, i]).add_((1 - forget[:, i]) * v[:, i])
        output[:, i] = hidden
    return output


def gated_before(m, x):
    forget = m.functions['sigmoid'](m.a(x))
    inputs, outputs = m.v(x) * (-m.a(x)).sigmoid(), []
    for i in range(6):
        outputs.append(torch.addcmul(inputs[:, i], outputs[-1], forget[:, i]) if outputs else inputs[:, i])
    return torch.stack(outputs, 1)


def gated_matrix(m, x):
    '''All steps at once: the decay between two of them is a product of gates.'''
    log = F.logsigmoid(m.a(x)).cumsum(1)
    decay = (log[:, :, None] - log[:, None]).exp() * torch.ones(6, 6).tril()[..., None].to(x)
    return torch.einsum('bijd,bjd->bid', decay, (1 - m.a(x).sigmoid()) * m.v(x))


def gated_chunk(m, x):
    '''The recurrence as cumulative sums over what was divided by the decay.'''
    decay = m.a(x).sigmoid().cumprod(1)
    return decay * ((1 - m.a(x).sigmoid()) * m.v(x) / decay).cumsum(1)


def decayed(m, x):
    hidden, outputs = torch.zeros(2, 12).to(x), []
    for value in m.v(x).unbind(1):
        hidden = .8 * hidden + value
        outputs.append(hidden)
    return torch.stack(outputs, 1)


def powers(x):
    at = torch.arange(6)
    return (.8 ** (at[:, None] - at).clamp(min=0).to(x)).tril()


def decayed_conv(m, x):
    kernel = powers(x)[-1].view(1, 1, 6).expand(12, 1, 6)
    return F.conv1d(F.pad(m.v(x).mT, (5, 0)), kernel, groups=12).mT


def lstm_steps(step):
    def run(m, x):
        h, c, outputs = torch.zeros(2, 12).to(x), torch.zeros(2, 12).to(x), []
        for x_i in x.unbind(1):
            h, c = step(m, x_i, h, c)
            outputs.append(h)
        return torch.stack(outputs, 1)
    return run


def lstm_by_hand(m, x, h, c):
    cell = m.lstm_cell
    i, f, g, o = (x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.T + cell.bias_hh).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def lstm_gate_by_gate(m, x, h, c):
    cell = m.lstm_cell
    parts = [F.linear(x, w, b) + F.linear(h, u, d) for w, b, u, d in zip(
        cell.weight_ih.split(12), cell.bias_ih.split(12), cell.weight_hh.split(12), cell.bias_hh.split(12),
        strict=True)]
    c = torch.addcmul(torch.sigmoid(parts[1]) * c, torch.tanh(parts[2]), torch.sigmoid(parts[0]))
    return torch.tanh(c) * torch.sigmoid(parts[3]), c


def lstm_joined(m, x, h, c):
    cell = m.lstm_cell
    gates = torch.cat([x, h], 1) @ torch.cat([cell.weight_ih, cell.weight_hh], 1).T + (cell.bias_ih + cell.bias_hh)
    i, f, g, o = (gates[:, 12 * part:12 * (part + 1)] for part in range(4))
    c = c.mul(f.sigmoid()).add(g.tanh().mul(i.sigmoid()))
    return c.tanh().mul(o.sigmoid()), c


def steps(step):
    def run(m, x):
        h, outputs = torch.zeros(2, 12).to(x), []
        for i in range(6):
            h = step(m, x[:, i], h)
            outputs.append(h)
        return torch.stack(outputs, 1)
    return run


def gru_parts(m, x, h):
    cell = m.gru_cell
    return zip(F.linear(x, cell.weight_ih, cell.bias_ih).chunk(3, 1), F.linear(
        h, cell.weight_hh, cell.bias_hh).chunk(3, 1), strict=True)


def gru_by_hand(m, x, h):
    (r, r_h), (z, z_h), (n, n_h) = gru_parts(m, x, h)
    z, n = torch.sigmoid(z + z_h), torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
    return (1 - z) * n + z * h


def gru_lerp(m, x, h):
    (r, r_h), (z, z_h), (n, n_h) = gru_parts(m, x, h)
    return torch.lerp(torch.tanh(torch.addcmul(n, n_h, (r + r_h).sigmoid_())), h, (z + z_h).sigmoid())


def gru_difference(m, x, h):
    (r, r_h), (z, z_h), (n, n_h) = gru_parts(m, x, h)
    n = torch.tanh(n + torch.sigmoid(r + r_h) * n_h)
    return n + (z + z_h).sigmoid() * (h - n)


def rnn_by_hand(m, x, h):
    cell = m.rnn_cell
    return torch.tanh(x @ cell.weight_ih.T + cell.bias_ih + h @ cell.weight_hh.mT + cell.bias_hh)


def rnn_joined(m, x, h):
    cell = m.rnn_cell
    return F.linear(torch.cat([x, h], -1), torch.cat([cell.weight_ih, cell.weight_hh], 1),
                    cell.bias_ih + cell.bias_hh).tanh()


def of(parts, attend):
    return lambda m, x: attend(*parts(m, x))


SPELLINGS = {
    'linear attention': [
        ('keys first', of(features, keys_first)), ('map first', of(features, map_first)),
        ('einsum', of(features, einsum)),
        ('ones', lambda m, x: keys_first(F.elu(m.q(x)) + torch.ones(12).to(x), F.elu(m.k(x)) + torch.ones(12).to(x),
                                         m.v(x))),
        ('in place', lambda m, x: keys_first(F.elu_(m.q(x)).add_(1), F.elu(m.k(x)).add_(1.), m.v(x))),
        ('heads', lambda m, x: torch.stack([keys_first(*features(m, x))], 1).squeeze(1)),
        ('bmm', lambda m, x: torch.bmm(features(m, x)[0], torch.bmm(features(m, x)[1].mT, features(m, x)[2]))),
    ],
    'linear attention, normalized': [
        ('keys first', of(features, normalized)), ('map first', of(features, normalized_map)),
        ('einsum', of(features, normalized_einsum)), ('query', of(features, normalized_query)),
    ],
    'linear attention of relus': [('keys first', of(relus, keys_first)), ('map first', of(relus, map_first)),
                                  ('einsum', of(relus, einsum))],
    'linear attention of softmaxes': [('keys first', of(softmaxes, keys_first)),
                                      ('map first', of(softmaxes, map_first)), ('einsum', of(softmaxes, einsum))],
    'causal linear attention': [
        ('mask', of(features, causal_mask)), ('cumsum', of(features, causal_sums)), ('loop', of(features, causal_loop)),
        ('in place', of(features, causal_in_place)), ('where', of(features, causal_where)),
        ('kernel', of(features, causal_kernel)),
        ('times a triangle', lambda m, x: (features(m, x)[0] @ features(m, x)[1].mT * torch.ones(6, 6).tril()
                                           ) @ features(m, x)[2]),
    ],
    'delta rule': [
        ('einsums', delta_loop), ('matmul', delta_matmul), ('kernel', delta_kernel), ('transition', delta_transition),
    ],
    'gated recurrence': [
        ('loop', gated), ('lerp', gated_lerp), ('in place', gated_in_place), ('gated before', gated_before),
        ('matrix', gated_matrix), ('cumulative', gated_chunk),
    ],
    'decay': [
        ('loop', decayed), ('matrix', lambda m, x: powers(x) @ m.v(x)),
        ('einsum', lambda m, x: torch.einsum('ij,bjd->bid', powers(x), m.v(x))), ('convolution', decayed_conv),
    ],
    'LSTM': [
        ('module', lambda m, x: m.lstm(x)[0]), ('cell', lstm_steps(lambda m, x, h, c: m.lstm_cell(x, (h, c)))),
        ('by hand', lstm_steps(lstm_by_hand)), ('gate by gate', lstm_steps(lstm_gate_by_gate)),
        ('joined', lstm_steps(lstm_joined)),
    ],
    'GRU': [
        ('module', lambda m, x: m.gru(x)[0]), ('cell', steps(lambda m, x, h: m.gru_cell(x, h))),
        ('by hand', steps(gru_by_hand)), ('lerp', steps(gru_lerp)), ('difference', steps(gru_difference)),
    ],
    'RNN': [
        ('module', lambda m, x: m.rnn(x)[0]), ('cell', steps(lambda m, x, h: m.rnn_cell(x, h))),
        ('by hand', steps(rnn_by_hand)), ('joined', steps(rnn_joined)),
    ],
}
