'''Which code of the model runs: for the names in errors, and for operators with a rule of their own.'''
import linecache
import sys
from functools import cache
from typing import NamedTuple

import torch

#: Rooms of this package with models: the code of all others runs on behalf of somebody's model.
_MODELS = ('attention', 'demo')


class Location:
    '''Finds modules of a model in the stack of calls.

    Parameters
    ----------
    root: :py:class:`torch.nn.Module`
        The model.
    veil: :py:class:`~zennit_attn.engine.veil.Veil`
        Knows the modules that a context has given to it.

    Attributes
    ----------
    modules: list of tuple
        Names and modules: those of the model, then those that were given to it.
    names: dict
        Names by the ``id`` of the module.
    ruled: list of tuple
        Names, modules and Zennit rules of the modules that have some.
    '''
    def __init__(self, root, veil):
        self.root = root
        self.veil = veil
        self.modules = []
        self.names = {}
        self.ruled = []

    def survey(self):
        '''Look up the modules, what they are called, and their rules; behind the veil.'''
        self.modules = list(self.root.named_modules())
        self.names = {id(module): name for name, module in self.modules}
        for owner, name, module in self.veil.inserted:
            parent = self.names.get(id(owner))
            if parent is not None and id(module) not in self.names:
                self.names[id(module)] = f'{parent}.{name}' if parent else name
                self.modules.append((self.names[id(module)], module))
        found = ((name, module, self.veil.rules_of(module)) for name, module in self.modules)
        self.ruled = [each for each in found if each[2]]

    def name_of(self, module):
        '''Return the dotted name of a module of the model.'''
        return self.names.get(id(module)) or type(module).__name__

    def running_module(self):
        '''Return the module of the model whose code is running.'''
        frame = sys._getframe(1)
        while frame is not None:
            code = frame.f_code
            if code.co_argcount and code.co_name != '__torch_function__':
                module = frame.f_locals.get(code.co_varnames[0])
                if isinstance(module, torch.nn.Module) and id(module) in self.names:
                    return module
            frame = frame.f_back
        return self.root

    def module_in(self, traceback):
        '''Return the innermost module of the model in a traceback.'''
        module = self.root
        while traceback is not None:
            code = traceback.tb_frame.f_code
            first = traceback.tb_frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
            module = first if id(first) in self.names else module
            traceback = traceback.tb_next
        return module

    def place(self):
        '''Return the dotted name of the module whose code is running, and where an operator was called.'''
        frame = sys._getframe(1)
        while frame is not None and _is_internal(frame):
            frame = frame.f_back
        place = Place('', 0) if frame is None else Place(frame.f_code.co_filename, frame.f_lineno)
        return self.name_of(self.running_module()), place

    def locate(self):
        '''Return the same with the line of code as text.'''
        name, place = self.place()
        return name, str(place)


class Place(NamedTuple):
    '''A line of code, which is read when it is written out.'''
    file: str
    number: int

    def __str__(self):
        return f'{self.file}:{self.number}: {linecache.getline(self.file, self.number).strip()}' if self.file else ''


def _is_internal(frame):
    return _is_internal_module(frame.f_globals.get('__name__', ''))


@cache
def _is_internal_module(name):
    package, *rooms = name.split('.')
    return package in ('torch', 'einops') or (package == 'zennit_attn' and not {*rooms[:1]} & {*_MODELS})
