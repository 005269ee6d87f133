'''The conformance kit: check in one line that a model of your own is explained completely.'''
import torch

from .attribution import call_model
from .composites import CPLRP
from .conservation import audit


def check_explanation(model, input, composite=None, attr_output=None, tolerance=1e-9, embedding=None, select=None,
                      min_share=0.):
    '''Check that a model's forward is unchanged inside a context, that its ledger closes, and that it is restored.

    Parameters
    ----------
    model: :py:class:`torch.nn.Module`
        The model, best in double precision and eval mode, with biases that are not zero.
    input: :py:class:`torch.Tensor`, tuple or mapping
        Input of shape [batch, ...], or positional or keyword arguments.
    composite: :py:class:`zennit.core.Composite`, optional
        The composite. Default is :py:class:`~zennit_attn.composites.CPLRP`.
    attr_output: :py:class:`torch.Tensor` or callable, optional
        Relevance of the output, as for :py:func:`~zennit_attn.conservation.audit`.
    tolerance: float, optional
        Largest share of the output's relevance that may be unaccounted; 1e-6 where a model computes in float32.
    embedding, select: optional
        As for :py:func:`~zennit_attn.conservation.audit`.
    min_share: float, optional
        The share of the output's relevance that has to reach the input, in every sample. A ledger closes also where
        nothing does.

    Returns
    -------
    :py:class:`~zennit_attn.conservation.Audit`
        The ledger.

    Raises
    ------
    AssertionError
        If one of the three does not hold; with the ledger where it does not close.
    '''
    composite = CPLRP() if composite is None else composite
    before, state = call_model(model, input, select=select)[0].detach(), _state(model)
    seen = []

    def watched(output):
        seen.append(output.detach())
        return output if attr_output is None else attr_output(output) if callable(attr_output) else attr_output

    ledger = audit(model, composite, input, watched, embedding, select)
    changed = [name for name, value in _state(model).items() if state.get(name) != value]
    assert not changed, f'the model is not what it was: {", ".join(changed)}'
    exact = torch.finfo(before.dtype).eps * 1e4
    torch.testing.assert_close(seen[0], before, rtol=exact, atol=exact * float(before.abs().max()))
    closed = (ledger.unaccounted.abs() <= tolerance * ledger.output.abs()).all()
    assert closed, f'the ledger does not close:\n{ledger}'
    reached = (ledger.share.abs() >= min_share).all()
    assert reached, f'less than {min_share:.0%} of the relevance reaches the input:\n{ledger}'
    return ledger


def _state(model):
    '''What must be the same before and after: modules, hooks, parameters and flags.'''
    state = {}
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks)
        state[f'module {name!r}'] = type(module), sorted(module.__dict__), list(module._modules), hooks, module.training
        for key, parameter in module._parameters.items():
            if parameter is not None:
                state[f'parameter {name}.{key}'] = id(parameter), parameter.requires_grad, parameter._version
    return state
