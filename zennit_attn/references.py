'''References for :py:class:`~zennit_attn.composites.Difference`: what an input is compared with.'''
import torch


def blank_tokens(blank, keep=(0,), keep_ids=()):
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
        else:
            kept[..., torch.as_tensor(list(keep), dtype=torch.long, device=ids.device)] = True
        return torch.where(kept, ids, torch.full_like(ids, blank))
    return reference
