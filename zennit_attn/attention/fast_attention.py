'''Attention through feature maps of queries and keys, as in Performer: FAVOR+, generalized kernels, or softmaxes.

Axis letters: ``b`` batch, ``h`` heads, ``n`` queries, ``m`` keys, ``d`` key features, ``e`` value features, ``r``
random features.
'''
from functools import partial
from math import ceil, log, sqrt

import torch
from torch import nn

from ..kernels.causal import causal_dot_product


def orthogonal_matrix(size, device=None):
    '''Random rotation or reflection of shape ``(size, size)``, uniform over all of them.

    A QR decomposition alone is not, as it fixes signs: the original's features all lie in a half-space each, and their
    products miss the softmax kernel by a tenth however many there are.
    '''
    q, r = torch.linalg.qr(torch.randn(size, size, device=device))
    return (q * r.diagonal().sign()).T


def gaussian_orthogonal_matrix(rows, columns, scaling=0, device=None):
    '''Random features: Gaussian directions that are orthogonal within blocks of ``columns`` rows.

    Parameters
    ----------
    rows, columns: int
        Number of random features and of features they are drawn for.
    scaling: {0, 1}, optional
        Whether rows have the norms of Gaussian vectors (0), or all the norm ``sqrt(columns)`` (1).
    device: torch.device, optional
        Where to draw.

    Returns
    -------
    torch.Tensor
        Matrix of shape ``(rows, columns)``.
    '''
    if scaling not in (0, 1):
        raise ValueError(f'scaling is {scaling!r}, choose 0 (Gaussian norms) or 1 (constant norm)')
    directions = torch.cat([orthogonal_matrix(columns, device) for _ in range(ceil(rows / columns))])[:rows]
    if scaling:
        norms = torch.full((rows, 1), sqrt(columns), device=device)
    else:
        norms = torch.randn(rows, columns, device=device).norm(dim=1, keepdim=True)
    return norms * directions


def softmax_kernel(data, projection, is_query, eps=1e-4):
    r'''Positive features (FAVOR+) whose products approximate the softmax kernel.

    .. math:: \phi(x)_r = (\exp(w_r \cdot x' - \lVert x' \rVert^2 / 2 - c) + \epsilon) / \sqrt{r} \quad x' = x / d^{1/4}

    The shift :math:`c` is the largest :math:`w_r \cdot x'`, of a token for queries and of all tokens for keys: it
    cancels in the normalized product.

    Parameters
    ----------
    data: torch.Tensor
        Queries or keys of shape ``(b, h, n, d)``.
    projection: torch.Tensor
        Random features :math:`w` of shape ``(r, d)``.
    is_query: bool
        Whether ``data`` are queries.
    eps: float, optional
        Added to keep features positive.

    Returns
    -------
    torch.Tensor
        Features of shape ``(b, h, n, r)``.
    '''
    data = data * data.shape[-1] ** -0.25
    logits = torch.einsum('bhnd,rd->bhnr', data, projection.type_as(data))
    half_square = data.square().sum(dim=-1, keepdim=True) / 2
    shift = logits.amax(dim=-1 if is_query else (-1, -2), keepdim=True).detach()
    return (torch.exp(logits - half_square - shift) + eps) * len(projection) ** -0.5


def generalized_kernel(data, projection, kernel_fn, eps=1e-3):
    r'''Features :math:`f(w_r \cdot x / d^{1/4}) + \epsilon` of shape ``(b, h, n, r)`` for ``data (b, h, n, d)``.'''
    logits = torch.einsum('bhnd,rd->bhnr', data * data.shape[-1] ** -0.25, projection.type_as(data))
    return kernel_fn(logits) + eps


def linear_attention(q, k, v):
    r'''Normalized linear attention, :math:`o_i = \sum_j (q_i \cdot k_j) v_j / \sum_j q_i \cdot k_j`.'''
    normalizer = 1. / torch.einsum('bhnd,bhd->bhn', q, k.sum(dim=-2))
    context = torch.einsum('bhnd,bhne->bhde', k, v)
    return torch.einsum('bhde,bhnd,bhn->bhne', context, q, normalizer)


def causal_linear_attention(q, k, v, eps=1e-6, backend=None):
    r'''Causal linear attention.

    .. math:: o_i = \sum_{j \leq i} (q_i \cdot k_j) v_j \Big/ q_i \cdot \Big(\epsilon + \sum_{j \leq i} k_j\Big)
    '''
    normalizer = 1. / torch.einsum('bhnd,bhnd->bhn', q, k.cumsum(dim=-2) + eps)
    return causal_dot_product(q, k, v, backend=backend) * normalizer[..., None]


class FastAttention(nn.Module):
    '''Linear attention over features of queries and keys.

    Parameters
    ----------
    dim_heads: int
        Features ``d`` of a head.
    nb_features: int, optional
        Number of random features, by default ``d log(d)``.
    ortho_scaling: {0, 1}, optional
        Scaling of :func:`gaussian_orthogonal_matrix`.
    causal: bool, optional
        Whether tokens attend only to earlier ones.
    generalized_attention: bool, optional
        Whether features are ``kernel_fn`` of random projections, rather than those of :func:`softmax_kernel`.
    kernel_fn: callable, optional
        Kernel of generalized attention, a ReLU by default.
    no_projection: bool, optional
        Whether there are no random features, but a softmax of queries and keys each.
    causal_backend: str, optional
        Backend of :func:`zennit_attn.attention.causal_dot_product`.
    '''
    def __init__(self, dim_heads, nb_features=None, ortho_scaling=0, causal=False, generalized_attention=False,
                 kernel_fn=None, no_projection=False, causal_backend=None):
        super().__init__()
        nb_features = int(dim_heads * log(dim_heads)) if nb_features is None else nb_features
        if nb_features < 1:
            raise ValueError(f'{nb_features} random features for {dim_heads} features of a head, expected at least 1')
        self.dim_heads, self.nb_features, self.ortho_scaling = dim_heads, nb_features, ortho_scaling
        self.create_projection = partial(gaussian_orthogonal_matrix, nb_features, dim_heads, scaling=ortho_scaling)
        self.register_buffer('projection_matrix', self.create_projection())
        self.generalized_attention, self.no_projection, self.causal = generalized_attention, no_projection, causal
        self.kernel_fn = nn.ReLU() if kernel_fn is None else kernel_fn
        if causal:
            self.causal_linear_fn = partial(causal_linear_attention, backend=causal_backend)

    @torch.no_grad()
    def redraw_projection_matrix(self, device=None):
        '''Draw new random features into the buffer.'''
        self.projection_matrix.copy_(self.create_projection(device=device))

    def features(self, q, k):
        '''Features ``(b, h, n, r)`` of queries and keys ``(b, h, n, d)``.'''
        if self.no_projection:
            return q.softmax(dim=-1), torch.exp(k) if self.causal else k.softmax(dim=-2)
        if self.generalized_attention:
            return tuple(generalized_kernel(data, self.projection_matrix, self.kernel_fn) for data in (q, k))
        return softmax_kernel(q, self.projection_matrix, True), softmax_kernel(k, self.projection_matrix, False)

    def forward(self, q, k, v):
        '''Attend from ``q (b, h, n, d)`` to ``k (b, h, m, d)`` and ``v (b, h, m, e)``.'''
        q, k = self.features(q, k)
        return self.causal_linear_fn(q, k, v) if self.causal else linear_attention(q, k, v)


class ProjectionUpdater(nn.Module):
    '''Redraws the random features of a model after a number of forward passes in training.

    Parameters
    ----------
    instance: torch.nn.Module
        Model whose :class:`FastAttention` modules are redrawn.
    feature_redraw_interval: int or None
        Number of passes, or None to never redraw.
    '''
    def __init__(self, instance, feature_redraw_interval):
        super().__init__()
        self.instance = instance
        self.feature_redraw_interval = feature_redraw_interval
        self.register_buffer('calls_since_last_redraw', torch.tensor(0))

    def fix_projections_(self):
        '''Never redraw again.'''
        self.feature_redraw_interval = None

    def redraw_projections(self):
        '''Count a pass in training, or redraw when there were enough of them.'''
        if not self.training:
            return
        if self.feature_redraw_interval is None or self.calls_since_last_redraw < self.feature_redraw_interval:
            self.calls_since_last_redraw += 1
            return
        for module in self.instance.modules():
            if isinstance(module, FastAttention):
                module.redraw_projection_matrix(module.projection_matrix.device)
        self.calls_since_last_redraw.zero_()
