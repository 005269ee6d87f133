'''What a user asked for that can not be: errors of one line, and values of options.'''
import argparse
import ast
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from ..errors import AttributionError


class UsageError(Exception):
    '''A path, shape, target, checkpoint or option that does not fit. The command ends with 2.'''


def unknown_name(kind, name, names):
    '''Return the error for a name that is none of those there are.'''
    names = list(names)
    close = get_close_matches(str(name), names, n=3, cutoff=.4) or names[:5]
    hint = f'; did you mean {", ".join(close)}?' if close else ''
    return UsageError(f'there is no {kind} {name!r}{hint}')


@contextmanager
def blaming(what):
    '''Turn whatever goes wrong in code or files of the user into an error of one line; refusals stay as they are.'''
    try:
        yield
    except (UsageError, AttributionError):
        raise
    except Exception as error:
        raise UsageError(f'{what}: {type(error).__name__}: {first_line(error)}') from error


def first_line(error):
    '''Return the first line of an error's message that says anything, and no more than a line's length.'''
    line = next(filter(None, map(str.strip, str(error).splitlines())), 'no message')
    return line if len(line) <= 240 else f'{line[:240]}...'


def parse_setting(text):
    '''Parse ``NAME=VALUE``; a value that is no Python literal is a string.'''
    name, equals, value = text.partition('=')
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form NAME=VALUE')
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def parse_size(text):
    '''Parse ``224`` or ``224x192``: height and width.'''
    parts = text.lower().split('x')
    if not 1 <= len(parts) <= 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size such as 224 or 224x192 (height x width)')
    return int(parts[0]), int(parts[-1])


def parse_count(text):
    '''Parse a number of 1 or more.'''
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of 1 or more')
    return int(text)


def writable(path, suffixes):
    '''Return a path to write to, whose folder exists from now on.'''
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f'the name of the output has to end in {", ".join(suffixes)}, not {path.name!r}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f'can not write into {path.parent}: {error.strerror}') from error
    if path.is_dir():
        raise UsageError(f'can not write {path}: it is a folder')
    return path
