'''The demo: small trained attention models, the data they were trained on, and the script that trains them.'''
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from .data import DIGITS, SHAPES, Samples, digits, scenes
from .models import LinearAttentionCNN, PerformerClassifier, ViT

WEIGHTS = Path(__file__).parent / 'weights'
#: Seed of the held-out scenes. Training draws its scenes with the seeds from 0 on, one for each step.
HELD_OUT_SEED = 10 ** 9


@dataclass(frozen=True)
class Demo:
    '''A model of the demo and its data.

    Attributes
    ----------
    name: str
        The name on the command line, and of the file of weights.
    title: str
        The name in figures.
    build: callable
        Returns the model, untrained.
    classes: tuple[str, ...]
        Names of the classes.
    steps: int
        Number of training steps.
    rate: float
        Peak learning rate.
    '''
    name: str
    title: str
    build: Callable
    classes: tuple
    steps: int
    rate: float

    @property
    def weights(self):
        '''Path of the weights.'''
        return WEIGHTS / f'{self.name}.pt'

    @property
    def subject(self):
        '''What the images show.'''
        return 'handwritten digits' if self.classes is DIGITS else 'scenes'

    @property
    def limits(self):
        '''Values of black and white in the images.'''
        return (0., 1.) if self.classes is DIGITS else (-1., 1.)

    def held_out(self, count):
        '''Return :py:class:`~zennit_attn.demo.data.Samples` that the model was not trained on.

        Parameters
        ----------
        count: int
            Number of samples. There are as many scenes as asked for, but only 360 digits.
        '''
        return digits('test')[:count] if self.classes is DIGITS else scenes(count, HELD_OUT_SEED)

    def load(self, dtype=torch.float64):
        '''Return the trained model in evaluation mode.

        Parameters
        ----------
        dtype: :py:class:`torch.dtype`
            Type of the parameters. Default is double precision, in which ledgers close to the last digits.
        '''
        if not self.weights.is_file():
            raise FileNotFoundError(f'{self.weights} is missing; train the models with python -m {__name__}.train')
        model = self.build()
        model.load_state_dict(torch.load(self.weights, weights_only=True))
        return model.to(dtype).eval()


DEMOS = {demo.name: demo for demo in (
    Demo('vit', 'ViT', ViT, SHAPES, 2800, 3e-3),
    Demo(
        'linear_attention', 'Linear-attention CNN',
        partial(LinearAttentionCNN, channels=3, num_classes=len(SHAPES), stride=2), SHAPES, 800, 3e-3,
    ),
    Demo('linear_attention_digits', 'Linear-attention CNN', LinearAttentionCNN, DIGITS, 600, 3e-3),
    Demo('performer', 'Performer', PerformerClassifier, SHAPES, 1500, 3e-3),
)}

__all__ = ['DEMOS', 'DIGITS', 'SHAPES', 'Demo', 'Samples', 'digits', 'scenes']
