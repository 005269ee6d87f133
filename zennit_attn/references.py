'''References for :py:class:`~zennit_attn.composites.Difference`: what an input is compared with.'''
import torch


def blank_tokens(blank, keep=(0,), keep_ids=(), padding=None):
    '''Return a reference for token ids: all tokens but those that are no content become a blank one.

    A reference has to keep what every input has: the first token of a language model, at which attention rests that
    looks at nothing, the template of a prompt, ``[CLS]`` and ``[SEP]``. What is kept receives no relevance.

    Parameters
    ----------
    blank: int
        The id of the blank token: ``[MASK]``, padding, or for a language model the id of a line break.
    keep: sequence of int or :py:class:`torch.Tensor`, optional
        The positions that are kept, or a mask of booleans of the shape of the ids, or one that broadcasts to it.
        Default is the first.
    keep_ids: sequence of int, optional
        The tokens that are kept wherever they stand.
    padding: int, optional
        The token of which there may be some at the left. It is kept there, and positions count from the first other
        one.

    Returns
    -------
    callable
        Takes ids of shape [batch, tokens] and returns those of the reference, of the same shape and type.

    Raises
    ------
    IndexError
        When it is called, if there is no such position.

    Examples
    --------
    >>> composite = Difference(reference=blank_tokens(tokenizer.mask_token_id, keep_ids=tokenizer.all_special_ids))
    '''
    def reference(ids):
        kept = torch.isin(ids, torch.as_tensor(list(keep_ids), dtype=ids.dtype, device=ids.device))
        if isinstance(keep, torch.Tensor) and keep.dtype == torch.bool:
            kept = kept | keep.to(ids.device)
        elif padding is None:
            kept[..., torch.as_tensor(list(keep), dtype=torch.long, device=ids.device)] = True
        else:
            pads = (ids == padding).cumprod(-1)
            starts = pads.sum(-1, keepdim=True)
            places = torch.as_tensor(list(keep), dtype=torch.long, device=ids.device)
            places = torch.where(places < 0, ids.shape[-1] + places, (starts + places).clamp(max=ids.shape[-1] - 1))
            kept = (kept | (pads > 0)).scatter(-1, places, True)
        return torch.where(kept, ids, torch.full_like(ids, blank))
    return reference
