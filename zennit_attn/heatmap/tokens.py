'''Tokens: the relevance of a text, in a notebook, a terminal or a figure.'''
from dataclasses import dataclass, field
from html import escape

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .colors import COLORS, by_method, colorize, is_dark, limit_of, to_array
from .titles import visible, wrapped

_RESET = '\x1b[0m'


def token_texts(tokenizer, ids):
    '''Return the texts of tokens with the spaces before them, which tokens that are decoded one by one lose.

    Parameters
    ----------
    tokenizer: object
        A tokenizer of ``transformers``, which marks spaces in its own way: ``Ġ``, ``▁``, or ``##`` where there is none.
    ids: :py:class:`torch.Tensor` or list of int
        The ids, of shape [tokens].

    Returns
    -------
    list of str
        One text a token; together they are the text.

    Examples
    --------
    >>> Text(token_texts(tokenizer, input_ids[0]), relevance[0].sum(-1))
    '''
    ids = [int(index) for index in ids]
    # A model may say an id for which its tokenizer has no token, where its vocabulary was rounded up.
    marks = [mark or f'<{index}>' for mark, index in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]
    if not any(mark.startswith(('Ġ', '▁')) for mark in marks):
        return [mark.removeprefix('##') if mark.startswith('##') else ' ' * bool(index) + mark
                for index, mark in enumerate(marks)]
    return [_with_space(mark, tokenizer.decode([index]), f'<{index}>') for mark, index in zip(marks, ids, strict=True)]


def _with_space(mark, piece, unknown):
    piece = piece or unknown * (mark == unknown)
    return ' ' * (mark.startswith(('Ġ', '▁')) and not piece.startswith(' ')) + piece


@dataclass(frozen=True)
class Text:
    '''A text whose tokens are coloured by their relevance; a notebook shows it as it is.

    Attributes
    ----------
    tokens: list[str]
        The tokens.
    relevance: :py:class:`torch.Tensor` or dict[str, :py:class:`torch.Tensor`]
        Relevance of the tokens, of shape ``(tokens,)``, or several by the name of their method. Sum over features
        first: ``relevance.sum(dim=-1)``.
    title: str
        Written above, see :py:func:`~zennit_attn.heatmap.title`.
    captions: dict[str, str]
        Written beside the name of each method, e.g. what is unaccounted.
    shared: bool
        Whether the methods share a scale.
    cmap: str or :py:class:`zennit.cmap.ColorMap`
        Colour map as in :py:func:`zennit.image.get_cmap`, white or light at its centre.
    '''
    tokens: list
    relevance: object
    title: str = ''
    captions: dict = field(default_factory=dict)
    shared: bool = True
    cmap: object = COLORS

    def __post_init__(self):
        arrays = [to_array(item, 1, '(tokens,): one sample, summed over the features') for item in self._maps.values()]
        counts = {len(array) for array in arrays}
        if counts != {len(self.tokens)}:
            raise ValueError(f'There are {len(self.tokens)} tokens, but relevance for {sorted(counts)}.')

    @property
    def _maps(self):
        return by_method(self.relevance)

    def _colours(self):
        '''Return the name, the relevance, the colours and the scale of each method.'''
        arrays = {name: to_array(item) for name, item in self._maps.items()}
        for name, array in arrays.items():
            limit = limit_of(list(arrays.values()) if self.shared else [array])
            yield name, array, colorize(array, limit, self.cmap), limit

    def html(self):
        '''Return the text as HTML. Whatever is in the tokens is shown and not interpreted.

        Returns
        -------
        str
        '''
        parts = [f'<div><b>{escape(self.title)}</b></div>'] if self.title else []
        for name, array, colours, limit in self._colours():
            label = escape(_label(name, self.captions))
            parts.append(f'<div style="margin-top:.5em;color:#666;font-size:85%">{label} {self._legend(limit)}</div>')
            spans = ''.join(map(_span, self.tokens, array, colours))
            parts.append(f'<div style="font-family:monospace;line-height:1.9;white-space:pre-wrap">{spans}</div>')
        return f'<div style="background:#fff;color:#000;padding:.5em">{"".join(parts)}</div>'

    def _legend(self, limit):
        steps = ','.join(_hex(colour) for colour in colorize([-1., -.5, 0., .5, 1.], 1., self.cmap))
        return (f'<span style="white-space:nowrap">{-limit:.3g} <span style="display:inline-block;width:6em;'
                f'height:.8em;vertical-align:middle;background:linear-gradient(90deg,{steps})"></span> {limit:.3g}'
                '</span>')

    def _repr_html_(self):
        return self.html()

    def lines(self):
        '''Return the text as lines of a token and its relevance, for files and for programs that read them.

        Returns
        -------
        str
            Of each token a line, with a tab before the relevance by each method.
        '''
        maps = [to_array(item) for item in self._maps.values()]
        names = ['\t'.join(['token', *self._maps])] if any(self._maps) else []
        rows = ('\t'.join([visible(token), *(f'{array[index]:.6g}' for array in maps)])
                for index, token in enumerate(self.tokens))
        return '\n'.join([*names, *rows])

    def ansi(self):
        '''Return the text with the escape codes that colour it in a terminal with 24 bit colours.

        Returns
        -------
        str
        '''
        lines = [self.title] if self.title else []
        for name, _, colours, limit in self._colours():
            blocks = ''.join(_escaped(' ', colour) for colour in colorize([-1., -.5, 0., .5, 1.], 1., self.cmap))
            lines.append(f'{_label(name, self.captions)}  {-limit:.3g} {blocks} {limit:.3g}'.strip())
            lines.append(''.join(map(_escaped, self.tokens, colours)))
        return '\n'.join(lines)

    def figure(self, width=8.):
        '''Draw the text, wrapped to a width.

        Parameters
        ----------
        width: float
            Width in inches.

        Returns
        -------
        :py:class:`matplotlib.figure.Figure`
            The figure. ``savefig`` writes it.
        '''
        heading = wrapped(self.title, width, 10)
        columns = max(int((width - 2. * _MARGIN) / _CELL), 8)
        lines = _lines(self.tokens, columns)
        methods = [(_label(name, self.captions, f'full colour at {limit:.3g}'), colours)
                   for name, _, colours, limit in self._colours()]
        heights = [len(lines) + bool(label) + .5 for label, _ in methods]
        above = .1 + .2 * len(heading.splitlines())
        height = above + _LINE * sum(heights)
        result = Figure((width, height))
        result.suptitle(heading, fontsize=10, y=1. - .06 / height, va='top')
        # one inch of the axis holds as many letters and lines as they need, whatever there is to draw
        axis = result.add_axes((_MARGIN / width, 0., columns * _CELL / width, 1. - above / height))
        axis.set(xlim=(0., columns), ylim=(sum(heights), 0.))
        axis.axis('off')
        for index, (label, colours) in enumerate(methods):
            _draw_lines(axis, sum(heights[:index]), lines, label, colours)
        return result


#: Inches of a letter, of a line and of the margin.
_CELL, _LINE, _MARGIN = .07, .23, .1


def _label(name, captions, *more):
    return ', '.join(part for part in (name, captions.get(name, ''), *more) if part)


def _hex(colour):
    return '#' + ''.join(f'{round(255 * part):02x}' for part in colour)


def _span(token, value, colour):
    background = _hex(colour)
    text = 'fff' if is_dark(colour) else '000'
    shown = escape(visible(token)) or '&#8203;'
    return (f'<span title="{value:.4g}" style="background:{background};color:#{text};padding:.15em 0;'
            f'border-radius:.2em">{shown}</span>')


def _escaped(token, colour):
    red, green, blue = (round(255 * part) for part in colour)
    text = '255;255;255' if is_dark(colour) else '0;0;0'
    return f'\x1b[48;2;{red};{green};{blue}m\x1b[38;2;{text}m{visible(token)}{_RESET}'


def _lines(tokens, columns):
    '''Return lines of pairs of column and (index, letters), tokens longer than a line being cut into pieces.'''
    lines, column = [[]], 0
    for index, token in enumerate(tokens):
        letters = visible(token) or ' '
        while letters:
            if column and column + len(letters) > columns:
                lines.append([])
                column = 0
            piece, letters = letters[:columns], letters[columns:]
            lines[-1].append((column, index, piece))
            column += len(piece)
    return lines


def _draw_lines(axis, top, lines, label, colours):
    if label:
        axis.text(0., top + .5, label, va='center', fontsize=9, parse_math=False)
    for row, line in enumerate(lines, start=bool(label)):
        for column, index, piece in line:
            corner = column, top + row + .06
            axis.add_patch(Rectangle(corner, len(piece), .88, facecolor=colours[index], linewidth=0.))
            for place, letter in enumerate(piece):
                axis.text(column + place + .5, top + row + .5, letter, ha='center', va='center', fontsize=8,
                          family='monospace', color='white' if is_dark(colours[index]) else 'black', parse_math=False)
