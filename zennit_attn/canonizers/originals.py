'''Compiled modules, whose originals run while a context is open.'''
from types import MethodType

from .methods import like_method


def run_originals(root_module, undo):
    '''Let modules that :py:func:`torch.compile` has made or changed run as they were written.

    Parameters
    ----------
    root_module: :py:class:`torch.nn.Module`
        The model.
    undo: list of callable
        Gets the steps that bring the compiled code back.
    '''
    for module in root_module.modules():
        if module.__dict__.get('_compiled_call_impl') is not None:  # by module.compile()
            _replace(module, '_compiled_call_impl', None, undo)
        if type(module).__name__ == 'OptimizedModule':
            _replace(module, 'forward', _original_of(module), undo)
            continue
        forward = type(module).forward
        original = getattr(forward, '_torchdynamo_orig_callable', None)
        if original is not None and not getattr(forward, '_torchdynamo_disable', False):
            bound = MethodType(original, module)
            _replace(module, 'forward', like_method(module, bound, bound), undo)


def _original_of(module):
    original = module._modules['_orig_mod']

    def forward(*args, **kwargs):
        return original(*args, **kwargs)
    return forward


def _replace(module, name, value, undo):
    attributes, missing = module.__dict__, object()
    before = attributes.get(name, missing)

    def restore():
        if before is missing:
            attributes.pop(name, None)
        else:
            attributes[name] = before
    undo.append(restore)
    attributes[name] = value
