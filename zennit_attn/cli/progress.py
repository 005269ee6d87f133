'''A progress bar on stderr, where a person sees it: nothing is written to files and pipes.'''
import sys

_WIDTH = 24


class Progress:
    '''Counts steps of long work.

    Parameters
    ----------
    total: int
        Number of steps.
    stream: file, optional
        Where to draw. Default is stderr.
    '''
    def __init__(self, total, stream=None):
        self.total = total
        self.done = 0
        self.stream = sys.stderr if stream is None else stream
        self.shows = bool(getattr(self.stream, 'isatty', lambda: False)())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.clear()

    def step(self, label):
        '''Begin the next step.'''
        filled = _WIDTH * self.done // max(self.total, 1)
        self.done += 1
        self._write(f'\r\x1b[K[{"#" * filled}{"." * (_WIDTH - filled)}] {self.done}/{self.total} {label}')

    def clear(self):
        '''Erase the bar, before anything else is written.'''
        self._write('\r\x1b[K')

    def _write(self, text):
        if self.shows:
            self.stream.write(text)
            self.stream.flush()
