'''The errors of this package: each names the module, says why and what to do.'''


class AttributionError(RuntimeError):
    '''Base class of everything this package refuses to do.'''


class UnsupportedOperator(AttributionError):
    '''A tensor that carries relevance meets a function for which no rule is known, or which no rule can serve.'''


class UnsupportedModule(AttributionError):
    '''A module whose code cannot be seen (TorchScript, compiled) or that mixes the samples of a batch.'''


class UnsupportedRule(AttributionError):
    '''A rule was attached to a module or operator on which it cannot work.'''


class UntrackedTensor(AttributionError):
    '''A tensor requires a gradient, but comes from code that the engine cannot see.'''


class NoRelevance(AttributionError):
    '''The input cannot receive, or the output does not carry, relevance.'''


class ContextError(AttributionError):
    '''A second context was opened on a model that is already open.'''


class ChangedForward(AttributionError):
    '''A model computes something else while it is explained than it does without a context.'''
