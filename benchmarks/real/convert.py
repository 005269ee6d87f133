'''How the weights in a package become a model of transformers: functions of the unpacked and of the new folder.'''
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer


def keep(model, folder):
    '''Write a model: its configuration and its parameters.'''
    if hasattr(model.config, 'quantization_config'):
        del model.config.quantization_config  # it says where the parameters came from, and is refused when read again
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / 'parameters.pt')


def kept(kind, folder):
    '''Read a model that was kept: evaluated, in single precision, with attention that can be looked at.

    Parameters
    ----------
    kind: type
        The class of transformers, e.g. :py:class:`transformers.AutoModelForCausalLM`.
    folder: :py:class:`pathlib.Path`
    '''
    config = AutoConfig.from_pretrained(folder)
    make = getattr(kind, 'from_config', None) or kind._from_config
    model = make(config, attn_implementation='eager', dtype=torch.float32)
    model.load_state_dict(torch.load(folder / 'parameters.pt', weights_only=True))
    return model.eval().requires_grad_(False)


def smollm2(source, folder):
    '''GGUF, which transformers dequantises, and whose rotary halves it puts back.'''
    file = next(source.rglob('*.gguf'))
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)
    keep(AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32), folder)


CONVERT = {
    'smollm2': smollm2,
}
