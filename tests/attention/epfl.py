'''Builds EPFL's causal product, the C++ half of pytorch-fast-transformers, for the tests that run through it.'''
import shutil
import subprocess
import sys
import sysconfig
import tarfile

import torch

PACKAGE, FOLDER, KERNEL = 'pytorch-fast-transformers', 'fast_transformers', 'causal_product_cpu'


class CannotBuild(Exception):
    '''Why there is no extension here.'''


def run(*command):
    '''Run a command, or say what went wrong in its own last words.'''
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr.strip() or done.stdout.strip() or 'no output').splitlines()
        raise CannotBuild(f'{command[0]}: {words[-1]}')


def sources(directory):
    '''Download the sdist, whose setup would also compile for CUDA, and unpack the package only.'''
    run(sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--no-binary', ':all:', '--no-build-isolation',
        '--dest', str(directory), PACKAGE)
    with tarfile.open(next(directory.glob('*.tar.gz'))) as archive:
        archive.extractall(directory, filter='data')
    return next(directory.glob(f'*/{FOLDER}'))


def build(directory):
    '''Build the extension below a directory, and return the folder to put on Python's path.'''
    compiler = shutil.which('g++') or shutil.which('c++')
    if compiler is None:
        raise CannotBuild('there is no C++ compiler')
    try:
        from torch.utils.cpp_extension import include_paths, library_paths
    except ImportError as error:
        raise CannotBuild(f"torch's build tools need a package: {error}") from error
    package = sources(directory)
    room = package / 'causal_product'
    includes = [f'-I{path}' for path in (*include_paths(), sysconfig.get_paths()['include'])]
    libraries = [flag for path in library_paths() for flag in (f'-L{path}', f'-Wl,-rpath,{path}')]
    # Before torch 2.7, that of the package index keeps strings as C++ did before 2011.
    strings = f'-D_GLIBCXX_USE_CXX11_ABI={torch.compiled_with_cxx11_abi():d}'
    run(compiler, '-O2', '-shared', '-fPIC', '-std=c++20', '-fopenmp', strings, f'-DTORCH_EXTENSION_NAME={KERNEL}',
        *includes, str(room / f'{KERNEL}.cpp'), *libraries, '-ltorch', '-ltorch_cpu', '-lc10', '-ltorch_python',
        '-o', str(room / f'{KERNEL}.so'))
    return package.parent
