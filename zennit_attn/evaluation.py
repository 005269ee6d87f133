'''Scores of relevance maps: how much lies on the true evidence, and how the output follows when input is removed.

Maps have shape ``(batch, *units)``; the units are pixels, patches or tokens. Every score is one number a sample.
'''
import torch


def _flat(relevance, mask=None):
    '''Units in a single axis; refuse what is not a map, and a mask of another shape or without evidence.'''
    if relevance.ndim < 2 or not relevance.is_floating_point():
        raise ValueError(f'relevance has shape {tuple(relevance.shape)} and dtype {relevance.dtype}, expected a '
                         'floating point map (batch, *units)')
    if mask is None:
        return relevance.flatten(1), None
    if mask.shape != relevance.shape or mask.dtype != torch.bool:
        raise ValueError(f'mask has shape {tuple(mask.shape)} and dtype {mask.dtype}, expected a boolean one of shape '
                         f'{tuple(relevance.shape)}')
    if not mask.flatten(1).any(dim=1).all():
        raise ValueError('mask has samples without evidence')
    return relevance.flatten(1), mask.flatten(1)


def mass_accuracy(relevance, mask):
    r'''Share of the positive relevance that lies on the true evidence.

    .. math:: \sum_{i \in M} R_i^+ \Big/ \sum_i R_i^+

    This is the relevance mass accuracy [1]_. Evidence against the output is not counted. A map without positive
    relevance scores 0.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(batch, *units)``.
    mask: :py:class:`torch.Tensor`
        True on the evidence, of the same shape.

    Returns
    -------
    :py:class:`torch.Tensor`
        Scores from 0 to 1, of shape ``(batch,)``.

    References
    ----------
    .. [1] L. Arras, A. Osman, and W. Samek: "CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural
           network explanations," Information Fusion 81, 2022.
    '''
    relevance, mask = _flat(relevance, mask)
    positive = relevance.clamp(min=0.)
    total = positive.sum(dim=1)
    return (positive * mask).sum(dim=1) / torch.where(total > 0., total, torch.ones_like(total))


def rank_accuracy(relevance, mask):
    r'''Share of the evidence among the most relevant units, as many as there is evidence.

    .. math:: |\, M \cap \mathrm{top}_{|M|}(R) \,| \,/\, |M|

    This is the relevance rank accuracy [1]_. Of units that tie for the last places each counts with the probability
    that a random choice would take it, so that a constant map scores the share of the evidence.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(batch, *units)``.
    mask: :py:class:`torch.Tensor`
        True on the evidence, of the same shape.

    Returns
    -------
    :py:class:`torch.Tensor`
        Scores from 0 to 1, of shape ``(batch,)``.

    References
    ----------
    .. [1] L. Arras, A. Osman, and W. Samek: "CLEVR-XAI: a benchmark dataset for the ground truth evaluation of neural
           network explanations," Information Fusion 81, 2022.
    '''
    relevance, mask = _flat(relevance, mask)
    size = mask.sum(dim=1, keepdim=True)
    last = relevance.sort(dim=1, descending=True).values.gather(1, size - 1)
    above, tied = relevance > last, relevance == last
    chance = (size - above.sum(dim=1, keepdim=True)) / tied.sum(dim=1, keepdim=True)
    return ((above + tied * chance) * mask).sum(dim=1) / size[:, 0]


def deletion(score, input, baseline, relevance, steps=10, spread=None):
    '''Scores while the most relevant units are replaced first: pixel flipping [1]_, the deletion game [2]_.

    Parameters
    ----------
    score: callable
        Takes inputs of the shape of `input`, and returns a number for each sample, e.g. the probability of its class.
    input: :py:class:`torch.Tensor`
        Inputs of shape ``(batch, ...)``, e.g. images or token ids.
    baseline: :py:class:`torch.Tensor` or number
        What units are replaced with; it has to broadcast against `input`.
    relevance: :py:class:`torch.Tensor`
        Relevance of shape ``(batch, *units)``. Ties are kept in the order of the units.
    steps: int, optional
        Number of steps from none of the units to all.
    spread: callable, optional
        Takes a boolean map ``(batch, *units)`` and returns one that broadcasts against `input`: :py:func:`on_channels`,
        :py:func:`on_patches`, or the default, which takes maps as they are.

    Returns
    -------
    :py:class:`torch.Tensor`
        Scores of shape ``(batch, steps + 1)``; the first is that of the input, the last that of the baseline.

    References
    ----------
    .. [1] W. Samek, A. Binder, G. Montavon, S. Lapuschkin, and K.-R. Müller: "Evaluating the visualization of what a
           deep neural network has learned," IEEE Transactions on Neural Networks and Learning Systems 28, 2017.
    .. [2] V. Petsiuk, A. Das, and K. Saenko: "RISE: randomized input sampling for explanation of black-box models,"
           BMVC 2018.
    '''
    flat, _ = _flat(relevance)
    order = flat.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(flat.shape[1], device=order.device).expand_as(order))
    if not 1 <= steps <= flat.shape[1]:
        raise ValueError(f'{steps} steps for {flat.shape[1]} units, expected 1 to as many steps as units')
    scores = []
    for removed in _counts(flat.shape[1], steps):
        chosen = (rank < removed).view(relevance.shape)
        chosen = chosen if spread is None else spread(chosen)
        with torch.no_grad():
            scores.append(score(torch.where(chosen, torch.as_tensor(baseline, dtype=input.dtype), input)))
    return torch.stack(scores, dim=1)


def insertion(score, input, baseline, relevance, steps=10, spread=None):
    '''Scores while the most relevant units come back first, from the baseline to the input: the insertion game [1]_.

    To insert the most relevant units first is to delete the least relevant ones first, read from its end.

    Parameters
    ----------
    score, input, baseline, relevance, steps, spread
        As for :py:func:`deletion`.

    Returns
    -------
    :py:class:`torch.Tensor`
        Scores of shape ``(batch, steps + 1)``; the first is that of the baseline, the last that of the input.

    References
    ----------
    .. [1] V. Petsiuk, A. Das, and K. Saenko: "RISE: randomized input sampling for explanation of black-box models,"
           BMVC 2018.
    '''
    return deletion(score, input, baseline, -relevance, steps, spread).flip(1)


def area(curve):
    r'''Area under a curve of equal steps, over an axis from 0 to 1: :math:`\sum_k (c_{k-1} + c_k) / 2K`.

    Parameters
    ----------
    curve: :py:class:`torch.Tensor`
        Scores of shape ``(batch, steps + 1)``.

    Returns
    -------
    :py:class:`torch.Tensor`
        Areas of shape ``(batch,)``.
    '''
    return torch.trapezoid(curve, dim=1) / (curve.shape[1] - 1)


def abpc(insertion, deletion):
    r'''Area between the curves of least- and of most-relevant-first perturbation.

    .. math:: \int_0^1 \mathrm{LeRF}(t) - \mathrm{MoRF}(t) \, dt

    which with one baseline for both is the area under the insertion curve minus that under the deletion curve [1]_.

    Parameters
    ----------
    insertion: :py:class:`torch.Tensor`
        Curves of :py:func:`insertion`.
    deletion: :py:class:`torch.Tensor`
        Curves of :py:func:`deletion`.

    Returns
    -------
    :py:class:`torch.Tensor`
        Areas of shape ``(batch,)``, 0 in expectation for maps that know nothing, and the larger the better.

    References
    ----------
    .. [1] W. Samek, A. Binder, G. Montavon, S. Lapuschkin, and K.-R. Müller: "Evaluating the visualization of what a
           deep neural network has learned," IEEE Transactions on Neural Networks and Learning Systems 28, 2017;
           S. Blücher, J. Vielhaben, and N. Strodthoff: "Decoupling pixel flipping and occlusion strategy for
           consistent XAI benchmarks," TMLR 2024.
    '''
    return area(insertion) - area(deletion)


def on_channels(units):
    '''Spread a map of pixels ``(batch, height, width)`` over the channels of images.

    Parameters
    ----------
    units: :py:class:`torch.Tensor`

    Returns
    -------
    :py:class:`torch.Tensor`
        A view of shape ``(batch, 1, height, width)``.
    '''
    return units[:, None]


def on_patches(size):
    '''Return a function that spreads maps of square patches over the pixels and channels of images.

    Parameters
    ----------
    size: int
        Height and width of a patch in pixels.

    Returns
    -------
    callable
        Takes ``(batch, rows, columns)``, returns ``(batch, 1, rows * size, columns * size)``.
    '''
    return lambda units: units.repeat_interleave(size, dim=1).repeat_interleave(size, dim=2)[:, None]


def patches(relevance, size):
    '''Sum the relevance of pixels within square patches.

    Parameters
    ----------
    relevance: :py:class:`torch.Tensor`
        Relevance of pixels, of shape ``(batch, height, width)``.
    size: int
        Height and width of a patch in pixels, of which the map's are multiples.

    Returns
    -------
    :py:class:`torch.Tensor`
        Relevance of shape ``(batch, height / size, width / size)``.
    '''
    return relevance.unflatten(2, (-1, size)).unflatten(1, (-1, size)).sum(dim=(2, 4))


def class_probability(model, labels):
    '''Return a function of inputs: the probability that a classifier gives to the samples' classes.

    Parameters
    ----------
    model: callable
        Returns logits of shape ``(batch, classes)``.
    labels: :py:class:`torch.Tensor`
        Classes of shape ``(batch,)``.

    Returns
    -------
    callable
        A score for :py:func:`deletion` and :py:func:`insertion`.
    '''
    return lambda input: model(input).softmax(dim=1).gather(1, labels[:, None])[:, 0]


def _counts(units, steps):
    '''How many units are replaced after each step.'''
    return [round(units * step / steps) for step in range(steps + 1)]
