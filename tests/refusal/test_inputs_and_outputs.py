'''Inputs and outputs without relevance.'''
import pytest
import torch
from torch import nn
from zennit.attribution import Gradient

from cases.problems import DIM, TOKENS, Head, build
from helpers import Snapshot, assert_closed, assert_restored, explain, one_hot
from zennit_attn.attribution import TokenGradient
from zennit_attn.composites import CPLRP, AttnLRP
from zennit_attn.conservation import audit
from zennit_attn.errors import AttributionError, NoRelevance
from zennit_attn.heatmap import relevance_at

from .helpers import SHAPE, Plain, audited, every_entry, host, refused


@every_entry
@pytest.mark.parametrize('final', ['softmax', 'sigmoid', 'log_softmax'])
def test_final_gate(entry, final):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Plain()

        def forward(self, x):
            x = self.body(x).mean(1)
            return x.sigmoid() if final == 'sigmoid' else getattr(torch, final)(x, dim=-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Probabilities().double(), torch.randn(SHAPE).double()
    refused(model, lambda: entry(model, input), 'Probabilities', final, 'logits')


def test_final_softmax_module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = nn.Sequential(nn.Linear(DIM, 4), nn.Softmax(dim=-1)).double(), torch.randn(3, DIM).double()
    refused(model, lambda: explain(model, input), 'Sequential|1', 'softmax', 'logits')
    assert explain(model, input, AttnLRP)[1].isfinite().all()


class WithoutGradients(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.body, self.how = Plain(), how

    def forward(self, x):
        if self.how == 'decorator':
            return torch.no_grad()(self.body)(x).mean(1)
        if self.how == 'after a gate':
            x = x * self.body(x).sigmoid()
        with torch.inference_mode() if self.how == 'inference_mode' else torch.no_grad():
            return self.body(x).mean(1)


@every_entry
@pytest.mark.parametrize('how', ['decorator', 'no_grad', 'inference_mode', 'after a gate'])
def test_forward_without_gradients(entry, how):
    '''The cause is said, and not that logits should be explained.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = WithoutGradients(how).double(), torch.randn(SHAPE).double()
    message = refused(model, lambda: entry(model, input), "'body.fc' runs linear under torch.no_grad", 'decorator')
    assert 'logits' not in message


def test_gate_after_what_ran_without_gradients():
    class Mask(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Plain()

        def forward(self, x):
            with torch.no_grad():
                mask = self.body(x) > 0
            return (self.body(x) * mask).mean(1).softmax(-1)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Mask().double(), torch.randn(SHAPE).double()
    refused(model, lambda: explain(model, input), 'softmax', 'logits')


def test_output_without_the_input():
    '''An output that does not depend on the input at all.'''
    model, input = host(Plain())
    model.forward = lambda x: model.head(torch.ones(3, TOKENS, DIM, dtype=x.dtype))
    assert 'logits' not in refused(model, lambda: explain(model, input), 'Host', 'relevance', 'detach')


def test_input_without_grad():
    model, input = build('vit_mean')
    before = Snapshot(model)
    with CPLRP().context(model):
        with pytest.raises(AttributionError, match='requires_grad'):
            model(input)
        assert explain_open(model, input).isfinite().all()
    assert_restored(before, model)


def explain_open(model, input):
    '''The relevance of the one-hot target in a context that is already open.'''
    input = input.clone().requires_grad_()
    output = model(input)
    relevance, = torch.autograd.grad(output, input, one_hot(output))
    return relevance


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, DIM), Head()

    def forward(self, ids):
        return self.head(self.embed(ids))


def test_integer_input():
    model, ids = Tokens().double(), torch.randint(11, (3, TOKENS))
    refused(model, lambda: audited(model, ids), 'Tokens', 'int64|integer', 'embedding|TokenGradient')
    before = Snapshot(model)
    expected = pytest.raises(AttributionError, match='(?s)(int64|integer).*(embedding|TokenGradient)')
    with CPLRP().context(model), expected:
        model(ids)
    assert_restored(before, model)


class AuxiliaryLoss(nn.Module):
    '''Code that computes a loss beside its output, as routers and language models do.'''
    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = self.fc(x).relu()
        logits = self.head(y)
        classes = torch.zeros(len(x), dtype=torch.long)
        return logits, nn.functional.mse_loss(y, x) + nn.functional.cross_entropy(logits, target=classes)


class Last(nn.Module):
    def forward(self, outputs):
        return outputs[-1].reshape(1)


def test_auxiliary_loss_is_no_obstacle():
    torch.manual_seed(0)
    model, x = AuxiliaryLoss().double(), torch.randn(2, 6, dtype=torch.float64)
    ledger = audit(model, CPLRP(), x, torch.ones_like, select=lambda output: output[0])
    plain = audit(nn.Sequential(model.fc, nn.ReLU(), model.head), CPLRP(), x, torch.ones_like)
    assert torch.allclose(ledger.input, plain.input, rtol=1e-9)
    assert_closed(ledger)
    with pytest.raises(NoRelevance, match='mse_loss|cross_entropy'):
        audit(nn.Sequential(model, Last()), CPLRP(), x)


def test_complex_input_is_refused():
    with pytest.raises(AttributionError, match='complex input'), Gradient(nn.Flatten(), CPLRP()) as attributor:
        attributor(torch.randn(2, 3, dtype=torch.complex128), torch.ones_like)


class Detector(nn.Module):
    '''Logits beside tensors that carry no relevance.'''
    def __init__(self):
        super().__init__()
        self.embed, self.logits, self.box = nn.Embedding(9, 8), nn.Linear(8, 3), nn.Linear(8, 4)

    def forward(self, ids):
        x = self.embed(ids).mean(1)
        logits = self.logits(x)
        return {'logits': logits, 'boxes': self.box(x).sigmoid(), 'in place': self.box(x).sigmoid_(),
                'scaled': self.box(x).sigmoid() * 2, 'probabilities': logits.softmax(-1), 'classes': logits.argmax(-1),
                'detached': x.detach()}


def by_token_gradient(model, ids, select):
    with TokenGradient(model, model.embed, CPLRP(), select=select) as attributor:
        return attributor(ids)


ENTRIES = {
    'audit': lambda model, ids, select: audit(model, CPLRP(), ids, embedding=model.embed, select=select),
    'TokenGradient': by_token_gradient,
    'relevance_at': lambda model, ids, select: relevance_at(
        model, CPLRP(), ids, 'logits', embedding=model.embed, select=select),
}


@pytest.mark.parametrize('entry', ENTRIES.values(), ids=ENTRIES)
@pytest.mark.parametrize(('key', 'words'), [
    ('boxes', 'the operator sigmoid .*which it ends with.*explain the logits'),
    ('in place', 'the operator sigmoid .*which it ends with.*explain the logits'),
    ('probabilities', 'the operator softmax .*which it ends with.*explain the logits'),
    ('scaled', 'a gate'), ('classes', 'a gate'), ('detached', 'detach'),
])
def test_selected_output_without_relevance(entry, key, words):
    '''Beside an output that carries some, it is refused as it is alone.'''
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, ids = Detector().double().eval(), torch.randint(9, (2, 4))
    refused(model, lambda: entry(model, ids, lambda output: output[key]), 'selected of the output of Detector', words)
    entry(model, ids, lambda output: output['logits'])


@every_entry
def test_final_gate_in_place(entry):
    class Probabilities(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Plain()

        def forward(self, x):
            return self.body(x).mean(1).sigmoid_()

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = Probabilities().double(), torch.randn(SHAPE).double()
    refused(model, lambda: entry(model, input), 'Probabilities', 'sigmoid', 'logits')


@pytest.mark.parametrize('road', ['audit', 'relevance_at', 'tokens'])
def test_index_as_attr_output(road):
    # The advice of the error is followed, and is the relevance of that logit.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, input = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, 4)).double(), torch.randn(3, DIM)
    input = input.double()

    def run(attr_output):
        if road == 'audit':
            return audit(model, CPLRP(), input, attr_output).output
        if road == 'relevance_at':
            return relevance_at(model, CPLRP(), input, ['2'], attr_output)['2'].sum(1)
        with TokenGradient(model, model[0], CPLRP(), attr_output) as attributor:
            return attributor(input)[1]

    with pytest.raises(TypeError, match='attr_output gives int, not a tensor') as caught:
        run(2)
    advised = eval(str(caught.value).partition('pass attr_output=')[2], {'torch': torch})
    chosen = model(input).detach() * torch.tensor([0, 0, 1, 0])
    torch.testing.assert_close(run(advised), run(lambda output: chosen), rtol=0, atol=1e-12)
    if road == 'audit':  # the others read relevance behind the stabilizer of the last layer
        torch.testing.assert_close(run(advised), chosen.sum(1), rtol=0, atol=1e-12)
