'''Published attention code, as it is installed, in small random configurations.'''
