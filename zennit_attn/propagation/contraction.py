'''Contractions of one operand with several constants, as contractions with one.

A rule that looks at the signs of weights, such as ``ZPlus``, has to see the weights of the map as a whole: of ``x A B``
these are the entries of ``A B``, and not those of `A` and of `B`.
'''
from string import ascii_letters

import torch

from ..operators import lookup
from ..trees import tensors_in
from .call import Call


def with_one_weight(call):
    '''Return a call of ``einsum`` that computes the same with one constant factor, or None if it is not known how.

    Parameters
    ----------
    call: :py:class:`Call`
        A call with one operand that carries relevance.

    Returns
    -------
    :py:class:`Call` or None
    '''
    terms = _terms(call)
    if terms is None:
        return None
    inputs, output, tensors = terms
    index, = (index for index, tensor in enumerate(tensors) if call.carries(tensor))
    own = inputs[index]
    constants = [(letters, tensor) for place, (letters, tensor) in enumerate(zip(inputs, tensors, strict=True))
                 if place != index]
    seen = ''.join(letters for letters, _ in constants)
    kept = ''.join(dict.fromkeys(letter for letter in seen if letter in own + output))
    weight = torch.einsum(f'{",".join(letters for letters, _ in constants)}->{kept}', *(
        tensor for _, tensor in constants))
    equation = f'{own},{kept}->{output}'
    return Call(call.forward, lookup(torch.einsum), torch.einsum, (equation, tensors[index], weight), {}, call.operands)


def _terms(call):
    '''The indices of each factor and of the output, and the factors.'''
    tensors = tensors_in(call.args)
    if call.func is torch.einsum and isinstance(call.args[0], str) and '.' not in call.args[0]:
        left, arrow, output = call.args[0].replace(' ', '').partition('->')
        inputs = left.split(',')
        once = sorted(letter for letter in set(left) - {','} if left.count(letter) == 1)
        return inputs, output if arrow else ''.join(once), tensors
    if call.func in (torch.linalg.multi_dot, torch.chain_matmul) and all(tensor.ndim == 2 for tensor in tensors):
        letters = ascii_letters[:len(tensors) + 1]
        return [letters[place:place + 2] for place in range(len(tensors))], letters[0] + letters[-1], tensors
    return None
