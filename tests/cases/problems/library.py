'''Torch's own attention.'''
import torch
from torch import nn

from .registry import DIM, TOKENS, Head, problem


@problem('nn_multihead_attention')
class NNMultihead(nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(DIM, 3, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(DIM, 2, kdim=8, vdim=8, dropout=0.1)
        self.fc, self.head = nn.Linear(DIM, 8), Head()

    def forward(self, x):
        x = x + self.self_attn(x, x, x)[0]
        y = x.transpose(0, 1)
        memory = self.fc(y)
        causal = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
        y = y + self.cross_attn(y, memory, memory, need_weights=False, attn_mask=causal)[0]
        return self.head(y.transpose(0, 1))


@problem('nn_transformer_encoder')
class NNEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.pre = nn.TransformerEncoderLayer(DIM, 3, 16, batch_first=True, norm_first=True, activation='gelu')
        self.post = nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True)
        self.head = Head()

    def forward(self, x):
        return self.head(self.post(self.pre(x)))


@problem('nn_transformer_stacks')
class NNStacks(nn.Module):
    '''Encoder with a padding mask, decoder with a causal mask, biases for keys and values, weights per head.'''
    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, 2, 16, batch_first=True), 1)
        self.decoder = nn.TransformerDecoderLayer(DIM, 2, 16, batch_first=True)
        self.biased = nn.MultiheadAttention(DIM, 3, add_bias_kv=True, add_zero_attn=True, batch_first=True)
        self.head = Head()

    def forward(self, x):
        padding = (torch.arange(TOKENS) == TOKENS - 1).expand(x.shape[0], -1)
        causal = torch.full((TOKENS, TOKENS), float('-inf'), dtype=x.dtype).triu(1)
        y = self.decoder(x, self.encoder(x, src_key_padding_mask=padding), tgt_mask=causal)
        y, weights = self.biased(query=y, key=y, value=y, average_attn_weights=False)
        return self.head(y + weights.mean(1)[:, :, :TOKENS] @ x)
