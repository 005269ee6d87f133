'''Maps of trained models from packages, on tasks whose evidence is known: python -m benchmarks.real.run.'''
