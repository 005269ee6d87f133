'''Token models as transformers has them: embeddings, padding, caches.'''
import copy
from functools import cache

import pytest
import torch
from torch.nn import functional as F
from zennit.attribution import Gradient

from helpers import Snapshot, assert_closed, assert_restored, one_hot, relevance_of
from zennit_attn.attribution import TokenGradient
from zennit_attn.conservation import audit

from .helpers import Around, close, every_composite, refused

IDS, KEEP = torch.tensor([[1, 4, 2, 9, 3], [5, 6, 7, 8, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@cache
def hugging_face(name, attention):
    '''A small random model of transformers and the embeddings of its tokens.'''
    package = pytest.importorskip('transformers', exc_type=ImportError,
                                  reason='transformers is not installed (see the extra zoo in pyproject.toml)')
    sizes = {'vocab_size': 11, 'hidden_size': 16, 'num_hidden_layers': 2, 'num_attention_heads': 2,
             'max_position_embeddings': 16}
    model = {
        'bert': lambda: package.BertForSequenceClassification(package.BertConfig(
            **sizes, intermediate_size=32, attn_implementation=attention)),
        'gpt2': lambda: package.GPT2LMHeadModel(package.GPT2Config(**sizes, attn_implementation=attention)),
        'llama': lambda: package.LlamaForCausalLM(package.LlamaConfig(
            **sizes, num_key_value_heads=1, intermediate_size=32, attn_implementation=attention)),
    }[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model = model.double().eval()
    return model, model.get_input_embeddings()(IDS).detach()


every_token_model = pytest.mark.parametrize('name', ['bert', 'gpt2', 'llama'])
every_cache_model = pytest.mark.parametrize('name', ['gpt2', 'llama'])
every_attention = pytest.mark.parametrize('attention', ['eager', 'sdpa'])
quiet = pytest.mark.filterwarnings('ignore')


@pytest.mark.zoo
@quiet
@every_composite
@every_token_model
@every_attention
def test_embeddings_and_tokens(make, name, attention):
    '''From ``inputs_embeds`` or by TokenGradient, out of a ModelOutput; padding receives nothing.'''
    model, embedded = hugging_face(name, attention)
    called = Around(lambda body, x: body(inputs_embeds=x, attention_mask=KEEP).logits, model)
    before, plain = Snapshot(model), called(embedded).detach()
    with Gradient(called, make()) as attributor:
        output, relevance = attributor(embedded.clone(), one_hot)
    close(output.detach(), plain)
    tolerance = 1e-6 if name == 'llama' else 1e-9  # its norm computes in float32
    ledger = audit(called, make(), embedded, one_hot)
    assert_closed(ledger, tolerance)
    x = embedded.clone().requires_grad_()
    with make().context(model):
        logits = model(inputs_embeds=x, attention_mask=KEEP).logits
        close(torch.autograd.grad(logits, x, one_hot(logits))[0], relevance)
    ids = Around(lambda body, ids: body(input_ids=ids, attention_mask=KEEP).logits, model)
    with TokenGradient(ids, model.get_input_embeddings(), make()) as attributor:
        close(attributor(IDS, one_hot)[1], relevance)
    assert (relevance[1, 3:] == 0).all()
    assert_restored(before, model)
    if name == 'bert':
        short = Around(lambda body, x: body(inputs_embeds=x).logits, model)
        alone = relevance_of(short, embedded[1:, :3], make, lambda output: F.one_hot(torch.tensor([1]), 2).to(output))
        close(relevance[1:, :3], alone)


@pytest.mark.zoo
@quiet
@every_composite
@every_cache_model
@every_attention
def test_caches(make, name, attention):
    '''A cache changes nothing; a constant past is a constant; a past that carries relevance is refused.'''
    model, embedded = hugging_face(name, attention)
    on, off = (Around(lambda body, x, use=use: body(inputs_embeds=x, use_cache=use).logits, model)
               for use in (True, False))
    close(relevance_of(on, embedded, make), relevance_of(off, embedded, make))
    with torch.no_grad():
        past = model(inputs_embeds=embedded[:, :3], use_cache=True).past_key_values
        plain = model(inputs_embeds=embedded).logits[:, 3:]
    grown, x = copy.deepcopy(past), embedded[:, 3:].clone().requires_grad_()
    with make().context(model):
        logits = model(inputs_embeds=x, past_key_values=grown, use_cache=True).logits
        relevance, = torch.autograd.grad(logits, x, one_hot(logits))
        close(logits.detach(), plain)
        assert grown.get_seq_length() == 5
    wanted = Around(lambda body, x: body(inputs_embeds=torch.cat([embedded[:, :3], x], 1)).logits[:, 3:], model)
    close(relevance, relevance_of(wanted, x.detach(), make), 1e-9)

    def two_calls():
        with make().context(model):
            whole = embedded.clone().requires_grad_()
            first = model(inputs_embeds=whole[:, :3], use_cache=True)
            model(inputs_embeds=whole[:, 3:], past_key_values=first.past_key_values, use_cache=True)
    refused(two_calls, 'kept from an earlier forward', 'torch.no_grad', model=model)
