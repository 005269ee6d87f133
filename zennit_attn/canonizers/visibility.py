'''Which modules run operators of their own, and which have code that cannot be seen.'''
import torch
from torch.nn import Module, ModuleDict, ModuleList, ParameterDict, ParameterList, Sequential
from torch.nn.parameter import is_lazy

from ..errors import UnsupportedModule
from ..layers import OperatorModule

CONTAINERS = (Sequential, ModuleList, ModuleDict, ParameterList, ParameterDict)
#: Types without operators of their own: what they contain is watched.
IDLE = (*CONTAINERS, torch.nn.Identity)


def runs_operators(module):
    '''Whether a module's own code may run operators, and it can be given children.'''
    cls = type(module)
    if isinstance(module, (*CONTAINERS, OperatorModule)) or cls.forward is Module.forward:
        return False
    if cls.__module__.startswith('torch.nn.modules.'):
        return bool(module._modules)
    return not cls.__module__.startswith('einops.')


def check_visible(root_module):
    '''Refuse a model with parts whose code cannot be seen, and name them all.'''
    problems = [f'module {name!r} {problem}' for name, module in root_module.named_modules()
                if (problem := _problem_of(module)) is not None]
    call = type(root_module).__call__
    if call is not Module.__call__ and not (getattr(call, '__module__', None) or '').startswith('torch.'):
        problems.append(f'{type(root_module).__name__} overrides __call__, whose code runs outside of its forward: '
                        'wrap it, e.g. in torch.nn.Sequential(model), and open the context on that')
    if problems:
        raise UnsupportedModule('\n'.join(problems))


def _problem_of(module):
    if isinstance(module, torch.jit.ScriptModule):
        return 'is TorchScript, whose code cannot be seen: use the module it was made from'
    if isinstance(module, torch.nn.DataParallel) and len(module.device_ids) > 1:
        return 'runs copies of its module in threads, where no rule can follow: explain model.module'
    if '.quantized.' in type(module).__module__:
        return 'is quantized, and has no gradient: explain the model that it was made from'
    if any(is_lazy(parameter) for parameter in module._parameters.values()):
        return 'is lazy, and has no parameters yet: call the model once on an input'
    return None
