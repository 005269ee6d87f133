'''Every test runs in a folder of its own, where the models and a picture are.'''
import sys

import numpy as np
import pytest
from PIL import Image

from .helpers import MODELS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    '''A folder with the models, in which the commands run.'''
    (tmp_path / 'cli_models.py').write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    yield tmp_path
    assert sys.path == path
    sys.modules.pop('cli_models', None)
    sys.modules.pop('zennit_attn_cli_cli_models', None)


@pytest.fixture
def photo(folder):
    '''An image file of 20 x 30 pixels.'''
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / 'photo.png')
    return 'photo.png'
