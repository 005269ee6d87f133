'''Associative recall: does relevance land on the pair that holds the answer, in trained gated delta nets and Mamba-2?

The models are those of the demo, which recall all of it. Each answer is explained, as its lead over the mean of the
other values, from the embedded tokens.
'''
from functools import partial

import measure
import torch
from measure import preamble, table, write

from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP, AttnTaylor, Difference
from zennit_attn.conservation import audit
from zennit_attn.demo.recall import LENGTH, MARK, PAIRS, RECALLS, VALUES

HEADER = ('model', 'method', 'passes', 'on the pair', 'pair is first', 'agrees with occlusion', 'chunks')


def lead(query, output):
    '''How much the highest value of a query is above the mean of the others.'''
    chosen = torch.zeros_like(output)
    top = torch.nn.functional.one_hot(output[:, query].argmax(-1), VALUES).to(output)
    chosen[:, query] = output[:, query] * (top - (1 - top) / (VALUES - 1))
    return chosen


def value_of(query, output):
    '''The same as a number of each sample.'''
    return lead(query, output)[:, query].sum(-1)


def explained(composite, model, tokens, query):
    '''Relevance of the tokens, of shape ``(batch, length)``.'''
    with TokenGradient(model, model.embed, composite()) as attributor:
        return attributor(tokens, partial(lead, query))[1].detach().sum(-1)


def gradient_times_input(model, tokens, query):
    '''Gradient x input of the embedded tokens.'''
    kept = {}
    handle = model.embed.register_forward_hook(
        lambda module, args, output: kept.setdefault('x', output.detach().requires_grad_()))
    output = model(tokens)
    handle.remove()
    top = output[:, query].argmax(-1, keepdim=True)
    mean = (output[:, query].sum(-1) - output[:, query].gather(1, top)[:, 0]) / (VALUES - 1)
    gradient, = torch.autograd.grad((output[:, query].gather(1, top)[:, 0] - mean).sum(), kept['x'])
    return (gradient * kept['x']).sum(-1).detach()


def occlusion(model, tokens, query):
    '''How much the lead falls if a token is the mark.'''
    with torch.no_grad():
        whole, drops = model(tokens), []
        top = whole[:, query].argmax(-1, keepdim=True)

        def of(output):
            chosen = output[:, query].gather(1, top)[:, 0]
            return chosen - (output[:, query].sum(-1) - chosen) / (VALUES - 1)
        for place in range(tokens.shape[1]):
            other = tokens.clone()
            other[:, place] = MARK
            drops.append(of(whole) - of(model(other)))
        return torch.stack(drops, 1)


METHODS = {
    'CPLRP': (1, partial(explained, CPLRP)), 'AttnLRP': (1, partial(explained, AttnLRP)),
    'AttnTaylor': (1, partial(explained, AttnTaylor)), 'Difference': (2, partial(explained, Difference)),
    'gradient x input': (1, gradient_times_input), 'occlusion': (LENGTH + 1, occlusion),
}


def scores(relevance, samples, query, reference):
    '''The share of positive relevance on the pair, whether it is the first of all pairs, and the correlation.'''
    pairs = relevance[:, :2 * PAIRS].unflatten(1, (PAIRS, 2))
    every, holder = torch.arange(len(pairs)), samples.holders[:, query]
    positive = relevance.clamp(min=0.)
    share = pairs[every, holder].clamp(min=0.).sum(-1) / positive.sum(-1)
    first = (pairs.sum(-1).argmax(1) == holder).double()
    centred, other = (each - each.mean(1, keepdim=True) for each in (relevance, reference))
    agrees = (centred * other).sum(1) / (centred.norm(dim=1) * other.norm(dim=1))
    return torch.stack([share, first, agrees], -1).mean(0)


def rows(options):
    '''The lines of the table.'''
    queries = range(1 if options.quick else PAIRS)
    for demo in RECALLS.values():
        model = demo.load()
        samples = demo.held_out(8 if options.quick else 200)
        references = [occlusion(model, samples.tokens, query) for query in queries]
        ledger = audit(model, CPLRP(), samples.tokens[:4], partial(lead, 0), embedding=model.embed)
        assert (ledger.unaccounted.abs() <= 1e-9 * ledger.output.abs()).all()
        for name, (passes, method) in METHODS.items():
            maps = [method(model, samples.tokens, query) for query in queries]
            share, first, agrees = torch.stack([scores(map, samples, query, reference) for query, (map, reference) in
                                                enumerate(zip(maps, references, strict=True))]).mean(0).tolist()
            other = max(float((method(model.in_chunks_of(size), samples.tokens, 0) - maps[0]).norm() / maps[0].norm())
                        for size in (1, 3, 32))
            model.in_chunks_of(8)
            yield (demo.title, name, str(passes), f'{share:.2f}', f'{first:.0%}',
                   '' if name == 'occlusion' else f'{agrees:.2f}', f'{other:.0e}')


def main():
    '''Measure, print the table and write it where asked.'''
    options = measure.parse(measure.parser(__doc__))
    command = 'python benchmarks/recall.py' + (f' --output {options.output}' if options.output else '')
    text = f'{preamble(command, options)}\n{table(rows(options), HEADER)}'
    write(text, options.output)


if __name__ == '__main__':
    main()
