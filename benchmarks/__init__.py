'''Commands that measure. Each file is run by its path; benchmarks.real is a package.'''
