'''The words of errors: each names the module, says why, and what to do.'''
from __future__ import annotations

CHECKPOINTING = (
    'saved tensor hooks such as those of torch.utils.checkpoint compute parts of the model again in the backward pass, '
    'where no rule can follow; turn checkpointing off (model.eval(), gradient_checkpointing_disable(), '
    'use_checkpoint=False), and put hooks that only keep tensors elsewhere (save_on_cpu) around the explanation'
)


def nothing_to_explain(root: str) -> str:
    return (
        f'no input of {root}.forward requires a gradient: nothing to explain; '
        'pass a floating point input with requires_grad=True, explain integers from their embedding '
        '(zennit_attn.attribution.TokenGradient), or wrap a plain prediction in torch.no_grad()'
    )


def complex_input(root: str) -> str:
    return (f'{root}: a complex input has no relevance of its own; pass what torch.view_as_real makes of it, and make '
            'it complex inside')


def complex_tensor(where: str) -> str:
    return f'{where}: a complex tensor has no relevance of its own; split it with torch.view_as_real'


def other_thread(root: str) -> str:
    return (f'{root} is being explained in another thread; call it there, or give each thread a copy of the model')


def under_transform(root: str, transform: str) -> str:
    return (
        f'{root} is called under {transform} while a context is open on it, where no rule can follow; call it on plain '
        'tensors and use torch.autograd.grad, or leave the context first'
    )


def batch_statistics(module: str) -> str:
    return (f'module {module!r}: batch_norm in training mode mixes the samples of a batch, so no sample has a '
            'relevance of its own; call model.eval() first')


def unknown(module: str, line: str, name: str, why: str, row: str | None) -> str:
    register = 'zennit_attn.register_operator to give it a kind' if row is None else (
        'give it its row in the table of operators, which these values suggest (from zennit_attn import '
        f'register_operator):\n  {row}')
    return (
        f'module {module!r} calls {name} on a tensor that carries relevance, and no rule is known for it: {why}\n'
        f'  {line}\n'
        f"use AttentionCanonizer(unknown='gradient') to accept the plain gradient, or {register}"
    )


def gradients_inside(module: str, line: str, name: str) -> str:
    return (
        f'module {module!r} takes gradients by {name} while it is explained, and would get those of the rules, not its '
        f'own\n  {line}\n'
        'explain the part of the model before or after it'
    )


def written_without_grad(module: str, line: str, name: str) -> str:
    return (
        f'module {module!r} writes with {name} into a tensor that carries relevance under torch.no_grad, where no '
        f'relevance can follow\n  {line}\ntake the write out of torch.no_grad'
    )


def rounded(name: str, line: str) -> str:
    return (
        f'module {name!r} rounds values that carry relevance, and multiplies them with others: what is rounded is a '
        f'constant, so that only the scale receives relevance\n  {line}\nexplain the model before it was quantized, or '
        'round so that the value goes on: x + (x.round() - x).detach()'
    )


def passed_by(name: str, line: str, kind: str, rule: str) -> str:
    return (
        f'module {name!r} has the rule {rule}, but its forward is called as a function, {kind}.forward(module, ...), '
        f'which passes the rule by\n  {line}\ncall the module, or leave it without a rule'
    )


def written_parameter(module: str, line: str, name: str, parameter: str, ruled: str | None) -> str:
    before = f'module {ruled!r}, which has a rule, ran before' if ruled else 'its values were used before'
    return (
        f'module {module!r} writes with {name} into parameter {parameter!r} while it is explained: {before}, and '
        f'they are needed again in the backward pass\n  {line}\n'
        'compute a tensor of the parameter and use that, as in functional.linear(x, 2 * weight), or write to the '
        'parameter before the model is called'
    )


def array_of_parameter(module: str, line: str, parameter: str, ruled: str) -> str:
    return (
        f'module {module!r} hands parameter {parameter!r} to NumPy, which may write to it unseen, and module '
        f'{ruled!r}, which has a rule, needs its values in the backward pass\n  {line}\n'
        'give NumPy a copy: weight.detach().clone().numpy()'
    )


def hidden_write(module: str, line: str, name: str) -> str:
    return (
        f'module {module!r} writes with {name} past autograd (.data, detach) into the memory of a tensor that carries '
        f'relevance, where no rule can follow\n  {line}\nwrite into a clone of it, or into the tensor itself'
    )


def shared_memory(module: str, line: str, name: str) -> str:
    return (
        f'module {module!r} writes with {name} into a tensor of which several elements share memory, such as an '
        f'expanded one, where torch has no gradient\n  {line}\nwrite into a clone of it'
    )


def unseen_write(module: str, line: str, shape: tuple) -> str:
    return (
        f'module {module!r}: a tensor of shape {shape} that carries relevance is written to in place by code that the '
        f'engine cannot see (TorchScript, an extension)\n  {line}\n'
        "write the computation with torch functions, or use AttentionCanonizer(unknown='gradient') to accept its plain "
        'gradient'
    )


def out_argument(module: str, line: str, name: str) -> str:
    return (f'module {module!r} calls {name} with out=, past autograd, on a tensor that carries relevance\n'
            f'  {line}\nassign what it returns instead')


def unseen_output(root: str, name: str) -> str:
    return (f'the output of {root} is of type {name}, in which no tensor can be seen; return tensors, or lists, '
            'tuples, dicts or dataclasses of them')


def no_relevance(root: str, reason: str) -> str:
    return f'the output of {root} carries no relevance: {reason}'


NO_DEPENDENCE = (
    'no operator between input and output passes relevance on\n'
    'look for what cuts it off from the input: a gate (softmax, sigmoid), detach, torch.no_grad (as a decorator of '
    'forward too), constants'
)


def no_relevance_selected(root: str, gate: tuple[str, str, str] | None) -> str:
    why = NO_DEPENDENCE if gate is None else ends_at_gate(*gate, last=True)
    return f'what is selected of the output of {root} carries no relevance: {why}'


def ends_without_grad(name: str, module: str, line: str) -> str:
    return (f'module {module!r} runs {name} under torch.no_grad or inference_mode, where no relevance can follow\n'
            f'  {line}\ntake the decorator off its forward, or the computation out of torch.no_grad')


def ends_at_gate(name: str, module: str, line: str, *, last: bool) -> str:
    position = 'which it ends with' if last else 'the last gate before it'
    return f'the operator {name} of module {module!r}, {position}, is viewed as a constant\n  {line}\n' \
           'explain the logits, i.e. what goes into a final softmax or sigmoid, or give that operator another rule'


def no_input(where: str, line: str, shape: tuple) -> str:
    return (
        f'module {where!r}: a tensor of shape {shape} requires a gradient, but is neither an input that the engine has '
        f'seen nor a parameter\n  {line}\n'
        'pass inputs as tensors, or in lists, tuples, dicts and dataclasses; for constants, set requires_grad to False '
        'or use torch.nn.Parameter'
    )


def earlier_forward(where: str, line: str, shape: tuple, origin: str) -> str:
    return (
        f'module {where!r}: a tensor of shape {shape} is kept from an earlier forward ({origin}), as caches do, and '
        f'relevance cannot go back there\n  {line}\n'
        'run all that is to be explained in one forward, or compute what is kept under torch.no_grad()'
    )


def unseen_code(where: str, line: str, shape: tuple, origin: str) -> str:
    return (
        f'module {where!r}: a tensor of shape {shape} requires a gradient but comes from code that the engine cannot '
        f'see ({origin}): a custom torch.autograd.Function, TorchScript, torch.func, a compiled function or kernel\n'
        f'  {line}\n'
        'write the computation with torch functions, or say which code of torch stands for a kernel '
        '(zennit_attn.canonizers.register_kernel), put it in a module and give that module a Zennit rule, or use '
        "AttentionCanonizer(unknown='gradient') to accept its plain gradient"
    )


def several_operands(rule: str, where: str, operator: str, operands: int) -> str:
    return (
        f'rule {rule} on operator {where!r}: {operator} has {operands} operands that carry relevance, and the rule can '
        'serve one only; use zennit_attn.rules.Uniform there, or leave the operator without a rule'
    )


def several_weights(rule: str, where: str, operator: str) -> str:
    return (
        f'rule {rule} on operator {where!r}: {operator} multiplies its operand with several constants at once, and the '
        'rule has to see the weights of the whole; multiply the constants first, or leave the operator without a rule'
    )


def outside_of_forward(module: str, root: str) -> str:
    return (
        f'module {module!r} is called outside of the forward of {root}, on which the context is open, where no rule '
        'can follow; open the context on that module, or put the computation into the forward of a module of its own'
    )


def bad_reference(root, given, shape):
    what = f'of shape {tuple(given.shape)}' if hasattr(given, 'shape') else f'{given!r}'
    return (f'the reference of {root} is {what}, and what is explained has shape {shape}; give a tensor that '
            'broadcasts to it, a number, or a function that takes it and returns one of these')


def reference_of_a_part(name):
    return (f'module {name!r} has the rule Secant, which explains a difference of two inputs of the model as a whole; '
            'give it to the model itself, as zennit_attn.composites.Difference does')


def no_difference(name, module, rule):
    return (f'rule {rule} on module {name!r}: {module} is not linear but for its bias, so the rule cannot explain a '
            'difference from a reference; leave the module without a rule, so that its operators are followed')
