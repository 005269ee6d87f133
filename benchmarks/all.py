'''All speed benchmarks one after another, each in a process of its own, as one table.'''
import json
import subprocess
import sys
from pathlib import Path

import measure
from measure import Row, preamble, table, write

#: The commands, in the order of the table.
COMMANDS = ['attribution', 'gamma', 'performer', 'fast_weights', 'linear_attention', 'sdpa', 'interception',
            'registration']


def run(name, options):
    '''The rows of one command.'''
    flags = ['--quick'] * options.quick + (['--threads', str(options.threads)] if options.threads else [])
    command = [sys.executable, Path(__file__).with_name(f'{name}.py'), '--json', '--device', options.device, *flags]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [Row(**row) for row in json.loads(output.splitlines()[-1])]


def main():
    '''Run all, print the table and write it where asked.'''
    parser = measure.parser(__doc__)
    options = measure.parse(parser)
    command = 'python benchmarks/all.py ' + ' '.join(sys.argv[1:])
    sections = [f'{preamble(command.strip(), options)}']
    for name in COMMANDS:
        rows = run(name, options)
        sections.append(f'### `python benchmarks/{name}.py`\n\n{table(row.cells() for row in rows)}')
        print(f'{name}: {sum(row.met == "no" for row in rows)} goals missed', file=sys.stderr)
    write('\n'.join(sections), options.output)


if __name__ == '__main__':
    main()
